"""POST /votes: which of two answers a person found better, kept as a line that `format: preference` imports.

    {"prompt": [messages], "chosen": text, "rejected": text, "models": {"chosen": name, "rejected": name}}

The line has the models in `meta`, which imports keep.
"""

from __future__ import annotations

import json
import os
import threading
from typing import Annotated, Any

from pydantic import Field

from alignment.records.importers.chat import preference
from alignment.records.importers.checks import check
from alignment.records.importers.rows import RowError
from alignment.serving.refused import Refused
from alignment.serving.shapes import Turn, _Shape, read

Name = Annotated[str, Field(min_length=1, max_length=200)]
_writing = threading.Lock()


class Models(_Shape):
    """Who gave which answer."""

    chosen: Name
    rejected: Name


class Vote(_Shape):
    """A vote."""

    prompt: Annotated[list[Turn], Field(min_length=1)]
    chosen: Annotated[str, Field(min_length=1)]
    rejected: Annotated[str, Field(min_length=1)]
    models: Models


def keep(file: str | None, body: bytes) -> dict[str, Any]:
    """Append a vote to `file`. Raises Refused where it is no row that can be learned from, or none are kept."""
    if file is None:
        raise Refused(404, "votes are not kept here: kubealign serve --votes FILE keeps them", code="votes_off")
    vote = read(Vote, body)
    row = {"prompt": [turn.message() for turn in vote.prompt], "chosen": vote.chosen, "rejected": vote.rejected,
           "meta": {"models": vote.models.model_dump()}}
    try:
        check(preference(row))
    except RowError as error:
        raise Refused(400, f"the vote is no row to learn from: {error}", code="invalid_vote") from error
    line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
    try:
        with _writing, open(file, "ab") as handle:
            handle.write(line)
            handle.flush()
            os.fsync(handle.fileno())
    except OSError as error:
        raise Refused(500, f"the vote cannot be kept: {error.strerror}", code="votes_unwritable") from error
    return {"kept": True}
