"""An answer's text while its tokens come: pieces that together are what `decode_answer` says of all of them.

Nothing is given out that a later token may change: half of a letter in UTF-8, a letter whose marks may follow, what the
template itself puts around an answer. Runs no model and prints nothing.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from alignment.templates.encode import decode_answer, decoded, decoded_frame
from alignment.words import last_letter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
"""SentencePiece's token for one byte; a row of them is decoded together, and is nothing as long as it is no UTF-8."""
_UNREADABLE = "\ufffd"


class Growing:
    """One answer. `add` each token but the one that stops it, then `end`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer, self._frame = tokenizer, decoded_frame(tokenizer)
        added = tokenizer.added_tokens_decoder
        self._unsaid = {*tokenizer.all_special_ids, *(token for token, how in added.items() if how.special)}
        self._ids: list[int] = []
        self._bytes = 0
        self._given = ""

    def add(self, token: int) -> str:
        """What can be said now that this token has come; often nothing."""
        self._ids.append(token)
        is_byte = _BYTE.fullmatch(str(self._tokenizer.convert_ids_to_tokens(token))) is not None
        unsaid = self._bytes and token in self._unsaid  # not decoded, so no end of a row of bytes
        self._bytes = self._bytes + 1 if is_byte or unsaid else 0
        # All of them anew, since how a token is written depends on those before it; a tokenizer does a thousand of
        # them in the time of a small part of one step of a model.
        text = self._settled(decoded(self._tokenizer, self._ids[: len(self._ids) - self._bytes]))
        return self._give(text)

    def end(self, *, finished: bool) -> str:
        """The rest.

        Args:
            finished: whether a stop token came.
        """
        return self._give(decode_answer(self._tokenizer, self._ids, finished=finished))

    def _settled(self, text: str) -> str:
        """What of a text stays as it is, whatever follows."""
        found, blank = self._frame.before.match(text), not text.strip()
        if (found is None and self._may_become_frame(text)) or (self._frame.written and (
                blank or (found is not None and found.end() == len(text)))):
            return ""
        text = text[found.end():] if found else text
        text = text.rstrip(_UNREADABLE)
        text = text[: last_letter(text)]
        after = self._frame.after
        open_ = next((size for size in range(min(len(after), len(text)), 0, -1) if text.endswith(after[:size])), 0)
        return text[: len(text) - open_]

    def _may_become_frame(self, text: str) -> bool:
        written, said = "".join(self._frame.written.split()), "".join(text.split()).rstrip(_UNREADABLE)
        return bool(written) and written.startswith(said)

    def _give(self, text: str) -> str:
        """What of `text` was not given out yet. What was is never taken back."""
        if not text.startswith(self._given):
            return ""
        piece, self._given = text[len(self._given):], text
        return piece
