"""`Run`: one alignment run, a list of stages where each reads finished artifacts and writes one.

Holds the checks between stages (references, roles, splits, adapters); what is wrong within one is the stage's own to
say. Does not read YAML (load.py does) and does not know where a run is executed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import takewhile
from typing import Annotated, Self

from pydantic import Field, model_validator

from alignment.config.aims import Aim, parse_aim
from alignment.config.compute import Compute
from alignment.config.serve import Serve
from alignment.config.serve import findings as serve_findings
from alignment.config.stages import AnyStage
from alignment.config.stages.base import Finding, Findings, ModelRef, Role, RowsPlace, serving_as
from alignment.config.stages.fields import Name, StoreUrl, Strict
from alignment.config.stages.strategies import Adapter
from alignment.config.stops import Stops, stages_of
from alignment.errors import Written


class Rounds(Strict):
    """What a group of a run file was expanded to."""

    name: Name
    """The group's name."""
    rounds: tuple[tuple[Name, ...], ...] = Field(min_length=1)
    """The stages of each round, by name, in order."""
    results: tuple[Name, ...] | None = None
    """Where the group has a gate: the stages that stand for its models after it. Rounds after one that does not meet
    its gate are not made."""


class Run(Strict):
    """A whole run. Frozen: what was loaded is what is executed and recorded."""

    name: Name
    """Names the run in the store (STORE/runs/NAME) and on a cluster. It decides nothing that is made: two runs with
    equal stages share their artifacts."""
    description: str | None = None
    """One line for people; it is kept with the run and changes nothing."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of every draw: rows taken, splits, fresh weights, batches, answers, bootstraps. Another seed makes anew what
    draws, and what comes after; an import that draws nothing is shared."""
    store: StoreUrl = "runs"
    """Artifacts: a folder or any fsspec URL (s3://bucket/prefix)."""
    scale: Annotated[float, Field(gt=0)] = 1.0
    """Multiplies every `take`: one number to ask for a larger or smaller run."""
    params: dict[str, str | int | float] = Field(default_factory=dict)
    """Values for ${name} in this file; set them with --set params.name=value. Alone in a value, ${name} is what it is
    here (a number stays one); within text it is the text that stands here."""
    compute: Compute = Compute()
    """Where the numbers are computed: processes, device, arithmetic. A profile's own `compute` replaces it."""
    stages: tuple[AnyStage, ...] = Field(min_length=1)
    """The steps, in order; each names the earlier ones that it reads. `kind` (and `method` of a train stage) says
    what a stage is."""
    groups: tuple[Rounds, ...] | None = None
    """Written when a group of `stages` is expanded, for the report: which of them are whose rounds. It changes nothing
    that is made."""
    serve: Serve | None = None
    """Which of its models are served once it has succeeded: by the operator on a cluster, by `kubealign serve
    RUN.yaml` on a machine. It changes nothing that is made."""
    aims: tuple[str, ...] = ()
    """What the run is meant to reach: `METRIC OP NUMBER` or `METRIC OP METRIC`, METRIC being STAGE.NAME."""

    def stage(self, name: str) -> AnyStage:
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise KeyError(name)

    def scaled(self, take: int | None) -> int | None:
        """`take` times the run's scale, at least 1; None stays None (all rows)."""
        return None if take is None else max(1, round(take * self.scale))

    def title_of(self, stage: AnyStage) -> str:
        """What a stage is, in a few words, its `take` as the run's scale has it."""
        take = getattr(stage, "take", None)
        return (stage if take is None else stage.model_copy(update={"take": self.scaled(take)})).title()

    def stops(self) -> list[Stops]:
        """The groups whose rounds end where a gate is not met."""
        return [Stops(group.name, group.rounds, self.stage(group.results[0]).held_to(), group.results[0])
                for group in self.groups or () if group.results]

    def parsed_aims(self) -> list[Aim]:
        return [parse_aim(text) for text in self.aims]

    @model_validator(mode="after")
    def _references(self) -> Self:
        findings = list(_findings(self))
        if findings:
            raise Findings(findings)
        return self


def _findings(run: Run) -> Iterator[Finding]:
    earlier: dict[str, AnyStage] = {}
    names = [stage.name for stage in run.stages]
    for index, stage in enumerate(run.stages):
        for finding in _stage_findings(stage, earlier, names):
            yield finding.below("stages", index)
        earlier[stage.name] = stage
    for index, group in enumerate(run.groups or ()):
        named = [name for one in group.rounds for name in one] + list(group.results or ())
        for name in (name for name in named if name not in earlier):
            yield Finding(("groups", index, "rounds"), "names an unknown stage", name, _choices(earlier))
        for name in (name for name in group.results or () if name in earlier):
            if len(earlier[name].held_to()) != len(group.rounds):
                yield Finding(("groups", index, "results"), "does not stand for these rounds", name,
                              f"a stage with a bound for each of {len(group.rounds)} rounds")
    yield from serve_findings(run)
    yield from _not_sure(run)
    for index, text in enumerate(run.aims):
        try:
            aim = parse_aim(text)
        except ValueError as error:
            yield Finding(("aims", index), "not an aim", text, str(error))
            continue
        for metric in aim.metrics:
            if metric.split(".")[0] not in earlier:
                yield Finding(("aims", index), "an aim names an unknown stage", metric, _choices(earlier))


def _not_sure(run: Run) -> Iterator[Finding]:
    """Stages and aims that ask for a round which is made only while gates are met."""
    for group in run.groups or ():
        later = {name for one in group.rounds[1:] for name in one} if group.results else set()
        own = {name for one in group.rounds for name in one} | set(group.results or ())
        expected = f"{', '.join(group.results or ())}, or a stage of round 1"
        problem = f"may never be made, since the rounds of {group.name} end where its gate is not met"
        for index, stage in enumerate(run.stages):
            refs = [*((ref.place, ref.stage, ref.stage) for ref in stage.model_refs()),
                    *((rows.place, rows.ref, rows.stage) for rows in stage.row_refs())]
            for place, found, name in refs if stage.name not in own else ():
                if name in later:
                    yield Finding(("stages", index, *place), problem, found, expected)
        for index, text in enumerate(run.aims):
            try:
                names = stages_of(parse_aim(text))
            except ValueError:
                continue
            if late := [name for name in names if name in later]:
                yield Finding(("aims", index), f"{late[0]} {problem}", text, expected)


def adapter_of(stages: Mapping[str, AnyStage], name: str) -> Adapter | None:
    """The adapter that a stage's model carries; of one that stands for others, that of the last that has one."""
    others = (adapter_of(stages, other) for other in reversed(stages[name].stands_for) if other in stages)
    return next((found for found in others if found is not None), stages[name].adapter)


def _stage_findings(stage: AnyStage, earlier: Mapping[str, AnyStage], names: list[str]) -> Iterator[Finding]:
    if stage.name in earlier:
        yield Finding(("name",), "two stages have the same name", stage.name, "a name of its own")
    for model in stage.model_refs():
        yield from _check_model(stage, model, earlier, names)
    read: set[str] = set()
    for rows in stage.row_refs():
        yield from _check_rows(rows, earlier, names)
        if rows.ref in read:
            yield Finding(rows.place, "names rows that the stage reads already", rows.ref, "each row set once")
        read.add(rows.ref)
    for place, name in stage.quotes():
        if name not in earlier:
            yield Finding(place, _not_before(name, names), name,
                          _choices(other.name for other in earlier.values() if other.makes == "table"))
        elif earlier[name].makes != "table":
            yield Finding(place, "needs a stage that evaluates", name,
                          _choices(other.name for other in earlier.values() if other.makes == "table"))
    for index, gate in enumerate(stage.held_to()):
        for name in (name for name in stages_of(gate) if name not in earlier):
            yield Finding(("bounds", index), _not_before(name, names), name, _choices(earlier))
    yield from _check_held_out(stage, earlier)
    yield from stage.findings()


def _check_model(
    stage: AnyStage, ref: ModelRef, earlier: Mapping[str, AnyStage], names: list[str]
) -> Iterator[Finding]:
    roles = serving_as(ref.role)
    allowed = [other.name for other in earlier.values()
               if other.makes in roles or (ref.asked and other.endpoint is not None)]
    if ref.stage not in earlier:
        yield Finding(ref.place, _not_before(ref.stage, names), ref.stage, _choices(allowed))
        return
    if ref.stage not in allowed and earlier[ref.stage].endpoint is not None:
        yield Finding(ref.place, "is an endpoint, which has no weights here: sample, evaluate and generate may "
                                 "ask it, and nothing else", ref.stage, _choices(allowed))
        return
    if ref.stage not in allowed:
        yield Finding(ref.place, f"needs {_WANTED[ref.role]}", ref.stage, _choices(allowed))
        return
    start, own = adapter_of(earlier, ref.stage), stage.adapter
    if ref.place == ("model",) and start is not None and own is not None and start.shape != own.shape:
        other = {key: value for key, value in start.shape.items() if own.shape[key] != value}
        yield Finding(
            ("strategy",), f"continues the adapter of stage {ref.stage}, so {', '.join(start.shape)} must be the same",
            _as_written({key: own.shape[key] for key in other}),
            f"{_as_written(other)} (or strategy full, which merges it)",
        )


_WANTED: Mapping[Role, str] = {
    "policy": "a stage that makes a language model",
    "reward": "a stage of method reward, or an import with role: reward",
    "embedder": "an import with role: embedder, or a stage that makes a language model",
}
"""What a model has to be -> which stages make it, in words."""


def _as_written(keys: Mapping[str, object]) -> Written:
    """Keys and values as a run file has them; JSON is YAML."""
    text = ", ".join(f"{key}: {json.dumps(value)}" for key, value in keys.items())
    return Written(text, text)


def _check_rows(ref: RowsPlace, earlier: Mapping[str, AnyStage], names: list[str]) -> Iterator[Finding]:
    choices = [f"{other.name}/{split}" for other in earlier.values() for split in other.splits()]
    if ref.stage not in earlier:
        yield Finding(ref.place, _not_before(ref.stage, names), ref.ref, _choices(choices))
    elif ref.split not in earlier[ref.stage].splits():
        yield Finding(ref.place, "refers to rows that no stage makes", ref.ref, _choices(choices))


def _check_held_out(stage: AnyStage, earlier: Mapping[str, AnyStage]) -> Iterator[Finding]:
    seen = _read_before(stage, earlier)
    for rows in stage.held_out():
        read = _read_of(rows.ref, seen, earlier)
        if read is not None:
            made = "are" if read == rows.ref else f"are made from {read}, which is"
            free = [ref for other in earlier.values() for split in other.splits()
                    if _read_of(ref := f"{other.name}/{split}", seen, earlier) is None]
            yield Finding(rows.place, f"these rows {made} read by stage {seen[read]}, so they are not held out",
                          rows.ref, "rows that no stage before reads: " + _choices(free))


def read_upstream(run: Run, stage: AnyStage) -> dict[str, str]:
    """Row sets that were read, in any way, to make the models that a stage reads -> the first stage that does."""
    return _read_before(stage, {other.name: other for other in run.stages})


def _read_before(stage: AnyStage, stages: Mapping[str, AnyStage]) -> dict[str, str]:
    found: dict[str, str] = {}
    waiting, visited = [ref.stage for ref in stage.model_refs()], {stage.name}
    while waiting:
        name = waiting.pop(0)
        if name in visited or name not in stages:
            continue
        visited.add(name)
        apart = {rows.place for rows in stages[name].kept_apart()}
        for rows in (rows for rows in stages[name].row_refs() if rows.place not in apart):
            found.setdefault(rows.ref, name)
        quoted = {other for _, other in stages[name].quotes()}
        waiting += [other for other in stages[name].inputs() if other not in quoted]
    return found


def _read_of(ref: str, seen: Mapping[str, str], stages: Mapping[str, AnyStage]) -> str | None:
    """The row set that was read, if that is this one, or if all were that its stage makes it from."""
    if ref in seen:
        return ref
    name = ref.partition("/")[0]
    before = dict(takewhile(lambda item: item[0] != name, stages.items()))  # a wrong file may refer in a circle
    apart = [rows.place for rows in stages[name].kept_apart()] if name in stages else []
    read = [_read_of(rows.ref, seen, before) for rows in stages[name].row_refs()
            if rows.place not in apart] if name in stages else []
    return None if None in read else next(iter(read), None)


def _not_before(name: str, names: list[str]) -> str:
    return "refers to a stage that does not come before it" + (" (it comes later)" if name in names else "")


def _choices(names: Iterable[str]) -> str:
    names = list(names)
    return "one of " + ", ".join(names) if names else "no earlier stage fits"
