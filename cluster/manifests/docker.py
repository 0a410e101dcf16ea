"""A Dockerfile for nodes of a cluster, built in a checkout of this software."""

from cluster.manifests.spec import ManifestSpec


def dockerfile(spec: ManifestSpec) -> str:
    """The image: the tested set of versions, a compiler for the CPU kernel, no root."""
    return f"""# In a checkout of spikeprune: docker build -f Dockerfile -t {spec.image} .
FROM python:{spec.python_version}-slim
# gcc: the CPU kernel; wget: KubeRay's probes; rsync and ssh: ray up
RUN apt-get update \\
    && apt-get install -y --no-install-recommends gcc libc6-dev wget rsync openssh-client \\
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/spikeprune
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN pip install --no-cache-dir --require-hashes -r constraints.txt
COPY snn snn
COPY pruning pruning
COPY pipelines pipelines
COPY cluster cluster
RUN pip install --no-cache-dir --no-deps --no-build-isolation . \\
    && python -c 'import ray; assert ray.__version__ == "{spec.ray_version}", ray.__version__'
RUN useradd --create-home --uid 1000 ray
USER ray
WORKDIR /home/ray
ENV RAY_USAGE_STATS_ENABLED=0
"""
