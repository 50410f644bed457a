"""How near a short answer comes to its references: exact match and token F1 after SQuAD's normalisation.

Same numbers as the evaluation script of SQuAD 1.1 (Rajpurkar et al. 2016, arXiv:1606.05250). Knows no records.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Lower case, without ASCII punctuation, without the articles a, an, the, blanks squeezed."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, references: Iterable[str]) -> float:
    """1.0 when the normalised prediction is one of the normalised references, else 0.0."""
    said = normalize_answer(prediction)
    return float(any(said == normalize_answer(reference) for reference in references))


def token_f1(prediction: str, references: Iterable[str]) -> float:
    """The best F1 over the references, tokens counted with repetition; 0.0 without references.

    Two texts that are both empty after normalisation agree (1.0), as in SQuAD 2.0's script.
    """
    return max((_f1(prediction, reference) for reference in references), default=0.0)


def _f1(prediction: str, reference: str) -> float:
    said, wanted = normalize_answer(prediction).split(), normalize_answer(reference).split()
    if not said or not wanted:
        return float(said == wanted)
    common = sum((Counter(said) & Counter(wanted)).values())
    return 2 * common / (len(said) + len(wanted))
