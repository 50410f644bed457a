"""`PlainModel` (plain.py) over transformers, in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from alignment.inference.embedded import EmbeddedGenerator
from alignment.inference.plain import Ids, Likelihood
from alignment.inference.requests import Draw
from alignment.inference.scoring import continuations
from alignment.records import Message
from alignment.templates import Convention, decode_answer, encode_answer, encode_prompt

_MARGIN = 8
"""Tokens beside those of a stop text that are decoded to look for it: a letter may be several."""


class EmbeddedPlain(EmbeddedGenerator):
    """A policy, its adapter merged, that reads ids."""

    @property
    def longest(self) -> int | None:
        return self.context_length

    @property
    def prefix(self) -> int:
        bos = self.tokenizer.bos_token_id
        return int(self.tokenizer.eos_token_id if bos is None else bos)

    def encode(self, text: str, *, special: bool | None = None) -> Ids:
        if special is None:
            special = not text.startswith(self.shown([self.prefix]))
        return [int(one) for one in self.tokenizer.encode(text, add_special_tokens=special)]

    def prompt(self, messages: list[Message]) -> Ids:
        return encode_prompt(self.tokenizer, messages)

    def answer(self, messages: list[Message], text: str) -> tuple[Ids, Ids]:
        before, said = encode_answer(self.tokenizer, messages, text)
        return before, said[:-1]

    def shown(self, ids: Ids) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False))

    def likelihoods(self, pairs: Sequence[tuple[Ids, Ids]]) -> list[Likelihood]:
        return [Likelihood(*one) for one in continuations(self._ready().model, pairs)]

    def continued(self, prompts: Sequence[Ids], draws: Sequence[Draw], *, chat: bool,
                  on_progress: Callable[[int], None] | None = None) -> list[str]:
        engine = self._ready()
        stops = engine.stops if chat else frozenset({int(self.tokenizer.eos_token_id),
                                                     *Convention.of(self.tokenizer).stop_ids})
        said: list[Ids] = [[] for _ in prompts]
        ended = [False] * len(said)
        over = [False] * len(said)

        def gone(place: int) -> bool:
            if not over[place] and draws[place].stop:
                tail = said[place][-(max(map(len, draws[place].stop)) + _MARGIN):]
                over[place] = any(one in self._text(tail, chat, finished=False) for one in draws[place].stop)
            return over[place]

        for step in engine.told(list(prompts), draws, gone=gone, stops=stops):
            for place, token, end in step:
                if token.id in stops:
                    ended[place] = True
                else:
                    said[place].append(token.id)
                if end and on_progress is not None:
                    on_progress(1)
        return [_before(self._text(ids, chat, finished=end), draw.stop)
                for ids, end, draw in zip(said, ended, draws, strict=True)]

    def _text(self, ids: Ids, chat: bool, *, finished: bool) -> str:
        if chat:
            return decode_answer(self.tokenizer, ids, finished=finished)
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


def _before(text: str, stops: Sequence[str]) -> str:
    for one in stops:
        text = text.split(one)[0]
    return text
