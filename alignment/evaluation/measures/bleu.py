"""BLEU, as sacrebleu computes it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any

from alignment.evaluation.measures.base import (
    POINTS,
    REFERENCES,
    Measure,
    Pooled,
    Reply,
    Rules,
    no_reference,
)
from alignment.evaluation.sacre import composed, signature_of
from alignment.words import words

if TYPE_CHECKING:
    from alignment.evaluation.measures.base import Floats

ORDERS = 4
_KANA = re.compile("[\u3041-\u30ff\u31f0-\u31ff]")
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003fffd]")
_LOOKED = 500
"""References that are looked at."""
_BY_CHARACTER = {"ja", "th", "lo", "km", "my", "bo"}


def cut_of(language: str | None, references: Iterable[str]) -> str:
    """The tokenizer of sacrebleu's that fits: `zh` (Chinese by characters, the rest as 13a), `char` for other scripts
    without blanks, else its default, `13a`. By the language, or by what most words of the references are written in.
    """
    if language is not None:
        return "zh" if language == "zh" else "char" if language in _BY_CHARACTER else "13a"
    units = [word for text in islice(references, _LOOKED) for word in words(text)]
    # What is a word of its own however near its neighbour stands.
    alone = [word for word in units if not word.isascii() and words(word * 2) == [word, word]]
    if 2 * len(alone) <= len(units):
        return "13a"
    han, kana = (sum(bool(script.match(word)) for word in alone) for script in (_HAN, _KANA))
    return "zh" if 2 * han > len(alone) and 10 * kana <= len(alone) else "char"


def counts(reply: Reply, rules: Rules) -> tuple[float, ...]:
    """[length, nearest reference's length, matching n-grams of order 1 to 4, n-grams of the answer of order 1 to 4]."""
    references = [[composed(text)] for text in reply.references]
    found = _scorer(rules.cut)._extract_corpus_statistics([composed(reply.text)], references)[0]
    return tuple(map(float, found))


def total(sums: Floats, *, effective: bool = False) -> Floats:
    """Corpus BLEU of each line of sums: brevity penalty times the geometric mean of the four precisions, those without
    a match smoothed exponentially (sacrebleu's `exp`, mteval's). `effective`: over the orders that the answer has.
    """
    import numpy as np

    length, reference, matches, grams = sums[:, 0], sums[:, 1], sums[:, 2:2 + ORDERS], sums[:, 2 + ORDERS:]
    has = np.logical_and.accumulate(grams > 0, axis=1)
    halvings = 2.0 ** np.cumsum(has & (matches == 0), axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(matches > 0, matches, 1 / halvings) / grams
        # What sacrebleu makes of an order that is not there: so small that the mean is 0.
        logs = np.where(has, np.log(100 * precision), 0.0 if effective else -9999999999.0)
        mean = logs.sum(axis=1) / (np.maximum(has.sum(axis=1), 1) if effective else ORDERS)
        brevity = np.where(length < reference, np.exp(1 - reference / length), 1.0)
        score = np.where(matches.any(axis=1), brevity * np.exp(mean), 0.0)
    return np.asarray(np.minimum(score, 100.0))  # the exponential may be off in the last bit


def alone(counted: tuple[float, ...]) -> float:
    """BLEU of one answer, over the orders that it has, as sacrebleu's --sentence-level."""
    import numpy as np

    return float(total(np.array([counted]), effective=True)[0])


def signature(rules: Rules, references: Collection[int]) -> str:
    return signature_of(_scorer(rules.cut), references)


@cache
def _scorer(cut: str) -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(tokenize=cut, force=True)  # without its warning on texts that look tokenized, which may be a model's


MEASURE = Measure(
    title="BLEU",
    text="Corpus BLEU of the whole texts: sums over rows, no mean of rows; a row's own is sentence BLEU. Chinese by "
         "characters.",
    source="Papineni et al. 2002 (aclanthology P02-1040), sacrebleu (Post 2018, arXiv:1804.08771); its signature is in "
           "results.json",
    span=POINTS, better="higher", lacks=no_reference, needs=REFERENCES, pooled=Pooled(counts, total, alone),
    signature=signature)
