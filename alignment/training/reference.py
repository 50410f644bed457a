"""The frozen reference of methods that have one: kept where a killed pod cannot lose it, and said in the manifest.

Losses against it are TRL's. Which way it is had (a copy of the adapter, or computed once) is the stage's to say.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets

from alignment.artifacts import Artifact
from alignment.config import TrainBase
from alignment.training.checkpoints import everywhere
from alignment.training.guards import apart


class KeptReference:
    """Mixin before a TRL trainer: the precomputed reference lies beside the checkpoints."""

    reference_columns: tuple[str, ...]
    """Columns that TRL computes from the reference."""
    args: Any

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        # TRL caches by the data set's fingerprint in a temporary folder that a killed pod loses; the work folder
        # is addressed by the digest of the reference, the data and the config, and survives.
        folder = Path(self.args.output_dir).parent / "reference"
        file = folder / f"{name}.parquet"
        # Computing gathers over all ranks, so they decide together: a machine that came in later has no file.
        if everywhere(file.exists()):
            return concatenate_datasets([dataset, Dataset.from_parquet(str(file))], axis=1)
        dataset = super()._precompute_ref_logps(dataset, name, batch_size)  # type: ignore[misc]
        folder.mkdir(parents=True, exist_ok=True)  # every rank: they may share no disk
        part = file.with_suffix(f".{self.args.process_index}")
        dataset.select_columns(list(self.reference_columns)).to_parquet(str(part))
        part.replace(file)
        return dataset

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Any]) -> Any:
        """TRL asks for it before training, when its own collator makes the batches, and in evaluations."""
        return super().compute_ref_log_probs(model, apart(inputs)[0])  # type: ignore[misc]


def reference_facts(stage: TrainBase, trainer: Any, start: Artifact) -> dict[str, Any]:
    """Which reference, and how its log-probabilities were had."""
    if stage.reference_mode == "precomputed":
        how = "log-probabilities computed once before training"
    else:
        copied = "ref" in getattr(trainer.model, "peft_config", {})
        how = "frozen copy of the start adapter" if copied else "adapter off"
    return {"reference": {"artifact": start.key, "how": how}}
