"""Small artifacts, made as the pipeline makes them: a work folder, a lease, publish."""

from __future__ import annotations

from pathlib import Path

from alignment.artifacts import Artifact, Lease, Manifest, Store

FILES = {"a.txt": "one", "deep/b.bin": "two" * 1000}


def manifest(key: str, **changes: object) -> Manifest:
    fields = {"key": key, "digest": "0" * 64, "stage": key.split("-")[0], "kind": "import", "config": {"x": 1},
              "inputs": {}, "files": {}, "started": "2026-01-01T00:00:00Z", "finished": "2026-01-01T00:00:01Z",
              "seconds": 1.0}
    return Manifest.model_validate({**fields, **changes})


def fill(folder: Path, files: dict[str, str] = FILES) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def publish(store: Store, key: str, lease: Lease, **changes: object) -> Artifact:
    return store.publish(manifest(key, **changes), fill(store.workdir(key) / "out"), lease)
