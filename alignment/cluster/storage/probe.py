"""Writes, lists, reads and deletes one small object in an artifact store, to see that a pod may.

    python -m alignment.cluster.storage.probe URL

Prints one line of JSON: seconds of each step, and this machine's clock. Exit code 1, with the reason, where a step
fails. Leaves nothing behind.
"""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any

from alignment.artifacts import Store
from alignment.errors import ArtifactError, KubeAlignError

_SIZE = 64 * 1024


def probe(url: str) -> dict[str, Any]:
    """Seconds of each step, and the time (Unix, s) at which it was done.

    Raises:
        ArtifactError: naming the step that failed.
    """
    store, content = Store(url), os.urandom(_SIZE)
    fs, folder = store.fs, f"{store.root}/probe-{uuid.uuid4().hex[:12]}"
    path, seconds = f"{folder}/object", {}

    def write() -> None:
        if store.is_local:  # elsewhere this would make a bucket, where the user has none
            fs.makedirs(folder, exist_ok=True)
        fs.pipe_file(path, content)

    def read() -> None:
        if fs.cat_file(path) != content:
            raise OSError("what is read is not what was written")

    def listed() -> None:
        fs.invalidate_cache()
        if not any(str(found).endswith("/object") for found in fs.find(folder)):
            raise OSError("what was written is not listed")

    steps: dict[str, Callable[[], Any]] = {
        "write": write, "list": listed, "read": read, "delete": lambda: fs.rm(folder, recursive=True)}
    for step, action in steps.items():
        began = time.monotonic()
        try:
            action()
        except Exception as error:  # each object store has exceptions of its own
            raise ArtifactError(f"the storage refuses to {step}: {type(error).__name__}: {error}", where=url,
                                hint="look at the claim's access mode or the secret's keys and the bucket's policy",
                                ) from error
        seconds[step] = round(time.monotonic() - began, 4)
    return {"url": url, "seconds": seconds, "time": round(time.time(), 3)}


def main(arguments: list[str]) -> int:
    """Parse the command line and probe. Returns 0; 1 where a step failed, 2 for a wrong command line."""
    if len(arguments) != 1:
        print("usage: python -m alignment.cluster.storage.probe URL", file=sys.stderr)
        return 2
    try:
        print(json.dumps(probe(arguments[0])))
    except KubeAlignError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
