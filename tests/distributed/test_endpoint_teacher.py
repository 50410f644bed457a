"""Generate stages whose teacher is an endpoint: the whole recipe, failures that are no answers, budgets, checks."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.artifacts import Artifact, Store
from alignment.cli.check import mistakes
from alignment.config import Run, load_run, parse_run
from alignment.distributed import batches
from alignment.errors import StageError
from alignment.inference.endpoint import generator
from alignment.pipeline import execute
from alignment.pipeline.keys import keys
from alignment.planner.estimate import Rates
from alignment.planner.plan import plan
from alignment.records import read_records
from tests import small
from tests.distributed.test_generate import seed_rows
from tests.endpoint_server import Asked, Reply, Script, answer, endpoint, error, teacher
from tests.generation.scripted import NOUNS, VERBS
from tests.inference.test_endpoint import Passing

PRICE = {"input": 1000.0, "output": 1000.0}
"""An answer of `answer` costs 0.025."""
FILTERED = "refused by the endpoint's content filter"
GEN: dict[str, Any] = {"name": "gen", "kind": "generate", "recipe": "self_instruct", "teacher": "teacher",
                       "seeds": ["seeds/train"], "decontaminate": ["seeds/test"], "take": 6, "rounds": 4,
                       "requests_per_round": 2, "batch_size": 2}


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator, "Clock", lambda: Passing().clock())


def run_of(folder: Path, url: str, *stages: dict[str, Any], compute: dict[str, Any] | None = None,
           gen: dict[str, Any] | None = None, **model: Any) -> Run:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "seeds.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in seed_rows()), encoding="utf-8")
    tree = {"name": "asked", "seed": 3, "store": str(folder / "store"),
            "compute": {"dtype": "float32", "device": "cpu", **(compute or {})},
            "stages": [small.BASE, teacher(url, **model),
                       {"name": "seeds", "kind": "import", "data": [{"path": str(file), "format": "self-instruct"}],
                        "split": {"by": "ratio", "ratios": {"train": 0.8, "test": 0.2}}},
                       {**GEN, **(gen or {})}, *stages]}
    return parse_run(yaml.safe_dump(tree, sort_keys=False))


def step_of(one: Asked) -> str:
    if one.last.startswith("Here is a numbered list"):
        return "instructions"
    return "classification" if one.last.startswith("Is the answer") else "instances"


def said(one: Asked) -> Reply:
    """Three new tasks, No, or an example in the form that is asked for; a function of prompt and seed."""
    if step_of(one) == "classification":
        return answer("No")
    if step_of(one) == "instances":
        return answer(f"Example 1\nInput: the sign of {hash_of(one)}\nOutput: said about {hash_of(one)}")
    draw = random.Random(f"{one.last}/{one.body['seed']}")
    return answer("\n".join(
        f"{9 + index}. {draw.choice(VERBS)} the {draw.choice(NOUNS)} beside a {draw.choice(NOUNS)} for "
        f"{draw.choice(VERBS).lower()}rs of {draw.getrandbits(40)} and {draw.getrandbits(40)}" for index in range(3)))


def hash_of(one: Asked) -> int:
    return random.Random(one.last).getrandbits(40)


def but(fails: Callable[[Asked], bool], reply: Reply) -> Script:
    return lambda one: reply if fails(one) else said(one)


def made(run: Run) -> Artifact:
    artifact = Store(run.store).find(keys(run)["gen"].key)
    assert artifact is not None
    return artifact


def bad_of(artifact: Artifact) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (artifact.path() / "bad.jsonl").read_text(encoding="utf-8").splitlines()]


def test_seeds_become_a_model_by_a_teacher_that_is_asked_and_the_manifest_says_what_that_took(tmp_path: Path) -> None:
    with endpoint(said) as server:
        run = run_of(
            tmp_path, server.url, small.train("sft", rows=["gen/train"], epochs=1, max_length=256),
            {"name": "eval", "kind": "evaluate", "models": ["base", "sft"], "rows": "seeds/test", "bootstrap": 100,
             "sampling": {"temperature": 0.0, "max_new_tokens": 4}},
            limits={"price": PRICE, "budget": 90.0})
        found = execute(run).artifacts
        asked = server.asked
    steps = [step_of(one) for one in asked]
    # Two requests of the first round propose six tasks, and six are wanted.
    assert [steps.count(step) for step in ("instructions", "classification", "instances")] == [2, 6, 6]
    assert {one.body["presence_penalty"] for one in asked if step_of(one) == "instructions"} == {2.0}
    assert {one.body["max_tokens"] for one in asked if step_of(one) == "instances"} == {350}
    gen, sft = made(run), found["sft"]
    assert sft is not None
    assert found["eval"] is not None
    rows = read_records(gen.path() / "rows" / "train.jsonl")
    assert len(rows) == gen.manifest.metrics["rows_train"] == sft.manifest.rows.read == 6
    assert all(row.completion.startswith("said about ") for row in rows if row.completion is not None)
    teachers = Store(run.store).find(keys(run)["teacher"].key)
    assert teachers is not None
    assert {row.meta["origin"]["model"] for row in rows} == {teachers.manifest.digest}
    taken = gen.manifest.facts["endpoints"]["teacher"]
    assert (taken["requests"], taken["prompt_tokens"], taken["completion_tokens"]) == (14, 280, 70)
    assert taken["cost"] == pytest.approx(14 * 0.025)
    assert taken["answered_as"] == ["teacher-1"]
    assert gen.manifest.facts["timing"]["tokens"] == 70
    assert gen.manifest.compute == {"engine": "endpoint", "workers": 0}


@pytest.mark.parametrize(("reply", "reason", "found"), [
    (answer("", "content_filter"), FILTERED, "finish_reason content_filter"),
    (error(500, "boom"), "the endpoint failed", "500: boom"),
    (answer("", refusal="I will not"), "the endpoint's model declined to answer", "I will not"),
])
@pytest.mark.parametrize("step", ["instructions", "classification", "instances"])
def test_what_the_endpoint_gave_no_answer_to_is_refused_for_its_reason_and_never_read(
    tmp_path: Path, step: str, reply: Reply, reason: str, found: str
) -> None:
    first: list[str] = []

    def fails(one: Asked) -> bool:
        if step_of(one) == step and not first:
            first.append(one.last)
        return one.last in first

    with endpoint(but(fails, reply)) as server:
        run = run_of(tmp_path, server.url, limits={"retries": 0, "concurrency": 1})
        execute(run)
    gen = made(run)
    lines = [line for line in bad_of(gen) if "found" in line]
    assert [(line["step"], line["reason"]) for line in lines] == [(step, reason)]
    assert found in lines[0]["found"]
    assert lines[0]["origin"]["request"]
    assert gen.manifest.rows.dropped[reason] == gen.manifest.facts["refused"][step][reason] == 1
    assert not {"empty-response", "no-example", "response-cut"} & {line["reason"] for line in bad_of(gen)}
    assert gen.manifest.facts["unclear_kinds"] == 0
    # A task whose kind or examples were not told is lost; new tasks are asked for in another round.
    assert gen.manifest.metrics["tasks"] == (6 if step == "instructions" else 5)
    assert any(reason == one["reason"] and found in one["text"] for one in gen.manifest.facts["examples"])


def test_rounds_that_passing_failures_leave_without_an_answer_do_not_use_up_patience(tmp_path: Path) -> None:
    with endpoint(but(lambda one: one.number < 4, error(500))) as server:
        run = run_of(tmp_path, server.url, gen={"patience": 1}, limits={"retries": 0, "concurrency": 1})
        execute(run)
    gen = made(run)
    assert gen.manifest.metrics["rounds"] == 3
    assert gen.manifest.metrics["tasks"] == 6
    assert gen.manifest.rows.dropped["the endpoint failed"] == 4


def test_a_teacher_that_refuses_every_request_of_a_round_uses_up_patience(tmp_path: Path) -> None:
    with endpoint(but(lambda one: step_of(one) == "instructions" and one.number > 0,
                      answer("", "content_filter"))) as server:
        run = run_of(tmp_path, server.url, gen={"patience": 2, "rounds": 50, "requests_per_round": 1},
                     limits={"concurrency": 1})
        execute(run)
    gen = made(run)
    assert gen.manifest.metrics["rounds"] == 3
    assert gen.manifest.rows.dropped[FILTERED] == 2


@pytest.mark.parametrize("budget", [0.03, 0.13, 0.29])
def test_a_spent_budget_stops_the_stage_and_a_higher_one_goes_on_with_nothing_asked_twice(
    tmp_path: Path, budget: float
) -> None:
    """The stage stops among new tasks, kinds and examples."""
    short = {"instructions": {"max_new_tokens": 5}, "classification": {"temperature": 0.0, "max_new_tokens": 5},
             "instances": {"temperature": 0.0, "max_new_tokens": 5}}
    price = {"input": 0.0, "output": 5000.0}
    with endpoint(said) as server:
        whole = run_of(tmp_path / "whole", server.url, gen=short, limits={"price": price})
        execute(whole)
        wanted = len(server.asked)
        poor = run_of(tmp_path, server.url, gen=short, limits={"price": price, "budget": budget})
        with pytest.raises(StageError, match="the budget for the endpoint is spent"):
            execute(poor)
        first = len(server.asked) - wanted
        assert 0 < first < wanted
        assert first * 0.025 <= budget
        rich = run_of(tmp_path, server.url, gen=short, limits={"price": price, "budget": 9.0})
        assert keys(rich) == keys(poor) == keys(whole)
        execute(rich)
        assert len(server.asked) == 2 * wanted
    for name in ("rows/train.jsonl", "bad.jsonl"):
        assert (made(rich).path() / name).read_bytes() == (made(whole).path() / name).read_bytes()
    taken = made(rich).manifest.facts["endpoints"]["teacher"]
    assert (taken["requests"], taken["cost"]) == (wanted, pytest.approx(wanted * 0.025))


def test_an_endpoint_that_answers_nothing_stops_the_stage_with_its_reason(tmp_path: Path) -> None:
    with endpoint(lambda one: error(401, "wrong key")) as server:
        run = run_of(tmp_path, server.url)
        with pytest.raises(StageError, match="does not accept the key"):
            execute(run)
    with endpoint(lambda one: error(500, "boom")) as server:
        run = run_of(tmp_path / "other", server.url, gen={"requests_per_round": 12, "batch_size": 12},
                     limits={"retries": 0})
        with pytest.raises(StageError, match="gives no answers") as stopped:
            execute(run)
    assert "500: boom" in str(stopped.value)


def test_an_endpoint_is_asked_in_one_process_where_others_would_have_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "ensure_ray", lambda compute: pytest.fail("no worker asks an endpoint"))
    with endpoint(said) as server:
        run = run_of(tmp_path, server.url, compute={"workers": 1})
        execute(run)
    assert len(read_records(made(run).path() / "rows" / "train.jsonl")) == 6


def found(folder: Path, gen: dict[str, Any], compute: dict[str, Any] | None = None, **model: Any) -> list[str]:
    """What `check` says, one text per finding."""
    run = run_of(folder, "http://127.0.0.1:9/v1", gen=gen, compute=compute, **model)
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(run.model_dump(mode="json", exclude_none=True)), encoding="utf-8")
    return [str(one) for one in mistakes(load_run(str(file)), str(file), None)]


@pytest.mark.parametrize(("gen", "model", "place", "problem"), [
    ({"instances": {"top_k": 5}}, {}, "instances.top_k", "endpoint teacher is not known to take top_k"),
    ({"classification": {"repetition_penalty": 1.2}}, {}, "classification.repetition_penalty", "not known to take"),
    ({"max_prompt_tokens": 2000}, {}, "max_prompt_tokens", "an endpoint counts its own tokens"),
    ({}, {"key_env": "A_KEY_THAT_IS_NOT_SET"}, "", "the endpoint's key is not in the environment"),
])
def test_check_refuses_what_no_endpoint_can_do(
    tmp_path: Path, gen: dict[str, Any], model: dict[str, Any], place: str, problem: str
) -> None:
    texts = found(tmp_path, gen, **model)
    assert len(texts) == 1
    assert problem in texts[0]
    assert place in texts[0]


def test_check_takes_a_teacher_that_is_asked_and_refuses_several_workers(tmp_path: Path) -> None:
    assert found(tmp_path, {"demonstrations": 8, "last_item": None}) == []
    texts = found(tmp_path, {}, {"workers": 2})
    assert any("asked by one process" in text for text in texts)


def test_a_plan_says_about_what_the_answers_cost(tmp_path: Path) -> None:
    run = run_of(tmp_path, "http://h/v1", limits={"price": {"input": 0.0, "output": 1e6}})
    plans = {item.name: item for item in plan(run, {}, Rates(1e12, 1e10))}
    cost = 8 * 1024 + 6 * 8 + 6 * 350
    assert plans["gen"].what.endswith(f"costs about {cost:.3g} at most")
    assert not plans["gen"].needs_model
