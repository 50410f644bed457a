"""Evaluation of judges: reward models, functions and language models held to pairs that others have judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from alignment.config.stages.base import Finding, ModelRef, Outside, RowsPlace, Stage, plural
from alignment.config.stages.fields import Dtype, Name, Place, Positive, RowsRef
from alignment.config.stages.sampling import Sampling
from alignment.config.stages.score import JudgedScorer


class EvaluatePairs(Stage):
    """Judges held to preference pairs that none of them has learned from: how often each is right, and how far they
    agree with each other and with people."""

    tag: ClassVar[str] = "evaluate-pairs"
    makes = "table"
    known_by = "judges"
    body = "alignment.distributed.evaluate_pairs:evaluate_pairs_stage"
    script = "evaluate"
    says_names = True  # a table of judges, by the names that they have here
    bfloat16_on = frozenset({"gpu", "cpu"})

    kind: Literal["evaluate"] = "evaluate"
    """`evaluate` with `judges`: what scores answers is measured on pairs, and no model answers."""
    judges: dict[Name, JudgedScorer] = Field(min_length=1)
    """Name -> what judges, as `score` of other stages: {model: STAGE}, {function: ...}, {judge: {model: STAGE}}, or a
    sum of them. The name stands in the table and in metrics."""
    rows: RowsRef
    """STAGE/SPLIT with pairs: preferences, and ties where the import keeps them."""
    take: Positive | None = None
    """At most so many pairs (times the run's scale), drawn with the run's seed; the same for every judge."""
    overlap: Literal["error", "drop"] = "error"
    """A pair that a stage has seen which made one of the models, by id or by text: an error, or dropped and counted."""
    bootstrap: Annotated[int, Field(ge=100)] = 2000
    """Resamples of the pairs for each 95% interval."""
    batch_size: Positive = 32
    """Pairs judged at once: as many as memory allows."""
    dtype: Dtype | None = None
    """Arithmetic of all models. Left out: compute.dtype, whose auto is bfloat16 where the hardware has it, else float32
    (and float32 on a cluster's CPUs); what is settled is part of what the stage is."""

    @classmethod
    def is_meant(cls, get: Callable[[str], Any]) -> bool:
        return super().is_meant(get) and get("judges") is not None

    def model_refs(self) -> Iterator[ModelRef]:
        for name, judge in self.judges.items():
            for ref in judge.model_refs():
                drawn = tuple((_below(name, place), sampling) for place, sampling in ref.drawn)
                yield ref._replace(place=_below(name, ref.place), drawn=drawn)

    def row_refs(self) -> Iterator[RowsPlace]:
        yield RowsPlace(("rows",), self.rows)

    def held_out(self) -> Iterator[RowsPlace]:
        yield from self.row_refs()

    def samplings(self) -> Iterator[tuple[Place, Sampling]]:
        """None of its own: each judge says how it is drawn."""
        return iter(())

    @property
    def max_prompt_tokens(self) -> None:
        """A judge's own context length decides; what is longer is not read, and counted."""
        return

    def sources(self) -> tuple[Outside, ...]:
        return tuple(source._replace(place=_below(name, source.place))
                     for name, judge in self.judges.items() for source in judge.sources())

    def relocated(self, paths: Mapping[str, str]) -> EvaluatePairs:
        return self.model_copy(update={"judges": {name: judge.relocated(paths) for name, judge in self.judges.items()}})

    def learned(self, scaled: Callable[[int | None], int | None]) -> dict[str, Any]:
        config = super().learned(scaled)
        for entry in config["judges"].values():
            JudgedScorer.without_paths({"score": entry})
        return config

    def findings(self) -> Iterator[Finding]:
        for name, judge in self.judges.items():
            for finding in judge.findings():
                yield finding._replace(place=_below(name, finding.place))

    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Every two of its judges, in their order."""
        names = list(self.judges)
        return tuple((one, other) for at, one in enumerate(names) for other in names[at + 1:])

    def scalar(self, name: str) -> bool:
        """Whether a judge is a reward model alone, whose margin says how sure it is."""
        judge = self.judges[name]
        return judge.model is not None and judge.function is None and judge.judge is None

    def compares(self, name: str) -> bool:
        """Whether a judge is shown both answers at once, in both orders."""
        judge = self.judges[name].judge
        return judge is not None and judge.mode == "compare"

    def title(self) -> str:
        return f"evaluate · {plural(len(self.judges), 'judge')} on pairs"


def _below(name: str, place: Place) -> Place:
    """Where a part of a judge stands, from where it stands in a stage's `score`."""
    return ("judges", name, *place[1:])
