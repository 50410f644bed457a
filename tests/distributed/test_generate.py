"""Generate stages: rows with their origin, going on after an interruption, budgets, and teachers that are no good."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alignment.artifacts import Artifact, Store
from alignment.config import parse_run
from alignment.context import StageContext
from alignment.distributed.generate import shared
from alignment.distributed.generate.self_instruct import self_instruct_stage
from alignment.errors import ConfigErrors, DataError, StageError
from alignment.inference.requests import Request
from alignment.pipeline import execute
from alignment.records import Record, read_records, write_records
from tests import small
from tests.generation.scripted import Scripted, good_teacher
from tests.models import published

THINGS = ["apples", "boats", "clocks", "drums", "eels", "figs", "goats", "hats", "ink", "jars"]


def seed_rows() -> list[dict[str, Any]]:
    return [{"id": f"t{number}", "instruction": f"Say what number {number} of the {thing} on the quay is for.",
             "instances": [{"input": thing, "output": f"It is for {thing}."}], "is_classification": number % 4 == 0}
            for number, thing in enumerate(THINGS)]


@pytest.fixture
def inputs(tmp_path: Path, tiny_model_dir: Path) -> dict[str, Artifact]:
    """A teacher, ten seed tasks, and rows kept for evaluation."""
    store = Store(str(tmp_path / "store"))
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "model").symlink_to(tiny_model_dir)
    records = [Record(row["id"], "prompt-completion", [{"role": "user", "content": row["instruction"]}],
                      row["instances"][0]["output"], meta={"task": row}) for row in seed_rows()]
    write_records(tmp_path / "data" / "rows" / "train.jsonl", records)
    write_records(tmp_path / "data" / "rows" / "test.jsonl", [Record(
        "held", "prompt-completion", [{"role": "user", "content": "the r1-1-1-examples"}], "x")])
    return {"base": published(store, "base-0", tmp_path / "base"),
            "seeds": published(store, "seeds-0", tmp_path / "data")}


def context(inputs: dict[str, Artifact], key: str = "gen-0", **more: Any) -> StageContext:
    stage = {"name": "gen", "kind": "generate", "recipe": "self_instruct", "teacher": "base", "seeds": ["seeds/train"],
             "take": 10, "rounds": 4, "requests_per_round": 3, "batch_size": 2, **more}
    others = [
        {"name": "base", "kind": "import", "model": {"source": "tiny"}},
        {"name": "seeds", "kind": "import", "data": [{"path": "x", "format": "self-instruct"}],
         "split": {"by": "ratio", "ratios": {"train": 0.9, "test": 0.1}}},
    ]
    store = inputs["base"].store
    run = parse_run(json.dumps({"name": "t", "seed": 5, "store": str(store.url), "compute": {
        "dtype": "float32", "device": "cpu"}, "stages": [*others, stage]}))
    return StageContext(run, run.stage("gen"), store, key, "d" * 64, inputs, store.workdir(key))


def by(monkeypatch: pytest.MonkeyPatch, engine: Scripted) -> Scripted:
    monkeypatch.setattr(shared, "open_engine", lambda context, name: engine)
    return engine


def files(made: StageContext) -> dict[str, str]:
    return {str(path.relative_to(made.out)): path.read_text(encoding="utf-8")
            for path in sorted(made.out.rglob("*")) if path.is_file() and path.name != "events.jsonl"}


def test_every_row_says_what_made_it(inputs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch) -> None:
    by(monkeypatch, Scripted(good_teacher))
    made = context(inputs)
    outcome = self_instruct_stage(made)
    rows = read_records(made.out / "rows" / "train.jsonl")
    bad = [json.loads(line) for line in (made.out / "bad.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == outcome.rows.written["train"] == outcome.metrics["rows_train"] == 10
    assert len({row.id for row in rows}) == 10
    for row in rows:
        origin = row.meta["origin"]
        assert origin["model"] == inputs["base"].manifest.digest
        assert set(origin) == {"request", "prompt", "seeds", "machine", "model", "classification", "instances"}
        assert {*origin["seeds"]} <= {seed["id"] for seed in seed_rows()}
        assert row.completion == f"said about {row.meta['group']}-examples"
        assert row.prompt[0]["content"] == f"{row.meta['task']['instruction']}\n\nthe {row.meta['group']}-examples"
    assert outcome.rows.read == 10
    reasons = [line["reason"] for line in bad]
    assert outcome.rows.dropped == {reason: reasons.count(reason) for reason in reasons}
    assert sum(count for own in outcome.facts["refused"].values() for count in own.values()) == len(bad)


def test_generated_rows_are_looked_through_and_what_is_left_out_says_why(
    inputs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    def teacher(request: Request) -> tuple[str, bool]:
        said, ended = good_teacher(request)
        return said.replace("said about", "write to ann@haven.de about"), ended

    by(monkeypatch, Scripted(teacher))
    plain = self_instruct_stage(context(inputs, "gen-plain"))
    by(monkeypatch, Scripted(teacher))
    made = context(inputs, hygiene={"personal_data": ["email"], "found": "replace", "near_duplicates": 0.8})
    outcome = self_instruct_stage(made)
    rows = read_records(made.out / "rows" / "train.jsonl")
    assert len(rows) == plain.metrics["rows_train"]
    assert all(str(row.completion).startswith("write to [EMAIL] about") for row in rows)
    events = [json.loads(line) for line in (made.out / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    [looked] = [event for event in events if event["event"] == "hygiene"]
    assert (looked["kept"], looked["of"], looked["replaced"]) == (len(rows),) * 3
    assert looked["personal_data"] == {"email": len(rows)}
    by(monkeypatch, Scripted(teacher))
    with pytest.raises(StageError, match="nothing that the teacher said") as error:
        self_instruct_stage(refusing := context(inputs, "gen-strict", hygiene={"personal_data": ["email"]}))
    assert "personal-data" in str(error.value.found)
    bad = [json.loads(line) for line in (refusing.work / "bad.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {line["origin"]["why"] for line in bad if line["reason"] == "personal-data"} == {"1 email"}
    assert outcome.rows.read == 10


@pytest.mark.parametrize("stop_after", [1, 4, 9, 15, 22])
def test_interrupted_work_goes_on_with_nothing_asked_twice(
    inputs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    whole = by(monkeypatch, Scripted(good_teacher))
    self_instruct_stage(wanted := context(inputs, "gen-whole"))
    first = by(monkeypatch, Scripted(good_teacher, stop_after))
    with pytest.raises(KeyboardInterrupt):
        self_instruct_stage(context(inputs))
    second = by(monkeypatch, Scripted(good_teacher))
    self_instruct_stage(made := context(inputs))
    assert sorted(first.asked + second.asked) == sorted(whole.asked)
    assert files(made) == files(wanted)


def test_batches_change_nothing(inputs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch) -> None:
    by(monkeypatch, Scripted(good_teacher))
    self_instruct_stage(one := context(inputs, "gen-1", batch_size=1))
    self_instruct_stage(other := context(inputs, "gen-7", batch_size=7))
    assert files(one) == files(other)


def test_rows_that_overlap_what_is_kept_for_evaluation_are_refused(
    inputs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    tide = "the tide comes in at four in the morning and leaves at ten in the evening"

    def copying(request: Any) -> tuple[str, bool]:
        if request.id == "r1-1-1-examples":
            return f"Input: {tide}\nOutput: four", True
        return good_teacher(request)

    by(monkeypatch, Scripted(copying))
    store = inputs["base"].store
    folder = Path(str(store.root)) / "held"
    write_records(folder / "rows" / "test.jsonl", [
        Record("held", "prompt-completion", [{"role": "user", "content": f"When? {tide}"}], "x")])
    write_records(folder / "rows" / "train.jsonl", read_records(inputs["seeds"].path() / "rows" / "train.jsonl"))
    apart = {**inputs, "seeds": published(store, "seeds-1", folder)}
    outcome = self_instruct_stage(context(apart, decontaminate=["seeds/test"]))
    assert outcome.rows.dropped["overlaps-held-out"] == 1
    assert outcome.metrics["rows_train"] == 9


def test_a_teacher_that_talks_noise_ends_within_its_budget_and_says_what_was_refused(
    inputs: dict[str, Artifact]
) -> None:
    """A model with random weights, by the real engine."""
    short = {"temperature": 1.0, "max_new_tokens": 12}
    made = context(inputs, rounds=3, patience=2, instructions=short, instances=short, max_requests=30,
                   max_prompt_tokens=1500)
    with pytest.raises(StageError, match="nothing that the teacher said could be kept") as error:
        self_instruct_stage(made)
    assert "%" in str(error.value.found)
    assert str(error.value.hint).count(" (") >= 3
    lines = (made.work / "bad.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) >= 6
    assert not (made.out / "rows").exists()


def test_prompts_over_the_limit_are_one_clear_error(
    inputs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = by(monkeypatch, Scripted(good_teacher))
    with pytest.raises(DataError, match="no prompt of a round fits"):
        self_instruct_stage(context(inputs, max_prompt_tokens=20))
    assert engine.asked == []


def test_too_few_seeds_are_one_clear_error(inputs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch) -> None:
    by(monkeypatch, Scripted(good_teacher))
    with pytest.raises(DataError, match="too few seed tasks"):
        self_instruct_stage(context(inputs, demonstrations=11, last_item=30))


@pytest.mark.parametrize(("key", "value"), [("take", 0), ("rounds", 0), ("max_requests", 0), ("max_requests", 2),
                                            ("machine_demonstrations", 8), ("last_item", 9),
                                            ("decontaminate", ["seeds/train"])])
def test_a_config_that_can_make_nothing_is_refused(inputs: dict[str, Artifact], key: str, value: Any) -> None:
    with pytest.raises(ConfigErrors, match=key):
        context(inputs, **{key: value})


def test_a_stage_trains_on_what_was_generated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by(monkeypatch, Scripted(good_teacher))
    file = tmp_path / "seeds.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in seed_rows()), encoding="utf-8")
    run = small.run(
        tmp_path,
        {"name": "seeds", "kind": "import", "data": [{"path": str(file), "format": "self-instruct"}],
         "split": {"by": "ratio", "ratios": {"train": 0.8, "test": 0.2}}},
        {"name": "gen", "kind": "generate", "recipe": "self_instruct", "teacher": "base", "seeds": ["seeds/train"],
         "take": 8, "rounds": 3, "requests_per_round": 3, "decontaminate": ["seeds/test"]},
        small.train("sft", rows=["gen/train"], epochs=1, max_length=256),
        {"name": "eval", "kind": "evaluate", "models": ["base", "sft"], "rows": "seeds/test", "bootstrap": 100,
         "sampling": {"temperature": 0.0, "max_new_tokens": 4}})
    artifacts = execute(run).artifacts
    gen, sft = artifacts["gen"], artifacts["sft"]
    assert artifacts["eval"] is not None, "rows that generation only keeps apart are held out"
    assert gen is not None
    assert sft is not None
    assert gen.manifest.rows.read == 8
    assert gen.manifest.key.startswith("self-instruct-")
    assert gen.manifest.kind == "generate"
    assert sft.manifest.rows.read == gen.manifest.rows.written["train"] == 8
    assert sft.manifest.metrics["supervised_tokens"] > 0
