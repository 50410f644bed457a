"""Questions about a passage: each format's rows, nested files made flat, and the prompt that is filled."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.errors import DataError
from alignment.records import Record
from alignment.records.importers import read_source
from alignment.records.importers.passages import (
    boolq,
    drop,
    drop_rows,
    fill,
    hotpotqa,
    musique,
    passage_group,
    passage_qa,
    squad,
    squad_rows,
)
from tests.records.drawn import GOOD, json_values, quick, slug_of, texts, without, words

ANN, WHO = "Ann sang.", "Who sang?"


def asked(kind: str, references: list[str], passage: str = ANN, question: str = WHO, **more: Any) -> dict[str, Any]:
    """meta of a question, as every format leaves it."""
    return {"group": passage_group(passage), "passage": passage, "question": question, "kind": kind,
            "references": references, **more}  # fmt: skip


# fill


@pytest.mark.parametrize(("template", "made"), [
    ("{passage}\n\n{question}", "P\n\nQ"),
    ("{question} {passage} {question}", "Q P Q"),
    ("{{passage}} {0} {x} {", "{P} {0} {x} {"),
    ("{ passage } {Passage} {question", "{ passage } {Passage} {question"),
    ("no fields", "no fields"),
    ("", ""),
])  # fmt: skip
def test_only_the_two_fields_of_a_template_are_filled(template: str, made: str) -> None:
    assert fill(template, "P", "Q") == made


@pytest.mark.parametrize(("passage", "question"), [
    ("{question}", "{passage}"), ("{passage}", "{question}"), ("{passage}{question}", "Q"),
    ("P", "{question}{passage}"), ("{pass", "age}"), ("{", "}"),
])  # fmt: skip
def test_fields_that_a_text_brings_along_are_not_filled(passage: str, question: str) -> None:
    assert fill("{passage}|{question}", passage, question) == f"{passage}|{question}"
    assert fill("{question}|{passage}", passage, question) == f"{question}|{passage}"


tricky = texts | st.sampled_from(["{question}", "{passage}{question}", "{0} }{", "{passage"])


@quick
@given(st.lists(st.sampled_from(["{passage}", "{question}", "{{", "}", " {0} ", "x\n"])), tricky, tricky)
def test_filling_never_fills_twice(parts: list[str], passage: str, question: str) -> None:
    template = "|".join(parts)
    texts_of = {"{passage}": passage, "{question}": question}
    assert fill(template, passage, question) == "|".join(texts_of.get(part, part) for part in parts)


@quick
@given(tricky, tricky)
def test_filling_a_prompt_touches_its_two_fields_only(passage: str, question: str) -> None:
    made = fill("{{x}} {0} {passage}|{question}|{passage}", passage, question)
    assert made == "{{x}} {0} " + passage + "|" + question + "|" + passage


# groups


def test_passages_of_the_same_words_are_one_group() -> None:
    assert passage_group("Ann  sang.\n") == passage_group("Ann sang.") != passage_group("Ann sang")
    assert len(passage_group("\ud800")) == 16


@quick
@given(st.lists(words, min_size=1, max_size=5), st.sampled_from([" ", "\n", "\t  ", "\u2028"]))
def test_white_space_makes_no_other_group(made: list[str], blank: str) -> None:
    assert passage_group(blank.join(made) + blank) == passage_group(" ".join(made))


# rows

BECOMES = [
    (passage_qa, {"id": 7, "passage": ANN, "question": WHO, "answer": "Ann"},
     Record("7", "prompt-completion", completion="Ann", meta=asked("qa", ["Ann"]))),
    (passage_qa, {"passage": ANN, "question": WHO, "answer": "Ann", "rejected": "Bob", "type": "open", "group": "g"},
     Record("", "preference", completion="Ann", rejected="Bob", meta=asked("open", ["Ann"], group="g"))),
    (passage_qa, {"passage": ANN, "question": WHO, "answer": "Ann", "rejected": None, "kind": "why"},
     Record("", "prompt-completion", completion="Ann", meta=asked("why", ["Ann"]))),
    (passage_qa, {"passage": ANN, "question": WHO, "answer": "Ann", "type": "open", "kind": "why", "meta": {"n": 1}},
     Record("", "prompt-completion", completion="Ann", meta=asked("open", ["Ann"], n=1))),
    (boolq, {"question": WHO, "passage": ANN, "answer": True, "title": "x"},
     Record("", "prompt-completion", completion="Yes", meta=asked("yes-no", ["Yes"]))),
    (boolq, {"question": WHO, "passage": ANN, "answer": False, "idx": 0},
     Record("0", "prompt-completion", completion="No", meta=asked("yes-no", ["No"]))),
    (squad, {"id": "a", "context": ANN, "question": WHO,
             "answers": [{"text": "Ann", "answer_start": 0}, {"text": "Ann"}, {"text": "she"}]},
     Record("a", "prompt-completion", completion="Ann", meta=asked("extractive", ["Ann", "she"]))),
    (squad, {"context": ANN, "question": WHO, "answers": [{"text": "Ann"}], "is_impossible": False},
     Record("", "prompt-completion", completion="Ann", meta=asked("extractive", ["Ann"]))),
    (squad, {"context": ANN, "question": WHO, "answers": [], "is_impossible": True, "plausible_answers": [1]},
     Record("", "prompt-only", meta=asked("unanswerable", []))),
    (squad, {"context": ANN, "question": WHO, "answers": {"text": ["Ann", "she"], "answer_start": [0, 1]}},
     Record("", "prompt-completion", completion="Ann", meta=asked("extractive", ["Ann", "she"]))),
    (squad, {"context": ANN, "question": WHO, "answers": {"text": [], "answer_start": []}},
     Record("", "prompt-only", meta=asked("unanswerable", []))),
    (drop, {"query_id": "q", "group": "nfl_1", "passage": ANN, "question": WHO, "answer": {"number": "2"},
            "validated_answers": [{"number": "2"}, {"number": "", "spans": ["two"]}, {"number": 3}]},
     Record("q", "prompt-completion", completion="2", meta=asked("number", ["2", "two", "3"], group="nfl_1"))),
    (hotpotqa, {"_id": "h", "question": WHO, "answer": "Ann", "type": "bridge", "level": "hard",
                "context": [["Ann", ["Ann sang. ", "Often. "]], ["Bob", [" Bob ran."]]]},
     Record("h", "prompt-completion", completion="Ann",
            meta=asked("bridge", ["Ann"], "Ann: Ann sang. Often.\n\nBob: Bob ran."))),
    (hotpotqa, {"id": "h", "question": WHO, "answer": "Ann",
                "context": {"title": ["Ann", "Bob"], "sentences": [["Ann sang. ", "Often."], ["Bob ran."]]}},
     Record("h", "prompt-completion", completion="Ann",
            meta=asked("multi-hop", ["Ann"], "Ann: Ann sang. Often.\n\nBob: Bob ran."))),
    (musique, {"id": "3hop1__1_2_3", "question": WHO, "answer": "Ann", "answer_aliases": ["Anna", "Ann"],
               "answerable": True, "paragraphs": [{"idx": 0, "title": "Ann", "paragraph_text": "Ann sang."},
                                                  {"idx": 1, "title": "Bob", "paragraph_text": "Bob ran."}]},
     Record("3hop1__1_2_3", "prompt-completion", completion="Ann",
            meta=asked("3hop1", ["Ann", "Anna"], "Ann: Ann sang.\n\nBob: Bob ran."))),
    (musique, {"id": "m", "question": WHO, "answer": "Ann", "paragraphs": [{"title": "", "paragraph_text": "x"}]},
     Record("m", "prompt-completion", completion="Ann", meta=asked("multi-hop", ["Ann"], ": x"))),
    (musique, {"id": "2hop__1_2", "question": WHO, "answer": "Ann", "answerable": False,
               "paragraphs": [{"title": "Ann", "paragraph_text": "Ann sang."}]},
     Record("2hop__1_2", "prompt-only", meta=asked("unanswerable", [], "Ann: Ann sang."))),
]  # fmt: skip


@pytest.mark.parametrize(("parse", "row", "record"), BECOMES,
                         ids=[f"{p.__name__}-{n}" for n, (p, _, _) in enumerate(BECOMES)])  # fmt: skip
def test_a_good_row_becomes_its_record(parse: Any, row: dict[str, Any], record: Record) -> None:
    assert parse(row) == record


QA, HOTPOT, MUSIQUE = GOOD["passage-qa"], GOOD["hotpotqa"], GOOD["musique"]
REFUSED = [
    (passage_qa, {**QA, "answer": None}, "missing-field"),
    (passage_qa, {**QA, "answer": 3}, "wrong-type"),
    (passage_qa, {**QA, "rejected": ["Bob"]}, "wrong-type"),
    (passage_qa, {**QA, "type": 1}, "wrong-type"),
    (passage_qa, {**QA, "passage": " \n"}, "empty-prompt"),
    (passage_qa, {**QA, "question": ""}, "empty-prompt"),
    (boolq, {**GOOD["boolq"], "answer": "true"}, "wrong-type"),
    (boolq, {**GOOD["boolq"], "answer": 1}, "wrong-type"),
    (squad, {**GOOD["squad"], "answers": []}, "empty-answer"),
    (squad, {**GOOD["squad"], "answers": "Ann"}, "wrong-type"),
    (squad, {**GOOD["squad"], "answers": ["Ann"]}, "wrong-type"),
    (squad, {**GOOD["squad"], "answers": [{"text": 3}]}, "wrong-type"),
    (squad, {**GOOD["squad"], "answers": [{"answer_start": 0}]}, "missing-field"),
    (squad, {**GOOD["squad"], "context": None}, "missing-field"),
    (drop, {**GOOD["drop"], "answer": "Ann"}, "wrong-type"),
    (drop, {**GOOD["drop"], "validated_answers": {"number": "2"}}, "wrong-type"),
    (drop, {**GOOD["drop"], "validated_answers": ["2"]}, "wrong-type"),
    (hotpotqa, {**HOTPOT, "context": []}, "empty-prompt"),
    (hotpotqa, {**HOTPOT, "context": "Ann sang."}, "wrong-type"),
    (hotpotqa, {**HOTPOT, "context": [["Ann", "Ann sang."]]}, "wrong-type"),
    (hotpotqa, {**HOTPOT, "context": [["Ann", ["Ann sang."], 3]]}, "wrong-type"),
    (hotpotqa, {**HOTPOT, "context": [{"title": "Ann"}]}, "wrong-type"),
    (hotpotqa, {**HOTPOT, "context": {"title": ["Ann"]}}, "missing-field"),
    (hotpotqa, {**HOTPOT, "context": {"title": "Ann", "sentences": [["x"]]}}, "wrong-type"),
    (hotpotqa, {**HOTPOT, "type": ["bridge"]}, "wrong-type"),
    (hotpotqa, {**HOTPOT, "context": {"title": ["Ann", "Bob"], "sentences": [["x"]]}}, "wrong-type"),
    (hotpotqa, {**HOTPOT, "context": {"title": ["Ann"], "sentences": [["x"], ["y"]]}}, "wrong-type"),
    (hotpotqa, {**HOTPOT, "context": {"title": [None], "sentences": [["x"]]}}, "wrong-type"),
    (hotpotqa, {**HOTPOT, "context": [[None, ["x"]]]}, "wrong-type"),
    (hotpotqa, {**HOTPOT, "context": [["Ann", ["x", None]]]}, "wrong-type"),
    (hotpotqa, {**HOTPOT, "context": [["Ann", [3]]]}, "wrong-type"),
    (squad, {**GOOD["squad"], "is_impossible": True}, "answers-differ"),
    (squad, {**GOOD["squad"], "answers": {"text": []}, "is_impossible": False}, "empty-answer"),
    (squad, {**GOOD["squad"], "answers": {"text": [3]}}, "wrong-type"),
    (squad, {**GOOD["squad"], "answers": {"answer_start": [3]}}, "missing-field"),
    (squad, {**GOOD["squad"], "is_impossible": "true"}, "wrong-type"),
    (squad, {**GOOD["squad"], "is_impossible": 1}, "wrong-type"),
    (musique, {**MUSIQUE, "answerable": "false"}, "wrong-type"),
    (musique, {**MUSIQUE, "answerable": 0}, "wrong-type"),
    (drop, {**GOOD["drop"], "answer": {"number": ["2"]}}, "wrong-type"),
    (drop, {**GOOD["drop"], "answer": {"number": {"value": 2}}}, "wrong-type"),
    (drop, {**GOOD["drop"], "answer": {"number": True}}, "wrong-type"),
    (drop, {**GOOD["drop"], "answer": {"spans": "Ann"}}, "wrong-type"),
    (drop, {**GOOD["drop"], "answer": {"date": {"day": ["3"]}}}, "wrong-type"),
    (drop, {**GOOD["drop"], "answer": {"number": float("nan")}}, "empty-answer"),
    (drop, {**GOOD["drop"], "validated_answers": [{"number": [1]}]}, "wrong-type"),
    (musique, {**MUSIQUE, "paragraphs": []}, "empty-prompt"),
    (musique, {**MUSIQUE, "paragraphs": ["Ann sang."]}, "wrong-type"),
    (musique, {**MUSIQUE, "paragraphs": [{"title": "Ann"}]}, "missing-field"),
    (musique, {**MUSIQUE, "answer_aliases": "Anna"}, "wrong-type"),
    (musique, {**MUSIQUE, "answer_aliases": [3]}, "wrong-type"),
]  # fmt: skip


@pytest.mark.parametrize(("parse", "row", "slug"), REFUSED,
                         ids=[f"{p.__name__}-{s}-{n}" for n, (p, _, s) in enumerate(REFUSED)])  # fmt: skip
def test_a_row_is_refused_with_its_reason(parse: Any, row: dict[str, Any], slug: str) -> None:
    assert slug_of(lambda: parse(row)) == slug


NEEDED = {passage_qa: ("passage", "question", "answer"), boolq: ("passage", "question", "answer"),
          squad: ("context", "question", "answers"), drop: ("passage", "question", "answer"),
          hotpotqa: ("context", "question", "answer"), musique: ("paragraphs", "question", "answer")}  # fmt: skip


@pytest.mark.parametrize(("parse", "field"), [(parse, field) for parse, fields in NEEDED.items() for field in fields])
def test_a_field_that_is_needed_may_not_be_missing(parse: Any, field: str) -> None:
    row = GOOD[parse.__name__.replace("_", "-")]
    assert slug_of(lambda: parse(row)) == ""
    assert slug_of(lambda: parse(without(row, field))) == "missing-field"


# answers of DROP


@pytest.mark.parametrize(("answer", "text", "kind"), [
    ({"number": "2", "spans": [], "date": {"day": "", "month": "", "year": ""}}, "2", "number"),
    ({"number": 0}, "0", "number"),
    ({"number": 2.5, "spans": ["x"]}, "2.5", "number"),
    ({"number": "", "spans": ["Ann"]}, "Ann", "span"),
    ({"number": None, "spans": ["Ann", "the song"], "date": None}, "Ann, the song", "spans"),
    ({"spans": ["Ann"], "date": {"year": "1900"}}, "Ann", "span"),
    ({"number": "", "spans": [], "date": {"day": "3", "month": "May", "year": "1900"}}, "3 May 1900", "date"),
    ({"date": {"year": 1900, "month": "May"}}, "May 1900", "date"),
    ({"spans": None, "date": {"day": None, "year": "1900"}}, "1900", "date"),
])  # fmt: skip
def test_an_answer_of_drop_is_a_number_spans_or_a_date(answer: dict[str, Any], text: str, kind: str) -> None:
    record = drop({"passage": ANN, "question": WHO, "answer": answer})
    assert (record.completion, record.meta["kind"], record.meta["references"]) == (text, kind, [text])


@pytest.mark.parametrize(("answer", "slug"), [
    ({}, "empty-answer"), ({"number": "", "spans": [], "date": {}}, "empty-answer"),
    ({"date": {"day": "", "month": "", "year": ""}}, "empty-answer"), ({"spans": "Ann"}, "wrong-type"),
    ({"spans": [3]}, "wrong-type"), ({"date": "1900"}, "wrong-type"),
])  # fmt: skip
def test_an_answer_of_drop_without_a_text_is_refused(answer: dict[str, Any], slug: str) -> None:
    assert slug_of(lambda: drop({"passage": ANN, "question": WHO, "answer": answer})) == slug


# nested files


def test_a_squad_file_becomes_one_row_for_each_question() -> None:
    document = {"version": "2", "data": [
        {"title": "t", "paragraphs": [
            {"context": "one", "qas": [{"id": "a"}, {"id": "b"}]},
            {"context": "two", "qas": [{"id": "c", "context": "its own"}]}]},
        {"paragraphs": []},
        {"paragraphs": [{"context": "three", "qas": []}]},
        {"context": "four", "qas": [{"id": "d"}]},
        {"id": "e", "context": "five", "answers": []},
    ]}  # fmt: skip
    assert list(squad_rows(document, "p")) == [
        {"context": "one", "id": "a"}, {"context": "one", "id": "b"}, {"context": "its own", "id": "c"},
        {"context": "four", "id": "d"}, {"id": "e", "context": "five", "answers": []},
    ]  # fmt: skip


def test_keys_above_the_questions_are_counted(tmp_path: Path) -> None:
    answered = {"question": "How deep?", "answers": [{"text": "nine"}]}
    squad_file, drop_file = tmp_path / "squad.json", tmp_path / "drop.json"
    squad_file.write_text(json.dumps({"version": "2", "data": [
        {"title": "t", "paragraphs": [{"context": "nine", "qas": [answered], "page": 3, "note": ""}]},
        {"title": "u", "paragraphs": ["broken"], "topics": []}, "broken"]}), encoding="utf-8")
    drop_file.write_text(json.dumps({"p": {"passage": "nine", "wiki_url": "u", "qa_pairs": [
        {"question": "How deep?", "answer": {"number": "9"}}]}}), encoding="utf-8")
    around = {"version": 1, "data[].title": 2, "data[].paragraphs[].page": 1}
    for file, format, wanted in ((squad_file, "squad", around), (drop_file, "drop", {"wiki_url": 1})):
        unread: Counter[str] = Counter()
        assert list(read_source(str(file), format, "s", unread=unread))
        assert unread == wanted


@pytest.mark.parametrize(("data", "rows"), [
    (["text", 3, None], ["text", 3, None]),
    ([{"title": "no paragraphs"}], [{"title": "no paragraphs"}]),
    ([{"paragraphs": ["text", 3]}], ["text", 3]),
    ([{"paragraphs": [{"context": "no questions"}]}], [{"context": "no questions"}]),
    ([{"paragraphs": [{"context": "c", "qas": ["text", {"id": "a"}]}]}], ["text", {"context": "c", "id": "a"}]),
    ([{"paragraphs": [{"qas": [{"id": "a"}]}]}], [{"context": None, "id": "a"}]),
])  # fmt: skip
def test_broken_pieces_of_a_squad_file_stay_as_they_are(data: list[Any], rows: list[Any]) -> None:
    assert list(squad_rows({"data": data}, "p")) == rows


def test_a_drop_file_becomes_one_row_for_each_question() -> None:
    document = {"nfl_1": {"passage": "one", "qa_pairs": [{"query_id": "a"}, {"query_id": "b"}]},
                "nfl_2": {"passage": "two", "qa_pairs": [{"query_id": "c"}], "wiki_url": "x"},
                "nfl_3": {"passage": "three", "qa_pairs": []}}  # fmt: skip
    assert list(drop_rows(document, "p")) == [
        {"group": "nfl_1", "passage": "one", "query_id": "a"}, {"group": "nfl_1", "passage": "one", "query_id": "b"},
        {"group": "nfl_2", "passage": "two", "query_id": "c"},
    ]  # fmt: skip


@pytest.mark.parametrize(("entry", "row"), [
    ("text", "text"), (None, None), ({"passage": "no questions"}, {"group": "g", "passage": "no questions"}),
    ({"qa_pairs": ["text"]}, "text"), ({"qa_pairs": [{"query_id": "a"}]}, {"group": "g", "passage": None,
                                                                           "query_id": "a"}),
])  # fmt: skip
def test_broken_pieces_of_a_drop_file_stay_as_they_are(entry: Any, row: Any) -> None:
    fine = {"passage": "p", "qa_pairs": [{"query_id": "z"}]}
    assert next(drop_rows({"g": entry, "h": fine}, "p")) == row


@pytest.mark.parametrize(("flatten", "document", "found"), [
    (squad_rows, [1], "list"), (squad_rows, None, "NoneType"), (squad_rows, {"data": {}}, "an object with data"),
    (squad_rows, {"a": 1, "b": 2}, "an object with a, b"), (squad_rows, {}, "an object with "),
    (drop_rows, [], "list"), (drop_rows, {}, "an object with "), (drop_rows, {"data": []}, "an object with data"),
    (drop_rows, {"p": {"passage": "x"}}, "an object with p"), (drop_rows, "text", "str"),
    (drop_rows, dict.fromkeys("abcdefg"), "an object with a, b, c, d, e"),
])  # fmt: skip
def test_a_nested_file_of_another_shape_is_an_error(flatten: Any, document: Any, found: str) -> None:
    with pytest.raises(DataError, match="wrong shape") as caught:
        list(flatten(document, "x.json"))
    assert (caught.value.where, caught.value.found) == ("x.json", found)


@quick
@given(st.lists(json_values | st.fixed_dictionaries({"paragraphs": json_values | st.lists(
    json_values | st.fixed_dictionaries({"context": json_values, "qas": json_values | st.lists(json_values)}))})))
def test_flattening_stops_at_nothing(data: list[Any]) -> None:
    list(squad_rows({"data": data}, "p"))
    fine = {"passage": "p", "qa_pairs": [{"query_id": "z"}]}
    made = list(drop_rows({"fine": fine, **{str(n): entry for n, entry in enumerate(data)}}, "p"))
    assert made[0] == {"group": "fine", "passage": "p", "query_id": "z"}


@quick
@given(st.lists(st.tuples(words, words), min_size=1, max_size=4))
def test_a_passage_of_many_paragraphs_is_the_same_in_every_form(paragraphs: list[tuple[str, str]]) -> None:
    titles, bodies = zip(*paragraphs, strict=True)
    row = {"question": WHO, "answer": "Ann"}
    rows = hotpotqa({**row, "context": [[title, [body]] for title, body in paragraphs]})
    columns = hotpotqa({**row, "context": {"title": list(titles), "sentences": [[body] for body in bodies]}})
    assert rows == columns
    assert rows.meta["passage"] == "\n\n".join(f"{title}: {body.strip()}" for title, body in paragraphs)
