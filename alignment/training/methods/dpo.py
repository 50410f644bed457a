"""Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290); the reference is the start model or another.
"""

from __future__ import annotations

from typing import Any

from trl import DPOConfig, DPOTrainer

from alignment.artifacts import Artifact
from alignment.config.stages.train import Dpo
from alignment.records import Record
from alignment.templates import Encoding
from alignment.training.guards import Guarded
from alignment.training.layout import Ids
from alignment.training.methods import Method
from alignment.training.prepare import Columns, Prepared, pair
from alignment.training.reference import KeptReference, reference_facts
from alignment.training.shared_prefix import OneSequence


def laid(row: dict[str, Any], pad: int) -> tuple[list[Ids], list[int]]:
    """Both answers after their prompt, read from the prompt's last token on, which predicts the first of an answer."""
    prompt = row["prompt_ids"]
    return [prompt + row["chosen_ids"], prompt + row["rejected_ids"]], [max(0, len(prompt) - 1)] * 2


class GuardedDpo(OneSequence, KeptReference, Guarded, DPOTrainer):  # type: ignore[misc]
    """TRL's DPO trainer; a pair goes through the model with its prompt once."""

    laid, fact = staticmethod(laid), "shared_prefix"
    reference_columns = ("ref_chosen_logps", "ref_rejected_logps")


def columns(record: Record, tokenizer: Any, stage: Dpo, prepared: Prepared) -> Encoding[Columns | str]:
    """prompt_ids, chosen_ids and rejected_ids, each [T]."""
    made = yield from pair(record, tokenizer, stage, prepared)
    return made if isinstance(made, str) else dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), made, strict=True))


def arguments(stage: Dpo) -> dict[str, Any]:
    """Rows come cut to max_length; how the reference is had is the stage's to say."""
    return {"max_length": None, "precompute_ref_log_probs": stage.reference_mode == "precomputed"}


def facts(stage: Dpo, trainer: Any, reference: Artifact) -> dict[str, Any]:
    """The reference, and whether the loss looks at it."""
    made = reference_facts(stage, trainer, reference)
    if not stage.reads_reference:
        made["reference"]["how"] += "; only the logged rewards read it, as the loss is sft alone"
    return made


METHOD = Method(GuardedDpo, DPOConfig, columns, arguments, ("loss", "rewards/accuracies", "rewards/margins"), facts)
