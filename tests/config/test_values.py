"""What a good file becomes: numbers, parameters, overrides, defaults, and what stays fixed."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from alignment.config import (
    METHODS,
    Dpo,
    Evaluate,
    ImportData,
    RatioSplit,
    Sample,
    Sft,
    TrainBase,
    parse_run,
)
from alignment.errors import ConfigErrors


def test_the_small_run(run_text: str) -> None:
    run = parse_run(run_text)
    assert [stage.name for stage in run.stages] == ["base", "seed", "sft", "rm", "rs", "dpo", "eval"]
    seed, sft, rs = run.stage("seed"), run.stage("sft"), run.stage("rs")
    assert isinstance(seed, ImportData)
    assert isinstance(seed.split, RatioSplit)
    assert seed.data[0].path == "rows.jsonl"
    assert seed.splits() == ("train", "test")
    assert isinstance(sft, Sft)
    assert sft.learning_rate == 1e-4
    assert isinstance(rs, Sample)
    assert rs.inputs() == ("sft", "rm", "seed")
    assert rs.splits() == ("best", "pairs", "samples")
    assert [place.ref for place in rs.row_refs()] == ["seed/train"]
    assert [(ref.stage, ref.role) for ref in rs.model_refs()] == [("sft", "policy"), ("rm", "reward")]
    assert isinstance(run.stage("eval"), Evaluate)
    assert str(run.parsed_aims()[0]) == "eval.dpo.f1 > eval.base.f1"


@pytest.mark.parametrize(("text", "value"), [
    ("1e-4", 1e-4), ("2E-5", 2e-5), ("1e+2", 100.0), ("5.e-3", 5e-3), (".5e-3", 5e-4), ("0.001", 1e-3), ("3", 3.0),
])
def test_numbers_as_people_write_them(text: str, value: float, run_text: str) -> None:
    sft = parse_run(run_text.replace("learning_rate: 1e-4", f"epochs: {text}")).stage("sft")
    assert isinstance(sft, Sft)
    assert sft.epochs == value


@pytest.mark.parametrize("text", ["1e-4x", "e-4", "1e", "v1e4"])
def test_what_only_looks_like_a_number_stays_text(text: str, run_text: str) -> None:
    assert parse_run(run_text.replace("name: small", f"name: small\ndescription: {text}")).description == text


def test_overrides_on_top_level_stage_and_nested_keys(run_text: str) -> None:
    run = parse_run(run_text, overrides=[
        "scale=0.5", "sft.epochs=2", "sft.learning_rate=3e-5", "dpo.trl.beta=0.2", "compute.workers=2",
        "params.rows=other.jsonl", "eval.models=[base, sft]", "rs.score.function=mine:score", "seed.data.0.take=7",
        "seed=9",
    ])
    sft, dpo, seed = run.stage("sft"), run.stage("dpo"), run.stage("seed")
    assert isinstance(sft, Sft)
    assert isinstance(dpo, Dpo)
    assert isinstance(seed, ImportData)
    assert (run.seed, run.scale, sft.epochs, sft.learning_rate) == (9, 0.5, 2, 3e-5)
    assert (dpo.trl, run.compute.workers) == ({"beta": 0.2}, 2)
    assert (seed.data[0].path, seed.data[0].take) == ("other.jsonl", 7)
    assert run.scaled(7) == 4
    assert run.scaled(1) == 1
    assert run.scaled(None) is None


@pytest.mark.parametrize(("override", "problem"), [
    ("epochs", "not an override"), ("=3", "not an override"), ("sft..epochs=3", "not an override"),
    ("sfft.epochs=2", "neither a top-level key nor a stage"), ("sft.learning_rate.x=2", "below a plain value"),
    ("sft.epoch=2", "unknown key"), ("sft.epochs=two", "not a number"), ("seed.data.x.take=2", "not a place"),
    ("seed.data.5.take=2", "not a place"), ("seed.data.9=2", "not a place"),
    ("sft=3", "neither a top-level key nor a stage"),
    ("sft.epochs=[1", "not valid YAML"), ("stages.0=3", "not a stage"), ("seed=x", "not a whole number"),
])
def test_bad_overrides(override: str, problem: str, run_text: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        parse_run(run_text, overrides=[override])
    assert problem in str(caught.value)


def test_parameters_fill_strings_and_can_be_set(run_text: str) -> None:
    text = run_text.replace("name: small", "name: small\ndescription: 'from ${rows} at ${rate}'")
    assert parse_run(text).description == "from rows.jsonl at 1e-4"
    assert parse_run(text, overrides=["params.rate=2"]).description == "from rows.jsonl at 2"


def test_a_run_is_frozen_and_lists_are_tuples(run_text: str) -> None:
    run = parse_run(run_text)
    assert isinstance(run.stages, tuple)
    with pytest.raises(ValidationError, match="frozen"):
        run.seed = 3  # type: ignore[misc]


def test_trl_is_handed_on_untouched(run_text: str) -> None:
    text = run_text.replace("learning_rate: 1e-4", "trl: {gradient_checkpointing_kwargs: {a: [1, 2]}, warmup_steps: 3}")
    sft = parse_run(text).stage("sft")
    assert isinstance(sft, Sft)
    assert sft.trl == {"gradient_checkpointing_kwargs": {"a": [1, 2]}, "warmup_steps": 3}


def test_reference_mode_follows_the_strategy(run_text: str) -> None:
    lora = parse_run(run_text).stage("dpo")
    full = parse_run(run_text.replace("method: dpo\n", "method: dpo\n    strategy: {kind: full}\n")).stage("dpo")
    assert isinstance(lora, Dpo)
    assert isinstance(full, Dpo)
    assert (lora.reference_mode, full.reference_mode) == ("adapter", "precomputed")


def test_the_optimizer_of_a_quantised_base_is_part_of_what_is_learned(run_text: str) -> None:
    def sft(strategy: str, trl: str = "{}") -> TrainBase:
        more = (f"  - {{name: more, kind: train, method: sft, model: base, rows: [seed/train], strategy: {strategy}, "
                f"trl: {trl}}}\naims:")
        stage = parse_run(run_text.replace("aims:", more)).stage("more")
        assert isinstance(stage, TrainBase)
        return stage

    def learned(*given: str) -> dict[str, Any]:
        return sft(*given).learned(lambda take: take)

    assert sft("{kind: qlora, r: 64, alpha: 16}").title() == "sft · qlora r 64"
    assert learned("{kind: qlora}") == learned("{kind: qlora}", "{optim: paged_adamw_8bit}")
    assert learned("{kind: qlora}", "{optim: adamw_torch}")["trl"] == {"optim": "adamw_torch"}
    assert learned("{kind: lora}")["trl"] == {}, "other strategies keep the digests that they had"


def test_config_and_run_survive_a_round_trip(run_text: str) -> None:
    import yaml

    run = parse_run(run_text)
    dumped = yaml.safe_dump(run.model_dump(mode="json"), sort_keys=False)
    assert parse_run(dumped) == run


def test_an_evaluation_stays_at_temperature_0_whatever_else_is_said(run_text: str) -> None:
    for given, temperature in (("{max_new_tokens: 9}", 0.0), ("{temperature: 0.7}", 0.7), ("{top_p: 0.9}", 0.0)):
        stage = parse_run(run_text.replace("rows: seed/test", f"rows: seed/test\n    sampling: {given}")).stage("eval")
        assert isinstance(stage, Evaluate)
        assert stage.sampling.temperature == temperature


def test_a_first_answer_differs_only_where_it_says_so(run_text: str) -> None:
    text = run_text.replace("score: {model: rm}", "score: {model: rm}\n    sampling: {top_p: 0.9, max_new_tokens: 9}\n"
                                                  "    first: {temperature: 0.0}")
    stage = parse_run(text).stage("rs")
    assert isinstance(stage, Sample)
    assert stage.first is not None
    assert (stage.first.temperature, stage.first.top_p, stage.first.max_new_tokens) == (0.0, 0.9, 9)
    assert Sample.model_validate_json(stage.model_dump_json()) == stage, "and so it travels"


@pytest.mark.parametrize(("method", "strategy", "rate"), [
    ("sft", "lora", 2e-4), ("sft", "qlora", 2e-4), ("sft", "full", 2e-5), ("dpo", "lora", 1e-5), ("dpo", "full", 1e-6),
    ("reward", "lora", 1e-3), ("kto", "full", 1e-6),
])
def test_learning_rates_default_by_method_and_strategy_and_count_in_the_key(
    method: str, strategy: str, rate: float, run_text: str
) -> None:
    rows = "seed/train" if method in ("sft", "reward") else "rs/pairs"
    more = (f"  - {{name: more, kind: train, method: {method}, model: base, rows: [{rows}], "
            f"strategy: {{kind: {strategy}}}{{}}}}\naims:")
    text = run_text.replace("aims:", more)
    left_out, given = (parse_run(text.replace("}{}}", f"}}{rest}}}")).stage("more") for rest in
                       ("", f", learning_rate: {rate}"))
    assert isinstance(left_out, TrainBase)
    assert left_out.rate == rate
    assert left_out.learned(lambda take: take) == given.learned(lambda take: take)
    assert f"learning rate {rate:g}" in str(left_out.defaulted())
    assert given.defaulted() is None


def test_default_rates_of_all_weights_are_those_of_the_installed_library() -> None:
    import importlib

    for method in METHODS:
        file, _, name = method.trl_config.partition(":")
        config = getattr(importlib.import_module(file.removesuffix(".py").replace("/", ".")), name)
        # TRL has no PPO since 1.13; 1.12.0's PPOConfig had 3e-6.
        own = 3e-6 if method.tag == "ppo" else config.__dataclass_fields__["learning_rate"].default
        assert method.rates[0] == own
        assert method.rates[1] == pytest.approx(10 * method.rates[0])
