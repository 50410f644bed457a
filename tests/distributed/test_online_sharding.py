"""Methods that draw answers, and those with a second model, on two workers: what one process draws, learns and logs.

All stages of a group are trained one after another in it (stages_in_a_row.py), without Ray, which test_sharding.py has.
Under ZeRO-3 every weight is shared out: DeepSpeed would leave those of tiny models whole.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alignment.artifacts import Store
from alignment.context import StageContext
from tests import small
from tests.distributed import stages_in_a_row
from tests.matrix import cases
from tests.models import imported, published
from tests.training.made import FULL, LORA, context, preferences, published_rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
NEAR = 1e-4
ONLINE = cases(
    [("grpo", "full", "none"), ("grpo", "full", "zero1"), ("grpo", "full", "zero3"), ("ppo", "full", "none"),
     ("ppo", "full", "zero2"), ("ppo", "full", "zero3-offload"), ("grpo", "lora", "zero2"), ("ppo", "lora", "zero3"),
     ("rloo", "full", "zero3"), ("rloo", "lora", "zero2"), ("grpo", "judged", "zero3"), ("grpo", "qlora", "zero2")],
    [("grpo", "full", "zero2"), ("grpo", "full", "zero3-offload"), ("ppo", "full", "zero1"), ("ppo", "full", "zero3"),
     ("grpo", "lora", "zero3"), ("ppo", "lora", "zero2"), ("rloo", "full", "none")])
SECOND = cases(
    [("dpo", "full", "zero3"), ("dpo", "lora", "zero3"), ("distill", "full", "zero2"), ("distill", "lora", "zero3"),
     ("orpo", "full", "zero2"), ("orpo", "lora", "zero3"), ("kto", "full", "zero2")],
    [("dpo", "full", "zero2"), ("distill", "full", "zero3")])
KILLED = [("grpo", "lora", "zero3"), ("ppo", "full", "zero2")]
LOGGED = ("loss", "grad_norm", "reward", "reward_std", "kl", "entropy", "completions/mean_length", "value_loss",
          "policy_loss", "sampling/logp_difference")
Each = tuple[str, str, str]


class World:
    """A store with a base, another model, a reward model and rows; contexts of stages that start from the base."""

    def __init__(self, folder: Path) -> None:
        from alignment.training.fit import fit

        self.folder, self.store = folder, Store(str(folder / "store"))
        # qlora: bitsandbytes needs layers whose inputs are a multiple of 64.
        wide = {**small.BASE["model"], "hidden_size": 64, "layers": 1}
        for name, model in (("base", small.BASE["model"]), ("other", small.OTHER["model"]), ("wide", wide)):
            imported(folder / f"tiny-{name}", model)
            shutil.copytree(folder / f"tiny-{name}" / "out" / "model", folder / name / "model")
        self.base = published(self.store, "base-000000000000", folder / "base")
        self.other = published(self.store, "other-000000000000", folder / "other")
        self.wide = published(self.store, "wide-000000000000", folder / "wide")
        self.rows = published_rows(self.store, folder / "rows", "data-000000000000", train=preferences(16),
                                   dev=preferences(4), test=preferences(3))
        judge = context(self.store, folder / "rm", self.base, self.rows, "reward", trl={"max_steps": 1})
        judge.out.mkdir(parents=True, exist_ok=True)
        fit(judge)
        self.judge = published(self.store, "reward-000000000000", judge.out)

    def context(self, name: str, each: Each, workers: int = 2, steps: int = 2, **more: Any) -> StageContext:
        """Steps of eight rows, or of four prompts with four answers each, in passes of two."""
        method, form, sharding = each
        compute: dict[str, Any] = {"workers": workers, "dtype": "float32", "device": "cpu", "sharding": sharding}
        if sharding.startswith("zero3"):
            compute["deepspeed"] = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
        keys: dict[str, Any] = {"batch_size": 8, "micro_batch_size": 2}
        second = method in ("dpo", "kto", "distill", "orpo")
        if second:
            keys |= {"teacher": "other"} if method == "distill" else {}
            keys |= {"reference_model": "other"} if method in ("dpo", "kto") else {}
        else:
            parts = {"es": {"batch_function": "tests.rewards.judges:es"}}
            parts |= {"rm": {"model": "rm"}} if form == "judged" else {}
            keys |= {"reward": {"parts": parts}, "max_new_tokens": 6}
            # Of a pass of all answers, as the KL is logged as a mean over passes.
            keys |= {"ppo_epochs": 2} if method == "ppo" else {
                "num_generations": 4, "batch_size": 16, "micro_batch_size": 16 // max(1, workers)}
        keys["trl"] = {"max_steps": steps, **({} if method in ("ppo", "distill") else {"beta": 0.1})}
        stage = small.train("stage", method, **{
            "strategy": FULL if form == "full" else {
                **LORA, "targets": ["q_proj", "v_proj", "down_proj"], **({"kind": "qlora"} if form == "qlora" else {})},
            "eval_rows": "data/dev" if second else "data/test", "learning_rate": 1e-2, "epochs": steps,
            "checkpoints": {"every": 2, "final": "best"}, **keys, **more})
        run = small.run(self.folder / name, *([small.train("rm", "reward")] if form == "judged" else []), stage,
                        compute=compute)
        key = f"{name}-000000000000"
        base = self.wide if form == "qlora" else self.base
        inputs = {"base": base, "data": self.rows, "other": self.other, "rm": self.judge}
        return StageContext(run=run, stage=run.stages[-1], store=self.store, key=key, digest="0" * 64, inputs=inputs,
                            work=self.store.workdir(key))

    def started(self, contexts: list[tuple[str, StageContext, str]], name: str) -> list[Any]:
        """Two processes that train them in turn; what each met is left in told-NAME."""
        told = self.folder / f"told-{name}"
        told.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        config = {"contexts": contexts, "told": str(told), "talk": False}
        ranks = [multiprocessing.get_context("spawn").Process(
            target=stages_in_a_row.rank_of_two, args=(rank, port, config)) for rank in (0, 1)]
        for rank in ranks:
            rank.start()
        return ranks


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    import torch

    from alignment.training.sharding import compile_cpu_adam

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    patch = pytest.MonkeyPatch()
    patch.setenv("OMP_NUM_THREADS", "1")
    compile_cpu_adam("the tests' set-up")  # a minute, once per machine
    yield World(tmp_path_factory.mktemp("online"))
    torch.set_num_threads(threads)
    patch.undo()


@pytest.fixture(scope="module")
def made(world: World) -> dict[str, StageContext]:
    """METHOD-FORM-SHARDING -> trained by two workers, and METHOD-FORM by one process; at last those that end early."""
    from alignment.training.fit import fit

    whole = [*ONLINE, *SECOND]
    contexts = [("-".join(each), world.context("-".join(each), each), "whole") for each in whole]
    # What kto's answers are compared with are those of one forward pass, of one rank: two ranks without sharding.
    contexts += [("kto-alone", world.context("kto-alone", ("kto", "full", "none")), "whole")]
    contexts += [("long-" + "-".join(each), world.context("long-" + "-".join(each), each, steps=4), "whole")
                 for each in KILLED]
    stopped = world.context("stopped", ("ppo", "full", "zero2"), steps=4, gates={"reward": 5.0})
    contexts += [("stopped", stopped, "refused")]
    contexts += [("cut-" + "-".join(each), world.context("cut-" + "-".join(each), each, steps=4), how)
                 for each, how in zip(KILLED, ("cut", "kill"), strict=True)]
    ranks = world.started(contexts, "first")
    alone = {}
    for method, form in sorted({each[:2] for each in whole if each[0] != "kto"}):
        alone[f"{method}-{form}"] = world.context(f"{method}-{form}", (method, form, "none"), workers=0)
    for name, one in alone.items():
        one.out.mkdir(parents=True, exist_ok=True)
        fit(one)
        assert one.events.exists(), name
    for rank in ranks:
        rank.join()
    assert ranks[1].exitcode == -9, "killed in the last stage, and not before"
    return {name: one for name, one, _ in contexts} | alone


def lines(of: StageContext, event: str) -> list[dict[str, Any]]:
    text = of.events.read_text(encoding="utf-8")
    return [entry for entry in map(json.loads, text.splitlines()) if entry["event"] == event]


def weights(of: StageContext, folder: str = "model") -> dict[str, Any]:
    from safetensors.torch import load_file

    return {name: tensor for file in sorted((of.out / folder).glob("*.safetensors"))
            for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("each", [*ONLINE, *SECOND], ids="-".join)
def test_what_is_drawn_learned_and_logged_is_that_of_one_process(each: Each, made: dict[str, StageContext]) -> None:

    alone, shared = made["kto-alone" if each[0] == "kto" else "-".join(each[:2])], made["-".join(each)]
    for event, count in (("train", 2), ("eval", 2 if each in ONLINE else 1)):
        theirs, mine = lines(alone, event), lines(shared, event)
        assert len(mine) == len(theirs) == count
        for one, other in zip(mine, theirs, strict=True):
            assert one.keys() == other.keys()
            keys = [key for key in other if key in LOGGED or key.startswith(("eval_re", "eval_loss", "rewards/"))]
            assert {key: one[key] for key in keys} == pytest.approx({key: other[key] for key in keys}, rel=NEAR,
                                                                    abs=1e-5)
    for folder in ("model", "last"):
        mine, theirs = weights(shared, folder), weights(alone, folder)
        assert mine.keys() == theirs.keys()
        for name, tensor in theirs.items():
            # Of two steps of 0.01. Adam makes a part of a step of a gradient that is rounding alone, which the row of a
            # token has whose gradients cancel out: one of 384.
            apart = (mine[name] - tensor).abs()
            assert apart.max() < 5e-3, (folder, name, apart.max())
            assert (apart > 5e-4).float().mean() < (0.005 if "embed" in name else 1e-9), (folder, name, apart.max())


@pytest.mark.parametrize("each", [each for each in ONLINE if each[2] != "none"], ids="-".join)
def test_the_policy_is_its_reference_before_the_first_step_and_not_after_it(
    each: Each, made: dict[str, StageContext]
) -> None:
    first, second = lines(made["-".join(each)], "train")
    assert abs(first["kl"]) < 1e-5 < abs(second["kl"])
    assert max(line["sampling/logp_difference"] for line in (first, second)) < 1e-4


def test_a_second_model_is_another_one_and_counts(made: dict[str, StageContext]) -> None:
    """Else a run with it would equal one without."""
    dpo = lines(made["dpo-full-zero3"], "train")
    assert abs(dpo[0]["rewards/margins"]) > 1e-4, "0 where the start is its own reference"


def test_a_gate_stops_all_workers_in_one_step(made: dict[str, StageContext], world: World) -> None:
    told = [(world.folder / "told-first" / f"stopped-{rank}").read_text() for rank in (0, 1)]
    assert told[0] == told[1]
    assert "gates.reward, step 3" in told[0]


@pytest.fixture(scope="module")
def again(world: World, made: dict[str, StageContext]) -> dict[str, StageContext]:
    """New workers go on with what was cut short."""
    left = {name: one for name, one in made.items() if name.startswith("cut-")}
    assert all(list((one.work / "checkpoints").glob("checkpoint-2/complete")) for one in left.values())
    for rank in world.started([(name, one, "whole") for name, one in left.items()], "again"):
        rank.join()
        assert rank.exitcode == 0
    return left


@pytest.mark.parametrize("each", KILLED, ids="-".join)
def test_what_was_killed_draws_and_learns_as_if_it_had_not_been(
    each: Each, made: dict[str, StageContext], again: dict[str, StageContext]
) -> None:
    import torch

    alone, killed = made["long-" + "-".join(each)], again["cut-" + "-".join(each)]
    told = json.loads((killed.out / "training.json").read_text())
    assert told["facts"]["timing"]["resumed_from_step"] == 2
    assert told["compute"]["sharding"] == each[2]
    for event in ("train", "eval"):
        mine, theirs = ([{key: value for key, value in line.items() if key != "time"} for line in lines(one, event)]
                        for one in (killed, alone))
        assert mine == theirs
    for folder in ("model", "last"):
        mine, theirs = weights(killed, folder), weights(alone, folder)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], tensor) for name, tensor in theirs.items())
