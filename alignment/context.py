"""What a stage's body gets and gives: the seam between the pipeline and the rooms that do the work.

A body is a function `body(context) -> Outcome` that fills the folder `context.out`. It may be killed at any
moment and is then called again with the same context; what it keeps in `context.work` outside `out` survives on a
local store. It never decides whether it has to run, never writes manifests and never touches other artifacts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from alignment.artifacts import Artifact, RowCounts, Store
from alignment.config import AnyStage, Run
from alignment.errors import DataError
from alignment.progress import Tracker, track
from alignment.records import Record, each_record

Kind = TypeVar("Kind", bound=AnyStage)


@dataclass
class Outcome:
    """What a finished body knows beside its files; it becomes part of the manifest."""

    rows: RowCounts = field(default_factory=RowCounts)
    metrics: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    compute: dict[str, Any] = field(default_factory=dict)
    """Where it was computed, as far as the body knows better than the run."""


@dataclass(frozen=True)
class StageContext:
    """One stage about to be made.

    Attributes:
        run: with this stage's own dtype in `compute`.
        inputs: finished artifacts by stage name, one for each name in `stage.inputs()`.
        work: local folder for work in progress (checkpoints, finished batches).
        digest: full digest of what is made; a seed for anything that must be the same when run again.
        keys: artifact key of every stage of the run, by name. (A manifest has the names of the run that made it.)
    """

    run: Run
    stage: AnyStage
    store: Store
    key: str
    digest: str
    inputs: dict[str, Artifact]
    work: Path
    keys: Mapping[str, str] = field(default_factory=dict)

    @property
    def out(self) -> Path:
        """The folder that is published when the body returns."""
        return self.work / "out"

    @property
    def events(self) -> Path:
        """events.jsonl of the stage: one JSON object per line with `time` and `event`, streamed as work goes on."""
        return self.out / "events.jsonl"

    def stage_as(self, kind: type[Kind]) -> Kind:
        """The stage, known to be a `kind`. Raises TypeError when a body was called for another: a bug of ours."""
        if not isinstance(self.stage, kind):
            raise TypeError(f"stage {self.stage.name} is a {type(self.stage).__name__}, and no {kind.__name__}")
        return self.stage

    def rows(self, ref: str) -> list[Record]:
        """Records of `STAGE/SPLIT`. Raises DataError when the split has none."""
        return list(self.each_row(ref))

    def each_row(self, ref: str) -> Iterator[Record]:
        """The same one by one, in the memory of one; raises at the first."""
        name, split = ref.split("/")
        path = self.inputs[name].path() / "rows" / f"{split}.jsonl"
        record = None
        for record in each_record(path) if path.exists() else ():
            yield record
        if record is None:
            dropped = self.inputs[name].manifest.rows.dropped
            raise DataError("the split has no rows", where=f"stage {self.stage.name}, rows {ref}",
                            expected="at least one row",
                            hint=f"stage {name} wrote {self.inputs[name].manifest.rows.written}, dropped {dropped}")

    @contextmanager
    def track(self, label: str, total: float | None, unit: str) -> Iterator[Tracker]:
        """Show progress while the block runs, and tell it to the store, where `kubealign status` looks."""
        with track(label, total, unit, self.store.teller(self.key)) as tracker:
            yield tracker

    def event(self, event: str, **values: Any) -> None:
        """Append one event; the file is opened each time so that a kill loses at most one line."""
        self.events.parent.mkdir(parents=True, exist_ok=True)
        with self.events.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": round(time.time(), 3), "event": event, **values}) + "\n")
