"""POST /votes: which of two answers a person found better, kept as a line that `format: votes` imports.

    {"messages": [turns], "chosen": turn | null, "rejected": turn | null, "models": {"a": name, "b": name},
     "vote": "a" | "b" | "tie" | "bad", "time": UTC}

The server writes the time, whatever the request says.
"""

from __future__ import annotations

import json
import os
import threading
import time
from typing import Annotated, Any, Literal

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

    a: Name
    b: Name


class Vote(_Shape):
    """A vote; of a tie, and where both are bad, neither is chosen."""

    messages: Annotated[list[Turn], Field(min_length=1)]
    chosen: Turn | None
    rejected: Turn | None
    models: Models
    vote: Literal["a", "b", "tie", "bad"]
    time: str | None = None


def keep(file: str | None, body: bytes) -> dict[str, Any]:
    """Append a vote to `file`. Raises Refused where it is no row that can be learned from, or none are kept."""
    if file is None:
        raise Refused(404, "votes are not kept here: kubealign serve --votes FILE keeps them", code="votes_off")
    vote = read(Vote, body)
    row = {"messages": [turn.message() for turn in vote.messages],
           "chosen": None if vote.chosen is None else vote.chosen.message(),
           "rejected": None if vote.rejected is None else vote.rejected.message(),
           "models": vote.models.model_dump(), "vote": vote.vote,
           "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    decided = vote.vote in ("a", "b")
    if decided != (vote.chosen is not None) or decided != (vote.rejected is not None):
        raise Refused(400, "a vote for a or b has a chosen and a rejected turn, any other has neither", param="chosen",
                      code="invalid_vote")
    try:
        if decided:
            check(preference({"prompt": row["messages"], "chosen": [row["chosen"]], "rejected": [row["rejected"]]}))
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
