"""What a RayService's Ray cluster needs where the number of its pods follows what is asked: Ray's own autoscaler.

It is a container of KubeRay's making in the head's pod, and the only one with a token of the Kubernetes API: the token
is mounted into it by name, not into Ray's container beside it. Its service account and Role are KubeRay's (pods: get,
list, watch, patch; RayClusters: get, patch; of this namespace).
"""

from __future__ import annotations

import copy

from alignment.cluster.manifests.pods import CONTAINER_SECURITY, Json
from alignment.config import Cluster

SCALES_LABEL = "kubealign.dev/scales"
"""Of pods that may ask the Kubernetes API: the chart's network policies let them."""
_TOKEN, _WRITES = "kubernetes-token", "autoscaler"
_RESOURCES = {"cpu": "200m", "memory": "512Mi", "ephemeral-storage": "256Mi"}


def autoscaler(cluster: Cluster, wanted: bool) -> Json:
    """The part of a RayCluster's spec."""
    if not wanted:
        return {"enableInTreeAutoscaling": False}
    return {
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {
            "version": "v2", "idleTimeoutSeconds": 60,
            "image": cluster.images.train, "imagePullPolicy": cluster.images.pull_policy,
            "resources": {"requests": dict(_RESOURCES), "limits": dict(_RESOURCES)},
            "securityContext": copy.deepcopy(CONTAINER_SECURITY),
            "env": [{"name": "HOME", "value": "/tmp"}, {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"}],
            "volumeMounts": [
                {"name": _WRITES, "mountPath": "/tmp"},
                {"name": _TOKEN, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": True},
            ],
        },
    }


def with_token(head: Json, wanted: bool) -> Json:
    """The head's template with the volumes that the autoscaler's container mounts."""
    if not wanted:
        return head
    head["metadata"]["labels"][SCALES_LABEL] = "true"
    head["spec"]["volumes"] += [
        {"name": _WRITES, "emptyDir": {}},
        {"name": _TOKEN, "projected": {"defaultMode": 0o440, "sources": [
            {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
        ]}},
    ]
    return head
