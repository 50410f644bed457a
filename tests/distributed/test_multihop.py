"""Multihop stages: every answer written greedily, negatives, rows of data sets, interruptions, budgets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alignment.artifacts import Artifact, Store
from alignment.config import parse_run
from alignment.context import StageContext
from alignment.distributed.generate import shared
from alignment.distributed.generate.multihop import multihop_stage
from alignment.errors import ConfigErrors, DataError, StageError
from alignment.inference.requests import Request
from alignment.pipeline import execute
from alignment.records import Record, read_records, write_records
from alignment.records.importers import Options, Row, import_rows, read_source
from alignment.records.importers.retrieval import NO_ANSWER
from tests import small
from tests.generation.hops import hop_teacher
from tests.generation.scripted import Scripted
from tests.models import published

HARBOUR = "The harbour is nine metres deep and freezes in most winters. Twelve boats came and three left."
SETS: dict[str, list[dict[str, Any]]] = {
    "boolq": [{"id": "b1", "question": "does the harbour freeze", "passage": HARBOUR, "answer": True},
              {"id": "b2", "question": "is the harbour shallow", "passage": HARBOUR, "answer": False}],
    "drop": [{"query_id": "d1", "passage": HARBOUR, "question": "How many boats stayed?", "answer": {"number": "9"}}],
    "squad": [{"id": "s1", "context": HARBOUR, "question": "How deep is it?", "answers": [{"text": "nine metres"}]},
              {"id": "s2", "context": HARBOUR, "question": "Who built it?", "answers": [], "is_impossible": True}],
}


def set_rows() -> list[Record]:
    made = [row for format, rows in SETS.items() for row in import_rows(
        [Row(number, value) for number, value in enumerate(rows, 1)], format, format, Options(retrieve=True))]
    assert all(isinstance(row, Record) for row in made), made
    return [row for row in made if isinstance(row, Record)]


@pytest.fixture
def inputs(tmp_path: Path, tiny_model_dir: Path) -> dict[str, Artifact]:
    """A teacher, rows of data sets, and rows kept for evaluation."""
    store = Store(str(tmp_path / "store"))
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "model").symlink_to(tiny_model_dir)
    write_records(tmp_path / "data" / "rows" / "train.jsonl", set_rows())
    write_records(tmp_path / "data" / "rows" / "test.jsonl", [Record(
        "held", "prompt-completion", [{"role": "user", "content": "Is it?"}], "x")])
    return {"base": published(store, "base-0", tmp_path / "base"), "sets": published(store, "sets-0",
                                                                                      tmp_path / "data")}


def context(inputs: dict[str, Artifact], key: str = "gen-0", **more: Any) -> StageContext:
    stage = {"name": "gen", "kind": "generate", "recipe": "multihop", "teacher": "base", "take": 6, "rounds": 4,
             "requests_per_round": 3, "batch_size": 2, "negative_share": 1.0, **more}
    others = [
        {"name": "base", "kind": "import", "model": {"source": "tiny"}},
        {"name": "sets", "kind": "import", "data": [{"path": "x", "format": "boolq"}], "retrieve": True,
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


def rows_of(made: StageContext) -> dict[str, Record]:
    return {row.id: row for row in read_records(made.out / "rows" / "train.jsonl")}


def bad_of(made: StageContext) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (made.out / "bad.jsonl").read_text(encoding="utf-8").splitlines()]


def test_comparisons_are_answered_again_and_say_what_made_them(
    inputs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Request] = {}

    def teacher(request: Request) -> tuple[str, bool]:
        seen[request.id] = request
        return hop_teacher(request)

    by(monkeypatch, Scripted(teacher))
    outcome = multihop_stage(made := context(inputs))
    rows = rows_of(made)
    comparisons = {id_: row for id_, row in rows.items() if row.meta["kind"] == "gen-comparison"}
    assert len(comparisons) == outcome.metrics["comparisons"] == 6
    assert len(rows) == outcome.metrics["rows_train"]
    for id_, row in comparisons.items():
        kept = row.meta["multihop"]
        assert [one["long_answer"] for one in kept["sub_questions"]] == [
            f"As the text says: {one['paragraph']}" for one in kept["sub_questions"]], "not those that were drawn"
        assert kept["meta_info"]["drawn_answers"][0] != kept["sub_questions"][0]["long_answer"]
        assert kept["final_answer"].startswith("Taken together: As the text says")
        assert row.messages[-1]["content"] == (
            f"{kept['sub_questions'][1]['long_answer']}\nSummary: {kept['final_answer']}")
        assert row.meta["origin"]["model"] == inputs["base"].manifest.digest
        assert seen[f"{id_}-1"].draws[0].temperature == seen[f"{id_}-final"].draws[0].temperature == 0.0
        assert seen[id_].draws[0].temperature == 1.0
    assert 0 < outcome.metrics["agreement"] < 1


def test_the_rows_are_there_in_qa_experts_format_too(
    inputs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    by(monkeypatch, Scripted(hop_teacher))
    multihop_stage(made := context(inputs, rows=["sets/train"]))
    read = list(read_source(str(made.out / "multihop.jsonl"), "multihop", "again"))
    assert all(isinstance(row, Record) for row in read), read
    rows = rows_of(made)
    assert {row.id.removeprefix("again-"): row.messages for row in read if isinstance(row, Record)} == {
        id_: row.messages for id_, row in rows.items()}


def test_negatives_have_a_paragraph_that_does_not_answer(
    inputs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    by(monkeypatch, Scripted(hop_teacher))
    outcome = multihop_stage(made := context(inputs, take=12, requests_per_round=6, no_answer="It does not say."))
    rows = rows_of(made)
    negatives = {id_: row for id_, row in rows.items() if id_.endswith("-negative")}
    refused = sum(line["step"] == "paragraph" for line in bad_of(made))
    assert len(negatives) == outcome.metrics["negatives"] >= 9
    assert len(negatives) + refused + sum(outcome.facts["no_negative"].values()) == outcome.metrics["comparisons"]
    assert {row.meta["kind"] for row in negatives.values()} == {"negative-entity", "negative-attribute",
                                                                "negative-both"}
    paragraphs = {one["paragraph"] for row in rows.values() if row.meta["kind"] == "gen-comparison"
                  for one in row.meta["multihop"]["sub_questions"]}
    for id_, row in negatives.items():
        own, kept = rows[id_.removesuffix("-negative")].meta["multihop"], row.meta["multihop"]
        at = kept["meta_info"]["swapped"] - 1
        swapped, left = kept["sub_questions"][at], kept["sub_questions"][1 - at]
        assert left == own["sub_questions"][1 - at]
        assert (swapped["unanswerable"], swapped["long_answer"], kept["final_answer"]) == (
            True, "It does not say.", "It does not say.")
        entity, paragraph = own["meta_info"]["entities"][at], swapped["paragraph"]
        if row.meta["kind"] == "negative-attribute":
            assert entity in paragraph
            assert paragraph not in paragraphs
            assert "paragraph" in row.meta["origin"]
        else:
            assert entity not in paragraph
            assert (paragraph == own["sub_questions"][1 - at]["paragraph"]) == (row.meta["kind"] == "negative-entity")
        assert row.meta["group"] == rows[id_.removesuffix("-negative")].meta["group"]


def test_answers_of_data_sets_are_written_and_those_that_differ_are_refused(
    inputs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = by(monkeypatch, Scripted(hop_teacher))
    outcome = multihop_stage(made := context(inputs, rows=["sets/train"], rounds=0))
    said = {id_: row.messages[-1]["content"] for id_, row in rows_of(made).items()}
    assert said == {
        "boolq-b1-answered": "The text says that it freezes.\nAnswer: Yes",
        "drop-d1-answered": "Twelve boats came and three left.\n12 - 3 = 9\nAnswer: 9",
        "squad-s1-answered": "To How deep is it the answer is nine metres.",
        "squad-s2-answered": NO_ANSWER,
    }
    assert "squad-s2-answered-1" not in engine.asked, "nothing is asked where there is no answer"
    assert [(line["id"], line["reason"]) for line in bad_of(made)] == [("boolq-b2-answered-1", "answer-differs")]
    assert outcome.rows.read == 5
    assert outcome.metrics["answered"] == 4
    assert rows_of(made)["squad-s1-answered"].meta["references"] == ["nine metres"]


@pytest.mark.parametrize("stop_after", [1, 4, 9, 15, 22])
def test_interrupted_work_goes_on_with_nothing_asked_twice(
    inputs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    whole = by(monkeypatch, Scripted(hop_teacher))
    multihop_stage(wanted := context(inputs, "gen-whole", rows=["sets/train"]))
    first = by(monkeypatch, Scripted(hop_teacher, stop_after))
    with pytest.raises(KeyboardInterrupt):
        multihop_stage(context(inputs, rows=["sets/train"]))
    second = by(monkeypatch, Scripted(hop_teacher))
    multihop_stage(made := context(inputs, rows=["sets/train"]))
    assert sorted(first.asked + second.asked) == sorted(whole.asked)
    assert files(made) == files(wanted)


@pytest.mark.parametrize("budget", [6, 11, 19, 40])
def test_a_budget_is_never_passed_and_what_it_asks_is_answered(
    inputs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch, budget: int
) -> None:
    engine = by(monkeypatch, Scripted(hop_teacher))
    outcome = multihop_stage(context(inputs, max_requests=budget))
    assert len(engine.asked) == outcome.metrics["requests"] <= budget
    assert outcome.metrics["comparisons"] >= 1
    assert outcome.rows.dropped.get("over-budget", 0) == 0


def test_rows_beyond_the_budget_are_refused_before_any_is_asked(
    inputs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = by(monkeypatch, Scripted(hop_teacher))
    outcome = multihop_stage(context(inputs, rows=["sets/train"], rounds=0, max_requests=2))
    assert len(engine.asked) == 2
    assert outcome.rows.dropped["over-budget"] == 2
    assert "agreement" not in outcome.metrics, "of no comparison"


def test_repeats_copies_of_the_prompt_and_answers_that_disagree_are_refused(
    inputs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    def teacher(request: Request) -> tuple[str, bool]:
        text, finished = hop_teacher(request)
        if request.id == "r1-2":
            return text.replace(text.split("\n")[3], "Question: Which river is longer, the Severn or the Thames?"), True
        if request.id == "r1-3":
            return text, False
        return ("Nothing much.", True) if request.id == "r1-1-2" else (text, finished)

    by(monkeypatch, Scripted(teacher))
    multihop_stage(made := context(inputs, min_agreement=0.05, take=3))
    reasons = {line["id"]: line["reason"] for line in bad_of(made)}
    assert reasons["r1-2"] == "entity-not-in-question"
    assert reasons["r1-3"] == "response-cut"
    assert reasons["r1-1"] == "answers-disagree"


def test_batches_change_nothing(inputs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch) -> None:
    by(monkeypatch, Scripted(hop_teacher))
    multihop_stage(one := context(inputs, "gen-1", batch_size=1))
    multihop_stage(other := context(inputs, "gen-7", batch_size=7))
    assert files(one) == files(other)


def test_a_teacher_that_talks_noise_ends_within_its_budget_and_says_what_was_refused(
    inputs: dict[str, Artifact]
) -> None:
    """A model with random weights, by the real engine."""
    made = context(inputs, rows=["sets/train"], decontaminate=["sets/test"], rounds=3, patience=2,
                   comparison={"temperature": 1.0, "max_new_tokens": 12}, answers={"max_new_tokens": 12},
                   max_prompt_tokens=1800)
    outcome = multihop_stage(made)
    assert outcome.metrics["rounds"] == 2
    assert outcome.metrics["answered"] == 1, "the one that has no answer and needs none"
    assert outcome.metrics["comparisons"] == 0
    assert {line["reason"] for line in bad_of(made)} <= {"response-cut", "no-steps", "missing-step", "empty-response",
                                                         "answer-differs", "empty-answer", "several-lines"}
    assert len(outcome.facts["examples"]) == 3


def test_a_teacher_that_says_nothing_of_use_is_an_error_with_shares(
    inputs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    by(monkeypatch, Scripted(lambda request: ("Sorry, I cannot.", True)))
    with pytest.raises(StageError, match="nothing that the teacher said could be kept") as error:
        multihop_stage(context(inputs, patience=2))
    assert "missing-step 100% (6)" in str(error.value.found)


def test_rows_without_paragraphs_are_one_clear_error(
    inputs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    by(monkeypatch, Scripted(hop_teacher))
    with pytest.raises(DataError, match="no row can be answered"):
        multihop_stage(context(inputs, rows=["sets/test"]))


def test_prompts_over_the_limit_are_one_clear_error(
    inputs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    by(monkeypatch, Scripted(hop_teacher))
    with pytest.raises(DataError, match="no prompt of a round fits"):
        multihop_stage(context(inputs, max_prompt_tokens=20))


@pytest.mark.parametrize(("key", "value"), [
    ("take", 0), ("rounds", 0), ("max_requests", 4), ("negatives", []), ("negatives", ["both", "both"]),
    ("negatives", ["colour"]), ("no_answer", ""), ("negative_share", 1.5),
])
def test_a_config_that_can_make_nothing_is_refused(inputs: dict[str, Artifact], key: str, value: Any) -> None:
    with pytest.raises(ConfigErrors, match=key):
        context(inputs, **{key: value})


def test_a_model_with_new_tokens_learns_what_was_generated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by(monkeypatch, Scripted(hop_teacher))
    for format, rows in SETS.items():
        (tmp_path / f"{format}.json").write_text(json.dumps({
            "boolq": rows, "drop": {"p1": {"passage": HARBOUR, "qa_pairs": rows}},
            "squad": {"data": [{"paragraphs": [{"context": HARBOUR, "qas": rows}]}]}}[format]), encoding="utf-8")
    run = small.run(
        tmp_path,
        {"name": "sets", "kind": "import", "retrieve": True, "data": [
            {"path": str(tmp_path / f"{format}.json"), "format": format} for format in SETS],
         "split": {"by": "ratio", "ratios": {"train": 1.0}}},
        {**small.BASE, "name": "student", "template": "retrieval", "new_tokens": ["<|bof|>", "<|eof|>", "<|eot|>"]},
        {"name": "gen", "kind": "generate", "recipe": "multihop", "teacher": "base", "rows": ["sets/train"], "take": 3,
         "requests_per_round": 3},
        small.train("sft", model="student", rows=["gen/train"], epochs=1, max_length=2000, loss="assistant",
                    batch_size=4, micro_batch_size=4, strategy={
                        "kind": "lora", "r": 4, "alpha": 8, "modules_to_save": ["embed_tokens", "lm_head"]}),
        {"name": "eval", "kind": "evaluate", "models": ["student", "sft"], "rows": "data/test", "bootstrap": 100,
         "sampling": {"temperature": 0.0, "max_new_tokens": 4}})
    artifacts = execute(run).artifacts
    gen, sft = artifacts["gen"], artifacts["sft"]
    assert gen is not None
    assert sft is not None
    assert sft.manifest.rows.read == gen.manifest.rows.written["train"]
    assert sft.manifest.metrics["supervised_tokens"] > 0
    assert artifacts["eval"] is not None
