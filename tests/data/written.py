"""Reading what an import stage has written."""

from __future__ import annotations

import json
from typing import Any

from alignment.context import StageContext
from alignment.records import Record, read_records


def rows_of(context: StageContext, split: str) -> list[Record]:
    return read_records(context.out / "rows" / f"{split}.jsonl")


def bad_of(context: StageContext) -> list[dict[str, Any]]:
    text = (context.out / "bad.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]
