"""RayJob and RayCluster for KubeRay (https://github.com/ray-project/kuberay), as plain dictionaries."""

from typing import Any

from cluster.launch import command_line
from cluster.manifests.spec import ManifestSpec

API = "ray.io/v1"
FIELDS_OF = "1.5.1"
"""Version of KubeRay whose fields these are, the first with ``authOptions``."""
FIELDS: dict[str, Any] = {
    "RayJob": {
        "entrypoint", "rayClusterSpec", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished",
        "submissionMode", "backoffLimit",
    },
    "rayClusterSpec": {"rayVersion", "authOptions", "headGroupSpec", "workerGroupSpecs"},
    "authOptions": {"mode"},
    "headGroupSpec": {"rayStartParams", "template"},
    "workerGroupSpecs": {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"},
}  # fmt: skip
"""The fields of ours above the pods' templates."""


def ray_job(spec: ManifestSpec) -> dict[str, Any]:
    """A job with a cluster of its own, which goes when the job has ended."""
    return {
        "apiVersion": API,
        "kind": "RayJob",
        "metadata": {"name": spec.name, "namespace": spec.namespace},
        "spec": {
            "entrypoint": command_line(spec.words),
            "submissionMode": "K8sJobMode",
            "backoffLimit": 0,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 600,
            "rayClusterSpec": _cluster(spec),
        },
    }


def ray_cluster(spec: ManifestSpec) -> dict[str, Any]:
    """A cluster that stays, for jobs of `spikeprune submit`."""
    return {
        "apiVersion": API,
        "kind": "RayCluster",
        "metadata": {"name": spec.name, "namespace": spec.namespace},
        "spec": _cluster(spec),
    }


def _cluster(spec: ManifestSpec) -> dict[str, Any]:
    return {
        "rayVersion": spec.ray_version,
        "authOptions": {"mode": "token"},  # KubeRay makes the token and keeps it in a Secret
        "headGroupSpec": {
            # The dashboard answers inside of the Kubernetes cluster, to who has the token.
            "rayStartParams": {"dashboard-host": "0.0.0.0"},
            "template": {"spec": _pod(spec, "ray-head", gpus=0)},
        },
        "workerGroupSpecs": [
            {
                "groupName": "workers",
                "replicas": spec.workers,
                "minReplicas": spec.workers,
                "maxReplicas": spec.workers,
                "rayStartParams": {},
                "template": {"spec": _pod(spec, "ray-worker", gpus=spec.gpus)},
            }
        ],
    }


def _pod(spec: ManifestSpec, name: str, *, gpus: int) -> dict[str, Any]:
    room: dict[str, Any] = {"cpu": str(spec.cpus), "memory": f"{spec.memory}Gi"}
    if gpus:
        room["nvidia.com/gpu"] = str(gpus)
    return {
        "securityContext": {"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000, "runAsNonRoot": True},
        "containers": [
            {
                "name": name,
                "image": spec.image,
                "resources": {"requests": room, "limits": dict(room)},
                "volumeMounts": [
                    {"name": "shared", "mountPath": "/shared"},
                    {"name": "shm", "mountPath": "/dev/shm"},  # Ray's object store
                ],
            }
        ],
        "volumes": [
            {"name": "shared", "persistentVolumeClaim": {"claimName": spec.claim}},
            {
                "name": "shm",
                "emptyDir": {"medium": "Memory", "sizeLimit": f"{max(1, spec.memory * 3 // 10)}Gi"},
            },
        ],
    }
