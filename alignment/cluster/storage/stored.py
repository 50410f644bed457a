"""What stages printed, as they left it in the storage: STORE/runs/RUN/logs/STAGE-ATTEMPT.log. Asks no cluster."""

from __future__ import annotations

import re

from alignment.artifacts import Store
from alignment.errors import ArtifactError

_NAME = re.compile(r"(?P<stage>.+)-(?P<attempt>[^-]+)\.log")


def stored_logs(store: Store, run: str, stage: str | None = None) -> list[tuple[str, str, str]]:
    """Logs that stages left in the storage: (stage, attempt, text), by stage and attempt.

    Raises:
        ArtifactError: the storage cannot be read.
    """
    folder, fs = f"{store.root}/runs/{run}/logs", store.fs
    fs.invalidate_cache()
    try:
        paths = [str(path) for path in fs.ls(folder, detail=False)] if fs.exists(folder) else []
        found = []
        for path in sorted(paths):
            match = _NAME.fullmatch(path.rsplit("/", 1)[-1])
            if match and stage in (None, match["stage"]):
                found.append((match["stage"], match["attempt"], fs.cat_file(path).decode("utf-8", "replace")))
    except OSError as error:
        raise ArtifactError(f"the storage cannot be read: {error}", where=folder) from error
    return sorted(found, key=lambda item: (item[0], item[1].zfill(12)))
