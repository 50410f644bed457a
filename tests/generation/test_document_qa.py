"""What is read of a teacher's questions and answers about passages."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.config import DocumentQa
from alignment.config.stages.generate.document_qa import Branch
from alignment.generation.document_qa import (
    answer_of,
    copies,
    grounded,
    is_judgmental,
    loops,
    numbered,
    question_of,
    refusal,
)
from alignment.generation.passages import passages_of, seed_question, seed_questions
from alignment.generation.refused import Refused
from alignment.generation.self_instruct import Language, items
from alignment.records import Record

PASSAGE = ("The harbour of Wrackby is nine metres deep and freezes in most winters, so that the ferry to Holm stops "
           "between January and March, when the pilot repairs the nets of his sister.")


def stage(language: str = "en", **filters: object) -> DocumentQa:
    return DocumentQa.model_validate({"name": "gen", "recipe": "document_qa", "teacher": "base",
                                      "passages": ("docs/train",), "language": language, "filters": filters})


@pytest.mark.parametrize(("item", "question", "trimmed"), [
    ("What is it?", "What is it?", False), ("\"What is it?\"", "What is it?", False),
    ("Question 3: What is it? Answer: a boat.", "What is it?", True), ("**Is it red?** Yes.", "Is it red?", True),
    ("问题：它有多深？答案是九米。", "它有多深？", True), ("No mark here", "No mark here", False),
    ("Q: Why  so\n late?", "Why so late?", False), ("Who said \"Where?\"", "Who said \"Where?\"", False),
])
def test_a_question_is_read_up_to_its_mark(item: str, question: str, trimmed: bool) -> None:
    assert question_of(item) == (question, trimmed)


@given(st.text(max_size=80))
def test_nothing_comes_after_the_mark_of_a_question(item: str) -> None:
    once = question_of(item).text
    assert once == " ".join(once.split())
    assert len(once) <= len(item)
    assert re.fullmatch(r"[^?？]*([?？]+[\"'”’」』)）]*)?", once)


@given(st.lists(st.sampled_from(["Is it deep?", "Who built the pier?", "Why does the ferry stop in January?"]),
                min_size=1, max_size=6, unique=True))
def test_what_is_shown_is_what_would_be_read(questions: list[str]) -> None:
    assert [question_of(str(item)).text for item in items(numbered(questions))] == questions


@pytest.mark.parametrize(("question", "language", "judged"), [
    ("Is the harbour deep?", "en", True), ("According to the passage, did the ferry stop?", "en", True),
    ("Who built it, and is it old?", "en", False), ("What is deep?", "en", False),
    ("Is it red or blue?", "en", False), ("Will it float or not?", "en", True), ("Isn't it late?", "en", True),
    ("Didn’t the pilot know?", "en", True), ("In which year did it open?", "en", False),
    ("Island ferries stop when?", "en", False),
    ("港口很深吗？", "zh", True), ("它是否结冰？", "zh", True), ("有没有渡轮？", "zh", True),
    ("能不能停？", "zh", True),
    ("谁修的码头？", "zh", False), ("是红的还是蓝的？", "zh", False), ("你知道有多少米吗？", "zh", False),
])
def test_what_yes_or_no_answers(question: str, language: Language, judged: bool) -> None:
    assert is_judgmental(question, language) is judged


@pytest.mark.parametrize(("question", "branch", "reason", "language"), [
    ("Why so?", "open", "too-short", "en"), ("Why " + "so " * 70 + "?", "open", "too-long", "en"),
    ("The harbour is deep.", "open", "not-a-question", "en"), ("Is the harbour deep?", "open", "not-open", "en"),
    ("How deep is the harbour?", "judgmental", "not-judgmental", "en"),
    ("港口 有多深 在冬天呢?", "open", "other-language", "en"), ("How deep is the harbour?", "open", None, "en"),
    ("Is the harbour deep?", "judgmental", None, "en"), ("多深？", "open", "too-short", "zh"),
    ("港口有多深？", "open", None, "zh"), ("港口很深吗？", "judgmental", None, "zh"),
    ("How deep is the harbour?", "open", "other-language", "zh"),
])
def test_what_a_question_must_be(question: str, branch: Branch, reason: str | None, language: Language) -> None:
    assert refusal(question, branch, stage(language).filters, language) == reason


def test_filters_can_be_switched_off() -> None:
    free = stage(min_words=0, max_words=1000, question_mark=False, form=False, own_language=0.0).filters
    assert refusal("好", "open", free, "en") is None


QUESTION = "Does the ferry stop in winter?"


@pytest.mark.parametrize(("text", "made"), [
    ("Yes, the harbour freezes.", "Yes. The harbour freezes."), ("Answer: No. It goes on.", "No. It goes on."),
    ("**Yes** - because of ice in January", "Yes. Because of ice in January"),
    ("Yes\nReason: it freezes.", "Yes. It freezes."),
])
def test_yes_and_no_come_with_their_reason(text: str, made: str) -> None:
    assert answer_of(text, "judgmental", QUESTION, PASSAGE, stage().filters, "en") == made


@pytest.mark.parametrize(("text", "made"), [
    ("是，港口会结冰。", "是。港口会结冰。"), ("是的，因为结冰。", "是。因为结冰。"),
    ("否。它一直开。", "否。它一直开。"),
    ("不是，它一直开。", "否。它一直开。"), ("答案：是。理由：港口结冰。", "是。港口结冰。"),
])
def test_they_do_in_chinese(text: str, made: str) -> None:
    assert answer_of(text, "judgmental", "渡轮冬天停航吗？", "港口结冰。", stage("zh").filters, "zh") == made


@pytest.mark.parametrize(("text", "branch", "reason"), [
    ("", "open", "empty-answer"), (" **.** ", "open", "empty-answer"), ("Answer:", "open", "empty-answer"),
    ("As an AI language model, I have no harbour.", "open", "declined"),
    ("I'm sorry, but that is not told.", "judgmental", "declined"),
    (f"{QUESTION} Yes.", "open", "repeats-question"),
    ("the ferry stops and the ferry stops and the ferry stops and the ferry stops and", "open", "repeats-itself"),
    ("港口很深很深很深", "open", "other-language"), (PASSAGE, "open", "repeats-passage"),
    ("The ferry stops.", "judgmental", "neither-yes-nor-no"), ("Yesterday it did.", "judgmental", "neither-yes-nor-no"),
    ("Yes.", "judgmental", "no-reason"), (f"Yes. {PASSAGE}", "judgmental", "repeats-passage"),
])
def test_an_answer_that_is_none_says_why(text: str, branch: Branch, reason: str) -> None:
    made = answer_of(text, branch, QUESTION, PASSAGE, stage().filters, "en")
    assert isinstance(made, Refused)
    assert made.reason == reason


def test_numbers_are_an_answer_in_every_language() -> None:
    assert answer_of("9", "open", "How deep?", PASSAGE, stage().filters, "en") == "9"
    assert answer_of("1902", "open", "哪一年？", PASSAGE, stage("zh").filters, "zh") == "1902"


def test_a_bare_yes_is_kept_where_no_reason_is_asked() -> None:
    assert answer_of("no", "judgmental", QUESTION, PASSAGE, stage(reason=False).filters, "en") == "No"


@pytest.mark.parametrize(("answer", "language", "share"), [
    ("Nine metres", "en", 1.0), ("The crocodile ferry", "en", 0.5), ("Purple crocodiles", "en", 0.0),
    ("So it is", "en", 1.0),
    ("In 1950", "en", 0.0), ("港口结冰", "zh", 1.0), ("鳄鱼很大", "zh", 0.0),
])
def test_how_much_of_an_answer_the_passage_holds(answer: str, language: Language, share: float) -> None:
    passage = PASSAGE if language == "en" else "港口结冰，渡轮停航。"
    assert grounded(answer, passage, "Why?", language) == share
    bound = stage(language, grounding=0.6).filters
    made = answer_of(answer, "open", "Why?", passage, bound, language)
    assert isinstance(made, Refused) == (share < 0.6)


@given(st.text(max_size=200), st.sampled_from(["judgmental", "open"]), st.sampled_from(["en", "zh"]))
def test_every_answer_is_kept_or_has_a_reason(text: str, branch: Branch, language: Language) -> None:
    made = answer_of(text, branch, "Is it so?", PASSAGE, stage(language).filters, language)
    assert isinstance(made, Refused) or made.strip()
    if branch == "judgmental" and isinstance(made, str):
        assert made.startswith(("Yes. ", "No. ") if language == "en" else ("是。", "否。"))


def test_short_answers_never_loop_or_copy() -> None:
    assert not loops("no no no no")
    assert not copies("nine metres deep", "nine metres deep")
    assert copies(PASSAGE + " And so on.", PASSAGE)


def test_each_passage_is_asked_about_once_and_rows_without_one_are_counted() -> None:
    rows = [Record("a", "passage", meta={"passage": "One  text.", "group": "g", "document": {"file": "f"}}),
            Record("b", "prompt-completion", [{"role": "user", "content": "x"}], "y", meta={"passage": "one text."}),
            Record("c", "prompt-completion", [{"role": "user", "content": "x"}], "y"),
            Record("d", "prompt-completion", [{"role": "user", "content": "x"}], "y", meta={"passage": "Another."})]
    passages, unfit = passages_of(rows)
    assert [(one.id, one.group, one.document) for one in passages] == [
        ("a", "g", {"file": "f"}), ("d", passages[1].group, {})]
    assert unfit == {"row without a passage": 1}


def test_seeds_are_questions_of_rows_or_lines_of_files() -> None:
    def row(question: str | None, answer: str, **meta: object) -> Record:
        return Record("r", "prompt-completion", [{"role": "user", "content": "Read. So?"}], answer,
                      meta={**({} if question is None else {"question": question}), **meta})

    assert seed_question(row("Is it?", "Yes, it is.")) == ("judgmental", "Is it?")
    assert seed_question(row("Who?", "Nobody knows.")) == ("open", "Who?")
    assert seed_question(row("Who?", "x", kind="yes-no")) == ("judgmental", "Who?")
    assert seed_question(row(None, "Bell")) == ("open", "Read. So?")
    assert seed_question(Record("r", "passage", meta={"passage": "x"})) == "no single question"
    made, unfit = seed_questions([row("Is it?", "No."), Record("r", "passage")], {"open_seeds": "not read"})
    assert made == {"judgmental": ["Is it?"], "open": []}
    assert unfit == {"seed: no single question": 1}
    assert seed_questions(None, {"open_seeds": "Who?\n\nWho?\n Why? "})[0]["open"] == ["Who?", "Why?"]
