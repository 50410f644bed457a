"""What a served answer may differ by from its record."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from alignment.inference.proof_rows import ProofRow
from alignment.serving.compared import BFLOAT16, FLOAT32, Served, bounds_of, compare, together

ROOT = Path(__file__).parents[2]
ROW = ProofRow("r1", "sft-0", [{"role": "user", "content": "Hi"}], [1, 2, 3], [7, 8, 9, 2], [-0.5, -1.0, -0.25, -0.1],
               [6, 6, 6, 6], [1.0, 0.0004, 2.0, 3.0], 2, [2], 8, {"dtype": "float32"})
SAME = Served(ROW.prompt, ROW.answer, ROW.log_probs, ROW.stop)


def problem(served: Served, stops: tuple[int, ...] = (2,)) -> str:
    return str(compare(ROW, stops, served, FLOAT32).problem)


def test_the_same_is_the_same() -> None:
    found = compare(ROW, [2], SAME, FLOAT32)
    assert (found.problem, found.tie, found.off) == (None, None, (0.0,) * 4)
    assert together([ROW], [found], FLOAT32) is None


def test_each_way_to_differ_is_named() -> None:
    assert problem(replace(SAME, prompt=[1, 2, 4])) == "the prompt has other ids: at place 2 4, recorded 3"
    assert problem(replace(SAME, prompt=[1, 2])) == "the prompt has other ids: at place 2 nothing, recorded 3"
    assert problem(SAME, (2, 5)) == "other tokens end an answer: [2, 5], recorded [2]"
    assert "token 2 of the answer (9)" in problem(replace(SAME, log_probs=[-0.5, -1.0, -0.26, -0.1]))
    assert "differs at token 0: 5, recorded 7" in problem(replace(SAME, answer=[5, 8, 9, 2]))
    assert "differs at token 3: nothing" in problem(replace(SAME, answer=[7, 8, 9], log_probs=[-0.5, -1.0, -0.25]))
    assert "ended by None, recorded 2" in problem(replace(SAME, stop=None))
    assert "token 1" in problem(replace(SAME, log_probs=[-0.5, float("nan"), -0.25, -0.1]))


def test_a_tie_may_fall_to_the_runner_up_and_to_no_other() -> None:
    """Token 1 was likelier than 6 by 0.0004 nats."""
    found = compare(ROW, [2], replace(SAME, answer=[7, 6, 1, 1]), FLOAT32)
    assert (found.problem, found.tie, found.off) == (None, 1, (0.0,))
    assert "likelier than any other by 0.000" in problem(replace(SAME, answer=[7, 5, 9, 2]))
    assert "differs at token 2" in problem(replace(SAME, answer=[7, 8, 6, 2]))


def test_ties_prove_nothing_where_they_leave_too_little() -> None:
    found = compare(ROW, [2], replace(SAME, answer=[7, 6, 1, 1]), FLOAT32)
    assert "only 1 of 4 recorded tokens" in str(together([ROW], [found], FLOAT32))


def test_many_small_differences_are_one_large() -> None:
    found = compare(ROW, [2], replace(SAME, log_probs=[value + 4e-4 for value in ROW.log_probs]), FLOAT32)
    assert found.problem is None
    assert "in the mean of 4 tokens" in str(together([ROW], [found], FLOAT32))


def test_bounds_go_by_the_coarser_arithmetic() -> None:
    assert bounds_of("float32", "float32") == FLOAT32
    assert bounds_of("float32", "bfloat16") == bounds_of("bfloat16", "float32") == BFLOAT16


def test_bfloat16s_bounds_lie_between_what_honest_servers_and_faults_were_measured_to_give() -> None:
    """Of models that learned something; random ones amplify rounding, and half a tensor of an adapter is in its noise
    (docs/serving.md says both)."""
    measured = json.loads((ROOT / "benchmarks" / "results" / "proof.json").read_text())["cpu"]["policies"]
    found: dict[bool, list[bool]] = {True: [], False: []}
    for one in measured:
        if not one["model"].startswith("random") and "of the adapter" not in one["what"]:
            found[one["fault"]].append(one["most"] <= BFLOAT16.most and one["mean"] <= BFLOAT16.mean
                                       and one["compared"] >= BFLOAT16.least)
    assert len(found[False]) > 3
    assert all(found[False])
    assert len(found[True]) > 3
    assert not any(found[True])


@given(st.lists(st.integers(0, 9), max_size=6), st.lists(st.floats(-20, 0), min_size=6, max_size=6))
def test_no_other_answer_passes_but_by_a_tie(answer: list[int], log_probs: list[float]) -> None:
    found = compare(ROW, [2], Served(ROW.prompt, answer, log_probs[: len(answer)], answer[-1] if answer else None),
                    FLOAT32)
    if found.problem is None:
        assert answer == ROW.answer or (found.tie == 1 and answer[:2] == [7, 6])
        assert all(value <= FLOAT32.most for value in found.off)
