"""Supervised fine-tuning: cross entropy over the answer, every assistant turn, or everything."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from alignment import templates
from alignment.config.stages.train import Sft
from alignment.data.projections import to_sft
from alignment.records import Record
from alignment.templates import Encoding
from alignment.training.guards import Guarded
from alignment.training.layout import Ids
from alignment.training.methods import Method
from alignment.training.prepare import IGNORED, Columns, Prepared, cut_prompt, cut_turns
from alignment.training.shared_prefix import OneSequence


def laid(row: dict[str, Any], pad: int) -> tuple[list[Ids], list[int]]:
    """The row, read from the token on that predicts the first that is learned."""
    first = next((at for at, label in enumerate(row["labels"]) if label != IGNORED), len(row["labels"]))
    return [row["input_ids"]], [max(0, first - 1)]


class GuardedSft(OneSequence, Guarded, SFTTrainer):  # type: ignore[misc]
    """TRL's SFT trainer: token-sum loss over the global batch, fused output head; short rows share a sequence."""

    laid, fact = staticmethod(laid), "shared_sequences"
    loss_is_per_token = True

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Asked for where rows are packed. TRL drops our column then, so it packs numbers as it packs tokens."""
        made = super()._prepare_dataset(dataset, *args, **kwargs)
        if "row" in made.column_names:  # rows to evaluate on are not packed
            return made
        numbers = [[number] * len(ids) for number, ids in zip(dataset["row"], dataset["input_ids"], strict=True)]
        twin = Dataset.from_dict({"input_ids": numbers, "labels": dataset["labels"]})
        packed = super()._prepare_dataset(twin, *args, **kwargs)["input_ids"]
        return made.add_column("row", [list(dict.fromkeys(ids)) for ids in packed])


def columns(record: Record, tokenizer: Any, stage: Sft, prepared: Prepared) -> Encoding[Columns | str]:
    """input_ids and labels, both [T]; labels are IGNORED where nothing is learned."""
    conversation = to_sft(record)
    if isinstance(conversation, str):
        return conversation
    if stage.loss == "completion":
        if not conversation[-1].get("learn", True):
            return "the last answer is marked as not to be learned, and loss: completion learns it alone"
        prompt, answer = yield from templates.completing(tokenizer, conversation[:-1], conversation[-1])
        prompt = cut_prompt(prompt, len(answer), stage, prepared)
        ids, labels = prompt + answer, [IGNORED] * len(prompt) + answer
    else:
        if stage.loss == "all" and not all(turn.get("learn", True) for turn in conversation):
            return "a turn is marked as not to be learned, and loss: all learns everything"
        ids, mask = yield from templates.conversing(tokenizer, conversation)
        if stage.loss == "assistant" and not any(mask):
            return "no supervised token"
        begin = cut_turns(mask, stage, prepared)
        ids, mask = ids[begin:], mask[begin:]
        labels = list(ids) if stage.loss == "all" else [i if m else IGNORED for i, m in zip(ids, mask, strict=True)]
    prepared.supervised += len(labels) - labels.count(IGNORED)
    prepared.lengths.append(len(ids))
    return {"input_ids": ids, "labels": labels}


def arguments(stage: Sft) -> dict[str, Any]:
    """Rows come tokenized and cut, so TRL is told to do neither."""
    if stage.packing:
        return {"packing": True, "packing_strategy": "bfd", "max_length": stage.longest, "eval_packing": False}
    return {"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}}


METHOD = Method(GuardedSft, SFTConfig, columns, arguments, ("loss", "mean_token_accuracy"))
