"""Questions about documents: what a teacher is asked about a passage, and what is read of its answers.

Pure functions: a question of an item of a list, an answer of a response, each thing refused with its reason. What is
read is what the prompt files of configs/prompts/document_qa-LANGUAGE/ show. Asks nobody, draws nothing, keeps no pool.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from alignment.config import QuestionFilters
from alignment.config.stages.generate.document_qa import Branch
from alignment.generation.refused import Refused
from alignment.generation.self_instruct import Language, own_share, says_classification, squeezed
from alignment.words import pieces, words

_LABEL = re.compile(r"^(?:Q(?:uestion)?|问题?|问)[ \t]*\d*[ \t]*[:：.][ \t]*", re.IGNORECASE)
_MARKUP = " *_`"
_QUOTED = re.compile(r"[\"'“‘「『](.*)[\"'”’」』]")
_MARK = re.compile(r"[?？]+[\"'”’」』)）]*")
_AUXILIARY = (r"(?:is|are|was|were|am|do|does|did|has|have|had|can|could|will|would|shall|should|may|might|must)"
              r"(?:n['’]t)?")
_YES_NO = {
    # After a comma too: "According to the passage, did ...?"
    "en": re.compile(rf"^(?:[^?]*,\s*)?{_AUXILIARY}\b", re.IGNORECASE),
    "zh": re.compile("吗|是否|能否|可否|会否|有无|(?P<verb>[是有能会可对要])[不没](?P=verb)"),
}
_OPEN = {
    "en": re.compile(r"\b(?:who|whom|whose|what|which|when|where|why|how)\b", re.IGNORECASE),
    "zh": re.compile("什么|谁|哪|何|怎|多少|几|为啥"),
}
_ALTERNATIVE = {"en": re.compile(r"\bor\b(?!\s+not\b)", re.IGNORECASE), "zh": re.compile("还是")}
"""`Is it red or blue?` is not answered by yes or no."""
_YES = {"en": ("Yes", "No", ". "), "zh": ("是", "否", "。")}
_ANSWER_LABEL = re.compile(r"^(?:A(?:nswer)?|答案?|回答)[ \t]*[:：][ \t]*", re.IGNORECASE)
LONG = 12
"""Words from which an answer can be called one that repeats itself or its passage."""


class Question(NamedTuple):
    """A question, and whether something after its question mark was cut off."""

    text: str
    trimmed: bool


def question_of(item: str) -> Question:
    """The question of an item: without label and quotes, and up to its first question mark."""
    text = _LABEL.sub("", squeezed(item).strip(_MARKUP)).strip(_MARKUP)
    if whole := _QUOTED.fullmatch(text):
        text = whole[1].strip(_MARKUP)
    mark = _MARK.search(text)
    if mark is None:
        return Question(text, False)
    return Question(text[:mark.end()], bool(text[mark.end():].strip(_MARKUP)))


def numbered(questions: Sequence[str]) -> str:
    """A numbered list, one a line."""
    return "\n".join(f"{number}. {squeezed(text)}" for number, text in enumerate(questions, 1))


def refusal(question: str, branch: Branch, filters: QuestionFilters, language: Language) -> str | None:
    """Why a question is not kept, the filters in their order; None where it passes all of them."""
    long = len(pieces(question))
    if filters.min_words is not None and long < filters.min_words:
        return "too-short"
    if filters.max_words is not None and long > filters.max_words:
        return "too-long"
    if filters.question_mark and not _MARK.search(question):
        return "not-a-question"
    if filters.form and is_judgmental(question, language) != (branch == "judgmental"):
        return f"not-{branch}"
    if filters.own_language and own_share(question, language) < filters.own_language:
        return "other-language"
    return None


def is_judgmental(question: str, language: Language) -> bool:
    """Whether yes or no answers a question, by its form."""
    if _ALTERNATIVE[language].search(question):
        return False
    found = _YES_NO[language].search(question)
    if found is None:
        return False
    # "Who was it, and is it ...?" asks who first.
    return not _OPEN[language].search(question[: found.end()] if language == "en" else question)


# --- answers ---


def answer_of(
    text: str, branch: Branch, question: str, passage: str, filters: QuestionFilters, language: Language
) -> str | Refused:
    """The answer of a response, or why it is refused. A judgmental one is `Yes. Reason`."""
    said = _ANSWER_LABEL.sub("", text.strip()).strip()
    if not said.strip(" \t\n*_`.。"):
        return Refused("empty-answer", text)
    if any(phrase.lower() in first_sentence(said).lower() for phrase in filters.refusals or ()):
        return Refused("declined", text)
    if _plain(said).startswith(_plain(question)):
        return Refused("repeats-question", text)
    if loops(said):
        return Refused("repeats-itself", text)
    if _has_letters(said) and own_share(said, language) < filters.own_language:
        return Refused("other-language", text)
    if branch == "judgmental":
        return _judged(said, text, passage, question, filters, language)
    if copies(said, passage):
        return Refused("repeats-passage", text)
    if filters.grounding is not None and grounded(said, passage, question, language) < filters.grounding:
        return Refused("not-grounded", text)
    return said


def _judged(
    said: str, text: str, passage: str, question: str, filters: QuestionFilters, language: Language
) -> str | Refused:
    verdict = says_classification(said, language)
    if verdict is None:
        return Refused("neither-yes-nor-no", text)
    yes, no, stop = _YES[language]
    word = yes if verdict else no
    begins = r"\W*(?:yes|no)\b" if language == "en" else r"\W*(?:是的?|否|不是的?|不)"
    reason = re.sub(rf"^{begins}[\s,，.。:：;；!！*-]*", "", said, count=1, flags=re.IGNORECASE).strip()
    reason = re.sub(r"^(?:Reason|理由|原因)[ \t]*[:：][ \t]*", "", reason, flags=re.IGNORECASE)
    if not words(reason):
        return Refused("no-reason", text) if filters.reason else word
    if copies(reason, passage):
        return Refused("repeats-passage", text)
    if filters.grounding is not None and grounded(reason, passage, question, language) < filters.grounding:
        return Refused("not-grounded", text)
    return f"{word}{stop}{reason[:1].upper()}{reason[1:]}"


def first_sentence(text: str) -> str:
    """Up to the first stop."""
    return re.split(r"(?<=[.!?])\s|(?<=[。！？])|\n", text.strip(), maxsplit=1)[0]


def loops(text: str) -> bool:
    """Whether most runs of four words of a text come again."""
    said = words(text)
    runs = list(zip(*(said[start:] for start in range(4)), strict=False))
    return len(said) >= LONG and len(set(runs)) < 0.5 * len(runs)


def copies(answer: str, passage: str) -> bool:
    """Whether an answer is little else than its passage, or most of it."""
    said, whole = words(answer), words(passage)
    if len(said) < LONG or len(said) < 0.6 * len(whole):
        return False
    runs = set(zip(*(whole[start:] for start in range(4)), strict=False))
    own = list(zip(*(said[start:] for start in range(4)), strict=False))
    return sum(run in runs for run in own) >= 0.8 * len(own)


def grounded(answer: str, passage: str, question: str, language: Language) -> float:
    """Share of an answer's content words that passage or question hold: words of four letters or more, and numbers; in
    Chinese, pairs of neighbouring characters. 1 of an answer that has none."""
    known = set(_content(passage, language)) | set(_content(question, language))
    said = _content(answer, language)
    return sum(word in known for word in said) / len(said) if said else 1.0


def _content(text: str, language: Language) -> list[str]:
    found = words(text)
    if language == "zh":
        return [one + other for one, other in pairwise(found)] or found
    return [word for word in found if len(word) >= 4 or word.isdigit()]


def _has_letters(text: str) -> bool:
    return any(sign.isalpha() for sign in text)


def _plain(text: str) -> str:
    return " ".join(words(text))
