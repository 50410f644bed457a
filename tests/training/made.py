"""Records, stages and contexts for tests of training, made by hand: no import stage, no pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alignment.artifacts import Artifact, Store
from alignment.config import METHODS, TrainBase
from alignment.context import StageContext
from alignment.records import Message, Record, write_records
from tests import small
from tests.models import published

LORA: dict[str, Any] = {"kind": "lora", "r": 4, "alpha": 8}
FULL: dict[str, Any] = {"kind": "full"}


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def answered(row: str, question: str, answer: str) -> Record:
    """A prompt-completion row."""
    return Record(row, "prompt-completion", prompt=[user(question)], completion=answer)


def preferred(row: str, question: str, chosen: str, rejected: str) -> Record:
    """A preference row."""
    return Record(row, "preference", prompt=[user(question)], completion=chosen, rejected=rejected)


def preferences(count: int) -> list[Record]:
    """Preference rows p0, p1, ... of different lengths, which every method can use."""
    return [preferred(f"p{index}", f"How many are {index}?" + " Say it." * index, "two " * (1 + index % 3), "nine")
            for index in range(count)]


def stage(method: str, **more: Any) -> TrainBase:
    """A train stage by itself; keyword arguments replace small defaults."""
    kinds = {kind.tag: kind for kind in METHODS}
    return kinds[method].model_validate({**small.train("stage", method), "rows": ("data/train",), **more})


def published_rows(store: Store, folder: Path, key: str, **splits: list[Record]) -> Artifact:
    """Publish row sets as an import stage does."""
    for split, records in splits.items():
        write_records(folder / "rows" / f"{split}.jsonl", records)
    return published(store, key, folder)


def context(
    store: Store, folder: Path, start: Artifact, rows: Artifact, method: str = "sft",
    compute: dict[str, Any] | None = None, sets: list[str] | None = None, **more: Any,
) -> StageContext:
    """Context of one train stage that starts from `start` (whatever made it) and reads `rows`.

    Args:
        folder: a folder of the test's own; its name becomes part of the stage's key.
        sets: row sets to train on, if not data/train alone.
        more: other keys of the stage.
    """
    run = small.run(folder, small.train("stage", method, **{"rows": sets or ["data/train"], **more}),
                    compute=compute or {"dtype": "float32", "device": "cpu"})
    key = f"{folder.name}-000000000000"
    return StageContext(run=run, stage=run.stages[-1], store=store, key=key, digest="0" * 64,
                        inputs={"base": start, "data": rows, "other": start}, work=store.workdir(key))
