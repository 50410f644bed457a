"""Answers of a group behind their prompt, which goes through the model once: the same numbers as TRL's layout gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.artifacts import Artifact
from alignment.pipeline import execute
from tests import small
from tests.training.made import FULL, LORA
from tests.training.test_online import lines, online

IDS = st.lists(st.integers(1, 3), min_size=2, max_size=6)


@given(st.lists(st.tuples(IDS, st.lists(st.integers(1, 3), max_size=6)), min_size=1, max_size=8))
def test_every_row_is_in_one_group_of_its_prompt_and_answers_are_not_too_long_together(
        rows: list[tuple[list[int], list[int]]]) -> None:
    from alignment.training.shared_prompt import LONGEST, grouped

    prompts, answers = [prompt for prompt, _ in rows], [answer for _, answer in rows]
    groups, order = grouped(prompts, answers)
    assert [groups[group][place] for group, place in order] == list(range(len(rows)))
    assert sum(map(len, groups)) == len(rows)
    for group in groups:
        assert len({tuple(prompts[row]) for row in group}) == 1
        assert len(group) == 1 or sum(len(answers[row]) for row in group) <= LONGEST * len(prompts[group[0]])


def test_rows_of_trls_layout_are_read_from_the_prompts_last_token_on_in_their_own_order() -> None:
    import torch

    from alignment.training.shared_prompt import asked_of

    ids = torch.tensor([[0, 5, 6, 1, 2, 0, 0], [7, 8, 9, 3, 0, 0, 0], [0, 5, 6, 4, 4, 0, 0]])
    mask = torch.tensor([[0, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0, 0], [0, 1, 1, 1, 1, 0, 0]])
    asked = asked_of(ids, mask, 4, 0)
    assert asked.ids.tolist() == [[6, 1, 2], [9, 3, 0], [6, 4, 4]]  # no answer has a third token
    assert asked.mask.tolist() == [[1, 1, 1], [1, 1, 0], [1, 1, 1]]
    there = asked.layout.ids.flatten()[asked.layout.place]
    assert (there * asked.mask == asked.ids).all()
    assert sorted(asked.layout.ids[0].tolist()) == [1, 2, 4, 4, 5, 6]  # 5 6 once, for both answers


@pytest.mark.parametrize("strategy", [FULL, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_a_stage_learns_the_same_in_both_layouts(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, strategy: dict[str, Any]) -> None:
    """In passes of 12 of 24 answers, which TRL shuffles: groups are torn apart, and not all of one size."""
    from alignment.training import shared_prefix

    stage = online(method, strategy=strategy, batch_size=24, micro_batch_size=12, num_generations=6, learning_rate=1.0,
                   trl={"beta": 0.05, "max_steps": 4, "optim": "sgd"})  # Adam makes full steps of rounding
    shared = made(tmp_path / "shared", stage)
    monkeypatch.setattr(shared_prefix, "structural", lambda trainer: "a test asks for it")
    alone = made(tmp_path / "alone", stage)
    assert shared.manifest.facts["shared_prefix"] is True
    assert alone.manifest.facts["shared_prefix_not"] == "a test asks for it"
    timing = {"time", "step_time", "tokens_per_second"}
    for one, other in zip(lines(shared), lines(alone), strict=True):
        assert one.keys() == other.keys()
        for name in one.keys() - timing:
            if isinstance(one[name], float):
                assert one[name] == pytest.approx(other[name], rel=1e-3, abs=1e-6), name
        assert one["sampling/logp_difference"] < 1e-4
    assert lines(shared)[-1]["kl"] != lines(shared)[0]["kl"]


def test_a_model_that_sees_other_answers_keeps_trls_layout_and_says_why(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from alignment.training import shared_prefix
    from alignment.training.layout import BRANCHES, Layout, lay_out

    def broken(*args: Any) -> Layout:
        right = lay_out(*args)
        return Layout(right.ids, right.positions, right.segments // BRANCHES * BRANCHES, right.place)

    monkeypatch.setattr(shared_prefix, "lay_out", broken)
    facts = made(tmp_path, online(trl={"beta": 0.05, "max_steps": 1})).manifest.facts
    assert facts["shared_prefix"] is False
    assert "the two layouts differ" in facts["shared_prefix_not"]


def made(folder: Path, stage: dict[str, Any]) -> Artifact:
    artifact = execute(small.run(folder, stage)).artifacts["stage"]
    assert artifact is not None
    return artifact
