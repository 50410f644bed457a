"""The table of an evaluation: rows joined by id, nothing undefined in JSON, flat names as the manifest has them."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from alignment.config import Evaluate, JudgedScorer
from alignment.errors import ConfigError
from alignment.evaluation.measures import bleu, measure_of
from alignment.evaluation.measuring import measure_all
from alignment.evaluation.results import (
    Measures,
    Question,
    Table,
    flat_metrics,
    prove,
    question_of,
    reply_of,
    rules_of,
)
from alignment.evaluation.results import measure as measure_reply
from alignment.records import Record


def record(id_: str, answer: str | None = "yes", **meta: Any) -> Record:
    return Record(id=id_, type="prompt-completion", prompt=[{"role": "user", "content": "?"}], completion=answer,
                  meta=meta)


def stage(**values: Any) -> Evaluate:
    return Evaluate(name="eval", rows="seed/test", **{"models": ("base", "sft", "dpo"), "bootstrap": 200, **values})


def measure(question: Question, text: str, finished: bool, *, reward: float, style: float, stage: Evaluate) -> Measures:
    return measure_reply(reply_of(question, text, finished), rules_of(stage, [question]), stage.measured,
                         reward=reward, style=style, stage=stage)


BOTH = JudgedScorer(model="rm", function="words", model_weight=2.0, function_weight=-1.0)
QUESTIONS = [question_of(record("r1", kind="fact")), question_of(record("r2", kind="fact")), question_of(record("r3"))]


def table(config: Evaluate) -> Table:
    said = {"base": ["no", "no", "yes"], "sft": ["yes", "no", "no"], "dpo": ["yes", "yes", "yes"]}
    reward = {"base": [0.0, 1.0, math.nan], "sft": [1.0, 1.0, 1.0], "dpo": [3.0, 0.0, 1.0]}
    measures = {
        model: {
            q.id: measure(q, said[model][i], True, reward=reward[model][i], style=float(i), stage=config)
            for i, q in reversed(list(enumerate(QUESTIONS)))  # the order of the rows must not matter
        }
        for model in config.models
    }
    counts = {model: {q.id: {"perplexity": (-2.0, 1.0)} for q in QUESTIONS} for model in config.models}
    return Table(config, QUESTIONS, measures, counts, seed=0)


def test_means_and_perplexity() -> None:
    got = table(stage(score=BOTH)).results()
    assert got["rows"] == 3
    base = got["models"]["base"]
    assert base["exact_match"]["value"] == pytest.approx(1 / 3)
    assert base["reward"] | {"low": 0, "high": 0} == {"value": 0.5, "low": 0, "high": 0, "dropped": 1}
    assert base["style"]["value"] == 1
    assert base["words"]["value"] == 1
    assert base["finished"] == {"value": 1, "low": pytest.approx(0.4385, abs=1e-4), "high": 1, "dropped": 0}
    assert got["reference_words"] == 1
    assert base["perplexity"]["value"] == pytest.approx(math.exp(2))


def test_every_later_model_meets_the_first_by_default() -> None:
    got = table(stage(score=BOTH)).results()["compare"]
    assert [(c["challenger"], c["baseline"], c["by"]) for c in got] == [
        (model, "base", by) for model in ("sft", "dpo") for by in ("score", "reward", "style")
    ]
    by_reward = got[4]
    assert (by_reward["wins"], by_reward["ties"], by_reward["losses"], by_reward["dropped"]) == (1, 0, 1, 1)
    assert got[2]["rate"] == 0.5  # equal styles: all ties


def test_score_is_the_weighted_sum() -> None:
    q = QUESTIONS[0]
    assert measure(q, "x", True, reward=3.0, style=1.0, stage=stage(score=BOTH))["score"] == 5.0
    only = stage(score=JudgedScorer(function="words"))
    assert measure(q, "x", True, reward=math.nan, style=1.5, stage=only)["score"] == 1.5
    assert math.isnan(measure(q, "x", True, reward=math.nan, style=1.0, stage=stage(score=BOTH))["score"])


def test_a_built_in_function_gives_shares_and_one_of_ones_own_any_number() -> None:
    def style(function: str) -> dict[str, float]:
        config = stage(score=JudgedScorer(function=function))
        measures = {model: {q.id: measure(q, "x", True, reward=math.nan, style=1.0, stage=config) for q in QUESTIONS}
                    for model in config.models}
        got = Table(config, QUESTIONS, measures, {}, seed=0).results()["models"]["base"]["style"]
        return {part: got[part] for part in ("low", "value", "high")}

    assert style("brevity") == {"low": pytest.approx(0.4385, abs=1e-4), "value": 1, "high": 1}
    assert style("own.module:function") == {"low": 1, "value": 1, "high": 1}


def test_asked_pairs_and_differences() -> None:
    got = table(stage(score=BOTH, compare=(("dpo", "sft"),))).results()
    assert {(d["challenger"], d["baseline"]) for d in got["differences"]} == {("dpo", "sft")}
    exact = next(d for d in got["differences"] if d["metric"] == "exact_match")
    assert exact["value"] == pytest.approx(2 / 3)
    assert exact["low"] <= exact["value"] <= exact["high"]


def test_by_kind() -> None:
    got = table(stage(score=BOTH)).results()["by_kind"]
    assert set(got) == {"fact"}
    assert got["fact"]["base"] == {"exact_match": 0.0, "f1": 0.0, "style": 0.5, "n": 2}


def test_flat_names_without_undefined_ones() -> None:
    config = stage(score=JudgedScorer(model="rm"), models=("base",))
    measures = {"base": {"r1": measure(QUESTIONS[0], "yes", False, reward=math.nan, style=math.nan, stage=config)}}
    results = Table(config, QUESTIONS[:1], measures, {}, seed=0).results()
    flat, left_out = flat_metrics(results)
    assert left_out == ["base.reward"]
    assert set(flat) == {"base.exact_match", "base.f1", "base.rouge_l", "base.finished", "base.words"}
    assert flat["base.finished"] == 0
    assert results["models"]["base"]["reward"]["value"] is None
    json.dumps(results, allow_nan=False)


def test_flat_names_of_pairs() -> None:
    flat, _ = flat_metrics(table(stage(score=BOTH)).results())
    for name in ("win_rate", "reward_win_rate", "style_win_rate"):
        assert 0 <= flat[f"dpo_vs_base.{name}"] <= 1
        assert flat[f"dpo_vs_base.{name}_low"] <= flat[f"dpo_vs_base.{name}"]
    for name in ("exact_match", "f1", "style"):
        assert flat[f"dpo_vs_base.{name}_gain"] == pytest.approx(flat[f"dpo.{name}"] - flat[f"base.{name}"])
        assert flat[f"dpo_vs_base.{name}_gain_low"] <= flat[f"dpo_vs_base.{name}_gain"]
    plain, _ = flat_metrics(table(stage()).results())
    assert not any("win_rate" in name or "reward" in name or "style" in name for name in plain)


def test_question_of_each_record_type() -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    chat = question_of(Record(id="1", type="messages", messages=turns))
    assert (chat.prompt, chat.reference) == (turns[:1], "a")
    unwanted = question_of(Record(id="1", type="unpaired", prompt=turns[:1], completion="bad", label=False))
    assert (unwanted.reference, unwanted.references) == (None, ())
    squad = question_of(record("1", "Paris", references=["Paris", "city of Paris"]))
    assert squad.references == ("Paris", "city of Paris")
    assert question_of(record("1", None)).references == ()


def named(*metrics: str, texts: dict[str, str] | None = None, **values: Any) -> tuple[Table, Evaluate]:
    config = stage(models=("base", "sft"), metrics=metrics, **values)
    rows = [question_of(record(f"r{n}", f"yes it is number {n}", kind="odd" if n % 2 else "even")) for n in range(6)]
    said = {model: {q.id: ((texts or {}).get(q.id, f"yes it is number {n}" if model == "sft" or n > 2 else "no"), True)
                    for n, q in enumerate(rows)} for model in config.models}
    numbers, counts = measure_all(config, rows, said, {})
    return Table(config, rows, numbers, counts, seed=0), config


def test_named_metrics_are_the_columns_the_differences_and_the_kinds() -> None:
    made, _ = named("chrf", "final_number", "words")
    got = made.results()
    assert got["columns"] == ["chrf", "final_number", "words"]
    assert list(got["models"]["sft"]) == ["chrf", "final_number", "words"]
    assert [(one["metric"], one["challenger"]) for one in got["differences"]] == [
        ("chrf", "sft"), ("final_number", "sft"), ("words", "sft")]
    assert set(got["by_kind"]["odd"]["base"]) == {"chrf", "final_number", "words", "n"}
    assert got["by_kind"]["odd"]["base"]["final_number"] == pytest.approx(2 / 3)
    assert got["by_kind"]["odd"]["sft"]["chrf"] == 100
    assert set(got["signatures"]) == {"chrf"}
    flat, undefined = flat_metrics(got)
    assert undefined == []
    assert flat["sft_vs_base.final_number_gain"] == flat["sft.final_number"] - flat["base.final_number"] == 0.5
    assert flat["sft_vs_base.chrf_gain"] == pytest.approx(100 - flat["base.chrf"])
    assert flat["sft_vs_base.chrf_gain_low"] <= flat["sft_vs_base.chrf_gain"]


def test_the_interval_of_a_pooled_metric_is_that_of_resampled_sums() -> None:
    """Half of the rows are right; sums of more rows lie nearer to each other than scores of single rows."""
    made, _ = named("bleu", bootstrap=400)
    cell = made.results()["models"]["base"]["bleu"]
    assert 0 <= cell["low"] < cell["value"] < cell["high"] <= 100
    rows = made.column("base", "bleu")
    assert set(rows) == {0.0, 100.0}
    assert cell["value"] != pytest.approx(sum(rows) / len(rows)), "no mean over rows"


def test_a_named_metric_that_no_row_has_is_undefined_and_said() -> None:
    made, _ = named("perplexity", "yes_no")
    flat, undefined = flat_metrics(made.results())
    assert set(undefined) == {"base.perplexity", "sft.perplexity"}
    assert flat["sft.yes_no"] == 1
    assert "perplexity" not in {one["metric"] for one in made.results()["differences"]}


def test_a_missing_package_is_said_before_anything_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    prove(stage(metrics=("bleu", "rouge1"), segmentation="jieba"))
    bleu._scorer.cache_clear()
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics.bleu", None)
    with pytest.raises(ConfigError, match="metric bleu needs a package"):
        prove(stage(metrics=("bleu",)))


def test_sacrebleu_counts_each_answer_once_and_the_row_has_the_number_that_it_counts_for(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["", "yes", "no it is the number 3 and no other", "yes it is number 4", "number it is yes 5", "6"]
    config = stage(models=("base",), metrics=("bleu", "chrf"))
    rows = [question_of(record(f"r{n}", f"yes it is number {n}", references=[f"yes it is number {n}", "another one"]))
            for n in range(len(texts))]
    said = {"base": {q.id: (text, True) for q, text in zip(rows, texts, strict=True)}}
    rules = rules_of(config, rows)
    alone = {q.id: {name: measure_of(name).of(reply_of(q, text, True), rules) for name in ("bleu", "chrf")}
             for q, text in zip(rows, texts, strict=True)}
    for module in (BLEU, CHRF):
        def counted(self: Any, *given: Any, own: Any = module._extract_corpus_statistics) -> Any:
            calls.append(type(self))
            return own(self, *given)

        monkeypatch.setattr(module, "_extract_corpus_statistics", counted)
    calls: list[type] = []
    numbers, _ = measure_all(config, rows, said, {})
    assert {id_: {name: of[name] for name in ("bleu", "chrf")} for id_, of in numbers["base"].items()} == alone
    assert (calls.count(BLEU), calls.count(CHRF)) == (len(rows), len(rows))
