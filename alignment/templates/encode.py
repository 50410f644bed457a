"""Messages -> token ids. What is learned is token for token what will be asked: one function renders, one tokenizes.

A rendered conversation is cut where the assistant's text begins and ends. Text is tokenized from the left across
these cuts as long as no token spans one; where one would (an answer that begins with a newline, after ChatML's), the
part behind the cut is tokenized on its own, as a model that generates does. So the ids of a prompt are always a
prefix of the ids of prompt and answer. Special tokens are never added by the tokenizer, only by the template: no
second BOS. Texts that spell a special token are not escaped: they become that token, as in every chat template.

Does not pad, truncate or batch.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import jinja2

from alignment.errors import DataError, ModelError
from alignment.records import Message
from alignment.templates.library import has_generation_markers, template_hash
from alignment.templates.told import as_arguments, as_turn, check_marked, check_told, learned_turns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]
_CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> list[int]:
    """Ids of a conversation that waits for the assistant (generation prompt added).

    Raises:
        DataError: the template refuses the conversation (order or names of roles).
        ModelError: the tokenizer has no template, or the template cannot be tokenized piece by piece.
    """
    text, spans = _render(tokenizer, messages, generate=True)
    return _join(_pieces(tokenizer, text, _cuts(spans)))


def encode_completion(
    tokenizer: PreTrainedTokenizerBase, prompt: list[Message], completion: str | Message
) -> tuple[list[int], list[int]]:
    """Ids of a prompt, equal to `encode_prompt`'s, and of the assistant's answer to it (its text, or its turn), its end
    token last.

    What the template adds after the end token (ChatML's newline) is cut: it is never generated.

    Raises:
        DataError: the template refuses the conversation.
        ModelError: the answer is not rendered as a continuation of the prompt, or has no end token.
    """
    asked, spans = _render(tokenizer, prompt, generate=True)
    full, _ = _render(tokenizer, [*prompt, as_turn(completion)], generate=False)
    _check_continues(tokenizer, asked, full)
    *before, answer = _pieces(tokenizer, full, [*_cuts(spans), len(asked)])
    ends = {end_id(tokenizer), tokenizer.eos_token_id}
    return _join(before), answer[: _after_last(answer, ends, tokenizer)]


def encode_conversation(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> tuple[list[int], list[int]]:
    """Ids of a whole conversation and a mask of the same length: 1 for the assistant's text and its end token, else 0.

    Each assistant turn begins where its generation prompt ends. Turns that say `learn: False` have 0.

    Raises:
        DataError: the template refuses the conversation, ignores a part of it, or does not mark its turns one by one.
        ModelError: the template has no generation markers, or a turn has no end token.
    """
    if not has_generation_markers(_template(tokenizer)):
        raise ModelError(
            "the chat template does not mark what the assistant says", where=_where(tokenizer),
            expected="{% generation %} ... {% endgeneration %} around the assistant's text",
            hint="set `template: NAME` on the import stage (`kubealign templates` lists them)",
        )
    text, spans = _render(tokenizer, messages, generate=False)
    check_marked(messages, [text[start:end] for start, end in spans], _where(tokenizer))
    learn = learned_turns(messages, len(spans))
    ends = {end_id(tokenizer), tokenizer.eos_token_id}
    ids: list[int] = []
    mask: list[int] = []
    for index, piece in enumerate(_pieces(tokenizer, text, _cuts(spans))):
        # Pieces alternate: before a span, the span, between spans, ..., after the last span.
        learned = _after_last(piece, ends, tokenizer) if index % 2 and learn[index // 2] else 0
        ids += piece
        mask += [1] * learned + [0] * (len(piece) - learned)
    return ids, mask


def end_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends an assistant turn in the tokenizer's template. Raises ModelError when there is none."""
    return _end_id(tokenizer, _template(tokenizer))


def stop_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that generation must stop on, sorted: the end of a turn, the eos token, and all three tokens of ChatML."""
    ids = {end_id(tokenizer)}
    if tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    if _CHATML[1] in _template(tokenizer):
        vocabulary = tokenizer.get_added_vocab()
        ids |= {vocabulary[token] for token in _CHATML if token in vocabulary}
    return sorted(ids)


def _template(tokenizer: PreTrainedTokenizerBase) -> str:
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:
        raise ModelError("the tokenizer has no chat template", where=str(tokenizer.name_or_path),
                         hint="set `template: NAME` on the import stage (`kubealign templates` lists them)") from error


def _where(tokenizer: PreTrainedTokenizerBase) -> str:
    return f"chat template {template_hash(_template(tokenizer))} of {tokenizer.name_or_path or 'the tokenizer'}"


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[Message], *, generate: bool) -> tuple[str, list[Span]]:
    """Text and the character spans of the assistant's turns (empty for a template without markers)."""
    template = _template(tokenizer)
    text, spans = _rendered(tokenizer, template, messages, generate)
    if not spans:
        return text, []
    header = _header(tokenizer, template)
    return text, [(_begin(text, start, header, tokenizer), end) for start, end in spans]


def _rendered(
    tokenizer: PreTrainedTokenizerBase, template: str, messages: list[Message], generate: bool
) -> tuple[str, list[Span]]:
    text, spans = _by_jinja(tokenizer, template, messages, generate)
    check_told(messages, text, lambda other: _by_jinja(tokenizer, template, other, generate)[0], _where(tokenizer))
    return text, spans


def _by_jinja(
    tokenizer: PreTrainedTokenizerBase, template: str, messages: list[Message], generate: bool
) -> tuple[str, list[Span]]:
    # Imported here: a caller that holds a tokenizer has transformers loaded, and this room imports without it.
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        texts, spans = render_jinja_template(
            **as_arguments(messages), chat_template=template, add_generation_prompt=generate,
            return_assistant_tokens_mask=has_generation_markers(template), **tokenizer.special_tokens_map,
        )
    except (jinja2.TemplateError, TypeError) as error:
        raise DataError(f"the chat template refuses a conversation: {error}", where=_where(tokenizer),
                        found=[message.get("role") for message in messages],
                        hint="check the order and names of the roles") from error
    return texts[0], list(spans[0]) if spans else []


@lru_cache(maxsize=16)
def _header(tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    """What `add_generation_prompt` adds; empty for Llama 2 and Mistral."""
    question: list[Message] = [{"role": "user", "content": "x"}]
    plain, _ = _rendered(tokenizer, template, question, False)
    asked, _ = _rendered(tokenizer, template, question, True)
    return asked.removeprefix(plain)


def _begin(text: str, start: int, header: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """Where a turn is learned from: some markers (TRL's for Qwen) open before the generation prompt has ended."""
    for begin in range(start, start + len(header) + 1):
        if text.endswith(header, 0, begin):
            return begin
    raise ModelError("the template's generation block does not begin where its generation prompt ends",
                     where=_where(tokenizer), found=text[max(0, start - 40): start + 20], expected=repr(header),
                     hint="set `template: NAME` on the import stage")


@lru_cache(maxsize=16)
def _end_id(tokenizer: PreTrainedTokenizerBase, template: str) -> int:
    question: list[Message] = [{"role": "user", "content": "x"}]
    asked, _ = _rendered(tokenizer, template, question, True)
    full, _ = _rendered(tokenizer, template, [*question, {"role": "assistant", "content": "y"}], False)
    _check_continues(tokenizer, asked, full)
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    special |= set(tokenizer.all_special_ids)
    found = [index for index in _ids(tokenizer, full[len(asked):]) if index in special]
    if not found:
        raise ModelError(
            "the chat template ends no answer with a special token of this tokenizer", where=_where(tokenizer),
            found=full[len(asked):], expected="a text that ends with a token such as <|im_end|> or </s>",
            hint="set a `template` whose end token the tokenizer has (alpaca, llama2 and mistral use its eos token)",
        )
    return int(found[-1])


def _check_continues(tokenizer: PreTrainedTokenizerBase, asked: str, full: str) -> None:
    if not full.startswith(asked):
        raise ModelError(
            "the chat template renders a prompt differently once it has an answer, so what is learned would not be "
            "what is asked", where=_where(tokenizer), found=full[-200:],
            expected=f"a text that begins with {asked[-200:]!r}", hint="set `template: NAME` on the import stage",
        )


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _cuts(spans: list[Span]) -> list[int]:
    return [position for span in spans for position in span]


def _join(pieces: list[list[int]]) -> list[int]:
    return [index for piece in pieces for index in piece]


def _pieces(tokenizer: PreTrainedTokenizerBase, text: str, cuts: list[int]) -> list[list[int]]:
    """Ids of the stretches between cuts; see the module. What stands left of a cut never depends on what is right."""
    pieces: list[list[int]] = []
    run: list[int] = []
    run_start = last = 0
    for cut in [*cuts, len(text)]:
        whole = _ids(tokenizer, text[run_start:cut])
        if whole[: len(run)] == run:
            piece, run = whole[len(run):], whole
        else:
            piece = _ids(tokenizer, text[last:cut])
            if tokenizer.decode(run + piece) != tokenizer.decode(whole):
                raise ModelError("prompt and answer cannot be tokenized apart", where=_where(tokenizer),
                                 found=text[max(0, last - 20): last + 20],
                                 hint="the tokenizer adds text at the start of a piece; use a template that puts a "
                                      "special token or a space before the answer")
            run_start, run = last, piece
        pieces.append(piece)
        last = cut
    return pieces


def _after_last(piece: list[int], ends: set[int | None], tokenizer: PreTrainedTokenizerBase) -> int:
    """Length of a piece up to and with its last end token."""
    for index in range(len(piece), 0, -1):
        if piece[index - 1] in ends:
            return index
    wanted = tokenizer.convert_ids_to_tokens([index for index in ends if index is not None])
    raise ModelError("an answer has no end token, so a model that learns it would never stop", where=_where(tokenizer),
                     found=tokenizer.decode(piece[-20:]), expected=f"one of {wanted}",
                     hint="set `template: NAME` on the import stage")
