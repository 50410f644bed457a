"""What the reference declares itself is true: fields of formats, needs and ranges of functions, templates, aims."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import pytest

from alignment.config import Source, parse_aim, parse_run
from alignment.errors import DataError
from alignment.planner.rows import preview
from alignment.records import Record
from alignment.records.importers import FORMATS as IMPORTERS
from alignment.records.importers import BadRow
from alignment.records.importers.columns import SHAPES
from alignment.records.importers.keys import COMMON as COMMON_KEYS
from alignment.records.importers.keys import READ
from alignment.records.importers.passages import drop_rows, squad_rows
from alignment.records.importers.rows import RowError
from alignment.reference.chat_templates import BOS, EOS, TALK, templates
from alignment.reference.emitted import CURVES
from alignment.reference.formats import COMMON, FORMATS, made, text_of
from alignment.reference.of_lists import AIMS
from alignment.rewards.functions import BUILT_IN, FACTS
from alignment.templates import source

ROWS = [name for name in FORMATS if name != "columns"]
OTHER_NAMES = {"_id", "idx", "query_id", "completion"}
"""Read in the place of another field, as the text of that field says."""


class Watched(dict[str, Any]):
    """A row that remembers which of its fields were asked for."""

    def __init__(self, row: dict[str, Any]) -> None:
        super().__init__(row)
        self.asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)


def rows_of(name: str, row: dict[str, Any]) -> list[dict[str, Any]]:
    """As the importer gets them: documents taken apart."""
    nested = {"squad": squad_rows, "drop": drop_rows}
    return [row] if name not in nested else list(nested[name](json.loads(text_of(name, row)), "example"))


def test_every_format_is_described() -> None:
    assert set(FORMATS) == {*IMPORTERS, "columns"} == set(get_args(Source.model_fields["format"].annotation))


@pytest.mark.parametrize("name", FORMATS)
def test_the_example_becomes_a_record(name: str) -> None:
    assert isinstance(made(name), Record)


@pytest.mark.parametrize("name", ROWS)
def test_a_format_reads_the_fields_that_are_named_and_no_other(name: str) -> None:
    (row,) = rows_of(name, FORMATS[name].row)
    watched = Watched(row)
    IMPORTERS[name](watched)
    named = {field.name for field in (*FORMATS[name].fields, *COMMON)} - {"system", "tools"}  # import_rows reads them
    assert watched.asked - OTHER_NAMES <= named
    # Some are asked for only where another is missing.
    for field in sorted(named & set(row)):
        again = Watched({key: value for key, value in row.items() if key != field})
        with suppress(RowError):
            IMPORTERS[name](again)
        watched.asked |= again.asked
    assert named <= watched.asked


@pytest.mark.parametrize("name", ROWS)
def test_the_keys_that_are_counted_as_read_are_the_fields_that_are_named(name: str) -> None:
    declared = {field.name for field in FORMATS[name].fields}
    assert {key for key in READ[name] if "." not in key and "[" not in key} - declared <= OTHER_NAMES
    assert declared <= set(READ[name])
    assert {field.name for field in COMMON} == set(COMMON_KEYS) - OTHER_NAMES


@pytest.mark.parametrize("name", ROWS)
def test_a_field_is_needed_where_it_says_so(name: str) -> None:
    (whole,) = rows_of(name, FORMATS[name].row)
    for field in FORMATS[name].fields:
        row = {key: value for key, value in FORMATS[name].row.items() if key != field.name}
        if field.name in FORMATS[name].row:
            assert isinstance(made(name, row), BadRow) == field.needed, field.name
        elif field.name in whole:  # beside the rows of a document, which always has it
            assert field.needed
        else:
            assert not field.needed, f"{field.name} is not in the example"


def test_the_stage_of_the_page_on_columns_reads_the_file_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a reader would: the YAML and the CSV taken from the page, into one folder."""
    page = (Path(__file__).parents[2] / "docs" / "reference" / "formats.md").read_text(encoding="utf-8")
    blocks = dict(re.findall(r"```(\w+)\n(.*?)```", page.partition("## columns")[2], flags=re.S))
    monkeypatch.chdir(tmp_path)
    head, _, row = blocks["csv"].partition("\n")
    Path("seed.csv").write_text("\n".join([head, *(row.strip().replace("neun", str(n)) for n in range(30))]) + "\n")
    seen = preview(run := parse_run("name: r\nstages:\n" + blocks["yaml"]), run.stages[0])
    assert {name: len(rows) for name, rows in seen.splits.items()} == {"train": 27, "test": 3}
    assert not seen.bad
    [told, asked] = seen.splits["test"][0].prompt
    assert told == {"role": "system", "content": "You write questions of the type open."}
    assert asked["content"].startswith("You will see a text.")
    assert "in the format open.\n### Input:\nDer Hafen ist " in asked["content"]


def test_the_text_on_columns_names_every_shape() -> None:
    text = FORMATS["columns"].text
    assert all(", ".join(sorted(fields, key=text.index)) in text for fields in SHAPES.values())


# --- reward functions ---

FULL = Record("r1", "prompt-completion", [{"role": "user", "content": "How deep?"}], "nine metres",
              meta={"passage": "It is nine metres deep and freezes in most winters.", "kind": "clarity"})
SAID = ["", "nine metres", 'Nine metres ["is nine metres deep"]', "The passage does not say.", "word " * 100,
        "What exactly do you mean?"]


def bare(record: Record, *kept: str) -> Record:
    """The record without what a function may need, but for `kept`."""
    return Record(record.id, record.type, record.prompt, record.completion if "completion" in kept else None,
                  meta={key: value for key, value in record.meta.items() if f"meta.{key}" in kept})


def test_every_function_has_its_facts() -> None:
    assert list(FACTS) == list(BUILT_IN)


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_function_needs_what_it_says_and_stays_in_its_range(name: str) -> None:
    facts = FACTS[name]
    values = [BUILT_IN[name](bare(FULL, *facts.needs), answer) for answer in SAID]
    assert facts.low <= min(values) < max(values) <= facts.high
    for need in facts.needs:
        with pytest.raises(DataError):
            BUILT_IN[name](bare(FULL, *(other for other in facts.needs if other != need)), SAID[2])


# --- the rest ---


def test_examples_of_aims_are_aims() -> None:
    assert [str(parse_aim(text)) for text in AIMS] == list(AIMS)


@pytest.mark.parametrize("template", templates(), ids=lambda template: template.name)
def test_a_template_is_shown_as_transformers_renders_it(template) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    (text,), _ = render_jinja_template([TALK], chat_template=source(template.name), bos_token=BOS, eos_token=EOS)
    assert template.example == text
    assert template.ends_with in (EOS, "<|im_end|>", "<|eot_id|>", "<|eot|>")
    assert text.rstrip().endswith(template.ends_with)


def test_curves_begin_with_the_loss() -> None:
    assert all(curves[0].name == "loss" and curves[0].final for curves in CURVES.values())
