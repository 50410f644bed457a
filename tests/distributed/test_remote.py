"""Stages on Ray nodes that share no disk, with the artifacts on S3: what a cluster of pods is, on this machine.

Three nodes of one Ray cluster stand for pods: a head without CPUs, where the driver is, and two workers with exactly
the CPUs that the stage's workers ask for. Each has a cache of its own.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alignment.artifacts import Artifact, Store
from alignment.config import Run
from alignment.pipeline import execute, keys
from alignment.records import Record, read_records
from alignment.rewards.functions import brevity
from tests import small
from tests.matrix import cases
from tests.s3 import Server, forget_clients, s3_server

__all__ = ["s3_server"]
pytestmark = [pytest.mark.ray, pytest.mark.slow]
STEPS = 9


class Nodes:
    """A Ray cluster of local processes, one cache folder per node."""

    def __init__(self, folder: Path) -> None:
        from ray.cluster_utils import Cluster

        self.folder, self.cluster = folder, Cluster()
        # A node is dead after five looks at it that failed: in 2.5 s, not in 15.
        self.cluster.add_node(num_cpus=0, env_vars={"KUBEALIGN_CACHE": str(folder / "head")},
                              _system_config={"health_check_period_ms": 500})
        self.workers: dict[str, Any] = {}
        self.lost: set[str] = set()

    def add(self, name: str) -> None:
        self.workers[name] = self.cluster.add_node(num_cpus=1, env_vars={"KUBEALIGN_CACHE": str(self.cache(name))})

    def cache(self, name: str) -> Path:
        return self.folder / name

    def copies(self, name: str) -> set[str]:
        """Keys of the artifacts that a node has fetched."""
        return {path.name for path in self.cache(name).glob("*/*-*") if path.is_dir()}


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory, s3_server: Server) -> Iterator[Nodes]:
    import ray

    patch = pytest.MonkeyPatch()
    for name, value in s3_server.environment.items():
        patch.setenv(name, value)
    patch.setenv("OMP_NUM_THREADS", "1")
    forget_clients()
    ray.shutdown()  # of an earlier module, whose cluster knows neither these nodes nor the store's keys
    made = Nodes(tmp_path_factory.mktemp("nodes"))
    patch.setenv("KUBEALIGN_CACHE", str(made.cache("head")))
    for name in ("one", "two"):
        made.add(name)
    yield made
    ray.shutdown()
    made.cluster.shutdown()
    patch.undo()


def chain(
    nodes: Nodes, folder: Path, url: str, *more: dict[str, Any], workers: int = 2, sharding: str = "none"
) -> Run:
    """Training with dropout, so that every rank's random state counts."""
    sft = small.train("sft", epochs=3, micro_batch_size=4, eval_rows="data/dev",
                      strategy={"kind": "lora", "r": 4, "alpha": 8, "dropout": 0.2},
                      checkpoints={"every": 2, "keep": 1, "final": "best"})
    return small.run(folder, sft, *more, store=url, compute={
        "workers": workers, "dtype": "float32", "device": "cpu", "cpus_per_worker": 1, "sharding": sharding,
        "address": nodes.cluster.address})


def brevity_with_both(record: Record, answer: str) -> float:
    """`brevity`, once both nodes have fetched the model: of so few prompts the first to be ready would answer all."""
    caches, until = Path(os.environ["KUBEALIGN_CACHE"]).parent, time.monotonic() + 60
    while len({copy.parents[1] for copy in caches.glob("*/*/sft-*/")}) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    return brevity(record, answer)


@pytest.fixture(scope="module")
def alone(nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """A run left alone: trained and sampled by both nodes."""
    folder = tmp_path_factory.mktemp("alone")
    sample = {"name": "rs", "kind": "sample", "model": "sft", "prompts": ["data/train"], "n": 2, "batch_size": 4,
              "sampling": {"temperature": 1.0, "max_new_tokens": 8},
              "score": {"function": f"{__name__}:{brevity_with_both.__name__}"}}
    made = execute(chain(nodes, folder, "s3://bucket/alone", sample)).artifacts
    return {name: artifact for name, artifact in made.items() if artifact is not None}


def test_two_nodes_train_and_sample_from_one_store(alone: dict[str, Artifact], nodes: Nodes) -> None:
    sft, rs = alone["sft"], alone["rs"]
    assert sft.manifest.compute["workers"] == 2
    assert sft.manifest.metrics["steps"] == STEPS
    assert {"model/adapter_model.safetensors", "last/adapter_model.safetensors", "events.jsonl"} <= set(
        sft.manifest.files)
    for name in ("one", "two"):
        assert {alone["base"].key, alone["data"].key, sft.key} <= nodes.copies(name)
        assert not list(nodes.cache(name).glob("*/work/*/checkpoints")), "a node's disk is given back"
    assert sft.key not in nodes.copies("head"), "the model never passed through the driver"
    assert not sft.store._listed(sft.key), "nothing is left of the work"
    assert len(read_records(rs.path() / "rows" / "samples.jsonl")) == 2 * alone["data"].manifest.rows.written["train"]
    losses = small.losses(sft)
    assert len(losses) == STEPS
    assert sft.path().exists()  # digests are checked on the way


@pytest.mark.parametrize("sharding", cases(["zero3"], ["none"]))
def test_a_node_that_is_lost_is_replaced_and_nothing_changes(
    sharding: str, alone: dict[str, Artifact], nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under ZeRO-3 each node has its own share alone: to resume, and to publish the best, they are brought together."""
    from safetensors.torch import load_file

    from alignment.distributed import train as module

    run = chain(nodes, tmp_path, f"s3://bucket/lost-{sharding}", sharding=sharding)
    store, key = Store(run.store), keys(run)["sft"].key
    killed = tmp_path / "killed"
    original = module._worker

    def dies_once(config: dict[str, Any]) -> None:
        """Rank 1 takes its whole node with it after step 5, once the checkpoint of step 4 has been pushed."""
        from transformers import TrainerCallback

        from alignment.training import fit as fit_module

        class Dies(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if state.global_step != 5 or args.process_index != 1 or killed.exists():
                    return
                context = config["context"]
                until = time.monotonic() + 30
                while "checkpoints/checkpoint-4" not in context.store.pushed_work(context.key):
                    assert time.monotonic() < until
                    time.sleep(0.05)
                killed.write_text(os.environ["KUBEALIGN_CACHE"])
                os.kill(os.getppid(), signal.SIGKILL)
                time.sleep(60)

        fit = fit_module.fit
        fit_module.fit = lambda context, workers=1, callbacks=(): fit(
            context, workers=workers, callbacks=(*callbacks, Dies()))
        original(config)

    monkeypatch.setattr(module, "_worker", dies_once)
    nodes.add(f"after-{sharding}")  # the pod that will take the lost one's place
    made = execute(run).artifacts["sft"]
    assert made is not None
    assert made.manifest.facts["timing"]["resumed_from_step"] == 4
    nodes.lost.add(killed.read_text())
    left = {name for name in nodes.workers if str(nodes.cache(name)) not in nodes.lost}
    assert len(left) == 2
    assert all(list(nodes.cache(name).glob(f"*/work/{key}")) for name in left), "both that were left took part"
    near = {} if sharding == "none" else {"rel": 1e-4}
    for event, of in (("train", "loss"), ("eval", "eval_loss")):
        ours, theirs = small.losses(made, event, of), small.losses(alone["sft"], event, of)
        assert ours == (pytest.approx(theirs, **near) if near else theirs)
    for name in ("model/adapter_model.safetensors", "last/adapter_model.safetensors"):
        if near:
            mine, theirs = (load_file(artifact.path() / name) for artifact in (made, alone["sft"]))
            assert mine.keys() == theirs.keys()
            assert all((mine[key] - tensor).abs().max() < 1e-3 for key, tensor in theirs.items())
        else:
            assert made.manifest.files[name].sha256 == alone["sft"].manifest.files[name].sha256
    assert store.find(key) is not None
