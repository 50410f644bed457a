"""All that one submit applies: the bundle's ConfigMap, with a RayJob for each stage or with an AlignmentRun.

Reads the run's local files and the data that its digests cover; asks no cluster.
"""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from alignment.cluster.manifests.alignment_run import API_VERSION, GROUP, KIND, Files, Gate, Spec
from alignment.cluster.manifests.bundle import Bundle, bundle, config_map
from alignment.cluster.manifests.labels import job_name
from alignment.cluster.manifests.pods import Json
from alignment.cluster.manifests.ray_job import ray_job
from alignment.config import AnyStage, Profile, Run
from alignment.config.profile import profile_json
from alignment.errors import ConfigError
from alignment.pipeline.keys import keys


def dry_run(
    run: Run, profile: Profile, *, namespace: str, target: str, only: str | None = None,
    gates: tuple[Gate, ...] = (), retries: int = 2,
) -> list[Json]:
    """The manifests that a submit to `target` (rayjob or run) would apply on an empty storage; asks no cluster.

    Raises:
        KubeAlignError: the run cannot go to a cluster with this profile.
    """
    packed = bundle(run, profile)
    name = packed.name_for(run.name)
    files = config_map(packed, name=name, namespace=namespace)
    if target == "run":
        return [files, alignment_run(run, profile, packed, namespace=namespace, config_map=name, gates=gates,
                                     retries=retries)]
    known = keys(profile.applied(run))
    return [files, *(
        ray_job(run, stage, profile, namespace=namespace, config_map=name, attempt=1,
                name=job_name(run.name, stage.name, known[stage.name].digest, 1)) for stage in chosen(run, only))]


def chosen(run: Run, only: str | None) -> Sequence[AnyStage]:
    """The stages that are asked for. Raises ConfigError for an unknown name."""
    stages = [stage for stage in run.stages if only in (None, stage.name)]
    if not stages:
        raise ConfigError("no stage of this name", where="--stage", found=only,
                          expected="one of " + ", ".join(stage.name for stage in run.stages))
    return stages


def alignment_run(
    run: Run, profile: Profile, bundle: Bundle, *, namespace: str, config_map: str, suspend: bool = False,
    queue: str | None = None, gates: tuple[Gate, ...] = (), retries: int = 2, parallel: int = 1, ttl: int | None = None,
) -> Json:
    """The AlignmentRun manifest of a run, to be applied after its ConfigMap.

    Args:
        run: as loaded on the client, where its data files can be read (their content is part of every digest).
        bundle: what the ConfigMap holds.
        config_map: that ConfigMap's name.

    Raises:
        DataError, ModelError: a source of the run cannot be read.
    """
    spec = Spec(
        run=yaml.safe_load(bundle.run_yaml), profile=profile_json(profile), files=Files(config_map=config_map),
        digests={name: key.digest for name, key in keys(profile.applied(run)).items()}, suspend=suspend, queue=queue,
        gates=gates, retries=retries, parallel=parallel, ttl=ttl,
    )
    return {
        "apiVersion": API_VERSION, "kind": KIND,
        "metadata": {"name": run.name, "namespace": namespace,
                     "labels": {"app.kubernetes.io/part-of": "kubealign", f"{GROUP}/run": run.name}},
        "spec": spec.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True),
    }
