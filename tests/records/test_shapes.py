"""One conversation, however it is written: every shape of TRL's formats gives the same record, or is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.records import Message, Record
from alignment.records.importers import FORMATS
from tests.records.drawn import assistant, bad, good, quick, system, user

BLANKS = st.text(" \n\t", max_size=3)
Json = dict[str, Any]


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    """A prompt: a system turn or none, pairs of turns, and a user's; every text another one."""
    told = [system("Be brief.")] if draw(st.booleans()) else []
    pairs = draw(st.integers(0, 3))
    texts = draw(st.lists(st.text("abc \n", min_size=1).filter(str.strip), min_size=2 * pairs + 1,
                          max_size=2 * pairs + 1, unique_by=str.strip))
    return told + [(assistant if index % 2 else user)(text) for index, text in enumerate(texts)]


def bare(conversation: list[Message]) -> list[Message]:
    return [turn for turn in conversation if turn["role"] != "system"]


def prompts(lead: list[Message], before: str, after: str) -> list[tuple[str, Any, list[Message]]]:
    """(name, prompt or None, turns that the answer brings): every way to write one conversation before an answer."""
    told, asked = lead[:len(lead) - len(bare(lead))], bare(lead)

    def padded(turn: Message) -> Message:
        return {**turn, "content": before + turn["content"] + after}

    made: list[tuple[str, Any, list[Message]]] = [
        ("implicit", None, lead),
        ("blank prompt", " \n", lead),
        ("empty prompt", [], lead),
        ("explicit", lead, []),
        ("twice", [padded(turn) for turn in lead], lead),
        ("last as text", before + asked[-1]["content"] + after, lead),
        ("first as text", before + asked[0]["content"] + after, lead),
        ("last as a turn", [padded(asked[-1])], lead),
        ("all but the system turn", [padded(turn) for turn in asked], lead),
        ("system turn in the prompt alone", lead, asked),
        ("system turn and the last", [*told, padded(asked[-1])], lead),
    ]
    made += [(f"cut at {cut}", lead[:cut], lead[cut:]) for cut in range(1, len(lead))]
    made += [(f"the end from {cut} twice", lead, lead[cut:]) for cut in range(1, len(lead))]
    made += [(f"the beginning to {cut} twice", lead[:cut], lead) for cut in range(1, len(lead))]
    made += [(f"overlap from {cut}", lead[:cut + 1], lead[cut:]) for cut in range(1, len(lead))]
    if len(lead) == 1:
        made.append(("standard", lead[0]["content"], []))
    return made


def with_prompt(row: Json, prompt: Any) -> Json:
    return row if prompt is None else {**row, "prompt": prompt}


def answers(lead: list[Message], said: str) -> list[Any]:
    """An answer with the turns that it brings: as turns, and as text where it brings none."""
    return [[*lead, assistant(said)], *([said] if not lead else [])]


@quick
@given(conversations(), BLANKS, BLANKS, st.sampled_from(["yes", " yes\n", "if x:\n  y"]))
def test_every_shape_of_a_prompt_completion_is_one_record(
    lead: list[Message], before: str, after: str, said: str
) -> None:
    for name, prompt, brought in prompts(lead, before, after):
        for completion in answers(brought, said):
            made = FORMATS["prompt-completion"](with_prompt({"completion": completion}, prompt))
            assert made == Record("", "prompt-completion", lead, said), name


@quick
@given(conversations(), BLANKS, BLANKS)
def test_every_shape_of_a_preference_is_one_record(lead: list[Message], before: str, after: str) -> None:
    for name, prompt, brought in prompts(lead, before, after):
        for chosen in answers(brought, "yes"):
            for rejected in answers(brought, "no"):
                row = with_prompt({"chosen": chosen, "rejected": rejected}, prompt)
                assert FORMATS["preference"](row) == Record("", "preference", lead, "yes", "no"), name
                row = with_prompt({"completion": chosen, "rejected": rejected}, prompt)
                assert FORMATS["preference"](row) == Record("", "preference", lead, "yes", "no"), name


@quick
@given(conversations(), BLANKS, BLANKS, st.booleans())
def test_every_shape_of_an_unpaired_row_is_one_record(
    lead: list[Message], before: str, after: str, label: bool
) -> None:
    for name, prompt, brought in prompts(lead, before, after):
        for completion in answers(brought, "yes"):
            rows = [{"completion": completion}, *([{"messages": completion}] if isinstance(completion, list) else [])]
            for row in rows:
                made = FORMATS["unpaired"](with_prompt({**row, "label": label}, prompt))
                assert made == Record("", "unpaired", lead, "yes", label=label), name


@quick
@given(conversations())
def test_a_system_message_beside_any_shape_is_that_of_the_conversation(lead: list[Message]) -> None:
    lead = [system("Be brief."), *bare(lead)]
    for name, prompt, brought in prompts(bare(lead), "", ""):
        row = with_prompt({"completion": [*brought, assistant("yes")], "system": "Be brief."}, prompt)
        assert good("prompt-completion", row).prompt == lead, name


@quick
@given(conversations(), conversations(), st.sampled_from(["text", "turns"]))
def test_another_conversation_is_refused_with_both_texts(lead: list[Message], other: list[Message], kind: str) -> None:
    """Told apart by letters that the other has not."""
    asked = [{**turn, "content": "x" + turn["content"]} for turn in bare(lead)]
    prompt: Any = asked[-1]["content"] if kind == "text" else asked
    made = bad("prompt-completion", {"prompt": prompt, "completion": [*other, assistant("yes")]})
    assert made.slug == "prompts-differ"
    assert made.reason.count("user: ") >= 2


A, X, B, Y = user("a"), assistant("x"), user("b"), assistant("y")
TOLD = system("s")

MERGED = [
    ("b", [A, X, B, Y], [A, X, B]),
    ("a", [A, X, B, Y], [A, X, B]),
    ("b", [TOLD, A, X, B, Y], [TOLD, A, X, B]),
    (" b\n", [TOLD, A, X, B, Y], [TOLD, A, X, B]),
    ([TOLD, B], [A, X, B, Y], [TOLD, A, X, B]),
    ([A, X], [B, Y], [A, X, B]),
    ([A], [X, B, Y], [A, X, B]),
    ("a", [X, B, Y], [A, X, B]),
    ([A, X, B], [B, Y], [A, X, B]),
    ([A, X, B], [X, B, Y], [A, X, B]),
    ([TOLD], [A, Y], [TOLD, A]),
    ("a", [TOLD, Y], [TOLD, A]),
    ([A, X, {"role": "tool", "content": "3"}], [Y], [A, X, {"role": "tool", "content": "3"}]),
    ([A], [X, {"role": "tool", "content": "3"}, Y], [A, X, {"role": "tool", "content": "3"}]),
]


@pytest.mark.parametrize(("prompt", "completion", "lead"), MERGED)
def test_what_stands_there_already_stands_once(prompt: Any, completion: list[Message], lead: list[Message]) -> None:
    assert FORMATS["prompt-completion"]({"prompt": prompt, "completion": completion}) == Record(
        "", "prompt-completion", lead, "y")


REFUSED = [
    ({"prompt": "c", "completion": [A, X, B, Y]}, "c", "b"),
    ({"prompt": [A, X, B], "completion": [A, Y]}, "b", "a"),
    ({"prompt": [A], "completion": [B, Y]}, "a", "b"),
    ({"prompt": [A, X], "completion": [TOLD, B, Y]}, "x", "s"),
    ({"prompt": [TOLD, A], "completion": [system("t"), A, Y]}, "s", "t"),
    ({"prompt": "a", "completion": [user("A"), Y]}, "a", "A"),
    ({"prompt": "a b", "completion": [user("a  b"), Y]}, "a b", "a  b"),
]


@pytest.mark.parametrize(("row", "one", "other"), REFUSED)
def test_what_disagrees_is_refused_with_both(row: Json, one: str, other: str) -> None:
    made = bad("prompt-completion", row)
    assert made.slug == "prompts-differ"
    assert f": {one}" in made.reason
    assert f": {other}" in made.reason


@pytest.mark.parametrize("row", [
    {"chosen": [A, Y], "rejected": [B, X]},
    {"chosen": [TOLD, A, Y], "rejected": [A, X]},
    {"chosen": [TOLD, A, Y], "rejected": [system("t"), A, X]},
    {"prompt": "a", "chosen": [A, X, B, Y], "rejected": "no"},
    {"chosen": [A, X, B, Y], "rejected": [B, X]},
])  # fmt: skip
def test_two_answers_to_different_conversations_are_no_pair(row: Json) -> None:
    made = bad("preference", row)
    assert made.slug == "prompts-differ"
    assert made.reason.count("user: ") >= 2


@pytest.mark.parametrize(("format", "row"), [
    ("preference", {"prompt": "a", "chosen": "y", "completion": "z", "rejected": "n"}),
    ("unpaired", {"messages": [A, Y], "completion": "z", "label": True}),
    ("unpaired", {"messages": [A, Y], "completion": [A, X], "label": True}),
])  # fmt: skip
def test_two_different_answers_in_one_place_are_refused(format: str, row: Json) -> None:
    assert bad(format, row).slug == "answers-differ"
    assert good(format, {**row, "completion": " y\n"}).completion == "y"


def test_a_prompt_beside_messages_must_agree_with_them() -> None:
    assert good("unpaired", {"prompt": "a", "messages": [A, Y], "label": True}).prompt == [A]
    assert bad("unpaired", {"prompt": "b", "messages": [A, Y], "label": True}).slug == "prompts-differ"
