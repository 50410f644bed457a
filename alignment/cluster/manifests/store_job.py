"""Small Jobs of the control image that look into the storage. Pure, as `ray_job`."""

from __future__ import annotations

from alignment.cluster.manifests.labels import labels
from alignment.cluster.manifests.pods import Json, cluster_of, store_pod
from alignment.config import Profile, Run


def store_job(
    profile: Profile, *, name: str, namespace: str, args: list[str], config_map: str | None = None,
    run: Run | None = None,
) -> Json:
    """A small Job of the control image with the storage at hand, gone ten minutes after it ended.

    Args:
        args: the whole command line, for example ["kubealign", "report", "/etc/kubealign/run/run.yaml"].
        config_map: name of the ConfigMap with the bundle of `run`, mounted as in a stage's pods.

    Raises:
        ConfigError: the profile has no cluster.
    """
    mark = labels(run.name if run is not None else None, component="store")
    return {
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": {"name": name, "namespace": namespace, "labels": mark},
        "spec": {"backoffLimit": 0, "activeDeadlineSeconds": 600, "ttlSecondsAfterFinished": 600,
                 "template": store_pod(cluster_of(profile), mark, args, run, config_map)},
    }
