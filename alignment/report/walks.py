"""How models that retrieve came to their answers, as a table: calls, what they found, and why rows have no answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignment.report.format import interval, is_number, metric

COLUMNS = {"answered": "Answered ↑", "gold_recall": "Gold passages found ↑", "fact_recall": "Supporting facts found ↑",
           "calls": "Calls", "turns": "Turns"}
"""Numbers of results.json -> their titles, in order."""


def walks(
    results: Mapping[str, Any], facts: Mapping[str, Any], models: Sequence[str]
) -> tuple[list[str], list[tuple[str, list[tuple[str, str]], list[tuple[str, int]]]]] | None:
    """(titles, for each model its (text, interval) cells and (reason, rows) of rows without an answer); None where no
    model retrieved.

    Args:
        facts: of the manifest.
    """
    ended = (facts.get("retrieval") or {}).get("ended")
    if not ended:
        return None
    lines = {name: results.get("models", {}).get(name) or {} for name in models}
    columns = [name for name in COLUMNS
               if any(is_number((line.get(name) or {}).get("value")) for line in lines.values())]
    rows = [(name, [(metric(column, cell.get("value")), interval(column, cell.get("low"), cell.get("high")))
                    for column in columns for cell in [line.get(column) or {}]],
             [(reason, many) for reason, many in ended.get(name, {}).items() if reason != "answered"])
            for name, line in lines.items()]
    return [COLUMNS[name] for name in columns], rows
