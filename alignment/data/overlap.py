"""Has a test row been seen? By id, by prompt, by passage, or by runs of words.

The usual contamination check (Brown et al. 2020, arXiv:2005.14165, appendix C) with shorter runs: a row counts as
seen when at least half of its 8-grams occur in seen rows. Rows are gone through once and held as numbers (runs.py),
about 100 bytes each. Does not find paraphrases.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alignment.data.compared import ComparedTexts, text_of
from alignment.data.runs import NEVER
from alignment.records import Record

COMMON = 50
"""A run of words in more texts than this is boilerplate (an instruction around each row) and proves nothing; among
fewer than 4 x COMMON texts the limit is a quarter of them, but at least FEW."""
FEW = 10
SHARE = 0.5
"""Of a row's telling 8-grams, from which on it counts as seen."""
Rows = NDArray[np.int64]
Found = list[tuple[int, int, str]]
"""(test row, seen row, reason)"""


def find_overlap(test: Iterable[Record], seen: Iterable[Record], folder: Path | None = None
                 ) -> dict[str, tuple[str, str]]:
    """Test id -> (id of a seen row, reason).

    Reasons: `same-id`, `same-prompt`, `same-passage`, `shared-text` (at least half of the 8-grams of passage and
    question; the row named is the first to hold most of them). Units are words, in scripts without blanks characters
    (`alignment.words`); system messages count where `Overlaps.subjects` says so. A text under 16 units has too few
    8-grams: it overlaps when it stands as a whole in a seen text under 32 units, so that short generic questions are
    not taken for copies of each other.

    Args:
        seen: gone through once.
        folder: for temporary files, where there is much text.
    """
    rows = Overlaps(folder)
    for record in test:
        rows.add(text_of(record))
    first = len(rows)
    rows.only_what_is_there()
    for record in seen:
        rows.add(text_of(record))
    rows.close()
    every = np.arange(len(rows))
    found = rows.between(every[:first], every[first:], rows.subjects(every))
    return {rows.ids[one]: (rows.ids[other], reason) for one, other, reason in found}


class Overlaps(ComparedTexts):
    """Rows among which overlap is looked for, any of them against any others."""

    def subjects(self, rows: Rows) -> NDArray[np.bool_]:
        """Of all rows, whether their system message is what they are about, as these rows show.

        A system message that many rows share is a role and counts for nothing. One of at least 16 units, before a
        conversation of fewer and before at most FEW different ones, is a text that is asked about ("Sum up the
        log."): the same question about another such text is another row.
        """
        systems = self.systems[rows]
        told = systems >= 0
        if not told.any():
            return np.zeros(len(self), bool)
        pairs = np.unique(np.stack([systems[told].astype(np.uint64), self.prompts[rows][told]]), axis=1)
        few = np.bincount(pairs[0].astype(np.int64), minlength=len(self.system_numbers) + 1) <= FEW
        subject: NDArray[np.bool_] = self.may_be_about & few[self.systems]
        return subject

    def between(self, test: Rows, seen: Rows, subject: NDArray[np.bool_]) -> Found:
        """Those of the test rows that overlap a seen row, in the order of the test rows.

        Args:
            test, seen: row numbers; which of several seen rows is named goes by their order.
            subject: `subjects` of the rows that are compared.
        """
        reasons: dict[int, tuple[int, str]] = {}
        prompts = np.where(subject, self.prompts_about, self.prompts)
        left = test
        for keys, reason in ((self.keys, "same-id"), (prompts, "same-prompt"), (self.passages, "same-passage")):
            others = _first_with(keys[seen], keys[left])
            same = others >= 0
            if reason == "same-passage":
                same &= self.passage_counts[left]
            reasons |= {int(row): (int(seen[other]), reason) for row, other in
                        zip(left[same], others[same], strict=True)}
            left = left[~same]
        for row, other in self._shared(left, seen, subject):
            reasons[row] = (other, "shared-text")
        return [(row, *reasons[row]) for row in test.tolist() if row in reasons] if reasons else []

    def _shared(self, test: Rows, seen: Rows, subject: NDArray[np.bool_]) -> list[tuple[int, int]]:
        """(test row, seen row) of rows that share runs of words."""
        if not len(test) or not len(seen):
            return []
        place = np.full(len(self), NEVER)
        place[seen] = np.arange(len(seen))
        place[subject] = NEVER  # a generic question about a system message is compared as a whole prompt only
        asked = np.zeros(len(self), bool)
        asked[test] = True
        asked[subject] = False
        names = np.where(subject, self.names_about, self.names)[np.concatenate([test, seen])]
        limit = min(COMMON, max(FEW, len(np.unique(names)) // 4))
        telling_rows, telling_places, boilerplate = [], [], np.zeros(len(self), np.int64)
        for block in self.shared:
            rows, places, common = block.hits(asked, place, limit)
            telling_rows.append(rows[~common])
            telling_places.append(places[~common])
            boilerplate += np.bincount(rows[common], minlength=len(self))
        rows = np.concatenate([np.zeros(0, np.int64), *telling_rows])
        places = np.concatenate([np.zeros(0, np.int64), *telling_places])
        telling = np.bincount(rows, minlength=len(self))
        enough = (telling > 0) & (telling >= SHARE * (self.runs_of - boilerplate))
        kept = enough[rows]
        order = np.argsort(rows[kept], kind="stable")
        rows, places = rows[kept][order], places[kept][order]
        found = []
        for part in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows)) + 1) if len(rows) else ():
            # By id, because sets have another order in each process and equal counts are first come, first named.
            by_id = {self.ids[row]: row for row in seen[places[part]].tolist()}
            counts = Counter(sorted(self.ids[row] for row in seen[places[part]].tolist()))
            found.append((int(rows[part[0]]), by_id[counts.most_common(1)[0][0]]))
        for block in self.within:
            rows, places, _ = block.hits(asked, place, len(self))
            found += zip(rows.tolist(), seen[places].tolist(), strict=True)
        return found


def _first_with(keys: NDArray[np.uint64], wanted: NDArray[np.uint64]) -> Rows:
    """Where each wanted key stands first among the keys; -1 where it does not, and for the key 0."""
    values, first = np.unique(keys, return_index=True)
    if not len(values):
        return np.full(len(wanted), -1)
    at = np.minimum(np.searchsorted(values, wanted), len(values) - 1)
    return np.where((values[at] == wanted) & (wanted != 0), first[at], -1)

