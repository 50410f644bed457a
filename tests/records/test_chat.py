"""Conversations: what becomes of our own fields, Alpaca and ShareGPT, and which rows are refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.records import Message, Record
from alignment.records.importers import FORMATS
from alignment.records.importers.chat import SHAREGPT_ROLES, instruction
from alignment.records.importers.rows import RowError
from alignment.records.importers.turns import ROLES, turns
from tests.records.drawn import GOOD, assistant, quick, slug_of, system, texts, user, without, words

HELLO, HI, BYE, CIAO = user("Hello"), assistant("Hi."), user("Bye"), assistant("Ciao.")
TALK = [HELLO, HI, BYE, CIAO]
HUMAN, GPT = {"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi."}
NO_GPT = {"from": "gpt", "value": "No."}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}

BECOMES = [
    ("messages", {"id": 7, "messages": TALK, "group": "g"},
     Record("7", "messages", messages=TALK, meta={"group": "g"})),
    ("messages", {"messages": [system("Be brief."), *TALK]},
     Record("", "messages", messages=[system("Be brief."), *TALK])),
    ("messages", {"messages": [{"weight": 1, **HELLO, "name": "Ann"}, HI]},
     Record("", "messages", messages=[HELLO, HI])),
    ("messages",
     {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hello", "image_url": None}]}, HI]},
     Record("", "messages", messages=[HELLO, HI])),
    ("messages", {"messages": [{"role": "developer", "content": "Be brief."}, HELLO, HI]},
     Record("", "messages", messages=[system("Be brief."), HELLO, HI])),
    ("messages", {"messages": [HELLO, assistant("call"), {"role": "tool", "content": "3"}, HI]},
     Record("", "messages", messages=[HELLO, assistant("call"), {"role": "tool", "content": "3"}, HI])),
    # A prompt is text or turns; an answer is text, or turns that end with it.
    ("prompt-completion", {"prompt": "Hello", "completion": "Hi."}, Record("", "prompt-completion", [HELLO], "Hi.")),
    ("prompt-completion", {"prompt": [system("s"), HELLO], "completion": [HI]},
     Record("", "prompt-completion", [system("s"), HELLO], "Hi.")),
    ("prompt-completion", {"completion": [HELLO, HI]}, Record("", "prompt-completion", [HELLO], "Hi.")),
    ("prompt-completion", {"prompt": None, "completion": TALK}, Record("", "prompt-completion", TALK[:3], "Ciao.")),
    ("prompt-completion", {"prompt": [HELLO, HI], "completion": [BYE, CIAO]},
     Record("", "prompt-completion", TALK[:3], "Ciao.")),
    ("prompt-completion", {"prompt": "Hello", "completion": [HELLO, HI]},
     Record("", "prompt-completion", [HELLO], "Hi.")),
    ("prompt-completion", {"prompt": "Hello", "completion": TALK}, Record("", "prompt-completion", TALK[:3], "Ciao.")),
    ("prompt-completion", {"prompt": TALK[:3], "completion": [BYE, CIAO]},
     Record("", "prompt-completion", TALK[:3], "Ciao.")),
    ("prompt-completion", {"prompt": " Hello\n", "completion": " Hi.\n"},
     Record("", "prompt-completion", [user(" Hello\n")], " Hi.\n")),
    ("preference", {"prompt": "Hello", "chosen": "Hi.", "rejected": "No."},
     Record("", "preference", [HELLO], "Hi.", "No.")),
    ("preference", {"chosen": [HELLO, HI], "rejected": [HELLO, assistant("No.")]},
     Record("", "preference", [HELLO], "Hi.", "No.")),
    ("preference", {"prompt": "Hello", "chosen": [HELLO, HI], "rejected": [HELLO, assistant("No.")]},
     Record("", "preference", [HELLO], "Hi.", "No.")),
    ("preference", {"prompt": [HELLO], "chosen": [HELLO, HI], "rejected": "No."},
     Record("", "preference", [HELLO], "Hi.", "No.")),
    ("preference", {"prompt": [HELLO], "completion": "Hi.", "rejected": "No."},
     Record("", "preference", [HELLO], "Hi.", "No.")),
    ("preference", {"prompt": [HELLO], "completion": "Hi.", "chosen": None, "rejected": "No."},
     Record("", "preference", [HELLO], "Hi.", "No.")),
    ("unpaired", {"prompt": "Hello", "completion": "Hi.", "label": True},
     Record("", "unpaired", [HELLO], "Hi.", label=True)),
    ("unpaired", {"messages": TALK, "label": False}, Record("", "unpaired", TALK[:3], "Ciao.", label=False)),
    ("unpaired", {"messages": None, "prompt": "Hello", "completion": [HI], "label": False},
     Record("", "unpaired", [HELLO], "Hi.", label=False)),
    ("prompt-only", {"prompt": "Hello", "kind": "greeting"},
     Record("", "prompt-only", [HELLO], meta={"kind": "greeting"})),
    ("prompt-only", {"prompt": TALK[:3]}, Record("", "prompt-only", TALK[:3])),
    ("alpaca", {"instruction": "Add.", "input": "1 and 2", "output": "3"},
     Record("", "prompt-completion", [user("Add.\n\n1 and 2")], "3")),
    ("alpaca", {"id": "a", "instruction": "Hello", "input": " \n", "output": "Hi.", "history": []},
     Record("a", "prompt-completion", [HELLO], "Hi.")),
    ("alpaca", {"instruction": "", "input": "Hello", "output": "Hi.", "history": None},
     Record("", "prompt-completion", [HELLO], "Hi.")),
    ("alpaca", {"instruction": "Bye", "output": "Ciao.", "history": [["Hello", "Hi."]]},
     Record("", "prompt-completion", TALK[:3], "Ciao.")),
    ("alpaca", {"instruction": "Hello", "input": "you", "output": "Hi.", "history": [["a", "b"], ["c", "d"]]},
     Record("", "prompt-completion",
            [user("a"), assistant("b"), user("c"), assistant("d"), user("Hello\n\nyou")], "Hi.")),
    ("sharegpt", {"id": "x_0", "conversations": [HUMAN, GPT]}, Record("x_0", "messages", messages=[HELLO, HI])),
    ("sharegpt",
     {"conversations": [{**HUMAN, "value": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]}, GPT]},
     Record("", "messages", messages=[HELLO, HI])),
    ("sharegpt", {"conversations": [HUMAN, {"from": "function_call", "value": '{"name": "f", "arguments": {"a": 1}}'},
                                    {"from": "observation", "value": "3"}, GPT]},
     Record("", "messages", messages=[HELLO, {**assistant(""), "tool_calls": [CALL]},
                                      {"role": "tool", "content": "3"}, HI])),
    ("sharegpt-preference", {"conversations": [HUMAN], "chosen": GPT, "rejected": NO_GPT},
     Record("", "preference", [HELLO], "Hi.", "No.")),
    ("sharegpt-preference", {"conversations": [HUMAN, GPT, {"from": "user", "value": "Bye"}],
                             "chosen": {"from": "model", "value": "Ciao."}, "rejected": NO_GPT},
     Record("", "preference", TALK[:3], "Ciao.", "No.")),
]  # fmt: skip


@pytest.mark.parametrize(("format", "row", "record"), BECOMES, ids=[f"{f}-{n}" for n, (f, _, _) in enumerate(BECOMES)])
def test_a_good_row_becomes_its_record(format: str, row: dict[str, Any], record: Record) -> None:
    assert FORMATS[format](row) == record


REFUSED = [
    ("messages", {"messages": None}, "missing-field"),
    ("messages", {"messages": "Hello"}, "wrong-type"),
    ("messages", {"messages": ["Hello"]}, "wrong-type"),
    ("messages", {"messages": [{"role": "user"}]}, "missing-field"),
    ("messages", {"messages": [{"content": "Hello"}]}, "missing-field"),
    ("messages", {"messages": [{"role": "User", "content": "Hello"}]}, "unknown-role"),
    ("messages", {"messages": [{"role": 1, "content": "Hello"}]}, "wrong-type"),
    ("messages", {"messages": [{"role": "user", "content": ["Hello"]}]}, "wrong-type"),
    ("messages", {"messages": [{"role": "user", "content": {"type": "text", "text": "Hello"}}]}, "wrong-type"),
    ("messages", {"messages": [{"role": "user", "content": [{"text": "Hello"}]}]}, "missing-field"),
    ("messages", {"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]}, "wrong-type"),
    ("messages", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "unsupported-field"),
    ("messages", {"messages": [{"from": "human", "value": "Hello"}]}, "missing-field"),
    ("prompt-completion", {"completion": "Hi."}, "missing-field"),
    ("prompt-completion", {"completion": [HI]}, "missing-field"),
    ("prompt-completion", {"prompt": 3, "completion": "Hi."}, "wrong-type"),
    ("prompt-completion", {"prompt": {"role": "user"}, "completion": "Hi."}, "wrong-type"),
    ("prompt-completion", {"prompt": "Hello", "completion": HI}, "wrong-type"),
    ("prompt-completion", {"prompt": "Hello", "completion": []}, "empty-answer"),
    ("prompt-completion", {"prompt": "Hello", "completion": [HELLO]}, "last-not-assistant"),
    ("prompt-completion", {"prompt": "Hello", "completion": "Hi.", "meta": "x"}, "wrong-type"),
    ("preference", {"prompt": "Hello", "chosen": "Hi."}, "missing-field"),
    ("preference", {"prompt": "Hello", "rejected": "No."}, "missing-field"),
    ("preference", {"chosen": "Hi.", "rejected": "No."}, "missing-field"),
    ("preference", {"chosen": [HELLO, HI], "rejected": "No."}, "missing-field"),
    ("preference", {"chosen": [HELLO, HI], "rejected": [BYE, CIAO]}, "prompts-differ"),
    ("preference", {"prompt": "Hello", "chosen": TALK, "rejected": "No."}, "prompts-differ"),
    ("preference", {"prompt": "Hello", "chosen": "Hi.", "rejected": []}, "empty-answer"),
    ("preference", {"prompt": "Hello", "chosen": "Hi.", "rejected": [HI, BYE]}, "last-not-assistant"),
    ("unpaired", {"prompt": "Hello", "completion": "Hi."}, "missing-field"),
    ("unpaired", {"prompt": "Hello", "label": True}, "missing-field"),
    ("unpaired", {"prompt": "Hello", "completion": "Hi.", "label": 1}, "wrong-type"),
    ("unpaired", {"messages": [], "label": True}, "empty-answer"),
    ("unpaired", {"messages": [HELLO], "label": True}, "last-not-assistant"),
    ("prompt-only", {}, "missing-field"),
    ("prompt-only", {"prompt": [{"role": "critic", "content": "x"}]}, "unknown-role"),
    ("alpaca", {"output": "3"}, "missing-field"),
    ("alpaca", {"instruction": "Add."}, "missing-field"),
    ("alpaca", {"instruction": "Add.", "input": 3, "output": "3"}, "wrong-type"),
    ("alpaca", {"instruction": "Add.", "output": 3}, "wrong-type"),
    ("alpaca", {"instruction": "Add.", "output": "3", "history": "x"}, "wrong-type"),
    ("alpaca", {"instruction": "Add.", "output": "3", "history": [3]}, "wrong-type"),
    ("alpaca", {"instruction": "Add.", "output": "3", "history": [["x"]]}, "wrong-type"),
    ("alpaca", {"instruction": "Add.", "output": "3", "history": [["x", None]]}, "wrong-type"),
    ("alpaca", {"instruction": "Add.", "output": "3", "history": [["x", "y", "z"]]}, "wrong-type"),
    ("sharegpt", {}, "missing-field"),
    ("sharegpt", {"conversations": {}}, "wrong-type"),
    ("sharegpt", {"conversations": [HELLO]}, "missing-field"),
    ("sharegpt", {"conversations": [{"from": "narrator", "value": "x"}]}, "unknown-role"),
    ("sharegpt", {"conversations": [{"from": "human", "value": None}]}, "missing-field"),
    ("sharegpt-preference", {"conversations": [HUMAN], "chosen": GPT}, "missing-field"),
    ("sharegpt-preference", {"conversations": [HUMAN], "chosen": "Hi.", "rejected": NO_GPT}, "wrong-type"),
    ("sharegpt-preference", {"conversations": [HUMAN], "chosen": HUMAN, "rejected": NO_GPT}, "last-not-assistant"),
    ("sharegpt-preference", {"chosen": GPT, "rejected": NO_GPT}, "missing-field"),
]  # fmt: skip


@pytest.mark.parametrize(("format", "row", "slug"), REFUSED, ids=[f"{f}-{n}" for n, (f, _, _) in enumerate(REFUSED)])
def test_a_row_is_refused_with_its_reason(format: str, row: dict[str, Any], slug: str) -> None:
    assert slug_of(lambda: FORMATS[format](row)) == slug


NEEDED = [("messages", "messages"), ("prompt-completion", "prompt"), ("prompt-completion", "completion"),
          ("preference", "prompt"), ("preference", "chosen"), ("preference", "rejected"), ("unpaired", "label"),
          ("prompt-only", "prompt"), ("alpaca", "instruction"), ("alpaca", "output"), ("sharegpt", "conversations"),
          ("sharegpt-preference", "conversations"), ("sharegpt-preference", "chosen"),
          ("sharegpt-preference", "rejected")]  # fmt: skip


@pytest.mark.parametrize(("format", "field"), NEEDED)
def test_a_field_that_is_needed_may_not_be_missing_or_null(format: str, field: str) -> None:
    assert slug_of(lambda: FORMATS[format](GOOD[format])) == ""
    assert slug_of(lambda: FORMATS[format](without(GOOD[format], field))) == "missing-field"
    assert slug_of(lambda: FORMATS[format]({**GOOD[format], field: None})) == "missing-field"


@pytest.mark.parametrize(("speaker", "role"), SHAREGPT_ROLES.items())
def test_every_speaker_of_sharegpt_has_a_role_of_ours(speaker: str, role: str) -> None:
    assert role in ROLES
    [turn] = FORMATS["sharegpt"]({"conversations": [{"from": speaker, "value": '{"name": "f"}'}]}).messages
    assert (turn["role"], turn["content"] or turn["tool_calls"][0]["function"]["name"]) == (
        role, "f" if speaker == "function_call" else '{"name": "f"}')


def test_a_reason_names_the_turn() -> None:
    with pytest.raises(RowError, match=r"prompt\[1\] has role 'critic', expected one of system, user, assistant"):
        FORMATS["prompt-only"]({"prompt": [HELLO, {"role": "critic", "content": "x"}]})


@quick
@given(st.lists(st.fixed_dictionaries({"role": st.sampled_from(ROLES), "content": texts}), max_size=4), st.text())
def test_turns_keep_order_and_text_and_nothing_else(made: list[Message], other: str) -> None:
    assert turns([{"other": other, **message} for message in made], "messages") == made


@quick
@given(words, words)
def test_an_instruction_holds_both_texts_whole(first: str, second: str) -> None:
    assert instruction({"instruction": first, "input": second}) == [user(first + "\n\n" + second)]
    assert instruction({"instruction": first}) == instruction({"instruction": first, "input": " "}) == [user(first)]


@quick
@given(st.lists(st.sampled_from([HELLO, HI, BYE, system("s")]), min_size=1, max_size=4), words, words)
def test_a_conversation_cut_anywhere_between_prompt_and_answer_is_the_same_row(
    lead: list[Message], chosen: str, rejected: str
) -> None:
    whole = Record("", "preference", lead, chosen, rejected)
    assert FORMATS["preference"]({"prompt": lead, "chosen": chosen, "rejected": rejected}) == whole
    answers = {"chosen": [*lead, assistant(chosen)], "rejected": [*lead, assistant(rejected)]}
    assert FORMATS["preference"](answers) == whole
    assert FORMATS["preference"]({"prompt": lead, **answers}) == whole
