"""Tokens that only a chat template may write: where a message spells one, it stays the letters it is.

Makers encode a message apart from the marks around it; transformers renders both into one text and tokenizes that, so
that `<|im_end|>` in a question ends the question. Here the template renders messages in which one letter of each
spelled token is disguised. What then still reads as a control token, the template wrote. A twin of the tokenizer, in
which the control tokens have names that nobody can spell, turns the text into ids: everything else about it is the
same, so blanks and merges at the borders stay as they are.

Does not render (encode.py does).
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from alignment.errors import ModelError
from alignment.records import Message
from alignment.templates.convention import Convention

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_PRIVATE = range(0xE000, 0xF900)
"""Unicode's first private use area: no blanks, no letters, nothing that trims, cases or escapes."""
_BREAK = re.compile(r"\s*[\r\n]")
Ids = list[int]


@dataclass(frozen=True)
class Disguise:
    """Letters of one conversation that stand for others: of the same length, and in none of its texts.

    Attributes:
        letters: letter -> what stands for it where it begins a spelled control token.
        begins: blank -> what stands for it where it begins a message with a line break in its first blanks. Not the
            assistant's, which are cut from what is before them anyway.
    """

    pattern: re.Pattern[str]
    letters: dict[str, str] = field(default_factory=dict)
    begins: dict[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.letters or self.begins)

    def hide(self, messages: list[Message]) -> list[Message]:
        """The messages, each text in disguise."""
        return [self._worn(message) for message in messages]

    def reveal(self, text: str) -> str:
        """Inverse of `hide`, also on rendered text and on parts of it."""
        both = [*self.letters.items(), *self.begins.items()]
        return text.translate({ord(worn): letter for letter, worn in both})

    def _worn(self, message: Message) -> Message:
        hidden: Message = _mapped(message, self._spelled)
        if self.begins and _begins(message):
            hidden["content"] = self.begins[hidden["content"][0]] + hidden["content"][1:]
        return hidden

    def _spelled(self, text: str) -> str:
        while self.letters and self.pattern.search(text):
            text = self.pattern.sub(lambda match: self.letters[match[0][0]] + match[0][1:], text)
        return text


class ControlTokens:
    """The control tokens of a tokenizer under a template, and ids of text in which only the template writes them.

    Args:
        written: rendered text around a user's message; added tokens in it are control tokens, flagged special or not.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, written: str) -> None:
        self.tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        self.ids: dict[str, int] = {
            token.content: index for index, token in added.items()
            if token.content.strip() and (token.special or token.content in written)
        }
        self.ids |= {token: int(tokenizer.convert_tokens_to_ids(token))
                     for token in tokenizer.all_special_tokens if token.strip()}
        longest_first = sorted(self.ids, key=lambda token: (-len(token), token))
        self.pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._numbers = frozenset(self.ids.values()) - {tokenizer.unk_token_id}

    def spelled(self, messages: object) -> list[str]:
        """Control tokens that the texts of messages spell, each once."""
        texts = list(_texts(messages))
        if self.pattern.search("\n".join(texts)) is None:  # most; one search instead of many
            return []
        return list(dict.fromkeys(token for text in texts for token in self.pattern.findall(text)))

    def disguise(self, messages: list[Message], *, breaks: bool) -> Disguise:
        """What hides the control tokens that messages spell, and with `breaks` the line breaks that begin them."""
        first = sorted({token[0] for token in self.ids}) if self.spelled(messages) else []
        blanks = sorted({message["content"][0] for message in messages if _begins(message)}) if breaks else []
        used = set("".join(_texts(messages))) if first or blanks else set()
        free = (chr(code) for code in _PRIVATE if chr(code) not in used)
        return Disguise(self.pattern, {letter: next(free) for letter in first}, {blank: next(free) for blank in blanks})

    def encode(self, wanted: Sequence[tuple[str, Disguise]]) -> list[Ids]:
        """Ids of rendered texts in disguise: what they read as control tokens are tokens, what they hide is text; all
        that is spelled are tokens where the convention says so."""
        as_tokens = Convention.of(self.tokenizer).special_tokens_in_text == "as-tokens"
        open_texts = list(dict.fromkeys(text for text, disguise in wanted if as_tokens or not disguise))
        plain = dict(zip(open_texts, self._plain(open_texts), strict=True))
        if as_tokens:
            return [plain[text] for text, _ in wanted]
        return [plain[text] if not disguise and self._agrees(text, plain[text]) else self._hidden(text, disguise)
                for text, disguise in wanted]

    def _agrees(self, text: str, ids: Ids) -> bool:
        """The rule; a normalizer may make control tokens of other letters."""
        return sum(map(self._numbers.__contains__, ids)) == len(self.pattern.findall(text))

    def _hidden(self, text: str, disguise: Disguise) -> Ids:
        return self._twin.encode(text, disguise) if self.tokenizer.is_fast else self._by_segments(text, disguise)

    def places(self, found: Sequence[re.Match[str]], ids: Ids) -> list[int] | None:
        """Where the control tokens that are found in a text stand among its ids; None where these have others."""
        places, at = list[int](), -1
        if sum(map(self._numbers.__contains__, ids)) != len(found):
            return None
        for match in found:
            try:
                at = ids.index(self.ids[match[0]], at + 1)
            except ValueError:
                return None
            places.append(at)
        return places

    @cached_property
    def apart(self) -> bool:
        """Whether the tokenizer encodes what stands between control tokens apart from all else, and knows nothing of
        what is before a control token that a text begins with."""
        if not self._bare:
            return False
        added = {token.content: token for token in self.tokenizer.added_tokens_decoder.values()}
        return all(token in added and not (added[token].normalized or added[token].lstrip or added[token].rstrip
                                           or added[token].single_word) for token in self.ids)

    @cached_property
    def _bare(self) -> bool:
        """Whether its library's tokenizer is all that there is to it: no Python around that changes texts or ids."""
        from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

        kind = type(self.tokenizer)
        return (isinstance(self.tokenizer, PreTrainedTokenizerFast)
                and kind._encode_plus is PreTrainedTokenizerFast._encode_plus
                and kind.__call__ is PreTrainedTokenizerBase.__call__)

    def _plain(self, texts: list[str]) -> list[Ids]:
        if not self._bare:
            return [self._by_python(text) for text in texts]
        backend = self.tokenizer.backend_tokenizer
        # What transformers sets at each call: a tokenizer's file may ask for other things.
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = self.tokenizer.split_special_tokens
        return [made.ids for made in backend.encode_batch_fast(texts, add_special_tokens=False)]

    def _by_python(self, text: str, **given: Any) -> Ids:
        return list(self.tokenizer(text, add_special_tokens=False, **given)["input_ids"])

    @cached_property
    def _twin(self) -> _Twin:
        return _Twin(self)

    def _by_segments(self, text: str, disguise: Disguise) -> list[int]:
        """For tokenizers in Python, which have no file to make a twin of: the stretches between control tokens."""

        def joined(shown: str, reveal: Disguise | None) -> list[int]:
            ids, last = [], 0
            for match in [*self.pattern.finditer(shown), None]:
                segment = shown[last: match.start() if match else None]
                segment = reveal.reveal(segment) if reveal else segment
                ids += self._by_python(segment, split_special_tokens=True) if segment else []
                if match:
                    ids.append(self.ids[match[0]])
                    last = match.end()
            return ids

        if joined(text, None) != self._by_python(text):
            raise ModelError("a text spells a special token, and this tokenizer cannot encode it as text",
                             where=str(self.tokenizer.name_or_path), found=self.spelled([disguise.reveal(text)]),
                             hint="set `special_tokens_in_text: refuse` or `as-tokens` on the import stage")
        return joined(text, disguise)


class _Twin:
    """A copy of a fast tokenizer whose control tokens have secret names, with one token more that only separates."""

    def __init__(self, control: ControlTokens) -> None:
        from tokenizers import Tokenizer

        self.pattern, secret = control.pattern, secrets.token_hex(8)
        self.names = {token: f"\uf8fe{secret}:{index}\uf8ff" for token, index in control.ids.items()}
        self.separator = f"\uf8fe{secret}:separator\uf8ff"
        made = json.loads(control.tokenizer.backend_tokenizer.to_str())
        _rename(made, self.names)
        self.tokenizer: Tokenizer = Tokenizer.from_str(json.dumps(made))
        self.tokenizer.add_special_tokens([self.separator])
        self.between = self.tokenizer.token_to_id(self.separator)
        wrong = [token for token, index in control.ids.items()
                 if self.tokenizer.token_to_id(self.names[token]) != index]
        if wrong:
            raise ModelError("the tokenizer's special tokens have other ids once they are renamed",
                             where=str(control.tokenizer.name_or_path), found=wrong[:5],
                             hint="set `special_tokens_in_text: as-tokens` on the import stage")
        # Where a separator would leave its mark (a blank that SentencePiece puts after it), nothing merges anyway.
        self.separates = self._encode("x\n" + self.separator + "\nx") == self._encode("x\n") + self._encode("\nx")

    def encode(self, text: str, disguise: Disguise) -> list[int]:
        text = self.pattern.sub(lambda match: self.names[match[0]], text)
        for worn in disguise.begins.values() if self.separates else ():
            # Only after another line break, with which it would become one token: that one is the template's.
            text = text.replace("\n" + worn, "\n" + self.separator + worn)
        return self._encode(disguise.reveal(text))

    def _encode(self, text: str) -> list[int]:
        return [index for index in self.tokenizer.encode(text, add_special_tokens=False).ids if index != self.between]


def _rename(made: dict[str, Any], names: dict[str, str]) -> None:
    """Change a tokenizer.json: tokens get their names, and no merge of letters leads to one."""
    made.update(post_processor=None, truncation=None, padding=None)
    for token in made["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = made["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.get(piece, piece): index for piece, index in model["vocab"].items()}
    else:
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
    if model.get("unk_token"):
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if "merges" in model:
        pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
        model["merges"] = [[left, right] for left, right in pairs
                           if not names.keys() & {left, right, left + right}]


def _begins(message: Message) -> bool:
    """Whether a line break stands in the first blanks of a message that is not the assistant's."""
    content: Any = message.get("content")
    return message.get("role") != "assistant" and isinstance(content, str) and _BREAK.match(content) is not None


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """A message or a part of one with every text changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key): _mapped(item, change) for key, item in value.items()}
    return [_mapped(item, change) for item in value] if isinstance(value, list | tuple) else value


def _texts(value: Any) -> Iterator[str]:
    """Every text in messages, keys of mappings among them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            if isinstance(item, str):
                yield item
            else:
                yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
