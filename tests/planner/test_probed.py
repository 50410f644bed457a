"""Plans that start from what a probe measured: of the same training its peak, of a larger or smaller pass the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alignment.artifacts import Store
from alignment.config.cards import parse_cards
from alignment.planner import Memory, Rates, StagePlan, on_cards, plan
from alignment.planner.probed import Probed, read_all, write
from alignment.planner.sharing import CONTEXT
from tests import small

RATES = Rates(1e11, 1e10)
STILL = ("weights", "gradients", "optimizer", "buffers")


def planned(
    folder: Path, probes: Sequence[Probed] = (), gpus: str = "none", sharding: str = "none", **stage: Any
) -> StagePlan:
    """The plan of a stage with those keys."""
    cards = parse_cards(gpus)
    run = on_cards(small.run(folder, small.train(**{"name": "sft", "micro_batch_size": 4, **stage})), cards)
    run = run.model_copy(update={"compute": run.compute.model_copy(update={"dtype": "float32", "sharding": sharding})})
    return plan(run, {one.name: None for one in run.stages}, RATES, cards, probes)[-1]


def total(item: StagePlan) -> int:
    assert item.memory is not None
    return item.memory.total


def seen(item: StagePlan, peak: int, **keys: Any) -> Probed:
    """A probe of what was planned."""
    assert (item.micro_batch, item.length, item.like) != (None, None, None)
    return Probed(**{
        "stage": item.name, "device": "somewhere", "rows": item.micro_batch, "length": item.length,
        "planned": total(item), "measured": {"step": peak, "save": peak // 2}, "seconds": 9.0, "like": item.like,
        "accumulates": True, **keys})


def still(memory: Memory | None) -> int:
    assert memory is not None
    return sum(getattr(memory, part) for part in STILL)


@pytest.mark.parametrize("share", [0.8, 1.3])
@pytest.mark.parametrize("method", ["sft", "dpo", "grpo"])
def test_the_same_training_is_planned_as_it_was_measured(tmp_path: Path, method: str, share: float) -> None:
    formula = planned(tmp_path, method=method)
    assert formula.probed is None
    probe = seen(formula, round(share * total(formula)))
    made = planned(tmp_path, [probe], method=method)
    assert total(made) == probe.peak
    assert made.probed == probe
    assert made.memory is not None
    assert made.memory.total - made.memory.probed == total(formula), "what the formulas say is kept beside it"


def test_what_does_not_change_the_memory_does_not_matter(tmp_path: Path) -> None:
    probe = seen(planned(tmp_path), 10**9)
    for keys in ({"learning_rate": 1e-5}, {"epochs": 3}, {"name": "other"}, {"trl": {"max_steps": 9}},
                 {"max_length": 512}, {"strategy": {"kind": "lora", "r": 4, "alpha": 32}}):
        assert total(planned(tmp_path, [probe], **keys)) == 10**9, keys


@pytest.mark.parametrize("keys", [
    {"strategy": {"kind": "lora", "r": 8, "alpha": 8}}, {"strategy": {"kind": "full"}}, {"method": "dpo"},
    {"trl": {"gradient_checkpointing": True}}, {"trl": {"optim": "adamw_8bit"}}, {"packing": True},
    {"eval_rows": "data/dev"}, {"gpus": "4090"}, {"gpus": "2x4090", "sharding": "zero2"}, {"dtype": "bfloat16"},
])
def test_of_another_training_it_says_nothing(tmp_path: Path, keys: dict[str, Any]) -> None:
    probe = seen(planned(tmp_path), 10**9)
    assert planned(tmp_path, [probe], **keys) == planned(tmp_path, **keys)


def test_of_another_model_it_says_nothing(tmp_path: Path) -> None:
    run = small.run(tmp_path, small.train("sft"))
    other = run.model_copy(update={"stages": (run.stages[0].model_copy(update={
        "model": run.stages[0].model.model_copy(update={"hidden_size": 64})}), *run.stages[1:])})
    none = {one.name: None for one in run.stages}
    probe = seen(plan(run, none, RATES)[-1], 10**9)
    assert total(plan(run, none, RATES, probes=[probe])[-1]) == 10**9
    assert plan(other, none, RATES, probes=[probe]) == plan(other, none, RATES)


@pytest.mark.parametrize("rows", [1, 2, 8])
@pytest.mark.parametrize("share", [0.9, 1.5])
def test_other_rows_scale_the_activations_alone(tmp_path: Path, rows: int, share: float) -> None:
    one = planned(tmp_path, batch_size=16)
    probe = seen(one, round(still(one.memory) + share * (total(one) - still(one.memory))))
    formula = planned(tmp_path, batch_size=16, micro_batch_size=rows)
    made = planned(tmp_path, [probe], batch_size=16, micro_batch_size=rows)
    moving = total(formula) - still(formula.memory)
    assert total(made) == pytest.approx(still(formula.memory) + share * moving, rel=1e-6)
    assert (total(made) > probe.peak) == (rows > 4)


def test_longer_rows_scale_them_too_and_the_nearest_probe_counts(tmp_path: Path) -> None:
    one = planned(tmp_path, batch_size=16)
    assert one.length is not None
    near, far = (replace(seen(one, 1), length=length, measured={"step": peak}) for length, peak in (
        (2 * one.length, 3 * total(one)), (16 * one.length, 5 * total(one))))
    assert planned(tmp_path, [near, far], batch_size=16).probed == near
    assert planned(tmp_path, [far, near], batch_size=16).probed == near


def test_never_less_than_what_was_measured_of_no_larger_a_pass(tmp_path: Path) -> None:
    formula = planned(tmp_path)
    assert formula.length is not None
    exact = seen(formula, total(formula))
    smaller = replace(exact, rows=1, measured={"step": 2 * total(formula)})
    larger = replace(exact, length=2 * formula.length, measured={"step": 9 * total(formula)})
    assert total(planned(tmp_path, [exact, smaller, larger])) == smaller.peak
    refuted = replace(smaller, refuted="out of memory")
    made = planned(tmp_path, [refuted])
    assert (total(made), made.probed) == (refuted.peak, refuted), "it needs more than where it ended"
    assert total(planned(tmp_path, [replace(refuted, measured={"step": 5})])) == total(formula)


def test_less_than_what_lies_still_is_believed_and_grows_by_the_formulas(tmp_path: Path) -> None:
    formula = planned(tmp_path, batch_size=16)
    probe = seen(formula, still(formula.memory) // 2)
    assert total(planned(tmp_path, [probe], batch_size=16)) == probe.peak
    larger = planned(tmp_path, batch_size=16, micro_batch_size=8)
    grown = total(planned(tmp_path, [probe], batch_size=16, micro_batch_size=8))
    assert grown == probe.peak + total(larger) - total(formula)
    assert total(planned(tmp_path, [probe], batch_size=16, micro_batch_size=1)) == probe.peak


def test_a_gpus_context_is_added_which_its_allocator_does_not_count(tmp_path: Path) -> None:
    formula = planned(tmp_path, gpus="4090")
    probe = seen(formula, 10**9, memory=24 * 2**30)
    assert total(planned(tmp_path, [probe], gpus="4090")) == 10**9 + CONTEXT
    shared = planned(tmp_path, [probe], gpus="2x4090")
    assert shared.probed == probe, "each worker holds all, and buffers beside it"
    assert total(shared) > 10**9 + CONTEXT


def test_probes_of_earlier_versions_are_read_and_correct_nothing(tmp_path: Path) -> None:
    formula, store = planned(tmp_path), Store(str(tmp_path / "probed"))
    assert read_all(store) == []
    old = seen(formula, 10**9, like=None)
    for key, probe in (("sft-1", old), ("sft-2", seen(formula, 2 * 10**9))):
        write(store, key, probe)
    (tmp_path / "probed" / "probes" / "sft-3.json").write_text('{"of": "a later version"}')
    assert [probe.peak for probe in read_all(store)] == [10**9, 2 * 10**9]
    assert planned(tmp_path, [old]) == formula
    assert total(planned(tmp_path, read_all(store))) == 2 * 10**9


def test_a_run_of_another_folder_of_the_same_model_starts_from_it(tmp_path: Path) -> None:
    """The key of what would be made is another there: rows and names are."""
    probe = seen(planned(tmp_path / "one"), 10**9)
    text = small.run(tmp_path / "two", small.train("sft", micro_batch_size=4, rows=["data/dev"]), count=80)
    made = plan(text, {one.name: None for one in text.stages}, RATES, probes=[probe])[-1]
    assert made.probed == probe
