"""Contrastive stages: good answers against opposites, tries up to a cap, and going on after an interruption."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.artifacts import Artifact, Store
from alignment.cli.check import mistakes
from alignment.config import Run, load_run, parse_run
from alignment.context import StageContext
from alignment.distributed.generate import shared
from alignment.distributed.generate.contrastive import contrastive_stage
from alignment.errors import ConfigErrors, DataError, StageError
from alignment.inference import judging
from alignment.inference.endpoint import generator
from alignment.inference.requests import Request
from alignment.pipeline import execute
from alignment.pipeline.keys import keys
from alignment.planner.estimate import Rates
from alignment.planner.plan import plan
from alignment.records import Record, read_records, write_records
from alignment.report import render
from alignment.rewards.socratic import TYPES
from tests import small
from tests.endpoint_server import Asked, Reply, answer, endpoint, error, teacher
from tests.generation.scripted import SeveralAnswers
from tests.inference.test_endpoint import Passing
from tests.models import published

OF = {"clarity": "What do you mean by the harbour in winter?", "assumptions": "Are you assuming that harbours freeze?",
      "reasons_evidence": "What evidence is there that harbours freeze?",
      "implication_consequences": "What would happen if the harbour froze?"}
KINDS = list(OF)
GEN: dict[str, Any] = {"name": "gen", "kind": "generate", "recipe": "contrastive", "teacher": "base",
                       "rows": ["questions/train"], "score": {"function": "socratic_type"}, "min_score": 0.8,
                       "batch_size": 3}


def row(index: int, text: str | None = None, kind: str | None = None, **meta: Any) -> Record:
    kind = kind or KINDS[index % 4]
    prompt = f"Ask a question of the type {kind}.\n\n### Input:\nHarbour {index} freezes in winter."
    return Record(f"q{index}", "prompt-completion", [{"role": "user", "content": prompt}],
                  OF[KINDS[index % 4]] if text is None else text, meta={"kind": kind, "source": "s", **meta})


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Artifact]:
    store = Store(str(tmp_path / "store"))
    (tmp_path / "base" / "model").mkdir(parents=True)
    write_records(tmp_path / "data" / "rows" / "train.jsonl", [row(index) for index in range(8)])
    return {"base": published(store, "base-0", tmp_path / "base"),
            "questions": published(store, "questions-0", tmp_path / "data")}


def over(inputs: dict[str, Artifact], folder: Path, *records: Record) -> dict[str, Artifact]:
    write_records(folder / "more" / "rows" / "train.jsonl", records)
    return {**inputs, "questions": published(inputs["base"].store, "questions-1", folder / "more")}


def context(inputs: dict[str, Artifact], key: str = "gen-0", **more: Any) -> StageContext:
    others = [{"name": "base", "kind": "import", "model": {"source": "tiny"}},
              {"name": "questions", "kind": "import", "data": [{"path": "x", "format": "columns", "columns": {}}],
               "split": {"by": "ratio", "ratios": {"train": 1.0}}}]
    store = inputs["base"].store
    run = parse_run(json.dumps({"name": "t", "seed": 5, "store": str(store.url), "compute": {
        "dtype": "float32", "device": "cpu"}, "stages": [*others, {**GEN, **more}]}))
    return StageContext(run, run.stage("gen"), store, key, "d" * 64, inputs, store.workdir(key))


def by(monkeypatch: pytest.MonkeyPatch, says: Callable[[Request, int], tuple[str, bool]],
       stop_after: int | None = None) -> SeveralAnswers:
    engine = SeveralAnswers(says, stop_after)
    monkeypatch.setattr(shared, "open_engine", lambda context, name: engine)
    return engine


def number(request: Request) -> int:
    return int(request.id.rpartition("-")[2])


def opposite(request: Request, index: int) -> tuple[str, bool]:
    """A question of the next kind, but for every third row only at its third try, and for q7 never."""
    asked = int(request.id[1])
    late = asked == 7 or (asked % 3 == 0 and number(request) < 3)
    of_kind = OF[KINDS[(asked + (0 if late else 1)) % 4]]
    return of_kind.replace("harbour", f"port {request.id[-1]} of it") if late else of_kind, True


def files(made: StageContext) -> dict[str, str]:
    return {str(path.relative_to(made.out)): path.read_text(encoding="utf-8")
            for path in sorted(made.out.rglob("*")) if path.is_file() and path.name != "events.jsonl"}


def bad_of(made: StageContext) -> dict[str, dict[str, Any]]:
    lines = (made.out / "bad.jsonl").read_text(encoding="utf-8").splitlines()
    return {line["id"]: line for line in map(json.loads, lines)}


def test_good_answers_are_chosen_and_opposites_rejected_with_scores_tries_and_origin(
    inputs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine = by(monkeypatch, opposite)
    made = context(over(inputs, tmp_path, *(row(index) for index in range(8)), row(8, "Why?")))
    outcome = contrastive_stage(made)
    pairs = read_records(made.out / "rows" / "train.jsonl")
    assert [pair.id for pair in pairs] == [f"q{index}-contrast" for index in range(7)]
    for index, pair in enumerate(pairs):
        kind = KINDS[index % 4]
        assert (pair.type, pair.completion, pair.rejected) == ("preference", OF[kind], OF[KINDS[(index + 1) % 4]])
        assert f"of the type {kind}." in pair.prompt[0]["content"]
        assert pair.meta["chosen_score"] >= 0.8 > pair.meta["rejected_score"]
        assert pair.meta["gap"] == pair.meta["chosen_score"] - pair.meta["rejected_score"]
        assert pair.meta["tries"] == (3 if index % 3 == 0 else 1)
        origin = pair.meta["origin"]
        assert [one["outcome"] for one in origin["tries"]] == ["still-good"] * (pair.meta["tries"] - 1) + ["kept"]
        assert (origin["row"], origin["model"]) == (f"q{index}", inputs["base"].manifest.digest)
        assert origin["request"] == f"q{index}/try-{pair.meta['tries']}"
    bad = bad_of(made)
    assert {id_: (line["step"], line["reason"]) for id_, line in bad.items()} == {
        "q7": ("opposites", "still-good"), "q8": ("answers", "under-min-score")}
    assert len(bad["q7"]["origin"]["tries"]) == 5
    assert bad["q7"]["origin"]["chosen"] == OF[KINDS[3]]
    assert outcome.rows.read == 9
    assert outcome.rows.dropped == {"still-good": 1, "under-min-score": 1}
    assert outcome.facts["tries"] == {"still-good": 11, "kept": 7}
    assert outcome.metrics["requests"] == len(engine.asked) == 18
    assert outcome.metrics["good_share"] == round(8 / 9, 4)
    assert outcome.metrics["pair_share"] == 7 / 8


@pytest.mark.parametrize("stop_after", [0, 4, 8, 11, 15, 17])
def test_interrupted_work_goes_on_with_nothing_asked_twice(
    inputs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    whole = by(monkeypatch, opposite)
    contrastive_stage(wanted := context(inputs, "gen-whole"))
    first = by(monkeypatch, opposite, stop_after)
    with pytest.raises(KeyboardInterrupt):
        contrastive_stage(context(inputs))
    second = by(monkeypatch, opposite)
    contrastive_stage(made := context(inputs))
    assert sorted(first.asked + second.asked) == sorted(whole.asked)
    assert files(made) == files(wanted)


def test_batches_change_nothing(inputs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch) -> None:
    by(monkeypatch, opposite)
    contrastive_stage(one := context(inputs, "gen-1", batch_size=1))
    contrastive_stage(other := context(inputs, "gen-7", batch_size=7))
    assert files(one) == files(other)


@pytest.mark.parametrize(("text", "finished", "more", "outcome"), [
    (OF["clarity"], True, {}, "same-answer"), ("what do you mean by  THE harbour in winter?", True, {}, "same-answer"),
    ("What do you mean, by the harbour, in winter?", True, {}, "alike"),
    ("What do you mean, by the harbour, in winter?", True, {"most_alike": 1.0}, "still-good"),
    ("What do you mean by the harbour in summer?", True, {"most_alike": 0.8}, "alike"), (" \n", True, {}, "empty"),
    ("Are you assuming", False, {}, "cut"), ("What do you mean by a port in winter?", True, {}, "still-good"),
    ("Are you assuming that harbours freeze?", True, {"min_margin": 0.9}, "gap-too-small"),
    ("No.", True, {"min_rejected": 0.2}, "too-bad"),
    ("Are you?", True, {"score": {"function": "tests.distributed.test_contrastive:nothing_for_a_short_one"}},
     "no-score"),
])
def test_an_answer_that_is_no_opposite_is_asked_for_again_and_kept_with_the_reason(
    inputs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, finished: bool,
    more: dict[str, Any], outcome: str
) -> None:
    engine = by(monkeypatch, lambda request, index: (text, finished) if request.id[1] == "0" else opposite(request, 0))
    made = context(over(inputs, tmp_path, row(0), row(1)) if outcome != "gap-too-small" else
                   over(inputs, tmp_path, row(0)), retries=1, **more)
    if outcome == "gap-too-small":
        with pytest.raises(StageError, match="nothing that the teacher said could be kept") as failed:
            contrastive_stage(made)
        assert "same-try 100%" in str(failed.value.found)
        assert len(engine.asked) == 2
        return
    contrastive_stage(made)
    tries = bad_of(made)["q0"]["origin"]["tries"]
    assert [one["outcome"] for one in tries] == [outcome, outcome if outcome in UNSCORED else "same-try"]
    assert [one["text"] for one in tries] == [text] * 2
    assert [pair.id for pair in read_records(made.out / "rows" / "train.jsonl")] == ["q1-contrast"]


UNSCORED = ("same-answer", "empty", "cut")
"""Outcomes that a second try of the same text has as well."""


def nothing_for_a_short_one(record: Record, said: str) -> float:
    return math.nan if len(said) < 10 else TYPES[record.meta["kind"]].search(said.lower()) is not None


def test_an_answer_of_ones_own_without_a_score_is_refused(
    inputs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    by(monkeypatch, opposite)
    made = context(over(inputs, tmp_path, row(0, "Why?"), row(1)),
                   score={"function": "tests.distributed.test_contrastive:nothing_for_a_short_one"})
    contrastive_stage(made)
    assert bad_of(made)["q0"]["reason"] == "no-score"
    assert bad_of(made)["q0"]["origin"]["chosen_score"] is None


def test_another_kind_is_asked_for_in_the_rows_own_words(
    inputs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    def obeys(request: Request, index: int) -> tuple[str, bool]:
        said = request.prompt[-1]["content"]
        return OF[next(kind for kind in KINDS if kind in said)], True

    engine = by(monkeypatch, obeys)
    contrastive_stage(made := context(inputs, ask="other_kind"))
    for pair in read_records(made.out / "rows" / "train.jsonl"):
        (one,) = pair.meta["origin"]["tries"]
        assert one["other"] in KINDS
        assert one["other"] != pair.meta["kind"]
        assert pair.rejected == OF[one["other"]]
        wanted = pair.prompt[0]["content"].replace(pair.meta["kind"], one["other"])
        assert wanted in engine.prompts
    assert len(engine.asked) == 8


def test_another_kind_is_a_further_one_at_each_try(
    inputs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    by(monkeypatch, lambda request, index: ("No.", True) if request.id[1] == "0" else opposite(request, 0))
    made = context(over(inputs, tmp_path, *(row(index) for index in range(4))), ask="other_kind", min_rejected=0.2)
    contrastive_stage(made)
    others = [one["other"] for one in bad_of(made)["q0"]["origin"]["tries"]]
    assert sorted(others[:3]) == sorted(KINDS[1:])
    assert others[3:] == others[:2]


def test_the_budget_ends_tries_and_no_row_is_lost(
    inputs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = by(monkeypatch, opposite)
    contrastive_stage(made := context(inputs, max_requests=9))
    assert len(engine.asked) == 9
    pairs = read_records(made.out / "rows" / "train.jsonl")
    bad = bad_of(made)
    assert len(pairs) + len(bad) == 8
    assert {line["reason"] for line in bad.values()} == {"over-budget"}


def test_rows_that_cannot_serve_are_counted_and_a_take_is_drawn(
    inputs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    by(monkeypatch, opposite)
    records = [*(row(index) for index in range(6)), row(1), row(6, ""), Record("x", "prompt-only")]
    outcome = contrastive_stage(context(over(inputs, tmp_path, *records), take=4))
    assert outcome.rows.dropped == {"no prompt that ends with a question": 1, "no good answer": 1,
                                    "id of an earlier row": 1, "not taken": 2}
    assert outcome.metrics["rows"] == 4


def test_prompts_over_the_limit_are_asked_once_and_not_again(
    inputs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine = by(monkeypatch, opposite)
    long = Record("q0", "prompt-completion", [{"role": "user", "content": "long " * 90 + "harbour"}], OF["clarity"],
                  meta={"kind": "clarity"})
    made = context(over(inputs, tmp_path, long, row(1)), max_prompt_tokens=80)
    contrastive_stage(made)
    assert bad_of(made)["q0"]["reason"] == "prompt-too-long"
    assert engine.asked == ["q1/try-1"]


@pytest.mark.parametrize(("more", "problem"), [
    ({"min_rejected": 0.8}, "leaves no score for an opposite"), ({"retries": -1}, "retries"),
    ({"opposites": {"temperature": 0.0}}, "every try gives the same answer"),
    ({"ask": "other_kind", "prompts": {"opposite": "x.txt"}}, "is not used, since ask is other_kind"),
    ({"ask": "other_kind", "language": "zh"}, "no shipped prompt is"),
    ({"score": {"judge": {"model": "base", "mode": "compare"}}}, "gives no score that an answer has by itself"),
    ({"score": {}}, "give model, function or judge"), ({"min_score": None}, "min_score"),
    ({"decontaminate": ["questions/train"]}, "names rows that the prompts show"),
])
def test_a_config_that_can_make_nothing_is_refused(
    inputs: dict[str, Artifact], more: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigErrors) as error:
        context(inputs, **more)
    assert problem in str(error.value)


def test_rows_of_one_kind_alone_are_one_clear_error(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    apart = over(inputs, tmp_path, *(row(index, kind="clarity") for index in range(3)))
    (tmp_path / "own.txt").write_text("{prompt} But make it {other}, not {kind}: {answer}", encoding="utf-8")
    for more in ({"ask": "other_kind"}, {"prompts": {"opposite": str(tmp_path / "own.txt")}}):
        with pytest.raises(DataError, match="all rows are of one kind"):
            contrastive_stage(context(apart, **more))


def test_a_prompt_of_ones_own_gets_its_slots_and_rows_that_cannot_fill_them_are_counted(
    inputs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine = by(monkeypatch, opposite)
    (tmp_path / "own.txt").write_text("{prompt} But make it {other}, not {kind}: {answer}", encoding="utf-8")
    bare = Record("q5", "prompt-completion", [{"role": "user", "content": "Ask."}], OF["assumptions"])
    made = context(over(inputs, tmp_path, row(1, meta="{answer}"), row(2), bare),
                   prompts={"opposite": str(tmp_path / "own.txt")})
    outcome = contrastive_stage(made)
    assert outcome.rows.dropped == {"no kind (meta.kind)": 1}
    wanted = f"But make it reasons_evidence, not assumptions: {OF['assumptions']}"
    assert any(wanted in prompt for prompt in engine.prompts)


def test_a_judge_scores_both_sides(
    inputs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def says(request: Request, index: int) -> tuple[str, bool]:
        if "/judge/" in request.id:
            return ("Score: 9" if "of the harbour" in request.prompt[0]["content"].partition("Answer:")[2]
                    or "by the harbour" in request.prompt[0]["content"].partition("Answer:")[2] else "Score: 2"), True
        return "Are you assuming that boats sink?", True

    engine = by(monkeypatch, says)
    monkeypatch.setattr(judging, "open_engine", lambda *args: pytest.fail("the teacher is the judge, and open"))
    made = context(over(inputs, tmp_path, row(0), row(4)), score={"judge": {"model": "base"}}, min_score=7)
    outcome = contrastive_stage(made)
    pairs = read_records(made.out / "rows" / "train.jsonl")
    assert [(pair.meta["chosen_score"], pair.meta["rejected_score"]) for pair in pairs] == [(9, 2), (9, 2)]
    assert pairs[0].meta["chosen_judged"] == {"said": "Score: 9"}
    assert outcome.facts["judge"]["requests"] == outcome.facts["judge"]["read"] == 4
    assert outcome.metrics["judge_read_share"] == 1
    assert len(engine.asked) == 6


def test_a_judge_that_says_nothing_to_be_read_ends_the_stage_before_a_teacher_is_asked(
    inputs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = by(monkeypatch, lambda request, index: ("very good", True))
    with pytest.raises(StageError, match="nothing that the judge said could be read") as failed:
        contrastive_stage(context(inputs, score={"judge": {"model": "base"}}, min_score=7))
    assert failed.value.found == {"no-score": 8}
    assert "'very good'" in str(failed.value.hint)
    assert all("/judge/" in id_ for id_ in engine.asked)


# --- through the pipeline, and asked over the network ---


@pytest.fixture
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator, "Clock", lambda: Passing().clock())


def run_of(folder: Path, url: str, gen: dict[str, Any], count: int = 8, trained: bool = False, **model: Any) -> Run:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [{"prompt": made.prompt[0]["content"], "completion": made.completion, "kind": made.meta["kind"],
              "id": made.id} for made in map(row, range(count))]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    tree = {"name": "asked", "seed": 3, "store": str(folder / "store"),
            "compute": {"dtype": "float32", "device": "cpu"},
            "stages": [small.BASE, teacher(url, **model),
                       {"name": "questions", "kind": "import", "split": {"by": "ratio", "ratios": {"train": 1.0}},
                        "data": [{"path": str(folder / "rows.jsonl"), "format": "columns", "columns": {
                            key: key for key in ("prompt", "completion", "kind", "id")}}]},
                       {**GEN, "teacher": "teacher", **gen},
                       *([small.train("dpo", "dpo", rows=["gen/train"], epochs=1, max_length=256,
                                      checkpoints={"every": 1}, batch_size=4, micro_batch_size=4)] if trained else [])]}
    return parse_run(yaml.safe_dump(tree, sort_keys=False))


def said(one: Asked) -> Reply:
    """Opposites by the seed, some still good; a judge knows the four good answers."""
    if "Judge the answer" in one.last:
        shown = one.last.partition("Answer:\n")[2].partition("\n\n")[0]
        kind = one.last.partition("of the type ")[2].partition(".")[0]
        return answer(f"Score: {9 if shown == OF[kind] else 3 if one.body['seed'] % 5 else 'none'}")
    return answer(f"Are you assuming that boats {one.body['seed'] % 7} sink?" if one.body["seed"] % 3 else
                  "What do you mean by a port of evidence that would happen, assuming it?")


PRICE = {"input": 1000.0, "output": 1000.0}
"""An answer of `answer` costs 0.025."""
JUDGED = {"score": {"judge": {"model": "teacher", "sampling": {"temperature": 0.0, "max_new_tokens": 5}}},
          "min_score": 7, "opposites": {"temperature": 0.8, "max_new_tokens": 5}}


def made_by(run: Run) -> Artifact:
    artifact = Store(run.store).find(keys(run)["gen"].key)
    assert artifact is not None
    return artifact


@pytest.mark.usefixtures("_no_pauses")
@pytest.mark.parametrize("budget", [0.11, 0.36, 0.51])
def test_a_spent_budget_stops_the_stage_and_a_higher_one_goes_on_with_nothing_paid_twice(
    tmp_path: Path, budget: float
) -> None:
    """One endpoint is teacher and judge, under one budget; the stage stops among good answers and among tries."""
    price = {"input": 0.0, "output": 5000.0}
    with endpoint(said) as server:
        whole = run_of(tmp_path / "whole", server.url, JUDGED, limits={"price": price})
        execute(whole)
        wanted = len(server.asked)
        poor = run_of(tmp_path, server.url, JUDGED, limits={"price": price, "budget": budget})
        with pytest.raises(StageError, match="the budget for the endpoint is spent"):
            execute(poor)
        first = len(server.asked) - wanted
        assert 0 < first < wanted
        assert first * 0.025 <= budget
        rich = run_of(tmp_path, server.url, JUDGED, limits={"price": price, "budget": 9.0})
        assert keys(rich)["gen"] == keys(poor)["gen"]
        execute(rich)
        assert len(server.asked) == 2 * wanted
    pairs = read_records(made_by(rich).path() / "rows" / "train.jsonl")
    assert pairs
    # Ids of rows begin with their source's path digest, which the two folders share in name alone.
    assert [pair.rejected for pair in pairs] == [
        pair.rejected for pair in read_records(made_by(whole).path() / "rows" / "train.jsonl")]
    assert {one["outcome"] for pair in pairs for one in pair.meta["origin"]["tries"]} >= {"kept", "no-score"}
    taken = made_by(rich).manifest.facts["endpoints"]["teacher"]
    assert (taken["requests"], taken["cost"]) == (wanted, pytest.approx(wanted * 0.025))


@pytest.mark.usefixtures("_no_pauses")
def test_what_the_endpoint_gave_no_answer_to_is_a_try_with_its_reason_and_never_an_opposite(tmp_path: Path) -> None:
    def fails(one: Asked) -> Reply:
        return error(500, "boom") if "Harbour 0 " in one.last else answer("Are you assuming that boats sink?")

    with endpoint(fails) as server:
        run = run_of(tmp_path, server.url, {"retries": 1}, 6, trained=True, limits={"retries": 0, "concurrency": 1})
        dpo = execute(run).artifacts["dpo"]
    assert dpo is not None
    assert dpo.manifest.rows.read == made_by(run).manifest.rows.written["train"] > 0
    lines = (made_by(run).path() / "bad.jsonl").read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in map(json.loads, lines) if "Harbour 0 " in line["origin"]["prompt"][0]["content"]]
    assert line["reason"] == "the endpoint failed"
    assert [one["outcome"] for one in line["origin"]["tries"]] == ["the endpoint failed"] * 2
    assert "500: boom" in line["found"]
    page = render(run, {stage.name: Store(run.store).find(keys(run)[stage.name].key) for stage in run.stages}, None, "")
    assert "Tries:" in page
    assert "the endpoint failed 2" in page


def found(folder: Path, gen: dict[str, Any], **model: Any) -> list[str]:
    """What `check` says, one text per finding."""
    run = run_of(folder, "http://127.0.0.1:9/v1", gen, **model)
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(run.model_dump(mode="json", exclude_none=True)), encoding="utf-8")
    return [str(one) for one in mistakes(load_run(str(file)), str(file), None)]


@pytest.mark.parametrize(("gen", "place", "problem"), [
    ({}, "", ""), ({"ask": "other_kind"}, "", ""), ({**JUDGED}, "", ""),
    ({"min_score": 1.5}, "min_score", "no row's answer is good by socratic_type"),
    ({"score": {"function": "evidence_style"}}, "score.function", "cannot score every row"),
    ({"score": {"function": "a.b"}}, "score.function", "not a reward function"),
    ({"prompts": {"opposite": "none.txt"}}, "prompts.opposite", "cannot be read"),
    ({"score": {"judge": {"model": "base", "prompt": "none.txt"}}}, "score.judge.prompt", "cannot be read"),
    ({**JUDGED, "score": {"judge": {"model": "teacher", "sampling": {"top_k": 4}}}}, "score.judge.sampling.top_k",
     "endpoint teacher is not known to take top_k"),
    ({"opposites": {"top_k": 4}}, "opposites.top_k", "endpoint teacher is not known to take top_k"),
    ({"max_prompt_tokens": 99}, "max_prompt_tokens", "an endpoint counts its own tokens"),
])
def test_check_says_what_is_known_to_fail(tmp_path: Path, gen: dict[str, Any], place: str, problem: str) -> None:
    texts = found(tmp_path, gen)
    assert len(texts) == bool(problem), texts
    assert all(problem in text and place in text for text in texts)


def test_a_plan_counts_every_try_and_what_the_judge_takes(tmp_path: Path) -> None:
    limits = {"price": {"input": 0.0, "output": 1e6}}
    run = run_of(tmp_path, "http://h/v1", {**JUDGED, "retries": 1}, trained=True, limits=limits)
    plans = {item.name: item for item in plan(run, {}, Rates(1e12, 1e10))}
    assert "costs about 80 at most" in plans["gen"].what
    assert plans["gen"].what.endswith("its judge costs about 120 at most")
    assert not plans["gen"].needs_model
    assert plans["dpo"].rows == 8
    here = run_of(tmp_path, "http://h/v1", {**JUDGED, "teacher": "base", "score": {"judge": {"model": "base"}}})
    one = {item.name: item for item in plan(here, {}, Rates(1e12, 1e10))}["gen"]
    without = run_of(tmp_path, "http://h/v1", {"teacher": "base", "opposites": JUDGED["opposites"]})
    other = {item.name: item for item in plan(without, {}, Rates(1e12, 1e10))}["gen"]
    assert one.seconds is not None
    assert other.seconds is not None
    assert one.seconds > 2 * other.seconds
