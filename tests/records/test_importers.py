"""The importers as one: what every format has in common, and that no row ends in an exception or is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.config import Source
from alignment.errors import DataError
from alignment.records import Record
from alignment.records.importers import FORMATS, PASSAGE_FORMATS, BadRow, Options, Row, Seen, import_rows, read_source
from tests.records.drawn import (
    GOOD,
    assistant,
    bad,
    damaged,
    good,
    imported,
    json_values,
    message_lists,
    quick,
    sound_records,
    system,
    user,
    without,
)

BRIEF = Options(system="Be brief.")
SPLITS = Options(split_field="part", splits=("train", "7"))


def test_every_format_of_the_run_file_has_an_importer() -> None:
    assert set(get_args(Source.model_fields["format"].annotation)) == {*FORMATS, "columns"}
    assert set(GOOD) == set(FORMATS)


def test_importers_and_data_load_without_torch() -> None:
    code = "import sys, alignment.records.importers, alignment.data.import_data, alignment.data.projections\n" \
           "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'ray', 'pyarrow')))"  # fmt: skip
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# what a record gets from outside its row


@pytest.mark.parametrize("format", FORMATS)
def test_a_good_row_of_every_format_comes_in_with_its_source(format: str) -> None:
    record = good(format, GOOD[format])
    assert record.meta["source"] == "s"
    assert record.conversation()[-1]["role"] == ("user" if record.type == "prompt-only" else "assistant")
    assert Record.from_json(record.to_json()) == record


@pytest.mark.parametrize("format", FORMATS)
def test_ids_are_the_files_own_or_the_number_of_the_row(format: str) -> None:
    row = without(GOOD[format], "id", "_id", "idx", "query_id")
    assert good(format, row).id == "s-1"
    assert good(format, {**row, "id": "own"}).id == ("s-hep-go-own" if format == "reward-bench" else "s-own")
    made = import_rows([Row(41, row)], format, "other")
    assert [record.id for record in made if isinstance(record, Record)] == ["other-41"]


@pytest.mark.parametrize("format", FORMATS)
def test_a_system_message_is_put_before_a_conversation_that_has_none(format: str) -> None:
    row = without(GOOD[format], "system")
    plain, told = good(format, row), good(format, row, BRIEF)
    assert told.conversation() == [system("Be brief."), *plain.conversation()]
    assert (told.completion, told.rejected, told.meta) == (plain.completion, plain.rejected, plain.meta)


@pytest.mark.parametrize(("format", "row"), [
    ("prompt-completion", {"prompt": [system("Sing."), user("Hello")], "completion": "La."}),
    ("messages", {"messages": [system("Sing."), user("Hello"), assistant("La.")]}),
    ("alpaca", {"system": "Sing.", "instruction": "Hello", "output": "La."}),
    ("sharegpt", {"system": "Sing.", "conversations": GOOD["sharegpt"]["conversations"]}),
    ("sharegpt-preference", {**GOOD["sharegpt-preference"], "system": "Sing."}),
])  # fmt: skip
def test_a_system_message_of_the_rows_own_stays_alone(format: str, row: dict[str, Any]) -> None:
    conversation = good(format, row, BRIEF).conversation()
    assert conversation[0] == system("Sing.")
    assert [message["role"] for message in conversation].count("system") == 1


def test_a_system_message_makes_no_prompt_of_an_empty_one() -> None:
    assert bad("prompt-completion", {"prompt": [], "completion": "x"}, BRIEF).slug == "empty-prompt"
    assert bad("messages", {"messages": []}, BRIEF).slug == "empty-prompt"


@pytest.mark.parametrize("format", sorted(PASSAGE_FORMATS))
def test_passage_and_question_are_put_into_the_passage_prompt(format: str) -> None:
    record = good(format, GOOD[format], Options(passage_prompt="Q: {question} {x}\nP: {passage}"))
    assert record.prompt == [user(f"Q: {record.meta['question']} {{x}}\nP: {record.meta['passage']}")]
    assert good(format, GOOD[format]).prompt == [user(f"{record.meta['passage']}\n\n{record.meta['question']}")]


@pytest.mark.parametrize(("value", "split"), [("train", "train"), ("7", "7"), (7, "7")])
def test_the_split_that_a_row_names_is_kept(value: Any, split: str) -> None:
    assert good("prompt-only", {"prompt": "x", "part": value}, SPLITS).meta == {"source": "s", "split": split}


@pytest.mark.parametrize(("row", "slug"), [
    ({"part": "trian"}, "unknown-split"), ({"part": "Train"}, "unknown-split"), ({"part": ""}, "unknown-split"),
    ({"part": ["train"]}, "unknown-split"), ({"part": None}, "missing-field"), ({}, "missing-field"),
])  # fmt: skip
def test_a_row_without_a_known_split_is_refused(row: dict[str, Any], slug: str) -> None:
    assert bad("prompt-only", {"prompt": "x", **row}, SPLITS).slug == slug


def test_the_split_of_a_row_is_not_asked_for_where_splits_are_drawn() -> None:
    assert good("prompt-only", {"prompt": "x", "part": "anything"}).meta == {"source": "s"}


# rows in, rows out


@pytest.mark.parametrize(("format", "row", "slug"), [
    ("prompt-completion", ["x", "y"], "wrong-type"),
    ("prompt-completion", None, "wrong-type"),
    ("prompt-completion", {"prompt": "x", "completion": "\n"}, "empty-answer"),
    ("prompt-completion", {"prompt": " ", "completion": "y"}, "empty-prompt"),
    ("prompt-completion", {"prompt": "x", "completion": "\ud800"}, "broken-text"),
    ("prompt-completion", {"prompt": [user(""), assistant("a"), user("b")], "completion": "y"}, "empty-message"),
    ("prompt-completion", {"prompt": [user("a"), system("s"), user("b")], "completion": "y"}, "misplaced-system"),
    ("messages", {"messages": [user("a")]}, "last-not-assistant"),
    ("messages", {"messages": [user("a"), assistant("b"), assistant("c")]}, "prompt-not-from-user"),
    ("hh-transcript", {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: b "},
     "chosen-equals-rejected"),
    ("hh-transcript", {"chosen": "\n\nAssistant: b", "rejected": "\n\nAssistant: c"}, "empty-prompt"),
    ("passage-qa", {**GOOD["passage-qa"], "rejected": " Ann"}, "chosen-equals-rejected"),
    ("passage-qa", {**GOOD["passage-qa"], "answer": " "}, "empty-answer"),
])  # fmt: skip
def test_the_common_checks_come_after_every_format(format: str, row: Any, slug: str) -> None:
    made = bad(format, row)
    assert (made.source, made.row, made.slug) == ("s", 1, slug)
    assert made.raw == json.dumps(row, ensure_ascii=False)


def test_bad_rows_of_the_file_pass_through_and_order_is_kept() -> None:
    broken = BadRow("s", 2, "broken-json: x", "{")
    rows: list[Row | BadRow] = [Row(1, {"prompt": "a"}), broken, Row(3, {}), Row(4, {"prompt": "b"})]
    first, second, third, fourth = import_rows(rows, "prompt-only", "s")
    assert isinstance(third, BadRow)
    assert second is broken
    assert (first, fourth) == (Record("s-1", "prompt-only", [user("a")], meta={"source": "s"}),
                               Record("s-4", "prompt-only", [user("b")], meta={"source": "s"}))  # fmt: skip
    assert (third.row, third.raw, third.slug) == (3, "{}", "missing-field")


def test_duplicates_are_found_across_sources_that_share_what_was_seen() -> None:
    row = {"prompt": "x", "completion": "y"}

    def slugs(seen: Seen | None) -> list[str]:
        made = [*import_rows([Row(1, row)], "prompt-completion", "a", seen=seen),
                *import_rows([Row(1, row)], "prompt-completion", "b", seen=seen)]  # fmt: skip
        return [row.slug if isinstance(row, BadRow) else "" for row in made]

    assert slugs(Seen()) == ["", "duplicate-row"]
    assert slugs(None) == ["", ""]


def test_an_id_that_comes_twice_is_refused() -> None:
    first, second = imported("prompt-only", [{"id": 1, "prompt": "a"}, {"id": "1", "prompt": "b"}])
    assert isinstance(first, Record)
    assert isinstance(second, BadRow)
    assert second.slug == "duplicate-id"


# files


def test_a_squad_file_is_read_through_its_questions(tmp_path: Path) -> None:
    question = {"id": "a", "question": "Who?", "answers": [{"text": "Ann"}]}
    document = {"data": [{"paragraphs": [{"context": "Ann sang.", "qas": [question, "text"]}]}]}
    (tmp_path / "x.json").write_text(json.dumps(document, indent=1))
    record, row = read_source(str(tmp_path / "x.json"), "squad", "s")
    assert isinstance(record, Record)
    assert isinstance(row, BadRow)
    assert (record.id, record.prompt, record.completion) == ("s-a", [user("Ann sang.\n\nWho?")], "Ann")
    assert (row.row, row.slug, row.raw) == (2, "wrong-type", '"text"')


def test_a_drop_file_is_read_through_its_questions(tmp_path: Path) -> None:
    pairs = [{"query_id": "a", "question": "How often?", "answer": {"number": "2"}},
             {"query_id": "b", "question": "When?", "answer": {"number": ""}}]  # fmt: skip
    (tmp_path / "x.json").write_text(json.dumps({"p1": {"passage": "Ann sang twice.", "qa_pairs": pairs}}))
    record, row = read_source(str(tmp_path / "x.json"), "drop", "s")
    assert isinstance(record, Record)
    assert isinstance(row, BadRow)
    assert (record.id, record.completion, record.meta["group"]) == ("s-a", "2", "p1")
    assert (row.row, row.slug) == (2, "empty-answer")


@pytest.mark.parametrize(("format", "content"), [
    ("squad", '{"data": []}'), ("squad", '{"data": [{"paragraphs": []}]}'),
    ("drop", '{"p": {"passage": "x", "qa_pairs": []}}'),
])  # fmt: skip
def test_a_nested_file_without_questions_is_an_error(format: str, content: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(DataError, match="holds no rows") as caught:
        read_source(str(tmp_path / "x.json"), format, "s")
    assert caught.value.where == str(tmp_path / "x.json")


def test_a_file_is_opened_before_its_rows_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_source(str(tmp_path / "nowhere.jsonl"), "alpaca", "s")


# properties

FIELDS = ["prompt", "completion", "chosen", "rejected", "messages", "conversations", "passage", "question", "answer",
          "answers", "context", "paragraphs", "label", "instruction", "output", "id", "meta"]  # fmt: skip
any_row = json_values | st.dictionaries(st.sampled_from(FIELDS), json_values | message_lists)


def account(format: str, values: list[Any]) -> None:
    """Every row is given back once, in order, as a record that can be kept or a bad row with a reason."""
    made = imported(format, values, BRIEF)
    assert len(made) == len(values)
    for number, row in enumerate(made, 1):
        if isinstance(row, BadRow):
            assert row.row == number
            assert row.slug
            assert " " not in row.slug
            assert json.loads(row.to_json().encode("utf-8"))["source"] == "s"
        else:
            assert Record.from_json(row.to_json().encode("utf-8").decode("utf-8")) == row
            assert row.conversation()[0] == system("Be brief.")


@quick
@given(st.sampled_from(sorted(FORMATS)), st.lists(any_row, max_size=5))
def test_any_row_becomes_a_record_or_a_bad_row(format: str, values: list[Any]) -> None:
    account(format, values)


@pytest.mark.parametrize("format", FORMATS)
@quick
@given(data=st.data())
def test_a_good_row_with_one_value_damaged_becomes_a_record_or_a_bad_row(format: str, data: st.DataObject) -> None:
    account(format, [GOOD[format], data.draw(damaged(without(GOOD[format], "system")))])


@quick
@given(sound_records(), st.dictionaries(st.sampled_from(["group", "kind", "note"]), st.text("ab ", min_size=1)))
def test_a_record_that_was_written_comes_in_again(record: Record, meta: dict[str, Any]) -> None:
    record = replace(record, id="s-1", meta={**meta, "source": "s"})
    tie = record.type == "tie"
    again = good("preference" if tie else record.type, json.loads(record.to_json()), Options(ties=tie))
    assert again == replace(record, id="s-s-1")
