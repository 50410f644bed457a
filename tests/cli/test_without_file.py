"""`eval`, `infer` and `models` from the command line to the table: on what a run made, and on what PEFT saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alignment.config import load_run, parse_run
from alignment.pipeline import execute
from tests import small
from tests.cli.conftest import Call

CPU = ("--set", "compute.device=cpu", "--set", "compute.dtype=float32")
ROWS = [{"prompt": f"What colour is the {thing}?", "completion": colour}
        for thing, colour in zip(small.THINGS[:6], small.COLOURS, strict=False)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a run called mine (a base model, and rows), and a folder with an adapter that PEFT saved."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("made")
    tree = {"name": "mine", "store": str(folder / "runs"), "compute": {"device": "cpu", "dtype": "float32"},
            "stages": [small.BASE, small.data(folder)]}
    base = execute(parse_run(json.dumps(tree))).artifacts["base"]
    assert base is not None
    model = AutoModelForCausalLM.from_pretrained(base.path() / "model")
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data *= 30
    adapted.save_pretrained(folder / "theirs")
    return folder


def rows_file(rows: list[Any] = ROWS, name: str = "new.jsonl") -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def lines(file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]


# --- eval ---


def test_a_model_of_a_run_and_an_adapter_of_others_are_compared_on_new_rows(made: Path, call: Call) -> None:
    arguments = ("eval", made / "theirs", "--against", "mine:base", "--data", rows_file(), "--max-new-tokens", 4,
                 "--store", made / "runs", *CPU)
    said = call(*arguments)
    assert said.code == 0, said.err
    assert "format prompt-completion, by the keys of its first row" in said.out
    table = said.out.split("Results")[1]
    assert table.index("mine-base") < table.index("theirs")
    assert Path(said.out.split("report: ")[1].split("\n")[0]).is_file()
    again = call(*arguments)
    assert again.code == 0
    assert again.err.count("finished before") == again.out.count("stages finished") * 5
    run = load_run(again.out.split("run file: ")[1].strip())
    results = execute(run).artifacts["eval"]
    assert results is not None
    answers = [row["answers"] for row in lines(str(results.path() / "answers.jsonl"))]
    assert len(answers) == 6
    assert any(row["mine-base"]["text"] != row["theirs"]["text"] for row in answers), "the adapter was in it"
    assert results.metrics["mine-base.perplexity"] != results.metrics["theirs.perplexity"]


def test_rows_with_a_final_number_are_measured_by_it(made: Path, call: Call) -> None:
    data = rows_file([{"prompt": f"What is {n} and {n}?", "completion": f"It is\n#### {2 * n}"} for n in (1, 2)])
    said = call("eval", "mine:base", "--data", data, "--max-new-tokens", 2, "--store", made / "runs", *CPU)
    assert said.code == 0, said.err
    assert "metric final_number beside the usual ones: the first reference ends in ####" in said.out
    results = execute(load_run(said.out.split("run file: ")[1].strip())).artifacts["eval"]
    assert results is not None
    assert {"mine-base.final_number", "mine-base.f1", "mine-base.perplexity"} <= results.metrics.keys()


def test_a_stage_of_a_run_file_and_metrics_by_name(made: Path, call: Call) -> None:
    tree = {"name": "mine", "store": str(made / "runs"), "compute": {"device": "cpu", "dtype": "float32"},
            "stages": [small.BASE]}
    Path("mine.yaml").write_text(json.dumps(tree))
    said = call("eval", "mine.yaml:base", "--data", rows_file(), "--metrics", "f1,containment", "--max-new-tokens", 2,
                "--store", "ours", *CPU)
    assert said.code == 0, said.err
    results = execute(load_run(said.out.split("run file: ")[1].strip())).artifacts["eval"]
    assert results is not None
    assert {"mine-base.f1", "mine-base.containment"} <= set(results.metrics)
    assert "mine-base.perplexity" not in results.metrics
    wrong = call("eval", "mine.yaml:base", "--data", rows_file(), "--metrics", "f2", "--store", "ours", *CPU)
    assert wrong.code == 2
    assert "metrics" in wrong.err


def test_a_reward_model_is_held_to_pairs(made: Path, call: Call) -> None:
    judge = {"name": "rm", "kind": "import", "role": "reward", "model": small.BASE["model"]}
    execute(parse_run(json.dumps({"name": "judges", "store": str(made / "runs"), "stages": [judge],
                                  "compute": {"device": "cpu", "dtype": "float32"}})))
    rows = rows_file([{"prompt": row["prompt"], "chosen": row["completion"], "rejected": "that " * 40} for row in ROWS])
    said = call("eval", "judges:rm", "--data", rows, "--pairs", "--score-function", "brevity", "--store", made / "runs",
                *CPU)
    assert said.code == 0, said.err
    results = execute(load_run(said.out.split("run file: ")[1].strip())).artifacts["eval"]
    assert results is not None
    assert 0 <= results.metrics["judges-rm.accuracy"] <= 1
    assert results.metrics["function.accuracy"] == 1, "brevity likes the short one"
    wrong = call("eval", "mine:base", "--data", rows, "--pairs", "--store", made / "runs", *CPU)
    assert "another kind of thing" in wrong.err
    wrong = call("eval", "judges:rm", "--data", rows, "--pairs", "--metrics", "f1", "--store", made / "runs")
    assert "is for models that answer" in wrong.err


def test_rows_of_a_run_need_no_format_and_a_saved_file_is_the_same_run(made: Path, call: Call) -> None:
    arguments = ("eval", "mine:base", "--data", "mine:data/test", "--take", 3, "--max-new-tokens", 2,
                 "--store", made / "runs", "--score-function", "token_f1", *CPU)
    said = call(*arguments, "--save", "mine.yaml")
    assert said.code == 0, said.err
    again = call("run", "mine.yaml")
    assert again.code == 0
    assert again.err.count("finished before") == 3
    assert load_run("mine.yaml").stage("eval").model_dump()["take"] == 3
    Path("mine.yaml").write_text("name: another\n")
    taken = call(*arguments, "--save", "mine.yaml")
    assert taken.code == 2
    assert "would overwrite another file" in taken.err


@pytest.mark.parametrize(("arguments", "said"), [
    (["nobody:base", "--data", "new.jsonl"], "no list of what this run made"),
    (["mine:bsae", "--data", "new.jsonl"], "the run has no such stage"),
    (["sft-0123456789ab", "--data", "new.jsonl"], "the store has no such artifact"),
    (["mine:data", "--data", "new.jsonl"], "no model, but a import-data"),
    (["mine:base", "--data", "gone.jsonl"], "the data file does not exist"),
    (["mine:base", "--data", "new.jsonl", "--format", "alpaca"], "6 of 6 rows are bad"),
    (["mine:base", "--data", "mine:data/tset"], "has no row set tset"),
    (["mine:base", "--data", "mine:data/test", "--format", "alpaca"], "rows already"),
    (["mine:base", "mine:base", "--data", "new.jsonl"], "a model is named twice"),
    (["mine:base", "--data", "new.jsonl", "--template", "chatml"], "keeps its chat template"),
    (["mine:base", "--data", "new.jsonl", "--columns", "prompt=a", "--format", "alpaca"], "for format columns alone"),
    (["mine:base", "--data", "new.jsonl", "--score-model", "mine:base"], "another kind of thing"),
    (["mine:base", "--data", "new.jsonl", "--set", "evil.take=3"], "names neither a top-level key"),
])
def test_what_cannot_be_evaluated_is_one_error(arguments: list[str], said: str, made: Path, call: Call) -> None:
    rows_file()
    found = call("eval", *arguments, "--store", made / "runs", *CPU)
    assert found.code == 2
    assert said in found.err
    assert "Traceback" not in found.err


def test_rows_that_the_model_was_made_from_are_refused(made: Path, call: Call) -> None:
    """Of a model that another run trained, whose manifest is all that is left of the training here."""
    from alignment.artifacts import Store
    from tests.data.test_import_artifact import publish

    store = Store(str(made / "runs"))
    keys = json.loads(store.read_run_file("mine", "stages.json") or "")
    base = store.find(keys["base"])
    assert base is not None
    files = {name: (base.path() / name).read_text(encoding="latin-1") for name in base.manifest.files
             if name.startswith("model/") and not name.endswith(".safetensors")}
    trained = publish(store, "sft-00000000abcd", files, inputs={"data": keys["data"], "base": keys["base"]},
                      config={"kind": "train", "method": "sft", "name": "sft", "model": "base", "rows": ["data/train"]})
    found = call("eval", trained.key, "--data", "mine:data/train", "--store", store.url, *CPU)
    assert found.code == 2
    assert "24 of 24 test rows were seen before" in found.err
    assert f"of {keys['data']}/train" in found.err


# --- infer ---

PROMPTS = [{"id": "a", "prompt": "What colour is the boat?"}, "{broken", {"id": "b", "prompt": "What is the lamp?"},
           {"prompt": "What colour is the boat? "}, {"id": "c", "prompt": " "}, {"id": "d", "prompt": "word " * 400},
           {"id": "e", "messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I."}]},
           {"id": "f", "messages": [{"role": "user", "content": "And the rope?"}]}]


def test_every_prompt_is_answered_in_its_place_or_kept_with_its_reason(made: Path, call: Call) -> None:
    Path("in.jsonl").write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in PROMPTS))
    arguments = ("infer", "mine:base", "--input", "in.jsonl", "--output", "deep/out.jsonl", "--max-new-tokens", 3,
                 "--store", made / "runs", "--set", "answers.max_prompt_tokens=200", *CPU)
    said = call(*arguments)
    assert said.code == 0, said.err
    assert "1 of which repeat an earlier one" in said.out
    answers = lines("deep/out.jsonl")
    assert [(one["row"], one["id"], one["index"]) for one in answers] == [
        (1, "a", 0), (3, "b", 0), (4, None, 0), (8, "f", 0)]
    assert answers[0]["answer"] == answers[2]["answer"]
    assert all(one["tokens"] <= 3 and isinstance(one["finished"], bool) for one in answers)
    bad = [(one["row"], one["reason"].partition(":")[0]) for one in lines("deep/out.jsonl.bad.jsonl")]
    assert bad == [(2, "not JSON"), (5, "no prompt"), (6, "prompt longer than max_prompt_tokens"),
                   (7, "prompt-not-from-user")]
    before = Path("deep/out.jsonl").read_bytes()
    again = call(*arguments)
    assert again.err.count("finished before") == 3
    assert Path("deep/out.jsonl").read_bytes() == before


def test_several_answers_to_a_prompt_are_drawn(made: Path, call: Call) -> None:
    Path("in.csv").write_text("id,question\n1,What is the net?\n2,What is the gate?\n", encoding="utf-8")
    arguments = ("infer", "mine:base", "--input", "in.csv", "--output", "out.jsonl", "--prompt-field", "question",
                 "--n", 3, "--max-new-tokens", 4, "--store", made / "runs", *CPU)
    refused = call(*arguments)
    assert refused.code == 2
    assert "all 3 answers to a prompt are the same" in refused.err
    said = call(*arguments, "--temperature", 1.0)
    assert said.code == 0, said.err
    answers = lines("out.jsonl")
    assert [(one["id"], one["index"]) for one in answers] == [(i, n) for i in ("1", "2") for n in range(3)]
    assert len({one["answer"] for one in answers}) > 2
    assert not Path("out.jsonl.bad.jsonl").exists()


@pytest.mark.parametrize(("name", "text", "more", "said"), [
    ("in.txt", "\n \n", [], "no row has a prompt"), ("in.csv", "q\nx\n", [], "no such column"),
    ("in.json", "{}", [], "not a list of rows"), ("in.json", "[1", [], "not JSON"),
    ("in.jsonl", '{"q": "x"}\n', [], "no row has a prompt"), ("gone.txt", None, [], "cannot be read"),
    ("in.txt", "x\n", ["--output", "in.txt"], "cannot be written to"),
])
def test_prompts_that_cannot_be_read_are_one_error(
    name: str, text: str | None, more: list[str], said: str, made: Path, call: Call
) -> None:
    if text is not None:
        Path(name).write_text(text, encoding="utf-8")
    found = call("infer", "mine:base", "--input", name, "--output", "out.jsonl", "--store", made / "runs", *more)
    assert found.code == 2
    assert said in found.err
    assert "Traceback" not in found.err


# --- models ---


def test_models_lists_what_can_be_named(made: Path, call: Call) -> None:
    said = call("models", "--store", made / "runs")
    assert said.code == 0
    keys = json.loads((made / "runs" / "runs" / "mine" / "stages.json").read_text())
    (line,) = [line for line in said.out.splitlines() if keys["base"] in line and "mine:base" in line]
    assert "policy, whole" in line
    assert "\nimport-artifact-" not in said.out, "what an evaluation brought is the same model"
    (line,) = [line for line in said.out.splitlines() if keys["data"] in line and "mine:data" in line]
    assert "train (24), dev (8), test (8)" in line
    assert "no finished model" in call("models", "--store", "nothing").out
    damaged = Path("broken/artifacts/sft-0123456789ab/manifest.json")
    damaged.parent.mkdir(parents=True)
    damaged.write_text("{")
    assert "! sft-0123456789ab: the manifest is damaged" in call("models", "--store", "broken").out
