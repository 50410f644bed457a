"""A task: an instruction with examples, as a seed row holds it and as a teacher makes it; rows to and from records."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from alignment.records import Record
from alignment.records.importers.chat import instruction as user_message


class Instance(NamedTuple):
    """An example of a task; `input` may be empty."""

    input: str
    output: str


@dataclass
class Task:
    """A task of the pool.

    Attributes:
        is_classification: None until it is known.
        origin: what made it: request, item, model, prompt, seeds, machine; empty of a seed.
        similar: [(id, ROUGE-L F)] of the most similar tasks before it; mean_similar over all of them.
    """

    id: str
    instruction: str
    is_classification: bool | None = None
    instances: list[Instance] = field(default_factory=list)
    origin: dict[str, Any] = field(default_factory=dict)
    similar: list[tuple[str, float]] = field(default_factory=list)
    mean_similar: float = 0.0


def seed_task(record: Record) -> Task | str:
    """The task of a seed row, or why it cannot be one."""
    kept = record.meta.get("task")
    if isinstance(kept, dict) and kept.get("instances"):
        made = [Instance(str(one["input"]), str(one["output"])) for one in kept["instances"]]
        return Task(record.id, str(kept["instruction"]), bool(kept.get("is_classification")), made)
    if record.type == "messages":
        turns, output = record.messages[:-1], record.reference()
    else:
        turns, output = record.prompt, record.reference()
    asked = [turn for turn in turns if turn["role"] != "system"]
    if [turn["role"] for turn in asked] != ["user"] or not str(asked[0]["content"]).strip():
        return "no single question"
    if not (output or "").strip():
        return "no answer"
    return Task(record.id, str(asked[0]["content"]), False, [Instance("", str(output))])


def to_record(task: Task, number: int, source: str) -> Record:
    """The row of one of a task's examples, its prompt put together as Alpaca's rows are imported."""
    one = task.instances[number]
    meta = {
        "source": source, "group": task.id, "origin": task.origin,
        "task": {"instruction": task.instruction, "instances": [one._asdict()],
                 "is_classification": bool(task.is_classification)},
        "similar": [[id_, score] for id_, score in task.similar], "mean_similar": task.mean_similar,
    }
    return Record(f"{task.id}-{number + 1}", "prompt-completion",
                  user_message({"instruction": task.instruction, "input": one.input}), one.output, meta=meta)
