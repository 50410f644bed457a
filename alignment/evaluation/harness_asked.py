"""Requests of lm-evaluation-harness and what a model answers: encoded, cut where they are too long, asked in batches.

What ids a text becomes, and which of them are left out of one that is too long, is as in the harness's own class for
transformers (lm_eval 0.4.13, models/huggingface.py); a test holds both to each other. Conversations are encoded by
`templates`. Needs no harness but for the windows of long texts. Does not know tasks or metrics.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from alignment.context import StageContext
from alignment.errors import DataError
from alignment.inference.plain import Ids, PlainModel, open_plain
from alignment.inference.requests import Draw
from alignment.records import Message

UNKNOWN_LENGTH = 2048
"""Tokens of a window where nobody knows how many a model takes, as the harness has it."""


class Conversation(str):
    """A prompt in the model's chat template, as text for people; the model gets the ids of its messages."""

    messages: list[Message]

    def __new__(cls, text: str, messages: list[Message]) -> Conversation:
        made = super().__new__(cls, text)
        made.messages = messages
        return made


@dataclass(frozen=True)
class Asked:
    """One request.

    Attributes:
        kind: how likely `text` is after the context; how likely all of `text` is; how the context goes on.
        context: empty for a whole text.
    """

    id: str
    kind: Literal["continuation", "whole", "answer"]
    context: str | Conversation
    text: str = ""
    draw: Draw = field(default_factory=Draw)


@dataclass
class HarnessAnswers:
    """What a batch was answered, by request id: [log-probability, whether it is the greedy answer], a log-probability,
    or a text. `cut` are requests of which tokens at the left were left out."""

    answers: dict[str, Any] = field(default_factory=dict)
    cut: list[str] = field(default_factory=list)
    seconds: float = 0.0
    made_by: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> HarnessAnswers:
        """Inverse of to_json; raises ValueError, TypeError or KeyError on anything else."""
        return cls(**json.loads(text))


class HarnessBatch:
    """Answers batches of requests of one kind with the policy of stage `name`."""

    def __init__(self, context: StageContext, *, name: str) -> None:
        self.model: PlainModel = open_plain(context, name)
        self.name = name

    def close(self) -> None:
        """Give back the model's memory."""
        self.model.close()

    def make(self, items: Sequence[Asked]) -> HarnessAnswers:
        """Answer one batch.

        Raises:
            DataError: a request that no model of this length can be asked, or a template that refuses it.
            ModelError: the model cannot be loaded.
        """
        began, made = time.monotonic(), HarnessAnswers()
        kinds: dict[str, list[Asked]] = {}
        for item in items:
            kinds.setdefault(item.kind, []).append(item)
        for kind, own in kinds.items():
            {"continuation": self._continuations, "whole": self._wholes, "answer": self._answers}[kind](own, made)
        self.model.load()
        made.seconds, made.made_by = round(time.monotonic() - began, 3), dict(self.model.made_by)
        return made

    def _continuations(self, items: Sequence[Asked], made: HarnessAnswers) -> None:
        pairs = [self._within(item, *self._encoded(item), made) for item in items]
        for item, own in zip(items, self.model.likelihoods(pairs), strict=True):
            made.answers[item.id] = [own.log_prob, own.greedy]

    def _encoded(self, item: Asked) -> tuple[Ids, Ids]:
        """Ids of a context and of what follows it."""
        context, text = item.context, item.text
        if isinstance(context, Conversation):
            return self.model.answer(context.messages, text)
        if context == "":
            ids, prefix = self.model.encode(text, special=False), self.model.prefix
            return (ids[:1], ids[1:]) if ids[:1] == [prefix] else ([prefix], ids)
        blanks = len(context) - len(context.rstrip())
        if blanks:  # a blank belongs to the word behind it
            context, text = context[:-blanks], context[-blanks:] + text
        before = self.model.encode(context)
        return before, self.model.encode(context + text)[len(before):]

    def _within(self, item: Asked, before: Ids, said: Ids, made: HarnessAnswers) -> tuple[Ids, Ids]:
        """What of a context the model can read before a continuation."""
        longest = self.model.longest
        if not said or not before or (longest is not None and len(said) > longest):
            raise DataError("a continuation has no token, or more than the model takes", where=f"request {item.id}",
                            found=f"{len(said)} tokens: {item.text[:80]!r}",
                            expected=f"1 to {longest or 'any number of'} tokens")
        if longest is not None and len(before) + len(said) > longest + 1:
            before = before[-(longest + 1 - len(said)):]
            made.cut.append(item.id)
        return before, said

    def _wholes(self, items: Sequence[Asked], made: HarnessAnswers) -> None:
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        longest = self.model.longest or UNKNOWN_LENGTH
        windows = [[make_disjoint_window(one) for one in get_rolling_token_windows(
            token_list=self.model.encode(item.text), prefix_token=self.model.prefix, max_seq_len=longest,
            context_len=1)] for item in items]
        told = iter(self.model.likelihoods([(list(before), list(said)) for own in windows for before, said in own]))
        for item, own in zip(items, windows, strict=True):
            made.answers[item.id] = sum((next(told).log_prob for _ in own), 0.0)

    def _answers(self, items: Sequence[Asked], made: HarnessAnswers) -> None:
        for chat in (True, False):
            own = [item for item in items if isinstance(item.context, Conversation) == chat]
            if not own:
                continue
            prompts = [self._prompt(item, made) for item in own]
            texts = self.model.continued(prompts, [item.draw for item in own], chat=chat)
            made.answers |= {item.id: text for item, text in zip(own, texts, strict=True)}

    def _prompt(self, item: Asked, made: HarnessAnswers) -> Ids:
        ids = (self.model.prompt(item.context.messages) if isinstance(item.context, Conversation)
               else self.model.encode(item.context) or [self.model.prefix])
        if self.model.longest is None:
            return ids
        room = self.model.longest - item.draw.max_new_tokens
        if room < 1:
            raise DataError("a task asks for as many tokens as the model takes in all", where=f"request {item.id}",
                            found=item.draw.max_new_tokens, expected=f"less than {self.model.longest}")
        if len(ids) > room:
            made.cut.append(item.id)
        return ids[-room:]
