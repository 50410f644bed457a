"""Odds ratio preference optimisation (Hong et al. 2024, arXiv:2403.07691), without a reference.

The loss is that of TRL's trainer, which TRL calls experimental: the mean cross entropy of prompt and chosen answer over
the tokens of a forward pass, and beta times the mean log-sigmoid of the odds ratio. TRL tokenizes text there and has no
switch against it; here it gets our ids through the collator of its DPO.
"""

from __future__ import annotations

import warnings
from typing import Any

from trl.import_utils import TRLExperimentalWarning
from trl.trainer.dpo_trainer import DataCollatorForPreference

from alignment.config.stages.train import Orpo
from alignment.records import Record
from alignment.templates import Encoding
from alignment.training.guards import Guarded
from alignment.training.methods import Method, own_logits
from alignment.training.prepare import Columns, Prepared, pair

with warnings.catch_warnings():  # the notice is ours to give: the reference and `explain` have it
    warnings.simplefilter("ignore", TRLExperimentalWarning)
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer


class GuardedOrpo(Guarded, ORPOTrainer):  # type: ignore[misc]
    """TRL's ORPO trainer over rows that come tokenized."""

    def __init__(self, processing_class: Any, **kwargs: Any) -> None:
        collator = DataCollatorForPreference(pad_token_id=processing_class.pad_token_id, max_length=None)
        super().__init__(processing_class=processing_class, data_collator=collator, **kwargs)

    @staticmethod
    def tokenize_row(feature: dict[str, Any], model: Any = None) -> dict[str, Any]:
        """Nothing: rows come tokenized. No method of the trainer, since datasets would hash it with all its weights."""
        return {}

    def concatenated_forward(self, model: Any, batch: dict[str, Any]) -> Any:
        """TRL's, of a batch that is concatenated already; it asks its length of the chosen half's labels."""
        half = batch["input_ids"].shape[0] // 2
        return super().concatenated_forward(model, {**batch, "chosen_labels": batch["input_ids"][:half]})

    @staticmethod
    def concatenated_inputs(
        batch: dict[str, Any], is_encoder_decoder: bool = False, padding_value: int = 0, device: Any = None,
    ) -> dict[str, Any]:
        """ids, mask and labels of the answers, each [2B, T], the chosen ones first; from DPO's batch."""
        return {"concatenated_input_ids": batch["input_ids"], "concatenated_attention_mask": batch["attention_mask"],
                "concatenated_labels": batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)}


def columns(record: Record, tokenizer: Any, stage: Orpo, prepared: Prepared) -> Encoding[Columns | str]:
    """prompt_ids, chosen_ids and rejected_ids, each [T]."""
    made = yield from pair(record, tokenizer, stage, prepared)
    if isinstance(made, str):
        return made
    prepared.supervised += len(made[0])  # TRL learns the prompt with the chosen answer
    return dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), made, strict=True))


def arguments(stage: Orpo) -> dict[str, Any]:
    """Rows come cut to max_length, in columns that are no arguments of a model."""
    return {"max_length": stage.longest, "remove_unused_columns": False}


METHOD = Method(GuardedOrpo, ORPOConfig, columns, arguments,
                ("loss", "nll_loss", "log_odds_ratio", "rewards/accuracies", "rewards/margins"), prove=own_logits)
