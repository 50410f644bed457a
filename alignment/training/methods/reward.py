"""Reward model: -log sigmoid(r_chosen - r_rejected) at the last real token (Bradley-Terry)."""

from __future__ import annotations

from typing import Any

from trl import RewardConfig, RewardTrainer

from alignment.config.stages.train import Reward
from alignment.records import Record
from alignment.templates import Encoding
from alignment.training.guards import Guarded
from alignment.training.layout import Ids
from alignment.training.methods import Method
from alignment.training.prepare import Columns, Prepared, pair
from alignment.training.shared_prefix import OneSequence


def laid(row: dict[str, Any], pad: int) -> tuple[list[Ids], list[int]]:
    """Both sides, read at the last token that is no padding, as transformers' classifiers do."""
    sides = [row["chosen_ids"], row["rejected_ids"]]
    return sides, [max((at for at, token in enumerate(ids) if token != pad), default=0) for ids in sides]


class GuardedReward(OneSequence, Guarded, RewardTrainer):  # type: ignore[misc]
    """TRL's reward trainer; a pair goes through the model with its prompt once."""

    laid, fact = staticmethod(laid), "shared_prefix"


def columns(record: Record, tokenizer: Any, stage: Reward, prepared: Prepared) -> Encoding[Columns | str]:
    """chosen_ids and rejected_ids, each prompt and answer, [T]."""
    made = yield from pair(record, tokenizer, stage, prepared)
    if isinstance(made, str):
        return made
    prompt, chosen, rejected = made
    return {"chosen_ids": prompt + chosen, "rejected_ids": prompt + rejected}


def arguments(stage: Reward) -> dict[str, Any]:
    """Rows come cut to max_length."""
    return {"max_length": None}


METHOD = Method(GuardedReward, RewardConfig, columns, arguments, ("loss", "accuracy", "margin"))
