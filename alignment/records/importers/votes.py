"""What people found better on the page of `kubealign serve`: a conversation, two answers and a vote, a line each.

    {"messages": [...], "chosen": turn | null, "rejected": turn | null, "models": {"a": name, "b": name},
     "vote": "a" | "b" | "tie" | "bad", "time": "2026-01-01T00:00:00Z"}

A vote for one of them is a preference. Of a tie, or two that are bad, none is chosen: counted by reason, and never
trained on.
"""

from __future__ import annotations

from typing import Any

from alignment.records.importers.rows import RowError, expect, extras, get, optional_text, row_id, text
from alignment.records.importers.turns import answer, turns
from alignment.records.types import Record

UNDECIDED = {"tie": "tie", "bad": "both-bad"}
"""Vote that prefers nothing -> the reason by which it is counted."""


def votes(row: dict[str, Any]) -> Record:
    """A preference. Raises RowError tie or both-bad for votes that are none, unknown-vote for another word."""
    vote, asked = text(row, "vote"), turns(get(row, "messages"), "messages")
    models = expect(get(row, "models"), dict, "models")
    names = {side: text(models, side) for side in ("a", "b")}
    if vote in UNDECIDED:
        raise RowError(UNDECIDED[vote], f"{names['a']} and {names['b']}")
    if vote not in names:
        raise RowError("unknown-vote", f"vote is {vote!r}, expected one of a, b, {', '.join(UNDECIDED)}")
    answers = []
    for field in ("chosen", "rejected"):
        lead, said = answer([get(row, field)], field)
        if lead:
            raise RowError("wrong-type", f"{field} is a conversation, expected one turn of the assistant")
        answers.append(said)
    meta = {**extras(row), "chosen_by": names[vote], "rejected_by": names["b" if vote == "a" else "a"]}
    if when := optional_text(row, "time"):
        meta["time"] = when
    return Record(row_id(row), "preference", asked, answers[0], answers[1], meta=meta)
