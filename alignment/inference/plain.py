"""How a model is asked what lm-evaluation-harness asks: how likely a continuation is, how a text goes on. `open_plain`.

Texts are what they are: the tokenizer's own special tokens are added as it does it, and no template stands around them.
A conversation is encoded by `templates`, as for training. Imports no torch until something is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from alignment.context import StageContext
from alignment.inference.generator import Opened
from alignment.inference.requests import Draw
from alignment.records import Message

Ids = list[int]


class Likelihood(NamedTuple):
    """Of a continuation: the sum of its tokens' log-probabilities in nats, and whether each is the likeliest in its
    place."""

    log_prob: float
    greedy: bool


class PlainModel(Opened, Protocol):
    """A policy, its adapter merged, that reads ids. What is encoded needs no weights."""

    @property
    def made_by(self) -> Mapping[str, Any]:
        """Who answers, for the manifest: engine, version, dtype, adapter."""

    @property
    def longest(self) -> int | None:
        """Tokens that it can tell the places of; None where nobody knows."""

    @property
    def prefix(self) -> int:
        """The token that stands before a text without any context: BOS, or where there is none EOS."""

    def encode(self, text: str, *, special: bool | None = None) -> Ids:
        """Ids of a text; `special` says whether the tokenizer adds its special tokens, None: as it does by itself, but
        no second BOS."""

    def prompt(self, messages: list[Message]) -> Ids:
        """Ids of a conversation that waits for its answer. Raises DataError where its template refuses it."""

    def answer(self, messages: list[Message], text: str) -> tuple[Ids, Ids]:
        """Ids of a conversation, and of an answer to it without the token that ends it. Raises as `prompt`."""

    def shown(self, ids: Ids) -> str:
        """Ids as text, special tokens included."""

    def likelihoods(self, pairs: Sequence[tuple[Ids, Ids]]) -> list[Likelihood]:
        """Of (context, continuation), neither empty and together no longer than `longest`; the last token of a
        continuation is predicted and never read. Raises ModelError where the weights cannot be loaded."""

    def continued(self, prompts: Sequence[Ids], draws: Sequence[Draw], *, chat: bool,
                  on_progress: Callable[[int], None] | None = None) -> list[str]:
        """Texts that go on after ids, one draw each, cut before the first of its `stop`; special tokens are left out.

        Args:
            chat: whether the prompts are conversations: then an answer also ends where the template ends it.
        """


def open_plain(context: StageContext, name: str) -> PlainModel:
    """The policy that the stage `name` made, on the device and in the dtype of `compute`, by transformers whatever
    `compute.engine` says."""
    from alignment.inference.embedded_plain import EmbeddedPlain

    return EmbeddedPlain(context.inputs[name], context.run.compute)
