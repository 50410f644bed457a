"""A few of many rows: which are drawn, that all are counted, and that the longest are there."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from alignment.records.few import LONGEST, Few


@given(st.lists(st.text(max_size=9), max_size=60), st.integers(1, 20))
def test_all_are_counted_and_each_is_drawn_once(rows: list[str], few: int) -> None:
    taken, numbered = Few("seed", whole=20, few=few), list(enumerate(rows))
    given_back = taken.of(iter(numbered), lambda row: len(row[1]))
    drawn, longest = given_back[:taken.drawn], given_back[taken.drawn:]
    assert taken.read == len(rows)
    assert drawn == sorted(drawn)
    assert len(set(given_back)) == len(given_back)
    assert (drawn == numbered and not longest) if taken.is_whole else len(drawn) == few
    assert taken.is_whole == (len(rows) <= 20)
    top = sorted(map(len, rows), reverse=True)[:LONGEST]
    assert sorted((len(text) for _, text in given_back), reverse=True)[:len(top)] == top


def test_every_row_is_as_likely_as_another() -> None:
    counts = Counter(row for seed in range(2000) for row in _drawn(str(seed)))
    assert sum(counts.values()) == 2000 * 4
    assert all(abs(counts[row] - 400) < 100 for row in range(20)), counts  # five standard deviations


def test_the_same_seed_draws_the_same_and_another_others() -> None:
    assert _drawn("1") == _drawn("1") != _drawn("2")


def _drawn(seed: str) -> list[int]:
    few = Few(seed, whole=8, few=4)
    return few.of(range(20), lambda row: 1)[:4]
