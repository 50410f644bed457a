"""A folder with `tokenizer.model` alone: transformers converts it, and SentencePiece itself says whether rightly.

transformers 5.19 orders a BPE model's merges by piece id instead of by score, so that "a  b" becomes other tokens than
those that the model has learned. Mended here, compared, and refused where it stays different. Reads no other format.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignment.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLES = (
    "hello world",
    "a  b   c    d     e",
    "two\n\nlines\n  and a third",
    "def f(x):\n        return x  # eight blanks",
    "tabs\t\tand trailing  ",
    "Ünïcode, naïve café — 東京 🙂 ﬁ",
    "12,345.678 -> $9.99 (100 %)",
)
"""Texts that tell conversions apart. None begins with a blank: no chat template's text does."""


def as_sentencepiece(tokenizer: PreTrainedTokenizerBase, file: Path, where: str) -> None:
    """Make a tokenizer that was converted from `file` encode as SentencePiece does.

    Raises:
        ModelError: it cannot be made to.
    """
    import sentencepiece

    oracle = sentencepiece.SentencePieceProcessor(model_file=str(file))

    def different() -> str | None:
        return next((text for text in SAMPLES
                     if list(tokenizer(text, add_special_tokens=False)["input_ids"]) != oracle.encode(text)), None)

    if different() is not None:
        _mend(tokenizer, oracle)
    text = different()
    if text is not None:
        found = tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"])
        raise ModelError(
            "transformers converts the folder's tokenizer.model into a tokenizer that encodes otherwise", where=where,
            found=f"{text!r} becomes {found}", expected=f"as in SentencePiece {oracle.encode(text, out_type=str)}",
            hint="put the maker's tokenizer.json beside it, or a tokenizer_config.json that names the right "
                 "tokenizer_class (LlamaTokenizer for models of the Llama and Mistral families)",
        )


def _mend(tokenizer: PreTrainedTokenizerBase, oracle: Any) -> None:
    """Order the merges of a BPE model by its pieces' scores; other models are left as they are."""
    from tokenizers import models
    from transformers.tokenization_utils_base import generate_merges

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not isinstance(backend.model, models.BPE):
        return
    pieces = [oracle.id_to_piece(index) for index in range(oracle.vocab_size())]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    marks = {piece for index, piece in enumerate(pieces)
             if oracle.is_control(index) or oracle.is_unknown(index) or oracle.is_byte(index)}
    scores = {piece: oracle.get_score(index) for piece, index in vocabulary.items() if piece not in marks}
    old = backend.model
    backend.model = models.BPE(
        vocabulary, generate_merges(vocabulary, scores, skip_tokens=marks), unk_token=old.unk_token,
        fuse_unk=old.fuse_unk, byte_fallback=old.byte_fallback,
    )
