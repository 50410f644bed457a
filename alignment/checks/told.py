"""What a model's chat template certainly leaves out of a stage's rows, or does not mark, as far as its text shows.

A lower bound, since nothing is rendered: a key that the text never names is not told, one that it names may yet be left
out. What a template makes of each row is for the stage itself to see (templates/told.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from alignment import templates
from alignment.artifacts import Artifact
from alignment.checks.lengths import shipped_template
from alignment.checks.seen import Sight, Wrong, counted
from alignment.config import AnyStage, FolderModel, ImportModel, TrainBase
from alignment.data.fingerprint import folder_path
from alignment.errors import ConfigError, ModelError
from alignment.records import Record
from alignment.templates.told import TOLD

WHOLE = re.compile(r"\btojson\b|\bitems\b|\{\{-?\s*(m|msg|message|messages|turn)\s*-?\}\}")
"""Signs of a template that may write whole turns, and so every key of theirs, without naming it."""


def remember_text(sight: Sight, stage: ImportModel) -> None:
    """Keep the text of the template that a stage's model will have; import may add marks to it, and changes no more."""
    if (name := shipped_template(stage)) is not None:
        sight.templates[stage.name] = templates.source(name)
    elif stage.base is not None and stage.base in sight.templates:
        sight.templates[stage.name] = sight.templates[stage.base]
    elif stage.template is None and isinstance(stage.model, FolderModel):
        with suppress(ModelError):  # a package that is not installed is another check's to say
            _keep(sight, stage.name, folder_path(stage.name, stage.model))


def remember_made_text(sight: Sight, stage: AnyStage, artifact: Artifact) -> None:
    """The same of a model that is made, with its marks or without."""
    _keep(sight, stage.name, artifact.path() / "model")
    sight.settled.add(stage.name)


def _keep(sight: Sight, name: str, folder: Path) -> None:
    """A folder's template; nothing where it has several, or none that can be read."""
    try:
        if (folder / "chat_template.jinja").exists():
            sight.templates[name] = (folder / "chat_template.jinja").read_text(encoding="utf-8")
        elif isinstance(text := json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
                        .get("chat_template"), str):
            sight.templates[name] = text
    except (OSError, ValueError, AttributeError):
        return


def tellable(sight: Sight, stage: TrainBase) -> Wrong:
    """Rows with something that the template never names, and a loss over turns that it does not mark."""
    text = sight.templates.get(stage.model)
    if text is None:
        return
    sight.templates[stage.name] = text
    if stage.model in sight.settled:
        sight.settled.add(stage.name)
        if stage.marked_loss is not None and not templates.has_generation_markers(text):
            yield ("loss",), ConfigError(
                f"the chat template of {stage.model} does not mark what the assistant says", found=stage.marked_loss,
                expected="completion, which needs no marks",
                hint="or set `template: NAME` on the import stage (`kubealign templates` lists them)")
    records = [record for ref in stage.rows for record in sight.rows.get(ref, ())]
    left = list(_left_out(text, records))
    if left and len(left) == len(records) and all(ref in sight.rows for ref in stage.rows):
        yield ("rows",), ConfigError(
            f"the chat template of {stage.model} ignores what every row has", found=counted(left),
            expected="rows that it renders whole",
            hint="import the model with another template (its maker's own), or leave it out of the rows")
    elif left:
        sight.warn(stage.name, f"{len(left)} of {len(records)} rows will be left out, since the chat template of "
                               f"{stage.model} ignores what they have: {counted(left)}")


def _left_out(text: str, records: Iterable[Record]) -> Iterator[str]:
    """For each row that the template does not tell, what it leaves out."""
    whole = WHOLE.search(text) is not None
    unnamed = [key for key in TOLD if key not in text and (key == "tools" or not whole)]  # tools are no turn's
    for record in records:
        turns = record.conversation()
        lost = [key for key in unnamed if any(turn.get(key) for turn in turns)]
        if lost:
            yield ", ".join(lost)
