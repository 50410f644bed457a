"""One check for each stage kind, in `CHECKS` under its class: what its stages read from outside, and what that must be.

Every finding is made, none stops the next. A data file over READ_LIMIT is looked for but not read: its stage reads it.
"""

from __future__ import annotations

import importlib.util
import os
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from alignment import templates
from alignment.config import (
    AnyStage,
    Evaluate,
    FolderModel,
    GgufModel,
    HubModel,
    ImportData,
    ImportModel,
    Lora,
    Run,
    Sample,
    Stage,
    TinyModel,
    TrainBase,
    row_of,
)
from alignment.config.stages.fields import Place, on_this_machine
from alignment.config.trl_keys import known_keys, lacks_tracker
from alignment.data.adapter_config import CONFIG, read_adapter_config
from alignment.data.fingerprint import gguf_path
from alignment.errors import ConfigError, KubeAlignError
from alignment.planner.rows import preview
from alignment.rewards import BUILT_IN

READ_LIMIT = 32_000_000
"""Bytes of one data file up to which `check` reads every row."""
NAMED = 8
"""Keys that nothing reads, and reasons of bad rows, up to which a note names them; the manifest has all."""
Notes = dict[str, str]
"""Stage name -> a few words on what was seen."""
Wrong = Iterator[tuple[Place, KubeAlignError]]
"""Findings, each with the stage's key that it is about."""


def wrong(run: Run, stage: AnyStage, notes: Notes) -> Wrong:
    """Everything that is known to fail of one stage.

    Args:
        run: as it would be executed.
        notes: gets what was seen of the stage.
    """
    yield from row_of(CHECKS, type(stage))(run, stage, notes)


def _import_model(run: Run, stage: ImportModel, notes: Notes) -> Wrong:
    try:
        MODELS[type(stage.model)](stage.name, stage.model)
    except KubeAlignError as error:
        yield ("model",), error
    if stage.base is not None and (run.stage(stage.base).adapter or run.stage(stage.base).base):
        yield ("model", "base"), ConfigError("an adapter stands on full weights, and this stage makes an adapter",
                                             found=stage.base, expected="a stage that imports a whole model")
    if stage.template is not None and stage.template not in templates.names():
        yield ("template",), ConfigError("no chat template of this name is shipped", found=stage.template,
                                         expected="one of " + ", ".join(templates.names()))


def _check_gguf(stage: str, model: GgufModel) -> None:
    path = gguf_path(stage, model)
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise ConfigError(f"not a GGUF file ({path})", found=magic, expected="the four bytes GGUF at its start")


def _check_folder(stage: str, model: FolderModel) -> None:
    folder = on_this_machine(model.path)
    if not folder.is_dir():
        raise ConfigError("the model folder does not exist", found=str(folder),
                          expected=f"a folder at {folder.absolute()}",
                          hint="relative paths start at the working directory")
    if model.base is not None:
        read_adapter_config(folder, f"stage {stage}, model.path")
        return
    names = {path.name for path in folder.iterdir()}
    if CONFIG in names and "config.json" not in names:
        raise ConfigError("the folder is an adapter, not a model", found=str(folder),
                          expected="`base: STAGE` beside its path: the stage that imports what it was trained on")
    missing = [text for text, there in (
        ("config.json", "config.json" in names),
        ("weights (*.safetensors)", any(name.endswith(".safetensors") for name in names)),
        ("a tokenizer", any(name.startswith("tokenizer.") or name in ("vocab.json", "tekken.json") for name in names)),
    ) if not there]
    if missing:
        raise ConfigError(f"the model folder lacks {', '.join(missing)}",
                          found=", ".join(sorted(names)[:8]) or "nothing",
                          expected="config.json, safetensors weights and a tokenizer")


def _import_data(run: Run, stage: ImportData, notes: Notes) -> Wrong:
    problems, unread = list(_sources(stage)), []
    for index, error in problems:
        if error is None:
            unread.append(stage.data[index].path)
        else:
            yield ("data", index), error
    if any(error is not None for _, error in problems):
        return
    if unread:
        notes[stage.name] = f"not read now: {', '.join(unread)}"
        return
    try:
        seen = preview(run, stage)
    except KubeAlignError as error:
        yield ("data",), error
        return
    reasons = Counter(row.slug for row in seen.bad)
    notes[stage.name] = ", ".join(f"{len(rows)} {split}" for split, rows in seen.splits.items()) + (
        f", {len(seen.bad)} bad rows: {_named(reasons)}" if seen.bad else "") + (
        f"; keys that nothing reads: {_named(seen.unread)}" if seen.unread else "")
    if stage.max_bad is not None and len(seen.bad) > stage.max_bad * seen.read:
        first = "; ".join(f"{row.source} row {row.row}: {row.reason}" for row in seen.bad[:3])
        yield ("data",), ConfigError(
            f"{len(seen.bad)} of {seen.read} rows are bad", found=first,
            expected=f"at most {stage.max_bad:.1%} (max_bad)",
            hint="by reason: " + ", ".join(f"{count} {slug}" for slug, count in reasons.most_common()))
        return
    empty = [split for split, rows in seen.splits.items() if not rows]
    if empty:
        yield ("split",), ConfigError(f"split {', '.join(empty)} has no rows", found=notes[stage.name],
                                      expected="at least one row in every split")


def _named(counts: Counter[str]) -> str:
    """The most frequent names, each with its number of rows."""
    first = ", ".join(f"{name} ({count})" for name, count in counts.most_common(NAMED))
    return first + (f" and {len(counts) - NAMED} more" if len(counts) > NAMED else "")


def _sources(stage: ImportData) -> Iterator[tuple[int, ConfigError | None]]:
    """Sources that cannot be read (with the error), or are not read now (None)."""
    for index, source in enumerate(stage.data):
        if "://" in source.path:
            yield index, None
            continue
        path = on_this_machine(source.path)
        if not path.is_file():
            near = sorted(other.name for other in path.parent.glob("*.json*"))[:5] if path.parent.is_dir() else []
            yield index, ConfigError(
                "the data file does not exist", found=source.path, expected=f"a file at {path.absolute()}",
                hint=f"there are {', '.join(near)}" if near else "relative paths start at the working directory")
        elif not os.access(path, os.R_OK):
            yield index, ConfigError("the data file may not be read by this user", found=source.path)
        elif path.stat().st_size > READ_LIMIT:
            yield index, None


def _train(run: Run, stage: TrainBase, notes: Notes) -> Wrong:
    start = run.stage(stage.model)
    if start.base is not None and stage.adapter is not None:
        yield from _continues(stage.adapter, start)
    if not stage.micro_batch(run.compute.workers):
        yield ("batch_size",), ConfigError(
            "batch_size cannot be shared out over the workers",
            found=f"{stage.batch_size}, {run.compute.workers} workers",
            expected=f"a multiple of {run.compute.workers}")


def _continues(own: Lora, start: AnyStage) -> Wrong:
    """An imported adapter is continued as it is."""
    try:
        made = read_adapter_config(on_this_machine(start.sources()[0].path or ""), f"stage {start.name}, model.path")
    except KubeAlignError:
        return  # said of the stage that imports it
    for key, name in (("r", "r"), ("alpha", "lora_alpha")):
        if getattr(own, key) != made[name]:
            yield ("strategy", key), ConfigError(
                f"continues the adapter of stage {start.name}, which has another {key}", found=getattr(own, key),
                expected=str(made[name]), hint="or strategy full, which merges it")


def _scored(run: Run, stage: Sample | Evaluate, notes: Notes) -> Wrong:
    name = stage.score.function if stage.score is not None else None
    if name is None:
        return
    module, colon, function = name.partition(":")
    if name in BUILT_IN:
        return
    expected = f"one of {', '.join(BUILT_IN)}, or package.module:function"
    if not (colon and module and function):
        yield ("score", "function"), ConfigError("not a reward function", found=name, expected=expected)
        return
    try:  # located, not imported: a user's module may take minutes, or a GPU
        found = importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        found = False
    if not found:
        yield ("score", "function"), ConfigError("the reward function's module is not installed", found=module,
                                                 expected=expected)


def wrong_here(stage: AnyStage) -> Wrong:
    """What is known to fail of a stage that is made on this machine, and not in an image of its own."""
    yield from row_of(HERE, type(stage))(stage)


def _nothing(stage: AnyStage) -> Wrong:
    return iter(())


def _trackers(stage: TrainBase) -> Wrong:
    if known_keys(stage.trl_config) is None:  # a machine that trains nothing
        return
    for index, tool in enumerate(stage.log_to):
        if lacks_tracker(tool):
            yield ("log_to", index), ConfigError(f"{tool} is not installed", found=tool,
                                                 expected="a tracker that is installed here",
                                                 hint=f"install {tool}, or remove it from log_to")


CHECKS: dict[type[Stage], Callable[[Run, Any, Notes], Wrong]] = {
    ImportModel: _import_model, ImportData: _import_data, TrainBase: _train, Sample: _scored, Evaluate: _scored,
}
"""Stage class -> its check."""
HERE: dict[type[Stage], Callable[[Any], Wrong]] = {
    ImportModel: _nothing, ImportData: _nothing, TrainBase: _trackers, Sample: _nothing, Evaluate: _nothing,
}
"""Stage class -> what it needs of the machine that makes it."""
MODELS: dict[type, Callable[[str, Any], None]] = {
    HubModel: lambda stage, model: None, FolderModel: _check_folder, GgufModel: _check_gguf,
    TinyModel: lambda stage, model: None,
}
"""Where a model comes from -> its check, from (stage's name, source); raises what is wrong."""
