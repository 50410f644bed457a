"""What we add to TRL's trainers: guards against silent failure, and events.

`Guarded` is mixed into every trainer class: it stops on a non-finite loss and names the rows, and mends two
places where a resumed or finished run would lose weights. `Recorder` writes events. Neither changes what is learned.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import TrainerCallback, set_seed

from alignment.context import StageContext
from alignment.errors import StageError
from alignment.progress import Tracker, console
from alignment.training import shares
from alignment.training.checkpoints import Checkpoints, naming_the_disk
from alignment.training.held_means import HeldMeans
from alignment.training.ranks import first_to_fail, pulse
from alignment.training.sharding import gathered, is_shared_out, zero_stage_of

_TIMES = {"total_flos", "train_runtime", "eval_runtime", "num_tokens", "eval_num_tokens", "step_time"}
"""Logged by the libraries, but different after a resume; tokens and times are counted by us."""
_NONE = -1
"""Fills up the row numbers of a batch."""


class Guarded(HeldMeans):
    """Mixin before a TRL trainer. Attributes are set by `fit` right after construction."""

    row_ids: list[str]
    last_dir: Path | None = None
    save_to: Callable[[Any, Path, dict[str, torch.Tensor] | None], None]
    kept: Checkpoints
    autocast: torch.dtype | None = None
    """Type of matrix products under DeepSpeed, which accelerate leaves to it."""
    tokens_here = 0
    """Tokens of the batches that this process has trained on since it began, without padding."""

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()  # type: ignore[misc]
        if "row" not in self._signature_columns:  # type: ignore[has-type]
            self._signature_columns = [*self._signature_columns, "row"]  # type: ignore[has-type]

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        inputs, numbers = apart(inputs)
        loss: torch.Tensor = super().training_step(model, inputs, *args, **kwargs)  # type: ignore[misc]
        if not math.isfinite(float(loss)):
            rows = [self.row_ids[row] for row in numbers.flatten().tolist() if row != _NONE]
            step = self.state.global_step + 1  # type: ignore[attr-defined]
            raise first_to_fail(step, StageError(
                "the loss is not finite", found=float(loss), where=f"step {step}, rows {rows}",
                hint="lower the learning rate, or look at these rows",
            ))
        self.tokens_here += self.tokens_of(inputs)
        return loss

    def tokens_of(self, inputs: dict[str, Any]) -> int:
        """Tokens of a batch, without padding."""
        return int(inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).sum())

    def rows_of_epoch(self) -> int:
        """Rows that one pass goes through."""
        return len(self.train_dataset)  # type: ignore[attr-defined]

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        # What is learned of a mixture of experts has a term that spreads tokens over them; what is measured has not.
        spread, self.aux_loss_enabled = getattr(self, "aux_loss_enabled", False), False
        try:
            return super().prediction_step(model, apart(inputs)[0], *args, **kwargs)
        finally:
            self.aux_loss_enabled = spread

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
        # With a second (reference) adapter in the checkpoint, transformers loads the sub-folders only and leaves
        # the trained adapter at its start weights.
        policy = self.model if model is None else model  # type: ignore[attr-defined]
        if isinstance(policy, PeftModel) and len(policy.peft_config) > 1:
            policy.load_adapter(resume_from_checkpoint, "default", is_trainable=True)
            policy.set_adapter("default")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        if checkpoint is not None and zero_stage_of(self) == 3 and shares.is_whole(Path(checkpoint)):
            shares.settle(self.model_wrapped.optimizer.optimizer, Path(checkpoint))  # type: ignore[attr-defined]

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)  # type: ignore[misc]
        args, state = self.args, self.state  # type: ignore[attr-defined]
        if checkpoint is not None and shares.written_by_others(Path(checkpoint), args.world_size):
            # No rank has a state of its own there, or it is one of another rank's rows: none draws what it has drawn.
            set_seed((args.seed * 1_000_003 + state.global_step * 1_009 + args.process_index) % 2**32)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        if (kept := getattr(self, "kept", None)) is not None:
            kept.still_there()
        with naming_the_disk(Path(self.args.output_dir)):  # type: ignore[attr-defined]
            super()._save_checkpoint(*args, **kwargs)  # type: ignore[misc]

    def _load_best_model(self) -> None:
        if self.last_dir is not None:
            state = gathered(self)
            if self.args.should_save:  # type: ignore[attr-defined]
                self.save_to(self.model, self.last_dir, state)  # type: ignore[attr-defined]
        if is_shared_out(self):
            best = Path(self.state.best_model_checkpoint)  # type: ignore[attr-defined]
            self.kept.bring(best.name)
            shares.read_whole(self.model_wrapped, best)  # type: ignore[attr-defined]
        super()._load_best_model()  # type: ignore[misc]

    def compute_loss_context_manager(self) -> Any:
        if self.autocast is None:
            return super().compute_loss_context_manager()  # type: ignore[misc]
        return torch.autocast(self.args.device.type, self.autocast)  # type: ignore[attr-defined]

    def settled(self) -> None:
        """Called once the model is what is trained, before DeepSpeed takes it over."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        # Preference rows come tokenized; TRL's DPO trainer is the one that has no switch to say so.
        if "prompt_ids" in dataset.column_names:
            return dataset
        return super()._prepare_dataset(dataset, *args, **kwargs)  # type: ignore[misc]

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """No model cards in checkpoints: the manifest says what a model is made of."""


class Rows:
    """Collator that hands TRL's what it knows, and sends the numbers of the rows along with the batch.

    Remembered here, they would be those of another batch: the loader runs ahead of the model, in processes of its own
    where `dataloader_num_workers` says so, and the batches of an accumulated step are all made before its first.
    """

    def __init__(self, collator: Any) -> None:
        self.collator = collator

    def __call__(self, examples: list[dict[str, Any]]) -> Any:
        plain = [{k: v for k, v in example.items() if k != "row"} for example in examples]
        batch = self.collator(plain)
        if batch is plain:  # online methods take rows as they are, with their numbers
            return examples
        # A number, or several where rows are packed. A tensor, since accelerate shares out nothing else.
        rows = [example["row"] if isinstance(example["row"], list) else [example["row"]] for example in examples]
        most = max(map(len, rows))
        batch["row"] = torch.tensor([[*numbers, *[_NONE] * (most - len(numbers))] for numbers in rows])
        return batch


def apart(batch: Any) -> tuple[Any, torch.Tensor]:
    """A batch of `Rows` as the model knows it, and the numbers of its rows."""
    if isinstance(batch, list):
        return batch, torch.tensor([example["row"] for example in batch])
    return {key: value for key, value in batch.items() if key != "row"}, batch.get("row", torch.tensor([]))


class Recorder(TrainerCallback):  # type: ignore[misc]
    """Events and progress on the first rank; on the others only where they are, for messages."""

    def __init__(self, context: StageContext, tracker: Tracker | None) -> None:
        self.context, self.tracker = context, tracker

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.best_model_checkpoint:  # a resumed run may find its work folder elsewhere
            state.best_model_checkpoint = str(Path(args.output_dir) / Path(state.best_model_checkpoint).name)
        if state.is_world_process_zero:
            # A killed run logged steps after its last checkpoint; the resumed one will log them again.
            self.context.events.unlink(missing_ok=True)
            for entry in state.log_history:
                self._write(entry)
            if self.tracker is not None:
                self.tracker.begin_at(state.global_step)
            if state.global_step:
                console.print(f"  {self.context.stage.name} goes on from step {state.global_step} of {state.max_steps}")

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        pulse(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.tracker is not None:
            line: dict[str, Any] = next((entry for entry in reversed(state.log_history) if "loss" in entry), {})
            said = next((key for key in ("reward", "loss") if line.get(key) is not None), None)
            self.tracker.advance(1, note="" if said is None else f"{said} {line[said]:.3f}")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and state.log_history:
            self._write(state.log_history[-1])

    def _write(self, entry: dict[str, Any]) -> None:
        kind = "eval" if any(key.startswith("eval_") for key in entry) else "train" if "loss" in entry else None
        if kind is None:
            return
        values = {k: v for k, v in entry.items() if k not in _TIMES and not k.endswith("_per_second")}
        for key, value in values.items():
            if isinstance(value, float) and not math.isfinite(value):
                values[key] = None  # JSON has no NaN
        self.context.event(kind, **values)
