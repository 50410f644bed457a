"""What is settled on a tokenizer before anything is learned with it: template, convention, end and pad token.

Import stages settle a model's once and for all; `data show` and `data stats` settle one to look at rows with. Does not
load or change models.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from alignment import templates
from alignment.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from alignment.templates.convention import SpecialTokensInText

PAD_CANDIDATES = ("<|endoftext|>", "<pad>", "[PAD]", "<|finetune_right_pad_id|>")
"""Tokens that makers reserve for padding or that end no chat turn; tried in order, then the unknown token."""


def settle(
    tokenizer: PreTrainedTokenizerBase, where: str, *, texts: SpecialTokensInText | None = None,
    stops: Iterable[int] = (), pad: str | None = None,
) -> None:
    """Convention, end token and pad token of a tokenizer that has its template.

    Args:
        texts: what becomes of special tokens that a text spells; None: as it was.
        stops: ids that the model's maker lets generation stop on.
        pad: the pad token that is asked for.

    Raises:
        ModelError: no end token or pad token can be settled on.
    """
    _set_convention(tokenizer, texts, stops)
    _set_end(tokenizer)
    _set_pad(tokenizer, pad, where)


def set_template(tokenizer: PreTrainedTokenizerBase, name: str | None, where: str) -> None:
    """The shipped template of this name, or the tokenizer's own; the own one with markers where an equal one has them.

    Raises:
        ModelError: there is none, it is for another tokenizer, or it writes today's date.
    """
    if name is not None:
        tokenizer.chat_template = templates.fitted(name, tokenizer)
        return
    try:
        own = str(tokenizer.get_chat_template()).replace("\r\n", "\n")
    except ValueError as error:
        raise ModelError("the model has no chat template of its own", where=where, expected="`template: NAME`",
                         hint=f"set template on this stage, one of {', '.join(templates.names())}") from error
    if "strftime_now" in own:
        raise ModelError("the model's chat template writes today's date, so the same messages would have other ids "
                         "tomorrow", where=where, expected="a template that depends on the messages only",
                         hint="set `template`, for example llama3")
    tokenizer.chat_template = own
    if not templates.has_generation_markers(own):
        tokenizer.chat_template = _marked(tokenizer, own) or own


def _marked(tokenizer: PreTrainedTokenizerBase, own: str) -> str | None:
    """A template with generation markers that renders exactly as `own` does: ours, else TRL's, else None."""
    for name in templates.names():
        if templates.same_rendering(tokenizer, own, templates.source(name)):
            return templates.source(name)
    # Slow to import, and needed only for templates that are not ours.
    from trl.chat_template_utils import get_training_chat_template

    try:
        found = get_training_chat_template(tokenizer)
    except ValueError:
        return None
    return found if found is not None and templates.same_rendering(tokenizer, own, found) else None


def _set_convention(
    tokenizer: PreTrainedTokenizerBase, texts: SpecialTokensInText | None, stops: Iterable[int]
) -> None:
    """What is said of special tokens in texts, and where the model's maker lets generation stop. An adapter has its
    base's tokenizer, and with it what was said there."""
    before = templates.Convention.of(tokenizer)
    known = tuple(sorted(index for index in {*before.stop_ids, *stops} if 0 <= index < len(tokenizer)))
    templates.Convention(texts or before.special_tokens_in_text, known).put_on(tokenizer)


def _set_end(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make the token that ends a turn the tokenizer's end token (base models often end documents with another).

    Left alone where the template itself writes `eos_token`: there it is the one that ends a turn already.
    """
    end = templates.end_id(tokenizer)
    if end != tokenizer.eos_token_id and "eos_token" not in str(tokenizer.chat_template):
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)


def _set_pad(tokenizer: PreTrainedTokenizerBase, asked: str | None, where: str) -> None:
    """Settle on a pad token that the vocabulary has and that ends neither a turn nor a text."""
    vocabulary = tokenizer.get_vocab()
    ends = {templates.end_id(tokenizer), tokenizer.eos_token_id}
    if asked is not None and (asked not in vocabulary or vocabulary[asked] in ends):
        raise ModelError("pad_token is the end token" if asked in vocabulary else "the tokenizer has no such token",
                         where=f"{where}, pad_token", found=asked,
                         expected=f"a token of the vocabulary other than {tokenizer.eos_token}")
    for token in (asked, tokenizer.pad_token, *PAD_CANDIDATES, tokenizer.unk_token):
        if token is not None and token in vocabulary and vocabulary[token] not in ends:
            tokenizer.pad_token = token
            return
    raise ModelError("no token can serve for padding: with the end token as padding a model never learns to stop",
                     where=where, found=f"pad {tokenizer.pad_token!r}, end {tokenizer.eos_token!r}",
                     expected=f"a token such as {', '.join(PAD_CANDIDATES)}",
                     hint="name an unused token of the vocabulary in `pad_token`")
