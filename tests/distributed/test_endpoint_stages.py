"""Runs that name an endpoint as a model: sample and evaluate ask it, everything else is refused before it starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.artifacts import Artifact, Store
from alignment.cli.check import mistakes
from alignment.config import Run, load_run, parse_run
from alignment.errors import ConfigErrors, StageError
from alignment.inference.endpoint import generator
from alignment.pipeline import execute
from alignment.pipeline.keys import keys
from alignment.planner.estimate import Rates
from alignment.planner.plan import plan
from alignment.records import read_records
from alignment.report import render
from tests import small
from tests.endpoint_server import Asked, Reply, answer, endpoint, error, teacher
from tests.inference.test_endpoint import KEY, Passing

PRICE = {"input": 1000.0, "output": 1000.0}
SAMPLE: dict[str, Any] = {"name": "rs", "kind": "sample", "model": "teacher", "prompts": ["data/train"], "n": 2,
                          "batch_size": 8, "score": {"function": "brevity"}}
EVALUATE: dict[str, Any] = {"name": "eval", "kind": "evaluate", "models": ["teacher"], "rows": "data/test",
                            "batch_size": 4, "perplexity": False}


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator, "Clock", lambda: Passing().clock())


def run_of(folder: Path, url: str, *stages: dict[str, Any], base: bool = False, **model: Any) -> Run:
    tree = {"name": "asked", "seed": 3, "store": str(folder / "store"),
            "compute": {"dtype": "float32", "device": "cpu"},
            "stages": [*([small.BASE] if base else []), teacher(url, **model), small.data(folder), *stages]}
    return parse_run(yaml.safe_dump(tree, sort_keys=False))


def said(one: Asked) -> Reply:
    """Some colour that depends on the seed, so that two answers to a prompt differ."""
    return answer(small.COLOURS[one.body["seed"] % 8] + "!" * (one.body["seed"] % 3), completion=3)


def made(run: Run, name: str) -> Artifact:
    artifact = Store(run.store).find(keys(run)[name].key)
    assert artifact is not None
    return artifact


def test_a_sample_stage_asks_an_endpoint_and_its_rows_and_manifest_say_what_that_took(tmp_path: Path) -> None:
    with endpoint(said) as server:
        run = run_of(tmp_path, server.url, SAMPLE, limits={"price": PRICE, "budget": 90.0})
        execute(run)
        assert len(server.asked) == 48
    artifact = made(run, "rs")
    samples = read_records(artifact.path() / "rows" / "samples.jsonl")
    assert len(samples) == 48
    assert all(row.meta["usage"]["cost"] == pytest.approx(0.023) for row in samples)
    taken = artifact.manifest.facts["endpoints"]["teacher"]
    assert taken == {
        "base_url": server.url, "model": "teacher-1", "template": taken["template"], "requests": 48,
        "prompt_tokens": 960, "completion_tokens": 144, "cost": pytest.approx(1.104), "uncounted": 0,
        "lost_at_most": 0, "answered_as": ["teacher-1"]}
    assert "endpoint's own" in taken["template"]
    assert artifact.manifest.facts["timing"]["tokens"] == 144
    assert artifact.manifest.compute == {"engine": "endpoint", "workers": 0}
    page = render(run, {stage.name: Store(run.store).find(keys(run)[stage.name].key) for stage in run.stages}, None, "")
    assert "import · teacher-1 at 127.0.0.1" in page


def test_rows_that_an_endpoint_refuses_are_kept_with_their_reason_and_the_others_selected(tmp_path: Path) -> None:
    first: list[str] = []

    def script(one: Asked) -> Reply:
        first.append(one.last)
        return answer("", "content_filter") if one.last == first[0] else said(one)

    with endpoint(script) as server:
        run = run_of(tmp_path, server.url, SAMPLE)
        execute(run)
    artifact = made(run, "rs")
    dropped = artifact.manifest.rows.dropped
    lines = [json.loads(line) for line in (artifact.path() / "bad.jsonl").read_text(encoding="utf-8").splitlines()]
    assert dropped["refused by the endpoint's content filter"] == len(lines) == 2
    assert {line["found"] for line in lines} == {"finish_reason content_filter"}
    assert [line["index"] for line in lines] == [0, 1]
    assert [line["raw"]["prompt"][-1]["content"] for line in lines] == [first[0]] * 2
    assert artifact.manifest.facts["endpoints"]["teacher"]["requests"] == 48


def test_a_spent_budget_stops_the_stage_and_a_higher_one_goes_on_with_nothing_asked_twice(tmp_path: Path) -> None:
    with endpoint(said) as server:
        poor = run_of(tmp_path, server.url, SAMPLE, limits={"price": PRICE, "budget": 0.9, "concurrency": 2})
        with pytest.raises(StageError, match="the budget for the endpoint is spent") as stopped:
            execute(poor)
        first = len(server.asked)
        assert 10 < first < 48
        assert first * 0.023 <= 0.9
        rich = run_of(tmp_path, server.url, SAMPLE, limits={"price": PRICE, "budget": 9.0})
        assert keys(rich) == keys(poor)
        execute(rich)
        assert len(server.asked) == 48
        assert not any(one.again for one in server.asked)
    assert f"{first} answers are paid and kept" in str(stopped.value)
    assert made(rich, "rs").manifest.facts["endpoints"]["teacher"]["cost"] == pytest.approx(48 * 0.023)


def test_a_stage_that_was_stopped_makes_what_one_that_was_not_makes(tmp_path: Path) -> None:
    samples = []
    for name, budgets in (("a", [0.9, 9.0]), ("b", [9.0])):
        with endpoint(said) as server:
            for budget in budgets:
                run = run_of(tmp_path / name, server.url, SAMPLE, limits={"price": PRICE, "budget": budget})
                if budget < 1:
                    with pytest.raises(StageError):
                        execute(run)
                else:
                    execute(run)
        samples.append([(row.id, row.completion, row.meta["score"])
                        for row in read_records(made(run, "rs").path() / "rows" / "samples.jsonl")])
    assert samples[0] == samples[1]


def test_evaluate_asks_an_endpoint_beside_a_model_of_the_store(tmp_path: Path) -> None:
    stage = {**EVALUATE, "models": ["base", "teacher"], "score": {"function": "brevity"},
             "sampling": {"max_new_tokens": 4}}
    with endpoint(lambda one: answer("red.") if one.number else error(500, "boom")) as server:
        run = run_of(tmp_path, server.url, stage, base=True, limits={"price": PRICE, "retries": 0})
        execute(run)
        asked = len(server.asked)
    artifact = made(run, "eval")
    lines = [json.loads(line) for line in (artifact.path() / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert asked == len(lines) + 1 == 8
    assert all(line["answers"]["teacher"]["usage"]["prompt_tokens"] == 20 for line in lines)
    assert all("usage" not in line["answers"]["base"] for line in lines)
    right = sum(line["reference"] == "red" for line in lines)
    assert artifact.manifest.metrics["teacher.exact_match"] == pytest.approx(right / len(lines))
    assert list(artifact.manifest.facts["endpoints"]) == ["teacher"]
    assert artifact.manifest.rows.dropped == {"the endpoint failed": 1}


def test_a_question_without_an_answer_is_left_out_for_all_models_and_counted(tmp_path: Path) -> None:
    with endpoint(lambda one: answer("red") if one.number else answer("", "content_filter")) as server:
        run = run_of(tmp_path, server.url, EVALUATE, limits={"concurrency": 1})
        execute(run)
    artifact = made(run, "eval")
    assert artifact.manifest.rows.written == {"answers": 7}
    assert artifact.manifest.rows.dropped == {"refused by the endpoint's content filter": 1}
    line = json.loads((artifact.path() / "bad.jsonl").read_text(encoding="utf-8"))
    assert line["found"] == "teacher: finish_reason content_filter"


def test_an_evaluation_without_one_answer_says_why_with_examples(tmp_path: Path) -> None:
    with endpoint(lambda one: error(500, "boom")) as server:
        run = run_of(tmp_path, server.url, EVALUATE, limits={"retries": 0})
        with pytest.raises(StageError, match="no question was answered by every model") as stopped:
            execute(run)
    assert str(stopped.value).count("500: boom") == 3


def test_limits_prices_and_keys_are_in_no_digest_and_all_else_is(tmp_path: Path) -> None:
    def digest(**model: Any) -> str:
        url = model.pop("url", "http://h/v1")
        return keys(run_of(tmp_path, url, SAMPLE, **model))["rs"].digest

    plain = digest()
    assert digest(url="http://h/v1/") == plain
    assert digest(limits={"concurrency": 3, "price": PRICE, "budget": 2.0, "retries": 0}) == plain
    assert digest(key_env="SOME_KEY") == plain
    others = [digest(url="http://g/v1"), digest(model="teacher-2"), digest(extra_body={"reasoning_effort": "low"}),
              digest(takes=[]), digest(length_key="max_completion_tokens")]
    assert len({plain, *others}) == 6


def found(folder: Path, *stages: dict[str, Any], base: bool = False, compute: dict[str, Any] | None = None,
          **model: Any) -> list[str]:
    """What `check` says, one text per finding."""
    tree = run_of(folder, "http://127.0.0.1:9/v1", *stages, base=base, **model).model_dump(
        mode="json", exclude_none=True)
    tree["compute"] |= compute or {}
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return [str(one) for one in mistakes(load_run(str(file)), str(file), None)]


@pytest.mark.parametrize(("stage", "model", "problem"), [
    (EVALUATE | {"perplexity": True}, {}, "an endpoint gives no log-probabilities"),
    (SAMPLE | {"sampling": {"top_k": 5}}, {}, "endpoint teacher is not known to take top_k"),
    (SAMPLE | {"first": {"repetition_penalty": 1.2}}, {}, "not known to take repetition_penalty"),
    (SAMPLE | {"max_prompt_tokens": 100}, {}, "an endpoint counts its own tokens"),
    (SAMPLE, {"key_env": "A_KEY_THAT_IS_NOT_SET"}, "the endpoint's key is not in the environment"),
])
def test_check_refuses_what_no_endpoint_can_do(
    tmp_path: Path, stage: dict[str, Any], model: dict[str, Any], problem: str
) -> None:
    texts = found(tmp_path, stage, **model)
    assert len(texts) == 1
    assert problem in texts[0]


def test_check_refuses_several_workers_and_takes_a_key_that_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_KEY", KEY)
    assert found(tmp_path, SAMPLE | {"sampling": {"top_k": 5}}, key_env="A_KEY", takes=["top_k"]) == []
    texts = found(tmp_path, SAMPLE, compute={"workers": 2})
    assert any("asked by one process" in text for text in texts)


@pytest.mark.parametrize("stage", [
    small.train("sft", model="teacher"), small.train("dpo", "dpo", model="teacher"),
    small.train("d", "distill", model="base", teacher="teacher"),
    SAMPLE | {"score": {"model": "teacher"}, "model": "base"},
], ids=["sft", "dpo", "teacher of a distillation", "scorer"])
def test_stages_that_need_weights_refuse_an_endpoint(tmp_path: Path, stage: dict[str, Any]) -> None:
    with pytest.raises(ConfigErrors, match="is an endpoint, which has no weights here"):
        run_of(tmp_path, "http://127.0.0.1:9/v1", stage, base=True)


@pytest.mark.parametrize("model", [
    {"key_env": KEY}, {"base_url": f"https://me:{KEY}@host/v1"}, {"base_url": f"https://host/v1?key={KEY}"},
    {"base_url": "host/v1"}, {"base_url": "http://[::1/v1"}, {"model": ""}, {"limits": {"budget": 3.0}},
    {"limits": {"budget": 0.0, "price": PRICE}}, {"extra_body": {"temperature": 1}}, {"takes": ["logprobs"]},
])
def test_a_wrong_endpoint_is_refused_and_a_key_in_the_wrong_place_not_shown(
    tmp_path: Path, model: dict[str, Any]
) -> None:
    with pytest.raises(ConfigErrors) as refused:
        run_of(tmp_path, str(model.get("base_url", "http://h/v1")), SAMPLE,
               **{key: value for key, value in model.items() if key != "base_url"})
    assert len(refused.value.findings) == 1
    assert KEY not in str(refused.value)


def test_a_plan_says_what_the_answers_cost_at_most(tmp_path: Path) -> None:
    run = run_of(tmp_path, "http://h/v1", SAMPLE, limits={"price": {"input": 0.0, "output": 1e6}})
    plans = {item.name: item for item in plan(run, {}, Rates(1e12, 1e10))}
    assert plans["rs"].what.endswith(f"costs {24 * 2 * 128:.3g} at most")
    assert not plans["rs"].needs_model
    assert plans["teacher"].seconds == 0


def test_the_run_file_of_the_documentation_can_be_read() -> None:
    text = (Path(__file__).parents[2] / "docs" / "endpoints.md").read_text(encoding="utf-8")
    run = parse_run(text.split("```yaml\n")[1].partition("```")[0])
    assert run.stage("teacher").endpoint is not None
