"""`data show` and `data stats`: what they print of files and of a run's stage, against what training makes of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from alignment.config.yaml_text import dump
from alignment.data.token_lengths import bins, limited, summary
from tests.cli.conftest import Call
from tests.small import BASE, data, train

ROWS = [
    {"id": "a", "prompt": "How many?", "completion": "Three."},
    {"id": "b", "prompt": "Which?", "completion": "The red one, of the two that lie there."},
    {"id": "c", "prompt": "When?"},
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run whose imports are made."""
    from alignment.config import parse_run
    from alignment.pipeline import execute

    folder = tmp_path_factory.mktemp("made")
    text = dump({"name": "looks", "store": str(folder / "store"), "stages": [
        BASE, data(folder, 20), {**train("sft"), "take": 5}]})
    file = folder / "run.yaml"
    file.write_text(text, encoding="utf-8")
    for stage in ("base", "data"):
        execute(parse_run(text), only=stage)
    [model] = (folder / "store" / "artifacts").glob("import-model-*")
    return {"file": file, "model": model, "folder": folder}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return file


def test_without_a_tokenizer_the_turns_are_shown_and_rows_that_cannot_be_read_are_counted(
    call: Call, rows: Path
) -> None:
    said = call("data", "show", rows, "--format", "prompt-completion", "--rows", 9)
    assert said.code == 0
    assert "user: How many?\ncompletion: Three." in said.out
    assert "1 of the rows read so far cannot be used: 1 missing-field" in said.out


def test_the_format_is_the_one_that_reads_the_first_rows(call: Call, rows: Path) -> None:
    rows.write_text(json.dumps({"instruction": "Add.", "input": "1 and 2", "output": "3"}) + "\n", encoding="utf-8")
    assert "format alpaca, which reads its first rows" in call("data", "show", rows).out


def test_a_file_that_no_format_reads_says_why(call: Call, rows: Path) -> None:
    rows.write_text('{"strange": 1}\n', encoding="utf-8")
    said = call("data", "show", rows)
    assert said.code == 2
    assert "no format reads this file" in said.err
    assert "--column" in said.err


def test_what_is_shown_as_learned_is_what_training_learns(call: Call, made: dict[str, Any], rows: Path) -> None:
    from alignment import templates
    from alignment.inference.loading import load_tokenizer

    tokenizer = load_tokenizer(made["model"] / "model", side="right")
    prompt, answer = templates.encode_completion(tokenizer, [{"role": "user", "content": "How many?"}], "Three.")
    said = call("data", "show", rows, "--tokenizer", made["model"], "--format", "prompt-completion", "--id", "row-a",
                "--ids")
    table = [line.split(maxsplit=3) for line in said.out.splitlines() if re.match(r" *\d+ +\d+ ", line)]
    assert [int(line[1]) for line in table] == prompt + answer
    assert [line[2] == "x" for line in table] == [False] * len(prompt) + [True] * len(answer)


def test_where_there_are_no_colours_marks_stand_around_what_is_learned(
    call: Call, made: dict[str, Any], rows: Path
) -> None:
    said = call("data", "show", rows, "--tokenizer", made["model"], "--format", "prompt-completion", "--rows", 1)
    assert "<|im_start|>assistant\n⟦Three.<|im_end|>⟧" in said.out


def test_a_stage_of_a_run_is_shown_with_its_own_rows(call: Call, made: dict[str, Any]) -> None:
    said = call("data", "show", made["file"], "--stage", "sft", "--rows", 9)
    assert said.code == 0
    assert "stage sft: 5 of 12 rows of data/train; as sft, loss: completion learns them" in said.out
    assert said.out.count("learned\n") == 5


def test_stats_agree_with_the_tokens_that_training_counts(call: Call, made: dict[str, Any]) -> None:
    from alignment.config import load_run
    from alignment.pipeline import execute

    said = json.loads(call("data", "stats", made["file"], "--stage", "sft", "--json").out)
    made_by = execute(load_run(str(made["file"]), []), only="sft")
    learned = made_by.artifacts["sft"].manifest.metrics["supervised_tokens"]
    assert said["sequences"] == 5
    assert said["learned"] == learned


def test_stats_say_what_a_limit_would_cut(call: Call, made: dict[str, Any], rows: Path) -> None:
    arguments = ("data", "stats", rows, "--tokenizer", made["model"], "--format", "prompt-completion", "--json")
    free = json.loads(call(*arguments).out)
    tight = json.loads(call(*arguments, "--max-length", free["longest"] - 1).out)["limit"]
    assert tight["over"] == 1
    assert tight["answers_over"] == 0
    assert tight["tokens_cut"] == 1
    assert free["limit"] is None
    assert free["bad"] == {"missing-field": 1}


def test_stats_draw_a_picture(call: Call, made: dict[str, Any], rows: Path, tmp_path: Path) -> None:
    import xml.etree.ElementTree as xml

    call("data", "stats", rows, "--tokenizer", made["model"], "--format", "prompt-completion", "--picture", "l.svg")
    picture = xml.parse(tmp_path / "l.svg").getroot()
    assert sum("sequences" in (title.text or "") for title in picture.iter("{http://www.w3.org/2000/svg}title")) >= 2


@pytest.mark.parametrize(("arguments", "says"), [
    (("stats", "rows.jsonl"), "--tokenizer MODEL"),
    (("show", "rows.jsonl", "--template", "chatml"), "a template needs the tokenizer"),
    (("show", "rows.jsonl", "--format", "jsonl"), "no such format"),
    (("show", "rows.jsonl", "--stage", "sft"), "is for run files"),
    (("show", "rows.jsonl", "--column", "prompt"), "is no FIELD=COLUMN"),
    (("show", "rows.jsonl", "--id", "row-z", "--format", "prompt-completion"), "no row has this id"),
    (("show", "rows.jsonl", "--format", "prompt-completion", "--tokenizer", "nowhere"), "no tokenizer to load"),
    (("show", "gone.jsonl"), "gone.jsonl"),
])
def test_what_cannot_be_shown_is_one_clear_error(
    call: Call, rows: Path, arguments: tuple[str, ...], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    said = call("data", *arguments)
    assert said.code == 2
    assert says in said.err
    assert "Traceback" not in said.err


def test_a_run_file_says_format_and_model_itself(call: Call, made: dict[str, Any]) -> None:
    assert "the run file says this itself" in call("data", "show", made["file"], "--format", "alpaca").err
    assert "one of data, sft" in call("data", "show", made["file"], "--stage", "base").err


Lengths = some.lists(some.tuples(some.integers(1, 5000), some.integers(0, 100)).map(
    lambda pair: (pair[0], min(pair))), min_size=1, max_size=60)


@given(Lengths, some.integers(1, 5000))
def test_figures_of_lengths_hold_together(rows: list[tuple[int, int]], limit: int) -> None:
    lengths, learned = [row[0] for row in rows], [row[1] for row in rows]
    figures, cut = summary(lengths, learned), limited(lengths, learned, limit)
    assert all(sum(length <= most for length in lengths) >= share * len(lengths) - 1e-9
               for share, most in figures.quantiles.items())
    assert all(over == sum(length > size for length in lengths) for size, over in figures.above.items())
    assert cut.over == sum(length > limit for length in lengths) >= cut.answers_over
    edges, counts = bins(lengths)
    assert sum(counts) == len(lengths)
    assert len(edges) == len(counts) + 1 <= 21
    assert edges[0] <= min(lengths)
    assert max(lengths) < edges[-1]
