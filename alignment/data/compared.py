"""What is compared of rows, as numbers: a hash for each text and id, and the runs of words that several rows hold.

Hashes have 64 bits and are the same in every process: among a million texts, two fall together once in 10^7 times.
Which rows overlap is `overlap`'s to say.
"""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignment.data.runs import RUN, Runs
from alignment.data.text import passage_text, prompt_of, prompt_text, system_text, units
from alignment.records import Record

SHORT = 5
"""Texts of fewer units are compared as whole prompts only."""


@dataclass(frozen=True)
class Text:
    """What is compared of a row.

    Attributes:
        prompt, passage, system: in normal form; the prompt without its system message; passage and system are "" where
            the row has none, and where the system message is under 16 units.
        group: meta.group, or None.
        parts: units of passage and question, or of each user turn where there is no passage.
        name: rows with the same name are about one text.
        about: the prompt behind its system message, where that may be what the row is about; else "".
    """

    id: str
    prompt: str
    passage: str
    system: str
    group: Any
    parts: tuple[list[str], ...]
    name: str
    about: str = ""


def text_of(record: Record) -> Text:
    """What is compared of a row."""
    prompt, passage, system = prompt_text(record), passage_text(record), system_text(record)
    if system and len(units(system)) < 2 * RUN:
        system = ""
    if passage:
        parts = [passage, str(record.meta.get("question", ""))]
    else:
        parts = [turn["content"] for turn in prompt_of(record) if turn["role"] == "user"]
    about = f"{system}\n{prompt}" if system and not passage and len(units(prompt)) < 2 * RUN else ""
    group = record.meta.get("group")
    return Text(record.id, prompt, passage, system, group, tuple(units(part) for part in parts),
                passage or str(group or prompt), about)


def number_of(text: str) -> int:
    """64 bits that stand for a text; never 0."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()) or 1


class ComparedTexts:
    """Rows by their number, in the order in which they are added; arrays once `close` was called.

    Attributes:
        ids: of the rows.
        keys, prompts, passages, names: hashes [rows]; a row without a passage has 0.
        prompts_about, names_about: the same of a row whose system message is what it is about.
        systems: number of the row's system message among those of 16 units or more; -1.
        may_be_about: rows whose system message may be what they are about.
        passage_counts: rows whose passage has at least SHORT units.
        runs_of: different 8-grams of a row that are asked for.
        shared: 8-grams that several rows hold; within: short texts that stand as a whole in other rows.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """`folder`: for temporary files, where there is much text."""
        self.ids: list[str] = []
        self.system_numbers: dict[int, int] = {}
        self._columns = {name: array("Q") for name in ("keys", "prompts", "passages", "names")}
        self._systems, self._counts = array("q"), array("b")
        self._about: dict[int, tuple[int, int]] = {}
        self._runs = Runs(folder)

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, text: Text) -> None:
        """Take one row more."""
        row = len(self.ids)
        self.ids.append(text.id)
        # A passage alone has no prompt, and shares none.
        prompt, passage = (number_of(part) if part else 0 for part in (text.prompt, text.passage))
        name = passage or (prompt if text.name == text.prompt else number_of(text.name))
        for column, value in zip(self._columns.values(), (number_of(text.id), prompt, passage, name), strict=True):
            column.append(value)
        system = -1
        if text.system:
            system = self.system_numbers.setdefault(number_of(text.system), len(self.system_numbers))
        self._systems.append(system)
        self._counts.append(bool(passage) and len(text.parts[0]) >= SHORT)
        if text.about:
            about = number_of(text.about)
            self._about[row] = about, name if text.group else about
        length = sum(map(len, text.parts))
        # A short question is asked of many passages; beside a passage only a long one is telling.
        asked = [length >= 2 * RUN and (not passage or index == 0 or len(part) >= 2 * RUN)
                 for index, part in enumerate(text.parts)]
        self._runs.add(row, text.parts, asked, short=SHORT <= length < 2 * RUN, holds=length < 4 * RUN)

    def only_what_is_there(self) -> None:
        """Rows that are added from now on are compared with those that are there alone."""
        self._runs.only_what_is_there()

    def close(self) -> None:
        """All rows are there."""
        self.keys, self.prompts, self.passages, self.names = (
            _array(column, np.uint64) for column in self._columns.values())
        self.prompts_about, self.names_about = self.prompts, self.names
        self.may_be_about = np.zeros(len(self), bool)
        if self._about:
            self.prompts_about, self.names_about = self.prompts.copy(), self.names.copy()
            rows = np.fromiter(self._about, np.int64)
            self.may_be_about[rows] = True
            self.prompts_about[rows], self.names_about[rows] = np.array(list(self._about.values()), np.uint64).T
        self.systems = _array(self._systems, np.int64)
        self.passage_counts = _array(self._counts, np.int8).astype(bool)
        # Rows with one prompt or one passage are found by that, and what they alone share tells nothing more.
        told = np.where(self.passage_counts, ~self.passages, self.prompts)
        self.runs_of, self.shared, self.within = self._runs.close(len(self), self.names, told)


def _array(values: array[int], kind: type[np.generic]) -> NDArray[Any]:
    return np.frombuffer(values, dtype=kind) if len(values) else np.zeros(0, kind)

