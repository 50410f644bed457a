"""What BLEU and chrF share of sacrebleu: letters as it has to be shown them, and its signature."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection
from typing import Any


def composed(text: str) -> str:
    """One code for one letter: sacrebleu takes composed and decomposed letters for different ones."""
    return unicodedata.normalize("NFC", text)


def signature_of(scorer: Any, references: Collection[int]) -> str:
    """A sacrebleu metric's own; `references`: the numbers of references that rows have."""
    scorer.num_refs = next(iter(references)) if len(set(references)) == 1 else -1
    return str(scorer.get_signature())
