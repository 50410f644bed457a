"""Judges held to pairs: the table is worked out again from what each judge said; nothing known of a pair is shown."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from alignment.artifacts import Artifact
from alignment.cli.check import mistakes
from alignment.config import EvaluatePairs, Run, load_run
from alignment.errors import ConfigErrors, DataError, KubeAlignError, StageError
from alignment.inference import judging
from alignment.inference.requests import Request
from alignment.pipeline import execute
from alignment.pipeline.keys import keys
from alignment.planner.estimate import Rates
from alignment.planner.plan import plan
from alignment.records import Record
from alignment.reference.aims import made_by as made_by_stage
from alignment.report import render
from alignment.report.tables import judges_table
from tests import small
from tests.generation.scripted import Scripted

THEIRS = {"name": "theirs", "kind": "import", "role": "reward", "model": small.BASE["model"], "dtype": "float32"}
SEEN: list[Record] = []


def longer(record: Record, answer: str) -> float:
    """Prefers the longer answer; undefined of one row."""
    SEEN.append(record)
    return math.nan if record.id.endswith("p3") else float(len(answer))


def breaks(record: Record, answer: str) -> float:
    raise ZeroDivisionError("of my own making")


def rated(folder: Path, count: int = 12) -> dict[str, Any]:
    """An import of judged pairs: the right answer is the first, in one of six a tie; annotator3 always says 1."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "rated.jsonl"
    rows = [{"idx": f"p{n}", "instruction": f"What is the number of the {small.THINGS[n % 8]} {n * 7919}?", "input": "",
             "response1": f"It is {n}." + " Quite so." * (n % 3), "response2": "Who knows, said the man." + "!" * n,
             "annotator1": 0 if n % 6 == 5 else 1, "annotator2": 0 if n % 6 == 5 else 1 + (n % 4 == 0),
             "annotator3": 1, "meta": {"section": "Chat" if n % 2 else "Safety"}, "kind": f"k{n % 2}"}
            for n in range(count)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {"name": "rated", "kind": "import", "data": [{"path": str(file), "format": "pandalm", "name": "r"}],
            "ties": "keep", "split": {"by": "ratio", "ratios": {"test": 1.0}}}


def says(request: Request) -> tuple[str, bool]:
    """As a judge: goes by what stands in the answers, likes the first place for the net, and mumbles of the gate."""
    text = request.prompt[-1]["content"]
    if "gate" in text:
        return "Hard to say.", True
    if "Answer B:" not in text:
        return f"Score: {9 if 'It is' in text.partition('Answer:')[2] else 3}", True
    first = text.partition("Answer A:\n")[2].partition("\n\n")[0]
    return f"Verdict: {'A' if 'net' in text or 'It is' in first else 'B'}", True


JUDGES = {"theirs": {"model": "theirs"}, "longer": {"function": f"{__name__}:longer"},
          "talker": {"judge": {"model": "base", "mode": "compare"}},
          "marker": {"judge": {"model": "base"}, "function": "brevity", "function_weight": 0.5}}


def run_of(folder: Path, judges: dict[str, Any], *more: dict[str, Any], rows: str = "rated/test", **stage: Any) -> Run:
    last = {"name": "eval", "kind": "evaluate", "judges": judges, "rows": rows, "bootstrap": 100, "batch_size": 4}
    return small.run(folder, rated(folder), THEIRS, *more, {**last, **stage})


def made_by(run: Run) -> Artifact:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judging, "open_engine", lambda context, name: Scripted(says))
        artifact = execute(run).artifacts["eval"]
    assert artifact is not None
    return artifact


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, dict[str, Any], list[dict[str, Any]], Run]:
    run = run_of(tmp_path_factory.mktemp("pairs"), JUDGES)
    SEEN.clear()
    artifact = made_by(run)
    results = json.loads((artifact.path() / "results.json").read_text(encoding="utf-8"))
    lines = (artifact.path() / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    return artifact, results, [json.loads(line) for line in lines], run


def side(one: dict[str, Any]) -> str | None:
    a, b = one["completion"], one["rejected"]
    return None if a is None or b is None else "tie" if a == b else "completion" if a > b else "rejected"


def test_accuracy_is_the_share_of_preferences_that_a_judge_scores_right(finished: Any) -> None:
    artifact, results, lines, _ = finished
    assert (results["rows"], results["preferences"], results["ties"]) == (12, 10, 2)
    for name in JUDGES:
        said = [side(line["judges"][name]) for line in lines if line["label"] == "completion"]
        known = [{"completion": 1.0, "tie": 0.5, "rejected": 0.0}[one] for one in said if one is not None]
        assert artifact.manifest.metrics[f"{name}.accuracy"] == pytest.approx(sum(known) / len(known))
        line = results["judges"][name]
        assert line["accuracy"]["low"] <= line["accuracy"]["value"] <= line["accuracy"]["high"]
        assert line["right"] + line["tied"] + line["wrong"] == len(known)
        assert [one["verdict"] for one in (row["judges"][name] for row in lines)] == [
            side(row["judges"][name]) for row in lines]
    assert artifact.manifest.rows.written == {"pairs": 12}


def test_no_judge_is_shown_which_answer_was_chosen(finished: Any) -> None:
    assert SEEN
    assert all(record.completion is None and record.rejected is None for record in SEEN)


def test_a_judge_is_asked_in_both_orders_and_what_it_cannot_say_is_counted(finished: Any) -> None:
    artifact, results, lines, _ = finished
    place = results["judges"]["talker"]["place"]
    at_gate = [line for line in lines if "gate" in line["prompt"][0]["content"]]
    at_net = [line for line in lines if "net" in line["prompt"][0]["content"]]
    assert place["rows"] == 12 - len(at_gate)
    assert place["unread"] == {"no-verdict": len(at_gate)}
    assert place["prefers_first"] == pytest.approx(len(at_net) / place["rows"])
    assert artifact.manifest.metrics["talker.consistent"] == pytest.approx(1 - len(at_net) / place["rows"])
    assert all(side(line["judges"]["talker"]) == "tie" for line in at_net)
    assert {(line["judges"]["talker"]["said"], line["judges"]["talker"]["swapped"]) for line in at_net} == {
        ("first", "first")}
    assert results["judges"]["talker"]["unread"] == {"no-verdict": len(at_gate)}
    assert results["judges"]["marker"]["unread"] == {"no-score": len(at_gate)}
    assert artifact.manifest.facts["judges"]["talker"]["requests"] == 24
    assert artifact.manifest.facts["judges"]["marker"]["refused"] == {"no-score": 2 * len(at_gate)}
    assert artifact.manifest.facts["engines"] == {"base": [{"engine": "scripted"}]}


def test_a_judges_sum_is_its_parts_and_a_row_that_a_function_cannot_judge_is_counted(finished: Any) -> None:
    _, results, lines, _ = finished
    assert results["judges"]["longer"]["unread"] == {next(iter(results["judges"]["longer"]["unread"])): 1}
    assert results["judges"]["longer"]["read"] == pytest.approx(11 / 12)
    for line in lines:
        own = line["judges"]["marker"]
        if own["completion"] is not None:
            words = len(line["completion"].split())
            assert own["completion"] == pytest.approx(9 + 0.5 * (1 - (words - 1) / 63))


def test_only_a_reward_model_alone_is_calibrated(finished: Any) -> None:
    artifact, results, lines, _ = finished
    assert [name for name, line in results["judges"].items() if line["calibration"]] == ["theirs"]
    margins = [line["judges"]["theirs"]["margin"] for line in lines if line["label"] == "completion"]
    assert artifact.manifest.metrics["theirs.loss"] == pytest.approx(
        sum(math.log1p(math.exp(-one)) for one in margins) / len(margins))
    assert sum(one["rows"] for one in results["judges"]["theirs"]["calibration"]["bins"]) == len(margins)


def test_judges_agree_with_each_other_and_with_people_as_their_verdicts_do(finished: Any) -> None:
    artifact, results, lines, _ = finished
    metrics = artifact.manifest.metrics
    assert len(results["agreement"]) == 6
    both = [(side(line["judges"]["longer"]), side(line["judges"]["theirs"])) for line in lines]
    known = [pair for pair in both if None not in pair]
    assert metrics["theirs_and_longer.agreement"] == pytest.approx(sum(a == b for a, b in known) / len(known))
    for name in ("annotator1", "annotator2", "annotator3"):
        votes = [(side(line["judges"]["talker"]), line["votes"][name]) for line in lines]
        known = [pair for pair in votes if pair[0] is not None]
        assert results["judges"]["talker"]["annotators"][name]["agreement"] == pytest.approx(
            sum(a == b for a, b in known) / len(known))
    assert [one["rows"] for one in results["annotators"]] == [12, 12, 12]
    assert {line["label"] for line in lines} == {"completion", "tie"}
    assert metrics["theirs.section_mean"] == pytest.approx(
        sum(one["accuracy"] for one in results["judges"]["theirs"]["sections"].values()) / 2)
    assert {kind: one["rows"] for kind, one in results["judges"]["theirs"]["by_kind"].items()} == {"k0": 6, "k1": 4}


def test_aims_may_name_what_is_made_of_each_judge_and_nothing_else(finished: Any) -> None:
    artifact, _, _, run = finished
    named = set(made_by_stage(run.stage("eval")))
    assert set(artifact.manifest.metrics) == named
    assert "theirs.ece" in named
    assert not {"longer.ece", "theirs.consistent", "marker.prefers_first"} & named


def test_the_page_shows_judges_with_pictures(finished: Any) -> None:
    artifact, _, _, run = finished
    page = render(run, {stage.name: artifact if stage.name == "eval" else None for stage in run.stages}, None, "")
    for words in ("eval: how sure theirs is, and how often right", "eval: margins of longer", "Which place a judge",
                  "Agreement with people", "annotator3", "Agreement with each other", "By section",
                  "is wrong by most", "no-score", "theirs is right on 0."):
        assert words in page, words
    assert page.count("how sure, sigmoid of the margin") == 1
    shown = Console(width=100, record=True, file=io.StringIO())
    shown.print(judges_table(run, {"eval": artifact}))
    lines = shown.export_text().splitlines()
    assert all(len(line) <= 100 for line in lines)
    assert sum(line.strip().startswith(name) for name in JUDGES for line in lines) == len(JUDGES)
    unmade = Console(record=True, file=io.StringIO())
    unmade.print(judges_table(run, {}))
    assert "not finished" in unmade.export_text()


def test_an_interrupted_evaluation_goes_on_and_says_the_same(
    tmp_path: Path, finished: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(tmp_path, JUDGES)
    monkeypatch.setattr(judging, "open_engine", lambda context, name: Scripted(says, stop_after=9))
    with pytest.raises(KeyboardInterrupt):
        execute(run)
    monkeypatch.undo()
    again = made_by(run)
    assert (again.path() / "pairs.jsonl").read_bytes() == (finished[0].path() / "pairs.jsonl").read_bytes()
    assert again.manifest.metrics == finished[0].manifest.metrics


# --- what a judge has learned, and what is refused ---


def test_a_pair_that_the_reward_model_has_learned_is_refused_or_left_out(tmp_path: Path) -> None:
    rm = small.train("rm", "reward", rows=["data/train"])
    with pytest.raises(ConfigErrors, match="these rows are read by stage rm"):
        run_of(tmp_path / "a", {"rm": {"model": "rm"}}, rm, rows="data/train")
    own = json.loads((tmp_path / "a" / "rows.jsonl").read_text(encoding="utf-8").splitlines()[0])
    other = tmp_path / "other.jsonl"
    new = {"id": "new", "passage": "The moon is a cheese of the sea, they say.", "question": "What is the moon?",
           "answer": "a cheese", "rejected": "a stone"}
    other.write_text("".join(json.dumps(row) + "\n" for row in (
        {**own, "id": "copy", "group": "x"}, new, {**new, "id": "bare", "question": "And?", "rejected": None})))
    data = {"name": "more", "kind": "import", "data": [{"path": str(other), "format": "passage-qa"}],
            "split": {"by": "ratio", "ratios": {"all": 1.0}}}
    judges = {"rm": {"model": "rm"}}
    rm["rows"] = ["data/train", "data/dev", "data/test"]
    with pytest.raises(DataError, match="1 of 3 test rows were seen before"):
        execute(run_of(tmp_path / "b", judges, rm, data, rows="more/all"))
    artifact = execute(run_of(tmp_path / "b", judges, rm, data, rows="more/all", overlap="drop")).artifacts["eval"]
    assert artifact is not None
    assert artifact.manifest.rows.written == {"pairs": 1}
    assert artifact.manifest.rows.dropped == {"seen before (same-prompt)": 1,
                                              "prompt-completion is no preference": 1}
    assert artifact.manifest.metrics["rm.accuracy"] in (0.0, 1.0)


@pytest.mark.parametrize(("judges", "error", "problem"), [
    ({"mine": {"function": f"{__name__}:breaks"}}, DataError, "ZeroDivisionError: of my own making"),
    ({"f1": {"function": "token_f1"}}, StageError, "judge f1 could judge no pair"),
])
def test_a_judge_that_can_judge_nothing_ends_the_stage(
    tmp_path: Path, judges: dict[str, Any], error: type[KubeAlignError], problem: str
) -> None:
    with pytest.raises(error, match=problem) as failed:
        made_by(run_of(tmp_path, judges))
    assert "judges." in str(failed.value.where)


def found(folder: Path, judges: dict[str, Any], **stage: Any) -> list[str]:
    """What `check` says, one text per finding."""
    run, file = run_of(folder, judges, **stage), folder / "run.yaml"
    file.write_text(yaml.safe_dump(run.model_dump(mode="json", exclude_none=True)), encoding="utf-8")
    return [str(one) for one in mistakes(load_run(str(file)), str(file), None)]


@pytest.mark.parametrize(("judges", "rows", "problem"), [
    (JUDGES, "rated/test", None), ({"a": {"function": "brevity"}}, "data/test", None),
    ({"f1": {"function": "token_f1"}}, "data/test", "token_f1 cannot score the answers of a pair"),
    ({"a": {"function": "nobody.knows:it"}}, "rated/test", "judges.a.function"),
    ({"a": {"judge": {"model": "base", "prompt": "none.txt"}}}, "rated/test", "judges.a.judge.prompt"),
])
def test_check_knows_what_a_judge_cannot_do(
    tmp_path: Path, judges: dict[str, Any], rows: str, problem: str | None
) -> None:
    texts = found(tmp_path, judges, rows=rows)
    assert len(texts) == (problem is not None), texts
    assert problem is None or problem in texts[0]


@pytest.mark.parametrize(("stage", "problem"), [
    ({"judges": {}}, "judges"), ({"judges": {"a": {}}}, "give model, function or judge"),
    ({"judges": {"a": {"model": "base"}}}, "needs a stage of method reward"),
    ({"judges": {"a": {"function": "brevity", "function_weight": 0.0}}}, "every score is 0"),
    ({"judges": {"a": {"function": "brevity"}}, "models": ["base"]}, "models"),
    ({"judges": {"A b": {"function": "brevity"}}}, "judges"),
])
def test_a_config_that_can_measure_nothing_is_refused(tmp_path: Path, stage: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigErrors) as error:
        run_of(tmp_path, **{"judges": {}, **stage})
    assert problem in str(error.value)


def test_a_rubric_is_part_of_the_digest_and_its_path_is_not(tmp_path: Path) -> None:
    def key(text: str, name: str) -> str:
        (tmp_path / name).write_text(text, encoding="utf-8")
        run = run_of(tmp_path, {"a": {"judge": {"model": "base", "prompt": str(tmp_path / name)}}})
        stage = run.stage("eval")
        assert isinstance(stage, EvaluatePairs)
        assert "elsewhere" in stage.relocated({str(tmp_path / name): "elsewhere"}).model_dump_json()
        assert [(item.place, item.travels) for item in stage.sources()] == [(("judges", "a", "judge", "prompt"), True)]
        return keys(run)["eval"].key

    one = key("{prompt} {answer}", "a.txt")
    assert one.startswith("evaluate-pairs-")
    assert one == key("{prompt} {answer}", "b.txt")
    assert one != key("{prompt}: {answer}", "b.txt")


def test_a_plan_counts_every_judge(tmp_path: Path) -> None:
    def of(judges: dict[str, Any]) -> Any:
        return {item.name: item for item in plan(run_of(tmp_path, judges), {}, Rates(1e12, 1e10))}["eval"]

    plain, model, whole = of({"a": {"function": "brevity"}}), of({"a": {"model": "theirs"}}), of(JUDGES)
    assert (plain.needs_model, plain.tokens, plain.seconds) == (False, 0, 0)
    assert model.needs_model
    assert 0 < model.tokens < whole.tokens
    assert 0 < model.seconds < whole.seconds
    assert whole.memory.total >= model.memory.total
