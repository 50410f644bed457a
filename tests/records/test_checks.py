"""The checks that every record passes, and rows that stand twice."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.records import Record
from alignment.records.importers.checks import Seen, check, same
from alignment.records.importers.rows import RowError
from tests.records.drawn import assistant, quick, records, slug_of, sound_records, system, texts, user

HELLO, HI, TOOL = user("Hello"), assistant("Hi."), {"role": "tool", "content": "3"}


def answer(*prompt: dict[str, str], completion: str = "Hi.", rejected: str | None = None) -> Record:
    return Record("a", "prompt-completion" if rejected is None else "preference", list(prompt), completion, rejected)


def talk(*messages: dict[str, str]) -> Record:
    return Record("a", "messages", messages=list(messages))


@pytest.mark.parametrize("record", [
    answer(HELLO),
    answer(system("s"), HELLO),
    answer(system("s"), HELLO, HI, HELLO),
    answer(HELLO, assistant("f()"), TOOL),
    answer(HI, HELLO),
    answer(HELLO, HELLO),
    answer(HELLO, rejected="No."),
    answer(HELLO, rejected="hi."),
    answer(HELLO, completion="if x:\n    y()\n    z()", rejected="if x:\n    y()\nz()"),
    answer(HELLO, completion="one\ntwo", rejected="one two"),
    answer(HELLO, completion="a  b", rejected="a b"),
    answer(HELLO, completion="a\tb", rejected="a b"),
    talk(HELLO, HI),
    talk(system("s"), HELLO, HI, HELLO, HI),
    talk(HELLO, assistant("f()"), TOOL, HI),
    Record("a", "prompt-only", [HELLO]),
    Record("a", "unpaired", [HELLO], "Hi.", label=False),
])  # fmt: skip
def test_a_sound_record_passes(record: Record) -> None:
    check(record)


REFUSED = [
    (answer(), "empty-prompt"),
    (answer(system("s")), "empty-prompt"),
    (answer(user("")), "empty-prompt"),
    (answer(user(" \n\u2028")), "empty-prompt"),
    (answer(HELLO, HI, user(" ")), "empty-prompt"),
    (talk(), "empty-prompt"),
    (talk(HI), "empty-prompt"),
    (talk(system("s"), HI), "empty-prompt"),
    (Record("a", "prompt-only"), "empty-prompt"),
    (answer(user(""), HI, HELLO), "empty-message"),
    (answer(HELLO, assistant(" "), HELLO), "empty-message"),
    (talk(HELLO, assistant(""), HELLO, HI), "empty-message"),
    (answer(HELLO, HI), "prompt-not-from-user"),
    (answer(HELLO, system("s")), "prompt-not-from-user"),
    (talk(HELLO, HI, HI), "prompt-not-from-user"),
    (Record("a", "prompt-only", [HELLO, HI]), "prompt-not-from-user"),
    (answer(HELLO, system("s"), HELLO), "misplaced-system"),
    (answer(system("s"), system("t"), HELLO), "misplaced-system"),
    (talk(HELLO, system("s"), HELLO, HI), "misplaced-system"),
    (talk(HELLO), "last-not-assistant"),
    (talk(HELLO, HI, TOOL), "last-not-assistant"),
    (answer(HELLO, completion=""), "empty-answer"),
    (answer(HELLO, completion=" \t\n"), "empty-answer"),
    (answer(HELLO, rejected=" "), "empty-answer"),
    (talk(HELLO, assistant("\n")), "empty-answer"),
    (answer(HELLO, rejected="Hi."), "chosen-equals-rejected"),
    (answer(HELLO, completion="a b", rejected=" \n\ta b\u2028"), "chosen-equals-rejected"),
    (answer(user("\ud800")), "broken-text"),
    (answer(HELLO, completion="x\udfff"), "broken-text"),
    (replace(answer(HELLO), id="\ud800"), "broken-text"),
    (replace(answer(HELLO), meta={"of": ["\ud800"]}), "broken-text"),
    (replace(answer(HELLO), meta={"\ud800": 1}), "broken-text"),
]


@pytest.mark.parametrize(("record", "slug"), REFUSED, ids=[f"{slug}-{n}" for n, (_, slug) in enumerate(REFUSED)])
def test_a_record_is_refused_with_its_reason(record: Record, slug: str) -> None:
    assert slug_of(lambda: check(record)) == slug


@quick
@given(texts, st.text(" \n\t\u2028\xa0"), st.text(" \n\t"))
def test_blanks_around_a_text_make_no_other_text_and_blanks_within_do(text: str, before: str, after: str) -> None:
    assert same(text, before + text + after)
    assert same(f"a{before}b", f"a{after}b") == (before == after)


SLUGS = {"", "empty-prompt", "empty-message", "empty-answer", "last-not-assistant", "prompt-not-from-user",
         "misplaced-system", "chosen-equals-rejected", "broken-text"}  # fmt: skip


@quick
@given(records | st.builds(answer, st.builds(user, st.text()), completion=st.text(), rejected=st.none() | st.text()))
def test_any_record_passes_or_has_a_known_reason(record: Record) -> None:
    slug = slug_of(lambda: check(record))
    assert slug in SLUGS
    if not slug:
        assert Record.from_json(record.to_json().encode("utf-8").decode("utf-8")) == record


@quick
@given(sound_records())
def test_drawn_sound_records_pass(record: Record) -> None:
    check(record)


# rows that stand twice


def refused_after(first: Record, second: Record) -> str:
    seen = Seen()
    seen.add(first)
    return slug_of(lambda: seen.add(second))


BASE = Record("a", "preference", [HELLO], "Hi.", "No.")


@pytest.mark.parametrize(("second", "slug"), [
    (BASE, "duplicate-row"),
    (replace(BASE, id="b"), "duplicate-row"),
    (replace(BASE, id="b", completion=" Hi.\n"), "duplicate-row"),
    (replace(BASE, id="b", meta={"group": "g"}), "duplicate-row"),
    (replace(BASE, completion="Ho."), "duplicate-id"),
    (replace(BASE, id="b", completion="Ho."), ""),
    (replace(BASE, id="b", completion="hi."), ""),
    (replace(BASE, id="b", prompt=[user("Hello\n")]), "duplicate-row"),
    (replace(BASE, id="b", prompt=[user("Hel lo")]), ""),
    (replace(BASE, id="b", rejected="N\no."), ""),
    (replace(BASE, id="b", rejected="Never."), ""),
    (replace(BASE, id="b", rejected="Hi.", completion="No."), ""),
    (replace(BASE, id="b", prompt=[system("s"), HELLO]), ""),
    (replace(BASE, id="b", prompt=[HELLO, HI, HELLO]), ""),
    (replace(BASE, id="b", prompt=[TOOL]), ""),
])  # fmt: skip
def test_the_same_text_or_the_same_id_is_kept_once(second: Record, slug: str) -> None:
    assert refused_after(BASE, second) == slug


def test_labels_tell_two_verdicts_on_one_answer_apart() -> None:
    wanted, unwanted = (Record(str(label), "unpaired", [HELLO], "Hi.", label=label) for label in (True, False))
    assert refused_after(wanted, unwanted) == ""
    assert refused_after(wanted, replace(unwanted, label=True)) == "duplicate-row"


def test_texts_that_touch_are_not_run_together() -> None:
    assert refused_after(answer(user("a"), user("b c")), replace(answer(user("a b"), user("c")), id="b")) == ""
    assert refused_after(answer(user("a"), completion="b"), replace(answer(user("a b"), completion=""), id="b")) == ""


def test_a_duplicate_names_the_row_that_was_first() -> None:
    seen = Seen()
    seen.add(BASE)
    with pytest.raises(RowError, match="duplicate-row: same text as row a"):
        seen.add(replace(BASE, id="b"))


def test_a_row_that_is_refused_is_not_remembered() -> None:
    seen = Seen()
    seen.add(BASE)
    other = answer(user("Bye"))
    assert slug_of(lambda: seen.add(other)) == "duplicate-id"  # BASE has this id
    assert slug_of(lambda: seen.add(replace(other, id="b"))) == ""
    assert slug_of(lambda: seen.add(replace(BASE, id="c"))) == "duplicate-row"
    assert slug_of(lambda: seen.add(replace(answer(user("Ciao")), id="c"))) == ""


@quick
@given(st.lists(sound_records(), max_size=5))
def test_what_was_seen_once_is_never_new_again(drawn: list[Record]) -> None:
    seen = Seen()

    def refused(record: Record, id: str) -> str:
        return slug_of(lambda: seen.add(replace(record, id=id)))

    first = [refused(record, str(number)) for number, record in enumerate(drawn)]
    assert set(first) <= {"", "duplicate-row"}
    assert first[:1] == [""] * len(drawn[:1])
    assert [refused(record, "new") for record in drawn] == ["duplicate-row"] * len(drawn)
