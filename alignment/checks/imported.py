"""What import stages read: a model's files, data files, another run's artifact; looked at where they are here."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from alignment import templates
from alignment.checks.finished import made
from alignment.checks.layers import remember
from alignment.checks.lengths import remember_template
from alignment.checks.looked import look
from alignment.checks.seen import Sight, Wrong, counted
from alignment.checks.store import nowhere
from alignment.checks.tokens import remember_vocabulary
from alignment.checks.told import remember_text
from alignment.config import (
    FolderModel,
    FromArtifact,
    GgufModel,
    HubModel,
    ImportData,
    ImportModel,
    ImportReader,
    ImportReward,
    Run,
    Source,
    TinyModel,
)
from alignment.config.run import adapter_of
from alignment.config.stages.fields import on_this_machine
from alignment.config.stages.hygiene import REFUSALS
from alignment.data.adapter_config import read_adapter_config
from alignment.data.artifact_source import artifact_meant
from alignment.data.fingerprint import folder_path, gguf_path
from alignment.data.hygiene import lacks
from alignment.data.import_artifact import fits
from alignment.data.import_data import check_template
from alignment.data.lineage import rows_learned
from alignment.data.model_files import unclear
from alignment.errors import ConfigError, KubeAlignError
from alignment.planner.rows import preview


def importable_model(run: Run, stage: ImportModel, sight: Sight) -> Wrong:
    try:
        MODELS[type(stage.model)](stage.name, stage.model)
    except KubeAlignError as error:
        yield ("model",), error
    if stage.base is not None and (adapter_of({other.name: other for other in run.stages}, stage.base)
                                   or run.stage(stage.base).base):
        yield ("model", "base"), ConfigError("an adapter stands on full weights, and this stage makes an adapter",
                                             found=stage.base, expected="a stage that imports a whole model")
    yield from _shipped(stage.template)
    remember(sight, stage)
    remember_template(sight, stage)
    remember_text(sight, stage)
    remember_vocabulary(sight, stage)


def importable_artifact(run: Run, stage: FromArtifact, sight: Sight) -> Wrong:
    """Looked at where its store is a folder that is here; a store elsewhere is the stage's own to ask."""
    ref, place = stage.reference.within(run.store), (*stage.place, "artifact")
    url = str(ref.named.store)
    if "://" in url or (url.startswith("/") and not Path(url).is_dir()):
        return
    try:
        artifact = artifact_meant(f"stage {stage.name}", ref)
        fits(f"stage {stage.name}", stage, artifact)
        rows_learned(artifact)
    except KubeAlignError as error:
        yield place, ConfigError(error.problem, found=error.found, expected=error.expected, hint=error.hint)
        return
    made(stage, artifact, sight)


def importable_data(run: Run, stage: ImportData, sight: Sight) -> Wrong:
    problems, unread = list(_sources(stage, sight.limit)), []
    for index, error in problems:
        if error is None:
            unread.append(stage.data[index].place)
        else:
            yield ("data", index), error
    if any(error is not None for _, error in problems):
        return
    if unread:
        yield from look(run, stage, sight, unread)
        return
    try:
        check_template(stage)
    except KubeAlignError as error:
        yield ("passage_prompt",), ConfigError(error.problem, found=error.found, expected=error.expected,
                                               hint=error.hint)
    try:
        seen = preview(run, stage)
    except KubeAlignError as error:
        yield ("data",), error
        return
    seen_rows = ", ".join(f"{len(rows)} {split}" for split, rows in seen.splits.items())
    sight.note(stage.name, seen_rows)
    if seen.bad:
        sight.note(stage.name, f"{len(seen.bad)} bad rows: {counted(row.slug for row in seen.bad)}")
    if seen.unread:
        sight.note(stage.name, f"keys that nothing reads: {counted(seen.unread.elements())}")
    if stage.hygiene is not None and (lacking := lacks(stage.hygiene)):
        sight.note(stage.name, f"hygiene is left to the stage, as {', '.join(lacking)} is not installed here")
    bad = [row for row in seen.bad if row.slug not in REFUSALS]
    if stage.max_bad is not None and len(bad) > stage.max_bad * seen.read:
        first = "; ".join(f"{row.source} row {row.row}: {row.reason}" for row in bad[:3])
        yield ("data",), ConfigError(
            f"{len(bad)} of {seen.read} rows are bad", found=first,
            expected=f"at most {stage.max_bad:.1%} (max_bad)",
            hint=f"by reason: {counted(row.slug for row in bad)}; mend them, correct `format`, or raise max_bad "
                 f"(--set {stage.name}.max_bad=null: any number, kept in bad.jsonl)")
        return
    empty = [split for split, rows in seen.splits.items() if not rows]
    if empty:
        yield ("split",), ConfigError(f"split {', '.join(empty)} has no rows", found=seen_rows,
                                      expected="at least one row in every split")
        return
    sight.rows |= {f"{stage.name}/{split}": rows for split, rows in seen.splits.items()}


def importable_reader(run: Run, stage: ImportReader, sight: Sight) -> Wrong:
    try:
        MODELS[type(stage.model)](stage.name, stage.model)
    except KubeAlignError as error:
        yield ("model",), error


def importable_reward(run: Run, stage: ImportReward, sight: Sight) -> Wrong:
    yield from importable_reader(run, stage, sight)
    yield from _shipped(stage.template)


def _shipped(template: str | None) -> Wrong:
    if template is not None and template not in templates.names():
        yield ("template",), ConfigError("no chat template of this name is shipped", found=template,
                                         expected="one of " + ", ".join(templates.names()))


def _check_gguf(stage: str, model: GgufModel) -> None:
    path = gguf_path(stage, model)
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise ConfigError(f"not a GGUF file ({path})", found=magic, expected="the four bytes GGUF at its start")


def _check_folder(stage: str, model: FolderModel) -> None:
    folder = folder_path(stage, model)
    if not folder.is_dir():
        raise ConfigError("the model folder does not exist", found=str(folder),
                          expected=f"a folder at {folder.absolute()}",
                          hint="relative paths start at the working directory")
    if model.base is not None:
        read_adapter_config(folder, f"stage {stage}, model.path")
        return
    if (other := unclear(folder, adapter=False)) is not None:
        raise ConfigError(other.problem, found=str(folder), expected=other.expected, hint=other.hint)
    names = {path.name for path in folder.iterdir()}
    missing = [text for text, there in (
        ("config.json", "config.json" in names),
        ("weights (*.safetensors)", any(name.endswith(".safetensors") for name in names)),
        ("a tokenizer", any(name.startswith("tokenizer.") or name in ("vocab.json", "tekken.json") for name in names)),
    ) if not there]
    if missing:
        raise ConfigError(f"the model folder lacks {', '.join(missing)}",
                          found=", ".join(sorted(names)[:8]) or "nothing",
                          expected="config.json, safetensors weights and a tokenizer")


def _sources(stage: ImportData, limit: int) -> Iterator[tuple[int, ConfigError | None]]:
    """Sources that cannot be read (with the error), or are not read now (None)."""
    for index, source in enumerate(stage.data):
        if source.path is None:
            yield index, _hub_library(source)
            continue
        if "://" in source.path:
            yield index, next(nowhere(source.path), None)
            continue
        path = on_this_machine(source.path)
        if not path.is_file():
            near = sorted(other.name for other in path.parent.glob("*.json*"))[:5] if path.parent.is_dir() else []
            yield index, ConfigError(
                "the data file does not exist", found=source.path, expected=f"a file at {path.absolute()}",
                hint=f"there are {', '.join(near)}" if near else "relative paths start at the working directory")
        elif not os.access(path, os.R_OK):
            yield index, ConfigError("the data file may not be read by this user", found=source.path)
        elif path.stat().st_size > limit:
            yield index, None


def _hub_library(source: Source) -> ConfigError | None:
    """A data set of the hub is not asked for before its stage is made: that may fetch all of it."""
    if importlib.util.find_spec("datasets") is not None:
        return None
    return ConfigError("the datasets package, which reads the hub's data sets, is not installed", found=source.place,
                       expected="kubealign[train]", hint="pip install 'kubealign[train]'")


MODELS: dict[type, Callable[[str, Any], None]] = {
    HubModel: lambda stage, model: None, FolderModel: _check_folder, GgufModel: _check_gguf,
    TinyModel: lambda stage, model: None,
}
"""Where a model comes from -> its check, from (stage's name, source); raises what is wrong."""
