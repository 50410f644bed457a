"""The shipped chat templates as text: what each makes of a short conversation, and what it ends an answer with.

Rendered from the shipped files without a tokenizer; BOS and EOS stand for tokens that the model's own tokenizer knows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from jinja2.sandbox import ImmutableSandboxedEnvironment

from alignment.records import Message
from alignment.templates import shipped, source

BOS, EOS = "BOS", "EOS"
_MARK = "\x1e"
_BLOCK = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}\s*")
"""transformers' marks around what the assistant says; jinja alone does not know them."""
TALK: list[Message] = [
    {"role": "system", "content": "Be brief."}, {"role": "user", "content": "How deep?"},
    {"role": "assistant", "content": "Nine metres."},
]


@dataclass(frozen=True)
class Shipped:
    """One template.

    Attributes:
        ends_with: the token after an answer, at which generation stops; EOS for the model's own end token.
        example: a conversation as the template writes it.
    """

    name: str
    text: str
    ends_with: str
    example: str


def templates() -> list[Shipped]:
    """All of them, by name."""
    return [Shipped(name, text, _ends_with(source(name)), _rendered(_BLOCK.sub("", source(name))))
            for name, text in shipped().items()]


def _ends_with(jinja: str) -> str:
    # The assistant's words and what ends them lie in one generation block, by transformers' own convention.
    said = _rendered(_BLOCK.sub(lambda tag: "{{- '" + _MARK + "' }}", jinja)).split(_MARK)[1]
    return said.rpartition(TALK[-1]["content"])[2].strip()


def _rendered(jinja: str) -> str:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(jinja).render(
        messages=TALK, bos_token=BOS, eos_token=EOS, add_generation_prompt=False)
