"""Messages -> token ids. What is learned is token for token what will be asked: one function renders, one tokenizes.

A rendered conversation is cut where the assistant's text begins and ends. Text is tokenized from the left across
these cuts as long as no token spans one; where one would (an answer that begins with a newline, after ChatML's), the
part behind the cut is tokenized on its own, as a model that generates does. So the ids of a prompt are always a
prefix of the ids of prompt and answer. Special tokens are never added by the tokenizer, only by the template: no
second BOS. A message that spells a special token stays text (control.py), unless the model's convention says else.

Each encoder is also there as steps (steps.py), for many rows at once: `prompting`, `completing`, `conversing`, which
`together` takes. Does not pad or truncate.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, NamedTuple

import jinja2

from alignment.errors import DataError, ModelError
from alignment.records import Message
from alignment.templates.control import ControlTokens, Disguise, Ids
from alignment.templates.convention import Convention
from alignment.templates.library import has_generation_markers, template_hash
from alignment.templates.pieces import join, pieces
from alignment.templates.steps import Encoding, T, Wanted, alone, in_order
from alignment.templates.told import as_arguments, as_turn, check_marked, check_told, learned_turns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]
_CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_QUESTION: list[Message] = [{"role": "user", "content": "x"}]
_PROBE = "Kubealign"
"""An answer that shows what a template writes around one: without blanks, in no template's own text."""


@dataclass(frozen=True)
class Frame:
    """What a template writes around the last answer of a conversation.

    Attributes:
        before: after the generation prompt, before the answer: a blank, an empty block of reasoning; often nothing.
        until_end: behind the answer, up to its end token and with it.
        after: behind the end token; never generated.
        end_id: the first control token after the answer.
    """

    before: str
    until_end: str
    after: str
    end_id: int


@dataclass(frozen=True)
class _Rendered:
    """Text in disguise and the character spans of the assistant's turns (empty for a template without markers)."""

    text: str
    spans: list[Span]

    @property
    def cuts(self) -> list[int]:
        return [position for span in self.spans for position in span]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> list[int]:
    """Ids of a conversation that waits for the assistant (generation prompt added).

    Raises:
        DataError: the template refuses the conversation (order or names of roles), or a message spells a special token
            and the model's convention refuses that.
        ModelError: the tokenizer has no template, or the template cannot be tokenized piece by piece.
    """
    return _alone(tokenizer, prompting(tokenizer, messages))


def prompting(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> Encoding[Ids]:
    """The steps of `encode_prompt`."""
    asked, disguise = _render(tokenizer, messages, generate=True)
    return join((yield from _pieces(tokenizer, disguise, asked.text, asked.cuts)))


def encode_completion(
    tokenizer: PreTrainedTokenizerBase, prompt: list[Message], completion: str | Message
) -> tuple[list[int], list[int]]:
    """Ids of a prompt, equal to `encode_prompt`'s, and of the assistant's answer to it (its text, or its turn), its end
    token last.

    What the template adds after the end token (ChatML's newline) is cut: it is never generated.

    Raises:
        DataError: as `encode_prompt`.
        ModelError: the answer is not rendered as a continuation of the prompt, or has no end token.
    """
    return _alone(tokenizer, completing(tokenizer, prompt, completion))


def completing(
    tokenizer: PreTrainedTokenizerBase, prompt: list[Message], completion: str | Message
) -> Encoding[tuple[Ids, Ids]]:
    """The steps of `encode_completion`."""
    whole = [*prompt, as_turn(completion)]
    full, disguise = _render(tokenizer, whole, generate=False)
    # In the answer's disguise too: what is hidden only there changes nothing here.
    asked, _ = _render(tokenizer, prompt, generate=True, disguise=disguise)
    _check_continues(tokenizer, disguise, asked.text, full.text)
    frame, text = _frame(tokenizer, _template(tokenizer)), full.text
    framed = text.endswith(frame.until_end + frame.after)
    if framed:
        text = text[: len(text) - len(frame.after)]
    *before, answer = yield from _pieces(tokenizer, disguise, text, [*asked.cuts, len(asked.text)])
    end = len(answer) if framed else _after_last(answer, {frame.end_id, tokenizer.eos_token_id}, tokenizer)
    return join(before), answer[:end]


def encode_answer(
    tokenizer: PreTrainedTokenizerBase, prompt: list[Message], completion: str | Message
) -> tuple[list[int], list[int]]:
    """The same ids as `encode_completion`, but what the template puts before the answer stands with the prompt: for
    measuring. That is an empty block of reasoning; a blank alone stays with the answer's first word."""
    before, answer = encode_completion(tokenizer, prompt, completion)
    block, count = _frame(tokenizer, _template(tokenizer)).before, 0
    if block.strip() and tokenizer.decode(answer).startswith(block):
        while block.startswith(tokenizer.decode(answer[: count + 1])):
            count += 1
    return before + answer[:count], answer[count:]


def decode_answer(tokenizer: PreTrainedTokenizerBase, ids: list[int], *, finished: bool = True) -> str:
    """The text that a model said: inverse of `encode_completion`, without what the template puts around an answer.

    Args:
        ids: what was generated, without the stop token.
        finished: whether one was; without it nothing behind the answer is the template's.
    """
    frame = decoded_frame(tokenizer)
    text = decoded(tokenizer, ids)
    found = frame.before.match(text)
    text = text[found.end():] if found else text
    return text.removesuffix(frame.after) if finished else text


def encode_conversation(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> tuple[list[int], list[int]]:
    """Ids of a whole conversation and a mask of the same length: 1 for the assistant's text and its end token, else 0.

    Each assistant turn begins where its generation prompt ends. Turns that say `learn: False` have 0.

    Raises:
        DataError: as `encode_prompt`, or the template ignores a part of it or does not mark its turns one by one.
        ModelError: the template has no generation markers, or a turn has no end token.
    """
    return _alone(tokenizer, conversing(tokenizer, messages))


def conversing(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> Encoding[tuple[Ids, list[int]]]:
    """The steps of `encode_conversation`."""
    if not has_generation_markers(_template(tokenizer)):
        raise ModelError(
            "the chat template does not mark what the assistant says", where=_where(tokenizer),
            expected="{% generation %} ... {% endgeneration %} around the assistant's text",
            hint="set `template: NAME` on the import stage (`kubealign templates` lists them)",
        )
    whole, disguise = _render(tokenizer, messages, generate=False)
    said = [disguise.reveal(whole.text[start:end]) for start, end in whole.spans]
    check_marked(messages, said, _where(tokenizer))
    learn = learned_turns(messages, len(said))
    ends = {end_id(tokenizer), tokenizer.eos_token_id}
    ids: list[int] = []
    mask: list[int] = []
    for index, piece in enumerate((yield from _pieces(tokenizer, disguise, whole.text, whole.cuts))):
        # Pieces alternate: before a span, the span, between spans, ..., after the last span.
        learned = _after_last(piece, ends, tokenizer) if index % 2 and learn[index // 2] else 0
        ids += piece
        mask += [1] * learned + [0] * (len(piece) - learned)
    return ids, mask


def together(tokenizer: PreTrainedTokenizerBase, many: Iterable[Encoding[T]]) -> Iterator[Callable[[], T]]:
    """A call for each of many, to be made once and in turn, with what its steps return or raise; their first texts are
    encoded in one batch."""
    return in_order(many, partial(_encode, tokenizer))


def spelled(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> list[str]:
    """Special tokens that the texts of messages spell, each once: what `special_tokens_in_text` is about."""
    return _control(tokenizer, _template(tokenizer)).spelled(messages)


def end_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends an assistant turn in the tokenizer's template. Raises ModelError when there is none."""
    return _frame(tokenizer, _template(tokenizer)).end_id


def stop_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that generation must stop on, sorted: those of the model's maker, the first special token after an answer,
    the eos token, and all three tokens of ChatML."""
    ids = {end_id(tokenizer), *Convention.of(tokenizer).stop_ids}
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


def _render(
    tokenizer: PreTrainedTokenizerBase, messages: list[Message], *, generate: bool, disguise: Disguise | None = None
) -> tuple[_Rendered, Disguise]:
    """The conversation's text, and the disguise that it wears: the given one, else the one that it needs."""
    template = _template(tokenizer)
    if disguise is None:
        disguise = _needed(tokenizer, template, messages, generate)
    text, spans = _rendered(tokenizer, template, disguise.hide(messages), generate)
    header = _header(tokenizer, template) if spans else ""
    return _Rendered(text, [(_begin(text, start, header, tokenizer), end) for start, end in spans]), disguise


def _needed(
    tokenizer: PreTrainedTokenizerBase, template: str, messages: list[Message], generate: bool
) -> Disguise:
    """What must be hidden in a conversation, none where the convention lets messages write control tokens."""
    control, convention = _control(tokenizer, template), Convention.of(tokenizer)
    if convention.special_tokens_in_text == "as-tokens":
        return Disguise(control.pattern)
    found = control.spelled(messages)
    if found and convention.special_tokens_in_text == "refuse":
        raise DataError("a text spells a special token", where=_where(tokenizer), found=found,
                        expected="texts without one, by the import stage's `special_tokens_in_text: refuse`")
    disguise = control.disguise(messages, breaks=True)
    if not disguise:
        return disguise
    # A template that trims, or that looks for a special token itself, must find what it would have found.
    plain, _ = _rendered(tokenizer, template, messages, generate)
    for worn in (disguise, control.disguise(messages, breaks=False)):
        if worn.reveal(_rendered(tokenizer, template, worn.hide(messages), generate)[0]) == plain:
            return worn
    raise DataError("a text spells a special token that the chat template looks for in texts", where=_where(tokenizer),
                    found=found, expected="texts without it",
                    hint="set `special_tokens_in_text: as-tokens` on the import stage, if that is what the texts mean")


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
    plain, _ = _rendered(tokenizer, template, _QUESTION, False)
    asked, _ = _rendered(tokenizer, template, _QUESTION, True)
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
def _control(tokenizer: PreTrainedTokenizerBase, template: str) -> ControlTokens:
    written, _ = _rendered(tokenizer, template, _QUESTION, False)
    return ControlTokens(tokenizer, written)


@lru_cache(maxsize=16)
def _frame(tokenizer: PreTrainedTokenizerBase, template: str) -> Frame:
    control = _control(tokenizer, template)
    asked, _ = _rendered(tokenizer, template, _QUESTION, True)
    full, _ = _rendered(tokenizer, template, [*_QUESTION, {"role": "assistant", "content": _PROBE}], False)
    _check_continues(tokenizer, Disguise(control.pattern), asked, full)
    before, probe, behind = full[len(asked):].partition(_PROBE)
    end = control.pattern.search(behind)
    if not probe or end is None:
        raise ModelError(
            "the chat template ends no answer with a special token of this tokenizer" if probe else
            "the chat template does not write the assistant's text after its prompt", where=_where(tokenizer),
            found=full[len(asked):], expected="a text that ends with a token such as <|im_end|> or </s>",
            hint="set a `template` whose end token the tokenizer has (alpaca, llama2 and mistral use its eos token)",
        )
    return Frame(before, behind[: end.end()], behind[end.end():], control.ids[end[0]])


class DecodedFrame(NamedTuple):
    """What stands before an answer as generated text has it, and behind it before the end token.

    Attributes:
        written: what the template itself writes before an answer; `before` finds it in what a model wrote.
    """

    before: re.Pattern[str]
    after: str
    written: str


def decoded_frame(tokenizer: PreTrainedTokenizerBase) -> DecodedFrame:
    """Of the tokenizer's template."""
    return _decoded_frame(tokenizer, _template(tokenizer))


@lru_cache(maxsize=16)
def _decoded_frame(tokenizer: PreTrainedTokenizerBase, template: str) -> DecodedFrame:
    """Of an empty block of reasoning only the marks count: a model may leave other blanks between them."""
    _, ids = encode_completion(tokenizer, _QUESTION, _PROBE)
    before, _, after = decoded(tokenizer, ids[:-1]).partition(_PROBE)
    marks = before.split()
    block = r"\s*" + r"\s*".join(map(re.escape, marks)) + r"(?:\r?\n)*"
    found = re.compile(f"{re.escape(before)}|{block}" if marks else re.escape(before))
    return DecodedFrame(found, after, before)


def decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """Text of ids, special tokens left out."""
    # No clean-up: it takes blanks away before punctuation, which were said.
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _check_continues(tokenizer: PreTrainedTokenizerBase, disguise: Disguise, asked: str, full: str) -> None:
    if not full.startswith(asked):
        raise ModelError(
            "the chat template renders a prompt differently once it has an answer, so what is learned would not be "
            "what is asked", where=_where(tokenizer), found=disguise.reveal(full[-200:]),
            expected=f"a text that begins with {disguise.reveal(asked[-200:])!r}",
            hint="set `template: NAME` on the import stage",
        )


def _encode(tokenizer: PreTrainedTokenizerBase, wanted: Sequence[Wanted]) -> list[Ids]:
    return _control(tokenizer, _template(tokenizer)).encode(wanted)


def _alone(tokenizer: PreTrainedTokenizerBase, steps: Encoding[T]) -> T:
    return alone(steps, partial(_encode, tokenizer))


def _pieces(
    tokenizer: PreTrainedTokenizerBase, disguise: Disguise, text: str, cuts: list[int]
) -> Encoding[list[Ids]]:
    return pieces(_control(tokenizer, _template(tokenizer)), disguise, text, cuts, _where(tokenizer))


def _after_last(piece: list[int], ends: set[int | None], tokenizer: PreTrainedTokenizerBase) -> int:
    """Length of a piece up to and with its last end token."""
    for index in range(len(piece), 0, -1):
        if piece[index - 1] in ends:
            return index
    wanted = tokenizer.convert_ids_to_tokens([index for index in ends if index is not None])
    raise ModelError("an answer has no end token, so a model that learns it would never stop", where=_where(tokenizer),
                     found=tokenizer.decode(piece[-20:]), expected=f"one of {wanted}",
                     hint="set `template: NAME` on the import stage")
