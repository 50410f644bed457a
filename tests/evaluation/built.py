"""A small real store with hand-published artifacts of a whole run, for tests that read what stages left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignment.artifacts import Artifact, Manifest, Store, digest_of, key_of
from alignment.config import Run
from alignment.context import StageContext
from alignment.records import Record, write_records


@dataclass
class Built:
    """A run whose stages are published one by one; `context` is what the pipeline would hand to a body."""

    run: Run
    store: Store
    artifacts: dict[str, Artifact] = field(default_factory=dict)

    def digest(self, name: str) -> str:
        return digest_of([name, self.run.model_dump(mode="json"),
                          [self.artifacts[i].manifest.digest for i in self.run.stage(name).inputs()]])

    def publish(self, name: str, fill: Callable[[Path], Any]) -> Artifact:
        """Run `fill` on the stage's empty folder and publish it."""
        stage, digest = self.run.stage(name), self.digest(name)
        key = key_of(stage.tag, digest)
        folder = self.store.workdir(key) / "out"
        folder.mkdir(parents=True, exist_ok=True)
        fill(folder)
        manifest = Manifest(
            key=key, digest=digest, stage=name, kind=stage.kind, config=stage.model_dump(mode="json"), files={},
            inputs={i: self.artifacts[i].key for i in stage.inputs()},
            started="2026-01-01T00:00:00", finished="2026-01-01T00:00:01", seconds=1.0,
        )
        with self.store.lease(key) as lease:
            self.artifacts[name] = self.store.publish(manifest, folder, lease)
        shutil.rmtree(self.store.workdir(key), ignore_errors=True)
        return self.artifacts[name]

    def publish_rows(self, name: str, **splits: list[Record]) -> Artifact:
        def fill(folder: Path) -> None:
            for split, records in splits.items():
                write_records(folder / "rows" / f"{split}.jsonl", records)

        return self.publish(name, fill)

    def context(self, name: str) -> StageContext:
        stage, digest = self.run.stage(name), self.digest(name)
        key = key_of(stage.tag, digest)
        work = self.store.workdir(key)
        (work / "out").mkdir(exist_ok=True)
        return StageContext(run=self.run, stage=stage, store=self.store, key=key, digest=digest,
                            inputs={i: self.artifacts[i] for i in stage.inputs()}, work=work,
                            keys={other: artifact.key for other, artifact in self.artifacts.items()})


def build_run(folder: Path, stages: list[dict[str, Any]], **values: Any) -> Built:
    """A run of these stages on the store below `folder`; nothing is published yet."""
    # JSON mode reads lists as tuples, as the loader of run files does.
    run = Run.model_validate_json(json.dumps({"name": "demo", "stages": stages, **values}))
    return Built(run, Store(str(folder / "store")))
