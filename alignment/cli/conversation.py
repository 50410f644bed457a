"""What is said in a chat and what of it a model is asked: history, the prompt template, what fits into the context.

Plain values; asks no model and prints nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from alignment.errors import ConfigError, DataError
from alignment.records import Message

SLOT = "{}"


def check_template(template: str) -> str:
    """The template, if it has one place for what the user types. Raises ConfigError."""
    if (count := template.count(SLOT)) != 1:
        raise ConfigError(f"the template has {count or 'no'} place{'s' if count > 1 else ''} for what is typed",
                          where="--prompt-template", found=template, expected="{} once",
                          hint="\"Let's think step by step to solve this: {}\"")
    return template


class Turn(NamedTuple):
    """A question as the model was asked it, and its answer; `finished` is False for one that was stopped or cut."""

    asked: str
    answer: str
    finished: bool


class Fitted(NamedTuple):
    """What is asked.

    Attributes:
        left_out: turns at the beginning of the conversation that have no room.
        longest: tokens of the answer, at most.
    """

    messages: list[Message]
    left_out: int
    longest: int


@dataclass
class Conversation:
    """One model's side of a chat."""

    template: str = SLOT
    system: str | None = None
    turns: list[Turn] = field(default_factory=list)

    def asked(self, typed: str) -> str:
        """What the user typed, within the template. Braces of what is typed stay."""
        return self.template.replace(SLOT, typed, 1)

    def messages(self, asked: str | None = None, *, without: int = 0) -> list[Message]:
        """The conversation, and a question after it; without so many of its first turns."""
        made: list[Message] = [] if self.system is None else [{"role": "system", "content": self.system}]
        for turn in self.turns[without:]:
            made += [{"role": "user", "content": turn.asked}, {"role": "assistant", "content": turn.answer}]
        return made if asked is None else [*made, {"role": "user", "content": asked}]

    def fitted(
        self, asked: str, tokens: Callable[[list[Message]], int], limit: int | None, longest: int
    ) -> Fitted:
        """As much of the conversation as leaves room for the answer: whole turns are left out, the oldest first; where
        even the question alone leaves less, the answer is shorter.

        Args:
            tokens: of a conversation that waits for its answer.
            limit: tokens that the model takes; None: not known.

        Raises:
            DataError: the question, with the system message, leaves no room for an answer; or the template refuses it.
        """
        count = 0
        for without in range(len(self.turns) + 1):
            messages = self.messages(asked, without=without)
            count = tokens(messages)
            if limit is None or count + longest <= limit:
                return Fitted(messages, without, longest)
        assert limit is not None
        if count >= limit:
            raise DataError("the question is over the model's context, so nothing was asked", found=f"{count} tokens",
                            expected=f"fewer than {limit}, with the system message",
                            hint="ask less at once" + ("" if self.system is None else ", or /system without it"))
        return Fitted(messages, len(self.turns), limit - count)

    def to_json(self, model: str, **how: Any) -> str:
        """One row of format `messages`: what was asked and said, all of it."""
        return json.dumps({"messages": self.messages(), "meta": {"model": model, **how}}, ensure_ascii=False)
