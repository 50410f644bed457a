"""What a conversation holds (texts, tools, calls, thoughts): told by the template, or the row is refused.

Templates leave things out unsaid: tools, the second of two calls, the text beside a call, a system message, what an
answer says before </think>. Texts are looked for in the render, the rest by comparing renders with and without it, for
each row. Earlier answers may lose their thoughts: makers cut them from what is context. Renders nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from alignment.errors import DataError
from alignment.records import Message

TOLD = ("tools", "tool_calls", "reasoning_content")
"""Keys of a turn that a template must tell; `name` and `tool_call_id` say again what the order of turns says."""


def as_turn(answer: str | Message) -> Message:
    """The assistant's turn of an answer that may be text alone."""
    return {"role": "assistant", "content": answer} if isinstance(answer, str) else answer


def as_arguments(messages: Sequence[Message]) -> dict[str, Any]:
    """Arguments of transformers' render: tools apart from the turns, and what is for us alone left out."""
    turns = [{key: value for key, value in turn.items() if key not in ("learn", "tools")} for turn in messages]
    return {"conversations": [turns], "tools": messages[0].get("tools") if messages else None}


def learned_turns(messages: Sequence[Message], marks: int) -> list[bool]:
    """Whether each of the assistant's turns, of which the template marks so many, is to be learned."""
    learn = [bool(turn.get("learn", True)) for turn in messages if turn["role"] == "assistant"]
    # Marks that are not one for each turn are no matter where everything is learned (check_marked).
    return learn if len(learn) == marks else [True] * marks


def check_told(messages: Sequence[Message], text: str, render: Callable[[list[Message]], str], where: str) -> None:
    """Raise DataError when the text of a conversation lacks something that it holds.

    Args:
        text: of the conversation.
        render: gives the text of another conversation; may raise DataError itself.
    """
    for index, turn in enumerate(messages):
        for what, without in _less(turn):
            try:
                told = render([*messages[:index], without, *messages[index + 1:]]) != text
            except DataError:  # a template that refuses the conversation without it has seen it
                told = True
            if not told:
                raise _ignored(what, index, turn, where)
    for index, turn in enumerate(messages):
        if turn["role"] == "tool" or _within(turn["content"], text):
            continue
        last = index == len(messages) - 1
        if turn["role"] == "assistant" and last:
            raise _ignored("a part of the answer", index, turn, where)
        # Written in another way (as JSON), or not at all?
        more = {**turn, "content": turn["content"] + "x"}
        if turn["role"] != "assistant" and render([*messages[:index], more, *messages[index + 1:]]) == text:
            raise _ignored(f"what the {turn['role']} says", index, turn, where)


def _ignored(what: str, index: int, turn: Message, where: str) -> DataError:
    return DataError(f"the chat template ignores {what}", where=where,
                     found=f"turn {index + 1}, the {turn['role']}'s: {turn['content'][:200]!r}",
                     expected="a template that renders it",
                     hint="leave it out of the row, or import the model with another template (its maker's own)")


def _within(part: str, text: str) -> bool:
    """Whether a text has a part, blanks aside."""
    return part in text or _solid(part) in _solid(text)


def _solid(text: str) -> str:
    """Without blanks: templates trim texts and set them apart."""
    return "".join(text.split())


def check_marked(messages: Sequence[Message], said: Sequence[str], where: str) -> None:
    """Raise DataError when what is to be learned cannot be told in what the template marks, or is not all there.

    Args:
        said: what the template marks as the assistant's, one text for each mark.
    """
    turns = [turn for turn in messages if turn["role"] == "assistant"]
    if len(turns) != len(said) and not any("tool_calls" in turn or not turn.get("learn", True) for turn in turns):
        return
    if len(turns) != len(said):
        raise DataError("the chat template does not mark each turn of the assistant by itself", where=where,
                        found=f"{len(said)} marked, {len(turns)} turns",
                        hint="loss: completion needs no marks, and learns the last answer")
    for turn, text in zip(turns, said, strict=True):
        if not all(call["function"]["name"] in text for call in turn.get("tool_calls", ())):
            raise DataError("the chat template does not mark calls as the assistant's", where=where, found=text[:200],
                            hint="loss: completion needs no marks, and learns the last answer")
        if turn.get("learn", True) and not _within(turn["content"], text):
            raise DataError("the chat template leaves a part of an earlier answer unlearned", where=where,
                            found=text[:200], hint="loss: completion learns the last answer alone")


def _less(turn: Message) -> Iterator[tuple[str, Message]]:
    """(what is left out, the turn without it)"""
    for key in TOLD:
        if key in turn:
            yield key, {name: value for name, value in turn.items() if name != key}
    calls = turn.get("tool_calls", [])
    if len(calls) > 1:
        yield from (("one of several tool_calls", {**turn, "tool_calls": [*calls[:at], *calls[at + 1:]]})
                    for at in range(len(calls)))
    if calls and turn["content"].strip():
        yield "text beside tool_calls", {**turn, "content": ""}
