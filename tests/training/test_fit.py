"""One stage in this process: what TRL is told, what is refused before the first step, and what the end says."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.artifacts import Artifact, RowCounts, Store
from alignment.context import Outcome, StageContext
from alignment.errors import ConfigError, DataError, StageError
from tests.training.made import FULL, context


@pytest.fixture
def at(base: Artifact, rows: Artifact, tmp_path: Path) -> Callable[..., StageContext]:
    """Contexts of stages in a store of the test's own; keyword arguments are keys of the stage."""

    def make(method: str = "sft", compute: dict[str, Any] | None = None, **more: Any) -> StageContext:
        folder = tmp_path / "stage"
        folder.mkdir(exist_ok=True)
        return context(Store(str(tmp_path / "store")), folder, base, rows, method, compute, **more)

    return make


@pytest.fixture
def group_of_one(tmp_path: Path) -> Iterator[None]:
    """A process group with this process alone in it, as when the workers do not find each other."""
    import torch.distributed as dist
    from accelerate.state import AcceleratorState

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
    AcceleratorState._reset_state(reset_partial_state=True)


def arguments(given: StageContext, workers: int = 1, dtype: str = "float32") -> Any:
    import torch

    from alignment.config import TrainBase
    from alignment.training.fit import _arguments
    from alignment.training.methods import method_of

    stage = given.stage_as(TrainBase)
    return _arguments(given, stage, method_of(stage), "cpu", getattr(torch, dtype), workers)


# --- what TRL is told ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "micro", "workers", "rows", "accumulated"), [
    (8, 8, 1, 8, 1), (8, 2, 1, 2, 4), (8, 4, 2, 4, 1), (8, 1, 2, 1, 4), (12, 4, 2, 2, 3), (4, 4, 4, 1, 1),
])
@pytest.mark.usefixtures("group_of_one")
def test_the_batch_is_made_up_of_micro_batches_over_all_workers(
    at: Callable[..., StageContext], batch: int, micro: int, workers: int, rows: int, accumulated: int
) -> None:
    args = arguments(at(batch_size=batch, micro_batch_size=micro), workers)
    assert (args.per_device_train_batch_size, args.per_device_eval_batch_size) == (rows, rows)
    assert args.gradient_accumulation_steps == accumulated
    assert rows * accumulated * workers == batch


@pytest.mark.usefixtures("group_of_one")
def test_smaller_micro_batches_than_asked_for_are_said_once(
    at: Callable[..., StageContext], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments(at(batch_size=8, micro_batch_size=8), 1)
    assert capsys.readouterr().err == ""
    arguments(at(batch_size=8, micro_batch_size=8), 2)
    assert capsys.readouterr().err.strip() == (
        "stage: 4 rows per forward pass instead of 8, since each of 2 workers has 4 of a batch")
    monkeypatch.setenv("RANK", "1")
    arguments(at(batch_size=8, micro_batch_size=8), 2)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("batch", "workers"), [(8, 3), (4, 8), (2, 4)])
def test_a_batch_that_cannot_be_shared_out_is_refused(
    at: Callable[..., StageContext], batch: int, workers: int
) -> None:
    with pytest.raises(ConfigError, match="cannot be shared out over the workers") as error:
        arguments(at(batch_size=batch, micro_batch_size=2), workers)
    assert (error.value.where, error.value.found) == ("stage stage", f"{batch}, {workers} workers")
    assert error.value.expected == f"a multiple of {workers}"


@pytest.mark.parametrize(("more", "wanted"), [
    ({}, {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 2, "eval_strategy": "no",
          "load_best_model_at_end": False, "num_train_epochs": 1.0, "learning_rate": 5e-3, "logging_steps": 1,
          "seed": 3, "data_seed": 3, "bf16": False, "use_cpu": True, "gradient_checkpointing": False,
          "dataloader_pin_memory": False, "logging_nan_inf_filter": False, "report_to": [],
          "run_name": "small-stage"}),
    ({"epochs": 0.5, "learning_rate": 1e-4, "log_every": 5, "checkpoints": {"every": 10, "keep": 3}},
     {"num_train_epochs": 0.5, "learning_rate": 1e-4, "logging_steps": 5, "save_steps": 10, "save_total_limit": 3}),
    ({"eval_rows": "data/dev"}, {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": False,
                                 "metric_for_best_model": None}),
    ({"eval_rows": "data/dev", "checkpoints": {"every": 4, "final": "best"}},
     {"eval_steps": 4, "save_steps": 4, "load_best_model_at_end": True, "metric_for_best_model": "loss",
      "greater_is_better": False}),
    ({"log_to": ["tensorboard"]}, {"report_to": ["tensorboard"]}),
])
def test_keys_of_the_stage_become_arguments(
    at: Callable[..., StageContext], more: dict[str, Any], wanted: dict[str, Any]
) -> None:
    args = arguments(at(**more))
    found = {name: getattr(args, name) for name in wanted}
    found |= {name: str(found[name].value) for name in found if hasattr(found[name], "value")}
    assert found == wanted


@pytest.mark.parametrize(("method", "more", "given"), [
    ("sft", {}, {"gradient_checkpointing": True, "warmup_steps": 7}),
    ("sft", {"packing": True}, {"eval_packing": True, "packing_strategy": "wrapped"}),
    ("sft", {"eval_rows": "data/dev", "checkpoints": {"every": 2, "final": "best"}}, {"max_grad_norm": 0.5}),
    ("dpo", {}, {"beta": 0.3, "lr_scheduler_type": "constant"}),
    ("reward", {}, {"center_rewards_coefficient": 0.01, "max_steps": 9}),
])
def test_what_the_user_gives_to_trl_wins_over_our_defaults(
    at: Callable[..., StageContext], method: str, more: dict[str, Any], given: dict[str, Any]
) -> None:
    args = arguments(at(method, **more, trl=given))
    assert {name: getattr(args, name) for name in given} == given


def test_curves_and_checkpoints_have_their_places(
    at: Callable[..., StageContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "elsewhere")
    made = at()
    assert arguments(made).output_dir == str(made.work / "checkpoints")
    assert os.environ["TENSORBOARD_LOGGING_DIR"] == str(made.out / "tensorboard")


@pytest.mark.parametrize(("strategy", "dtype", "autocast"), [
    ({"kind": "lora", "r": 4, "alpha": 8}, "float32", False), ({"kind": "lora", "r": 4, "alpha": 8}, "bfloat16", False),
    ({"kind": "full"}, "float32", False), ({"kind": "full"}, "bfloat16", True),
])
def test_on_a_cpu_frozen_weights_are_in_the_dtype_and_trained_ones_are_cast(
    at: Callable[..., StageContext], strategy: dict[str, Any], dtype: str, autocast: bool
) -> None:
    assert arguments(at(strategy=strategy), dtype=dtype).bf16 is autocast


# --- steps ---------------------------------------------------------------------------------------------------


def steps(rows: int, batch: tuple[int, int, int], epochs: float, most: int = -1) -> int:
    from alignment.training.fit import _steps

    micro, accumulated, world = batch
    return _steps(SimpleNamespace(max_steps=most, per_device_train_batch_size=micro, num_train_epochs=epochs,
                                  gradient_accumulation_steps=accumulated, world_size=world), None, rows)


@pytest.mark.parametrize(("rows", "batch", "epochs", "most", "wanted"), [
    (8, (8, 1, 1), 1.0, -1, 1), (9, (8, 1, 1), 1.0, -1, 2), (9, (2, 2, 1), 1.0, -1, 3), (9, (2, 2, 2), 1.0, -1, 2),
    (10, (4, 1, 1), 1.5, -1, 5), (10, (4, 1, 1), 3.0, -1, 9), (1, (8, 4, 2), 1.0, -1, 1),
    (100, (1, 1, 1), 0.001, -1, 1), (100, (1, 1, 1), 0.5, -1, 50), (8, (8, 1, 1), 5.0, 3, 3),
    (8, (8, 1, 1), 1.0, 30, 30),
])
def test_steps_of_a_training(rows: int, batch: tuple[int, int, int], epochs: float, most: int, wanted: int) -> None:
    assert steps(rows, batch, epochs, most) == wanted


SIZE = st.integers(1, 16)


@given(rows=st.integers(1, 500), micro=SIZE, accumulated=SIZE, world=st.integers(1, 4),
       epochs=st.sampled_from([0.25, 0.5, 1.0, 1.5, 2.0, 3.0]))
def test_steps_are_counted_as_the_trainer_counts_them(
    rows: int, micro: int, accumulated: int, world: int, epochs: float
) -> None:
    batches = math.ceil(math.ceil(rows / micro) / world)  # each worker has its share of the loader's batches
    assert steps(rows, (micro, accumulated, world), epochs) == math.ceil(epochs * math.ceil(batches / accumulated))


# --- refused before the first step ---------------------------------------------------------------------------


@pytest.mark.parametrize("tool", ["wandb", "mlflow"])
def test_a_tracker_that_is_not_installed_is_refused_and_one_that_is_not(
    at: Callable[..., StageContext], monkeypatch: pytest.MonkeyPatch, tool: str
) -> None:
    import importlib.util

    find = importlib.util.find_spec
    installed: set[str] = set()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: (
        find("json" if name in installed else "no_such_module") if name == tool else find(name, package)))
    with pytest.raises(ConfigError, match=f"{tool} is not installed") as error:
        arguments(at(log_to=["tensorboard", tool]))
    assert (error.value.where, error.value.found) == ("stage stage, log_to", tool)
    installed.add(tool)
    assert arguments(at(log_to=["tensorboard", tool])).report_to == ["tensorboard", tool]


@pytest.mark.parametrize("package", ["tensorboard", "tensorboardX", None])
def test_either_package_of_tensorboard_will_do_and_torch_alone_will_not(
    at: Callable[..., StageContext], monkeypatch: pytest.MonkeyPatch, package: str | None
) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, parent=None: (
        find("json" if name == package else "no_such_module") if name.startswith("tensorboard")
        else find(name, parent)))
    if package is None:
        with pytest.raises(ConfigError, match="tensorboard is not installed"):
            arguments(at(log_to=["tensorboard"]))
        return
    assert arguments(at(log_to=["tensorboard"])).report_to == ["tensorboard"]


@pytest.mark.parametrize(("seen", "workers"), [(1, 2), (2, 2), (2, 1)])
def test_a_process_group_of_another_size_is_refused(seen: int, workers: int) -> None:
    from alignment.training.fit import _check_world

    with pytest.raises(StageError, match="every worker would train alone") as error:
        _check_world(workers, seen)
    assert error.value.found == f"process group of 1, trainer sees {seen}"
    assert error.value.expected == f"{workers} workers on every rank"


def test_one_process_is_enough_for_one_worker() -> None:
    from alignment.training.fit import _check_world

    _check_world(1)
    _check_world(1, 1)


def test_workers_without_a_process_group_are_refused_before_anything_else(at: Callable[..., StageContext]) -> None:
    """Accelerate would say that it knows no gloo without a launcher."""
    from alignment.training.fit import fit

    with pytest.raises(StageError, match="every worker would train alone") as error:
        fit(at(batch_size=4, micro_batch_size=2), workers=2)
    assert (error.value.found, error.value.expected) == ("process group of 1", "2 workers on every rank")


@pytest.mark.usefixtures("group_of_one")
def test_a_worker_that_finds_itself_alone_does_not_train(at: Callable[..., StageContext]) -> None:
    from alignment.training.fit import fit

    made = at(batch_size=4, micro_batch_size=2)
    with pytest.raises(StageError, match="every worker would train alone") as error:
        fit(made, workers=2)
    assert error.value.found == "process group of 1"
    assert error.value.expected == "2 workers on every rank"
    assert not made.out.exists()


@pytest.mark.parametrize(("more", "where"), [
    ({"max_length": 12}, "stage stage, rows data/train"),
    ({"max_length": 40, "eval_rows": "data/dev", "too_long": "error"}, "stage stage, rows data/train, row p2"),
    ({"sets": ["data/dev"], "eval_rows": "data/train", "too_long": "error", "max_length": 46},
     "stage stage, eval_rows data/train, row p4"),
    ({"sets": ["data/train", "data/test"]}, "stage stage, rows data/test"),
])
def test_rows_that_cannot_serve_are_named_by_their_set(
    at: Callable[..., StageContext], more: dict[str, Any], where: str
) -> None:
    from alignment.training.fit import fit

    with pytest.raises(DataError) as error:
        fit(at(**more))
    assert error.value.where == where


# --- speed and bars ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "more"), [
    ("sft", {}), ("sft", {"batch_size": 3, "micro_batch_size": 3}), ("sft", {"packing": True, "max_length": 128}),
    ("dpo", {"batch_size": 6, "micro_batch_size": 3}), ("reward", {}), ("kto", {}),
])
def test_speed_counts_the_tokens_that_were_trained_on(
    at: Callable[..., StageContext], tokenizer: Any, monkeypatch: pytest.MonkeyPatch, method: str, more: dict[str, Any]
) -> None:
    """Eight rows: the last batch is not full, and packed rows are fewer than those that were read."""
    from alignment.config import TrainBase
    from alignment.training import fit as module
    from alignment.training.methods import method_of
    from alignment.training.prepare import prepare

    counted: list[int] = []
    monkeypatch.setattr(module, "over_all", lambda tokens: counted.append(tokens) or tokens)
    made = at(method, epochs=2, **{"batch_size": 5, "micro_batch_size": 5, **more})
    module.fit(made)
    stage = made.stage_as(TrainBase)
    lengths = prepare(made.rows("data/train"), tokenizer, stage, "here", method_of(stage).columns).lengths
    assert counted == [2 * sum(lengths)]


@pytest.mark.parametrize(("method", "more"), [
    ("kto", {}), ("kto", {"reference": "precomputed"}), ("dpo", {"reference": "precomputed"}),
    ("sft", {"packing": True, "max_length": 128}),
])
def test_no_library_draws_a_progress_bar(
    at: Callable[..., StageContext], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, method: str,
    more: dict[str, Any],
) -> None:
    import datasets

    from alignment.training.fit import fit

    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    datasets.enable_progress_bars()
    fit(at(method, eval_rows="data/dev", **more))
    said = capfd.readouterr()
    assert "it/s" not in said.err
    assert "examples/s" not in said.err
    assert "\r" not in said.err
    assert "TQDM_DISABLE" not in os.environ
    assert not datasets.are_progress_bars_disabled()


# --- the end -------------------------------------------------------------------------------------------------


def test_an_outcome_is_read_as_it_was_written(at: Callable[..., StageContext]) -> None:
    from alignment.training.fit import read_outcome, write_outcome

    made = at()
    made.out.mkdir(parents=True)
    outcome = Outcome(
        RowCounts(read=9, written={"train": 6, "eval": 1}, dropped={"über": 2}, changed={"cut": 1}),
        {"train_loss": 0.1 + 0.2, "steps": 4.0},
        {"template": {"name": "chatml"}, "rows": [["r1", "why"]], "none": None},
    )
    write_outcome(made, outcome)
    assert read_outcome(made) == outcome
    assert [path.name for path in made.out.iterdir()] == ["training.json"]


def ended(history: list[dict[str, Any]], best: int | None = None, method: str = "sft") -> Any:
    """A trainer that has ended with this log."""
    return SimpleNamespace(state=SimpleNamespace(log_history=history, global_step=40, best_global_step=best))


def outcome_of(of: StageContext, trainer: Any, held: bool = True, take: int = 0) -> Outcome:
    from collections import Counter

    from alignment.config import TrainBase
    from alignment.training.fit import _outcome
    from alignment.training.methods import method_of
    from alignment.training.prepare import Prepared

    stage = of.stage_as(TrainBase)
    trained = Prepared(rows=[{}] * 3, ids=["a", "b", "c"], read=5, not_taken=take,
                       dropped=[("d", "long"), ("e", "odd")], changed=Counter(cut=1), supervised=11, lengths=[4, 8, 6])
    evaluated = Prepared(rows=[{}], ids=["f"], read=2, dropped=[("g", "long")], changed=Counter(cut=1, other=2),
                         supervised=5, lengths=[99])
    return _outcome(stage, method_of(stage), trainer, trained, evaluated if held else None, {"parameters": 7},
                    of.inputs["base"])


def test_the_outcome_accounts_for_the_rows_of_both_sets(at: Callable[..., StageContext]) -> None:
    made = outcome_of(at(), ended([{"loss": 1.0, "mean_token_accuracy": 0.5, "step": 1}]))
    assert (made.rows.read, made.rows.written) == (7, {"train": 3, "eval": 1})
    assert (made.rows.dropped, made.rows.changed) == ({"long": 2, "odd": 1}, {"cut": 2, "other": 2})
    assert made.facts == {
        "parameters": 7, "template": {"name": "chatml", "hash": "3898e88a6ec0a104"}, "start": "base-000000000000",
        "role": "policy", "context_length": None, "mean_length": 6.0, "max_length": 8,
        "dropped_rows": [("d", "long"), ("e", "odd"), ("g", "long")],
    }
    assert made.metrics == {"steps": 40.0, "supervised_tokens": 11.0, "train_loss": 1.0,
                            "train_mean_token_accuracy": 0.5}
    alone = outcome_of(at(), ended([]), held=False, take=4)
    assert (alone.rows.read, alone.rows.written, alone.rows.changed) == (9, {"train": 3}, {"cut": 1})
    assert alone.rows.dropped == {"long": 1, "odd": 1, "not taken": 4}
    assert alone.metrics == {"steps": 40.0, "supervised_tokens": 11.0}


@pytest.mark.parametrize(("count", "wanted"), [(1, 1.0), (4, 4.0), (5, 5.0), (10, 9.5), (15, 14.0), (19, 18.0)])
def test_training_metrics_are_the_mean_of_the_last_fifth(
    at: Callable[..., StageContext], count: int, wanted: float
) -> None:
    history = [{"loss": float(step), "mean_token_accuracy": step / 100, "step": step} for step in range(1, count + 1)]
    made = outcome_of(at(), ended([*history, {"train_loss": 99.0, "step": count}]), held=False)
    assert made.metrics["train_loss"] == pytest.approx(wanted)
    assert made.metrics["train_mean_token_accuracy"] == pytest.approx(wanted / 100)
    assert not any(name.startswith("eval_") for name in made.metrics)


@pytest.mark.parametrize(("final", "best", "loss"), [("last", 2, 0.75), ("best", 2, 0.25), ("best", 4, 0.75)])
def test_evaluation_metrics_are_those_of_the_weights_that_are_published(
    at: Callable[..., StageContext], final: str, best: int, loss: float
) -> None:
    history = [{"eval_loss": 0.25, "eval_mean_token_accuracy": 0.9, "step": 2},
               {"eval_loss": 0.75, "eval_mean_token_accuracy": 0.4, "step": 4}]
    made = outcome_of(at(eval_rows="data/dev", checkpoints={"every": 2, "final": final}), ended(history, best))
    assert made.metrics["eval_loss"] == loss
    assert made.metrics["eval_mean_token_accuracy"] == (0.9 if loss == 0.25 else 0.4)
    assert made.metrics.get("best_step") == (best if final == "best" else None)


def test_lists_of_names_in_an_adapters_config_are_sorted(tmp_path: Path) -> None:
    from alignment.inference.adapters import sort_lists

    file = tmp_path / "adapter_config.json"
    texts = []
    for names in (["v_proj", "k_proj", "q_proj"], ["q_proj", "v_proj", "k_proj"]):
        file.write_text(json.dumps({"target_modules": names, "r": 4, "ranks": [3, 1, 2]}), encoding="utf-8")
        sort_lists(file)
        texts.append(file.read_text(encoding="utf-8"))
    assert texts[0] == texts[1]
    assert json.loads(texts[0]) == {"target_modules": ["k_proj", "q_proj", "v_proj"], "r": 4, "ranks": [3, 1, 2]}


@pytest.mark.parametrize("method", ["sft", "reward", "dpo"])
def test_a_trained_stage_leaves_its_model_its_events_and_its_outcome(
    fitted: Callable[[str], StageContext], method: str
) -> None:
    from alignment.inference.info import read_info
    from alignment.training.fit import read_outcome

    made = fitted(method)
    assert {path.name for path in made.out.iterdir()} == {"model", "events.jsonl", "training.json"}
    info = read_info(made.out / "model")
    assert (info["role"], info["form"]) == ("reward" if method == "reward" else "policy", "adapter")
    assert info["base"] == "base-000000000000"
    config = json.loads((made.out / "model" / "adapter_config.json").read_text(encoding="utf-8"))
    assert Path(config["base_model_name_or_path"]) == made.inputs["base"].path() / "model"
    assert not (made.out / "model" / "README.md").exists()
    outcome = read_outcome(made)
    assert (outcome.metrics["steps"], outcome.facts["micro_batch_size"]) == (2.0, 2)
    assert (outcome.compute["dtype"], outcome.compute["device"]) == ("float32", "cpu")
    assert outcome.rows.written["eval"] == 4
    assert outcome.rows.read == 8 + 4, "one more than `take`"
    assert outcome.rows.written["train"] + sum(outcome.rows.dropped.values()) == 8
    assert outcome.facts["max_length"] <= 60
    assert outcome.facts["timing"]["resumed_from_step"] == 0
    assert {path.name for path in (made.work / "checkpoints").glob("checkpoint-*")} == {"checkpoint-2"}
    assert (made.work / "checkpoints" / "checkpoint-2" / "complete").exists()


def test_full_weights_are_published_as_full_whatever_they_started_from(
    at: Callable[..., StageContext], tokenizer: Any, base: Artifact, tmp_path: Path
) -> None:
    import torch

    from alignment.config import TrainBase
    from alignment.inference.info import read_info
    from alignment.training.fit import _save
    from alignment.training.model import build

    of = at("reward", strategy=FULL).stage_as(TrainBase)
    model, _ = build(of, base, torch.float32, tokenizer.pad_token_id)
    _save(model, tmp_path / "model", of, base, tokenizer)
    info = read_info(tmp_path / "model")
    assert (info["role"], info["form"], info["base"]) == ("reward", "full", None)
    assert (tmp_path / "model" / "model.safetensors").exists()
