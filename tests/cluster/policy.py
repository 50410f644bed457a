"""What our pods may be: Pod Security `restricted`, and stricter where that costs nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]


def templates(manifest: Json) -> Iterator[tuple[str, Json]]:
    """Pod templates of a RayJob, a RayService or a Job."""
    spec = manifest["spec"]
    if manifest["kind"] == "Job":
        yield "job", spec["template"]
        return
    cluster = spec["rayClusterConfig" if manifest["kind"] == "RayService" else "rayClusterSpec"]
    yield "head", cluster["headGroupSpec"]["template"]
    for group in cluster["workerGroupSpecs"]:
        yield "worker", group["template"]


def violations(template: Json) -> Iterator[str]:
    """What a pod does that Pod Security `restricted`, or our own policy, does not allow."""
    spec = template["spec"]
    pod = spec["securityContext"]
    if not (pod["runAsNonRoot"] and pod["runAsUser"] == pod["runAsGroup"] == pod["fsGroup"] == 1000):
        yield "runs as another user"
    if pod["seccompProfile"] != {"type": "RuntimeDefault"}:
        yield "no seccomp profile"
    if spec["automountServiceAccountToken"] is not False or "serviceAccountName" in spec:
        yield "has a service account's token"
    if any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")):
        yield "shares something with its host"
    allowed = {"configMap", "emptyDir", "persistentVolumeClaim"}
    if any(set(volume) - {"name"} - allowed for volume in spec["volumes"]):
        yield "mounts what is not its own"
    mounts = {mount["name"]: mount for mount in spec["containers"][0]["volumeMounts"]}
    if set(mounts) != {volume["name"] for volume in spec["volumes"]}:
        yield "volumes and mounts differ"
    if not {"/tmp", "/home/kubealign"} <= {mount["mountPath"] for mount in mounts.values()}:
        yield "nowhere to write"
    if any({"lifecycle", "livenessProbe", "readinessProbe"} & set(item) for item in spec.get("initContainers", [])):
        yield "an init container with what the API server refuses"
    for container in [*spec["containers"], *spec.get("initContainers", [])]:
        security = container["securityContext"]
        if security != {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]},
                        "readOnlyRootFilesystem": True}:
            yield f"container {container['name']} may do too much: {security}"
        if container["resources"]["requests"] != container["resources"]["limits"]:
            yield "asks for less than it uses"
        if not {"cpu", "memory", "ephemeral-storage"} <= set(container["resources"]["limits"]):
            yield "a resource without a limit"
        if container["image"].rpartition(":")[2] in ("latest", container["image"]):
            yield "an image without a tag"
        for entry in container["env"]:
            if "valueFrom" in entry or (re.search("TOKEN|SECRET|PASSWORD|KEY", entry["name"])
                                        and entry["name"] != "KUBEALIGN_NO_API_KEY"):
                yield f"{entry['name']} stands in the manifest"
        if [entry["name"] for entry in container["env"]] != sorted({entry["name"] for entry in container["env"]}):
            yield "environment out of order, or a name twice"
