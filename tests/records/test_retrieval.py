"""Questions answered over retrieval calls: qa_expert's rows, and the sets that become such rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.records import Record
from alignment.records.importers import BadRow, Options, read_source
from alignment.records.importers.retrieval import (
    NO_ANSWER,
    Paragraph,
    Retrieval,
    SubQuestion,
    conversation,
    paragraphs_of,
    record_of,
    retrieval_row,
    row_of,
)
from tests.records.drawn import GOOD, bad, good, imported, quick, without, words

RETRIEVE = Options(retrieve=True)
subs = st.builds(SubQuestion, words, st.none() | words, words, words, st.booleans())
rows = st.builds(Retrieval, st.sampled_from(["", "squad.json"]), words, words, st.none() | words,
                 st.lists(subs, min_size=1, max_size=3).map(tuple), st.sampled_from([None, True]),
                 st.sampled_from([None, {"category": "x"}]), st.none() | words)
STEPS = [{"question": "Which port has Bremen?", "answer": "Haven", "paragraph_support_idx": 0},
         {"question": "How deep is #1?", "answer": "nine metres", "paragraph_support_idx": 2}]
MUSIQUE = {
    "id": "2hop__1_2", "question": "How deep is Bremen's port?", "answer": "nine metres", "answerable": True,
    "paragraphs": [{"idx": 0, "title": "Bremen", "paragraph_text": "Its port is called Haven."},
                   {"idx": 1, "title": "Varde", "paragraph_text": "Varde has no harbour, deep or not."},
                   {"idx": 2, "title": "Haven", "paragraph_text": "It is nine metres deep."}],
    "question_decomposition": STEPS}


def calls(record: Record) -> list[tuple[str, str, str]]:
    """(what is said before a call, its query, what it gives) of each call."""
    return [(turn["content"], turn["tool_calls"][0]["function"]["arguments"]["query"], after["content"])
            for turn, after in zip(record.messages, record.messages[1:], strict=False) if "tool_calls" in turn]


@quick
@given(rows)
def test_a_row_comes_back_from_its_record_and_from_its_file(row: Retrieval) -> None:
    made = record_of(row, "x", {})
    assert row_of(Record.from_json(made.to_json())) == retrieval_row(json.loads(json.dumps(row.to_json())))
    assert row_of(Record.from_json(made.to_json())) == row


@quick
@given(rows)
def test_each_call_carries_the_answer_before_it(row: Retrieval) -> None:
    turns = conversation(row)
    assert [turn["role"] for turn in turns] == ["user", *["assistant", "tool"] * ((len(turns) - 2) // 2), "assistant"]
    found = calls(record_of(row, "x", {}))
    if row.hops:
        said = [one.long_answer.strip() for one in row.sub_questions]
        assert found == [(before, one.question, one.paragraph)
                         for before, one in zip(["", *said], row.sub_questions, strict=False)]
        assert turns[-1]["content"] == f"{said[-1]}\nSummary: {row.final_answer.strip()}"
    else:
        assert found == [("", row.question, row.sub_questions[0].paragraph)]
        assert turns[-1]["content"] == row.final_answer.strip()


def test_the_format_is_read_from_lines_and_from_a_list(tmp_path: Path) -> None:
    row = GOOD["multihop"]
    for name, text in (("lines.jsonl", json.dumps(row) + "\n"), ("list.json", json.dumps([row], indent=1))):
        (tmp_path / name).write_text(text)
        [made] = read_source(str(tmp_path / name), "multihop", "s")
        assert isinstance(made, Record), made
        assert (made.meta["kind"], made.meta["references"]) == ("gen_qa", ["Ann alone did."])
        assert calls(made) == [("", "Did Ann sing?", "Ann sang."), ("Ann sang.", "Did Bob sing?", "Bob only ran.")]


@pytest.mark.parametrize(("change", "slug"), [
    (lambda row: without(row, "sub_questions"), "missing-field"),
    (lambda row: {**row, "sub_questions": []}, "missing-field"),
    (lambda row: {**row, "sub_questions": ["Who?"]}, "wrong-type"),
    (lambda row: {**row, "sub_questions": [without(row["sub_questions"][0], "paragraph")]}, "missing-field"),
    (lambda row: {**row, "sub_questions": [{**row["sub_questions"][0], "paragraph": " "}]}, "empty-prompt"),
    (lambda row: {**row, "sub_questions": [without(one, "long_answer") for one in row["sub_questions"]]},
     "empty-answer"),
    (lambda row: {**row, "final_answer": " "}, "empty-answer"),
    (lambda row: {**row, "question": " "}, "empty-prompt"),
    (lambda row: {**row, "multihop": False}, "hops-differ"),
    (lambda row: {**row, "multihop": "yes"}, "wrong-type"),
])
def test_a_row_that_cannot_be_used_says_why(change: Any, slug: str) -> None:
    assert bad("multihop", change(GOOD["multihop"])).slug == slug


def test_a_question_of_a_set_is_its_own_query_and_its_passage_what_is_found() -> None:
    made = good("squad", GOOD["squad"], RETRIEVE)
    assert calls(made) == [("", "Who?", "Ann sang.")]
    assert made.messages[-1]["content"] == "Ann"
    assert made.meta["references"] == ["Ann", "she"]
    assert made.meta["passage"] == "Ann sang."
    assert good("boolq", GOOD["boolq"], RETRIEVE).messages[-1]["content"] == "Yes"
    assert good("drop", GOOD["drop"], RETRIEVE).messages[-1]["content"] == "3 May"


def test_a_question_without_an_answer_is_learned_as_such() -> None:
    made = good("squad", {"context": "Ann sang.", "question": "Who ran?", "answers": [], "is_impossible": True},
                RETRIEVE)
    assert made.type == "messages"
    assert made.messages[-1]["content"] == NO_ANSWER
    row = row_of(made)
    assert row is not None
    assert (row.sub_questions[0].unanswerable, row.answer) == (True, None)


def test_hotpotqa_finds_its_supporting_paragraphs_at_once() -> None:
    row = {**GOOD["hotpotqa"], "context": [["Ann", ["Ann sang. ", "Often."]], ["Bob", ["Bob ran."]],
                                           ["Eve", ["Eve sang: too."]]]}
    made = good("hotpotqa", {**row, "supporting_facts": [["Eve", 0], ["Ann", 1]]}, RETRIEVE)
    assert calls(made) == [("", "Who?", "Ann: Ann sang. Often.\n\nEve: Eve sang: too.")]
    hub = {**row, "supporting_facts": {"title": ["Bob"], "sent_id": [0]}}
    assert calls(good("hotpotqa", hub, RETRIEVE)) == [("", "Who?", "Bob: Bob ran.")]
    assert bad("hotpotqa", row, RETRIEVE).slug == "missing-field"
    assert bad("hotpotqa", {**row, "supporting_facts": [["Zoe", 0]]}, RETRIEVE).slug == "missing-field"
    # An answer that rests on two texts, of which one is not there, would be learned without it.
    assert bad("hotpotqa", {**row, "supporting_facts": [["Ann", 0], ["Zoe", 0]]}, RETRIEVE).reason.endswith(
        "Zoe not in context")
    assert bad("hotpotqa", {**row, "supporting_facts": []}, RETRIEVE).slug == "missing-field"
    assert bad("hotpotqa", {**row, "supporting_facts": [["Ann"]]}, RETRIEVE).slug == "wrong-type"
    uneven = {**row, "supporting_facts": {"title": ["Ann", "Eve"], "sent_id": [0]}}
    assert bad("hotpotqa", uneven, RETRIEVE).slug == "wrong-type"


def test_a_title_with_a_colon_is_found_like_any_other() -> None:
    row = {**GOOD["hotpotqa"], "context": [["Hour: Europe", ["It sold well."]], ["Ann", ["Ann sang."]]]}
    made = good("hotpotqa", {**row, "supporting_facts": [["Ann", 0], ["Hour: Europe", 0]]}, RETRIEVE)
    assert calls(made) == [("", "Who?", "Hour: Europe: It sold well.\n\nAnn: Ann sang.")]


def test_what_can_be_retrieved_is_kept_with_what_the_answer_rests_on() -> None:
    row = {**GOOD["hotpotqa"], "context": [["Ann", ["Ann sang. ", "Often."]], ["Bob", ["Bob ran."]],
                                           ["Eve", ["Eve sang: too."]]]}
    made = good("hotpotqa", {**row, "supporting_facts": [["Eve", 0], ["Ann", 1], ["Ann", 0]]}, RETRIEVE)
    kept = paragraphs_of(Record.from_json(made.to_json()))
    assert kept == [Paragraph("Ann: Ann sang. Often.", "Ann", True, (0, 1)), Paragraph("Bob: Bob ran.", "Bob"),
                    Paragraph("Eve: Eve sang: too.", "Eve", True, (0,))]
    hops = paragraphs_of(good("musique", MUSIQUE, RETRIEVE))
    assert {one.title: one.gold for one in hops} == {"Bremen": True, "Haven": True, "Varde": False}
    assert paragraphs_of(good("squad", GOOD["squad"], RETRIEVE)) == [Paragraph("Ann sang.", gold=True)]
    nothing = {"context": "Ann sang.", "question": "Who ran?", "answers": [], "is_impossible": True}
    assert paragraphs_of(good("squad", nothing, RETRIEVE)) == [Paragraph("Ann sang.")]
    assert paragraphs_of(good("squad", nothing)) == [Paragraph("Ann sang.")]


def test_musique_asks_the_questions_of_its_decomposition() -> None:
    made = good("musique", MUSIQUE, RETRIEVE)
    assert calls(made) == [("", "Which port has Bremen?", "Bremen: Its port is called Haven."),
                           ("Haven", "How deep is Haven?", "Haven: It is nine metres deep.")]
    assert made.messages[-1]["content"] == "nine metres\nSummary: nine metres"


def test_an_unanswerable_one_ends_at_the_question_that_nothing_answers() -> None:
    steps = [STEPS[0], {**STEPS[1], "paragraph_support_idx": None}, {**STEPS[0], "question": "And #2?"}]
    made = good("musique", {**MUSIQUE, "answerable": False, "question_decomposition": steps,
                            "paragraphs": MUSIQUE["paragraphs"][:2]}, RETRIEVE)
    assert calls(made) == [("", "Which port has Bremen?", "Bremen: Its port is called Haven."),
                           ("Haven", "How deep is Haven?", "Varde: Varde has no harbour, deep or not.")]
    assert made.messages[-1]["content"] == f"{NO_ANSWER}\nSummary: {NO_ANSWER}"


@pytest.mark.parametrize(("steps", "slug"), [
    ([{**STEPS[0], "question": "Bremen >> port"}, STEPS[1]], "malformed-sub-question"),
    ([{**STEPS[1], "question": "How deep is #7?"}], "broken-decomposition"),
    ([{**STEPS[0], "paragraph_support_idx": 9}], "broken-decomposition"),
    ([{**STEPS[0], "paragraph_support_idx": None}], "broken-decomposition"),
    ([], "missing-field"), (None, "missing-field"), (["x"], "wrong-type"),
])
def test_a_decomposition_that_cannot_be_asked_is_refused(steps: Any, slug: str) -> None:
    found = bad("musique", {**MUSIQUE, "question_decomposition": steps}, RETRIEVE).slug
    assert found == slug or (steps == [] and found == "broken-decomposition")


def test_an_answer_to_reject_has_no_place_in_such_a_conversation() -> None:
    assert bad("passage-qa", GOOD["passage-qa"], RETRIEVE).slug == "unsupported-field"


def test_keys_that_are_read_for_it_are_not_counted_as_unread() -> None:
    made = imported("musique", [MUSIQUE], RETRIEVE)
    assert not isinstance(made[0], BadRow)
