"""What stages printed, as they left it in the storage: STORE/runs/RUN/logs/STAGE-ATTEMPT.log, where a cluster's ATTEMPT
is DIGEST8.NUMBER (`manifests.labels.log_attempt`). Asks no cluster.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

from alignment.artifacts import Store
from alignment.errors import ArtifactError

_NAME = re.compile(r"(?P<stage>.+)-(?P<attempt>[^-]+)\.log")


def stored_logs(store: Store, run: str, stage: str | None = None) -> list[tuple[str, str, str]]:
    """Logs that stages left in the storage: (stage, attempt, text), by stage, the newest last.

    Raises:
        ArtifactError: the storage cannot be read.
    """
    folder, fs = f"{store.root}/runs/{run}/logs", store.fs
    fs.invalidate_cache()
    try:
        listed = fs.ls(folder, detail=True) if fs.exists(folder) else []
        found = []
        for item in sorted(listed, key=lambda item: (_written(item), len(item["name"]), item["name"])):
            match = _NAME.fullmatch(item["name"].rsplit("/", 1)[-1])
            if match and stage in (None, match["stage"]):
                found.append((match["stage"], match["attempt"], fs.cat_file(item["name"]).decode("utf-8", "replace")))
    except OSError as error:
        raise ArtifactError(f"the storage cannot be read: {error}", where=folder) from error
    return sorted(found, key=lambda item: item[0])


def _written(item: dict[str, Any]) -> float:
    """When a file was written last, as its file system lists it."""
    when = item.get("mtime") or item.get("LastModified") or item.get("created") or 0.0
    return when.timestamp() if isinstance(when, datetime) else float(when)
