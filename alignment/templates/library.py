"""The shipped chat templates: their names and sources, and whether two templates say the same.

Does not tokenize (encode.py does) and does not decide which template a model gets (import_model does).
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING

import jinja2

from alignment.errors import ModelError
from alignment.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_TOKENS = re.compile(r"\{#- tokens: (.*?) -#\}")
_GAP = "{%- set gap = ' ' %}\n"
_WITH_BOS = "{{- bos_token }}\n"
_WITHOUT_BOS = "{%- set bos_token = '' %}\n"


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


_USER, _ANSWER = _message("user", "How many?"), _message("assistant", "Three.")
_FUNCTION = {"name": "count", "description": "How many.", "parameters": {"type": "object", "properties": {}}}
_CALL = {"id": "call00001", "type": "function", "function": {"name": "count", "arguments": {"of": "all"}}}
_PADDED = [_message("user", "  two\n\nlines \n"), _message("assistant", "\n  padded answer \n")]
SAMPLES: tuple[list[Message], ...] = (
    [_USER],
    [_message("system", " Be brief.\n"), _USER],
    [_USER, _ANSWER],
    [_message("system", "Be brief."), _USER, _ANSWER, _USER],
    [*_PADDED, _USER, _ANSWER],
    [_message("system", "Be brief."), *_PADDED],
    [_message("user", ""), _message("assistant", "")],
    [_USER, _USER],
    [_USER, _ANSWER, _message("tool", "3")],
    [_USER, _ANSWER, _message("system", "Now in French."), _USER],
    [_message("assistant", "Hello."), _USER],
    [{**_USER, "tools": [{"type": "function", "function": _FUNCTION}]}, _ANSWER],
    [_USER, {**_message("assistant", ""), "tool_calls": [_CALL]},
     {**_message("tool", "3"), "tool_call_id": "call00001"}, _ANSWER],
    [_USER, {**_ANSWER, "reasoning_content": "One, two, three."}],
)
"""Conversations that tell templates apart: defaults, stripping, empty texts, unusual orders and roles, tools, calls."""


def names() -> list[str]:
    """Names of the shipped templates, sorted."""
    return sorted(path.name.removesuffix(".jinja") for path in files(__package__).iterdir()
                  if path.name.endswith(".jinja"))


def source(name: str) -> str:
    """Jinja source of a shipped template. Raises ModelError for an unknown name."""
    if name not in names():
        raise ModelError("no chat template has this name", where="template", found=name,
                         expected="one of " + ", ".join(names()),
                         hint="leave `template` out to keep the model's own")
    return (files(__package__) / f"{name}.jinja").read_text(encoding="utf-8")


def shipped() -> dict[str, str]:
    """Name -> one line about the template (its own first comment)."""
    return {name: source(name).split("{#-", 1)[1].split("-#}", 1)[0].strip() for name in names()}


@lru_cache(maxsize=64)
def template_hash(jinja: str) -> str:
    """First 16 hex digits of the sha256 of a template's text; what `kubealign.json` carries."""
    return hashlib.sha256(jinja.encode()).hexdigest()[:16]


@lru_cache(maxsize=64)
def has_generation_markers(jinja: str) -> bool:
    """Whether a template marks what the assistant says, so that a loss mask can be made from it."""
    return _GENERATION.search(jinja) is not None


def name_of(jinja: str) -> str:
    """Name of the shipped template that this text is (as `fitted` may have begun it), or "own"."""
    text = jinja
    for line in (_GAP, _WITH_BOS, _WITHOUT_BOS):
        text = text.removeprefix(line)
    return next((name for name in names() if source(name) in (text, jinja)), "own")


def fitted(name: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """A shipped template for this tokenizer: it begins as the tokenizer's maker lets plain text begin.

    That is with the BOS token exactly when the tokenizer itself puts one there, and after it with the blank that
    SentencePiece puts before a text, where the tokenizer puts none after a special token. The tokenizer is asked. What
    is changed is the template, not the ids: every other program that renders it then agrees.

    Raises:
        ModelError: the template is for tokenizers with other tokens: its marks would be letters here, or the reverse.
    """
    text, bos = source(name), tokenizer.bos_token
    lacking = _unfit(text, tokenizer)
    if lacking:
        fit = [other for other in names() if not _unfit(source(other), tokenizer)]
        raise ModelError("the chat template is for another tokenizer", where=f"template {name}", found=lacking,
                         expected=f"of the shipped templates, one of {', '.join(fit)}",
                         hint="leave `template` out to keep the model's own")
    wanted = bos is not None and list(tokenizer("a")["input_ids"])[:1] == [tokenizer.bos_token_id]
    # ChatML texts begin with a token that some tokenizers also call BOS (SmolLM2); only `bos_token` is a BOS.
    # Of a tokenizer without one the name is undefined, which some templates (llama2) take for an error.
    has = "bos_token" in text and (bos is None or _asked(tokenizer, text).startswith(bos))
    if wanted != has:
        text = (_WITH_BOS if wanted else _WITHOUT_BOS) + text
    return _GAP + text if wanted and "gap" in text and _lacks_gap(tokenizer, text) else text


def _unfit(text: str, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """What of a shipped template's second comment (`tokens: +needed -absent kind`) is not so in a tokenizer."""
    found = _TOKENS.search(text)
    added, words = tokenizer.get_added_vocab(), found[1].split() if found else []
    lacking = [word[1:] for word in words if word[0] == "+" and word[1:] not in added]
    if lacking:
        return f"no token {', '.join(lacking)}"
    there = [word[1:] for word in words if word[0] == "-" and word[1:] in added]
    if there:
        return f"a token {', '.join(there)}"
    if "sentencepiece" in words or "byte-level" in words:
        kind = "sentencepiece" if "\u2581" in tokenizer.get_vocab() else "byte-level"
        return None if kind in words else f"a {kind} tokenizer"
    return None


def _asked(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    return str(tokenizer.apply_chat_template([_USER], chat_template=text, tokenize=False, add_generation_prompt=True))


def _lacks_gap(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Whether a blank after the BOS token makes the ids those of plain text, which they are not without it."""

    def ids(jinja: str) -> list[int]:
        return list(tokenizer(_asked(tokenizer, jinja), add_special_tokens=False)["input_ids"])

    plain = list(tokenizer(_asked(tokenizer, text).removeprefix(str(tokenizer.bos_token)))["input_ids"])
    return ids(text) != plain == ids(_GAP + text)


def same_rendering(tokenizer: PreTrainedTokenizerBase, one: str, other: str) -> bool:
    """Whether two templates render (or refuse) all of SAMPLES alike, with and without a generation prompt."""

    def render(jinja: str, messages: list[Message], generate: bool) -> str | None:
        try:
            return str(tokenizer.apply_chat_template(
                messages, tools=messages[0].get("tools"), chat_template=jinja, tokenize=False,
                add_generation_prompt=generate,
            ))
        except (jinja2.TemplateError, TypeError):
            return None

    return render(one, SAMPLES[0], True) is not None and all(
        render(one, messages, generate) == render(other, messages, generate)
        for messages in SAMPLES for generate in (False, True)
    )
