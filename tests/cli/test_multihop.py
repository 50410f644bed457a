"""Retrieval conversations at the command line: what `check` knows before anything is asked or trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.conftest import Call, Said

BOOLQ = {"question": "does the harbour freeze", "passage": "The harbour freezes in most winters.", "answer": True}
TOKENS = {"template": "retrieval", "new_tokens": ["<|bof|>", "<|eof|>", "<|eot|>"]}


@pytest.fixture
def checked(call: Call) -> Callable[..., Said]:
    """`check` of a run with a change to one of its stages."""
    def check(stage: str = "gen", command: str = "check", **keys: Any) -> Said:
        rows = [{**BOOLQ, "question": f"does harbour {number} freeze", "passage": f"{number}: {BOOLQ['passage']}"}
                for number in range(8)]
        Path("boolq.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        Path("plain.jsonl").write_text(json.dumps({"prompt": "How deep?", "completion": "Nine metres."}) + "\n")
        Path("empty.txt").write_text("\n")
        stages = [
            {"name": "base", "kind": "import", "model": {"source": "tiny"}, **TOKENS},
            {"name": "sets", "kind": "import", "data": [{"path": "boolq.jsonl", "format": "boolq"}], "retrieve": True,
             "split": {"by": "ratio", "ratios": {"train": 1.0}}},
            {"name": "plain", "kind": "import", "data": [{"path": "plain.jsonl", "format": "prompt-completion"}],
             "split": {"by": "ratio", "ratios": {"train": 1.0}}},
            {"name": "gen", "kind": "generate", "recipe": "multihop", "teacher": "base", "rows": ["sets/train"],
             "take": 6},
            {"name": "sft", "kind": "train", "method": "sft", "model": "base", "rows": ["gen/train"],
             "loss": "assistant", "batch_size": 2,
             "strategy": {"kind": "lora", "r": 4, "alpha": 8, "modules_to_save": ["embed_tokens", "lm_head"]}},
        ]
        changed = [{**one, **keys} if one["name"] == stage else one for one in stages]
        Path("run.yaml").write_text(yaml.safe_dump({
            "name": "hops", "compute": {"dtype": "float32", "device": "cpu"}, "store": "store", "stages": changed},
            sort_keys=False))
        return call(command, "run.yaml")

    return check


def test_the_run_itself_passes_and_says_what_it_saw(checked: Callable[..., Said]) -> None:
    said = checked()
    assert (said.code, said.err) == (0, "")
    assert "comparisons of 146 categories, 8 rows to answer: yes-no (8)" in said.out
    assert "multihop, 6 comparisons and answers" in checked(command="plan").out


@pytest.mark.parametrize(("stage", "keys", "place", "problem"), [
    ("sft", {"strategy": {"kind": "lora", "r": 4, "alpha": 8}}, "stages[4].strategy.modules_to_save",
     "could not tell the new tokens apart"),
    ("base", {"new_tokens": ["<|eot|>", "<|eot|>"]}, "stages[0].new_tokens", "one twice"),
    ("sets", {"passage_prompt": "{passage} {question}"}, "stages[1].passage_prompt", "is not read with retrieve"),
    ("sets", {"data": [{"path": "plain.jsonl", "format": "prompt-completion"}]}, "stages[1].data[0].format",
     "has no passage that could be retrieved"),
    ("gen", {"rows": ["plain/train"]}, "stages[3].rows", "no row can be answered"),
    ("gen", {"rows": [], "rounds": 0}, "stages[3].rounds", "no rows to answer"),
    ("gen", {"negatives": []}, "stages[3].negative_share", "is of no swap"),
    ("gen", {"prompts": {"categories": "empty.txt"}}, "stages[3].prompts.categories", "list of categories is empty"),
    ("gen", {"prompts": {"comparison": "empty.txt"}}, "stages[3].prompts.comparison", "lacks {category}"),
    ("gen", {"teacher": "sets"}, "stages[3].teacher", "language model"),
    ("gen", {"decontaminate": ["sets/train"]}, "stages[3].decontaminate", "names rows that the prompts show"),
])
def test_what_is_known_to_fail_is_said_before_launch(
    stage: str, keys: dict[str, Any], place: str, problem: str, checked: Callable[..., Said]
) -> None:
    said = checked(stage, **keys)
    assert said.code == 2
    assert f"({place})" in said.err, said.err
    assert problem in said.err


def test_a_training_after_the_one_that_learned_the_tokens_may_leave_them(
    checked: Callable[..., Said], call: Call
) -> None:
    checked()
    run = yaml.safe_load(Path("run.yaml").read_text())
    run["stages"].append({"name": "more", "kind": "train", "method": "sft", "model": "sft", "rows": ["sets/train"],
                          "batch_size": 2, "loss": "assistant", "strategy": {"kind": "full"}})
    Path("run.yaml").write_text(yaml.safe_dump(run, sort_keys=False))
    assert call("check", "run.yaml").code == 0


def test_rows_with_and_without_an_answer_are_drawn_apart(call: Call) -> None:
    qas = [{"id": f"q{number}", "question": f"Who sang song {number}?", "answers": [] if number % 2 else [
        {"text": "Ann"}], "is_impossible": bool(number % 2)} for number in range(12)]
    Path("squad.json").write_text(json.dumps({"data": [{"paragraphs": [
        {"context": f"Ann sang song {qa['id']}.", "qas": [qa]} for qa in qas]}]}))
    Path("run.yaml").write_text(yaml.safe_dump({"name": "hops", "store": "store", "stages": [
        {"name": "sets", "kind": "import", "retrieve": True, "split": {"by": "ratio", "ratios": {"train": 1.0}},
         "data": [{"path": "squad.json", "format": "squad", "take": 3, "take_unanswerable": 2}]}]}))
    assert call("run", "run.yaml").code == 0
    [file] = Path("store/artifacts").glob("import-data-*/rows/train.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["meta"]["kind"] for row in rows].count("unanswerable") == 2
    assert len(rows) == 5


@pytest.fixture
def walked(call: Call) -> Callable[..., Said]:
    """`check` of an evaluation whose model retrieves, with changes to it."""
    def check(command: str = "check", template: dict[str, Any] = TOKENS, format: str = "hotpotqa", words: int = 6,
              **evaluate: Any) -> Said:
        rows = [{"_id": f"h{number}", "question": f"Is {number} deeper than the harbour?", "answer": "Yes",
                 "supporting_facts": [["Varde", 0]], "context": [["Varde", [" ".join(["deep"] * words)]],
                                                                 ["Lund", [f"Number {number}."]]]}
                for number in range(4)]
        Path("hotpot.json").write_text(json.dumps(rows))
        Path("plain.jsonl").write_text("".join(json.dumps({"prompt": f"How deep is {number}?", "completion": "Nine."})
                                               + "\n" for number in range(4)))
        stage = {"name": "eval", "kind": "evaluate", "models": ["base"], "rows": "sets/test", **evaluate}
        stage["retrieve"] = {"embedder": "vectors", "pooling": "mean", **stage.get("retrieve", {})}
        Path("run.yaml").write_text(yaml.safe_dump({
            "name": "walks", "compute": {"dtype": "float32", "device": "cpu"}, "store": "store", "stages": [
                {"name": "base", "kind": "import", "model": {"source": "tiny"}, **template},
                {"name": "vectors", "kind": "import", "role": "embedder", "model": {"source": "tiny"}},
                {"name": "sets", "kind": "import", "split": {"by": "ratio", "ratios": {"test": 1.0}},
                 **({"data": [{"path": "hotpot.json", "format": format}], "retrieve": True} if format == "hotpotqa"
                    else {"data": [{"path": "plain.jsonl", "format": format}]})}, stage]}, sort_keys=False))
        return call(command, "run.yaml")

    return check


def test_an_evaluation_that_retrieves_passes_and_is_planned(walked: Callable[..., Said]) -> None:
    said = walked()
    assert (said.code, said.err) == (0, "")
    assert "evaluate · 1 model that retrieves" in " ".join(walked("plan").out.split())
    assert walked(format="prompt-completion", retrieve={"embedder": "base"}, command="plan").code == 0


@pytest.mark.parametrize(("keys", "place", "problem"), [
    ({"retrieve": {"embedder": "vektors"}}, "stages[3].retrieve.embedder", "does not come before it"),
    ({"retrieve": {"embedder": "sets"}}, "stages[3].retrieve.embedder", "role: embedder"),
    ({"retrieve": {"pooling": "max"}}, "stages[3].retrieve.pooling", "cls"),
    ({"retrieve": {"corpus": "sets/train"}}, "stages[3].retrieve.corpus", "rows that no stage makes"),
    ({"retrieve": {"steps": 0}}, "stages[3].retrieve.steps", "too small"),
    ({"template": {}}, "stages[3].models[0]", "writes no calls"),
    ({"format": "prompt-completion"}, "stages[3].rows", "no row has a passage"),
    ({"format": "prompt-completion", "retrieve": {"corpus": "sets/test"}}, "stages[3].retrieve.corpus",
     "no row has a passage"),
    ({"max_prompt_tokens": 16}, "stages[3].retrieve.steps", "so many calls never fit"),
])
def test_what_keeps_a_model_from_retrieving_is_said_before_launch(
    keys: dict[str, Any], place: str, problem: str, walked: Callable[..., Said]
) -> None:
    said = walked(**keys)
    assert said.code == 2
    assert f"({place})" in said.err, said.err
    assert problem in said.err


def test_calls_that_usually_do_not_fit_are_told(walked: Callable[..., Said]) -> None:
    said = walked(words=900, max_prompt_tokens=1000)
    assert said.code == 0, said.err
    assert "will end by context-overflow" in " ".join((said.out + said.err).split())


def test_a_context_that_is_too_short_for_prompt_and_answer_is_refused(walked: Callable[..., Said]) -> None:
    said = walked(max_prompt_tokens=9000)
    assert said.code == 2
    assert "more tokens than the model of base can tell the places of" in said.err
    assert "vectors" not in said.err, "an embedder cuts what it reads"
