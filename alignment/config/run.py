"""`Run`: one alignment run, a list of stages where each reads finished artifacts and writes one.

Holds the checks between stages (references, kinds, splits, adapters). Does not read YAML (load.py does) and
does not know where a run is executed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from alignment.config.aims import Aim, parse_aim
from alignment.config.stages import (
    Dpo,
    Evaluate,
    ImportData,
    ImportModel,
    Lora,
    Name,
    Reward,
    RowsRef,
    Sample,
    Sft,
    Strict,
    stage_tag,
)

TrainStage = Sft | Reward | Dpo
AnyStage = ImportModel | ImportData | Sft | Reward | Dpo | Sample | Evaluate
Stage = Annotated[
    Annotated[ImportModel, Tag("import-model")]
    | Annotated[ImportData, Tag("import-data")]
    | Annotated[Sft, Tag("sft")]
    | Annotated[Reward, Tag("reward")]
    | Annotated[Dpo, Tag("dpo")]
    | Annotated[Sample, Tag("sample")]
    | Annotated[Evaluate, Tag("evaluate")],
    Discriminator(
        stage_tag,
        custom_error_type="unknown_stage",
        custom_error_message="not a stage: kind is one of import, train, sample, evaluate; "
        "method (of a train stage) is one of sft, reward, dpo",
    ),
]

SAMPLE_SPLITS = ("best", "pairs", "samples")
"""What a sample stage writes: best-of-N rows, preference pairs, every scored answer."""


class RefError(ValueError):
    """A finding between stages, with the place in the run file that it is about."""

    def __init__(self, loc: tuple[str | int, ...], problem: str, found: object, expected: str) -> None:
        super().__init__(problem)
        self.loc, self.problem, self.found, self.expected = loc, problem, found, expected


class RefErrors(ValueError):
    def __init__(self, findings: list[RefError]) -> None:
        super().__init__("; ".join(str(finding) for finding in findings))
        self.findings = findings


class Compute(Strict):
    """Where the numbers are computed. Nothing here changes what is learned, so nothing here changes a digest."""

    workers: Annotated[int, Field(ge=0)] = 0
    """0: everything in this process. n: n Ray workers per stage, on the cluster at `address`."""
    address: str | None = None
    """Ray cluster to join (`auto`, ray://...). Default: the one this process runs in, else a local one."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the frozen weights and of generation; auto: bfloat16 where the hardware computes it
    natively (GPU, or a CPU with AVX512-BF16 or AMX), else float32."""
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0.0


class Run(Strict):
    """A whole run. Frozen: what was loaded is what is executed and recorded."""

    name: Name
    description: str | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    store: str = "runs"
    """Artifacts: a folder or any fsspec URL (s3://bucket/prefix)."""
    scale: Annotated[float, Field(gt=0)] = 1.0
    """Multiplies every `take`: one number to ask for a larger or smaller run."""
    params: dict[str, str | int | float] = Field(default_factory=dict)
    """Values for ${name} in this file's strings; set them with --set params.name=value."""
    compute: Compute = Compute()
    stages: tuple[Stage, ...] = Field(min_length=1)
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

    def parsed_aims(self) -> list[Aim]:
        return [parse_aim(text) for text in self.aims]

    @model_validator(mode="after")
    def _references(self) -> Self:
        findings = list(_findings(self))
        if findings:
            raise RefErrors(findings)
        return self


def splits_of(stage: AnyStage) -> tuple[str, ...]:
    """Names of the row sets a stage writes; empty for stages that write a model or a table."""
    if isinstance(stage, ImportData):
        return stage.split.splits
    return SAMPLE_SPLITS if isinstance(stage, Sample) else ()


def micro_batch(stage: TrainStage, workers: int) -> int:
    """Rows per forward pass on each of `workers`: micro_batch_size, or what of it divides a worker's share of
    batch_size; 0 where batch_size cannot be shared out evenly."""
    share, left = divmod(stage.batch_size, max(1, workers))
    return 0 if left else math.gcd(share, stage.micro_batch_size)


def is_policy(stage: AnyStage) -> bool:
    return isinstance(stage, ImportModel | Sft | Dpo)


def model_refs(stage: AnyStage) -> Iterator[tuple[tuple[str | int, ...], str, Literal["policy", "reward"]]]:
    """Every model a stage reads, as (place in the stage, stage name, needed role)."""
    if isinstance(stage, Sft | Reward | Dpo):
        yield ("model",), stage.model, "policy"
    elif isinstance(stage, Sample):
        yield ("model",), stage.model, "policy"
        if stage.previous is not None:
            yield ("previous",), stage.previous, "policy"
    elif isinstance(stage, Evaluate):
        for index, name in enumerate(stage.models):
            yield ("models", index), name, "policy"
    if isinstance(stage, Sample | Evaluate) and stage.score is not None and stage.score.model is not None:
        yield ("score", "model"), stage.score.model, "reward"


def rows_refs(stage: AnyStage) -> Iterator[tuple[tuple[str | int, ...], RowsRef]]:
    """Every row set a stage reads, as (place in the stage, STAGE/SPLIT)."""
    if isinstance(stage, Sft | Reward | Dpo):
        yield from ((("rows", index), ref) for index, ref in enumerate(stage.rows))
        if stage.eval_rows is not None:
            yield ("eval_rows",), stage.eval_rows
    elif isinstance(stage, Sample):
        yield from ((("prompts", index), ref) for index, ref in enumerate(stage.prompts))
    elif isinstance(stage, Evaluate):
        yield ("rows",), stage.rows


def inputs_of(stage: AnyStage) -> tuple[str, ...]:
    """Names of the stages this one reads, each once, in order."""
    names = [name for _, name, _ in model_refs(stage)] + [ref.split("/")[0] for _, ref in rows_refs(stage)]
    return tuple(dict.fromkeys(names))


def adapter_of(stage: AnyStage) -> Lora | None:
    """The LoRA a stage's model carries on top of its base weights, or None for full weights."""
    if isinstance(stage, Sft | Reward | Dpo) and isinstance(stage.strategy, Lora):
        return stage.strategy
    return None


def _findings(run: Run) -> Iterator[RefError]:
    earlier: dict[str, AnyStage] = {}
    names = [stage.name for stage in run.stages]
    for index, stage in enumerate(run.stages):
        here: tuple[str | int, ...] = ("stages", index)
        if stage.name in earlier:
            yield RefError((*here, "name"), "two stages have the same name", stage.name, "a name of its own")
        for place, name, role in model_refs(stage):
            yield from _check_model(run, stage, (*here, *place), name, role, earlier, names)
        for place, ref in rows_refs(stage):
            yield from _check_rows((*here, *place), ref, earlier, names)
        yield from _check_stage(here, stage)
        earlier[stage.name] = stage
    for index, text in enumerate(run.aims):
        try:
            aim = parse_aim(text)
        except ValueError as error:
            yield RefError(("aims", index), "not an aim", text, str(error))
            continue
        for metric in aim.metrics:
            if metric.split(".")[0] not in earlier:
                yield RefError(("aims", index), "an aim names an unknown stage", metric, _choices(earlier))


def _check_model(
    run: Run,
    stage: AnyStage,
    loc: tuple[str | int, ...],
    name: str,
    role: str,
    earlier: dict[str, AnyStage],
    names: list[str],
) -> Iterator[RefError]:
    allowed = [
        s.name for s in earlier.values() if (is_policy(s) if role == "policy" else isinstance(s, Reward))
    ]
    if name not in earlier:
        later = " (it comes later)" if name in names else ""
        yield RefError(loc, f"refers to a stage that does not come before it{later}", name, _choices(allowed))
        return
    if name not in allowed:
        wanted = "a stage that makes a language model" if role == "policy" else "a stage of method reward"
        yield RefError(loc, f"needs {wanted}", name, _choices(allowed))
        return
    if isinstance(stage, Sft | Reward | Dpo) and isinstance(stage.strategy, Lora):
        start = adapter_of(earlier[name])
        if start is not None and (start.r, start.alpha, start.targets) != (
            stage.strategy.r,
            stage.strategy.alpha,
            stage.strategy.targets,
        ):
            yield RefError(
                (*loc[:2], "strategy"),
                f"continues the adapter of stage {name}, so r, alpha and targets must be the same",
                {"r": stage.strategy.r, "alpha": stage.strategy.alpha, "targets": stage.strategy.targets},
                f"r: {start.r}, alpha: {start.alpha}, targets: {start.targets} (or strategy full, which merges it)",
            )


def _check_rows(
    loc: tuple[str | int, ...], ref: str, earlier: dict[str, AnyStage], names: list[str]
) -> Iterator[RefError]:
    name, split = ref.split("/")
    choices = [f"{s.name}/{split_name}" for s in earlier.values() for split_name in splits_of(s)]
    if name not in earlier:
        later = " (it comes later)" if name in names else ""
        yield RefError(loc, f"refers to a stage that does not come before it{later}", ref, _choices(choices))
    elif split not in splits_of(earlier[name]):
        yield RefError(loc, "refers to rows that no stage makes", ref, _choices(choices))


def _check_stage(here: tuple[str | int, ...], stage: AnyStage) -> Iterator[RefError]:
    if isinstance(stage, Sft | Reward | Dpo):
        if stage.batch_size % stage.micro_batch_size:
            yield RefError(
                (*here, "batch_size"), "is no multiple of micro_batch_size", stage.batch_size,
                f"a multiple of {stage.micro_batch_size}",
            )
        if stage.checkpoints.final == "best" and stage.eval_rows is None:
            yield RefError((*here, "checkpoints"), "final: best needs eval_rows", "best", "eval_rows: STAGE/SPLIT")
        if stage.checkpoints.every % stage.log_every:
            yield RefError(
                (*here, "checkpoints", "every"),
                "is no multiple of log_every, so a resumed run would log other averages than an uninterrupted one",
                stage.checkpoints.every, f"a multiple of {stage.log_every}",
            )
        if isinstance(stage, Sft) and stage.packing and stage.too_long == "error":
            yield RefError((*here, "packing"), "packing does not combine with too_long: error", True,
                           "drop or truncate-prompt")
    if isinstance(stage, Evaluate):
        for index, pair in enumerate(stage.compare):
            for name in pair:
                if name not in stage.models:
                    yield RefError((*here, "compare", index), "compares a model that is not evaluated", name,
                                   _choices(stage.models))
        if len(set(stage.models)) != len(stage.models):
            yield RefError((*here, "models"), "names a model twice", list(stage.models), "each model once")
        if stage.answer_pattern is not None:
            try:
                groups = re.compile(stage.answer_pattern, re.DOTALL).groupindex
            except re.error as error:
                yield RefError((*here, "answer_pattern"), f"is no regular expression: {error}",
                               stage.answer_pattern, "a Python regular expression")
            else:
                if "answer" not in groups:
                    yield RefError((*here, "answer_pattern"), "has no group named answer", stage.answer_pattern,
                                   "(?P<answer>...)")


def _choices(names: Any) -> str:
    names = list(names)
    return "one of " + ", ".join(names) if names else "no earlier stage fits"

