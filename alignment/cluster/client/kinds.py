"""Where the API server has each kind of object that KubeAlign reads or makes."""

from __future__ import annotations

NAMESPACED = {
    "ConfigMap": ("/api/v1", "configmaps"), "Secret": ("/api/v1", "secrets"), "Pod": ("/api/v1", "pods"),
    "Event": ("/api/v1", "events"), "Service": ("/api/v1", "services"),
    "PersistentVolumeClaim": ("/api/v1", "persistentvolumeclaims"),
    "ResourceQuota": ("/api/v1", "resourcequotas"), "LimitRange": ("/api/v1", "limitranges"),
    "Job": ("/apis/batch/v1", "jobs"), "Deployment": ("/apis/apps/v1", "deployments"),
    "NetworkPolicy": ("/apis/networking.k8s.io/v1", "networkpolicies"),
    "RayService": ("/apis/ray.io/v1", "rayservices"),
    "RayJob": ("/apis/ray.io/v1", "rayjobs"), "RayCluster": ("/apis/ray.io/v1", "rayclusters"),
    "AlignmentRun": ("/apis/kubealign.dev/v1alpha1", "alignmentruns"),
    # What Kueue serves now, and what an older one serves alone.
    "LocalQueue": ("/apis/kueue.x-k8s.io/v1beta2", "localqueues"),
    "LocalQueue v1beta1": ("/apis/kueue.x-k8s.io/v1beta1", "localqueues"),
}
CLUSTER_WIDE = {
    "Node": ("/api/v1", "nodes"), "Namespace": ("/api/v1", "namespaces"),
    "CustomResourceDefinition": ("/apis/apiextensions.k8s.io/v1", "customresourcedefinitions"),
    "SelfSubjectAccessReview": ("/apis/authorization.k8s.io/v1", "selfsubjectaccessreviews"),
}


def path_of(kind: str, namespace: str | None, name: str | None = None) -> str:
    """The URL path of a kind in a namespace (None: in all of them), or of one object."""
    base, plural = CLUSTER_WIDE.get(kind) or NAMESPACED[kind]
    middle = "" if kind in CLUSTER_WIDE or namespace is None else f"/namespaces/{namespace}"
    return f"{base}{middle}/{plural}" + (f"/{name}" if name else "")
