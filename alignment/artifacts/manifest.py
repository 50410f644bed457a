"""`manifest.json`: what a finished stage was made from and holds. Its existence means done.

Pure data; reading and writing is the store's.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

FORMAT = 1
"""Raised when the meaning of a finished artifact changes, so that old ones are made anew."""


class FileEntry(BaseModel):
    """One file of an artifact."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    sha256: str
    """Of the content; it is compared when a copy is fetched."""
    size: int
    """In bytes."""


class RowCounts(BaseModel):
    """What happened to rows on their way through a stage; `dropped` says why, none is lost silently."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    read: int = 0
    """Rows that the stage was given."""
    written: dict[str, int] = Field(default_factory=dict)
    """Rows per split or output."""
    dropped: dict[str, int] = Field(default_factory=dict)
    """Rows left out, by reason. Each is kept in the stage's bad.jsonl where it is not in the input already."""
    changed: dict[str, int] = Field(default_factory=dict)
    """Rows kept but altered (a truncated prompt), by reason."""


class Manifest(BaseModel):
    """What a finished stage was made from and holds."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    format: int = FORMAT
    """Version of what finished artifacts mean; it is part of every digest."""
    key: str
    """KIND-DIGEST12, the artifact's folder in the store: a stage that is called otherwise is the same artifact."""
    digest: str
    """sha256 of `parts`."""
    stage: str
    """The stage's name in the run that made it."""
    kind: str
    """import, generate, train, sample or evaluate, as in the run file."""
    config: dict[str, Any]
    """The stage's keys as they were obeyed, defaults filled in."""
    parts: dict[str, Any] = Field(default_factory=dict)
    """What the digest is the sha256 of: `config` as far as it decides what is made, with inputs by their digests, seed
    (of a stage that draws), digests of sources, revisions. `kubealign check --same-as` compares it."""
    inputs: dict[str, str]
    """Stage name -> artifact key."""
    files: dict[str, FileEntry]
    """Path inside the artifact -> its file."""
    rows: RowCounts = RowCounts()
    """Rows read, written, dropped and changed."""
    metrics: dict[str, float] = Field(default_factory=dict)
    """Numbers by name; an aim calls them STAGE.NAME."""
    facts: dict[str, Any] = Field(default_factory=dict)
    """What else is worth keeping: resolved revision, template name and hash, reference model, plan, ..."""
    compute: dict[str, Any] = Field(default_factory=dict)
    """Where it was computed: device, dtype, workers, engine, processor. Not part of the digest but for dtype; see
    docs/architecture.md on what is equal to the bit and what in law."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Of KubeAlign, Python, the platform and the libraries that decide numbers."""
    started: str
    """When the attempt that finished began, in UTC."""
    finished: str
    """When it ended, in UTC."""
    seconds: float
    """How long that attempt took; earlier, killed ones are not in it."""


def digest_of(parts: Any) -> str:
    """sha256 (hex) of the canonical JSON of `parts`: sorted keys, no blanks, UTF-8."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def key_of(kind: str, digest: str) -> str:
    """Folder name of an artifact: readable first, unique by 12 digits of the digest. `kind` is the stage's tag, which
    the digest implies: a stage's name is no part of what it makes."""
    return f"{kind}-{digest[:12]}"
