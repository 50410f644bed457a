"""A data file's format, told by its first row alone; what does not tell it is asked for, with a hint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alignment.cli.seen_format import format_of, metric_of
from alignment.errors import ConfigError
from alignment.records.importers import FORMATS
from alignment.records.importers.keys import READ

HUMAN = "\n\nHuman: Hi\n\nAssistant: Hello"
QUESTION = {"question": "b", "answer": "c"}
ROWS: list[tuple[Any, str]] = [
    ({"messages": []}, "messages"), ({"prompt": "a", "completion": "b"}, "prompt-completion"),
    ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference"), ({"conversations": []}, "sharegpt"),
    ({"instruction": "a", "input": "", "output": "b"}, "alpaca"), ({"prompt": "a"}, "prompt-only"),
    ({"context": "a", "question": "b", "answers": {}}, "squad"), ([{"messages": []}], "messages"),
    ({"version": "1.1", "data": []}, "squad"),
    ({"passage": "a", "title": "t", "question": "b", "answer": True}, "boolq"),
    ({"passage": "a", **QUESTION}, "passage-qa"),
    ({"passage": "a", "question": "b", "answer": {"number": "3"}}, "drop"),
    ({"history_1": {"passage": "a", "qa_pairs": []}, "nfl_2": {"passage": "b", "qa_pairs": []}}, "drop"),
    ([{"_id": "1", **QUESTION, "context": [], "supporting_facts": []}], "hotpotqa"),
    ({"id": "1", **QUESTION, "paragraphs": [], "question_decomposition": []}, "musique"),
    ({"question": "b", "sub_questions": [], "final_answer": "c"}, "multihop"),
    ({"chosen": HUMAN, "rejected": HUMAN + "!"}, "hh-transcript"),
    ([{"instruction": "a", "response1": "b", "response2": "c", "annotator1": 1}], "pandalm"),
    ({"prompt": "a", "response 1": "b", "response 2": "c", "label": 0}, "auto-j"),
    ({"prompt": "a", "chosen": "b", "rejected": "c", "subset": "hep"}, "reward-bench"),
    ({"prompt": "a", "chosen": [], "rejected": [], "score_chosen": 1, "score_rejected": 0}, "ultrafeedback-binarized"),
    ({"question": "a", "response_j": "b", "response_k": "c"}, "stack-exchange-paired"),
    ({"prompt": "a", "completion": "b", "label": True}, "unpaired"),
    ({"conversations": [], "chosen": {}, "rejected": {}}, "sharegpt-preference"),
    ({"messages": [], "chosen": {}, "rejected": {}, "vote": "a"}, "votes"),
    ({"id": "s", "instruction": "a", "instances": []}, "self-instruct"),
]


@pytest.mark.parametrize(("row", "format"), ROWS)
def test_the_first_row_tells_a_format_that_there_is(row: Any, format: str, tmp_path: Path) -> None:
    for indent in (None, 1):
        (tmp_path / "a.json").write_text("\ufeff" + json.dumps(row, indent=indent) + "\n", encoding="utf-8")
        assert format_of(str(tmp_path / "a.json")) == format


def test_every_format_can_be_told() -> None:
    assert {format for _, format in ROWS} == set(FORMATS) == set(READ)


@pytest.mark.parametrize(("name", "text", "problem"), [
    ("a.jsonl", '{"q": 1}', "do not tell the format"), ("a.jsonl", "", "cannot be read"), ("a.csv", None, "not exist"),
    ("a.jsonl", '{"passage": "", "question": "", "answer": ""}', "do not tell"), ("a.txt", "a", "only a JSON file's"),
    ("a.jsonl", '{"chosen": "b", "rejected": "c"}', "do not tell"), ("a.jsonl", "{}", "do not tell"),
    ("a.jsonl", "[]", "do not tell"), ("a.jsonl", None, "does not exist"), ("a.csv", b"\xff\xfe,a", "cannot be read"),
])
def test_a_format_that_does_not_show_is_asked_for(
    name: str, text: str | bytes | None, problem: str, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=problem):
        format_of(str(tmp_path / name))


@pytest.mark.parametrize(("name", "text", "hint"), [
    ("a.csv", "\ufeffType,Question,Best Answer\nx,y,z\n", "prompt=Question,completion=Best Answer"),
    ("a.tsv", "input\ttarget\n", "prompt=input,completion=target"),
    ("a.jsonl", '{"question": "a", "answer": "b"}', "prompt=question,completion=answer"),
    ("a.csv", "a,b\n", None),
])
def test_columns_are_shown_and_proposed_and_never_taken(name: str, text: str, hint: str | None, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        format_of(str(tmp_path / name))
    assert "--columns prompt=COLUMN,completion=COLUMN" in str(caught.value)
    if hint is None:
        assert caught.value.hint is None
    else:
        assert f'--columns "{hint}"' in str(caught.value.hint)


@pytest.mark.parametrize(("row", "source", "metric"), [
    ({"passage": "a", "question": "b", "answer": True}, {"format": "boolq"}, "yes_no"),
    ({"question": "a", "answer": "3 + 4 = 7\n#### 7"}, {"columns": {"prompt": "question", "completion": "answer"}},
     "final_number"),
    ({"prompt": "a", "completion": "it is\n#### -$7"}, {"format": "prompt-completion"}, "final_number"),
    ({"prompt": "a", "completion": "#### Heading"}, {"format": "prompt-completion"}, None),
    ({"prompt": "a", "completion": ["#### 7"]}, {"format": "prompt-completion"}, None),
])
def test_rows_show_a_metric_that_they_are_made_for(
    row: Any, source: dict[str, Any], metric: str | None, tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    found = metric_of(str(tmp_path / "a.jsonl"), source)
    assert (found and found[0]) == metric
    assert metric_of("https://host/a.jsonl", {"format": "columns"}) is None
    assert metric_of(str(tmp_path / "a.csv"), {"format": "columns"}) is None
