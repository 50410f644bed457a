"""ROUGE over `alignment.words`: rouge_score's own numbers on English, right in every script.

Chinese characters are words of their own; with `jieba` runs of them are cut into Chinese words first, as fine-tuning
scripts for Chinese models do (ChatGLM's). Combining marks belong to their letter. No stemming.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from alignment.words import form, words

SOURCE = "Lin 2004 (aclanthology W04-1013), rouge_score without stemming, over alignment/words.py"
UNITS = " (Chinese by characters, or words where segmentation is given; other scripts without blanks by characters)"
_HAN = re.compile("([\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003fffd]+)")


def units(text: str, segmentation: str | None = None) -> list[str]:
    """What is counted of a text."""
    if segmentation is None:
        return words(text)
    import rjieba

    parts = enumerate(_HAN.split(form(text)))  # every second part is a run of Chinese characters
    return [unit for index, part in parts for unit in (rjieba.cut(part) if index % 2 else words(part))]


def rouge(which: str, text: str, references: Sequence[str], segmentation: str | None = None) -> float:
    """F-measure, the best over the references.

    Args:
        which: rouge1, rouge2 or rougeL, as rouge_score has it.
    """
    return float(_scorer(which, segmentation).score_multi(list(references), text)[which].fmeasure)


class _Units:
    def __init__(self, segmentation: str | None) -> None:
        self.segmentation = segmentation

    def tokenize(self, text: str) -> list[str]:
        return units(text, self.segmentation)


@cache
def _scorer(which: str, segmentation: str | None) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([which], tokenizer=_Units(segmentation))
