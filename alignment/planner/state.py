"""What is planned of a stage, and what a walk over the run's stages knows so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from alignment.artifacts import Artifact
from alignment.config import AnyStage, Compute, Run
from alignment.config.cards import Cards
from alignment.config.hardware import device_here
from alignment.planner import rows
from alignment.planner.estimate import Memory, Rates
from alignment.planner.need import Device
from alignment.planner.probed import Probed
from alignment.planner.rows import RowSet
from alignment.planner.sharing import Beside
from alignment.planner.sizes import ModelSize

NO_CARDS = Cards("none", None, 0)


@dataclass(frozen=True)
class StagePlan:
    """What a stage needs; None where it cannot be known yet (a hub model that was not imported).

    Attributes:
        rows: rows read (all, in one pass), or written by an import; `rows_known` says whether that is exact.
        tokens: tokens computed: over all epochs of a training, all models of an evaluation; in generation with
            answers of full length. `counted`: by the tokenizer.
        needs_model: False where the stage computes with none, so that its `size` never comes.
        memory: of one worker at its highest moment; `beside` what it takes elsewhere.
        rows_about: `rows` is estimated from those that were looked at; `looked`: how many, of how many, of rows that it
            makes, where not at all.
        micro_batch, length: rows of one forward pass of a training, as it will choose them; tokens of the longest.
        seconds: estimated by the rates that were given; measured where the stage is finished.
        like: of a training that shares nothing out, `likeness`; `probed`: the probe that `memory` starts from.
    """

    name: str
    what: str
    size: ModelSize | None = None
    rows: float | None = None
    tokens: float | None = None
    rows_known: bool = True
    counted: bool = False
    rows_about: bool = False
    looked: tuple[float, float] | None = None
    memory: Memory | None = None
    beside: Beside | None = None
    micro_batch: int | None = None
    length: int | None = None
    seconds: float | None = None
    artifact: Artifact | None = None
    needs_model: bool = True
    like: str | None = None
    probed: Probed | None = None


@dataclass
class State:
    """What a walk over the stages of a run knows.

    Attributes:
        artifacts: of finished stages, by name; `sizes`: of models, by the stage that makes them; `sets`: rows, by
            STAGE/SPLIT.
        rates: of one worker. `cards`: GPUs to plan for, where not this machine.
        lengths: how long texts are in tokens, where a tokenizer is at hand.
        probes: from which the memory of trainings may start.
    """

    run: Run
    artifacts: Mapping[str, Artifact | None]
    rates: Rates
    sizes: dict[str, ModelSize | None] = field(default_factory=dict)
    sets: dict[str, RowSet] = field(default_factory=dict)
    lengths: rows.Lengths | None = None
    cards: Cards | None = None
    probes: Sequence[Probed] = ()

    def device(self, stage: AnyStage) -> Device:
        """What a worker of a stage computes on."""
        workers = max(1, self.compute.workers) if stage.on_workers else 1
        if self.cards is not None:
            return Device(self.cards.card is not None, workers, self.compute.sharding, self.compute.deepspeed)
        return Device(device_here(self.compute) == "cuda", workers, self.compute.sharding, self.compute.deepspeed)

    @property
    def compute(self) -> Compute:
        return self.run.compute
