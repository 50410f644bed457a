"""Tools, calls, thoughts and turns that are not learned, under the makers' templates that TRL carries and our own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from alignment import templates
from alignment.errors import DataError
from alignment.records import Message
from tests.templates.tokenizers import small

TOOL = {"type": "function", "function": {"name": "warmth", "description": "Of a place", "parameters": {
    "type": "object", "properties": {"place": {"type": "string", "description": "A town"}}, "required": ["place"]}}}


def call(place: str) -> dict[str, Any]:
    return {"type": "function", "id": f"call-{place}", "function": {"name": "warmth", "arguments": {"place": place}}}


def calling(*places: str, content: str = "") -> Message:
    return {"role": "assistant", "content": content, "tool_calls": [call(place) for place in places]}


ASKED: Message = {"role": "user", "content": "How warm?"}
OFFERED: Message = {**ASKED, "tools": [TOOL]}
RESULT: Message = {"role": "tool", "content": "9", "name": "warmth", "tool_call_id": "call-Jena"}
ANSWER: Message = {"role": "assistant", "content": "Nine degrees."}
THOUGHT: Message = {**ANSWER, "reasoning_content": "Hm, nine."}
UNLEARNED: Message = {**ANSWER, "learn": False}

CASES: dict[str, list[Message]] = {
    "tools": [OFFERED, ANSWER],
    "a call": [OFFERED, calling("Jena")],
    "a call and its result": [OFFERED, calling("Jena"), RESULT, ANSWER],
    "two calls": [OFFERED, calling("Jena", "Ulm"), RESULT, RESULT, ANSWER],
    "text beside a call": [OFFERED, calling("Jena", content="Let me see."), RESULT, ANSWER],
    "a call without tools": [ASKED, calling("Jena"), RESULT, ANSWER],
    "a thought": [ASKED, THOUGHT],
    "an earlier thought": [ASKED, THOUGHT, ASKED, ANSWER],
}
IGNORED = {
    "qwen2_5": {"a thought": "reasoning_content", "an earlier thought": "reasoning_content"},
    "qwen3": {"an earlier thought": "reasoning_content"},
    "llama3_2": {"text beside a call": "text beside tool_calls", "a thought": "reasoning_content",
                 "an earlier thought": "reasoning_content"},
    "gptoss": {"two calls": "one of several tool_calls", "text beside a call": "text beside tool_calls",
               "a thought": "reasoning_content", "an earlier thought": "reasoning_content"},
    "llama3": {**dict.fromkeys(list(CASES)[:5], "tools"), "a call without tools": "tool_calls",
               "a thought": "reasoning_content", "an earlier thought": "reasoning_content"},
}
"""Template of TRL's folder -> case -> what it leaves out, by reading it; of the others it leaves nothing out."""


def trls(name: str) -> Any:
    """A small tokenizer with the special tokens and a template of TRL's folder."""
    import trl

    tokenizer = copy.deepcopy(small("chatml"))
    tokenizer.add_special_tokens({"additional_special_tokens": [
        "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|end|>", "<|return|>", "<|call|>"],
        "bos_token": "<|begin_of_text|>"})  # fmt: skip
    folder = Path(trl.__file__).parent / "chat_templates"
    tokenizer.chat_template = (folder / f"{name}.jinja").read_text(encoding="utf-8")
    return tokenizer


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", IGNORED)
def test_what_a_template_leaves_out_is_refused_and_what_it_tells_is_encoded(name: str, case: str) -> None:
    messages, tokenizer = CASES[case], trls(name)
    if left_out := IGNORED[name].get(case):
        with pytest.raises(DataError) as error:
            templates.encode_completion(tokenizer, messages[:-1], messages[-1])
        assert error.value.problem == f"the chat template ignores {left_out}"
        return
    if name.startswith("llama3") and case == "two calls":
        with pytest.raises(DataError, match="only supports single tool-calls"):
            templates.encode_prompt(tokenizer, messages[:-1])
        return
    said = tokenizer.decode(templates.encode_prompt(tokenizer, messages[:-1]))
    assert ("A town" in said) == ("tools" in messages[0])
    assert all(place in said for turn in messages[:-1] for place in _places(turn))
    if name != "gptoss" or case != "a call":  # gptoss ends a call with another token than an answer
        prompt, answer = templates.encode_completion(tokenizer, messages[:-1], messages[-1])
        assert prompt == templates.encode_prompt(tokenizer, messages[:-1])
        told = tokenizer.decode(answer)
        assert all(text in told for text in (messages[-1]["content"], messages[-1].get("reasoning_content", "")))
        assert all(place in told for place in _places(messages[-1]))


@pytest.mark.parametrize("name", templates.names())
@pytest.mark.parametrize(("case", "text"), [("tools", "A town"), ("a call", "Jena"), ("a thought", "Hm, nine.")])
def test_a_shipped_template_tells_all_or_refuses(name: str, case: str, text: str) -> None:
    tokenizer = small(name)
    tokenizer.chat_template = templates.fitted(name, tokenizer)
    try:
        prompt, answer = templates.encode_completion(tokenizer, CASES[case][:-1], CASES[case][-1])
    except DataError as error:
        if "ignores" not in error.problem and "refuses" not in error.problem:
            raise
    else:
        assert text in tokenizer.decode(prompt + answer)


@pytest.mark.parametrize("case", [case for case in CASES if "thought" not in case])
def test_calls_are_learned_where_the_template_marks_them(case: str) -> None:
    tokenizer = trls("qwen2_5_training")
    ids, mask = templates.encode_conversation(tokenizer, CASES[case])
    learned = tokenizer.decode([index for index, one in zip(ids, mask, strict=True) if one])
    assert all(turn["content"] in learned for turn in CASES[case] if turn["role"] == "assistant")
    assert all(place in learned for turn in CASES[case] for place in _places(turn))
    assert "A town" not in learned


@pytest.mark.parametrize(("marked", "problem"), [
    ("{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ m.tool_calls | default([]) | tojson }}",
     "mark calls"),
    ("{% if m.tool_calls %}{{ m.tool_calls | tojson + '<|im_end|>' }}{% else %}{% generation %}{{ m.content + "
     "'<|im_end|>' }}{% endgeneration %}{% endif %}", "each turn"),
])  # fmt: skip
def test_a_call_that_the_template_does_not_mark_is_refused_and_not_left_unlearned(marked: str, problem: str) -> None:
    tokenizer = small("chatml")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}" + marked +
        "{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")
    assert templates.encode_conversation(tokenizer, [ASKED, ANSWER])[1]
    with pytest.raises(DataError, match=problem):
        templates.encode_conversation(tokenizer, CASES["a call without tools"])


@pytest.mark.parametrize("name", templates.names())
def test_a_turn_that_is_not_learned_is_context_in_the_same_ids(name: str) -> None:
    tokenizer = small(name)
    tokenizer.chat_template = templates.fitted(name, tokenizer)
    other = {"role": "assistant", "content": "Ten."}
    ids, mask = templates.encode_conversation(tokenizer, [ASKED, ANSWER, ASKED, other])
    for turns, learned in (([UNLEARNED, other], "Ten."), ([ANSWER, {**other, "learn": False}], "Nine degrees.")):
        same, marked = templates.encode_conversation(tokenizer, [ASKED, turns[0], ASKED, turns[1]])
        assert same == ids
        assert tokenizer.decode([index for index, one in zip(same, marked, strict=True) if one],
                                skip_special_tokens=True).strip() == learned
        assert all(every >= one for every, one in zip(mask, marked, strict=True))
    assert templates.encode_prompt(tokenizer, [ASKED, UNLEARNED, ASKED]) == templates.encode_prompt(
        tokenizer, [ASKED, ANSWER, ASKED])


LOOP = ("{% for m in messages %}BODY{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
TURN = "{{ '<|im_start|>' + m.role + '\n' + TEXT + '<|im_end|>\n' }}"


@pytest.mark.parametrize(("body", "ignored"), [
    ("{% if m.role != 'system' %}" + TURN.replace("TEXT", "m.content") + "{% endif %}", "what the system says"),
    (TURN.replace("TEXT", "(m.content[0].text | default('')) if m.role == 'user' else m.content"),
     "what the user says"),
    (TURN.replace("TEXT", "m.content.split('</think>')[-1]"), "a part of the answer"),
    (TURN.replace("TEXT", "m.content | truncate(20, True, '')"), "a part of the answer"),
])  # fmt: skip
def test_texts_that_a_template_leaves_out_are_missed(body: str, ignored: str) -> None:
    tokenizer = small("chatml")
    tokenizer.chat_template = LOOP.replace("BODY", body)
    talk = [{"role": "system", "content": "Be brief."}, ASKED,
            {"role": "assistant", "content": "<think>It is nine or ten.</think>Nine."}]
    with pytest.raises(DataError) as error:
        templates.encode_completion(tokenizer, talk[:-1], talk[-1])
    assert error.value.problem == f"the chat template ignores {ignored}"
    if "answer" in ignored:  # in what is context, thoughts are the maker's to leave out
        assert templates.encode_prompt(tokenizer, [*talk, ASKED])


@pytest.mark.parametrize("text", [
    "m.content", "m.content | trim", "m.content | tojson", "'  ' + m.content.replace('\n', ' ')"])
def test_texts_that_are_trimmed_or_written_as_json_are_told(text: str) -> None:
    tokenizer = small("chatml")
    tokenizer.chat_template = LOOP.replace("BODY", "{% if m.role == 'assistant' %}" + TURN.replace("TEXT", "m.content")
                                           + "{% else %}" + TURN.replace("TEXT", text) + "{% endif %}")
    talk = [{"role": "system", "content": " Be\n\"brief\". "}, {"role": "user", "content": "How\n warm?\n"}, ANSWER]
    assert templates.encode_completion(tokenizer, talk[:-1], talk[-1])


@pytest.mark.parametrize("name", ["llava_next", "smolvlm", "idefics3"])
def test_a_template_for_parts_of_images_and_text_does_not_lose_the_text(name: str) -> None:
    """TRL's folder has them: a content that is text is left out, or the template refuses it."""
    with pytest.raises(DataError, match=r"ignores what the user says|refuses a conversation"):
        templates.encode_prompt(trls(name), [ASKED])


def test_templates_that_differ_in_tools_alone_are_not_the_same() -> None:
    tokenizer = small("chatml")
    plain = templates.source("chatml")
    telling = "{% if tools %}{{ tools | tojson }}{% endif %}" + plain
    assert templates.same_rendering(tokenizer, plain, plain + "{# a comment #}")
    assert not templates.same_rendering(tokenizer, telling, plain)


def _places(turn: Message) -> list[str]:
    return [made["function"]["arguments"]["place"] for made in turn.get("tool_calls", [])]
