"""Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290); the reference is the start model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets
from trl import DPOConfig, DPOTrainer

from alignment.artifacts import Artifact
from alignment.config import Dpo
from alignment.records import Record
from alignment.training.checkpoints import everywhere
from alignment.training.guards import Guarded
from alignment.training.methods import Method
from alignment.training.prepare import Columns, Prepared, pair


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


def columns(record: Record, tokenizer: Any, stage: Dpo, prepared: Prepared) -> Columns | str:
    """prompt_ids, chosen_ids and rejected_ids, each [T]."""
    made = pair(record, tokenizer, stage, prepared)
    return made if isinstance(made, str) else dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), made, strict=True))


def arguments(stage: Dpo) -> dict[str, Any]:
    """Rows come cut to max_length; how the reference is had is the stage's to say."""
    return {"max_length": None, "precompute_ref_log_probs": stage.reference_mode == "precomputed"}


def facts(stage: Dpo, trainer: Any, start: Artifact) -> dict[str, Any]:
    """Which reference, and how its log-probabilities were had."""
    if stage.reference_mode == "precomputed":
        how = "log-probabilities computed once before training"
    else:
        copied = "ref" in getattr(trainer.model, "peft_config", {})
        how = "frozen copy of the start adapter" if copied else "adapter off"
    return {"reference": {"artifact": start.key, "how": how}}


METHOD = Method(GuardedDpo, DPOConfig, columns, arguments, ("loss", "rewards/accuracies", "rewards/margins"), facts)
