"""Training shared out by DeepSpeed over two workers: the same losses and weights as one process, killed or not.

All stages of a group of workers are trained one after another in it (stages_in_a_row.py); tests look at what it left.
Losses are compared at 1e-4 relative: sums of two workers are added in another order.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alignment.artifacts import Artifact, Store
from alignment.config import Compute
from alignment.context import StageContext
from tests.distributed import stages_in_a_row
from tests.matrix import cases
from tests.models import imported, published
from tests.training.made import FULL, LORA, context, preferences, published_rows

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
NEAR = 1e-4
SHARDED = cases(
    [*(("sft", "full", sharding) for sharding in ("none", "zero1", "zero2", "zero3", "zero3-offload")),
     ("reward", "full", "zero2"), ("dpo", "full", "zero3"), ("sft", "lora", "zero2"), ("reward", "lora", "zero3"),
     ("dpo", "continued", "zero3"), ("sft", "qlora", "zero3"), ("dpo", "qlora", "zero2")],
    [*(("reward", "full", sharding) for sharding in ("none", "zero1", "zero3", "zero3-offload")),
     *(("dpo", "full", sharding) for sharding in ("none", "zero1", "zero2", "zero3-offload")),
     ("sft", "lora", "zero3"), ("reward", "lora", "zero2"), ("dpo", "lora", "zero2"), ("dpo", "lora", "zero3"),
     ("dpo", "continued", "zero2"), ("sft", "qlora", "zero2"), ("reward", "qlora", "zero3")])
KTO = [("kto", "full", "zero2"), ("kto", "lora", "zero3")]
KILLED = cases([("sft", "full", "zero3"), ("sft", "lora", "zero2"), ("sft", "qlora", "zero3")],
               [("sft", "full", "zero2"), ("sft", "lora", "zero3"), ("sft", "qlora", "zero2")])
"""Of SHARDED."""
MOVED = cases([("full", "zero2"), ("full", "zero3"), ("lora", "zero1"), ("qlora", "none")],
              [("full", "none"), ("full", "zero3-offload"), ("lora", "zero3")])
DECAYS = {"trl": {"weight_decay": 0.1}}
"""So that groups of weights have settings of their own."""


class World:
    """A store with a base model, an adapter on it and rows; contexts of stages that start from them."""

    def __init__(self, folder: Path) -> None:
        import shutil

        self.folder, self.store = folder, Store(str(folder / "store"))
        imported(folder / "tiny", {"source": "tiny", "hidden_size": 64, "layers": 2, "heads": 4, "vocab_size": 384})
        shutil.copytree(folder / "tiny" / "out" / "model", folder / "base" / "model")
        self.base = published(self.store, "base-000000000000", folder / "base")
        self.rows = published_rows(self.store, folder / "rows", "data-000000000000", train=preferences(16),
                                   dev=preferences(4))
        self.adapter: Artifact | None = None

    def context(
        self, name: str, method: str, form: str, sharding: str, workers: int = 2, dtype: str = "float32", **more: Any
    ) -> StageContext:
        """Four steps of eight rows over two epochs, evaluated and saved twice; the better weights are published."""
        start = self.adapter if form == "continued" else self.base
        assert start is not None
        compute = {"workers": workers, "dtype": dtype, "device": "cpu", "sharding": sharding}
        lora = {**LORA, "targets": ["q_proj", "v_proj", "down_proj"]}
        return context(self.store, self.folder / name, start, self.rows, method, compute=compute, **{
            "batch_size": 8, "micro_batch_size": 2, "epochs": 1 if method == "kto" else 2, "eval_rows": "data/dev",
            "strategy": FULL if form == "full" else {**lora, "kind": "qlora"} if form == "qlora" else lora,
            "learning_rate": 1e-3 if form == "full" else 5e-3,
            "checkpoints": {"every": 2, "final": "best"}, **more})

    def moved(self, name: str, form: str, sharding: str, workers: int) -> StageContext:
        """A checkpoint in the middle of the second epoch."""
        return self.context(f"{name}-{form}-{sharding}", "sft", form, sharding, workers,
                            checkpoints={"every": 3, "final": "best"}, **DECAYS)

    def in_one_process(self, method: str, form: str, name: str = "one", **more: Any) -> StageContext:
        from alignment.training.fit import fit

        made = self.context(f"{name}-{method}-{form}", method, form, "none", workers=0, **more)
        made.out.mkdir(parents=True, exist_ok=True)
        fit(made)
        return made

    def on_workers(
        self, contexts: list[tuple[str, StageContext, str]], name: str, *, talk: bool = False, workers: int = 2
    ) -> Path:
        """Train in one group; where each rank left what it met. Raises what ended the group."""
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        told = self.folder / f"told-{name}"
        told.mkdir()
        TorchTrainer(
            stages_in_a_row.loop, train_loop_config={"contexts": contexts, "told": str(told), "talk": talk},
            torch_config=TorchConfig(backend="gloo", timeout_s=120),
            scaling_config=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 0.5}),
            run_config=RunConfig(name=name, storage_path=str(self.folder / "ray")),
        ).fit()
        return told


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    import ray
    import torch

    from alignment.distributed.local import ensure_ray
    from alignment.training.sharding import compile_cpu_adam

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    patch = pytest.MonkeyPatch()
    patch.setenv("OMP_NUM_THREADS", "1")
    compile_cpu_adam("the tests' set-up")  # a minute, once per machine
    ray.shutdown()  # of an earlier module, whose workers may know other places
    ensure_ray(Compute(workers=2, cpus_per_worker=0.5))
    made = World(tmp_path_factory.mktemp("sharding"))
    first = made.in_one_process("sft", "lora")
    made.adapter = published(made.store, "adapter-000000000000", first.out)
    yield made
    ray.shutdown()
    torch.set_num_threads(threads)
    patch.undo()


@pytest.fixture(scope="module")
def one(world: World) -> dict[tuple[str, str], StageContext]:
    """Method and form -> trained by one process."""
    wanted = {(method, form) for method, form, _ in SHARDED}
    return {each: world.in_one_process(*each) for each in sorted(wanted)}


@pytest.fixture(scope="module")
def two(world: World) -> dict[str, StageContext]:
    """METHOD-FORM-SHARDING -> trained by two workers left alone; those of KILLED again, cut short or killed at last."""
    whole = [*SHARDED, *KTO, *((*each[:2], "none") for each in KTO)]
    contexts = [("-".join(each), world.context("-".join(each), *each), "whole") for each in whole]
    cut = [("cut-" + "-".join(each), world.context("cut-" + "-".join(each), *each), "cut") for each in KILLED]
    cut[-1] = (*cut[-1][:2], "kill")
    left = [(f"fewer-{form}-{sharding}", world.moved("fewer", form, sharding, 2), "left")
                     for form, sharding in [*MOVED, ("qlora", "zero2")]]
    with pytest.raises(Exception, match=r"(?s).*"):  # the kill
        world.on_workers([*contexts, *left, *cut], "first", talk=True)
    return {name: made for name, made, _ in [*contexts, *cut]}


def losses(made: StageContext, event: str = "train", key: str = "loss") -> list[float]:
    lines = (made.events).read_text(encoding="utf-8").splitlines()
    return [entry[key] for entry in map(json.loads, lines) if entry["event"] == event]


def weights(made: StageContext, folder: str = "model") -> dict[str, Any]:
    from safetensors.torch import load_file

    return {name: tensor for file in sorted((made.out / folder).glob("*.safetensors"))
            for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("each", [*SHARDED, *KTO], ids="-".join)
def test_losses_and_weights_are_those_of_one_process(
    each: tuple[str, str, str], one: dict[tuple[str, str], StageContext], two: dict[str, StageContext]
) -> None:
    import torch

    # What kto's answers are compared with are those of one forward pass of one worker.
    alone = two[f"kto-{each[1]}-none"] if each[0] == "kto" else one[each[:2]]
    shared = two["-".join(each)]
    assert len(losses(shared)) == 4
    assert losses(shared) == pytest.approx(losses(alone), rel=NEAR)
    assert losses(shared, "eval", "eval_loss") == pytest.approx(losses(alone, "eval", "eval_loss"), rel=NEAR)
    assert losses(shared, "train", "grad_norm") == pytest.approx(losses(alone, "train", "grad_norm"), rel=1e-2)
    for folder in ("model", "last"):
        mine, theirs = weights(shared, folder), weights(alone, folder)
        assert mine.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert mine[name].dtype == tensor.dtype
            torch.testing.assert_close(mine[name], tensor, rtol=0, atol=2e-4, msg=f"{folder} {name}")
    moved = [name for name, tensor in weights(alone).items() if not torch.equal(tensor, weights(alone, "last")[name])]
    told = json.loads((shared.out / "training.json").read_text())
    assert told["metrics"]["best_step"] == json.loads((alone.out / "training.json").read_text())["metrics"]["best_step"]
    assert bool(moved) == (told["metrics"]["best_step"] != told["metrics"]["steps"])


def test_rows_are_tokenized_by_one_worker_and_counted_as_by_one_process(
    one: dict[tuple[str, str], StageContext], two: dict[str, StageContext], world: World
) -> None:
    told = world.folder / "told-first"
    stages = len(SHARDED) + 2 * len(KTO) + len(KILLED) + len(MOVED) + 1
    assert len((told / "tokenized-0").read_text()) == 2 * stages, "train and eval rows"
    assert not (told / "tokenized-1").exists()
    for each in SHARDED:
        mine, theirs = (json.loads((made.out / "training.json").read_text())
                        for made in (two["-".join(each)], one[each[:2]]))
        assert mine["rows"] == theirs["rows"]
        for fact in ("mean_length", "max_length", "dropped_rows"):
            assert mine["facts"][fact] == theirs["facts"][fact]


@pytest.mark.parametrize(("name", "said"), [
    ("alike", "nothing"), ("agreed", "nothing"),
    ("apart", "the workers differ in colour|rank 1 on|colour red|colour blue, as rank 0 on"),
    ("unlike", "the workers are not alike|rank 1 on|digest digest of 1"),
    ("failing", "step 1, rows of rank 1"),
])
def test_all_ranks_say_the_same_of_each_other(name: str, said: str, two: dict[str, StageContext], world: World) -> None:
    told = [(world.folder / "told-first" / f"{name}-{rank}").read_text() for rank in (0, 1)]
    assert told[0] == told[1]
    assert all(part in told[0] for part in said.split("|"))


@pytest.mark.parametrize(("name", "said"), [
    ("silent", "a worker did not report within 1 s|rank 1 on "),
    ("hanging", "a worker did not answer within the time-out of the process group|rank 1 on|at the begin of step 7"),
])
def test_a_silent_rank_is_named(name: str, said: str, two: dict[str, StageContext], world: World) -> None:
    import socket

    told = (world.folder / "told-first" / f"{name}-0").read_text()
    assert all(part in told for part in said.split("|"))
    assert socket.gethostname() in told


@pytest.fixture(scope="module")
def fewer(world: World, two: dict[str, StageContext]) -> Path:
    """One worker goes on with what two have left, and leaves the same for two."""
    contexts = [(f"fewer-{form}-{sharding}", world.moved("fewer", form, sharding, 1), "whole")
                for form, sharding in MOVED]
    contexts += [(f"more-{form}-{sharding}", world.moved("more", form, sharding, 1), "left")
                 for form, sharding in MOVED]
    refused = [("refused-qlora", world.moved("fewer", "qlora", "zero2", 1), "refused")]
    return world.on_workers([*contexts, *refused], "fewer", workers=1)


@pytest.fixture(scope="module")
def again(world: World, two: dict[str, StageContext], fewer: Path) -> Path:
    """New workers go on with what was cut short; at last a stage whose second rank alone has weights that are NaN."""
    from alignment.distributed.local import users_error

    left = {name: made for name, made in two.items() if name.startswith("cut-")}
    assert all(list((made.work / "checkpoints").glob("checkpoint-2/complete")) for made in left.values())
    other = world.context("cut-sft-full-zero3", "sft", "full", "zero2")
    poisoned = world.context("poisoned", "sft", "full", "zero2", checkpoints={"every": 100})
    more = [(f"more-{form}-{sharding}", world.moved("more", form, sharding, 2), "whole") for form, sharding in MOVED]
    with pytest.raises(Exception, match=r"(?s).*") as caught:
        world.on_workers([("other", other, "refused"), *((name, made, "whole") for name, made in left.items()), *more,
                          ("poisoned", poisoned, "poisoned")], "again")
    error = users_error(caught.value)
    assert error is not None
    (world.folder / "told-again" / "driver").write_text(str(error))
    return world.folder / "told-again"


@pytest.mark.parametrize("each", KILLED, ids="-".join)
def test_what_was_killed_goes_on_as_if_it_had_not_been(
    each: tuple[str, str, str], two: dict[str, StageContext], again: Path
) -> None:
    alone, killed = two["-".join(each)], two["cut-" + "-".join(each)]
    told = json.loads((killed.out / "training.json").read_text())
    assert told["facts"]["timing"]["resumed_from_step"] == 2
    assert told["compute"]["sharding"] == each[2]
    assert losses(killed) == losses(alone)
    assert losses(killed, "eval", "eval_loss") == losses(alone, "eval", "eval_loss")
    import torch

    for folder in ("model", "last"):
        mine, theirs = weights(killed, folder), weights(alone, folder)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], tensor) for name, tensor in theirs.items())
    assert not (again / "tokenized-0").exists() or len((again / "tokenized-0").read_text()) == 2, "the poisoned one's"


def test_a_checkpoint_that_is_shared_out_otherwise_is_refused(again: Path) -> None:
    for rank in (0, 1):
        told = (again / f"other-{rank}").read_text()
        assert "2 workers, sharding zero2" in told
        assert "2 workers, sharding zero3, as it was written" in told
        assert "remove " in told


def test_a_loss_that_is_no_number_on_one_rank_stops_all_with_its_rows(again: Path) -> None:
    told = (again / "driver").read_text()
    assert "the loss is not finite" in told
    assert "step 2, rows ['p" in told


@pytest.fixture(scope="module")
def unmoved(world: World) -> dict[str, StageContext]:
    return {form: world.in_one_process("sft", form, "unmoved", checkpoints={"every": 3, "final": "best"}, **DECAYS)
            for form in sorted({form for form, _ in MOVED})}


@pytest.mark.parametrize("to", ["fewer", "more"])
@pytest.mark.parametrize("each", MOVED, ids="-".join)
def test_another_number_of_workers_goes_on_as_if_nothing_had_been(
    each: tuple[str, str], to: str, unmoved: dict[str, StageContext], again: Path, world: World
) -> None:
    """Two workers' checkpoint by one, one's by two, from the middle of an epoch."""
    import torch

    alone, moved = unmoved[each[0]], world.moved(to, *each, workers=2)
    told = json.loads((moved.out / "training.json").read_text())
    assert told["facts"]["timing"]["resumed_from_step"] == 3
    assert losses(moved) == pytest.approx(losses(alone), rel=1e-5)
    assert losses(moved, "eval", "eval_loss") == pytest.approx(losses(alone, "eval", "eval_loss"), rel=1e-5)
    for folder in ("model", "last"):
        mine, theirs = weights(moved, folder), weights(alone, folder)
        assert mine.keys() == theirs.keys()
        for name, tensor in theirs.items():
            torch.testing.assert_close(mine[name], tensor, rtol=0, atol=2e-4, msg=f"{folder} {name}")


def test_states_that_cannot_be_shared_out_anew_are_refused_with_both_numbers(fewer: Path) -> None:
    told = (fewer / "refused-qlora-0").read_text()
    assert "states of its optimizer cannot be shared out anew" in told
    assert "1 worker, sharding zero2" in told
    assert "2 workers, sharding zero2, as it was written" in told
    assert "set compute.workers" in told


def test_a_checkpoint_without_the_shares_of_others_is_passed_over(
    two: dict[str, StageContext], tmp_path: Path
) -> None:
    """As on a machine that was one of several, and kept its own."""
    import shutil

    from alignment.training.checkpoints import latest_complete

    shutil.copytree(two["sft-full-zero2"].work / "checkpoints", tmp_path / "checkpoints")
    newest = latest_complete(tmp_path / "checkpoints")
    assert newest is not None
    next(newest.glob("*/*1_mp_rank_00_optim_states.pt")).unlink()
    assert latest_complete(tmp_path / "checkpoints") != newest
