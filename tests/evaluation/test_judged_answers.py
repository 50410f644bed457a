"""An evaluation with a judge: win rates are counted again from what it said, in both orders, of every row."""

from __future__ import annotations

from typing import Any

import pytest

from alignment.context import Outcome
from alignment.errors import StageError
from alignment.evaluation.length_control import length_controlled
from alignment.inference import judging
from alignment.inference.requests import Request
from alignment.report.results import comparisons
from alignment.words import words
from tests.evaluation.test_evaluate import ROWS, World, read, run, world
from tests.generation.scripted import Scripted

__all__ = ["world"]


def says(request: Request) -> tuple[str, bool]:
    """Prefers the longer answer; for row 1 whatever stands first, for row 2 it mumbles. As a marker: 1 to 9."""
    text = request.prompt[-1]["content"]
    if "7919?" in text:
        return "Verdict: A", True
    if "15838?" in text:
        return "Hard to say.", True
    if "Answer B:" not in text:
        return f"Score: {1 + len(text) % 9}", True
    first, second = (text.partition(f"Answer {name}:\n")[2].partition("\n\n")[0] for name in "AB")
    return f"Verdict: {'A' if len(first) > len(second) else 'tie' if len(first) == len(second) else 'B'}", True


def judged(world: World, judge: dict[str, Any], answer: Any = says, **more: Any) -> tuple[Outcome, Any, Any, Scripted]:
    asked = Scripted(answer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judging, "open_engine", lambda context, name: asked)
        outcome, out = run(world.built(score={"judge": {"model": "base", **judge}, **more}))
    return outcome, *read(out), asked


@pytest.fixture(scope="module")
def compared(world: World) -> tuple[Outcome, Any, Any, Scripted]:
    return judged(world, {"mode": "compare"})


def share(line: dict[str, Any], one: str, other: str) -> float | None:
    """The first model's, by what answers.jsonl says."""
    first, second = (line["answers"][name]["text"].strip() for name in (one, other))
    if first == second:
        return 0.5
    said = line["judged"][f"{one}_vs_{other}"]
    if "unread" in said["said"] + said["swapped"]:
        return None
    own = said["share"] if said["first"].strip() == first else 1 - said["share"]
    return float(own)


def test_the_win_rate_is_that_of_verdicts_that_hold_in_both_orders(compared: Any) -> None:
    outcome, results, lines, asked = compared
    shares = [share(line, "other", "base") for line in lines]
    known = [one for one in shares if one is not None]
    assert set(known) > {0.5}
    assert outcome.metrics["other_vs_base.judge_win_rate"] == pytest.approx(
        sum(1.0 if one > 0.5 else 0.5 if one == 0.5 else 0.0 for one in known) / len(known))
    entry = next(e for e in results["compare"] if (e["challenger"], e["by"]) == ("other", "judge"))
    assert entry["dropped"] == shares.count(None) == 1
    for line, own in zip(lines, shares, strict=True):
        texts = [len(line["answers"][name]["text"].strip()) for name in ("other", "base")]
        if line["id"] not in ("t1", "t2") and own is not None:
            assert own == (1.0 if texts[0] > texts[1] else 0.5 if texts[0] == texts[1] else 0.0)
    flipped = next(line for line in lines if line["id"] == "t1")["judged"]["other_vs_base"]
    assert (flipped["said"], flipped["swapped"], flipped["share"]) == ("first", "first", 0.5)
    # twin answers as base does, so it ties unasked; every other pair is asked about twice.
    different = sum(line["answers"]["other"]["text"].strip() != line["answers"]["base"]["text"].strip()
                    for line in lines)
    assert len(asked.asked) == len(set(asked.asked)) == 2 * different
    assert outcome.metrics["twin_vs_base.judge_win_rate"] == 0.5
    assert outcome.facts["judge"]["disagreed"] >= 1
    assert outcome.metrics["judge_agreement"] == pytest.approx(
        1 - outcome.facts["judge"]["disagreed"] / outcome.facts["judge"]["compared"], abs=1e-4)
    assert outcome.facts["engines"]["base"][-1] == {"engine": "scripted"}
    assert "judge" not in results["models"]["base"]


def test_the_length_controlled_rate_is_that_of_the_same_outcomes_and_lengths(compared: Any) -> None:
    outcome, results, lines, _ = compared
    shares = [share(line, "other", "base") for line in lines]
    lengths = [tuple(float(len(words(line["answers"][name]["text"]))) for name in ("other", "base")) for line in lines]
    wanted = length_controlled([float("nan") if one is None else one for one in shares], lengths, resamples=200)
    assert outcome.metrics["other_vs_base.judge_lc_win_rate"] == pytest.approx(wanted.value)
    assert outcome.metrics["other_vs_base.judge_lc_win_rate_low"] == pytest.approx(wanted.low)
    table = comparisons(results, ["base", "twin", "other"])
    notes = [cell.note for row in table.rows for cell in row[3] if cell is not None]
    assert any("length-controlled" in note and "left out" in note for note in notes)


def test_a_sum_of_a_function_and_a_judge_that_compares_counts_both(world: World) -> None:
    outcome, _, lines, _ = judged(world, {"mode": "compare", "weight": 100.0}, function="brevity")
    known = [(line, own) for line in lines if (own := share(line, "other", "base")) is not None]
    both = [(line["answers"]["other"]["style"] + 100 * own, line["answers"]["base"]["style"] + 100 * (1 - own))
            for line, own in known]
    assert outcome.metrics["other_vs_base.win_rate"] == pytest.approx(
        sum((a > b) + (a == b) / 2 for a, b in both) / len(both))
    assert any(own == 0.5 and a != b for (_, own), (a, b) in zip(known, both, strict=True)), "else the sum says nothing"


def test_a_judge_that_marks_gives_a_column_and_win_rates_by_it(world: World) -> None:
    outcome, results, lines, _ = judged(world, {})
    marks = {name: [line["answers"][name]["judge"] for line in lines] for name in ("base", "other")}
    known = [one for one in marks["base"] if one is not None]
    assert len(known) == ROWS - 2  # of rows 1 and 2 nothing can be read
    assert outcome.metrics["base.judge"] == pytest.approx(sum(known) / len(known))
    both = [(a, b) for a, b in zip(marks["other"], marks["base"], strict=True) if a is not None and b is not None]
    assert outcome.metrics["other_vs_base.judge_win_rate"] == pytest.approx(
        sum((a > b) + (a == b) / 2 for a, b in both) / len(both))
    assert "judge_agreement" not in outcome.metrics
    assert "judge" not in results["models"]["reference"]


def test_a_judge_that_cannot_be_read_ends_the_stage(world: World) -> None:
    with pytest.raises(StageError, match="nothing that the judge said could be read"):
        judged(world, {"mode": "compare", "weight": 2.0}, lambda request: ("I like it", True))
