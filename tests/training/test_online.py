"""GRPO and RLOO over the real pipeline, on a model that knows nothing and a reward that it can learn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alignment.artifacts import Artifact
from alignment.config.stages.online import Online
from alignment.context import StageContext
from alignment.errors import DataError, StageError
from alignment.pipeline import execute
from tests import small
from tests.rewards import judges
from tests.training.made import FULL, LORA

ES = {"parts": {"es": {"batch_function": "tests.rewards.judges:es"}}}
METHODS = ["grpo", "rloo"]


def online(method: str = "grpo", model: str = "base", **more: Any) -> dict[str, Any]:
    return small.train("stage", method, model, **{
        "reward": ES, "strategy": FULL, "batch_size": 32, "micro_batch_size": 16, "num_generations": 8,
        "max_new_tokens": 8, "learning_rate": 1e-2, "checkpoints": {"every": 6}, "trl": {"beta": 0.01}, **more})


def lines(artifact: Artifact, event: str = "train") -> list[dict[str, Any]]:
    text = (artifact.path() / "events.jsonl").read_text(encoding="utf-8")
    return [entry for entry in map(json.loads, text.splitlines()) if entry["event"] == event]


@pytest.mark.parametrize("method", METHODS)
def test_a_reward_that_can_be_learned_is_learned_and_rises_on_held_out_prompts(tmp_path: Path, method: str) -> None:
    stage = online(method, epochs=8, eval_rows="data/dev", checkpoints={"every": 24, "final": "best"},
                   learning_rate=3e-2)
    made = execute(small.run(tmp_path, stage)).artifacts["stage"]
    assert made is not None
    train, held = lines(made), lines(made, "eval")
    rewards = [line["reward"] for line in train]
    assert sum(rewards[-8:]) / 8 > 2 * sum(rewards[:8]) / 8
    assert [line["rewards/es/mean"] for line in train] == pytest.approx(rewards)
    assert [line["step"] for line in held] == [0, 24, 48]
    assert held[0]["eval_reward_gain"] == 0.0
    best = max(held[1:], key=lambda line: line["eval_reward"])
    assert best["eval_reward_gain_low"] > 0
    metrics = made.manifest.metrics
    assert metrics["best_step"] == best["step"]
    for name in ("reward", "reward_low", "reward_high", "reward_gain", "reward_gain_low"):
        assert metrics[f"eval_{name}"] == best[f"eval_{name}"]
    assert metrics["eval_reward_low"] <= metrics["eval_reward"] <= metrics["eval_reward_high"]
    # What is learned is what was drawn, and the reference is the start.
    assert max(line["sampling/logp_difference"] for line in train) < 1e-3
    assert abs(train[0]["kl"]) < 1e-5 < train[-1]["kl"]


@pytest.mark.parametrize(("strategy", "how"), [
    (FULL, "frozen copy of the start weights"), (LORA, "frozen copy of the start adapter")])
@pytest.mark.parametrize("method", METHODS)
def test_the_reference_is_the_start_even_where_that_is_an_adapter(
        tmp_path: Path, method: str, strategy: dict[str, Any], how: str) -> None:
    start = small.train("start", epochs=4, learning_rate=5e-2)
    stage = online(method, "start", strategy=strategy, trl={"beta": 0.1, "max_steps": 2})
    made = execute(small.run(tmp_path, start, stage)).artifacts
    assert made["stage"].manifest.facts["reference"] == {"artifact": made["start"].key, "how": how}
    first, second = lines(made["stage"])
    assert abs(first["kl"]) < 1e-5
    assert second["kl"] != first["kl"]


def test_a_reference_that_is_not_the_start_stops_the_stage_before_its_first_step(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As TRL's own would be, which it loads from where the config says: the base, below a merged adapter."""
    import torch

    from alignment.training import online as room

    def another(model: Any) -> Any:
        made = frozen(model)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        return made

    frozen = room._frozen
    monkeypatch.setattr(room, "_frozen", another)
    with pytest.raises(StageError, match="not its reference before the first step"):
        execute(small.run(tmp_path, online(trl={"beta": 0.1})))


def test_without_beta_there_is_no_reference_and_no_kl(tmp_path: Path) -> None:
    made = execute(small.run(tmp_path, online(trl={"max_steps": 1}))).artifacts["stage"]
    assert made.manifest.facts["reference"] == {"artifact": None, "how": "none, as beta is 0"}
    assert "kl" not in lines(made)[0]


def test_answers_are_those_that_the_engine_serves_and_judges_see_the_whole_record(tmp_path: Path) -> None:
    from alignment.config import Sampling
    from alignment.inference.draws import draws
    from alignment.inference.generator import open_engine
    from alignment.inference.requests import Request

    judges.SEEN.clear()
    reward = {"parts": {"es": {"batch_function": "tests.rewards.judges:remembers"}}}
    run = small.run(tmp_path, online(reward=reward, trl={"max_steps": 1}))
    made = execute(run).artifacts
    by_row: dict[str, list[str]] = {}
    for record, answer in judges.SEEN:
        assert record.meta["passage"].startswith("Number ")
        assert record.completion in small.COLOURS
        assert record.prompt[-1]["role"] == "user"
        assert "<|" not in answer
        by_row.setdefault(record.id, []).append(answer)
    assert sorted(map(len, by_row.values())) == [8] * 4
    records = {record.id: record for record, _ in judges.SEEN}
    context = StageContext(run, run.stages[-1], made["base"].store, "x", "0" * 64, {"base": made["base"]}, tmp_path)
    with open_engine(context, "base") as engine:
        for row, answers in by_row.items():
            drawn = draws(row, run.seed, 8, Sampling(temperature=1.0, max_new_tokens=8), model="step 0")
            (said,) = engine.generate([Request(row, records[row].prompt, drawn)])
            assert [one.text for one in said] == answers


def test_a_judge_that_breaks_is_one_error_and_what_was_learned_before_goes_on_to_the_same_end(tmp_path: Path) -> None:
    """The checkpoint lies in the second pass, whose order of prompts is another one's than the first's."""
    reward = {"parts": {"es": {"batch_function": "tests.rewards.judges:fragile"}}}
    stage = online(reward=reward, checkpoints={"every": 2}, eval_rows="data/dev", trl={"beta": 0.01, "max_steps": 12})
    alone = execute(small.run(tmp_path / "alone", stage)).artifacts["stage"]
    run = small.run(tmp_path / "broken", stage)
    judges.FAILS_AT[:] = [judges._CALLS[0] + 15]  # 6 steps a pass, and an evaluation at every second one
    try:
        with pytest.raises(StageError, match="ConnectionError: the judge has gone") as caught:
            execute(run)
    finally:
        judges.FAILS_AT.clear()
    assert "stage stage, reward.parts.es, rows r" in caught.value.where
    resumed = execute(run).artifacts["stage"]
    assert resumed.manifest.facts["timing"]["resumed_from_step"] == 8

    def told(artifact: Artifact) -> list[dict[str, Any]]:
        return [{key: value for key, value in line.items() if key != "time"}
                for event in ("train", "eval") for line in lines(artifact, event)]

    assert told(resumed) == told(alone)
    assert resumed.manifest.metrics == alone.manifest.metrics


def test_a_gate_stops_the_stage_and_its_last_line_is_written_down(tmp_path: Path) -> None:
    run = small.run(tmp_path, online(gates={"reward": 5.0}))
    with pytest.raises(StageError, match="a gate stopped the training: reward is under its limit") as caught:
        execute(run)
    assert caught.value.where == "stage stage, gates.reward, step 3"
    (events,) = Path(run.store).glob("work/grpo-*/out/events.jsonl")
    assert [json.loads(line)["step"] for line in events.read_text(encoding="utf-8").splitlines()] == [1, 2, 3]
    opened = small.run(tmp_path, online(gates={"reward": -5.0}))
    assert execute(opened).artifacts["stage"] is not None, "another gate is no other artifact"


def test_too_few_prompts_for_a_step_is_an_error_and_no_training_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="fewer prompts than one step asks"):
        execute(small.run(tmp_path, online(batch_size=256)))


def test_rows_that_cannot_be_asked_or_judged_are_dropped_and_counted(tokenizer: Any) -> None:
    from alignment.records import Record
    from alignment.training.online import columns
    from alignment.training.prepare import prepare
    from tests.training.made import answered, preferences, stage

    of = stage("grpo", reward={"parts": {"right": {"function": "exact_match"}}}, max_new_tokens=4)
    assert isinstance(of, Online)
    records = [*preferences(2), answered("a", "Who?", "I."), Record("m", "messages", messages=[
        {"role": "user", "content": "Well?"}, {"role": "assistant", "content": "Yes."}]),
        Record("p", "prompt-only", [{"role": "user", "content": "?"}]),
        Record("q", "prompt-only", [{"role": "assistant", "content": "!"}])]
    prepared = prepare(records, tokenizer, of, "here", columns)
    assert [json.loads(row["record"])["id"] for row in prepared.rows] == ["p0", "p1", "a", "m"]
    assert dict(prepared.dropped) == {"p": "no completion, which exact_match needs",
                                      "q": "prompt-only has no prompt that ends with a question"}
    from alignment.templates import encode_prompt

    assert prepared.rows[2]["prompt"] == encode_prompt(tokenizer, [{"role": "user", "content": "Who?"}])


def test_a_reward_model_judges_as_the_scoring_room_does(tmp_path: Path) -> None:
    from alignment.inference.generator import open_scorer
    from alignment.training.online import reward_of

    rm = small.train("rm", "reward", trl={"max_steps": 1})
    run = small.run(tmp_path, rm, online(reward={"parts": {"rm": {"model": "rm", "weight": 2.0}}},
                                         trl={"max_steps": 1}))
    made = execute(run).artifacts
    (line,) = lines(made["stage"])
    assert line["reward"] == pytest.approx(2 * line["rewards/rm/mean"])
    context = StageContext(run, run.stage("stage"), made["rm"].store, "x", "0" * 64,
                           {name: made[name] for name in ("base", "rm", "data")}, tmp_path)
    records, answers = context.rows("data/train")[:5], ["a", "bb", "red", "", "blue lamp"]
    stage = context.stage_as(Online)
    with open_scorer(context, "rm") as scorer:
        wanted = scorer.score([(record.prompt, answer) for record, answer in zip(records, answers, strict=True)])
    assert reward_of(context, stage).judge(records, answers).parts["rm"] == wanted
