"""Groups of rounds that end early: which further rounds are not needed, since a round's gate is not met.

A gate is a bound, as an aim is, on what a round's own stages measure. Pure: metrics of finished stages -> which stages
are needed. Reads no store; who executes a run asks with what the store has, so that nothing rests on memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from alignment.config.aims import Aim, Verdict, judge

Metrics = Mapping[str, Mapping[str, float]]
"""Finished stage -> the metrics of its manifest. A stage that is not there is not finished."""
CHOSEN = "round"
"""Metric of the stage that stands for a group's result: the number of the round whose model it is, 0 for the start."""


class Measured(Protocol):
    """What has the metrics of a finished stage: an artifact, or its manifest."""

    @property
    def metrics(self) -> Mapping[str, float]: ...


@dataclass(frozen=True)
class Stops:
    """A group whose rounds end where a gate is not met.

    Attributes:
        rounds: names of each round's stages, in order.
        bounds: what each round is held to.
        result: the stage that stands for the group's model after it.
    """

    group: str
    rounds: tuple[tuple[str, ...], ...]
    bounds: tuple[Aim, ...]
    result: str

    @property
    def reads(self) -> tuple[str, ...]:
        """Stages whose metrics decide."""
        return tuple(dict.fromkeys([self.result, *(name for aim in self.bounds for name in stages_of(aim))]))


class Standing(NamedTuple):
    """What gates say of a run's stages now.

    Attributes:
        unneeded: stage of a round that is not made, and why.
        waiting: stage that cannot be made yet, since a gate before it is not judged, and why.
        broken: group -> why a gate of it cannot be judged, although its stages are finished.
    """

    unneeded: dict[str, str]
    waiting: dict[str, str]
    broken: dict[str, str]


def stages_of(aim: Aim) -> tuple[str, ...]:
    """Names of the stages whose metrics a bound compares."""
    return tuple(dict.fromkeys(metric.partition(".")[0] for metric in aim.metrics))


def passed(bounds: Sequence[Aim], metrics: Metrics) -> tuple[int, list[Verdict]]:
    """How many bounds are met before the first that is not, and the verdicts up to that one.

    The last verdict has `met` None where it cannot be judged: a stage is not finished, or has no such number.
    """
    flat = {f"{stage}.{name}": value for stage, found in metrics.items() for name, value in found.items()}
    verdicts: list[Verdict] = []
    for bound in bounds:
        verdicts.append(judge(bound, flat))
        if not verdicts[-1].met:
            return len(verdicts) - 1, verdicts
    return len(verdicts), verdicts


def standing_of(groups: Iterable[Stops], made: Mapping[str, Measured | None]) -> Standing:
    """`standing`, by what was made: stage -> its artifact or manifest, None where it is not finished."""
    return standing(groups, {name: one.metrics for name, one in made.items() if one is not None})


def standing(groups: Iterable[Stops], metrics: Metrics) -> Standing:
    """See `Standing`. A result that is finished decides: what was chosen stays, and no round is made after it."""
    unneeded: dict[str, str] = {}
    waiting: dict[str, str] = {}
    broken: dict[str, str] = {}
    for group in groups:
        number, verdicts = passed(group.bounds, metrics)
        chosen = metrics.get(group.result, {}).get(CHOSEN)
        if chosen is None and number < len(group.bounds) and verdicts[-1].met is None:
            found = waiting
            missing = [name for name in stages_of(verdicts[-1].aim) if name not in metrics]
            if missing:
                why = f"waits for {', '.join(missing)}: the gate of round {number + 1} of {group.group}"
            else:
                why = broken[group.group] = unjudged(verdicts[-1], f"round {number + 1} of {group.group}")
            found |= dict.fromkeys((name for one in group.rounds[number + 1:] for name in one), why)
            continue
        same = chosen in (None, number)  # else an evaluation was made anew, and came out otherwise
        number = number if chosen is None else int(chosen)
        why = f"not needed: round {number + 1} of {group.group} did not meet its gate"
        if same and number < len(group.bounds) and verdicts[-1].met is False:
            why += f", {verdicts[-1].aim} ({told(verdicts[-1])})"
        unneeded |= dict.fromkeys((name for one in group.rounds[number + 1:] for name in one), why)
    return Standing(unneeded, waiting, broken)


def told(verdict: Verdict) -> str:
    """What was found: -0.0125; of two metrics 0.31 against 0.32."""
    right = f" against {verdict.right:.4g}" if isinstance(verdict.aim.right, str) and verdict.right is not None else ""
    return f"{verdict.left:.4g}{right}" if verdict.left is not None else ""


def unjudged(verdict: Verdict, of: str) -> str:
    """Why a gate cannot be judged, in words."""
    absent = [name for name, value in zip(verdict.aim.metrics, (verdict.left, verdict.right), strict=False)
              if value is None or value != value]
    return f"the gate of {of} asks for {verdict.aim}, and there is no finite {', '.join(absent)} among the metrics"
