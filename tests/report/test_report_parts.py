"""What is chosen and computed for the page: answers, curves, formats, and the tables of the terminal."""

from __future__ import annotations

import io
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

from alignment.artifacts import Artifact
from alignment.config import Run, Sft
from alignment.report.answers import MORE, SHOWN, chosen, outcome
from alignment.report.commands import commands
from alignment.report.curves import charts_of, lines_of, points_of, running_mean
from alignment.report.format import clip, duration, flat, number, told_apart, when
from alignment.report.reading import read_events
from alignment.report.results import colours_of
from alignment.report.tables import WIDTH, aims_table, results_table, stages_table
from tests.report.conftest import BASE, EVIL, SEED, answers, finish, run_of, train

MODELS = ["base", "sft", "sft2", "dpo"]


def test_shown_answers_vary_in_kind_and_outcome() -> None:
    first, more = chosen(answers(), MODELS)
    assert (len(first), len(more)) == (SHOWN, MORE)
    assert set(Counter(row.kind for row in first)) == {"open", "judgmental", "long"}
    outcomes = Counter(row.outcome for row in first)
    assert outcomes["failed"] + outcomes["lost"] >= 3
    assert outcomes["mended"] >= 2
    ids = [row.id for row in first + more]
    assert len(set(ids)) == len(ids)
    assert chosen(answers(), MODELS) == (first, more)


def test_few_or_unscored_answers() -> None:
    assert chosen([], MODELS) == ([], [])
    rows: list[dict[str, Any]] = [{"id": "a", "answers": {"base": {"text": "x"}, "dpo": {"text": "y"}}}]
    (row,), more = chosen(rows, MODELS)
    assert (row.outcome, more) == ("differs", [])
    assert [answer.model for answer in row.answers] == ["base", "dpo"]
    assert row.answers[0].chips == ()


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [({"exact_match": 0.0}, {"exact_match": 1.0}, "mended"), ({"exact_match": True}, {"exact_match": False}, "lost"),
     ({"f1": 0.9}, {"f1": 0.8}, "kept"), ({"exact_match": 0, "f1": 0.9}, {"exact_match": 0, "f1": 0.9}, "failed"),
     ({"text": "a"}, {"text": "a"}, "same")],
)
def test_outcome(before: dict[str, Any], now: dict[str, Any], expected: str) -> None:
    assert outcome({"answers": {"base": before, "dpo": now}}, ["base", "dpo"]) == expected


def test_curves_of_a_stage(finished: tuple[Run, dict[str, Artifact]]) -> None:
    run, artifacts = finished
    events = read_events(artifacts["dpo"])
    assert len([event for event in events if event["event"] == "train"]) == 50, "a half-written line is skipped"
    stage = run.stage("dpo")
    assert not isinstance(stage, Sft)
    titles = [title for title, _ in charts_of(stage, events)[0]]  # type: ignore[arg-type]
    assert titles == ["Loss", "Pairs ranked right", "Implicit rewards"]
    raw, mean, evaluated = lines_of(events, "train", "loss", "s1")
    assert raw.points[0] == (1.0, 2 - 1 / 50)
    assert mean.points[-1] == pytest.approx((50.0, 2 - 48 / 50))
    assert [x for x, _ in evaluated.points] == [10, 20, 30, 40, 50]
    assert [y for _, y in evaluated.points] == pytest.approx([1.9, 1.7, 1.5, 1.3, 1.1])


def test_a_step_logged_twice_counts_once_and_the_later_holds() -> None:
    events = [{"event": "train", "step": 1, "loss": 3.0}, {"event": "train", "step": 2, "loss": float("nan")},
              {"event": "train", "step": 1, "loss": 2.0}, {"event": "eval", "step": 1, "eval_loss": 1.0}]
    assert points_of(events, "train", "loss") == [(1.0, 2.0)]
    assert running_mean([(1, 1.0), (2, 3.0), (3, 5.0)], 2) == [(1, 1.0), (2, 2.0), (3, 4.0)]


def test_the_last_model_has_the_accent_colour() -> None:
    assert colours_of(["base", "a", "b", "dpo"]) == {"base": "s0", "a": "s2", "b": "s3", "dpo": "s1"}
    assert colours_of(["only"]) == {"only": "s1"}
    assert len(set(colours_of([str(i) for i in range(8)]).values())) == 8


def test_formats() -> None:
    assert [number(v) for v in (0.5, 12345678, 0.00002, None, float("nan"), 250.25, True)] == [
        "0.500", "12,345,678", "2.00e-05", "–", "–", "250.2", "–"]
    assert [duration(s) for s in (8.44, 59.99, 312, 7500)] == ["8.4 s", "1 min 00 s", "5 min 12 s", "2 h 05 min"]
    assert when("2026-01-02T03:04:05Z") == "2026-01-02 03:04 UTC"
    assert when("yesterday") == "yesterday"
    assert clip("abcdef", 3) == "abc … (3 more characters)"
    assert flat({"a": {"b": 1, "c": [1, 2]}, "d": True}) == [("a.b", "1"), ("a.c", "1, 2"), ("d", "yes")]


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(0, 1e-3))
def test_values_that_differ_never_look_alike(left: float, step: float) -> None:
    for right in (left, left * (1 + step), left + step, math.nextafter(left, math.inf)):
        shown = told_apart(left, right)
        assert (shown[0] == shown[1]) == (left == right)
        assert shown == (number(left), number(right)) or number(left) == number(right)


def test_digits_that_tell_apart() -> None:
    assert told_apart(0.6424, 0.6421) == ("0.6424", "0.6421")
    assert told_apart(0.5, 0.6) == ("0.500", "0.600")
    assert told_apart(None, 0.5) == ("–", "0.500")


@pytest.mark.parametrize(("row", "question", "turns"), [
    ({"prompt": "bare"}, "bare", []),
    ({"prompt": [{"role": "user", "content": "Hm?"}]}, "Hm?", []),
    ({"prompt": [{"role": "user", "content": "A passage.\n\nWhy?"}], "question": "Why?"}, "Why?", []),
    ({"prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": "A. Why?"}], "question": "Why?"},
     "Why?", ["S"]),
    ({"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
                 {"role": "user", "content": "c"}], "question": "a"}, "c", ["a", "b"]),
    ({}, "", []), ({"prompt": [], "question": "q"}, "q", []),
])
def test_all_that_was_asked_is_shown(row: dict[str, Any], question: str, turns: list[str]) -> None:
    (shown,), _ = chosen([{"id": "a", "answers": {}, **row}], MODELS)
    assert (shown.question, [turn.text for turn in shown.turns]) == (question, turns)


def lines(table: Table) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=WIDTH, color_system=None).print(table)
    return out.getvalue().splitlines()


def test_tables_fit_and_say_what_is_so(finished: tuple[Run, dict[str, Artifact]]) -> None:
    run, artifacts = finished
    results, aims, stages = (lines(make(run, artifacts)) for make in (results_table, aims_table, stages_table))
    assert max(map(len, results + aims + stages)) <= WIDTH
    dpo = next(line for line in results if line.strip().startswith("dpo"))
    assert dpo.split()[:5] == ["dpo", "0.600", ".55-.65", "0.700", ".65-.75"]
    assert not any(line.strip().startswith("reference") for line in results)
    assert any("MISSED" in line and "0.800" in line for line in aims)
    assert any("not known" in line for line in aims)
    seed = next(line for line in stages if line.strip().startswith("seed"))
    assert "420 → 280 train, 80 test" in seed
    assert artifacts["seed"].manifest.digest[:12] in seed


def test_tables_of_an_unfinished_run(finished: tuple[Run, dict[str, Artifact]]) -> None:
    run = finished[0]
    assert sum("not finished" in line for line in lines(stages_table(run, {}))) == 8
    assert any("not finished" in line for line in lines(results_table(run, {})))
    assert sum("not known" in line for line in lines(aims_table(run, {}))) == 3


def test_tables_with_long_names(tmp_path: Path) -> None:
    long = ["a" * 40, "b" * 40]
    stages = [BASE, SEED, train(long[0], "sft", "base", "seed/train"), train(long[1], "dpo", long[0], "seed/train"),
              {"name": "eval", "kind": "evaluate", "models": ["base", *long], "rows": "seed/test"}]
    run = run_of(tmp_path, stages, [f"eval.{long[1]}.exact_match > eval.{long[0]}.exact_match"], description=EVIL)
    made = finish(run)
    for make in (results_table, aims_table, stages_table):
        assert max(map(len, lines(make(run, made)))) <= WIDTH


def test_entrypoints_exist(finished: tuple[Run, dict[str, Artifact]]) -> None:
    run = finished[0]
    root = Path(__file__).parents[2]
    for stage in run.stages:
        assert (root / "ray_jobs" / f"{stage.script}.py").is_file(), stage.name
    assert any("--stage base" in command.line for command in commands(run, {}, "run qa.yaml"))
