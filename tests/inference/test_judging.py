"""Scores of answers by a judge: what is asked, what is read, both orders, and what is asked only once."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from alignment.artifacts import Artifact, Store
from alignment.config import Sample, parse_run
from alignment.context import StageContext
from alignment.errors import ConfigError
from alignment.inference import judging
from alignment.inference.judging import Answered, AnswerScorer, JudgeTally
from alignment.inference.requests import Request
from alignment.records import Record
from tests.generation.scripted import SeveralAnswers
from tests.models import published

RED, BLUE = (Record(name, "prompt-completion", [{"role": "user", "content": f"What colour is the {name}?"}], "red")
             for name in ("boat", "gate"))


@pytest.fixture
def model(tmp_path: Path) -> Artifact:
    (tmp_path / "judge" / "model").mkdir(parents=True)
    made = published(Store(str(tmp_path / "store")), "judge-0", tmp_path / "judge")
    made.manifest.facts["context_length"] = 400
    return made


def context(model: Artifact, **score: Any) -> StageContext:
    run = parse_run(json.dumps({"name": "t", "seed": 5, "store": str(model.store.url), "stages": [
        {"name": "judge", "kind": "import", "model": {"source": "tiny"}},
        {"name": "data", "kind": "import", "data": [{"path": "x", "format": "passage-qa"}],
         "split": {"by": "ratio", "ratios": {"train": 1.0}}},
        {"name": "rs", "kind": "sample", "model": "judge", "prompts": ["data/train"],
         "score": {"judge": {"model": "judge", **score.pop("judge", {})}, **score}}]}))
    return StageContext(run, run.stage("rs"), model.store, "rs-0", "d" * 64, {"judge": model},
                        model.store.workdir("rs-0"))


def scorer(made: StageContext, engine: SeveralAnswers, batch: int = 4) -> AnswerScorer:
    return AnswerScorer(made, made.stage_as(Sample).score, {"judge": engine}, batch)


def by_length(request: Request, index: int) -> tuple[str, bool]:
    """As many points as the answer that is shown has words."""
    shown = request.prompt[-1]["content"].partition("Answer:\n")[2].partition("\n\n")[0]
    return f"Fine.\nScore: {len(shown.split())}", True


def test_each_answer_is_asked_about_once_and_scored_by_its_row_and_text(model: Artifact) -> None:
    engine = SeveralAnswers(by_length)
    made = context(model, function="brevity", function_weight=2.0, judge={"weight": 0.5})
    answers = [Answered(RED, "red"), Answered(RED, "dark red"), Answered(RED, " red\n"), Answered(BLUE, "red"),
               Answered(BLUE, "")]
    marks, tally = scorer(made, engine).marks(answers)
    assert [own.judge for own in marks] == [1, 2, 1, 1, None]
    assert [own.score for own in marks[:3]] == pytest.approx([2.5, 2 * (1 - 1 / 63) + 1, 2.5])
    assert math.isnan(marks[4].score), "an empty answer has no score, and none is made up for it"
    assert len(engine.asked) == len(set(engine.asked)) == tally.requests == tally.read == 3
    assert marks[1].judged == {"said": "Fine.\nScore: 2"}
    assert "from 1 (useless) to 10" in engine.prompts[0]
    alone, _ = scorer(made, other := SeveralAnswers(by_length), batch=1).marks(answers[::-1])
    assert [own.score for own in alone[1:]] == [own.score for own in marks[:4][::-1]]
    assert sorted(other.asked) == sorted(engine.asked)


@pytest.mark.parametrize(("text", "finished", "reason"), [
    ("seven", True, "no-score"), ("Score: 11", True, "score-off-scale"), ("Score: 1", False, "judgement-cut"),
    ("Score: 3\nScore: 4", True, "several-scores"), ("", True, "empty-judgement"),
])
def test_what_cannot_be_read_is_no_score_and_is_counted(
    model: Artifact, text: str, finished: bool, reason: str
) -> None:
    made = context(model, function="brevity")
    (own,), tally = scorer(made, SeveralAnswers(lambda request, index: (text, finished))).marks([Answered(RED, "red")])
    assert math.isnan(own.score)
    assert own.function == 1
    assert own.judged is not None
    assert own.judged["refused"] == reason
    assert (tally.requests, tally.read, tally.refused) == (1, 0, {reason: 1})
    assert tally.examples[0]["text"] == text


def test_a_prompt_beyond_the_judges_context_is_not_asked(model: Artifact) -> None:
    engine = SeveralAnswers(by_length)
    (long, short), tally = scorer(context(model), engine).marks(
        [Answered(RED, "red " * 300), Answered(RED, "red")])
    assert math.isnan(long.score)
    assert short.score == 1
    assert tally.refused == {"judge's prompt too long": 1}
    assert len(engine.asked) == 1


def prefers(*order: str) -> Any:
    """A judge that prefers the answer that comes first in `order`, whatever its place."""
    def answer(request: Request, index: int) -> tuple[str, bool]:
        text = request.prompt[-1]["content"]
        first = text.partition("Answer A:\n")[2].partition("\n\n")[0]
        second = text.partition("Answer B:\n")[2].partition("\n\n")[0]
        return f"Verdict: {'A' if order.index(first) < order.index(second) else 'B'}", True

    return answer


def test_compared_answers_score_the_share_that_they_win_in_both_orders(model: Artifact) -> None:
    engine = SeveralAnswers(prefers("red", "blue", "green"))
    answers = [Answered(RED, text) for text in ("green", "red", "blue", "red")]
    marks, tally = scorer(context(model, judge={"mode": "compare"}), engine).marks(answers)
    assert [own.score for own in marks] == [0, 1, 0.5, 1]
    assert (tally.requests, tally.compared, tally.disagreed) == (6, 3, 0)
    assert marks[0].judged == {"won": 0, "lost": 2, "tied": 0, "orders_disagree": 0, "unread": 0}


def test_a_judge_that_prefers_a_place_gives_ties_alone(model: Artifact) -> None:
    engine = SeveralAnswers(lambda request, index: ("Verdict: A", True))
    marks, tally = scorer(context(model, judge={"mode": "compare"}), engine).marks(
        [Answered(RED, "red"), Answered(RED, "blue"), Answered(BLUE, "one alone")])
    assert [own.score for own in marks[:2]] == [0.5, 0.5]
    assert math.isnan(marks[2].score), "an answer without another has won nothing and lost nothing"
    assert (tally.compared, tally.disagreed) == (1, 1)


def test_a_verdict_that_one_order_lacks_is_none(model: Artifact) -> None:
    engine = SeveralAnswers(lambda request, index: ("Verdict: A" if "Answer A:\nred" in request.prompt[0]["content"]
                                                    else "hard to say", True))
    marks, tally = scorer(context(model, judge={"mode": "compare"}), engine).marks(
        [Answered(RED, "red"), Answered(RED, "blue")])
    assert all(math.isnan(own.score) for own in marks)
    assert (tally.read, tally.refused, tally.compared) == (1, {"no-verdict": 1}, 0)


def test_a_rubric_without_its_slot_is_one_clear_error(model: Artifact, tmp_path: Path) -> None:
    (tmp_path / "rubric.txt").write_text("How good is {answer}?", encoding="utf-8")
    with pytest.raises(ConfigError, match="lacks \\{prompt\\}"):
        scorer(context(model, judge={"prompt": str(tmp_path / "rubric.txt")}), SeveralAnswers(by_length))


def test_a_rubric_may_show_the_reference(model: Artifact, tmp_path: Path) -> None:
    (tmp_path / "rubric.txt").write_text("{prompt} {reference}\nAnswer:\n{answer}\n\n{low} {high}", encoding="utf-8")
    engine = SeveralAnswers(by_length)
    made = context(model, judge={"prompt": str(tmp_path / "rubric.txt"), "scale": [0, 5]})
    marks, _ = scorer(made, engine).marks([Answered(RED, "a {reference} of six words or so"), Answered(RED, "red")])
    assert engine.prompts[1].startswith("What colour is the boat? red\nAnswer:\nred") or engine.prompts[0].startswith(
        "What colour is the boat? red\nAnswer:\nred")
    assert "a {reference} of" in " ".join(engine.prompts)
    assert math.isnan(marks[0].score), "seven words are off the scale"


def test_another_model_is_opened_only_where_none_is_open(model: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def opens(made: StageContext, name: str) -> SeveralAnswers:
        opened.append(name)
        return SeveralAnswers(by_length)

    monkeypatch.setattr(judging, "open_engine", opens)
    made = context(model)
    scorer(made, SeveralAnswers(by_length))
    assert opened == []
    AnswerScorer(made, made.stage_as(Sample).score, {}, 4)
    assert opened == ["judge"]


def test_tallies_add_up() -> None:
    whole = JudgeTally(1, 1, 5, {"a": 1}, [{"id": "x", "reason": "a", "text": ""}], 1, 1, [{"cost": 1}])
    whole.add(JudgeTally(2, 1, 5, {"a": 2, "b": 1}, [{"id": "y", "reason": "b", "text": ""}] * 9, 1, 0, [{"cost": 2}]))
    assert whole.facts() == {"requests": 3, "read": 2, "tokens": 10, "refused": {"a": 3, "b": 1}, "compared": 2,
                             "disagreed": 1, "examples": whole.examples}
    assert len(whole.examples) == 3
    assert len(whole.used) == 2
