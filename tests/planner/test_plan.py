"""Whole plans: rows from files and artifacts, what is known and what is an upper bound."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from alignment import pipeline
from alignment.cli.init import write_recipe
from alignment.config import load_run, parse_run
from alignment.planner import Rates, StagePlan, plan
from alignment.planner.rows import CHARS_PER_TOKEN, by_characters, measure, together
from alignment.records import Record
from alignment.records.few import Few

RATES = Rates(flops=1e11, bandwidth=1e10)


def _plan(folder: Path, recipe: str, *overrides: str) -> dict[str, StagePlan]:
    file = folder / "my.yaml"
    if not file.exists():
        write_recipe(recipe, file)
    run = load_run(file, [f"store={folder / 'store'}", *overrides])
    return {item.name: item for item in plan(run, pipeline.status(run), RATES)}


def test_every_stage_of_the_tiny_recipe(tmp_path: Path) -> None:
    made = _plan(tmp_path, "tiny")
    assert list(made) == ["base", "seed", "sft", "rm", "rs", "sft2", "dpo", "eval"]
    assert made["seed"].rows == 32
    assert (made["sft"].rows, made["rs"].rows, made["eval"].rows) == (16, 8, 8)
    assert made["sft"].rows_known
    assert (made["sft2"].rows, made["dpo"].rows) == (8 * 4, 16)
    paired = _plan(tmp_path, "tiny", "dpo.rows=[rs/pairs, seed/train]")["dpo"]
    assert paired.rows == 8 + 16
    assert not paired.rows_known, "how many pairs the sample stage makes is not known before"
    assert all(item.seconds is not None and item.memory is not None for name, item in made.items()
               if name not in ("base", "seed"))
    assert made["rm"].memory is not None
    assert made["rm"].memory.logits == 0
    assert all(item.artifact is None for item in made.values())


def test_a_hub_model_is_unknown_before_its_import(tmp_path: Path) -> None:
    made = _plan(tmp_path, "qa")
    assert {item.size for item in made.values()} == {None}
    assert made["sft"].memory is None
    assert made["sft"].seconds is None
    assert made["sft"].rows == 16, "rows are known all the same"


def test_more_epochs_more_tokens_and_scale_fewer_rows(tmp_path: Path) -> None:
    one, two = _plan(tmp_path, "tiny"), _plan(tmp_path, "tiny", "sft.epochs=2")
    assert one["sft"].tokens is not None
    assert two["sft"].tokens == 2 * one["sft"].tokens
    assert two["sft"].rows == one["sft"].rows
    assert two["rm"].tokens == one["rm"].tokens
    few = _plan(tmp_path, "tiny", "seed.data.0.take=16", "rs.take=8", "scale=0.5")
    assert few["seed"].rows == 8
    assert few["rs"].rows == min(4, 2)


def test_two_workers_halve_the_time_of_a_training(tmp_path: Path) -> None:
    one, two = _plan(tmp_path, "tiny"), _plan(tmp_path, "tiny", "compute.workers=2", "sft.micro_batch_size=4")
    assert one["sft"].seconds is not None
    assert two["sft"].seconds == pytest.approx(one["sft"].seconds / 2)
    assert one["sft"].memory is not None
    assert two["sft"].memory is not None
    assert two["sft"].memory.activations < one["sft"].memory.activations


def test_a_finished_import_is_counted_and_shown_finished(tmp_path: Path) -> None:
    before = _plan(tmp_path, "tiny")["seed"]
    run = load_run(tmp_path / "my.yaml", [f"store={tmp_path / 'store'}"])
    pipeline.execute(run, only="seed")
    after = _plan(tmp_path, "tiny")["seed"]
    assert after.artifact is not None
    assert (after.rows, after.tokens) == (before.rows, before.tokens), "the preview is what the import writes"
    assert after.seconds == after.artifact.manifest.seconds


def test_of_many_rows_a_few_are_looked_at_and_the_plan_says_so(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": f"Say {n}, and {'then ' * (n % 9)}stop.", "completion": "Yes. " * (200 if n == 77 else 4)}
            for n in range(1000)]
    lines = [json.dumps(row) if n % 10 else "{}" for n, row in enumerate(rows)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    run = parse_run(f"""
name: many
store: {tmp_path / "store"}
stages:
  - {{name: base, kind: import, model: {{source: tiny}}}}
  - {{name: data, kind: import, data: [{{path: {tmp_path / "rows.jsonl"}, format: prompt-completion}}], max_bad: null,
     split: {{by: ratio, ratios: {{train: 0.8, test: 0.1}}}}}}
  - {{name: sft, kind: train, method: sft, model: base, rows: [data/train]}}
""")

    def planned() -> list[StagePlan]:
        return [item for item in plan(run, pipeline.status(run), RATES) if item.name != "base"]

    (data, sft), few = planned(), partial(Few, whole=300, few=200)
    assert (data.rows, data.rows_known, data.looked, sft.rows_about) == (810, True, None, False)
    monkeypatch.setattr("alignment.planner.rows.Few", few)
    about, trained = planned()
    assert about.rows == pytest.approx(data.rows, rel=0.1)
    assert about.tokens == pytest.approx(data.tokens, rel=0.15)
    assert about.looked == pytest.approx((200 * 0.9 * 0.9, about.rows), rel=0.1)
    assert (about.rows_known, about.rows_about, trained.rows_about, trained.counted) == (False, True, True, False)
    assert trained.length == sft.length, "the longest row is found"
    pipeline.execute(run, only="data")
    made, trained = planned()
    assert (made.rows, made.rows_known, made.looked) == (810, True, (200 + 90, 810))
    assert (trained.rows, trained.rows_about, trained.length) == (720, False, sft.length)
    assert trained.tokens == pytest.approx(sft.tokens, rel=0.1)


def test_mean_lengths_by_hand() -> None:
    rows = [
        Record("a", "preference", [{"role": "user", "content": "x" * 40}], "y" * 8, "z" * 16),
        Record("b", "messages", messages=[{"role": "user", "content": "x" * 20},
                                          {"role": "assistant", "content": "y" * 4}]),
        Record("c", "prompt-only", [{"role": "user", "content": "x" * 24}]),
    ]
    made = measure(rows, by_characters, counted=False)
    assert CHARS_PER_TOKEN == 4
    assert (made.rows, made.prompt, made.answer, made.rejected) == (3, (10 + 5 + 6) / 3, 1.0, 4 / 3)
    assert made.longest == 14
    both = together([made, measure(rows[:1], by_characters, counted=True)])
    assert (both.rows, both.prompt, both.longest, both.counted) == (4, (21 + 10) / 4, 14, False)
