"""Whether a second model of a stage (a reference, a teacher) reads the tokens of its start, before either is loaded.

Models of one import do. Of two imports tokenizer.json and template are compared where they are at hand; where they are
not, nothing is said, and the stage itself compares (training/frozen.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alignment.artifacts import Artifact
from alignment.checks.seen import Sight, Wrong
from alignment.config import AnyStage, FolderModel, GgufModel, HubModel, ImportModel, Run, TinyModel, TrainBase
from alignment.data.fingerprint import folder_path
from alignment.data.model_files import hub_snapshot
from alignment.errors import ConfigError, ModelError

Vocabulary = dict[str, int]


def remember_vocabulary(sight: Sight, stage: ImportModel) -> None:
    """Keep the vocabulary that a stage's model will have, as far as it is known; import may add tokens to it."""
    if stage.base is None and (found := VOCABULARIES[type(stage.model)](stage.model)):
        sight.vocabularies[stage.name] = found


def remember_made_vocabulary(sight: Sight, stage: AnyStage, artifact: Artifact) -> None:
    """The same of a model that is made."""
    if found := _of_folder(artifact.path() / "model"):
        sight.vocabularies[stage.name] = found


def comparable(run: Run, sight: Sight, stage: TrainBase) -> Wrong:
    """A second model that is known to read other tokens than the start."""
    if stage.frozen is None or (own := root(run, stage.model)) == (other := root(run, stage.frozen.stage)):
        return
    place = stage.frozen.place
    one, two = sight.vocabularies.get(own), sight.vocabularies.get(other)
    if one is not None and two is not None and one != two:
        odd = min(token for token in one.keys() | two.keys() if one.get(token) != two.get(token))
        yield place, ConfigError(
            f"its tokenizer is not that of {stage.model}, so the same id is another token",
            found=f"{len(two)} tokens, {odd!r} is {two.get(odd)}", expected=f"{len(one)} tokens, {odd!r} is "
            f"{one.get(odd)}", hint="a model of the same family, with the same vocabulary")
    texts = [sight.templates.get(name) for name in (own, other)]
    # Import may add marks to a text; so one that is made and one that is not are not compared.
    alike = (own in sight.settled) == (other in sight.settled)
    if None not in texts and alike and texts[0] != texts[1]:
        yield place, ConfigError(
            f"its chat template is not that of {stage.model}, so both read different tokens", found=other,
            expected=f"the template of {own}", hint="import both with the same `template`")


def root(run: Run, name: str) -> str:
    """The import stage with the full weights that a stage's model comes from."""
    stage = run.stage(name)
    while (start := next(stage.model_refs(), None)) is not None:
        stage = run.stage(start.stage)
    return stage.name


def _of_folder(folder: Path) -> Vocabulary | None:
    """The learned vocabulary of tokenizer.json, without what was added to it; None where that does not show."""
    try:
        vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if isinstance(vocabulary, list):  # of a unigram model: pairs of a token and its score
        return {str(pair[0]): index for index, pair in enumerate(vocabulary)}
    return vocabulary if isinstance(vocabulary, dict) else None


def _of_model_folder(model: FolderModel) -> Vocabulary | None:
    try:
        return _of_folder(folder_path("", model))
    except ModelError:  # a package that is not installed is another check's to say
        return None


VOCABULARIES: dict[type, Callable[[Any], Vocabulary | None]] = {
    HubModel: lambda model: _of_folder(hub_snapshot(model)),
    FolderModel: _of_model_folder,
    GgufModel: lambda model: None,
    TinyModel: lambda model: None,
}
"""Where a model comes from -> its learned vocabulary before it is imported; None: not known yet."""
