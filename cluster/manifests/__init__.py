"""Descriptions of clusters for the tools that start them, all from one small config."""

from collections.abc import Callable
from typing import Any

import yaml

from cluster.manifests import docker, kuberay, ray_up, slurm
from cluster.manifests.spec import ManifestSpec


def _yaml(make: Callable[[ManifestSpec], dict[str, Any]], comment: str) -> Callable[[ManifestSpec], str]:
    return lambda spec: f"# {comment}\n{yaml.safe_dump(make(spec), sort_keys=False, width=10**6)}"


KINDS: dict[str, Callable[[ManifestSpec], str]] = {
    "kuberay": _yaml(kuberay.ray_job, f"RayJob, KubeRay {kuberay.FIELDS_OF} or newer: kubectl apply -f FILE"),
    "kuberay-cluster": _yaml(
        kuberay.ray_cluster, f"RayCluster, KubeRay {kuberay.FIELDS_OF} or newer: kubectl apply -f FILE"
    ),
    "ray-up": _yaml(ray_up.on_prem, "ray get-auth-token --generate; ray up FILE; ray dashboard FILE"),
    "ray-up-aws": _yaml(ray_up.aws, "ray get-auth-token --generate; ray up FILE; ray dashboard FILE"),
    "ray-up-gcp": _yaml(ray_up.gcp, "ray get-auth-token --generate; ray up FILE; ray dashboard FILE"),
    "slurm": slurm.script,
    "docker": docker.dockerfile,
}
"""Kinds of manifests, each as text."""
