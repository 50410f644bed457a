"""The frozen reference of methods that have one: kept where a killed pod cannot lose it, and said in the manifest.

Losses against it are TRL's. Which way it is had (a copy of the adapter, or computed once) is the stage's to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from datasets import Dataset, concatenate_datasets
from torch.utils.data import DataLoader
from trl.models import prepare_deepspeed

from alignment.artifacts import Artifact
from alignment.config import TrainBase
from alignment.training.checkpoints import everywhere
from alignment.training.guards import apart
from alignment.training.sharding import is_shared_out


class KeptReference:
    """Mixin before a TRL trainer: the precomputed reference lies beside the checkpoints."""

    _put_off: dict[str, int] = {}  # noqa: RUF012 - never changed, but replaced
    reference_columns: tuple[str, ...]
    """Columns that TRL's loss reads, in the order in which it computes them."""
    args: Any
    accelerator: Any
    data_collator: Any
    model: Any
    ref_model: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self._put_off:
            self._free_reference()

    def settled(self) -> None:
        """Compute what was put off: DeepSpeed shares the model out for it, so nothing may need it whole after that."""
        super().settled()  # type: ignore[misc]
        for name, size in self._put_off.items():
            key = f"{name.partition('-')[0]}_dataset"
            setattr(self, key, KeptReference._precompute_ref_logps(self, getattr(self, key), name, size))
        self._free_reference()

    def _free_reference(self) -> None:
        """A model that has said all that it is asked: no memory of it is left for training."""
        if self.ref_model is not None and self.args.precompute_ref_log_probs:
            if is_shared_out(self):
                self.ref_model.destroy()
            self.ref_model = None

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        # TRL caches by the data set's fingerprint in a temporary folder that a killed pod loses; the work folder
        # is addressed by the digest of the reference, the data and the config, and survives.
        if is_shared_out(self) and name not in self._put_off:
            self._put_off = {**self._put_off, name: batch_size}
            return dataset
        folder = Path(self.args.output_dir).parent / "reference"
        file = folder / f"{name}.parquet"
        # Computing gathers over all ranks, so they decide together: a machine that came in later has no file.
        if everywhere(file.exists()):
            return concatenate_datasets([dataset, Dataset.from_parquet(str(file))], axis=1)
        made = self._reference(dataset, batch_size)
        folder.mkdir(parents=True, exist_ok=True)  # every rank: they may share no disk
        part = file.with_suffix(f".{self.args.process_index}")
        made.to_parquet(str(part))
        part.replace(file)
        return concatenate_datasets([dataset, made], axis=1)

    def _reference(self, dataset: Any, batch_size: int) -> Dataset:
        """The columns, by all ranks together: TRL's own way ends in a temporary file that only the first rank has.

        Rows of one length go through the model together, the longest first: `batch_size` of them on each rank, of
        shorter ones as many as take no more tokens. The columns have the rows' own order.
        """
        lengths = [[len(ids) for ids in row.values() if isinstance(ids, list)] for row in dataset]
        ranks, rank = self.accelerator.num_processes, self.accelerator.process_index
        batches = by_tokens(lengths, batch_size, ranks)
        back = where_found(batches, ranks)
        loader = DataLoader(dataset, batch_sampler=[rows[rank::ranks] for rows in batches],
                            collate_fn=self.data_collator)
        own = self.ref_model is None and is_shared_out(self)  # an engine for this alone; that of a reference is TRL's
        model = prepare_deepspeed(self.model, self.accelerator) if own else self.ref_model or self.model
        parts = []
        for batch in loader:
            # One value is None for KTO's losses without a KL term.
            values = self.compute_ref_log_probs(model, send_to_device(batch, self.accelerator.device))
            parts.append(self.accelerator.gather([value for value in values if value is not None]))
        if own:
            model.destroy()  # with its hooks, which would be asked beside those of the engine that trains
        columns = zip(self.reference_columns, zip(*parts, strict=True), strict=False)
        return Dataset.from_dict({column: torch.cat(values).cpu()[back].tolist() for column, values in columns})

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Any]) -> Any:
        """TRL asks for it before training, when its own collator makes the batches, and in evaluations."""
        return super().compute_ref_log_probs(model, apart(inputs)[0])  # type: ignore[misc]


def by_tokens(lengths: Sequence[Sequence[int]], count: int, ranks: int = 1) -> list[list[int]]:
    """Batches of all ranks together: places of rows, those of nearly one length together, the longest first.

    Args:
        lengths: of each row's sequences.
        count: rows of the first batch on each rank; no later one has more tokens, padding included.
        ranks: by which every batch can be divided; in the last one a row stands in several times where need be.
    """
    order = sorted(range(len(lengths)), key=lambda row: (-sum(lengths[row]), row))

    def tokens(rows: list[int]) -> int:
        """Of one rank, at most: its rows, each of its columns as wide as the widest."""
        widest: list[int] = [max(column) for column in zip(*(lengths[row] for row in rows), strict=True)]
        return -(-len(rows) // ranks) * sum(widest)

    most, batches = tokens(order[:count * ranks]), [order[:ranks]]
    for start in range(ranks, len(order), ranks):
        rows = batches[-1] + order[start:start + ranks]
        if tokens(rows) <= most:
            batches[-1] = rows
        else:
            batches.append(order[start:start + ranks])
    batches[-1] = batches[-1] + batches[-1][-1:] * (-len(batches[-1]) % ranks)
    return batches


def where_found(batches: Sequence[Sequence[int]], ranks: int) -> list[int]:
    """Where each row's value stands once all ranks' are gathered, rank by rank in each batch."""
    came = [row for rows in batches for rank in range(ranks) for row in rows[rank::ranks]]
    return [place for _, place in sorted({row: place for place, row in enumerate(came)}.items())]


def reference_facts(stage: TrainBase, trainer: Any, reference: Artifact) -> dict[str, Any]:
    """Which reference, and how its log-probabilities were had.

    Args:
        reference: artifact of the start model, or of the stage's reference_model.
    """
    if stage.reference_mode == "precomputed":
        how = "log-probabilities computed once before training"
    else:
        copied = "ref" in getattr(trainer.model, "peft_config", {})
        how = "frozen copy of the start adapter" if copied else "adapter off"
    if stage.frozen is None and stage.adapter is not None and stage.adapter.quantised is not None:
        how += f", over {stage.adapter.quantised}"
    return {"reference": {"artifact": reference.key, "how": how}}
