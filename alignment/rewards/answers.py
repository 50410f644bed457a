"""How near an answer comes to short references: exact match, token F1, word recall and containment.

Two scripts of other people's say how answers are made alike, and their numbers are ours:

- Answers in Latin letters: SQuAD 1.1 and 2.0 (Rajpurkar et al. 2016, arXiv:1606.05250; 2018, arXiv:1806.03822). Lower
  case, no ASCII punctuation (nor signs of other scripts), no a, an, the.
- All others, and every answer whose language is given: MLQA (Lewis et al. 2020, arXiv:1910.07475, script v1). No
  punctuation of any script, the articles of the language, Chinese cut by characters.

Both count what stands between blanks; what they leave whole though it is written without blanks (Japanese, Thai,
Khmer, Burmese, ...), and composed against decomposed letters, are `alignment.words`'. Knows no records.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from functools import cache

from alignment.words import form, marks, pieces, punctuation

ENGLISH = "a|an|the"
ARTICLES = {
    "es": r"\b(un|una|unos|unas|el|la|los|las)\b",
    "vi": r"\b(của|là|cái|chiếc|những)\b",
    "de": r"\b(ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b",
    "ar": r"\sال^|ال",
}
"""What MLQA's script takes out, by language; nothing in other languages but English."""
_LATIN = re.compile("[a-zªºß-öø-ɏɐ-ʯḀ-ỿⱠ-ⱿꜢ-ꟿꬰ-ꭤﬀ-ﬆ]")


def normalize_answer(text: str, language: str | None = None) -> str:
    """The words of an answer that count, with one blank between them."""
    return " ".join(_words(text, language, squad=_squad(text)))


def exact_match(prediction: str, references: Iterable[str], language: str | None = None) -> float:
    """1.0 when the normalised prediction is one of the normalised references, else 0.0."""
    return float(any(said == wanted for said, wanted in _pairs(prediction, references, language)))


def token_f1(prediction: str, references: Iterable[str], language: str | None = None) -> float:
    """The best F1 over the references, tokens counted with repetition; 0.0 without references.

    Two texts that are both empty after normalisation agree (1.0), as in SQuAD 2.0's script.
    """
    return max((_f1(said, wanted) for said, wanted in _pairs(prediction, references, language)), default=0.0)


def word_recall(prediction: str, references: Iterable[str], language: str | None = None) -> float:
    """Share of a reference's words, counted with repetition, that the prediction has: the best over the references.

    Against a reference without words only a prediction without words counts, as in `token_f1`.
    """
    return max((_recall(said, wanted) for said, wanted in _pairs(prediction, references, language)), default=0.0)


def contains(prediction: str, references: Iterable[str], language: str | None = None) -> float:
    """1.0 when the words of a reference stand in the prediction one after the other, else 0.0."""
    return float(any(_within(wanted, said) for said, wanted in _pairs(prediction, references, language)))


def _pairs(prediction: str, references: Iterable[str], language: str | None) -> Iterable[tuple[list[str], list[str]]]:
    """Both sides by one script's rules, for each reference."""
    for reference in references:
        squad = _squad(f"{prediction}\n{reference}")
        yield _words(prediction, language, squad=squad), _words(reference, language, squad=squad)


def _squad(text: str) -> bool:
    """Whether most letters are Latin: a Greek letter makes no English answer Greek."""
    if text.isascii():
        return True
    text = form(text)
    latin, letters = len(_LATIN.findall(text)), sum(map(str.isalpha, text))  # ² and ½ are none
    return 2 * latin > letters or not letters


def _words(text: str, language: str | None, *, squad: bool) -> list[str]:
    squad = squad if language is None else language == "en"
    text = punctuation(typographic=not squad).sub("", form(text))
    if squad:
        text = (_plain() if text.isascii() else _marked()).sub(" ", text)
    elif language in ARTICLES:
        text = re.sub(ARTICLES[language], " ", text)
    return pieces(text)


@cache
def _plain() -> re.Pattern[str]:
    return re.compile(rf"\b({ENGLISH})\b")


@cache
def _marked() -> re.Pattern[str]:
    """A letter with a mark of its own is another letter: no article ends before a combining mark."""
    return re.compile(rf"\b({ENGLISH})\b(?![{marks()}])")


def _f1(said: list[str], wanted: list[str]) -> float:
    if not said or not wanted:
        return float(said == wanted)
    common = sum((Counter(said) & Counter(wanted)).values())
    return 2 * common / (len(said) + len(wanted))


def _recall(said: list[str], wanted: list[str]) -> float:
    if not said or not wanted:
        return float(said == wanted)
    return sum((Counter(said) & Counter(wanted)).values()) / len(wanted)


def _within(wanted: list[str], said: list[str]) -> bool:
    if not wanted:
        return not said
    return any(said[start:start + len(wanted)] == wanted for start in range(len(said) - len(wanted) + 1))
