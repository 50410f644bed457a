"""Where numbers are computed: the one part of a run that a profile replaces. Of it only the dtype is part of a digest,
as arithmetic.py settles it for each stage."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from alignment.config.engines import Engine
from alignment.config.engines import refused_options as refused_of_vllm
from alignment.config.sharding import Sharding, refused_options
from alignment.config.stages.fields import OneCount, Strict


class Compute(Strict):
    """Where the numbers are computed. Of all this only `dtype` changes a digest, by way of the stages' own `dtype`."""

    workers: Annotated[int, Field(ge=0), OneCount] = 0
    """0: everything in this process. n: n Ray workers per stage, on the cluster at `address`."""
    address: str | None = None
    """Ray cluster to join (`auto`, ray://...). Default: the one this process runs in, else a local one."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where tensors live; auto takes a CUDA GPU where one is seen. With cuda, a machine without one is an error
    instead of a slow run."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the stages that don't say their own. auto: bfloat16 on a GPU that has it; on a CPU float32, but for
    sampling and evaluation on this machine's, where it has AVX512-BF16 or AMX. `check` says which it is."""
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    """CPUs that Ray sets aside for each worker, for placement only; on Kubernetes what a pod may use is
    `cluster.worker.cpu`."""
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0.0
    """GPUs that Ray gives each worker: 1 on a GPU cluster, a fraction to share one in sampling. Needed with workers,
    since a worker that asks for none sees none."""
    gpu: str | None = None
    """Which GPU that is, by its file of configs/hardware/ (h100, 4090): for `strategy: {kind: auto}`, `sharding: auto`
    and `plan`. Default: the one that is seen here; on a cluster it has to be said."""
    sharding: Sharding = "auto"
    """What workers share out in training, by DeepSpeed: zero1 optimizer states, zero2 gradients too, zero3 weights too,
    zero3-offload all of it in host memory. none: each holds all. auto: the least of these that fits, where `gpu` is
    named and there are several; else none."""
    deepspeed: dict[str, Any] | None = None
    """DeepSpeed's own options on memory and speed, over ours: `zero_optimization: {reduce_bucket_size: 50000000}`, or
    the path of a JSON or YAML file with them (configs/deepspeed/), which is read where the run is loaded."""
    engine: Engine = "auto"
    """What answers in sample, generate and evaluate: `vllm` (GPUs and, with its build for them, CPUs), `transformers`,
    or auto: vLLM where it is installed and there is a GPU, and the models are such as it serves. No digest has it."""
    vllm: dict[str, Any] | None = None
    """vLLM's own options on memory and speed, over ours: `{tensor_parallel_size: 2, max_num_seqs: 512}`. Workers have
    one engine each, over their `gpus_per_worker`."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for key in ("cpus_per_worker", "gpus_per_worker"):
            amount = getattr(self, key)
            if amount > 1 and amount != int(amount):
                raise ValueError(f"{key}: {amount:g}: Ray takes whole numbers, or a fraction of one")
        if self.device == "cpu" and self.gpus_per_worker:
            raise ValueError(f"gpus_per_worker: {self.gpus_per_worker:g} with device: cpu sets GPUs aside for nothing")
        if self.device == "cuda" and self.workers and not self.gpus_per_worker:
            raise ValueError("device: cuda with workers needs gpus_per_worker: a worker that asks for none sees none")
        wrong = [*refused_options(self.sharding, self.deepspeed), *refused_of_vllm(self.vllm)]
        if wrong:
            raise ValueError("; ".join(wrong))
        return self
