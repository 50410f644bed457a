"""The table of methods: one row each. A new method is a row here, a member of the config's union and a YAML."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from alignment.config import Dpo, Sft, TrainStage
from alignment.training.checkpoints import everywhere
from alignment.training.guards import Guarded


class GuardedSft(Guarded, SFTTrainer):  # type: ignore[misc]
    """TRL's SFT trainer: token-sum loss over the global batch, fused output head."""


class GuardedReward(Guarded, RewardTrainer):  # type: ignore[misc]
    """TRL's reward trainer: -log sigmoid(r_chosen - r_rejected) at the last real token."""


class GuardedDpo(Guarded, DPOTrainer):  # type: ignore[misc]
    """TRL's DPO trainer, with the precomputed reference kept beside the checkpoints."""

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        # TRL caches by the data set's fingerprint in a temporary folder that a killed pod loses; the work folder
        # is addressed by the digest of the reference, the data and the config, and survives.
        folder = Path(self.args.output_dir).parent / "reference"
        file = folder / f"{name}.parquet"
        columns = ["ref_chosen_logps", "ref_rejected_logps"]
        # Computing gathers over all ranks, so they decide together: a machine that came in later has no file.
        if everywhere(file.exists()):
            return concatenate_datasets([dataset, Dataset.from_parquet(str(file))], axis=1)
        dataset = super()._precompute_ref_logps(dataset, name, batch_size)
        folder.mkdir(parents=True, exist_ok=True)  # every rank: they may share no disk
        part = file.with_suffix(f".{self.args.process_index}")
        dataset.select_columns(columns).to_parquet(str(part))
        part.replace(file)
        return dataset


@dataclass(frozen=True)
class Method:
    """What differs between methods; everything else is shared."""

    trainer: type[Any]
    config: type[Any]
    role: str
    """What is trained: policy or reward."""
    arguments: Callable[[Any], dict[str, Any]]
    """TRL arguments that follow from the stage's own keys."""
    final_metrics: tuple[str, ...]
    """Keys of the last evaluation (and training log) that go into the manifest's metrics."""


def _sft(stage: Sft) -> dict[str, Any]:
    if stage.packing:
        return {"packing": True, "packing_strategy": "bfd", "max_length": stage.max_length, "eval_packing": False}
    return {"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}}


def _reward(stage: TrainStage) -> dict[str, Any]:
    return {"max_length": None}


def _dpo(stage: Dpo) -> dict[str, Any]:
    return {"max_length": None, "precompute_ref_log_probs": stage.reference_mode == "precomputed"}


METHODS: dict[str, Method] = {
    "sft": Method(GuardedSft, SFTConfig, "policy", _sft, ("loss", "mean_token_accuracy")),
    "reward": Method(GuardedReward, RewardConfig, "reward", _reward, ("loss", "accuracy", "margin")),
    "dpo": Method(GuardedDpo, DPOConfig, "policy", _dpo, ("loss", "rewards/accuracies", "rewards/margins")),
}
