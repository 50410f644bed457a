"""Draws, and selection over answers that are hard to select from."""

from __future__ import annotations

import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.config import Sampling
from alignment.errors import StageError
from alignment.inference.draws import choose, draws
from alignment.records import Record
from alignment.sampling.answers import Answer
from alignment.sampling.batch import Part
from alignment.sampling.measures import histogram, measures
from alignment.sampling.prompts import as_prompt
from alignment.sampling.select import best_of_n, pairs_max_min, pairs_newest_previous

NAN = math.nan


def prompt(row: str) -> Record:
    turns = [{"role": "user", "content": row}]
    return Record(row, "prompt-completion", turns, "ref", meta={"passage": "p", "group": row})


def said(row: str, index: int, score: float, text: str = "", finished: bool = True, model: str = "newest") -> Answer:
    return Answer(row, model, index, text or f"{model} {index}", 3, finished, score)  # type: ignore[arg-type]


def ask(*rows: str) -> dict[str, Record]:
    return {row: prompt(row) for row in rows}


@pytest.mark.parametrize(("one", "other"), [
    ("if x:\n    y()", "if x:\ny()"), ("a\nb", "a b"), ("a  b", "a b"), ("- a\n  - b", "- a\n- b"),
])
def test_answers_that_differ_in_blanks_within_are_two(one: str, other: str) -> None:
    made = pairs_max_min(ask("a"), [said("a", 0, 3, f"{one}\n"), said("a", 1, 1, other)])
    assert [(record.completion, record.rejected) for record in made.records] == [(f"{one}\n", other)]


# --- best of n -----------------------------------------------------------------------------------------------


def test_best_joins_by_id_in_any_order_of_answers() -> None:
    answers = [said(row, i, (i * 7 + len(row)) % 5, f"{row}{i}") for row in ("a", "bb", "ccc") for i in range(4)]
    wanted = {row: max((a for a in answers if a.id == row), key=lambda a: a.score).text for row in ("a", "bb", "ccc")}
    random.Random(1).shuffle(answers)
    made = best_of_n(ask("a", "bb", "ccc"), answers)
    assert {record.id: record.completion for record in made.records} == {f"{k}-best": v for k, v in wanted.items()}
    assert not made.dropped
    first = made.records[0]
    assert (first.type, first.prompt) == ("prompt-completion", [{"role": "user", "content": "a"}])
    assert first.meta == {"passage": "p", "group": "a", "prompt_id": "a", "score": 3, "n": 4}


@pytest.mark.parametrize(("answers", "reason"), [
    ([said("a", 0, 9, finished=False), said("a", 1, 8, finished=False)], "best: every answer cut by max_new_tokens"),
    ([said("a", 0, NAN), said("a", 1, 3, finished=False)], "best: every finished answer without a score (NaN)"),
    ([said("a", 0, 1, text=" \n"), said("a", 1, math.inf)],
     "best: no finished answer that says something and has a finite score"),
    ([said("a", 0, 5, model="previous")], "best: no answer"),
    ([said("a", 0, 0.5)], "best: score under min_score"),
])
def test_best_refuses_with_a_reason(answers: list[Answer], reason: str) -> None:
    made = best_of_n(ask("a"), answers, min_score=0.6)
    assert made.records == []
    assert dict(made.dropped) == {reason: 1}


def test_best_passes_over_what_cannot_be_learned_and_keeps_min_score_itself() -> None:
    answers = [said("a", 0, NAN), said("a", 1, 9, finished=False), said("a", 2, 0.6), said("a", 3, 0.6)]
    (record,) = best_of_n(ask("a"), answers, min_score=0.6).records
    assert record.completion == "newest 2"  # of a tie the first draw


def test_an_answer_to_an_unknown_prompt_is_an_error_not_a_shift() -> None:
    with pytest.raises(KeyError):
        best_of_n(ask("a"), [said("b", 0, 1)])


# --- pairs ---------------------------------------------------------------------------------------------------


def test_max_min_takes_the_ends_and_lets_a_cut_answer_be_rejected() -> None:
    answers = [said("a", 0, 2), said("a", 1, 5), said("a", 2, 1, finished=False), said("a", 3, 9, finished=False),
               said("a", 4, NAN)]
    (record,) = pairs_max_min(ask("a"), answers).records
    assert (record.id, record.type) == ("a-pair", "preference")
    assert (record.completion, record.rejected) == ("newest 1", "newest 2")
    assert (record.meta["chosen_score"], record.meta["rejected_score"], record.meta["passage"]) == (5, 1, "p")


@pytest.mark.parametrize(("answers", "reason"), [
    ([said("a", 0, 1), said("a", 1, 1)], "tied scores"),
    ([said("a", 0, 3), said("a", 1, 2.5)], "chosen not over rejected by min_margin"),
    ([said("a", 0, 2), said("a", 1, 1.5)], "chosen not over rejected by min_margin"),
    ([said("a", 0, 3, "x y\n"), said("a", 1, 1, " x y")], "only identical answers"),
    ([said("a", 0, 3), said("a", 1, NAN)], "no second answer with a score"),
    ([said("a", 0, 3), said("a", 1, 0, text=" ")], "no second answer with a score"),
    ([said("a", 0, 1), said("a", 1, 3, finished=False)], "chosen not over rejected by min_margin"),
    ([said("a", 0, 1, finished=False), said("a", 1, 3, finished=False)], "every answer cut by max_new_tokens"),
])
def test_pairs_refuse_with_a_reason(answers: list[Answer], reason: str) -> None:
    made = pairs_max_min(ask("a"), answers, min_margin=0.5)
    assert made.records == []
    assert dict(made.dropped) == {f"pairs: {reason}": 1}


def test_the_chosen_side_of_a_pair_must_reach_min_score() -> None:
    answers = [said("a", 0, 3), said("a", 1, 1)]
    assert len(pairs_max_min(ask("a"), answers, min_score=3).records) == 1
    assert dict(pairs_max_min(ask("a"), answers, min_score=3.1).dropped) == {"pairs: chosen under min_score": 1}


def test_newest_previous_never_prefers_the_previous_model() -> None:
    newest = [said("a", 0, 4), said("a", 1, 3)]
    previous = [said("a", 0, 3, model="previous"), said("a", 1, 2, model="previous")]
    (record,) = pairs_newest_previous(ask("a"), [*previous, *newest]).records
    assert (record.completion, record.rejected) == ("newest 0", "previous 1")
    worse = [said("a", 0, 1), *previous]
    assert dict(pairs_newest_previous(ask("a"), worse).dropped) == {"pairs: chosen not over rejected by min_margin": 1}
    (record,) = pairs_max_min(ask("a"), worse).records  # max-min goes by score alone, over both models
    assert (record.completion, record.rejected) == ("previous 0", "newest 0")
    assert dict(pairs_newest_previous(ask("a"), newest).dropped) == {"pairs: no second answer with a score": 1}


@given(st.lists(st.tuples(
    st.sampled_from("abc"), st.sampled_from([0.0, 1.0, 2.0, NAN, math.inf]), st.sampled_from(["x", " x", "y", ""]),
    st.booleans(), st.sampled_from(["newest", "previous"]),
)), st.sampled_from([0.0, 1.0]), st.randoms())
def test_selection_keeps_its_promises(
    rows: list[tuple[str, float, str, bool, str]], margin: float, chance: random.Random
) -> None:
    answers = [Answer(row, model, i, text, 1, finished, score)  # type: ignore[arg-type]
               for i, (row, score, text, finished, model) in enumerate(rows)]
    prompts = ask("a", "b", "c")
    shuffled = answers.copy()
    chance.shuffle(shuffled)
    best = best_of_n(prompts, answers, min_score=1.0)
    assert best == best_of_n(prompts, shuffled, min_score=1.0)
    assert len(best.records) + best.dropped.total() == 3
    for record in best.records:
        assert any(a.id == record.meta["prompt_id"] and a.text == record.completion and a.score == record.meta["score"]
                   and a.finished and a.model == "newest" for a in answers)
    for select in (pairs_max_min, pairs_newest_previous):
        pairs = select(prompts, answers, min_margin=margin)
        assert pairs == select(prompts, shuffled, min_margin=margin)
        assert len(pairs.records) + pairs.dropped.total() == 3
        for record in pairs.records:
            assert record.completion is not None
            assert record.rejected is not None
            assert record.completion.split() != record.rejected.split()
            assert record.meta["chosen_score"] - record.meta["rejected_score"] > margin
            assert any(a.text == record.completion and a.finished for a in answers if a.id == record.meta["prompt_id"])


# --- draws, prompts, measures, parts ---------------------------------------------------------------------------


def test_draws_follow_ranges_seed_row_and_index() -> None:
    ranges = {"temperature": (0.2, 0.9), "top_p": (0.1, 0.7), "top_k": (0, 4)}
    sampling = Sampling(**ranges, repetition_penalty=1.1, max_new_tokens=9)
    first = Sampling(temperature=0.7, top_p=0.2)
    made = [draw for row in range(100) for draw in draws(f"r{row}", 5, 4, sampling, first)]
    assert draws("r7", 5, 4, sampling, first) == tuple(made[28:32])
    assert {(d.temperature, d.top_p, d.top_k, d.max_new_tokens) for d in made[::4]} == {(0.7, 0.2, 0, 128)}
    rest = [draw for index, draw in enumerate(made) if index % 4]
    assert all(0.2 <= d.temperature <= 0.9 and 0.1 <= d.top_p <= 0.7 for d in rest)
    assert {d.top_k for d in rest} == {0, 1, 2, 3, 4}
    assert min(d.temperature for d in rest) < 0.25
    assert max(d.temperature for d in rest) > 0.85
    assert {(d.repetition_penalty, d.max_new_tokens) for d in rest} == {(1.1, 9)}
    assert len({d.seed for d in made}) == 400
    assert draws("r7", 5, 2, sampling)[1] == made[29]  # more draws add, and change none
    assert {d.seed for d in draws("r7", 6, 4, sampling)}.isdisjoint(d.seed for d in made)
    assert {d.seed for d in draws("r7", 5, 4, sampling, model="previous")}.isdisjoint(d.seed for d in made)


def test_taking_more_prompts_adds_and_keeps_the_order() -> None:
    records = [prompt(f"r{i}") for i in range(50)]
    few, more = choose(records, 10, 3), choose(records, 25, 3)
    assert (len(few), len(more)) == (10, 25)
    assert {r.id for r in few} < {r.id for r in more}
    assert more == [record for record in records if record in more]
    assert {r.id for r in choose(records, 10, 4)} != {r.id for r in few}
    assert choose(records, None, 3) == choose(records, 99, 3) == records


def test_prompts_of_every_record_type() -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    talk = as_prompt(Record("m", "messages", messages=turns))
    assert talk is not None
    assert (talk.prompt, talk.completion) == (turns[:1], "b")
    unwanted = as_prompt(Record("u", "unpaired", turns[:1], "bad", label=False))
    assert unwanted is not None
    assert unwanted.completion is None
    assert as_prompt(Record("e", "messages", messages=[])) is None
    assert as_prompt(Record("s", "prompt-only", turns)) is None
    assert as_prompt(prompt("a")) == prompt("a")


def test_measures_by_hand() -> None:
    answers = [said("a", 0, 1.0), said("a", 1, 3.0, finished=False), said("b", 0, 0.0), said("b", 1, NAN),
               said("b", 0, -1.0, model="previous")]
    got = measures(answers)
    assert got["mean_score"] == pytest.approx(4 / 3)
    assert got["best_score"] == 1.5
    assert got["worst_score"] == 0.5
    assert got["best_gain"] == 0.5, "by prompt: where some answers have no score, best less mean of all may be under 0"
    assert got["finished_share"] == 0.75
    assert (got["prompts"], got["answers"], got["previous_mean_score"]) == (2, 4, -1)
    assert "mean_function" not in got
    assert measures(answers[::-1]) == pytest.approx(got)
    bars = histogram(answers)
    assert (len(bars["edges"]), len(bars["counts"]), sum(bars["counts"])) == (21, 20, 3)
    with pytest.raises(StageError, match="number"):
        measures([said("a", 0, NAN)])


def test_a_part_survives_its_file_and_a_nan_becomes_null_in_rows() -> None:
    part = Part([said("a", 0, 1.5), said("a", 1, NAN)], [{"id": "b", "reason": "r", "raw": {}}], 0.25)
    again = Part.from_json(part.to_json())
    assert again.answers[0] == part.answers[0]
    assert math.isnan(again.answers[1].score)
    assert (again.bad, again.seconds) == (part.bad, part.seconds)
    record = json.loads(part.answers[1].to_record(prompt("a")).to_json(), parse_constant=lambda text: pytest.fail(text))
    assert (record["id"], record["meta"]["score"], record["meta"]["model"]) == ("a-newest-1", None, "newest")
