"""Guards against silent failure: a loss that is not finite stops with its rows, and events are written once."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alignment.artifacts import Artifact, Store
from alignment.context import StageContext
from alignment.errors import StageError
from alignment.progress import Tracker
from tests.training.made import context, preferences, stage


@pytest.fixture
def quiet(base: Artifact, rows: Artifact, tmp_path: Path) -> StageContext:
    """A context of its own work folder."""
    folder = tmp_path / "quiet"
    folder.mkdir()
    return context(Store(str(tmp_path / "own")), folder, base, rows)


def events(of: StageContext) -> list[dict[str, Any]]:
    lines = of.events.read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "time"} for line in lines]


# --- a loss that is not finite -------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "at"), [("sft", 1), ("reward", 2), ("dpo", 1)])
def test_a_loss_that_is_not_finite_stops_with_its_step_and_its_rows(
    base: Artifact, rows: Artifact, tmp_path: Path, method: str, at: int
) -> None:
    import torch
    from transformers import TrainerCallback

    from alignment.training.fit import fit

    class Poisons(TrainerCallback):
        """Before step `at`, as a broken update leaves the weights."""

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step + 1 == at:
                with torch.no_grad():
                    next(p for p in kwargs["model"].parameters() if p.requires_grad).fill_(float("nan"))

    folder = tmp_path / "nan"
    folder.mkdir()
    given = context(Store(str(tmp_path / "own")), folder, base, rows, method, epochs=3,
                    trl={"train_sampling_strategy": "sequential"})
    with pytest.raises(StageError, match="the loss is not finite") as error:
        fit(given, callbacks=(Poisons(),))
    assert error.value.where == f"step {at}, rows {[f'p{index}' for index in range(8)]}"
    assert str(error.value.found) == "nan"
    assert [entry["step"] for entry in events(given)] == list(range(1, at)) if at > 1 else not given.events.exists()
    assert not (given.out / "model").exists()


LAYOUTS: dict[str, dict[str, Any]] = {
    "the loader is ahead": {"batch_size": 2, "micro_batch_size": 2},
    "micro-batches": {"batch_size": 8, "micro_batch_size": 2},
    "loader processes": {"batch_size": 4, "micro_batch_size": 2, "trl": {"dataloader_num_workers": 1}},
    "packed": {"batch_size": 2, "micro_batch_size": 2, "packing": True, "max_length": 128},
    "packed and split": {"batch_size": 2, "micro_batch_size": 2, "packing": True, "max_length": 64,
                         "trl": {"packing_strategy": "wrapped"}},
}


@pytest.mark.parametrize(("method", "layout", "at"), [
    *[("sft", layout, at) for layout in LAYOUTS for at in (1, 2)], ("dpo", "micro-batches", 3),
    ("kto", "micro-batches", 2), ("reward", "micro-batches", 4),
])
def test_the_rows_are_those_of_the_batch_whose_loss_was_not_finite(
    base: Artifact, rows: Artifact, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str,
    layout: str, at: int,
) -> None:
    """`at` counts forward passes; what the model was given then is read back as text."""
    from alignment.training.fit import fit
    from alignment.training.methods import method_of

    given: list[str] = []
    trainer = method_of(stage(method)).trainer
    real = trainer.compute_loss

    def compute_loss(self: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        given.append(tokenizer.decode(inputs.get("laid_ids", inputs["input_ids"]).flatten()))
        return real(self, model, inputs, *args, **kwargs) * (float("nan") if len(given) == at else 1.0)

    monkeypatch.setattr(trainer, "compute_loss", compute_loss)
    folder = tmp_path / "nan"
    folder.mkdir()
    with pytest.raises(StageError, match="the loss is not finite") as error:
        fit(context(Store(str(tmp_path / "own")), folder, base, rows, method, epochs=4, **LAYOUTS[layout]))
    assert len(given) == at
    named = set(re.findall(r"'(p\d+)'", str(error.value.where)))
    seen = {f"p{number}" for number in re.findall(r"How many are (\d)\?", given[-1])}
    assert seen
    # A row that is split over two batches has its question in one of them.
    assert seen <= named if "split" in layout else seen == named


class Base:
    """What the mixin stands before: gives back what it is told to, and remembers what it was asked."""

    def __init__(self, loss: float = 0.5, model: Any = "model") -> None:
        import torch

        self.loss, self.model, self.asked = torch.tensor(loss), model, []
        self.state, self.args = SimpleNamespace(global_step=6), SimpleNamespace(should_save=True)
        self.accelerator = SimpleNamespace(device="cpu", gather=lambda tensor: tensor)
        self._signature_columns: list[str] | None = None

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = self._signature_columns or ["input_ids"]

    def training_step(self, model: Any, inputs: dict[str, Any], **kwargs: Any) -> Any:
        self.asked.append(inputs)
        return self.loss

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        return self.loss, inputs

    def _load_best_model(self) -> None:
        self.asked.append("best")

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> str:
        return "prepared"

    def create_model_card(self, **kwargs: Any) -> None:
        self.asked.append("card")


def guarded(**given: Any) -> Any:
    from alignment.training.guards import Guarded

    class Trainer(Guarded, Base):
        pass

    return Trainer(**given)


@pytest.mark.parametrize(("loss", "rows", "where"), [
    (float("nan"), [2, 0], "step 7, rows ['c', 'a']"), (float("inf"), [1], "step 7, rows ['b']"),
    (float("-inf"), [1, 1], "step 7, rows ['b', 'b']"), (float("nan"), [[0, 2], [1]], "step 7, rows ['a', 'c', 'b']"),
])
def test_rows_of_the_batch_are_named_by_their_ids(loss: float, rows: list[Any], where: str) -> None:
    import torch

    from alignment.training.guards import Rows

    trainer = guarded(loss=loss)
    trainer.row_ids = ["a", "b", "c"]
    ids = torch.zeros(2, 3)
    collator = Rows(lambda examples: {"input_ids": ids})
    batch = collator([{"row": row} for row in rows])
    collator([{"row": 0}])  # the loader is ahead
    with pytest.raises(StageError) as error:
        trainer.training_step("model", batch)
    assert trainer.asked == [{"input_ids": ids}], "the model gets what it knows"
    assert trainer.prediction_step("model", batch, True)[1] == {"input_ids": ids}
    assert error.value.where == where


@pytest.mark.parametrize("loss", [0.0, -3.0, 1e38])
def test_a_finite_loss_is_passed_on(loss: float) -> None:
    import torch

    trainer = guarded(loss=loss)
    ids = torch.tensor([[5, 6, 7], [8, 0, 0]])
    assert trainer.training_step("model", {"input_ids": ids, "attention_mask": (ids > 0).long()}) is trainer.loss
    assert trainer.tokens_here == 4
    trainer.training_step("model", {"input_ids": ids})  # packed, with nothing to fill up
    assert trainer.tokens_here == 10


def test_the_row_column_is_not_thrown_away_as_unused() -> None:
    trainer = guarded()
    for _ in range(2):
        trainer._set_signature_columns_if_needed()
        assert trainer._signature_columns == ["input_ids", "row"]


def test_only_rows_that_are_tokenized_as_preferences_skip_trls_preparation() -> None:
    made = SimpleNamespace(column_names=["row", "prompt_ids", "chosen_ids", "rejected_ids"])
    assert guarded()._prepare_dataset(made, "tokenizer") is made
    assert guarded()._prepare_dataset(SimpleNamespace(column_names=["input_ids"]), "tokenizer") == "prepared"


@pytest.mark.parametrize(("wanted", "first_rank", "order"), [
    (True, True, ["last", "best"]), (True, False, ["best"]), (False, True, ["best"]),
])
def test_the_last_weights_are_kept_before_the_best_replace_them(
    tmp_path: Path, wanted: bool, first_rank: bool, order: list[str]
) -> None:
    trainer = guarded()
    trainer.args.should_save = first_rank
    given: list[tuple[Any, ...]] = []

    def save(model: Any, folder: Path, state: Any) -> None:
        given.append((model, folder, state))
        trainer.asked.append("last")

    trainer.save_to = save
    if wanted:
        trainer.last_dir = tmp_path
    trainer._load_best_model()
    assert trainer.asked == order
    assert given == ([("model", tmp_path, None)] if "last" in order else [])


def test_a_checkpoint_with_a_reference_adapter_brings_the_trained_one_back(
    adapter: Artifact, tokenizer: Any, tmp_path: Path
) -> None:
    """transformers alone would load the sub-folder's adapter and leave the trained one where it was."""
    import torch
    from datasets import Dataset
    from peft import get_peft_model_state_dict

    from alignment.training.methods import method_of
    from alignment.training.model import build
    from alignment.training.prepare import prepare

    def trainer() -> Any:
        model, _ = build(of, adapter, torch.float32, tokenizer.pad_token_id)
        made = prepare(preferences(2), tokenizer, of, "here", method.columns)
        return method.trainer(
            model=model, args=method.config(output_dir=str(tmp_path), report_to="none", use_cpu=True, disable_tqdm=True,
                                            **method.arguments(of)),
            processing_class=tokenizer, train_dataset=Dataset.from_list(made.rows))

    def weights(of: Any, name: str) -> dict[str, Any]:
        return {key: tensor.clone() for key, tensor in get_peft_model_state_dict(of.model, adapter_name=name).items()}

    of = stage("dpo")
    method = method_of(of)
    one = trainer()
    assert set(one.model.peft_config) == {"default", "ref"}
    with torch.no_grad():
        for name, parameter in one.model.named_parameters():
            if ".default." in name:
                parameter.add_(0.5)
    one.save_model(str(tmp_path / "checkpoint-2"))
    two = trainer()
    start = weights(two, "default")
    two._load_from_checkpoint(str(tmp_path / "checkpoint-2"))
    now, reference, saved = weights(two, "default"), weights(two, "ref"), weights(one, "default")
    assert len(now) == 28
    for key, tensor in now.items():
        torch.testing.assert_close(tensor, start[key] + 0.5)
        assert torch.equal(tensor, saved[key])
        assert torch.equal(reference[key], start[key])
    assert two.model.active_adapter == "default"
    assert {name.split(".")[-2] for name, p in two.model.named_parameters() if p.requires_grad} == {"default"}


# --- the collator --------------------------------------------------------------------------------------------


def test_the_collator_sends_the_rows_along_and_hands_on_the_rest() -> None:
    from alignment.training.guards import Rows

    given: list[Any] = []
    collator = Rows(lambda examples: given.append(examples) or {"input_ids": "batch"})
    examples = [{"row": 4, "input_ids": [1, 2], "labels": [1, 2]}, {"row": 1, "input_ids": [3], "labels": [3]}]
    batch = collator(examples)
    assert (batch["input_ids"], batch["row"].tolist()) == ("batch", [[4], [1]])
    assert given == [[{"input_ids": [1, 2], "labels": [1, 2]}, {"input_ids": [3], "labels": [3]}]]
    assert examples[0]["row"] == 4, "what the data set holds is left alone"
    assert collator([{"row": [3, 0, 7]}, {"row": [2]}])["row"].tolist() == [[3, 0, 7], [2, -1, -1]]
    assert Rows(lambda examples: examples)(examples) is examples, "rows that a trainer collates itself keep theirs"


# --- events --------------------------------------------------------------------------------------------------

TRAIN = {"loss": 0.5, "grad_norm": 1.5, "mean_token_accuracy": 0.25, "num_tokens": 380.0, "epoch": 0.5, "step": 1}
EVAL = {"eval_loss": 0.75, "eval_margin": 0.5, "eval_runtime": 3.0, "eval_samples_per_second": 9.0, "epoch": 0.5,
        "eval_steps_per_second": 2.0, "eval_num_tokens": 380.0, "step": 1}
END = {"train_runtime": 9.0, "train_loss": 0.5, "total_flos": 1.0, "train_steps_per_second": 1.0, "step": 2}


def logged(recorder: Any, *entries: dict[str, Any], first: bool = True) -> Any:
    """Trainer state after these entries, each of which the recorder was told of."""
    from transformers import TrainerState

    state = TrainerState(is_world_process_zero=first)
    for entry in entries:
        state.log_history.append(entry)
        recorder.on_log(None, state, None, logs=entry)
    return state


def recorder_of(given: StageContext, tracker: Tracker | None = None) -> Any:
    from alignment.training.guards import Recorder

    return Recorder(given, tracker)


def test_events_are_what_the_trainer_logged_without_the_libraries_times(quiet: StageContext) -> None:
    logged(recorder_of(quiet), TRAIN, EVAL, END)
    assert events(quiet) == [
        {"event": "train", "loss": 0.5, "grad_norm": 1.5, "mean_token_accuracy": 0.25, "epoch": 0.5, "step": 1},
        {"event": "eval", "eval_loss": 0.75, "eval_margin": 0.5, "epoch": 0.5, "step": 1},
    ]
    assert TRAIN["num_tokens"] == 380.0, "the trainer's own history is left alone"
    times = [json.loads(line)["time"] for line in quiet.events.read_text(encoding="utf-8").splitlines()]
    assert all(isinstance(time, float) and time > 1.7e9 for time in times)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_json_has_no_number_for_is_null(quiet: StageContext, value: float) -> None:
    entry = {"loss": 0.5, "grad_norm": value, "step": 1}
    logged(recorder_of(quiet), entry, {"eval_loss": value, "step": 1})
    assert events(quiet) == [{"event": "train", "loss": 0.5, "grad_norm": None, "step": 1},
                             {"event": "eval", "eval_loss": None, "step": 1}]
    assert entry["grad_norm"] is value or entry["grad_norm"] == value
    assert "NaN" not in quiet.events.read_text(encoding="utf-8")


def test_a_resumed_run_has_every_line_once(quiet: StageContext) -> None:
    steps = [{"loss": 1.0 / step, "step": step} for step in range(1, 7)]
    logged(recorder_of(quiet), *steps[:5])  # killed after step 5, its last checkpoint is of step 4
    from transformers import TrainerState

    again = recorder_of(quiet)
    args = SimpleNamespace(output_dir="work/checkpoints")
    state = TrainerState(global_step=4, is_world_process_zero=True, log_history=list(steps[:4]))
    again.on_train_begin(args, state, None)
    assert [entry["step"] for entry in events(quiet)] == [1, 2, 3, 4]
    for entry in steps[4:]:
        state.log_history.append(entry)
        again.on_log(args, state, None)
    assert events(quiet) == [{"event": "train", **entry} for entry in steps]
    fresh = recorder_of(quiet)
    fresh.on_train_begin(args, TrainerState(is_world_process_zero=True), None)
    assert not quiet.events.exists(), "a run from the first step begins with none"


def test_only_the_first_rank_writes_events(quiet: StageContext) -> None:
    from transformers import TrainerState

    logged(recorder_of(quiet), TRAIN)
    before = quiet.events.read_bytes()
    other = recorder_of(quiet)
    other.on_train_begin(SimpleNamespace(output_dir="x"), TrainerState(is_world_process_zero=False), None)
    logged(other, TRAIN, EVAL, first=False)
    other.on_step_end(None, TrainerState(is_world_process_zero=False), None)
    assert quiet.events.read_bytes() == before


@pytest.mark.parametrize(("best", "found"), [
    ("/pod-1/cache/work/sft-0/checkpoints/checkpoint-4", "/pod-2/checkpoints/checkpoint-4"), (None, None),
])
def test_the_best_checkpoint_is_looked_for_where_the_work_is_now(
    quiet: StageContext, best: str | None, found: str | None
) -> None:
    from transformers import TrainerState

    for first in (True, False):
        state = TrainerState(is_world_process_zero=first, best_model_checkpoint=best)
        recorder_of(quiet).on_train_begin(SimpleNamespace(output_dir="/pod-2/checkpoints"), state, None)
        assert state.best_model_checkpoint == found


def test_progress_goes_on_from_the_step_that_was_resumed(quiet: StageContext) -> None:
    from transformers import TrainerState

    tracker = Tracker("stage", 10, "steps", None)
    recorder = recorder_of(quiet, tracker)
    state = TrainerState(global_step=4, is_world_process_zero=True, log_history=[{"loss": 0.25, "step": 4}])
    recorder.on_train_begin(SimpleNamespace(output_dir="x"), state, None)
    assert tracker.done == 4
    state.log_history.append({"eval_loss": 9.0, "step": 4})
    recorder.on_step_end(None, state, None)
    recorder.on_step_end(None, state, None)
    assert (tracker.done, tracker.note) == (6, "loss 0.250")


def test_no_model_card_is_written_beside_a_checkpoint() -> None:
    trainer = guarded()
    trainer.create_model_card(model_name="x", dataset_name="y")
    assert trainer.asked == []
