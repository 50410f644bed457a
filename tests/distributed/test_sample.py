"""Sample stages on a tiny model: rows, bad rows, resuming, and workers that die."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from alignment.artifacts import Artifact, Store
from alignment.config import parse_run
from alignment.context import Outcome, StageContext
from alignment.distributed.sample import sample_stage
from alignment.errors import ConfigError, DataError, StageError
from alignment.inference.info import write_info
from alignment.inference.loading import load_tokenizer
from alignment.records import Record, read_records, write_records
from tests.models import published

ROWS = 13


def letters(record: Record, answer: str) -> float:
    """A reward function of our own: different for nearly all answers. Fails or kills as a row asks it to."""
    if "kill_once" in record.meta and not (marker := Path(record.meta["kill_once"])).exists():
        marker.touch()
        os._exit(1)
    if record.meta.get("kill_always"):
        os._exit(1)
    if record.meta.get("fails"):
        raise ZeroDivisionError("one row's fault")
    return sum(map(ord, answer)) % 997 / 997


def broken(record: Record, answer: str) -> float:
    raise DataError("this data set has no such field", where=f"row {record.id}")


def prompt(index: int, **meta: Any) -> Record:
    text = f"Number {index}: what colour is the {'old ' * (index % 5)}boat?"
    return Record(f"r{index}", "prompt-completion", [{"role": "user", "content": text}], "red", meta=meta)


@pytest.fixture
def inputs(tmp_path: Path, tiny_model_dir: Path) -> dict[str, Artifact]:
    """Two policies that stop now and then, a reward model, and prompts."""
    store = Store(str(tmp_path / "store"))
    made = {}
    for seed, name in enumerate(("new", "old", "rm")):
        folder = tmp_path / name / "model"
        shutil.copytree(tiny_model_dir, folder)
        auto = AutoModelForSequenceClassification if name == "rm" else AutoModelForCausalLM
        torch.manual_seed(seed)
        model = auto.from_pretrained(tiny_model_dir, dtype=torch.float32, **({"num_labels": 1} if name == "rm" else {}))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
        model.save_pretrained(folder)
        tokenizer = load_tokenizer(tiny_model_dir, side="right")
        write_info(folder, role="reward" if name == "rm" else "policy", form="full", base=None, tokenizer=tokenizer)
        made[name] = published(store, f"{name}-0", tmp_path / name)
    write_records(tmp_path / "data" / "rows" / "train.jsonl", [prompt(index) for index in range(ROWS)])
    return {**made, "data": published(store, "data-0", tmp_path / "data")}


def context(
    inputs: dict[str, Artifact], key: str = "rs-0", compute: str = "{}", scale: float = 1, **more: Any
) -> StageContext:
    """A sample stage of a run whose other stages stand for the artifacts."""
    stage = {
        "name": "rs", "kind": "sample", "model": "new", "prompts": ["data/train"], "n": 4, "batch_size": 4,
        "sampling": {"temperature": [1.5, 2.5], "max_new_tokens": 60},
        "score": {"function": "tests.distributed.test_sample:letters"}, **more,
    }
    others = [
        {"name": "new", "kind": "import", "model": {"source": "tiny"}},
        {"name": "old", "kind": "import", "model": {"source": "tiny"}},
        {"name": "data", "kind": "import", "data": [{"path": "x", "format": "passage-qa"}],
         "split": {"by": "ratio", "ratios": {"train": 1.0}}},
        {"name": "rm", "kind": "train", "method": "reward", "model": "new", "rows": ["data/train"]},
    ]
    run = parse_run(json.dumps({"name": "t", "seed": 5, "scale": scale, "store": str(inputs["new"].store.url),
                                "compute": {"dtype": "float32", "device": "cpu", **json.loads(compute)},
                                "stages": [*others, stage]}))
    store = inputs["new"].store
    return StageContext(run, run.stage("rs"), store, key, "d" * 64, inputs, store.workdir(key))


def with_prompts(inputs: dict[str, Artifact], tmp_path: Path, *records: Record) -> dict[str, Artifact]:
    write_records(tmp_path / "more" / "rows" / "train.jsonl", records)
    return {**inputs, "data": published(inputs["new"].store, f"data-{len(records)}", tmp_path / "more")}


def files(made: StageContext) -> dict[str, str]:
    """Everything published but the events, which hold times."""
    return {str(path.relative_to(made.out)): path.read_text(encoding="utf-8")
            for path in sorted(made.out.rglob("*")) if path.is_file() and path.name != "events.jsonl"}


def result(made: StageContext, outcome: Outcome) -> tuple[Any, ...]:
    return files(made), outcome.metrics, outcome.rows.model_dump(), outcome.facts["histogram"]


def test_rows_come_from_scores_joined_by_id(inputs: dict[str, Artifact]) -> None:
    made = context(inputs)
    outcome = sample_stage(made)
    samples = read_records(made.out / "rows" / "samples.jsonl")
    assert len(samples) == 4 * ROWS
    assert len({record.id for record in samples}) == 4 * ROWS
    by_prompt: dict[str, list[Record]] = {}
    for record in samples:
        assert record.meta["score"] == letters(record, record.completion or "")
        by_prompt.setdefault(record.meta["prompt_id"], []).append(record)
    prompts = {f"r{index}": prompt(index) for index in range(ROWS)}
    finished = {row: [r for r in own if r.meta["finished"] and (r.completion or "").strip()]
                for row, own in by_prompt.items()}
    best = {record.meta["prompt_id"]: record for record in read_records(made.out / "rows" / "best.jsonl")}
    assert best.keys() == {row for row, own in finished.items() if own}
    assert len(best) > 3
    for row, record in best.items():
        top = max(finished[row], key=lambda r: r.meta["score"])
        assert (record.completion, record.meta["score"]) == (top.completion, top.meta["score"])
        assert record.prompt == prompts[row].prompt
    for pair in read_records(made.out / "rows" / "pairs.jsonl"):
        row = pair.meta["prompt_id"]
        assert pair.completion == best[row].completion
        low = min((r for r in by_prompt[row] if (r.completion or "").strip()), key=lambda r: r.meta["score"])
        assert pair.rejected == low.completion
    metrics = outcome.metrics
    assert metrics["best_score"] > metrics["mean_score"] > metrics["worst_score"]
    assert (metrics["prompts"], metrics["answers"], metrics["rows_best"]) == (ROWS, 4 * ROWS, len(best))
    assert 0 < metrics["finished_share"] < 1
    assert sum(outcome.facts["histogram"]["counts"]) == 4 * ROWS
    assert outcome.facts["timing"]["tokens_per_second"] > 0
    rows = outcome.rows
    assert (rows.read, rows.written["samples"]) == (ROWS, 4 * ROWS)
    assert sum(n for reason, n in rows.dropped.items() if reason.startswith("best:")) == ROWS - len(best)
    assert sum(n for reason, n in rows.dropped.items() if reason.startswith("pairs:")) == ROWS - rows.written["pairs"]


def test_previous_model_reward_model_and_function_together(inputs: dict[str, Artifact]) -> None:
    made = context(inputs, previous="old", pairs="newest-previous", n=2, take=3, scale=2,
                   score={"model": "rm", "function": "brevity", "model_weight": 2.0, "function_weight": 0.5})
    outcome = sample_stage(made)
    samples = read_records(made.out / "rows" / "samples.jsonl")
    assert outcome.metrics["prompts"] == 6  # take times the run's scale
    assert outcome.rows.dropped["not taken"] == outcome.rows.read - 6
    assert [sum(r.meta["model"] == model for r in samples) for model in ("newest", "previous")] == [12, 12]
    for record in samples:
        meta = record.meta
        assert meta["score"] == pytest.approx(2 * meta["model_score"] + 0.5 * meta["function_score"])
    said = {(r.meta["prompt_id"], r.meta["model"]): r.completion for r in samples}
    assert all(said[row, "newest"] != said[row, "previous"] for row, _ in said)
    for pair in read_records(made.out / "rows" / "pairs.jsonl"):
        mine = [r for r in samples if r.meta["prompt_id"] == pair.meta["prompt_id"]]
        assert pair.completion in [r.completion for r in mine if r.meta["model"] == "newest"]
        assert pair.rejected in [r.completion for r in mine if r.meta["model"] == "previous"]
    assert {"mean_function", "mean_model", "previous_mean_score"} <= outcome.metrics.keys()


def test_a_resumed_stage_makes_only_what_is_missing_and_the_same_rows(
    inputs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = context(inputs)
    whole = result(made, sample_stage(made))
    parts = sorted((made.work / "parts").iterdir())
    assert len(parts) == 4
    for file in parts[::2]:
        file.unlink()
    parts[1].write_text('{"answers": [{"id": "r', encoding="utf-8")  # cut by a full disk
    kept = parts[3].stat().st_mtime_ns
    shutil.rmtree(made.out)
    assert result(made, sample_stage(made)) == whole
    assert parts[3].stat().st_mtime_ns == kept
    events = [json.loads(line) for line in made.events.read_text(encoding="utf-8").splitlines()]
    assert {event["part"] for event in events} == {file.stem for file in parts[:3]}
    monkeypatch.setattr("alignment.inference.embedded.load_policy",
                        lambda *a, **k: pytest.fail("nothing is left to do"))
    assert result(made, sample_stage(made)) == whole


def test_bad_rows_are_kept_with_reasons_and_spoil_no_other(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    good = [prompt(index) for index in range(5)]
    long = Record("long", "prompt-only", [{"role": "user", "content": "word " * 400}])
    talk = Record("talk", "prompt-only", [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    mixed = with_prompts(inputs, tmp_path, *good[:3], long, prompt(9, fails=True), talk, good[0], *good[3:])
    made = context(mixed, max_prompt_tokens=120)
    outcome = sample_stage(made)
    bad = {(row["id"], row["reason"]) for row in map(json.loads, (made.out / "bad.jsonl").read_text().splitlines())}
    assert bad == {
        ("long", "prompt longer than max_prompt_tokens"), ("r9", "ZeroDivisionError: one row's fault"),
        ("talk", "no prompt that ends with a question"), ("r0", "id of an earlier prompt of this stage"),
    }
    assert all(outcome.rows.dropped[reason] == 1 for _, reason in bad)
    assert outcome.rows.read == 9
    samples = read_records(made.out / "rows" / "samples.jsonl")
    assert {record.meta["prompt_id"] for record in samples} == {record.id for record in good}
    first = json.loads((made.out / "bad.jsonl").read_text().splitlines()[0])
    assert Record(**first["raw"]).id == first["id"]
    alone = context(with_prompts(inputs, tmp_path, *good), key="rs-1", max_prompt_tokens=120)
    sample_stage(alone)
    assert {r.id: r.completion for r in samples} == {
        r.id: r.completion for r in read_records(alone.out / "rows" / "samples.jsonl")
    }


def test_what_fails_every_row_or_gives_no_number_stops_the_stage(inputs: dict[str, Artifact]) -> None:
    with pytest.raises(StageError, match="no such field"):
        sample_stage(context(inputs, score={"function": "tests.distributed.test_sample:broken"}))
    with pytest.raises(ConfigError) as error:
        sample_stage(context(inputs, key="rs-1", score={"function": "no.such:thing"}))
    assert error.value.found == "no.such:thing"
    with pytest.raises(StageError, match="no prompt was answered") as stage_error:
        sample_stage(context(inputs, key="rs-2", max_prompt_tokens=2))
    assert stage_error.value.found == {"prompt longer than max_prompt_tokens": ROWS}


@pytest.mark.ray
def test_a_worker_that_dies_loses_nothing(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    marker = tmp_path / "killed"
    rows = [prompt(index, **({"kill_once": str(marker)} if index == 6 else {})) for index in range(ROWS)]
    marked = with_prompts(inputs, tmp_path, *rows)
    two = '{"workers": 2, "cpus_per_worker": 0.5}'
    made = context(marked, compute=two)
    disturbed = result(made, sample_stage(made))
    assert marker.exists()  # a worker did die
    calm = context(marked, key="rs-1")
    assert disturbed == result(calm, sample_stage(calm))


@pytest.mark.ray
def test_errors_of_workers_arrive_as_themselves_and_endless_deaths_end(
    inputs: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alignment.distributed.batches.MAX_RESTARTS", 1)  # each costs a start of torch
    two = '{"workers": 2, "cpus_per_worker": 0.5}'
    with pytest.raises(StageError, match="no such field"):
        sample_stage(context(inputs, compute=two, score={"function": "tests.distributed.test_sample:broken"}))
    deadly = with_prompts(inputs, tmp_path, *[prompt(index, kill_always=index == 1) for index in range(ROWS)])
    made = context(deadly, key="rs-1", compute=two)
    with pytest.raises(StageError, match="worker failed"):
        sample_stage(made)
