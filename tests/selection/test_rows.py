"""What is read of a row, cuts through scores, joins by id: pure functions over records."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.errors import StageError
from alignment.records import Record
from alignment.selection.rows import (
    NO_SCORE,
    answer_scores,
    instruction_of,
    judged_of,
    merged_rows,
    scored_rows,
    size_of,
    together,
)
from alignment.selection.scores import above, below, histogram, printed, quantile_cut

SCORES = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=60).filter(lambda own: min(own) < max(own))


def row(name: str, text: str = "What is it?", answer: str | None = "A boat.", **meta: Any) -> Record:
    return Record(name, "prompt-only" if answer is None else "prompt-completion",
                  [{"role": "user", "content": text}], answer, meta=meta)


@given(SCORES, st.floats(0.01, 0.99))
def test_a_quantile_parts_rows_in_two_and_neither_part_is_empty_unless_ties_say_so(
    scores: list[float], quantile: float
) -> None:
    cut = quantile_cut(scores, quantile)
    assert cut in scores
    scored = [(row(f"r{at}"), score) for at, score in enumerate(scores)]
    high, low = above(scored, cut, "q"), below(scored, cut, "q", inclusive=True)
    assert {one.id for one in high.records} | {one.id for one in low.records} == {one.id for one, _ in scored}
    assert not {one.id for one in high.records} & {one.id for one in low.records}
    assert len(low.records) >= quantile * len(scores) - 1e-9
    assert len([score for score in scores if score < cut]) < quantile * len(scores) + 1e-9


def test_a_threshold_itself_is_neither_above_nor_below() -> None:
    scored = [(row("a"), 0.0), (row("b"), 1.0), (row("c"), -1.0)]
    assert [one.id for one in above(scored, 0.0, "q").records] == ["b"]
    assert [one.id for one in below(scored, 0.0, "q", inclusive=False).records] == ["c"]
    assert above(scored, 0.0, "q").records[0].meta == {"q": 1.0}
    assert above(scored, 0.0, "q").left[0] == {"id": "a", "reason": "score not above the cut", "score": 0.0}


def test_a_quantile_of_equal_scores_is_an_error() -> None:
    with pytest.raises(StageError, match="all scores are the same"):
        quantile_cut([0.5, 0.5], 0.5)


@given(SCORES)
def test_a_histogram_counts_every_row_and_marks_the_cut(scores: list[float]) -> None:
    found = histogram(scores)
    assert sum(found["counts"]) == len(scores)
    assert len(printed(found, scores[0])) == len(found["counts"])


@pytest.mark.parametrize(("record", "said"), [
    (row("a", answer=None), "prompt-only has no answer to learn"),
    (row("a", answer=" "), "the answer is empty"),
    (Record("a", "unpaired", [{"role": "user", "content": "x"}], "y", label=False), "unpaired with an unwanted answer"),
    (Record("a", "messages", messages=[{"role": "assistant", "content": "x"}]), "no prompt before the answer"),
    (Record("a", "messages", messages=[{"role": "user", "content": "x"}, {
        "role": "assistant", "content": "", "tool_calls": [{}]}]), "the answer is a call"),
])
def test_a_row_without_an_answer_to_score_says_why(record: Record, said: str) -> None:
    assert judged_of(record) == said


def test_the_chosen_side_of_a_preference_is_what_is_scored() -> None:
    one = judged_of(Record("p", "preference", [{"role": "user", "content": "q"}], "good", "bad"))
    assert not isinstance(one, str)
    assert (one.prompt, one.answer) == ([{"role": "user", "content": "q"}], "good")


@pytest.mark.parametrize(("record", "said"), [
    (row("a", "Name it.\n\nA red boat.\n\nAnd more."), "Name it."),
    (row("a", "The harbour is deep.\n\nHow deep?", question="How deep?"), "How deep?"),
    (row("a", "x\n\ny", task={"instruction": "Do it."}), "Do it."),
    (Record("a", "messages", messages=[{"role": "user", "content": "first"}, {"role": "assistant", "content": "b"},
                                       {"role": "user", "content": "last"}]), "last"),
    (Record("a", "messages", messages=[{"role": "assistant", "content": "b"}]), None),
])
def test_the_instruction_is_what_says_what_to_do(record: Record, said: str | None) -> None:
    assert instruction_of(record) == said


def test_the_whole_turn_where_that_is_asked_for() -> None:
    assert instruction_of(row("a", "Name it.\n\nA red boat."), whole=True) == "Name it.\n\nA red boat."


IDS = st.sampled_from(["a", "b", "c", "d"])
ROWS = st.lists(st.builds(row, IDS, st.sampled_from(["x", "y"]), st.sampled_from(["1", "2"])), max_size=8)


@given(st.lists(ROWS, max_size=3))
def test_merged_rows_have_each_id_and_each_text_once_and_lose_none_unsaid(sets: list[list[Record]]) -> None:
    made = merged_rows(sets)
    texts = [(one.prompt[0]["content"], one.completion) for one in made.records]
    assert len({one.id for one in made.records}) == len(made.records)
    assert len(set(texts)) == len(texts)
    every = [record for records in sets for record in records]
    assert len(every) == len(made.records) + len(made.left) + len(made.bad)
    for bad in made.bad:  # only a row that says something else under the id of another
        kept = next(one for one in made.records if one.id == bad["id"])
        assert bad["raw"] != {"id": kept.id, "type": kept.type, "prompt": kept.prompt, "completion": kept.completion}


@given(st.lists(ROWS, max_size=3))
def test_rows_of_several_sets_have_each_id_once(sets: list[list[Record]]) -> None:
    records, bad = together(sets)
    assert len({one.id for one in records}) == len(records)
    assert len(records) + len(bad) == sum(map(len, sets))


@given(st.permutations(["a", "b", "c"]))
def test_scores_are_joined_by_id_in_whatever_order_they_come(order: list[str]) -> None:
    scores = {name: {"a": 1.0, "b": math.nan, "c": 3.0}[name] for name in order}
    good, bad = scored_rows([row("c"), row("b"), row("a"), row("d")], scores, "not asked")
    assert [(one.id, score) for one, score in good] == [("c", 3.0), ("a", 1.0)]
    assert [(one["id"], one["reason"]) for one in bad] == [("b", NO_SCORE), ("d", "not asked")]


def test_of_several_answers_to_a_row_the_mean_counts_and_a_missing_score_is_no_number() -> None:
    def said(prompt: str, score: float | None, model: str = "newest") -> Record:
        return row("s", prompt_id=prompt, score=score, model=model)

    found = answer_scores([said("a", 1.0), said("a", 2.0), said("a", 9.0, "previous"), said("b", None),
                           said("b", 1.0)])
    assert found["a"] == 1.5
    assert math.isnan(found["b"])


@pytest.mark.parametrize(("rows", "take", "share", "size"), [
    (10, 3, None, 3), (10, None, 0.25, 2), (10, None, 0.01, 1), (10, None, 1.0, 10),
])
def test_a_share_is_of_the_rows_and_at_least_one(rows: int, take: int | None, share: float | None, size: int) -> None:
    assert size_of(rows, take, share) == size
