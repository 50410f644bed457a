"""The whole Evaluate stage on tiny models: its numbers are worked out again from its answers and from plain torch."""

from __future__ import annotations

import json
import math
import shutil
import weakref
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from alignment.artifacts import Store
from alignment.config import Evaluate
from alignment.context import Outcome, StageContext
from alignment.distributed.evaluate import evaluate_stage
from alignment.errors import DataError
from alignment.evaluation.held_out import HeldOut
from alignment.evaluation.questions import choose_questions
from alignment.inference import embedded
from alignment.inference.engine import Engine
from alignment.inference.import_model import import_model
from alignment.inference.info import write_info
from alignment.inference.loading import load_policy, load_tokenizer
from alignment.inference.requests import Draw, Request
from alignment.inference.scoring import RewardScorer
from alignment.records import Record
from alignment.templates import encode_completion, encode_prompt
from tests.evaluation.built import Built, build_run
from tests.models import as_it_lies

ROWS = 10
TOKENS = 6


def half_known(record: Record, answer: str) -> float:
    """Length of the answer, undefined for one row."""
    return math.nan if record.id == "t3" else float(len(answer))


def fails(record: Record, answer: str) -> float:
    raise ZeroDivisionError("of my own making")


def prompt_of(index: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"Which boat is number {index * 7919}? " + "Tell me more. " * (index % 3)}]


def stages(evaluate_stage: dict[str, Any]) -> list[dict[str, Any]]:
    tiny = {"source": "tiny", "hidden_size": 32, "layers": 2, "heads": 2, "vocab_size": 384}
    full = {"strategy": {"kind": "full"}, "rows": ["data/train"], "kind": "train"}
    return [
        {"kind": "import", "name": "base", "model": tiny, "dtype": "float32"},
        {"kind": "import", "name": "data", "data": [{"path": "x.jsonl", "format": "passage-qa"}],
         "split": {"by": "field", "names": ["train", "test"]}},
        {**full, "name": "twin", "method": "sft", "model": "base"},
        {**full, "name": "other", "method": "sft", "model": "base"},
        {**full, "name": "rm", "method": "reward", "model": "base"},
        {"kind": "evaluate", "name": "eval", "rows": "data/test", "bootstrap": 200, "batch_size": 4,
         "sampling": {"temperature": 0.0, "max_new_tokens": TOKENS}, "models": ["base", "twin", "other"],
         **evaluate_stage},
    ]


SCORE = {"model": "rm", "function": f"{__name__}:half_known", "function_weight": 0.1}


@dataclass
class World:
    """Models and rows made once; `built(evaluate settings)` is the same store under another evaluate stage."""

    folder: Path
    published: Built

    def built(self, compute: dict[str, Any] | None = None, **evaluate_stage: Any) -> Built:
        made = build_run(self.folder, stages(evaluate_stage),
                         compute={"device": "cpu", "dtype": "float32", **(compute or {})})
        made.artifacts = self.published.artifacts
        return made


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    built = build_run(folder, stages({}), compute={"device": "cpu", "dtype": "float32"})
    built.publish("base", lambda target: import_model(built.context("base")))
    base = built.artifacts["base"]
    said = base_answers(base)
    test = [
        Record(id=f"t{i}", type="prompt-completion", prompt=prompt_of(i),
               completion=said[i] if i < 2 else f"the boat of {i}",
               meta={"kind": "odd" if i % 2 else "even", "question": f"q{i}", "passage": f"p{i}",
                     "references": [said[i]] if i == 2 else []})
        for i in range(ROWS)
    ]
    train = [Record(id="seen", type="prompt-completion", prompt=[{"role": "user", "content": "unlike"}],
                    completion="x")]
    built.publish_rows("data", train=train, test=test)
    built.publish("twin", lambda target: shutil.copytree(base.path() / "model", target / "model"))
    built.publish("other", lambda target: shaken(base, target / "model"))
    built.publish("rm", lambda target: reward_model(base, target / "model"))
    return World(folder, built)


def base_answers(base: Any) -> list[str]:
    model = load_policy(base, dtype=torch.float32, device="cpu")
    engine = Engine(model, load_tokenizer(base.path() / "model", side="left"))
    draw = Draw(temperature=0.0, max_new_tokens=TOKENS)
    return [engine.generate([Request("x", prompt_of(i), (draw,))])[0][0].text for i in range(ROWS)]


def shaken(base: Any, target: Path) -> None:
    """The base model with other weights, so that it answers otherwise."""
    model = AutoModelForCausalLM.from_pretrained(base.path() / "model", dtype=torch.float32)
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.05)
    tokenizer = load_tokenizer(base.path() / "model", side="left")
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    write_info(target, role="policy", form="full", base=None, tokenizer=tokenizer)


def reward_model(base: Any, target: Path) -> None:
    torch.manual_seed(6)
    model = AutoModelForSequenceClassification.from_pretrained(
        base.path() / "model", num_labels=1, dtype=torch.float32)
    torch.nn.init.normal_(model.score.weight, std=1.0)
    tokenizer = load_tokenizer(base.path() / "model", side="right")
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    write_info(target, role="reward", form="full", base=None, tokenizer=tokenizer)


def run(built: Built) -> tuple[Outcome, Path]:
    context = built.context("eval")
    shutil.rmtree(context.out)
    context.out.mkdir()
    return evaluate_stage(context), context.out


def read(out: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    def strict(text: str) -> Any:
        return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))

    lines = (out / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    return strict((out / "results.json").read_text(encoding="utf-8")), [strict(line) for line in lines]


@pytest.fixture(scope="module")
def finished(world: World) -> tuple[Outcome, dict[str, Any], list[dict[str, Any]]]:
    outcome, out = run(world.built(score=SCORE))
    return outcome, *read(out)


def test_metrics_are_those_of_the_answers(finished: Any) -> None:
    outcome, results, lines = finished
    assert [line["id"] for line in lines] == [f"t{i}" for i in range(ROWS)]
    assert results["rows"] == ROWS
    for model in ("base", "twin", "other"):
        for metric in ("exact_match", "f1", "rouge_l", "reward", "style"):
            values = [line["answers"][model][metric] for line in lines]
            known = [value for value in values if value is not None]
            assert outcome.metrics[f"{model}.{metric}"] == pytest.approx(sum(known) / len(known))
            cell = results["models"][model][metric]
            assert cell["low"] <= cell["value"] <= cell["high"]
            assert cell["dropped"] == (1 if metric == "style" else 0)
        assert outcome.metrics[f"{model}.finished"] == sum(li["answers"][model]["finished"] for li in lines) / ROWS


def test_a_known_answer_is_an_exact_match(finished: Any) -> None:
    _, _, lines = finished
    # References of rows 0 and 1 are what base says; row 2 has it among more references.
    assert [line["answers"]["base"]["exact_match"] for line in lines[:3]] == [1, 1, 1]
    assert [line["answers"]["twin"]["f1"] for line in lines[:3]] == [1, 1, 1]


def test_win_rates_are_those_of_the_scores(finished: Any) -> None:
    outcome, results, lines = finished

    def score(line: dict[str, Any], model: str) -> float | None:
        own = line["answers"][model]
        return None if own["style"] is None else own["reward"] + 0.1 * own["style"]

    pairs = [(score(line, "other"), score(line, "base")) for line in lines if line["id"] != "t3"]
    rate = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / (ROWS - 1)  # type: ignore[operator]
    assert outcome.metrics["other_vs_base.win_rate"] == pytest.approx(rate)
    reward = [(li["answers"]["other"]["reward"], li["answers"]["base"]["reward"]) for li in lines]
    assert outcome.metrics["other_vs_base.reward_win_rate"] == sum((a > b) + (a == b) / 2 for a, b in reward) / ROWS
    assert any(a != b for a, b in reward)
    whole = next(c for c in results["compare"] if c["challenger"] == "other" and c["by"] == "score")
    assert (whole["wins"] + whole["ties"] + whole["losses"], whole["dropped"]) == (ROWS - 1, 1)


def test_equal_models_tie_on_every_row(finished: Any) -> None:
    outcome, results, lines = finished
    assert all(line["answers"]["twin"] == line["answers"]["base"] for line in lines)
    assert outcome.metrics["twin_vs_base.win_rate"] == 0.5
    ties = [c["ties"] for c in results["compare"] if c["challenger"] == "twin" and c["by"] == "reward"]
    assert ties == [ROWS]
    assert any(line["answers"]["other"]["text"] != line["answers"]["base"]["text"] for line in lines)


def test_perplexity_and_rewards_are_plain_torchs(world: World, finished: Any) -> None:
    outcome, results, lines = finished
    folder = world.published.artifacts["other"].path() / "model"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    judge = AutoModelForSequenceClassification.from_pretrained(
        world.published.artifacts["rm"].path() / "model", dtype=torch.float32).eval()
    tokenizer = load_tokenizer(folder, side="right")
    total, count, references = 0.0, 0, []
    with torch.no_grad():
        for line in lines:
            prompt, answer = encode_completion(tokenizer, line["prompt"], line["reference"])
            ids = torch.tensor([prompt + answer])
            logs = model(ids).logits[0].log_softmax(-1)
            total -= sum(float(logs[len(prompt) + i - 1, token]) for i, token in enumerate(answer))
            count += len(answer)
            references.append(float(judge(ids).logits[0, 0]))
            prompt, answer = encode_completion(tokenizer, line["prompt"], line["answers"]["other"]["text"])
            wanted = float(judge(torch.tensor([prompt + answer])).logits[0, 0])
            assert line["answers"]["other"]["reward"] == pytest.approx(wanted, abs=1e-4)
    assert outcome.metrics["other.perplexity"] == pytest.approx(math.exp(total / count), rel=1e-4)
    assert outcome.metrics["reference.reward"] == pytest.approx(sum(references) / ROWS, abs=1e-4)
    assert results["models"]["reference"].keys() == {"reward", "style", "words"}


def test_results_hold_kinds_differences_and_histograms(finished: Any) -> None:
    outcome, results, lines = finished
    odd = [line for line in lines if line["kind"] == "odd"]
    assert results["by_kind"]["odd"]["base"]["n"] == len(odd) == ROWS // 2
    assert results["by_kind"]["odd"]["base"]["f1"] == pytest.approx(
        sum(line["answers"]["base"]["f1"] for line in odd) / len(odd))
    histograms = results["reward_histogram"]
    assert set(histograms) == {"base", "twin", "other", "reference"}
    assert len({tuple(h["edges"]) for h in histograms.values()}) == 1
    assert all(sum(h["counts"]) == ROWS for h in histograms.values())
    assert {(d["challenger"], d["metric"]) for d in results["differences"]} == {
        (model, metric) for model in ("twin", "other") for metric in ("exact_match", "f1", "style")}
    difference = next(d for d in results["differences"] if (d["challenger"], d["metric"]) == ("other", "f1"))
    assert difference["value"] == pytest.approx(outcome.metrics["other.f1"] - outcome.metrics["base.f1"])
    assert "timing" not in results, "the same on every machine"
    timing = outcome.facts["timing"]["base"]
    tokens = [line["answers"]["base"]["tokens"] for line in lines]
    assert timing["tokens"] == sum(tokens) > 0
    each = timing["per_item"]
    assert each["tokens"] == results["tokens"]["base"] == {
        "mean": sum(tokens) / ROWS, "low": pytest.approx(min(tokens), abs=0.5), "high": max(tokens)}
    assert each["seconds"]["mean"] == pytest.approx(timing["generate"] / ROWS, rel=0.1, abs=2e-4)
    assert each["seconds"]["low"] <= each["seconds"]["mean"] <= each["seconds"]["high"]
    assert outcome.facts["held_out"]["seen"] == {"data/train": 1}
    assert outcome.rows.written == {"answers": ROWS}


def test_a_killed_evaluation_goes_on_and_ends_the_same(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    # Another bootstrap: the same work under another key, not begun yet.
    whole = read(run(world.built(score=SCORE, bootstrap=201))[1])
    built = world.built(score=SCORE, bootstrap=201)
    work = built.context("eval").work
    shutil.rmtree(work)
    generate, calls = Engine.generate, []

    def killed(self: Engine, requests: Any, *args: Any) -> Any:
        if len(calls) == 4:  # base takes three batches, so this is the second batch of twin
            raise KeyboardInterrupt
        calls.append([request.id for request in requests])
        return generate(self, requests, *args)

    monkeypatch.setattr(Engine, "generate", killed)
    with pytest.raises(KeyboardInterrupt):
        run(built)
    assert not (work / "out" / "results.json").exists()
    again: list[str] = []

    def counted(self: Engine, requests: Any, *args: Any) -> Any:
        again.extend(request.id for request in requests)
        return generate(self, requests, *args)

    monkeypatch.setattr(Engine, "generate", counted)
    outcome, out = run(built)
    assert len(again) == 2 * ROWS - len(calls[3])  # what was left of twin, and all of other
    assert read(out) == whole
    assert outcome.facts["timing"]["base"]["tokens"] > 0
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    reused = {event["model"]: event["reused"] for event in events if event["event"] == "answers"}
    assert reused == {"base": ROWS, "twin": len(calls[3]), "other": 0}


def test_another_machine_goes_on_from_what_was_pushed(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = read(run(world.built(score=SCORE, bootstrap=202))[1])

    def on(machine: str) -> StageContext:
        context = world.built(score=SCORE, bootstrap=202).context("eval")
        store = Store("memory://evaluations", cache=tmp_path / machine)
        moved = replace(context, store=store, work=store.workdir(context.key))
        moved.out.mkdir()
        return moved

    generate, score, asked = Engine.generate, RewardScorer.score, list[str]()

    def counted(self: Engine, requests: Any, *args: Any) -> Any:
        asked.extend(request.id for request in requests)
        return generate(self, requests, *args)

    def lost(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "generate", counted)
    monkeypatch.setattr(RewardScorer, "score", lost)
    with pytest.raises(KeyboardInterrupt):
        evaluate_stage(on("first"))
    assert len(asked) == 3 * ROWS
    monkeypatch.setattr(RewardScorer, "score", score)
    second = on("second")
    evaluate_stage(second)
    assert len(asked) == 3 * ROWS, "an answer was made twice"
    assert read(second.out) == whole


@pytest.mark.ray
def test_workers_give_the_same_table(world: World) -> None:
    settings: dict[str, Any] = {"score": SCORE, "bootstrap": 203, "models": ["base", "other"]}
    one, out = run(world.built(**settings))
    wanted = read(out)
    built = world.built(compute={"workers": 2, "cpus_per_worker": 0.5}, **settings)
    shutil.rmtree(built.context("eval").work)
    two, out = run(built)
    assert read(out) == wanted
    assert (two.metrics, two.rows) == (one.metrics, one.rows)


def test_one_model_in_memory_at_a_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[Any]] = []

    def watched(load: Any) -> Any:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            assert not [ref for ref in alive if ref() is not None], "the model before is still in memory"
            model = load(*args, **kwargs)
            alive.append(weakref.ref(model))
            return model

        return wrapper

    for name in ("load_policy", "load_reward"):
        monkeypatch.setattr(embedded, name, watched(getattr(embedded, name)))
    run(world.built(score={"model": "rm"}, take=2))
    assert len(alive) == 4


def test_rows_left_out_are_counted_and_kept(world: World) -> None:
    tokenizer = load_tokenizer(world.published.artifacts["base"].path() / "model", side="left")
    tokens = {f"t{i}": len(encode_prompt(tokenizer, prompt_of(i))) for i in range(ROWS)}
    limit = sorted(tokens.values())[ROWS // 2]
    long = {id_ for id_, count in tokens.items() if count > limit}
    assert 0 < len(long) < ROWS - 3
    outcome, out = run(world.built(models=["base"], take=3, perplexity=False, max_prompt_tokens=limit))
    results, lines = read(out)
    bad = [json.loads(line) for line in (out / "bad.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {entry["row"]: int(entry["found"]) for entry in bad} == {id_: tokens[id_] for id_ in long}
    assert outcome.rows.read == ROWS
    assert outcome.rows.dropped == {"prompt over max_prompt_tokens": len(long), "not taken": ROWS - len(long) - 3}
    assert len(lines) == results["rows"] == 3
    assert long.isdisjoint(line["id"] for line in lines)
    assert bad[0]["raw"]["prompt"]
    assert set(outcome.metrics) == {f"base.{m}" for m in ("exact_match", "f1", "rouge_l", "finished", "words")}


def test_a_row_that_a_template_refuses_is_left_out_by_name_and_the_others_are_asked(world: World) -> None:
    context = world.built(models=["base", "twin"]).context("eval")
    tools = [{"type": "function", "function": {"name": "f"}}]
    odd = Record("odd", "prompt-completion", [{**prompt_of(1)[0], "tools": tools}], "x")
    stage, good = context.stage_as(Evaluate), Record("good", "prompt-completion", prompt_of(2), "x")
    chosen = choose_questions(context, stage, HeldOut([odd, good], [], {}))
    assert [question.id for question in chosen.questions] == ["good"]
    assert chosen.dropped == {"the chat template ignores tools": 1}
    ((entry),) = chosen.bad
    assert (entry["row"], entry["reason"], entry["raw"]["prompt"]) == (
        "odd", "the chat template ignores tools", odd.prompt)
    with pytest.raises(DataError, match="the chat template ignores tools"):
        choose_questions(context, stage, HeldOut([odd], [], {}))


def test_a_reference_that_a_template_cuts_is_no_perplexity_of_one_model_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of two templates cuts what stands before </think>: the row is left out for both."""
    twin = world.built(models=["base", "twin"]).artifacts["twin"].path()

    def cutting(folder: Path, *, side: Any) -> Any:
        tokenizer = load_tokenizer(folder, side=side)
        if twin in folder.parents:
            tokenizer.chat_template = tokenizer.chat_template.replace(
                "message['content']", "message['content'].split('</think>')[-1]").replace(
                "message.content", "message.content.split('</think>')[-1]")
            assert "think" in tokenizer.chat_template
        return tokenizer

    monkeypatch.setattr(embedded, "load_tokenizer", cutting)
    rows = [Record("odd", "prompt-completion", prompt_of(1), "Hm.</think>Nine."),
            Record("good", "prompt-completion", prompt_of(2), "Nine.")]
    for perplexity, asked in ((True, ["good"]), (False, ["odd", "good"])):
        context = world.built(models=["base", "twin"], perplexity=perplexity).context("eval")
        chosen = choose_questions(context, context.stage_as(Evaluate), HeldOut(rows, [], {}))
        assert [question.id for question in chosen.questions] == asked


def test_a_larger_take_holds_the_smaller_ones_rows(world: World) -> None:
    ids = [{line["id"] for line in read(run(world.built(models=["base"], take=take))[1])[1]} for take in (2, 5)]
    assert ids[0] < ids[1]


def test_drawn_sampling_is_the_same_for_equal_models(world: World) -> None:
    sampling = {"temperature": [0.7, 1.3], "top_k": [5, 50], "max_new_tokens": TOKENS}
    _, lines = read(run(world.built(models=["base", "twin"], sampling=sampling))[1])
    said = [line["answers"]["base"]["text"] for line in lines]
    assert said == [line["answers"]["twin"]["text"] for line in lines]
    _, greedy = read(run(world.built(models=["base"]))[1])
    assert said != [line["answers"]["base"]["text"] for line in greedy]


def test_a_failing_function_names_row_and_cause(world: World) -> None:
    with pytest.raises(DataError, match="ZeroDivisionError: of my own making") as error:
        run(world.built(models=["base"], take=2, score={"function": f"{__name__}:fails"}))
    assert "row t" in str(error.value.where)


def test_a_model_named_reference_is_refused(tmp_path: Path) -> None:
    wanted = [{**stage, "name": "reference"} if stage["name"] == "base" else stage for stage in stages({})]
    wanted = [{**stage, "model": "reference"} if stage.get("model") == "base" else stage for stage in wanted]
    with pytest.raises(ValueError, match="the name is taken"):
        build_run(tmp_path, [*wanted[:-1], {**wanted[-1], "models": ["reference"]}])


def test_two_rows_with_one_id_are_refused(world: World) -> None:
    built = world.built(models=["base"])
    context = built.context("eval")
    path = context.inputs["data"].path() / "rows" / "test.jsonl"
    kept = path.read_text(encoding="utf-8")
    try:
        path.write_text(kept + kept.splitlines()[4] + "\n", encoding="utf-8")
        context.inputs["data"] = as_it_lies(context.inputs["data"])
        with pytest.raises(DataError, match="1 ids stand on more than one row"):
            evaluate_stage(context)
    finally:
        path.write_text(kept, encoding="utf-8")
        as_it_lies(context.inputs["data"])
