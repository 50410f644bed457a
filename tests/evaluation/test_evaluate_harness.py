"""Tasks of lm-evaluation-harness: our answers are those of the harness's own class for transformers; what cannot be
asked is refused; a killed stage goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import alignment.training  # noqa: F401 - before trl
from alignment.artifacts import Artifact
from alignment.cli.check import mistakes
from alignment.config import EvaluateHarness, Run
from alignment.errors import ConfigError, DataError, KubeAlignError
from alignment.evaluation.harness import load
from alignment.evaluation.harness_asked import Conversation, HarnessBatch
from alignment.inference import embedded_plain
from alignment.pipeline import execute
from alignment.pipeline.keys import keys
from alignment.reference.aims import made_by
from alignment.report import render
from alignment.report.tables import harness_table
from tests import small
from tests.evaluation.harness_tasks import TASKS, stage, write

SFT = small.train("sft", epochs=1)


def made(run: Run) -> dict[str, Artifact]:
    return {name: artifact for name, artifact in execute(run).artifacts.items() if artifact is not None}


def checked(run: Run, folder: Path) -> list[str]:
    """What `kubealign check` finds."""
    file = folder / "run.yaml"
    file.write_text(run.model_dump_json(exclude_none=True), encoding="utf-8")
    return [str(one) for one in mistakes(run, str(file), None)]


def results(artifact: Artifact) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((artifact.path() / "results.json").read_text(encoding="utf-8"))
    return found


def samples(artifact: Artifact, model: str) -> dict[str, dict[str, Any]]:
    lines = (artifact.path() / "samples.jsonl").read_text(encoding="utf-8").split("\n")
    return {line["id"]: line for line in map(json.loads, filter(None, lines)) if line["model"] == model}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, Artifact], Path]:
    """A base model and one with an adapter, measured by all tasks; and where these lie."""
    folder = tmp_path_factory.mktemp("harness")
    run = small.run(folder, SFT, stage(write(folder), "base", "sft"))
    return run, made(run), folder


def theirs(artifact: Artifact, base: Artifact, folder: Path, cache: Path, **options: Any) -> dict[str, Any]:
    """What the harness's own command makes of a model folder, with its own class for transformers."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    adapter = artifact.key != base.key
    model = HFLM(pretrained=str(base.path() / "model"), dtype="float32", device="cpu", batch_size=3,
                 **({"peft": str(artifact.path() / "model")} if adapter else {}), **options)
    found: dict[str, Any] = simple_evaluate(
        model=model, tasks=list(TASKS), bootstrap_iters=100, log_samples=True,
        task_manager=TaskManager(include_path=str(folder / "tasks"), include_defaults=False))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("model", ["base", "sft"])
def test_answers_and_metrics_are_those_of_the_harness_itself(
    measured: tuple[Run, dict[str, Artifact], Path], model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISABLE_MULTIPROC", "1")
    _, artifacts, folder = measured
    bench = artifacts["bench"]
    length = artifacts["base"].manifest.facts["context_length"]
    expected = theirs(artifacts[model], artifacts["base"], folder, tmp_path, max_length=length)
    own = samples(bench, model)
    for task, told in expected["samples"].items():
        assert len(told) == 12
        for one in told:
            mine = own[f"{task}/{one['doc_id']}"]
            for ours, given in zip(mine["answers"], one["resps"], strict=True):
                if task == "say":
                    assert ours == given
                elif task == "text":
                    assert ours == pytest.approx(given, abs=1e-4)
                else:
                    assert ours[0][0] == pytest.approx(given[0][0], abs=1e-4)
                    assert ours[0][1] == given[0][1]
    assert any(line["answers"][0][0] for id_, line in own.items() if id_.startswith("say/"))
    measures = results(bench)["measured"][model]
    for task, metrics in measures.items():
        for metric, entry in metrics.items():
            name, _, kind = metric.partition("/")
            given = expected["results"][task]
            assert entry["value"] == pytest.approx(given[f"{name},{kind or 'none'}"], rel=1e-5)
            error = given[f"{name}_stderr,{kind or 'none'}"]
            assert entry["stderr"] is None if error == "N/A" else entry["stderr"] == pytest.approx(error, rel=1e-4)
    assert set(measures) == set(TASKS)


def test_the_table_holds_what_the_lines_say(measured: tuple[Run, dict[str, Artifact], Path]) -> None:
    run, artifacts, _ = measured
    bench, table = artifacts["bench"], results(artifacts["bench"])
    metrics = bench.manifest.metrics
    for model in ("base", "sft"):
        rows = [line for line in samples(bench, model).values() if line["task"] == "choose"]
        assert metrics[f"{model}.choose.acc"] == pytest.approx(sum(line["metrics"]["acc"] for line in rows) / len(rows))
    gain = metrics["sft_vs_base.choose.acc_gain"]
    assert gain == pytest.approx(metrics["sft.choose.acc"] - metrics["base.choose.acc"])
    assert metrics["sft_vs_base.choose.acc_gain_low"] <= gain <= metrics["sft_vs_base.choose.acc_gain_high"]
    assert metrics["base.choose.acc_low"] <= metrics["base.choose.acc"] <= metrics["base.choose.acc_high"]
    assert "base.text.word_perplexity_low" not in metrics, "the harness gives no error for it"
    assert table["tasks"]["choose"] | {"config": ""} == {
        "documents": 12, "of": 12, "version": 1.5, "num_fewshot": 0, "output_type": "multiple_choice", "config": "",
        "better": {"acc": "higher", "acc_norm": "higher"}}
    assert bench.manifest.facts["lm_eval"] == table["lm_eval"]
    assert bench.manifest.facts["tasks"]["choose"]["config"] == table["tasks"]["choose"]["config"]
    known = made_by(run.stage("bench"))
    assert set(metrics) <= set(known)
    page, shown = render(run, artifacts, "run run.yaml", "today"), harness_table(run, artifacts)
    assert "Tasks of lm-evaluation-harness" in page
    assert "exact_match/first-word" in page
    assert shown is not None
    assert shown.row_count == 2 * sum(map(len, table["measured"]["base"].values()))


@pytest.mark.parametrize("chat", [False, True])
def test_a_killed_stage_asks_no_finished_batch_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chat: bool
) -> None:
    run = small.run(tmp_path, stage({**write(tmp_path), "apply_chat_template": chat}))
    make, asked = HarnessBatch.make, list[str]()

    def dies(self: HarnessBatch, items: Any) -> Any:
        if len(asked) >= 15:
            raise KeyboardInterrupt
        asked.extend(item.id for item in items)
        return make(self, items)

    with monkeypatch.context() as patch:
        patch.setattr(HarnessBatch, "make", dies)
        with pytest.raises(KeyboardInterrupt):
            execute(run)
    before = list(asked)
    asked.clear()
    monkeypatch.setattr(HarnessBatch, "make", lambda self, items: asked.extend(one.id for one in items)
                        or make(self, items))
    whole = made(run)["bench"]
    assert not set(before) & set(asked)
    assert len(before) + len(asked) == 12 * (2 + 1 + 1 + 1)
    elsewhere = made(small.run(tmp_path / "again", stage({**write(tmp_path), "apply_chat_template": chat})))["bench"]
    assert whole.manifest.metrics == elsewhere.manifest.metrics


def test_in_a_chat_template_ids_are_those_that_are_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from alignment.templates import encode_completion, stop_ids

    seen: list[tuple[list[int], list[int]]] = []
    plain = embedded_plain.EmbeddedPlain.likelihoods

    def told(self: Any, pairs: Any) -> Any:
        seen.extend(pairs)
        return plain(self, pairs)

    monkeypatch.setattr(embedded_plain.EmbeddedPlain, "likelihoods", told)
    harness = {**write(tmp_path, choose={"fewshot_split": "test"}), "tasks": ["choose"], "num_fewshot": 1, "limit": 2,
               "apply_chat_template": True, "system_instruction": "Be <|im_end|> brief."}
    bench = made(small.run(tmp_path, stage(harness)))
    tokenizer = embedded_plain.EmbeddedPlain(bench["base"], small.run(tmp_path).compute).tokenizer
    assert len(seen) == 4
    lines = samples(bench["bench"], "base")
    for line in lines.values():
        for (text, choice), _ in zip(line["requests"], range(2), strict=True):
            ids = next(before for before, _ in seen if tokenizer.decode(before) == text)
            assert ids.count(stop_ids(tokenizer)[-1]) >= 3, "the system's turn and two of the example end as turns do"
            assert choice[0] != " ", "the assistant's answer begins with its first word"
    question = [{"role": "user", "content": "Q: x\nA:"}]
    model = embedded_plain.EmbeddedPlain(bench["base"], small.run(tmp_path).compute)
    before, said = encode_completion(tokenizer, question, "red")  # type: ignore[arg-type]
    assert model.answer(question, "red") == (before, said[:-1])  # type: ignore[arg-type]


def test_both_models_are_shown_the_same_examples(tmp_path: Path) -> None:
    harness = {**write(tmp_path, choose={"fewshot_split": "test"}), "tasks": ["choose"], "num_fewshot": 2}
    bench = made(small.run(tmp_path, small.OTHER, stage(harness, "base", "other")))["bench"]
    one, other = ([line["requests"] for line in samples(bench, name).values()] for name in ("base", "other"))
    assert one == other
    assert len({requests[0][0].split("\nA:")[0] for requests in one}) > 1, "and not all documents the same ones"


def test_what_a_model_cannot_read_is_cut_at_the_left_and_counted(tmp_path: Path) -> None:
    long = {"doc_to_text": "{{ 'very long indeed ' * 900 }}{{question}}\nA:"}
    bench = made(small.run(tmp_path, stage({**write(tmp_path, choose=long, say=long), "tasks": ["choose", "say"],
                                            "limit": 2})))["bench"]
    assert bench.manifest.facts["cut"] == {"base": {"choose": 4, "say": 2}}


TASK = {"tasks": ["choose"]}


@pytest.mark.parametrize(("own", "asked", "problem"), [
    ({}, {"tasks": ["chose"]}, "perhaps choose"),
    ({"dataset_path": "aps/super_glue", "dataset_kwargs": None}, TASK, "nothing is fetched"),
    ({"unsafe_code": True}, TASK, "unsafe_code"),
    ({"dataset_kwargs": {"trust_remote_code": True}}, TASK, "trust_remote_code"),
    ({"dataset_kwargs": {"data_files": {"test": "nowhere.jsonl"}}}, TASK, "no file of this machine"),
    ({"dataset_kwargs": {"data_files": {"train": "nowhere.jsonl"}}}, TASK, "split test"),
    ({"custom_dataset": "utils.make"}, TASK, "custom_dataset"),
    ({"class": "utils.Own"}, TASK, "class of Python"),
    ({"metric_list": [{"metric": "rouge", "hf_evaluate": True}]}, TASK, "hf_evaluate"),
    ({"test_split": None}, TASK, "neither a test split"),
    ({"num_fewshot": 0}, {**TASK, "num_fewshot": 3}, "num_fewshot: 0"),
    ({"training_split": "train"}, {**TASK, "num_fewshot": 3}, "3 examples of split train"),
    ({"gen_prefix": "So"}, {**TASK, "apply_chat_template": True}, "gen_prefix"),
    ({"doc_to_image": "x"}, TASK, "images"),
    ({"include": "none.yaml"}, TASK, "not below the same folder"),
    ({"group": "all"}, {"tasks": ["all"]}, "group of tasks"),
    ({}, {**TASK, "include": "nowhere"}, "does not exist"),
])
def test_what_cannot_be_asked_is_said_before_anything_is_loaded(
    tmp_path: Path, own: dict[str, Any], asked: dict[str, Any], problem: str
) -> None:
    run = small.run(tmp_path, stage({**write(tmp_path, choose=own), **asked}))
    assert problem in "\n".join(checked(run, tmp_path))
    own_stage = run.stage("bench")
    assert isinstance(own_stage, EvaluateHarness)
    with pytest.raises(KubeAlignError) as error:
        load(own_stage.harness, tmp_path / "laid", "stage bench")
    assert problem in str(error.value)


def test_a_way_of_drawing_that_is_not_honoured_is_refused(tmp_path: Path) -> None:
    run = small.run(tmp_path, stage({**write(tmp_path, say={"generation_kwargs": {"until": ["x"], "num_beams": 4}}),
                                     "tasks": ["say"]}))
    with pytest.raises(ConfigError, match="not honoured"):
        execute(run)


def test_a_task_whose_code_fails_is_named(tmp_path: Path) -> None:
    harness = write(tmp_path, choose={"doc_to_text": "{{ question.nothing() }}"})
    with pytest.raises(DataError, match="task choose"):
        execute(small.run(tmp_path, stage({**harness, **TASK})))


def test_task_files_and_documents_are_part_of_the_digest_and_where_they_lie_is_not(tmp_path: Path) -> None:
    def key(folder: Path, **more: Any) -> str:
        harness = {**write(folder, **more.pop("own", {})), **TASK, **more}
        return keys(small.run(tmp_path, stage(harness)))["bench"].digest

    one = key(tmp_path / "a")
    moved = Path(shutil.copytree(tmp_path / "a", tmp_path / "moved"))
    data = {"choose": {"test": str(moved / "documents.jsonl")}}
    for more in ({}, {"data": data}):
        run = small.run(tmp_path, stage({**TASK, "include": str(moved / "tasks"), **more}))
        assert one == keys(run)["bench"].digest
    assert one != key(tmp_path / "b"), "task files that name other files say something else"
    assert one == key(tmp_path / "a", own={"say": {"repeats": 2}}), "a task that is not asked"
    assert one != key(tmp_path / "a", own={"choose": {"repeats": 2}})
    (tmp_path / "a" / "tasks" / "utils.py").write_text("X = 1\n", encoding="utf-8")
    assert one != key(tmp_path / "a"), "Python beside it, which it may import"
    run = small.run(tmp_path, stage({**TASK, "include": str(moved / "tasks"), "limit": 3}))
    assert one != keys(run)["bench"].digest
    (moved / "documents.jsonl").write_text('{"question": "?"}\n', encoding="utf-8")
    run = small.run(tmp_path, stage({**TASK, "include": str(moved / "tasks"), "data": data}))
    assert one != keys(run)["bench"].digest


def test_it_travels_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run in a bundle has the digests of the laptop, and needs none of its folders."""
    from alignment.cluster.manifests.bundle import located, sources

    monkeypatch.chdir(tmp_path)
    write(Path("here"), say={"include": "shared.yaml"})
    Path("here/tasks/shared.yaml").write_text("description: Answer in a word.\n", encoding="utf-8")
    for file in Path("here/tasks").glob("*.yaml"):
        file.write_text(file.read_text().replace(str(tmp_path) + "/", ""))
    run = small.run(tmp_path, stage({"tasks": ["say"], "include": "here/tasks"}))
    inside = sources(run)
    assert list(inside) == ["here/tasks/say.yaml", "here/tasks/shared.yaml", "here/documents.jsonl"]
    moved = located(run)
    for path, there in inside.items():
        (tmp_path / "pod" / there).parent.mkdir(parents=True)
        (tmp_path / "pod" / there).write_bytes(Path(path).read_bytes())
    before = keys(run)["bench"]
    monkeypatch.chdir(tmp_path / "pod")
    assert sources(moved) == {there: there for there in inside.values()}
    assert keys(moved)["bench"].digest == before.digest
    stage_ = moved.stage("bench")
    assert isinstance(stage_, EvaluateHarness)
    assert stage_.harness.found()["say"].config["description"] == "Answer in a word.", "of the file that it includes"
    assert made(moved)["bench"].manifest.metrics


def test_a_task_of_the_harness_itself_is_asked_over_files(tmp_path: Path) -> None:
    rows = [{"question": f"How much is {n} and {n}?", "answer": f"{n} + {n} = {2 * n}\n#### {2 * n}"} for n in range(8)]
    file = tmp_path / "sums.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    run = small.run(tmp_path, stage({"tasks": ["gsm8k"], "limit": 2, "num_fewshot": 1, "data": {
        "gsm8k": {"train": str(file), "test": str(file)}}}))
    assert checked(run, tmp_path) == []
    bench = made(run)["bench"]
    assert {"base.gsm8k.exact_match/strict-match", "base.gsm8k.exact_match/flexible-extract"} <= set(
        bench.manifest.metrics)
    assert set(bench.manifest.metrics) <= set(made_by(run.stage("bench")))


def test_a_conversation_is_text_to_the_harness() -> None:
    made = Conversation("text", [{"role": "user", "content": "x"}])
    assert (made, made.messages[0]["content"]) == ("text", "x")


DATA = Path(__file__).parents[2] / "../shared/data"


@pytest.mark.skipif(not DATA.is_dir(), reason="reads ../shared/data, which is not here")
@pytest.mark.parametrize(("task", "split", "file", "documents"), [
    ("boolq_local", "validation", "qa/boolq_validation.jsonl", 3270),
    ("gsm8k_local", "test", "reasoning/gsm8k_train_3000.jsonl", 3000),
    ("truthfulqa_local", "validation", "qa/truthfulqa.csv", 817),
])
def test_shipped_task_files_read_real_documents(
    tmp_path: Path, task: str, split: str, file: str, documents: int
) -> None:
    shipped = Path(__file__).parents[2] / "configs" / "harness"
    run = small.run(tmp_path, stage({"tasks": [task], "include": str(shipped),
                                     "data": {task: {split: str((DATA / file).resolve())}}}))
    assert checked(run, tmp_path) == []
    own = run.stage("bench")
    assert isinstance(own, EvaluateHarness)
    loaded = load(own.harness, tmp_path / "laid", "stage bench")[task]
    assert len(loaded.eval_docs) == documents
    for document in loaded.eval_docs.select(range(0, documents, 97)):
        text, target = loaded.doc_to_text(document), loaded.doc_to_target(document)
        assert text.rstrip().endswith("Answer:" if task != "truthfulqa_local" else "A:")
        if task == "gsm8k_local":
            assert target == document["answer"].rpartition("#### ")[2]
        elif task == "boolq_local":
            assert loaded.doc_to_choice(document)[target] == ("yes" if document["answer"] else "no")
        else:
            choices = loaded.doc_to_choice(document)
            assert choices[target] == document["Best Answer"].strip()
            assert len(choices) > 1
            assert choices[target] not in choices[1:]
