"""Records on disk and the pure parts of the importers."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.config import Source
from alignment.errors import DataError
from alignment.records import Record, RecordType, read_records, write_records
from alignment.records.importers import FORMATS, BadRow, Row, import_rows, join_transcript, split_transcript
from alignment.records.importers.passages import fill

texts = st.text(st.characters(exclude_categories=["Cs"]))
message_lists = st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": texts}))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=6,
)
FIELDS = ["prompt", "completion", "chosen", "rejected", "messages", "conversations", "passage", "question", "answer",
          "answers", "context", "paragraphs", "label", "instruction", "output", "id", "meta", "from", "value"]
rows = json_values | st.dictionaries(st.sampled_from(FIELDS), json_values | message_lists)
records = st.builds(
    Record, id=texts, type=st.sampled_from(get_args(RecordType)), prompt=message_lists, completion=st.none() | texts,
    rejected=st.none() | texts, messages=message_lists, label=st.none() | st.booleans(),
    meta=st.dictionaries(texts, json_values),
)


@given(records)
def test_json_keeps_a_record(record):
    line = record.to_json()
    assert "\n" not in line
    assert Record.from_json(line) == record


@given(st.lists(records, max_size=4))
def test_files_keep_records(tmp_path_factory, made):
    path = tmp_path_factory.mktemp("records") / "rows.jsonl"
    assert write_records(path, made) == len(made)
    assert read_records(path) == made


def test_a_broken_record_file_names_its_row(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"id": "1", "type": "prompt-only"}\n{"id": "2", "kind": "x"}\n')
    with pytest.raises(DataError) as caught:
        read_records(tmp_path / "rows.jsonl")
    assert caught.value.where.endswith("rows.jsonl row 2")


spoken = texts.map(str.strip).filter(lambda text: "Human:" not in text and "Assistant:" not in text)


@given(st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": spoken}), min_size=1))
def test_transcripts_round_trip(turns):
    assert split_transcript(join_transcript(turns)) == turns


def test_every_format_of_the_run_file_has_an_importer():
    assert set(get_args(Source.model_fields["format"].annotation)) == {*FORMATS, "columns"}


tricky = texts | st.sampled_from(["{question}", "{passage}{question}", "{0} }{"])


@given(tricky, tricky)
def test_filling_a_prompt_touches_its_two_fields_only(passage, question):
    made = fill("{{x}} {0} {passage}|{question}|{passage}", passage, question)
    assert made == "{{x}} {0} " + passage + "|" + question + "|" + passage


@given(st.sampled_from(sorted(FORMATS)), st.lists(rows, max_size=5))
def test_any_row_becomes_a_record_or_a_bad_row(format, values):
    """An importer never raises on a row and never loses one."""
    made = list(import_rows([Row(n, value) for n, value in enumerate(values, 1)], format, "s"))
    assert len(made) == len(values)
    bad = [row for row in made if isinstance(row, BadRow)]
    assert all(row.slug and " " not in row.slug and row.to_json() for row in bad)


def test_importers_and_data_load_without_torch():
    code = "import sys, alignment.records.importers, alignment.data.import_data, alignment.data.projections\n" \
           "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'ray', 'pyarrow')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
