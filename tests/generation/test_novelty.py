"""The index gives rouge_score's numbers, and decides as asking every text does."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score import rouge_scorer
from rouge_score.tokenize import tokenize

from alignment.generation.novelty import TOKENS, Novelty, rouge_tokens
from alignment.words import words

DATA = Path(__file__).parents[2] / "../shared/data"
SCORER = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
WORDS = st.lists(st.sampled_from(["the", "a", "boat", "red", "Tar's", "12", "né", "船"]), max_size=12).map(" ".join)


def reference(pool: Sequence[str], text: str) -> list[float]:
    return [SCORER.score(other, text)["rougeL"].fmeasure for other in pool]


def index(pool: Sequence[str], tokens: str = "rouge") -> Novelty:
    made = Novelty(TOKENS[tokens])
    for text in pool:
        made.add(text)
    return made


@given(st.text(max_size=60))
def test_tokens_are_rouge_scores(text: str) -> None:
    assert rouge_tokens(text) == tokenize(text, None)


@given(st.lists(WORDS, max_size=12), WORDS, st.sampled_from([0.0, 0.3, 0.5, 0.7, 0.9, 1.0]))
def test_numbers_and_decisions_are_the_references(pool: list[str], text: str, threshold: float) -> None:
    wanted, made = reference(pool, text), index(pool)
    assert made.scores(text).tolist() == wanted
    near = made.nearest(text, threshold)
    assert (near is not None) == (max(wanted, default=0.0) > threshold)
    if near is not None:
        assert near == (wanted.index(max(wanted)), max(wanted))
    similar = made.similar(text, 3)
    ranked = sorted(range(len(pool)), key=lambda row: (-wanted[row], row))
    assert [(one.row, one.score) for one in similar.top] == [(row, wanted[row]) for row in ranked[:3] if wanted[row]]
    assert similar.mean == (numpy.mean(wanted) if wanted else 0.0)


@pytest.mark.parametrize("long", [31, 32, 33, 63, 64, 65, 124, 125, 200])
def test_texts_of_any_length_are_compared_in_full(long: int) -> None:
    draw = random.Random(long)
    texts = [" ".join(draw.choices("abcdefg", k=draw.randrange(1, 400))) for _ in range(40)]
    text = " ".join(draw.choices("abcdefg", k=long))
    assert index(texts).scores(text).tolist() == reference(texts, text)


def test_a_pool_that_grows_is_the_pool_made_at_once() -> None:
    draw = random.Random(5)
    texts = [" ".join(draw.choices(["a", "b", "c", "d"], k=draw.randrange(9))) for _ in range(200)]
    grown = Novelty()
    for number, text in enumerate(texts):
        assert grown.scores(text).tolist() == index(texts[:number]).scores(text).tolist() if number % 50 == 0 else True
        assert grown.add(text) == number
    assert grown.scores("a b").tolist() == index(texts).scores("a b").tolist()


def test_chinese_is_compared_by_character_where_rouge_score_would_see_nothing() -> None:
    pool = ["请写一首关于夏天的诗", "给出下面词语的同义词"]
    assert reference(pool, "请写一首关于冬天的诗") == [0.0, 0.0]
    near = index(pool, "words").nearest("请写一首关于冬天的诗", 0.7)
    assert near is not None
    assert near == (0, 2 * 0.9 * 0.9 / 1.8)


def _rows(name: str) -> list[str]:
    text = (DATA / name).read_text(encoding="utf-8")
    rows = json.loads(text) if name.endswith(".json") else [json.loads(line) for line in text.split("\n") if line]
    return [row.get("instruction") or row["prompt"] for row in rows]


def plain_decisions(pool: list[list[str]], candidates: list[list[str]], threshold: float) -> list[bool]:
    """The reference's loop over token lists: rouge_score's own table, skipped where fewer tokens are shared than the
    threshold needs."""
    kept, sets = [], [frozenset(tokens) for tokens in pool]
    pool = list(pool)
    for tokens in candidates:
        own = frozenset(tokens)
        for other, held in zip(pool, sets, strict=True):
            total = len(tokens) + len(other)
            few = min(sum(token in held for token in tokens), len(other)) if own & held else 0
            if total and 2 * few / total > threshold - 1e-9 and (
                    rouge_scorer._score_lcs(other, tokens).fmeasure > threshold):
                kept.append(False)
                break
        else:
            kept.append(True)
            pool.append(tokens)
            sets.append(own)
    return kept


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="the public data sets are not beside the checkout")
@pytest.mark.parametrize(("language", "seeds", "rows"), [
    ("rouge", "seeds/self_instruct_seed_tasks_en.jsonl", ["instruct/alpaca_en_999.json", "instruct/t0_p3_5k.jsonl"]),
    ("words", "seeds/belle_seed_tasks_zh.jsonl", ["instruct/alpaca_zh_1000.json"]),
])
def test_decisions_over_seed_tasks_and_two_thousand_rows_are_the_references(
    language: str, seeds: str, rows: list[str]
) -> None:
    pool, candidates = _rows(seeds), [" ".join(text.split()[:40]) for name in rows for text in _rows(name)][:2000]
    if language == "words":  # each a second time, two characters the other way round
        candidates += [text[:4] + text[5:6] + text[4:5] + text[6:] for text in candidates]
    split = tokenize_for(language)
    wanted = plain_decisions([split(text) for text in pool], [split(text) for text in candidates], 0.7)
    made, found = index(pool, language), []
    for text in candidates:
        found.append(made.nearest(text, 0.7) is None)
        if found[-1]:
            made.add(text)
    assert len(candidates) == 2000
    assert found == wanted
    assert 0.02 < found.count(False) / len(found) < 0.9


def tokenize_for(language: str):  # type: ignore[no-untyped-def]
    return (lambda text: tokenize(text, None)) if language == "rouge" else words
