"""What a run file may say of an online method, and what is refused before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alignment.checks.seen import Sight
from alignment.checks.stages import wrong
from alignment.config import METHODS, parse_run
from alignment.config.stages.online import OURS, Online
from alignment.config.trl_keys import known_keys
from alignment.errors import ConfigErrors
from alignment.planner.estimate import Rates
from alignment.planner.plan import plan
from alignment.report.curves import charts_of
from tests import small

KINDS = [method for method in METHODS if issubclass(method, Online)]


def stage(folder: Path, method: str = "grpo", **more: Any) -> Online:
    made = small.run(folder, small.train("stage", method, **more)).stages[-1]
    assert isinstance(made, Online)
    return made


@pytest.mark.parametrize(("more", "place", "says"), [
    ({"batch_size": 9}, "batch_size", "no multiple of num_generations"),
    ({"num_generations": 1}, "num_generations", "2"),
    ({"max_new_tokens": 1024}, "max_new_tokens", "no room for a prompt"),
    ({"temperature": 0.0}, "temperature", "more than 0"),
    ({"strategy": {"kind": "lora", "dropout": 0.1}}, "strategy.dropout", "would not be the one that answered"),
    ({"gates": {"kl": 1.0}}, "gates.kl", "not measured without a reference"),
    ({"gates": {"entropy": -1.0}}, "gates.entropy", "0"),
    ({"trl": {"use_vllm": True}}, "trl.use_vllm", "engine that sample stages use"),
    ({"trl": {"vllm_mode": "server"}}, "trl.vllm_mode", "engine that sample stages use"),
    ({"trl": {"top_p": 0.9}}, "trl.top_p", "whole distribution"),
    ({"trl": {"num_generations": 4}}, "trl.num_generations", "under trl"),
    ({"trl": {"sync_ref_model": True}}, "trl.sync_ref_model", "start model"),
    ({"trl": {"beta": -0.1}}, "trl.beta", "0 or more"),
    ({"trl": {"num_iterations": 4}}, "checkpoints.every", "falls between two steps on the same answers"),
    ({"trl": {"lr_scheduler_type": "reduce_lr_on_plateau"}, "eval_rows": "data/dev"}, "trl.lr_scheduler_type",
     "have not"),
    ({"reward": {"parts": {}}}, "reward.parts", "1"),
    ({"reward": {"parts": {"a b": {"function": "brevity"}}}}, "reward.parts", "no name of a part"),
    ({"reward": {"parts": {"a": {"function": "brevity", "weight": 0.0}}}}, "reward.parts", "every reward is 0"),
    ({"reward": {"parts": {"a": {"model": "rm"}}}}, "reward.parts.a.model", "rm"),
    ({"reward": {"parts": {"a": {"model": "base"}}}}, "reward.parts.a.model", "reward"),
    ({"reward": {"parts": {"a": {"url": "http://h/", "key_env": "no-name"}}}}, "reward.parts.a.key_env", "variable"),
])
def test_what_cannot_work_is_refused_at_its_key(tmp_path: Path, more: dict[str, Any], place: str, says: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        stage(tmp_path, **more)
    assert f"stages[2].{place}" in str(caught.value)
    assert says in str(caught.value)


@pytest.mark.parametrize("trl", [{"beta": 0.0}, {"beta": 0.1}, {"loss_type": "dapo"}, {"loss_type": "dr_grpo"}])
def test_what_trl_takes_is_handed_on(tmp_path: Path, trl: dict[str, Any]) -> None:
    assert stage(tmp_path, trl=trl).trl == trl


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "beta" in (known_keys(kind.trl_config) or ())],
                         ids=lambda kind: kind.tag)
def test_the_weight_of_the_kl_is_that_of_the_installed_library(kind: type[Online]) -> None:
    import trl

    config = getattr(trl, kind.trl_config.partition(":")[2])
    assert kind.default_beta == config.__dataclass_fields__["beta"].default


def test_every_key_that_is_ours_is_one_of_trls() -> None:
    known = frozenset.union(*(known_keys(kind.trl_config) or frozenset() for kind in KINDS))
    assert known >= OURS.keys()


def test_gates_and_waiting_change_no_digest_and_the_reward_does(tmp_path: Path) -> None:
    def learned(**more: Any) -> dict[str, Any]:
        return stage(tmp_path, **more).learned(lambda take: take)

    parts = {"a": {"function": "brevity"}}
    assert learned(reward={"parts": parts}) == learned(
        reward={"parts": {"a": {"function": "brevity", "timeout": 9.0}}}, gates={"reward": 0.0})
    assert learned(reward={"parts": parts}) != learned(reward={"parts": {"a": {"function": "brevity", "weight": 2.0}}})


@pytest.mark.parametrize(("part", "key", "says"), [
    ({"function": "nowhere.at_all:f"}, "function", "not installed"),
    ({"function": "tests.rewards.judges:lenghts"}, "function", "no such function"),
    ({"function": "brevety"}, "function", "not a reward function"),
    ({"batch_function": "tests.rewards.judges:missing"}, "batch_function", "no such function"),
    ({"batch_function": "brevity"}, "batch_function", "not a reward function"),
])
def test_check_names_a_function_that_cannot_be_found(tmp_path: Path, part: dict[str, Any], key: str, says: str) -> None:
    run = small.run(tmp_path, small.train("stage", "grpo", reward={"parts": {"mine": part}}))
    sight = Sight(limit=10**9)
    found = [(place, error) for one in run.stages for place, error in wrong(run, one, sight)]
    assert [place for place, _ in found] == [("reward", "parts", "mine", key)]
    assert says in found[0][1].problem


def test_check_counts_prompts_a_step_and_rows_that_no_function_can_judge(tmp_path: Path) -> None:
    run = small.run(tmp_path, small.train("stage", "grpo", batch_size=64))
    sight = Sight(limit=10**9)
    assert [place for one in run.stages for place, _ in wrong(run, one, sight)] == [("batch_size",)]
    file = tmp_path / "bare.jsonl"
    file.write_text("".join(f'{{"instruction": "Who is {n}?", "output": "I."}}\n' for n in range(40)), encoding="utf-8")
    bare = {"name": "bare", "kind": "import", "split": {"by": "ratio", "ratios": {"train": 1.0}},
            "data": [{"path": str(file), "format": "alpaca"}]}
    run = small.run(tmp_path, bare, small.train("stage", "grpo", rows=["bare/train"], reward={"parts": {"style": {
        "function": "evidence_style"}}}))
    sight = Sight(limit=10**9)
    (found,) = [(place, error) for one in run.stages for place, error in wrong(run, one, sight)]
    assert found[0] == ("rows",)
    assert "no meta.passage" in str(found[1].found)


@pytest.mark.parametrize("trl", [{"beta": 0.0}, {"beta": 0.1}])
def test_a_plan_counts_what_is_drawn_and_what_a_reference_and_reward_models_cost(
        tmp_path: Path, trl: dict[str, Any]) -> None:
    def planned(**more: Any) -> Any:
        run = small.run(tmp_path, small.train("rm", "reward"), small.train("stage", "grpo", **{
            "trl": trl, "strategy": {"kind": "full"}, "batch_size": 16, "num_generations": 8, "max_new_tokens": 8,
            "epochs": 2, **more}))
        return plan(run, {}, Rates(1e9, 1e9))[-1]

    one = planned()
    prompt = one.tokens / (24 * 2 * 8) - 8
    assert 10 < prompt < 200
    assert planned(max_new_tokens=16).tokens == pytest.approx(24 * 2 * 8 * (prompt + 16))
    assert one.memory.cache > 0
    judged = planned(reward={"parts": {"rm": {"model": "rm"}}})
    assert judged.seconds > one.seconds
    assert judged.memory.weights > one.memory.weights
    bare = planned(trl={"beta": 0.0})
    assert (bare.memory.weights < one.memory.weights) == (trl["beta"] > 0)
    assert planned(eval_rows="data/dev").seconds > one.seconds


def test_each_part_of_a_reward_has_a_curve_of_its_own(tmp_path: Path) -> None:
    of = stage(tmp_path, reward={"parts": {"style": {"function": "brevity"}, "rm": {"function": "brevity"}}})
    events = [{"event": "train", "step": step, "reward": 1.0, "rewards/style/mean": 0.5, "rewards/rm/mean": step,
               "rewards/rm/std": 0.1} for step in (1, 2, 3)]
    charts, _ = charts_of(of, events)
    assert [title for title, _ in charts] == ["Reward", "Part of the reward: rm", "Part of the reward: style"]


def test_the_run_file_of_the_documentation_can_be_read() -> None:
    text = (Path(__file__).parents[2] / "docs" / "online.md").read_text(encoding="utf-8")
    blocks = [block.partition("```")[0] for block in text.split("```yaml\n")[1:]]
    assert blocks
    run = parse_run(blocks[0])
    assert isinstance(run.stages[-1], Online)
