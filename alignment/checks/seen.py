"""What the checks of a run have seen so far: later stages' checks read what earlier ones left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from alignment.config.stages.fields import Place
from alignment.errors import KubeAlignError
from alignment.records import Record

READ_LIMIT = 32_000_000
"""Bytes of one data file up to which `check` reads every row."""
NAMED = 8
"""Names up to which a note lists counted things; the manifest has all."""
Wrong = Iterator[tuple[Place, KubeAlignError]]
"""Findings, each with the stage's key that it is about."""


@dataclass
class Sight:
    """Filled by the checks of a run's stages, in their order.

    Attributes:
        limit: bytes of one data file up to which it is read now.
        rows: STAGE/SPLIT -> its records. Those of files that were not read are not there; those that a sample stage
            will make are its prompts with an answer to come.
        layers: stage that makes a model -> names of its linear layers, where they are known.
        marks: stage that makes a model -> tokens that its template has at least around a prompt and an answer.
        templates: stage that makes a model -> text of its chat template, where that is known.
        settled: those of them whose text is what the stages get, marks and all.
        vocabularies: stage that imports a model -> its tokens and their ids, where they are known.
        notes: stage -> a few words on what was seen.
        warnings: what does not fail, but is hardly meant.
    """

    limit: int
    rows: dict[str, list[Record]] = field(default_factory=dict)
    layers: dict[str, frozenset[str]] = field(default_factory=dict)
    marks: dict[str, int] = field(default_factory=dict)
    templates: dict[str, str] = field(default_factory=dict)
    settled: set[str] = field(default_factory=set)
    vocabularies: dict[str, dict[str, int]] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def note(self, stage: str, text: str) -> None:
        self.notes.setdefault(stage, []).append(text)

    def warn(self, stage: str, text: str) -> None:
        self.warnings.append(f"{stage}: {text}")


def counted(names: Iterable[str]) -> str:
    """The most frequent names, each with its number."""
    counts = Counter(names)
    first = ", ".join(f"{name} ({count})" for name, count in counts.most_common(NAMED))
    return first + (f" and {len(counts) - NAMED} more" if len(counts) > NAMED else "")
