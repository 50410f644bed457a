"""Judged pairs: draws over the recipe's ranges, a judge's scores, the best against the worst; and judges of sample."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.artifacts import Artifact, Store
from alignment.cli.check import mistakes
from alignment.config import JudgedPairs, Run, load_run, parse_run
from alignment.context import StageContext
from alignment.distributed.sample import sample_stage
from alignment.errors import ConfigErrors, StageError
from alignment.inference import judging
from alignment.inference.endpoint import generator
from alignment.inference.requests import Request
from alignment.pipeline import execute
from alignment.pipeline.keys import keys
from alignment.planner.estimate import Rates
from alignment.planner.plan import plan
from alignment.records import Record, read_records, write_records
from alignment.report import render
from alignment.sampling import batch
from tests import small
from tests.endpoint_server import Asked, Reply, answer, endpoint, teacher
from tests.generation.scripted import SeveralAnswers
from tests.inference.test_endpoint import Passing
from tests.models import published

GEN: dict[str, Any] = {"name": "gen", "kind": "generate", "recipe": "judged_pairs", "model": "base",
                       "prompts": ["data/train"], "batch_size": 3, "score": {"judge": {"model": "judge"}}}


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Artifact]:
    store, made = Store(str(tmp_path / "store")), {}
    for name in ("base", "judge"):
        (tmp_path / name / "model").mkdir(parents=True)
        made[name] = published(store, f"{name}-0", tmp_path / name)
    write_records(tmp_path / "data" / "rows" / "train.jsonl", [
        Record(f"r{index}", "prompt-only", [{"role": "user", "content": f"Question {index}?"}]) for index in range(7)])
    return {**made, "data": published(store, "data-0", tmp_path / "data")}


def context(inputs: dict[str, Artifact], key: str = "gen-0", **more: Any) -> StageContext:
    others = [*({"name": name, "kind": "import", "model": {"source": "tiny"}} for name in ("base", "judge")),
              {"name": "data", "kind": "import", "data": [{"path": "x", "format": "passage-qa"}],
               "split": {"by": "ratio", "ratios": {"train": 1.0}}}]
    store = inputs["base"].store
    run = parse_run(json.dumps({"name": "t", "seed": 5, "store": str(store.url), "compute": {
        "dtype": "float32", "device": "cpu"}, "stages": [*others, {**GEN, **more}]}))
    return StageContext(run, run.stage("gen"), store, key, "d" * 64, inputs, store.workdir(key))


def answers(request: Request, index: int) -> tuple[str, bool]:
    """Draw i of row r: so many words; r1 says the same each time, r2 cuts its best answer."""
    row = int(request.id[1:])
    return " ".join(["word"] * (1 if row == 1 else 1 + (index + row) % 4)), not (row == 2 and (index + row) % 4 == 3)


def points(request: Request, index: int) -> tuple[str, bool]:
    """A point for each word that is shown; all alike for question 3, nothing to read for question 4."""
    text = request.prompt[-1]["content"]
    words = text.partition("Answer:\n")[2].partition("\n\n")[0].split()
    return ("Score: 5" if "Question 3" in text else "quite good" if "Question 4" in text else
            f"As long as it is.\nScore: {len(words)}/10"), True


def by(monkeypatch: pytest.MonkeyPatch, judge: Callable[[Request, int], tuple[str, bool]] = points,
       stop_after: int | None = None) -> tuple[SeveralAnswers, SeveralAnswers]:
    """The model that answers, and the judge."""
    model, other = SeveralAnswers(answers, stop_after), SeveralAnswers(judge)
    monkeypatch.setattr(batch, "open_engine", lambda context, name: model)
    monkeypatch.setattr(judging, "open_engine", lambda context, name: other)
    return model, other


def files(made: StageContext) -> dict[str, str]:
    return {str(path.relative_to(made.out)): path.read_text(encoding="utf-8")
            for path in sorted(made.out.rglob("*")) if path.is_file() and path.name != "events.jsonl"}


def test_the_recipes_numbers_are_their_publications(inputs: dict[str, Artifact]) -> None:
    stage = context(inputs).stage_as(JudgedPairs)
    assert (stage.sampling.temperature, stage.sampling.top_p, stage.sampling.top_k) == ((0.2, 0.95), (0.1, 0.7), (0, 4))
    assert stage.first is not None
    assert (stage.first.temperature, stage.first.top_p) == (0.7, 0.2)
    for given in (stage.sampling, stage.first):
        assert (given.repetition_penalty, given.max_new_tokens) == (1.1, 128)
    shorter = context(inputs, sampling={"max_new_tokens": 9}).stage_as(JudgedPairs)
    assert shorter.sampling == stage.sampling.model_copy(update={"max_new_tokens": 9})
    assert shorter.first is not None
    assert shorter.first.max_new_tokens == 9
    shorter_judge = context(inputs, score={"judge": {"model": "judge", "sampling": {"max_new_tokens": 9}}})
    judge = shorter_judge.stage_as(JudgedPairs).score.judge
    assert judge is not None
    assert judge.sampling.greedy
    again = JudgedPairs.model_validate_json(shorter.model_dump_json(exclude_none=True))
    assert again == shorter


def test_a_prompts_best_answer_stands_against_its_worst_with_the_judges_scores(
    inputs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, judge = by(monkeypatch)
    outcome = sample_stage(made := context(inputs))
    pairs = {pair.meta["prompt_id"]: pair for pair in read_records(made.out / "rows" / "pairs.jsonl")}
    assert set(pairs) == {"r0", "r2", "r5", "r6"}
    for row, pair in pairs.items():
        best = 3 if row == "r2" else 4  # the longest was cut, and is never the good side
        assert (pair.completion, pair.rejected) == (" ".join(["word"] * best), "word")
        assert (pair.meta["chosen_score"], pair.meta["rejected_score"], pair.meta["gap"]) == (best, 1, best - 1)
    assert outcome.rows.dropped == {
        "pairs: only identical answers": 1, "pairs: tied scores": 1,
        "pairs: every finished answer without a score (NaN)": 1, "best: every finished answer without a score (NaN)": 1}
    samples = read_records(made.out / "rows" / "samples.jsonl")
    assert len(samples) == 28
    said = next(row for row in samples if row.meta["prompt_id"] == "r0" and row.meta["score"] == 4)
    assert said.meta["judged"] == {"said": "As long as it is.\nScore: 4/10"}
    assert all(row.meta["judged"]["refused"] == "no-score" for row in samples if row.meta["prompt_id"] == "r4")
    # Of six rows four answers each and of r1 one, since equal answers are judged once.
    assert outcome.facts["judge"]["requests"] == len(judge.asked) == 25
    assert outcome.facts["judge"]["refused"] == {"no-score": 4}
    assert outcome.metrics["judge_read_share"] == round(21 / 25, 4)
    draws = [row.meta["draw"] for row in samples if row.id.endswith("-newest-0")]
    assert {(draw["temperature"], draw["top_p"], draw["top_k"]) for draw in draws} == {(0.7, 0.2, 0)}
    others = [row.meta["draw"] for row in samples if not row.id.endswith("-newest-0")]
    assert len({draw["temperature"] for draw in others}) == 21
    assert all(0.2 <= draw["temperature"] <= 0.95 and 0.1 <= draw["top_p"] <= 0.7 for draw in others)
    assert {draw["top_k"] for draw in others} <= set(range(5))


def test_interrupted_work_goes_on_and_batches_change_no_score(
    inputs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    by(monkeypatch)
    sample_stage(wanted := context(inputs, "gen-whole"))
    by(monkeypatch, stop_after=4)
    with pytest.raises(KeyboardInterrupt):
        sample_stage(context(inputs))
    model, _ = by(monkeypatch)
    sample_stage(made := context(inputs))
    assert len(model.asked) == 4
    assert files(made) == files(wanted)
    by(monkeypatch)
    sample_stage(other := context(inputs, "gen-1", batch_size=1))
    assert {name: sorted(text.splitlines()) for name, text in files(other).items()} == {
        name: sorted(text.splitlines()) for name, text in files(wanted).items()}


def test_a_judge_that_says_nothing_to_be_read_ends_the_stage_with_reasons_and_examples(
    inputs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    by(monkeypatch, lambda request, index: ("I like it", True))
    with pytest.raises(StageError, match="nothing that the judge said could be read") as failed:
        sample_stage(context(inputs))
    assert failed.value.found == {"no-score": 25}
    assert str(failed.value.hint).count("'I like it'") == 3


def test_compared_answers_make_pairs_by_the_share_that_they_win(
    inputs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    def longer(request: Request, index: int) -> tuple[str, bool]:
        """Prefers the longer answer; for question 0 whatever stands first."""
        text = request.prompt[-1]["content"]
        first, second = (text.partition(f"Answer {name}:\n")[2].partition("\n\n")[0] for name in "AB")
        return f"Verdict: {'A' if 'Question 0' in text or len(first) > len(second) else 'B'}", True

    by(monkeypatch, longer)
    outcome = sample_stage(made := context(inputs, score={"judge": {"model": "judge", "mode": "compare"}}))
    pairs = {pair.meta["prompt_id"]: pair for pair in read_records(made.out / "rows" / "pairs.jsonl")}
    assert set(pairs) == {"r2", "r3", "r4", "r5", "r6"}
    assert (pairs["r3"].meta["chosen_score"], pairs["r3"].meta["rejected_score"]) == (1, 0)
    assert outcome.rows.dropped["pairs: tied scores"] == 1
    assert outcome.facts["judge"]["requests"] == 6 * 12
    assert outcome.facts["judge"]["disagreed"] == 6
    assert outcome.metrics["judge_agreement"] == round(1 - 6 / 36, 4)


@pytest.mark.parametrize(("more", "problem"), [
    ({"score": {"function": "brevity"}}, "has no judge"),
    ({"score": {"judge": {"model": "judge", "mode": "rank"}}}, "mode"),
    ({"score": {"judge": {"model": "judge", "scale": [5, 5]}}}, "has no room"),
    ({"score": {"judge": {"model": "judge", "mode": "compare", "scale": [1, 5]}}}, "scale is of mode score"),
    ({"score": {"judge": {"model": "judge", "weight": 0.0}}}, "every score is 0"),
    ({"score": {"judge": {"model": "judge", "prompt": "x", "language": "zh"}}}, "language is of the shipped rubric"),
    ({"score": {"judge": {"model": "nobody"}}}, "does not come before it"),
    ({"score": {"judge": {"model": "data"}}}, "needs a stage that makes a language model"),
    ({"n": 1}, "n of 2 or more"),
])
def test_a_config_that_can_make_nothing_is_refused(
    inputs: dict[str, Artifact], more: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigErrors) as error:
        context(inputs, **more)
    assert problem in str(error.value)


# --- through the pipeline: any sample stage may have a judge, and an endpoint may be both ---


@pytest.fixture
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator, "Clock", lambda: Passing().clock())


def said(one: Asked) -> Reply:
    if "Judge the answer" in one.last:
        shown = one.last.partition("Answer:\n")[2].partition("\n\n")[0]
        return answer(f"Score: {1 + sum(map(ord, shown)) % 9}")
    return answer(small.COLOURS[one.body["seed"] % 8] + "!" * (one.body["seed"] % 3))


TAKES = {"takes": ["seed", "top_k", "repetition_penalty"]}
PRICE = {"input": 0.0, "output": 5000.0}
"""An answer of `answer` costs 0.025, and is no longer than what SHORT asks for."""
SHORT = {"model": "teacher", "n": 3, "sampling": {"max_new_tokens": 5},
         "score": {"judge": {"model": "teacher", "sampling": {"temperature": 0.0, "max_new_tokens": 5}}}}


def run_of(folder: Path, url: str, gen: dict[str, Any], kind: str = "generate", **model: Any) -> Run:
    stage = {**GEN, **gen, "kind": kind}
    if kind == "sample":
        del stage["recipe"]
    tree = {"name": "asked", "seed": 3, "store": str(folder / "store"),
            "compute": {"dtype": "float32", "device": "cpu"},
            "stages": [small.BASE, teacher(url, **{**TAKES, **model}), small.data(folder, 10), stage]}
    return parse_run(yaml.safe_dump(tree, sort_keys=False))


def made_by(run: Run) -> Artifact:
    artifact = Store(run.store).find(keys(run)["gen"].key)
    assert artifact is not None
    return artifact


@pytest.mark.usefixtures("_no_pauses")
@pytest.mark.parametrize("budget", [0.21, 0.61])
def test_one_endpoint_answers_and_judges_within_one_budget_and_nothing_is_paid_twice(
    tmp_path: Path, budget: float
) -> None:
    with endpoint(said) as server:
        execute(whole := run_of(tmp_path / "whole", server.url, SHORT, limits={"price": PRICE}))
        wanted = len(server.asked)
        poor = run_of(tmp_path, server.url, SHORT, limits={"price": PRICE, "budget": budget})
        with pytest.raises(StageError, match="the budget for the endpoint is spent"):
            execute(poor)
        first = len(server.asked) - wanted
        assert 0 < first < wanted
        assert first * 0.025 <= budget
        execute(rich := run_of(tmp_path, server.url, SHORT, limits={"price": PRICE, "budget": 9.0}))
        assert len(server.asked) == 2 * wanted
    assert made_by(rich).manifest.rows.written == made_by(whole).manifest.rows.written
    assert made_by(rich).manifest.rows.written["pairs"] > 0
    taken = made_by(rich).manifest.facts["endpoints"]["teacher"]
    assert (taken["requests"], taken["cost"]) == (wanted, pytest.approx(wanted * 0.025))
    stages = {stage.name: Store(rich.store).find(keys(rich)[stage.name].key) for stage in rich.stages}
    page = render(rich, stages, None, "")
    assert "judged by teacher" in page
    assert f"read {made_by(rich).manifest.facts['judge']['read']}" in page


@pytest.mark.usefixtures("_no_pauses")
def test_a_sample_stage_takes_a_judge_beside_a_function(tmp_path: Path) -> None:
    score = {"function": "brevity", "function_weight": 10.0, **SHORT["score"]}
    with endpoint(said) as server:
        execute(run := run_of(tmp_path, server.url, {**SHORT, "score": score}, "sample"))
    samples = read_records(made_by(run).path() / "rows" / "samples.jsonl")
    assert all(row.meta["score"] == row.meta["judge_score"] + 10 for row in samples)
    assert made_by(run).manifest.metrics["mean_function"] == 1


def found(folder: Path, gen: dict[str, Any], **model: Any) -> list[str]:
    """What `check` says, one text per finding."""
    run = run_of(folder, "http://127.0.0.1:9/v1", gen, **model)
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(run.model_dump(mode="json", exclude_none=True)), encoding="utf-8")
    return [str(one) for one in mistakes(load_run(str(file)), str(file), None)]


@pytest.mark.parametrize(("gen", "model", "place", "problem"), [
    (SHORT, {}, "", ""), ({"score": {"judge": {"model": "teacher"}}, "max_prompt_tokens": 99}, {"takes": []}, "", ""),
    (SHORT, {"takes": ["seed", "repetition_penalty"]}, "sampling.top_k", "endpoint teacher is not known to take top_k"),
    ({**SHORT, "score": {"judge": {"model": "base", "prompt": "none.txt"}}}, {}, "score.judge.prompt",
     "cannot be read"),
])
def test_check_asks_each_model_for_its_own_draws_alone(
    tmp_path: Path, gen: dict[str, Any], model: dict[str, Any], place: str, problem: str
) -> None:
    texts = found(tmp_path, gen, **model)
    assert len(texts) == bool(problem), texts
    assert all(problem in text and place in text for text in texts)


def test_a_rubric_is_part_of_the_digest_and_its_path_is_not(tmp_path: Path) -> None:
    def key(text: str, name: str) -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        score = {"judge": {"model": "base", "prompt": str(tmp_path / name)}}
        run = run_of(tmp_path, "http://h/v1", {"score": score})
        moved = run.stage("gen").relocated({str(tmp_path / name): "elsewhere"})
        assert "elsewhere" in moved.model_dump_json()
        assert [item.travels for item in run.stage("gen").sources()] == [True]
        return keys(run)["gen"].key

    one = key("{prompt} {answer}", "a.txt")
    assert one == key("{prompt} {answer}", "b.txt")
    assert one != key("{prompt}: {answer}", "b.txt")


def test_a_plan_counts_what_the_judge_takes(tmp_path: Path) -> None:
    price = {"input": 0.0, "output": 1e6}
    run = run_of(tmp_path, "http://h/v1", SHORT, limits={"price": price})
    gen = {item.name: item for item in plan(run, {}, Rates(1e12, 1e10))}["gen"]
    assert "costs 90 at most" in gen.what
    assert gen.what.endswith("its judge costs about 90 at most")
    compared = {**SHORT, "score": {"judge": {**SHORT["score"]["judge"], "mode": "compare"}}}
    run = run_of(tmp_path, "http://h/v1", compared, limits={"price": price})
    assert {item.name: item for item in plan(run, {}, Rates(1e12, 1e10))}["gen"].what.endswith("about 180 at most")
    here = run_of(tmp_path, "http://h/v1", {**SHORT, "score": {"judge": {"model": "base"}}})
    gen = {item.name: item for item in plan(here, {}, Rates(1e12, 1e10))}["gen"]
    assert gen.needs_model
    assert gen.seconds
    assert gen.memory is not None
