"""The arithmetic of each stage is settled before keys are made: by the stage, by `compute`, by the hardware."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from alignment.config import KINDS, METHODS, Profile, Run, hardware
from alignment.config.arithmetic import computed, settled, settled_here
from alignment.config.compute import Compute
from alignment.pipeline.keys import keys
from tests import small

ROOT = Path(__file__).parents[2]
SAMPLE = {"name": "rs", "kind": "sample", "model": "sft", "prompts": ["data/dev"], "score": {"function": "brevity"}}
EVALUATE = {"name": "eval", "kind": "evaluate", "models": ["base", "sft"], "rows": "data/test"}


def chain(folder: Path, compute: dict[str, Any], **sft: Any) -> Run:
    return small.run(folder, small.train("sft", **sft), SAMPLE, EVALUATE, compute=compute)


def dtypes(run: Run) -> dict[str, str | None]:
    return {stage.name: stage.arithmetic for stage in run.stages}


@pytest.mark.parametrize(("native", "compute", "own", "expected"), [
    ("gpu", {}, {}, ("bfloat16", "bfloat16")),
    ("cpu", {}, {}, ("float32", "bfloat16")),  # training gains nothing from it there, generation does
    (None, {}, {}, ("float32", "float32")),
    (None, {"dtype": "bfloat16"}, {}, ("bfloat16", "bfloat16")),
    ("gpu", {"dtype": "float32"}, {}, ("float32", "float32")),
    ("gpu", {"dtype": "float32"}, {"dtype": "bfloat16"}, ("bfloat16", "float32")),
    ("gpu", {}, {"dtype": "float32"}, ("float32", "bfloat16")),
])
def test_a_stage_says_it_or_compute_or_the_hardware(
    tmp_path: Path, native: Any, compute: dict[str, Any], own: dict[str, Any], expected: tuple[str, str]
) -> None:
    run = settled(chain(tmp_path, compute, **own), lambda stage: native)
    train, generate = expected
    assert dtypes(run) == {"base": None, "data": None, "sft": train, "rs": generate, "eval": generate}
    assert settled_here(run) == run, "what is settled stays"
    assert {stage.name: computed(run, stage).compute.dtype for stage in run.stages if stage.arithmetic} == {
        "sft": train, "rs": generate, "eval": generate}, "and is what the body computes in"


def test_every_kind_that_computes_can_be_told_its_dtype() -> None:
    assert {kind.tag for kind in KINDS if kind.bfloat16_on} == {
        *(kind.tag for kind in METHODS), "self-instruct", "document-qa", "multihop", "contrastive",
        "judged-pairs", "select-quality", "select-coverage", "sample", "infer", "evaluate",
        "evaluate-pairs", "evaluate-harness", "export"}
    for kind in KINDS:
        assert not kind.bfloat16_on or kind.model_fields["dtype"].default is None


@pytest.mark.parametrize(("pod", "compute", "expected"), [
    ({"gpus": 1}, {}, "bfloat16"), ({}, {}, "float32"), ({"gpus": 1}, {"device": "cpu"}, "float32"),
    ({"gpus": 1}, {"workers": 1, "gpus_per_worker": 1}, "bfloat16"),
    ({"gpus": 1}, {"workers": 1}, "float32"),  # a worker that asks for no GPU sees none
    ({}, {"dtype": "bfloat16"}, "bfloat16"),
])
def test_on_a_cluster_the_profile_decides_and_every_machine_makes_the_same_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pod: dict[str, Any], compute: dict[str, Any], expected: str
) -> None:
    profile = Profile.model_validate_json(json.dumps({"name": "lab", "compute": compute, "cluster": {
        "storage": {"url": "/artifacts/x", "claim": "c"}, "worker": pod}}))
    run = chain(tmp_path, {})
    made = {}
    for machine in ("gpu", "cpu", None):
        monkeypatch.setattr("alignment.config.arithmetic.native_here", lambda compute, machine=machine: machine)
        applied = profile.applied(run)
        made[machine] = keys(applied)
        assert dtypes(applied)["sft"] == dtypes(applied)["rs"] == expected
        for stage in run.stages:
            assert keys(profile.applied(run, stage)) == made[machine]
        assert keys(profile.applied(applied)) == made[machine]
    assert made["gpu"] == made["cpu"] == made[None]


def test_a_pod_of_its_own_decides_for_its_stage(tmp_path: Path) -> None:
    profile = Profile.model_validate_json(json.dumps({"name": "lab", "cluster": {
        "storage": {"url": "/artifacts/x", "claim": "c"}, "worker": {"gpus": 1},
        "stages": {"evaluate": {"worker": {"cpu": "4"}}}}}))
    assert dtypes(profile.applied(chain(tmp_path, {}))) == {
        "base": None, "data": None, "sft": "bfloat16", "rs": "bfloat16", "eval": "float32"}


# --- what the machine shows -----------------------------------------------------------------------------------

LIBRARY = r"""
#include <string.h>
int nvmlInit_v2(void) { return INIT; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) { *device = (void *)8; return index < COUNT ? 0 : 2; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) { *device = (void *)8; return strcmp(uuid, "GPU-a"); }
int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor) {
    if (device != (void *)8) return 2;
    *major = MAJOR; *minor = 0; return 0;
}
int nvmlDeviceGetName(void *device, char *name, unsigned length) { strncpy(name, "NVIDIA Test", length); return 0; }
int nvmlDeviceGetMemoryInfo(void *device, unsigned long long *memory) { memory[0] = 24ull << 30; return 0; }
"""
ASK = """
from alignment.config import hardware
hardware.metadata.version = lambda name: "2.9.0+cu128"
compute = hardware.Compute()
print(hardware.device_here(compute), hardware.native_here(compute), hardware.processor("cuda"), sep=",")
assert hardware.gpu_here() in (None, ("NVIDIA Test", 24 << 30))
"""


@pytest.mark.parametrize(("init", "count", "major", "visible", "expected"), [
    (0, 1, 9, None, "cuda,gpu,NVIDIA Test"), (0, 1, 7, None, "cuda,None,NVIDIA Test"),
    (0, 2, 8, "1,0", "cuda,gpu,NVIDIA Test"), (0, 1, 9, "GPU-a", "cuda,gpu,NVIDIA Test"), (0, 1, 9, "GPU-b", "cpu"),
    (0, 1, 9, "", "cpu"), (0, 1, 9, "-1", "cpu"), (0, 0, 9, None, "cpu"), (1, 1, 9, None, "cpu"),
])
def test_gpus_are_seen_without_torch(
    tmp_path: Path, init: int, count: int, major: int, visible: str | None, expected: str
) -> None:
    """Against a library with NVML's own functions, since this machine may have none."""
    source, library = tmp_path / "nvml.c", tmp_path / "libnvidia-ml.so.1"
    source.write_text(LIBRARY, encoding="ascii")
    try:
        subprocess.run(["cc", "-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1", f"-DINIT={init}", f"-DCOUNT={count}",
                        f"-DMAJOR={major}", "-o", str(library), str(source)], check=True)
    except FileNotFoundError:
        pytest.skip("no C compiler here")
    environment = {"LD_LIBRARY_PATH": str(tmp_path), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    if visible is not None:
        environment["CUDA_VISIBLE_DEVICES"] = visible
    done = subprocess.run([sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip().startswith(expected)


def test_it_agrees_with_torch_on_this_machine() -> None:
    import torch

    assert (hardware.device_here(Compute()) == "cuda") is torch.cuda.is_available()
    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        found = torch.cpu.get_capabilities()
        native = bool(found.get("avx512_bf16") or found.get("amx_bf16"))
    assert (hardware.native_here(Compute()) is not None) is native


def test_ray_workers_elsewhere_are_what_compute_says_of_them() -> None:
    assert hardware.device_here(Compute(workers=2, gpus_per_worker=1.0)) == "cuda"
    assert hardware.device_here(Compute(workers=2)) == "cpu"
    assert hardware.device_here(Compute(gpus_per_worker=1.0)) == hardware.device_here(Compute()), "there are no workers"
    assert hardware.native_here(Compute(address="ray://head:10001", workers=2)) is None
