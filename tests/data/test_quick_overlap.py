"""Overlap and splits by ratio, with rows as numbers, are those of the plain way: on rows that share much."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.data import run_files, runs
from alignment.data.overlap import find_overlap
from alignment.data.splits import by_ratio
from alignment.records import Record
from tests.data import plain_overlap

RATIOS = ({"a": 0.5, "b": 0.5}, {"a": 0.7, "b": 0.2, "c": 0.1}, {"a": 0.6, "b": 0.2}, {"a": 1.0}, {"a": 0.9})


def made(draw: random.Random, count: int) -> list[Record]:
    """Rows of few words: copies, frames, short questions, passages, groups, long system messages, several turns."""
    words = [f"w{number}" for number in range(draw.choice([6, 30, 200]))]

    def text(low: int, high: int) -> str:
        return " ".join(draw.choices(words, k=draw.randint(low, high)))

    frames, systems = [text(8, 40) for _ in range(6)], [*(text(10, 25) for _ in range(4)), "", "", "Be brief."]
    rows = []
    for number in range(count):
        prompt = draw.choice([f"{text(0, 10)} {draw.choice(frames)} {text(0, 6)}", text(1, 14), text(10, 40)]).strip()
        prompt = f"{prompt.upper()}!" if draw.random() < 0.2 else prompt
        meta: dict[str, object] = {}
        if (group := draw.choice([None, None, None, "g1", "g2", "", 0, frames[0]])) is not None:
            meta["group"] = group
        if draw.random() < 0.25:
            passage = draw.choice([draw.choice(frames), text(1, 6), text(8, 30)])
            meta |= {"passage": passage, "question": prompt}
            prompt = f"{passage}\n\n{prompt}"
        turns = [{"role": "system", "content": system}] if (system := draw.choice(systems)) else []
        turns.append({"role": "user", "content": prompt})
        if draw.random() < 0.1:
            turns += [{"role": "assistant", "content": text(3, 10)}, {"role": "user", "content": text(2, 20)}]
        rows.append(Record(f"r{number}", "prompt-only", turns, meta=meta))
    return rows


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 90), st.floats(0, 1))
def test_overlap_is_that_of_the_plain_way(seed, count, share):
    rows = made(random.Random(seed), count)
    test, seen = rows[:int(share * count)], rows[int(share * count):]
    if test and seen and seed % 3 == 0:
        test = [*test, Record(seen[-1].id, "prompt-only", test[0].prompt)]
    plain = plain_overlap.find_overlap(test, seen)
    assert list(find_overlap(test, iter(seen)).items()) == list(plain.items())


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 90), st.sampled_from(RATIOS))
def test_splits_are_those_of_the_plain_way(seed, count, ratios):
    rows = made(random.Random(seed), count)
    assert by_ratio(rows, ratios, seed) == plain_overlap.by_ratio(rows, ratios, seed)


def test_it_is_the_same_in_many_blocks_and_on_disk(monkeypatch):
    """As with rows too many for one block in memory."""
    rows = made(random.Random(5), 300)
    whole = by_ratio(rows, RATIOS[1], 1), find_overlap(rows[:100], rows[100:])
    monkeypatch.setattr(runs, "AT_ONCE", 64)
    monkeypatch.setattr(runs, "_PER_BLOCK", 32)
    for name, value in {"AT_ONCE": 64, "_IN_MEMORY": 512, "_WORDS": 20}.items():
        monkeypatch.setattr(run_files, name, value)
    assert (by_ratio(rows, RATIOS[1], 1), find_overlap(rows[:100], rows[100:])) == whole
    assert len(whole[1]) > 10


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_overlaps_nothing(count):
    rows = made(random.Random(1), count)
    assert find_overlap(rows, []) == {} == find_overlap([], rows)
    assert by_ratio(rows, RATIOS[0], 0) == plain_overlap.by_ratio(rows, RATIOS[0], 0)
