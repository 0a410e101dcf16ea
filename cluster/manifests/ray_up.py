"""Configs for ``ray up``: machines of one's own, AWS, GCP. Checked against Ray's own schema in the tests."""

import shlex
from typing import Any

from cluster.manifests.spec import ManifestSpec

TOKEN = "/tmp/spikeprune-auth/auth_token"


def on_prem(spec: ManifestSpec) -> dict[str, Any]:
    """Machines that are there already, reached by ssh."""
    workers = list(spec.worker_ips)
    return {
        **_common(spec),
        "min_workers": len(workers),
        "max_workers": len(workers),
        "provider": {"type": "local", "head_ip": spec.head_ip, "worker_ips": workers},
    }


def aws(spec: ManifestSpec) -> dict[str, Any]:
    """Instances that the autoscaler starts and stops on AWS."""
    machine = spec.machine or ("g5.xlarge" if spec.gpus else "m6i.xlarge")
    return {
        **_common(spec),
        "provider": {"type": "aws", "region": spec.region, "cache_stopped_nodes": False},
        **_types(spec, {"InstanceType": machine}),
    }


def gcp(spec: ManifestSpec) -> dict[str, Any]:
    """Instances that the autoscaler starts and stops on Google Cloud."""
    node = {
        "machineType": spec.machine or ("g2-standard-4" if spec.gpus else "n2-standard-4"),
        "disks": [
            {
                "boot": True,
                "autoDelete": True,
                "type": "PERSISTENT",
                "initializeParams": {
                    "diskSizeGb": 100,
                    "sourceImage": "projects/deeplearning-platform-release/global/images/family/common-cpu",
                },
            }
        ],
    }
    return {
        **_common(spec),
        "provider": {
            "type": "gcp",
            "region": spec.region,
            "availability_zone": spec.zone,
            "project_id": spec.project,
        },
        **_types(spec, node),
    }


def _types(spec: ManifestSpec, node_config: dict[str, Any]) -> dict[str, Any]:
    return {
        "max_workers": spec.workers,
        "head_node_type": "head",
        "available_node_types": {
            "head": {"resources": {}, "node_config": node_config},
            "worker": {
                "min_workers": 0,
                "max_workers": spec.workers,
                "resources": {},
                "node_config": node_config,
            },
        },
    }


def _common(spec: ManifestSpec) -> dict[str, Any]:
    # The token of who calls `ray up` goes to every node and into no config; the mode is set explicitly.
    ready = f"export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={TOKEN}; ulimit -n 65536; "
    config: dict[str, Any] = {
        "cluster_name": spec.name,
        "auth": {"ssh_user": spec.ssh_user},
        "file_mounts": {TOKEN: "~/.ray/auth_token"},
        "idle_timeout_minutes": 15,
    }
    if spec.venv:
        ready += f". {shlex.quote(spec.venv + '/bin/activate')}; "
    else:
        config["docker"] = {
            "image": spec.image,
            "container_name": "spikeprune",
            "run_options": ["--ulimit nofile=65536:65536"],
        }
    # The dashboard stays on the head's loopback: `ray dashboard` or ssh -L 8265:127.0.0.1:8265 reach it.
    head = "ray start --head --port=6379 --dashboard-host=127.0.0.1"
    head += " --autoscaling-config=~/ray_bootstrap_config.yaml"
    worker = "ray start --address=$RAY_HEAD_IP:6379"
    return {
        **config,
        "head_start_ray_commands": [f"{ready}ray stop", f"{ready}{head}"],
        "worker_start_ray_commands": [f"{ready}ray stop", f"{ready}{worker}"],
    }
