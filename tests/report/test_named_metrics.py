"""An evaluation whose metrics were named: page and terminal show these, in their order, and what answers took."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from alignment.artifacts import Artifact, Store
from alignment.config import Run
from alignment.evaluation.measures import NAMES
from alignment.report import render
from alignment.report.answers import chosen, right
from alignment.report.results import METRICS, columns_of, drawn_of, is_free_text, metric_table, per_answer
from alignment.report.summary import leading
from alignment.report.tables import WIDTH, results_table
from tests.report.conftest import BASE, SEED, cell, publish, run_of, train

TIMING = {model: {"per_item": {"seconds": {"mean": 0.52, "low": 0.4, "high": 0.61},
                               "tokens": {"mean": 31.2, "low": 3.0, "high": 60.0}}} for model in ("base", "sft")}


def results(*names: str) -> dict[str, Any]:
    return {"rows": 8, "reference_words": 40, "columns": list(names), "models": {
        model: {name: cell(100 * value, 2.0) if name in ("bleu", "chrf") else cell(value) for name in names}
        for model, value in (("base", 0.25), ("sft", 0.5))}}


def finished(folder: Path, *names: str) -> tuple[Run, dict[str, Artifact]]:
    stages = [BASE, SEED, train("sft", "sft", "base", "seed/train"),
              {"name": "eval", "kind": "evaluate", "models": ["base", "sft"], "rows": "seed/test"}]
    run = run_of(folder, stages, [])
    line = {"id": "a", "prompt": [{"role": "user", "content": "How many?"}], "reference": "#### 7", "answers": {
        "base": {"text": "8", "finished": True, "final_number": 0.0, "bleu": 0.0},
        "sft": {"text": "7", "finished": True, "final_number": 1.0, "bleu": 12.5}}}
    files = {"results.json": json.dumps(results(*names)), "answers.jsonl": json.dumps(line) + "\n"}
    store = Store(run.store)
    made = {stage.name: publish(store, run, stage.name, files if stage.name == "eval" else {"x": ""},
                                facts={"timing": TIMING} if stage.name == "eval" else {}) for stage in run.stages}
    return run, made


def lines(run: Run, made: dict[str, Artifact]) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=WIDTH, color_system=None).print(results_table(run, made))
    return out.getvalue().splitlines()


def test_columns_stand_in_the_order_of_the_run_file() -> None:
    table = results("bleu", "words", "rouge1", "f1", "chrf")
    columns, rows = metric_table(table, ["base", "sft"])
    assert [title for title, _ in columns] == ["BLEU", "Words", "ROUGE-1", "F1", "chrF"]
    assert [(name, cells[0].text, cells[0].interval) for name, _, cells in rows] == [
        ("base", "25.0", "[23.0, 27.0]"), ("sft", "50.0", "[48.0, 52.0]")]
    assert drawn_of(table) == ("bleu", "rouge1", "f1"), "of length no way is better"
    assert leading(table, ["base", "sft"]) == ("bleu", table["models"]["base"]["bleu"], table["models"]["sft"]["bleu"])
    assert is_free_text(table)
    assert not is_free_text(results("final_number", "bleu")), "of a long solution the number says whether it is right"
    assert [name for name in columns_of({}) if name in NAMES] == [name for name in METRICS if name in NAMES]


def test_every_number_of_the_terminal_is_whole(tmp_path: Path) -> None:
    run, made = finished(tmp_path, "rouge1", "bleu", "finished")
    shown = lines(run, made)
    assert shown[2].split() == ["model", "rouge1", "bleu", "done", "s/row", "tokens"]
    assert next(line for line in shown if line.strip().startswith("sft")).split() == [
        "sft", "0.500", ".45-.55", "50.0", "48.0-52.0", "0.500", "0.520", "31.2"]


def test_what_has_no_room_is_named(tmp_path: Path) -> None:
    shown = lines(*finished(tmp_path, *NAMES))
    assert max(map(len, shown)) <= WIDTH
    assert not any("…" in line for line in shown)
    told = " ".join(shown).partition("no room for ")[2]
    columns = shown[2].split()[1:]
    assert all(name in told for name in ("perplexity", "words", "s/row", "tokens"))
    assert len(columns) + told.count(",") + 1 == len(NAMES) + 2


def test_the_page_says_what_an_answer_took(tmp_path: Path) -> None:
    run, made = finished(tmp_path, "final_number", "bleu")
    page = render(run, made, "run qa.yaml", "2026-01-02T03:04:05Z")
    assert "Time and length of an answer" in page
    assert "0.520 [0.400, 0.610]" in page
    assert "31.2 [3, 60]" in page
    assert "Final number" in page
    assert per_answer({}, ["base"]) == per_answer({"timing": {"base": {"tokens": 9}}}, ["base"]) == []


@pytest.mark.parametrize(("answer", "said"), [
    ({"final_number": 1.0, "f1": 0.1}, True), ({"yes_no": 0.0}, False), ({"containment": 1, "exact_match": 0}, False),
    ({"final_number": 1.0, "exact_match": 0.0}, True),
    ({"word_recall": 0.75}, True), ({"rouge1": 0.9}, None), ({"final_number": None}, None),
])
def test_what_calls_an_answer_right(answer: dict[str, Any], said: bool | None) -> None:
    assert right(answer) is said


def test_rows_are_told_apart_by_the_metric_that_was_named(tmp_path: Path) -> None:
    _, made = finished(tmp_path, "final_number", "bleu")
    row = json.loads((made["eval"].path() / "answers.jsonl").read_text())
    (shown,), _ = chosen([row], ["base", "sft"])
    assert shown.outcome == "mended"
    assert [[chip.text for chip in answer.chips] for answer in shown.answers] == [
        ["wrong", "BLEU 0.00"], ["right", "BLEU 12.50"]]
