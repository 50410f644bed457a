"""Named metrics over real files: numbers that can be counted in the files themselves, by other code."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sacrebleu.metrics import BLEU, CHRF

from alignment.config import Evaluate
from alignment.evaluation.measuring import measure_all
from alignment.evaluation.results import Question, Table, flat_metrics, question_of
from alignment.records import Record
from alignment.records.importers import read_source

DATA = Path(__file__).parents[2] / "../shared/data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="reads ../shared/data, which is not here")


def questions(path: str, format: str, columns: dict[str, str] | None = None) -> list[Question]:
    rows = read_source(str(DATA / path), format, "real", columns=columns)
    return [question_of(row) for row in rows if isinstance(row, Record)]


def table(asked: list[Question], says: dict[str, Callable[[Question], str]], **stage: Any) -> dict[str, float]:
    """Flat metrics of models that say what a function makes of the question."""
    config = Evaluate(name="eval", rows="seed/test", models=tuple(says), bootstrap=100, **stage)
    said = {name: {q.id: (answer(q), True) for q in asked} for name, answer in says.items()}
    numbers, counts = measure_all(config, asked, said, {})
    return flat_metrics(Table(config, asked, numbers, counts, seed=0).results())[0]


def test_boolq_is_won_by_the_majority() -> None:
    raw = [json.loads(line) for line in (DATA / "qa/boolq_validation.jsonl").read_text("utf-8").split("\n") if line]
    yes = sum(row["answer"] for row in raw) / len(raw)
    got = table(questions("qa/boolq_validation.jsonl", "boolq"), {
        "always": lambda q: "Yes, the passage says so.", "never": lambda q: "The passage is long. So the answer is no.",
        "mute": lambda q: "No passage says it."}, metrics=("yes_no", "words"))
    assert got["always.yes_no"] == pytest.approx(yes)
    assert got["always.yes_no"] == pytest.approx(2033 / 3270), "the majority's share that BoolQ's authors report"
    assert got["never.yes_no"] == pytest.approx(1 - yes)
    assert got["mute.yes_no"] == 0
    assert got["never_vs_always.yes_no_gain"] == pytest.approx(1 - 2 * yes)
    assert got["always.words"] == 5


def test_gsm8k_solutions_come_to_their_own_numbers() -> None:
    def without_mark(q: Question) -> str:
        steps, _, number = (q.reference or "").partition("####")
        return f"{steps}So it is ${number.strip()}.00 in all."

    file = "reasoning/gsm8k_train_3000.jsonl"
    raw = [json.loads(line) for line in (DATA / file).read_text("utf-8").split("\n") if line]
    wanted = [int(re.search(r"#### (-?[\d,]+)", row["answer"])[1].replace(",", "")) for row in raw]  # type: ignore[index]
    asked = questions(file, "columns", {"prompt": "question", "completion": "answer"})
    assert len(asked) == len(raw)
    got = table(asked, {"right": without_mark, "itself": lambda q: q.reference or "", "seven": lambda q: "7 = 7"},
                metrics=("final_number",))
    assert got["right.final_number"] == got["itself.final_number"] == 1
    assert got["seven.final_number"] == pytest.approx(wanted.count(7) / len(wanted))


def test_drops_answers_stand_in_sentences_that_say_them() -> None:
    asked = questions("qa/drop_contrast_test.json", "drop")
    got = table(asked, {"long": lambda q: f"I think that it must have been {q.reference}, as the passage says.",
                        "short": lambda q: q.reference or ""},
                metrics=("exact_match", "containment", "word_recall", "question_type"))
    assert got["long.containment"] == got["long.word_recall"] == got["short.exact_match"] == 1
    assert got["long.exact_match"] == 0
    numbers = [q for q in asked if q.record.meta["kind"] == "number"]
    assert len(numbers) > 300
    assert table(numbers, {"told": lambda q: f"That makes {q.reference} of them"},
                 metrics=("final_number",))["told.final_number"] == 1


def test_kinds_of_drop_are_told_apart() -> None:
    asked = questions("qa/drop_contrast_test.json", "drop")
    kinds = [q.record.meta["kind"] for q in asked]
    assert set(kinds) == {"number", "span", "spans", "date"}
    got = table(asked, {"knows": lambda q: f"This is a {q.record.meta['kind']} question.",
                        "guesses": lambda q: "A number question.", "hedges": lambda q: "A number, or a date."},
                metrics=("question_type",))
    assert got["knows.question_type"] == 1
    assert got["guesses.question_type"] == pytest.approx(kinds.count("number") / len(kinds))
    assert got["hedges.question_type"] == 0


@pytest.mark.parametrize(("language", "cut"), [("en", "13a"), ("zh", "zh")])
def test_xquad_has_sacrebleus_own_numbers(language: str, cut: str) -> None:
    asked = questions(f"qa/xquad.{language}.json", "squad")
    passage = {q.id: q.record.meta["passage"][:60] for q in asked}
    got = table(asked, {"cites": lambda q: passage[q.id], "knows": lambda q: q.reference or ""},
                metrics=("bleu", "chrf", "rouge1", "containment", "f1"))
    texts, wanted = [passage[q.id] for q in asked], [[q.reference or "" for q in asked]]
    assert got["cites.bleu"] == pytest.approx(BLEU(tokenize=cut).corpus_score(texts, wanted).score)
    assert got["cites.chrf"] == pytest.approx(CHRF().corpus_score(texts, wanted).score)
    assert got["knows.bleu"] == got["knows.chrf"] == 100
    assert got["knows.rouge1"] == pytest.approx(1, abs=0.01), "an answer that is a sign alone has no words"
    assert got["knows.containment"] == got["knows.f1"] == 1
    gain, low = got["knows_vs_cites.bleu_gain"], got["knows_vs_cites.bleu_gain_low"]
    assert low <= gain == pytest.approx(100 - got["cites.bleu"])


def test_truthfulqa_counts_every_correct_answer() -> None:
    """Each row's last correct answer, against all that are correct and against the best alone."""
    asked = questions("qa/truthfulqa.csv", "columns", {
        "prompt": "Question", "completion": "Best Answer", "kind": "Correct Answers"})
    correct = {q.id: [one.strip() for one in q.record.meta["kind"].split(";") if one.strip()] for q in asked}
    several = [replace(q, references=tuple(dict.fromkeys([q.reference or "", *correct[q.id]]))) for q in asked]
    assert len(asked) > 800
    names = ("bleu", "chrf", "rouge_l", "exact_match")
    one, all_ = (table(rows, {"last": lambda q: correct[q.id][-1]}, metrics=names) for rows in (asked, several))
    assert all_["last.exact_match"] == 1 > one["last.exact_match"]
    assert all_["last.bleu"] > one["last.bleu"]
    said = [correct[q.id][-1] for q in several]
    streams = [[q.references[place] if place < len(q.references) else None for q in several]
               for place in range(max(len(q.references) for q in several))]
    assert all_["last.bleu"] == pytest.approx(BLEU().corpus_score(said, streams).score)
    assert all_["last.chrf"] == pytest.approx(CHRF().corpus_score(said, streams).score)
