"""`kubealign compare`: two finished evaluations, row by row; what is not the same is refused or left out, and said."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from sacrebleu.metrics import BLEU

from alignment.artifacts import Manifest, Store
from alignment.config import Evaluate
from alignment.evaluation.answers import Answers
from alignment.evaluation.measuring import answer_line, measure_all
from alignment.evaluation.metrics import difference_ci
from alignment.evaluation.results import Question, Table, question_of, without_nan
from alignment.pipeline import execute
from alignment.records import Record
from tests import small
from tests.cli.conftest import Call
from tests.evaluation import harness_tasks

KEYS = {"first": "evaluate-00000000000a", "second": "evaluate-00000000000b"}
METRICS = ("exact_match", "f1", "bleu", "perplexity")


def asked(count: int = 12, reference: str = "the boat of number {} is red and old") -> list[Question]:
    return [question_of(Record(f"t-{n}", "prompt-completion", [{"role": "user", "content": f"Which is {n}?"}],
                               reference.format(n))) for n in range(count)]


def publish(
    name: str, questions: list[Question], says: dict[str, Callable[[int], str]], *, tokens: int = 9, revision: int = 2,
    inputs: dict[str, str] | None = None, **keys: Any,
) -> None:
    """An evaluate artifact in the store `runs`, its files written by the stage's own functions."""
    stage = Evaluate(name="eval", rows="seed/test", models=tuple(says), bootstrap=100, **{"metrics": METRICS, **keys})
    numbered = list(enumerate(questions))
    answered = {model: Answers({q.id: {"text": text(n), "finished": True, "tokens": 5} for n, q in numbered},
                               {q.id: (-float(tokens + n + len(model)), tokens) for n, q in numbered})
                for model, text in says.items()}
    said = {model: {id_: (one["text"], True) for id_, one in own.answers.items()} for model, own in answered.items()}
    numbers, counts = measure_all(stage, questions, said, {}, answered)
    lines = [answer_line(q, stage, said, numbers, counts, answered) for q in questions]
    publish_files(name, {"answers.jsonl": map(without_nan, lines),
                         "results.json": [Table(stage, questions, numbers, counts, seed=0).results()]},
                  stage.model_dump(mode="json"), inputs=inputs or {}, parts={"revisions": {"evaluate": revision}})


def publish_files(name: str, files: dict[str, Iterable[Any]], config: dict[str, Any], **more: Any) -> None:
    """An evaluate artifact of these files, a line each of what is given."""
    folder = Store("runs").workdir(KEYS[name]) / "out"
    folder.mkdir(parents=True)
    for file, lines in files.items():
        (folder / file).write_text("".join(json.dumps(line) + "\n" for line in lines))
    manifest = Manifest(key=KEYS[name], digest="0" * 64, stage="eval", kind="evaluate", files={}, config=config,
                        started="2026-01-02T03:04:05Z", finished="2026-01-02T03:14:05Z", seconds=1.0,
                        **{"inputs": {}, **more})
    with Store("runs").lease(KEYS[name]) as lease:
        Store("runs").publish(manifest, folder, lease)


def right(n: int) -> str:
    return f"The boat of number {n} is red and old."


def half(n: int) -> str:
    return right(n) if n % 2 else "I do not know which boat it is"


def told(call: Call, *more: str) -> dict[str, Any]:
    said = call("compare", KEYS["first"], KEYS["second"], "--json", *more)
    assert said.code == 0, said.err
    found: dict[str, Any] = json.loads(said.out)
    return found


def test_differences_are_paired_and_those_of_the_rows(call: Call) -> None:
    publish("first", asked(), {"base": half, "sft": half})
    publish("second", asked(), {"base": half, "sft": right})
    found = told(call)
    assert (found["rows"], found["only_first"], found["only_second"], found["left_out"]) == (12, 0, 0, {})
    exact = found["metrics"]["exact_match"]
    assert (exact["first"], exact["second"], exact["won"], exact["tied"], exact["lost"]) == (0.5, 1, 6, 6, 0)
    wanted = difference_ci([1.0] * 12, [0.0, 1.0] * 6, share=True)
    assert (exact["difference"]["value"], exact["difference"]["low"]) == pytest.approx(wanted[:2])
    texts = [[half(n) for n in range(12)], [right(n) for n in range(12)]]
    references = [[q.reference or "" for q in asked()]]
    scores = [BLEU().corpus_score(said, references).score for said in texts]
    bleu = found["metrics"]["bleu"]
    assert [bleu["first"], bleu["second"]] == pytest.approx(scores)
    assert bleu["difference"]["value"] == pytest.approx(scores[1] - scores[0])
    assert bleu["difference"]["low"] <= bleu["difference"]["value"] <= bleu["difference"]["high"]
    assert found["metrics"]["perplexity"]["difference"]["value"] == 0
    said = call("compare", KEYS["first"], KEYS["second"], "--rows", "2", "--by", "f1")
    assert "Exact match" in said.out
    assert "better" in said.out
    assert "2 of 6 rows whose f1 changed" in said.out
    assert "A: I do not know which boat it is" in said.out


def test_two_models_of_one_evaluation_compare_and_a_model_with_itself_does_not(call: Call) -> None:
    publish("first", asked(), {"base": half, "sft": right})
    key = KEYS["first"]
    said = call("compare", f"{key}:base", f"runs/artifacts/{key}", "--json")
    assert json.loads(said.out)["metrics"]["exact_match"]["won"] == 6
    perplexity = json.loads(said.out)["metrics"]["perplexity"]
    assert perplexity["first"] > perplexity["second"]
    assert perplexity["difference"]["value"] < 0
    assert (perplexity["better"], perplexity["won"], perplexity["lost"]) == ("lower", 12, 0)
    again = call("compare", key, f"{key}:sft")
    assert again.code == 2
    assert "with itself" in again.err
    assert "one of base, sft" in call("compare", f"{key}:none", key).err


def test_rows_that_only_one_has_are_left_out_and_counted(call: Call) -> None:
    publish("first", asked(12), {"sft": half})
    publish("second", asked(9)[1:], {"sft": right})
    found = told(call)
    assert (found["rows"], found["only_first"], found["only_second"]) == (8, 4, 0)
    assert set(found["metrics"]["f1"]["values"]) == {f"t-{n}" for n in range(1, 9)}
    assert "! 4 rows only A has are left out" in call("compare", *KEYS.values()).out


@pytest.mark.parametrize(("other", "part"), [
    (asked(reference="the boat {}"), "reference"),
    ([question_of(Record(q.id, "prompt-completion", [{"role": "user", "content": "Another"}], q.reference))
      for q in asked()], "prompt"),
])
def test_one_id_on_two_different_rows_is_refused_with_both(call: Call, other: list[Question], part: str) -> None:
    publish("first", asked(), {"sft": right})
    publish("second", other, {"sft": right})
    said = call("compare", *KEYS.values())
    assert said.code == 2
    assert f"12 of 12 rows have one id and two {part}s" in said.err
    assert "row t-0" in said.err
    assert ("Another" if part == "prompt" else "'the boat 0'") in said.err
    assert ("Which is 0?" if part == "prompt" else "of number 0") in said.err


def test_no_row_in_common_is_refused(call: Call) -> None:
    publish("first", asked(3), {"sft": right})
    publish("second", asked(6)[3:], {"sft": right})
    said = call("compare", *KEYS.values())
    assert said.code == 2
    assert "no row in common" in said.err


@pytest.mark.parametrize(("keys", "left_out"), [
    ({"language": "de"}, {"exact_match", "f1"}), ({"answer_pattern": "(?P<answer>.*)"}, {"exact_match", "f1"}),
    ({"language": "zh"}, {"exact_match", "f1", "bleu"}), ({"tokens": 10}, {"perplexity"}),
    ({"revision": 1}, {"exact_match", "f1", "bleu"}),
])
def test_what_was_measured_by_other_rules_is_left_out_and_said(
    call: Call, keys: dict[str, Any], left_out: set[str]
) -> None:
    publish("first", asked(), {"sft": half})
    publish("second", asked(), {"sft": right}, **keys)
    found = told(call)
    assert set(found["left_out"]) - {"bleu"} == left_out - {"bleu"}
    assert ("bleu" in found["left_out"]) >= ("bleu" in left_out)
    assert not set(found["left_out"]) & set(found["metrics"])
    assert "is left out: " in call("compare", *KEYS.values()).out
    refused = call("compare", *KEYS.values(), "--by", sorted(left_out)[0])
    assert refused.code == 2
    assert sorted(left_out)[0] in refused.err


def test_a_number_that_a_row_has_on_one_side_alone_takes_no_part(call: Call) -> None:
    publish("first", asked(), {"sft": right})
    publish("second", asked(), {"sft": right})
    file = Path("runs/artifacts", KEYS["second"], "answers.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines[:3]:
        line["answers"]["sft"] |= {"f1": None, "counts": {"bleu": [None] * 10}}
    text = "".join(json.dumps(line) + "\n" for line in lines)
    manifest = json.loads((file.parent / "manifest.json").read_text())
    manifest["files"]["answers.jsonl"]["size"] = len(text)
    file.write_text(text)
    (file.parent / "manifest.json").write_text(json.dumps(manifest))
    found = told(call)
    assert len(found["metrics"]["f1"]["values"]) == 9
    assert found["metrics"]["f1"]["difference"]["dropped"] == 3
    assert found["metrics"]["perplexity"]["difference"]["dropped"] == 3
    assert math.isclose(found["metrics"]["bleu"]["difference"]["value"], 0, abs_tol=1e-9)


@pytest.mark.slow
def test_evaluations_of_two_runs_compare_by_their_files(call: Call, tmp_path: Path) -> None:
    """Real ones, of which one names its metrics and draws its answers: each side has its own manifest's numbers."""
    stage = {"name": "eval", "kind": "evaluate", "models": ["base"], "rows": "data/test", "bootstrap": 100}
    runs = {"one": small.run(tmp_path / "one", {**stage, "sampling": {"max_new_tokens": 6}}, name="one"),
            "two": small.run(tmp_path / "two", {**stage, "metrics": ["f1", "chrf", "perplexity"], "sampling": {
                "max_new_tokens": 12, "temperature": 1.0}}, name="two")}
    made = {}
    for name, run in runs.items():
        artifact = execute(run).artifacts["eval"]
        assert artifact is not None
        made[name] = artifact.manifest.metrics
        Path(f"{name}.yaml").write_text(yaml.safe_dump(run.model_dump(mode="json")))
    said = call("compare", "one.yaml", "two.yaml:eval:base", "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert set(found["metrics"]) == {"f1", "perplexity", "finished", "words"}
    assert (found["rows"], found["only_first"], found["only_second"]) == (8, 0, 0)
    for side, name in (("first", "one"), ("second", "two")):
        for metric in ("f1", "perplexity"):
            assert found["metrics"][metric][side] == pytest.approx(made[name][f"base.{metric}"])
    assert found["metrics"]["words"]["first"] == pytest.approx(made["one"]["base.words"])
    assert "no evaluation of this name" in call("compare", "one.yaml:none", "two.yaml").err


# --- tasks of lm-evaluation-harness, and judges ---


@pytest.mark.slow
def test_tasks_of_the_harness_compare_document_by_document(call: Call, tmp_path: Path) -> None:
    """As the stage does within itself, where both models stand in one; what is asked otherwise is left out."""
    second = {**small.OTHER, "name": "second"}
    choices = {"doc_to_choice": ["red", "tan"]}  # of one length, so that the two models choose differently
    tasks = harness_tasks.write(tmp_path, choose=choices)
    both = {**harness_tasks.stage(tasks, "base", "second"), "name": "both"}
    alone = {**harness_tasks.stage({**tasks, "limit": 9}, "second"), "name": "alone"}
    one_shot = {"choose": {**choices, "fewshot_split": "test", "num_fewshot": 1}}
    shown_one = {**harness_tasks.stage(harness_tasks.write(tmp_path / "other", **one_shot), "second"), "name": "shots"}
    made = execute(small.run(tmp_path, second, both, alone, shown_one)).artifacts
    both_, alone_, shots_ = (artifact for name in ("both", "alone", "shots") if (artifact := made[name]) is not None)
    store = ("--store", both_.store.url, "--json")

    call("--version")  # what the stages printed is read here
    found = json.loads(call("compare", f"{both_.key}:base", both_.key, *store).out)
    results = json.loads((both_.path() / "results.json").read_text())
    [gains] = results["gains"]
    for task, metrics in gains["tasks"].items():
        for metric, gain in metrics.items():
            own = found["metrics"][f"{task}.{metric}"]
            assert own["difference"]["value"] == pytest.approx(gain["value"], abs=1e-12)
            assert (own["better"], len(own["values"])) == (results["tasks"][task]["better"][metric], 12)
            assert own["first"] == pytest.approx(results["measured"]["base"][task][metric]["value"])
    assert {"choose.acc", "next.perplexity"} <= found["metrics"].keys() | found["left_out"].keys()
    assert all(why == "it is no mean over documents" for why in found["left_out"].values())
    changed = next(name for name, one in found["metrics"].items() if one["won"] + one["lost"])
    assert any(name.startswith("text.") for name in found["left_out"]), "a perplexity of whole texts is no mean"

    found = json.loads(call("compare", both_.key, alone_.key, *store).out)
    assert (found["rows"], found["only_first"], found["only_second"]) == (36, 12, 0)
    assert all(one["tied"] == 9 and one["difference"]["value"] == 0 for one in found["metrics"].values())

    found = json.loads(call("compare", both_.key, shots_.key, *store).out)
    assert "num_fewshot is 0 and 1" in found["left_out"]["choose.acc"]
    assert not any(name.startswith("choose.") for name in found["metrics"])
    assert found["metrics"]["say.exact_match/first-word"]["tied"] == 12

    shown = call("compare", f"{both_.key}:base", both_.key, *store[:2], "--rows", "1", "--by", changed)
    assert shown.code == 0, shown.err
    assert "asked: " in shown.out


def of_judges(name: str, verdicts: dict[str, list[str | None]], labels: list[str], answer: str = "red") -> None:
    """A judges' artifact in the store `runs`, of the lines that the stage writes."""
    lines = [{"id": f"p-{n}", "prompt": [{"role": "user", "content": f"Which {n}?"}], "completion": answer,
              "rejected": "blue", "label": label, "judges": {judge: {"verdict": said[n]}
                                                             for judge, said in verdicts.items()}}
             for n, label in enumerate(labels)]
    publish_files(name, {"pairs.jsonl": lines, "results.json": [{}]}, {"judges": dict.fromkeys(verdicts)})


def test_judges_compare_pair_by_pair(call: Call) -> None:
    labels = ["completion", "completion", "completion", "tie", "completion"]
    of_judges("first", {"old": ["completion", "rejected", "tie", "completion", None]}, labels)
    of_judges("second", {"old": ["tie"] * 5, "new": ["completion", "completion", "tie", "tie", "completion"]}, labels)
    found = told(call)
    right = found["metrics"]["accuracy"]
    assert right["values"] == {"p-0": [1, 1], "p-1": [0, 1], "p-2": [0.5, 0.5]}
    assert (right["won"], right["tied"], right["lost"]) == (1, 2, 0)
    assert found["metrics"]["label_agreement"]["values"] == {"p-0": [1, 1], "p-1": [0, 1], "p-2": [0, 0], "p-3": [0, 1]}
    shown = call("compare", KEYS["first"], f"{KEYS['second']}:old", "--rows", "1")
    assert "1 of 2 rows whose accuracy changed" in shown.out
    assert "rejected: blue" in shown.out
    assert "no judge of this name" in call("compare", KEYS["first"], f"{KEYS['second']}:none").err


def test_judges_of_other_answers_are_refused(call: Call) -> None:
    of_judges("first", {"a": ["completion"]}, ["completion"])
    of_judges("second", {"a": ["completion"]}, ["completion"], answer="green")
    said = call("compare", *KEYS.values())
    assert (said.code, "one id and two completions" in said.err) == (2, True)


def test_evaluations_of_other_kinds_are_refused(call: Call) -> None:
    of_judges("first", {"a": ["completion"]}, ["completion"])
    publish("second", asked(), {"sft": right})
    said = call("compare", *KEYS.values())
    assert said.code == 2
    assert "different kinds" in said.err
