"""What can be known to fail before anything is started, beyond the run file itself: files, models, names, the store.

Touches no network and loads no model. Every finding is made, none stops the next. A data file over READ_LIMIT is
looked for but not read: its stage reads it.
"""

from __future__ import annotations

import importlib.util
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from alignment.artifacts import Store
from alignment.config import (
    AnyStage,
    Evaluate,
    ImportData,
    ImportModel,
    Profile,
    Run,
    Sample,
    TrainStage,
    micro_batch,
    place_of,
)
from alignment.config.load import Loc
from alignment.config.stages import FolderModel, GgufModel
from alignment.errors import ArtifactError, ConfigError, ConfigErrors, KubeAlignError

READ_LIMIT = 32_000_000
"""Bytes of one data file up to which `check` reads every row."""


@dataclass
class Preflight:
    """Findings, and for each stage a few words on what was seen."""

    findings: list[ConfigError] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)


def preflight(run: Run, file: str, profile: Profile | None = None) -> Preflight:
    """Look at everything that `run` (loaded from `file`) reads from outside, as it would be executed under `profile`.

    A cluster itself is not asked: `kubealign preflight` does that.
    """
    made = Preflight()
    for index, stage in enumerate(run.stages):
        here: Loc = ("stages", index)
        for loc, error in _stage(run if profile is None else profile.applied(run, stage), stage, made):
            made.findings.append(_finding(file, (*here, *loc), error))
    if profile is None or profile.cluster is None:
        store = run.store if profile is None else profile.applied(run).store
        made.findings += [_finding(file, ("store",), error) for error in _store(store)]
    elif not made.findings:
        made.findings += _cluster(run, profile)
    return made


def _cluster(run: Run, profile: Profile) -> Iterator[ConfigError]:
    """What cannot travel to a cluster, and pods that could not hold their stage."""
    from alignment.cluster.manifests.bundle import bundle
    from alignment.cluster.manifests.ray_job import ray_job

    try:
        bundle(run, profile)
    except ConfigErrors as errors:
        yield from errors.findings
    except ConfigError as error:
        yield error
    for stage in run.stages:
        try:
            ray_job(run, stage, profile, namespace="default", name=stage.name, config_map=run.name, attempt=1)
        except ConfigError as error:
            yield error


def _finding(file: str, loc: Loc, error: KubeAlignError) -> ConfigError:
    # The error's own place (a row of a data file) matters as much as the line of the run file that led there.
    problem = error.problem if error.where is None else f"{error.problem} ({error.where})"
    return ConfigError(problem, where=place_of(file, loc), found=error.found, expected=error.expected, hint=error.hint)


def _stage(run: Run, stage: AnyStage, made: Preflight) -> Iterator[tuple[Loc, KubeAlignError]]:
    if isinstance(stage, ImportModel):
        yield from _import_model(stage)
    elif isinstance(stage, ImportData):
        yield from _import_data(run, stage, made)
    elif isinstance(stage, TrainStage):
        yield from _train(run, stage)
    elif stage.score is not None and stage.score.function is not None:
        yield from _reward_function(stage)


def _import_model(stage: ImportModel) -> Iterator[tuple[Loc, KubeAlignError]]:
    from alignment import templates

    model = stage.model
    try:
        if isinstance(model, GgufModel):
            _check_gguf(stage.name, model)
        elif isinstance(model, FolderModel):
            _check_folder(Path(model.path).expanduser())
    except KubeAlignError as error:
        yield ("model",), error
    if stage.template is not None and stage.template not in templates.names():
        yield ("template",), ConfigError("no chat template of this name is shipped", found=stage.template,
                                         expected="one of " + ", ".join(templates.names()))


def _check_gguf(stage: str, model: GgufModel) -> None:
    from alignment.data.fingerprint import gguf_path

    path = gguf_path(stage, model)
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise ConfigError(f"not a GGUF file ({path})", found=magic, expected="the four bytes GGUF at its start")


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise ConfigError("the model folder does not exist", found=str(folder),
                          expected=f"a folder at {folder.absolute()}",
                          hint="relative paths start at the working directory")
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


def _import_data(run: Run, stage: ImportData, made: Preflight) -> Iterator[tuple[Loc, KubeAlignError]]:
    from alignment.planner.rows import preview

    problems, unread = list(_sources(stage)), []
    for index, error in problems:
        if error is None:
            unread.append(stage.data[index].path)
        else:
            yield ("data", index), error
    if any(error is not None for _, error in problems):
        return
    if unread:
        made.notes[stage.name] = f"not read now: {', '.join(unread)}"
        return
    try:
        seen = preview(run, stage)
    except KubeAlignError as error:
        yield ("data",), error
        return
    made.notes[stage.name] = ", ".join(f"{len(rows)} {split}" for split, rows in seen.splits.items()) + (
        f", {len(seen.bad)} bad rows" if seen.bad else "")
    if stage.max_bad is not None and len(seen.bad) > stage.max_bad * seen.read:
        first = "; ".join(f"{row.source} row {row.row}: {row.reason}" for row in seen.bad[:3])
        reasons = Counter(row.slug for row in seen.bad).most_common()
        yield ("data",), ConfigError(
            f"{len(seen.bad)} of {seen.read} rows are bad", found=first,
            expected=f"at most {stage.max_bad:.1%} (max_bad)",
            hint="by reason: " + ", ".join(f"{count} {slug}" for slug, count in reasons))
        return
    empty = [split for split, rows in seen.splits.items() if not rows]
    if empty:
        yield ("split",), ConfigError(f"split {', '.join(empty)} has no rows", found=made.notes[stage.name],
                                      expected="at least one row in every split")


def _sources(stage: ImportData) -> Iterator[tuple[int, ConfigError | None]]:
    """Sources that cannot be read (with the error), or are not read now (None)."""
    for index, source in enumerate(stage.data):
        if "://" in source.path:
            yield index, None
            continue
        path = Path(source.path)
        if not path.is_file():
            near = sorted(other.name for other in path.parent.glob("*.json*"))[:5] if path.parent.is_dir() else []
            yield index, ConfigError(
                "the data file does not exist", found=source.path, expected=f"a file at {path.absolute()}",
                hint=f"there are {', '.join(near)}" if near else "relative paths start at the working directory")
        elif not os.access(path, os.R_OK):
            yield index, ConfigError("the data file may not be read by this user", found=source.path)
        elif path.stat().st_size > READ_LIMIT:
            yield index, None


def _train(run: Run, stage: TrainStage) -> Iterator[tuple[Loc, KubeAlignError]]:
    if not micro_batch(stage, run.compute.workers):
        yield ("batch_size",), ConfigError(
            "batch_size cannot be shared out over the workers",
            found=f"{stage.batch_size}, {run.compute.workers} workers",
            expected=f"a multiple of {run.compute.workers}")


def _reward_function(stage: Sample | Evaluate) -> Iterator[tuple[Loc, KubeAlignError]]:
    from alignment.rewards import BUILT_IN

    assert stage.score is not None
    name = stage.score.function or ""
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


def _store(url: str) -> Iterator[KubeAlignError]:
    try:
        store = Store(url)
    except (ImportError, ValueError) as error:
        yield ArtifactError(f"the store's URL cannot be opened: {error}", found=url, expected="a folder or fsspec URL")
        return
    if not store.is_local:
        return
    path = Path(store.root)
    while not path.exists():
        path = path.parent
    if not path.is_dir():
        yield ArtifactError("the store cannot be a folder: a file is in the way", found=url,
                            expected=f"a folder instead of the file {path}")
    elif not os.access(path, os.W_OK | os.X_OK):
        yield ArtifactError("the store cannot be written", found=url,
                            expected=f"a folder that this user may write: {path}")
