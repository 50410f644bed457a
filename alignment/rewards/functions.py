"""Reward functions: a number for an answer to a record's prompt, without a model.

    RewardFunction = (record, answer) -> float
    BatchFunction = (records, answers) -> list[float]

`resolve` finds one by name: a built-in, or package.module:function of the user's own; `resolve_batch` one that judges
many answers at once. Which of the two is meant says the run file's key. The functions see the record as it was
imported: `completion` is the reference answer, `meta` what the importer kept (passage, question, ...).
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from alignment.config import Judge, Scorer
from alignment.errors import ConfigError, DataError
from alignment.records import Record
from alignment.rewards import answers
from alignment.rewards.socratic import socratic_type
from alignment.words import pieces, words

RewardFunction = Callable[[Record, str], float]
BatchFunction = Callable[[Sequence[Record], Sequence[str]], Sequence[float]]

REFUSAL = "The passage does not say."
_EVIDENCE = re.compile(r'(?P<short>[^\[\]]+?)\s*\["(?P<quote>[^\[\]]+)"\]')
SHORT_WORDS = range(1, 9)
QUOTE_WORDS = range(3, 9)
BRIEF_WORDS = 64
"""Answers up to this many words have a positive brevity."""


def evidence_style(record: Record, answer: str) -> float:
    """How well an answer keeps the house style of the shipped seeds: `SHORT ["QUOTE"]`, or exactly the refusal.

    The form gives 0.4: a few words, then a quotation in ["..."] with nothing after it, which a reader (and a
    program) can take apart. A quotation of 3 to 8 words that is in the passage letter by letter gives 0.4: it is
    the evidence, and an invented or trivial one is none. A SHORT of 1 to 8 words that says Yes or No or occurs in
    the passage gives 0.2: longer is an essay, and a word from elsewhere is not drawn from the text.

    The refusal is right (1) only where the reference refuses too, else 0: a model must not learn to duck. Where
    the reference refuses, an answer scores at most 0.2, however well formed: its evidence can't be evidence.

    Returns:
        A number in [0, 1]. Anything without the form scores 0.

    Raises:
        DataError: the record has no passage.
    """
    passage = record.meta.get("passage")
    if not isinstance(passage, str):
        raise DataError("evidence_style needs rows with a passage", where=f"row {record.id}",
                        found=sorted(record.meta), expected="meta.passage",
                        hint="use a passage format of import data, or another reward function")
    said = answer.strip()
    refusable = (record.completion or "").strip() == REFUSAL
    if said == REFUSAL:
        return 1.0 if refusable else 0.0
    match = _EVIDENCE.fullmatch(said)
    if match is None:
        return 0.0
    short, quote = match["short"].strip(), match["quote"]
    score = 0.4
    if len(pieces(quote)) in QUOTE_WORDS and quote in passage:
        score += 0.4
    if len(pieces(short)) in SHORT_WORDS and (
        short.rstrip(".").lower() in ("yes", "no") or short.lower() in passage.lower()
    ):
        score += 0.2
    return min(score, 0.2) if refusable else score


def evidence_answer(record: Record, answer: str) -> float:
    """House style and truth in equal parts: the mean of `evidence_style` and the token F1 of SHORT.

    For rejection sampling on questions whose answers are known (as in Yuan et al. 2023, arXiv:2308.01825): style
    alone would choose well-formed answers that are wrong. An answer without the form is compared as a whole.
    """
    truth = answers.token_f1(_short(answer), [_short(_reference(record, "evidence_answer"))])
    return (evidence_style(record, answer) + truth) / 2


def _short(answer: str) -> str:
    match = _EVIDENCE.fullmatch(answer.strip())
    return match["short"] if match else answer


def exact_match(record: Record, answer: str) -> float:
    """1 when the answer is the reference (normalised as SQuAD does, or MLQA where letters are not Latin), else 0."""
    return answers.exact_match(answer, [_reference(record, "exact_match")])


def token_f1(record: Record, answer: str) -> float:
    """Token F1 of the answer against the reference (normalised as for exact_match), in [0, 1]."""
    return answers.token_f1(answer, [_reference(record, "token_f1")])


def brevity(record: Record, answer: str) -> float:
    """1 for one word, falling in a straight line to 0 at 64 words; an empty answer scores 0.

    In scripts written without blanks (Chinese, Japanese, Thai, ...) a word is a character. Meant as one part of a
    sum: alone it would teach one-word answers.
    """
    many = len(pieces(answer))
    return max(0.0, 1 - (many - 1) / (BRIEF_WORDS - 1)) if many else 0.0


def word_count(record: Record, answer: str) -> float:
    """The number of words, punctuation left out; in scripts written without blanks (Chinese, Thai, ...) of characters.

    No reward to learn from: a judge that prefers whatever is longer, to hold other judges against.
    """
    return float(len(words(answer)))


BUILT_IN: dict[str, RewardFunction] = {
    "evidence_style": evidence_style,
    "evidence_answer": evidence_answer,
    "exact_match": exact_match,
    "token_f1": token_f1,
    "brevity": brevity,
    "word_count": word_count,
    "socratic_type": socratic_type,
}


class Facts(NamedTuple):
    """What a function needs of a record beside the prompt, and the values that it can give."""

    needs: tuple[str, ...]
    low: float = 0.0
    high: float = 1.0

    @property
    def span(self) -> str:
        """In words: `0 to 1`, `0 or more`."""
        return f"{self.low:g} to {self.high:g}" if math.isfinite(self.high) else f"{self.low:g} or more"


FACTS: dict[str, Facts] = {
    "evidence_style": Facts(("meta.passage",)),
    "evidence_answer": Facts(("meta.passage", "completion")),
    "exact_match": Facts(("completion",)),
    "token_f1": Facts(("completion",)),
    "brevity": Facts(()),
    "word_count": Facts((), high=math.inf),
    "socratic_type": Facts(("meta.kind",)),
}
"""Of every built-in function, for the reference; a test holds it to what they do."""


def lacking(name: str, record: Record) -> list[str]:
    """What a built-in function needs of a record and does not find there; of a function of the user's own, nothing is
    known."""
    given = {"completion": bool(record.completion),
             **{f"meta.{key}": isinstance(record.meta.get(key), str) for key in ("passage", "kind")}}
    return [need for need in FACTS[name].needs if not given[need]] if name in FACTS else []


def resolve(name: str, where: str = "score.function") -> RewardFunction:
    """The reward function called `name`: a built-in, or package.module:function.

    Args:
        where: the key that names it, for errors.

    Raises:
        ConfigError: no such built-in, module or function, or it is not callable.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    return _imported(name, where, named(built_in=True))  # type: ignore[no-any-return]


def resolve_batch(name: str, where: str) -> BatchFunction:
    """The function of many answers called `name`, package.module:function. Raises as `resolve`."""
    return _imported(name, where, named(built_in=False))  # type: ignore[no-any-return]


def named(*, built_in: bool) -> str:
    """What a function may be called, in words."""
    return (f"one of {', '.join(BUILT_IN)}, or " if built_in else "") + "package.module:function"


def _imported(name: str, where: str, expected: str) -> Any:
    module_name, colon, attribute = name.partition(":")
    if not (colon and module_name and attribute):
        raise ConfigError("not a reward function", where=where, found=name, expected=expected)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"the reward function's module cannot be imported: {error}", where=where,
                          found=name, expected=expected,
                          hint="the module must be importable here and on every worker") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise ConfigError(f"module {module_name} has no function {attribute}", where=where, found=name,
                          expected=expected)
    return function


def combine(scorer: Scorer, function: float | None, model: float | None, judged: float | None = None,
            judge: Judge | None = None) -> float:
    """The one score of an answer: the weighted sum of the values that the scorer asks for.

    A value that is missing although it is asked for makes the score NaN, never silently half a score.

    Args:
        judged: the score of `judge`, where one is asked.
    """
    asked = ((scorer.function, scorer.function_weight, function), (scorer.model, scorer.model_weight, model),
             (judge, 0.0 if judge is None else judge.weight, judged))
    return sum(weight * (math.nan if value is None else value) for name, weight, value in asked if name is not None)


def _reference(record: Record, name: str) -> str:
    if not record.completion:
        raise DataError(f"{name} needs rows with a reference answer", where=f"row {record.id}",
                        expected="a record with a completion")
    return record.completion
