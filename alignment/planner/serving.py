"""What one served replica holds in memory, before there is one: for `plan`, and for `check` beside the profile's pod.

Weights once for each model that is no adapter, adapters beside it, and the cache and the passing of `limits.rows`
answers at once by the transformers engine. vLLM takes what it is given, so for it the rest is what it has for its
cache. Measures nothing.
"""

from __future__ import annotations

from dataclasses import replace

from alignment.config import Profile, Run, bytes_of, served
from alignment.config.run import adapter_of
from alignment.planner.estimate import Memory, generate_memory
from alignment.planner.model_sizes import of_stage, root_of
from alignment.planner.need import value_bytes

LIBRARIES = int(1.5 * 2**30)
"""Host memory of a replica's process and Ray's beside it, without tensors: of a tiny model's pod on a CPU 652 MB and
542 MB were resident."""
USUAL = 2048
"""Tokens of a conversation and its answer that are counted on, where `limits.longest` does not say."""


def served_memory(run: Run, *, on_gpu: bool) -> Memory | None:
    """Of one replica of the models that the run serves; None where it serves none, or a size is not known yet.

    A reward model has its backbone for itself; policies of one base share it, but where one is trained whole.
    """
    if run.serve is None:
        return None
    stages = {stage.name: stage for stage in run.stages}
    weights: dict[tuple[str, str | None], int] = {}
    adapters, largest = 0, Memory()
    # All of them compute as it is said, or as they were measured.
    asked = run.compute.dtype
    value = value_bytes(asked if asked != "auto" else next(
        (stage.arithmetic for stage in reversed(run.stages) if stage.arithmetic), None))
    for name in served(run).values():
        stage, size = run.stage(name), of_stage(run, run.stage(name))
        if size is None:
            return None
        adapter = adapter_of(stages, name)
        alone = adapter is None or stage.makes != "policy"
        weights[name if alone else root_of(run, stage).name, stage.makes] = size.parameters * value
        adapters += 0 if adapter is None else size.lora_parameters(adapter.r) * value
        if stage.makes == "policy":
            limits = run.serve.limits
            one = generate_memory(size, weight_bytes=value, sequences=limits.rows, length=limits.longest or USUAL,
                                  on_gpu=on_gpu)
            largest = max(largest, one, key=lambda memory: memory.total)
    return replace(largest, weights=sum(weights.values()) + adapters)


def short_of(run: Run, profile: Profile) -> str | None:
    """Why a replica's pod cannot hold the models that it serves; None where it can, or nobody can say."""
    cluster = profile.cluster
    if run.serve is None or cluster is None:
        return None
    pod = cluster.serve.worker or cluster.worker
    memory = served_memory(run, on_gpu=bool(pod.gpus))
    if memory is None or pod.gpus:
        return None
    needed, there = memory.weights + LIBRARIES + bytes_of(pod.shm), bytes_of(pod.memory)
    if needed <= there:
        return None
    return (f"serve: the pod of a replica has {pod.memory} of memory (profile {profile.name}, cluster.serve.worker), "
            f"and weights, libraries and /dev/shm take about {needed / 2**30:.1f}Gi before the first answer")
