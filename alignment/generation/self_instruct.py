"""Self-Instruct (Wang et al. 2022, arXiv:2212.10560): what a teacher is asked, and what is read of its answers.

Pure functions: a prompt's values from tasks, tasks and examples from a response, each thing refused with its reason.
What is read is what the prompt files of configs/prompts/ show. Where the reference's scripts lose something, we differ
and say so: a name in capitals stays (theirs lower-cases all but the first letter), and `Example` cuts only where it
begins a line. Asks nobody, draws nothing, keeps no pool.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

from alignment.config import Filters
from alignment.generation.refused import Refused
from alignment.generation.tasks import Instance, Task
from alignment.words import pieces, words

Language = Literal["en", "zh"]


class Form(NamedTuple):
    """The words of a language that examples are written with, and that answers are read by."""

    task: str
    example: str
    input: str
    output: str
    label: str
    kind: str
    yes: str
    no: str
    colon: str


FORMS: dict[Language, Form] = {
    "en": Form("Task", "Example", "Input", "Output", "Class label", "Classification", "Yes", "No", ": "),
    "zh": Form("任务", "示例", "输入", "输出", "类别", "分类", "是", "否", "："),
}
_ITEM = re.compile(r"(?:^|\n)[ \t*#]*(\d{1,4})[ \t]*(?:[.)．）](?=\D|$)|、)[ \t*]*")
"""The beginning of a numbered item. `3.5 metres` at the start of a line is none."""
_HAN = re.compile("[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003fffd]")
_LATIN = re.compile("[A-Za-z\u00c0-\u024f]")
_MARKUP = " \t*#"


# --- instructions ---


def numbered(tasks: Sequence[Task]) -> str:
    """Instructions as a numbered list, one a line."""
    return "\n".join(f"{number}. {squeezed(task.instruction).rstrip(':：')}" for number, task in enumerate(tasks, 1))


def squeezed(text: str) -> str:
    """Every run of white space as one blank."""
    return " ".join(text.split())


def cut(text: str, *, last_item: int | None, blank_line: bool) -> tuple[str, bool]:
    """A response up to where the reference's engine would have stopped, and whether it stopped there."""
    text = text.strip("\n")
    ends = [match.start() for match in _ITEM.finditer(text) if last_item is not None and int(match[1]) >= last_item]
    if blank_line and (gap := re.search(r"\n[ \t]*\n", text)):
        ends.append(gap.start())
    return (text[: min(ends)], True) if ends else (text, False)


def items(text: str) -> Iterator[str | Refused]:
    """The items of a numbered list, white space squeezed, the first letter a capital.

    What stands before the first number goes on from the number that the prompt ends with, unless it ends with a colon:
    then it introduces the list.
    """
    marks = list(_ITEM.finditer(text))
    head = squeezed(text[: marks[0].start()] if marks else text).strip(_MARKUP)
    if head.endswith((":", "：")):
        yield Refused("introduction", head)
    elif head:
        yield _capital(head)
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    for mark, end in zip(marks, ends, strict=False):
        item = squeezed(text[mark.end() : end]).strip(_MARKUP)
        yield _capital(item) if item else Refused("empty-item", text[mark.start() : end].strip())


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def refusal(text: str, filters: Filters, language: Language) -> str | None:
    """Why an instruction is not kept, the filters in their order; None where it passes all of them."""
    long = len(pieces(text))
    if filters.min_words is not None and long < filters.min_words:
        return "too-short"
    if filters.max_words is not None and long > filters.max_words:
        return "too-long"
    if any(_says(text, word) for word in filters.forbidden or ()):
        return "other-modality"
    if any(text.lower().startswith(start.lower()) for start in filters.starts or ()):
        return "unwanted-start"
    if not filters.punctuation_first and _is_sign(text[0]):
        return "punctuation-first"
    if filters.ascii_first and not text[0].isascii():
        return "not-ascii-first"
    if filters.own_language and own_share(text, language) < filters.own_language:
        return "other-language"
    return None


def _says(text: str, word: str) -> bool:
    if word.isascii():
        return re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE | re.ASCII) is not None
    return word in text


def _is_sign(sign: str) -> bool:
    return sign in string.punctuation or sign in "，。！？；：、“”‘’（）《》【】…—·"


def own_share(text: str, language: Language) -> float:
    """Share of the words (in Chinese, characters) that are in the language's script; numbers count for none. 0 of a
    text without any."""
    found = words(text)
    han = sum(_HAN.match(word) is not None for word in found)
    latin = sum(_LATIN.match(word) is not None for word in found)
    other = sum(word[0].isalpha() for word in found) - han - latin
    total = han + latin + other
    return (han if language == "zh" else latin) / total if total else 0.0


# --- classification or not ---


def shown_kind(task: Task, language: Language) -> str:
    """A seed with the answer to whether it is a classification."""
    form = FORMS[language]
    said = form.yes if task.is_classification else form.no
    return (f"{form.task}{form.colon}{squeezed(task.instruction)}\n{form.kind}{form.colon}{said}")


def says_classification(text: str, language: Language) -> bool | None:
    """What an answer says; None where it says neither yes nor no."""
    form, said = FORMS[language], re.sub(r"^[\W_]+", "", text).lower()
    if language == "zh" and said.startswith(("不", form.no)):
        return False
    for word, value in ((form.yes, True), (form.no, False)):
        if re.match(rf"{word.lower()}(?![a-z])", said):
            return value
    return None


# --- examples ---


def shown_instances(task: Task, language: Language, *, output_first: bool) -> str:
    """A seed with its examples, in the form that an answer is read by."""
    form = FORMS[language]
    lines = [f"{form.task}{form.colon}{squeezed(task.instruction)}"]
    for number, one in enumerate(task.instances, 1):
        if output_first:
            lines += [f"{form.label}{form.colon}{one.output}", *([f"{form.input}{form.colon}{one.input}"]
                                                                 if one.input else [])]
            continue
        if len(task.instances) > 1 or one.input:
            lines.append(f"{form.example} {number}" if language == "en" else f"{form.example}{number}")
        if one.input:
            lines.append(f"{form.input}{form.colon}{one.input}")
        lines.append(f"{form.output}{form.colon}{one.output}")
    return "\n".join(lines)


def _label(word: str) -> re.Pattern[str]:
    """A label at the start of a line, with or without a number and markup."""
    return re.compile(rf"(?:^|\n)[ \t*#]*{word}[ \t]*\d*[ \t*]*[:：][ \t*]*", re.IGNORECASE)


def _body(text: str, form: Form) -> str:
    """An answer up to where it begins another task."""
    text = text.strip()
    again = _label(form.task).search(text)
    return text[: again.start()].strip() if again and again.start() else text


def input_first(text: str, language: Language) -> list[Instance]:
    """Examples of an answer, input before output; none where it has no form to read."""
    form = FORMS[language]
    text, output = _body(text, form), _label(form.output)
    example = re.compile(rf"(?:^|\n)[ \t*#]*{form.example}[ \t]*(?:\d+[ \t]*[.:：)）]?[ \t*]*|[.:：]?[ \t*]*(?=\n|$))")
    parts = [part.strip() for part in example.split(text)]
    if len(parts) > 1:
        # What stands before the first `Example` is an example only if it has the form of one.
        parts = [part for index, part in enumerate(parts) if part and (index or output.search(part))]
    elif not output.search(text):
        return []
    return [_one(part, form, output) for part in parts]


def _one(part: str, form: Form, output: re.Pattern[str]) -> Instance:
    label = _label(form.input)
    given, *said = output.split(part, maxsplit=1)
    if not said:
        return Instance("", part) if not label.match(part) else Instance(label.sub("", part, count=1).strip(), "")
    answer = output.split(said[0])[0]
    answer = label.split(answer)[0]  # the next example, begun without a number
    return Instance(label.sub("", given, count=1).strip(), answer.strip())


def output_first(text: str, language: Language) -> list[Instance]:
    """Examples of an answer, class label before input."""
    form = FORMS[language]
    made = []
    for part in _label(form.label).split(_body(text, form))[1:]:
        said, _, given = part.strip().partition("\n")
        made.append(Instance(_label(form.input).sub("", given.strip(), count=1).strip(), said.strip(_MARKUP)))
    return made


def kept_instances(
    found: Sequence[Instance], *, finished: bool, most: int, choose: Callable[[list[int], int], Sequence[int]]
) -> tuple[list[Instance], list[Refused]]:
    """Examples that are kept, in their order, and the others with the reason.

    Args:
        finished: False where max_new_tokens cut the answer: its last example is not whole.
        choose: (places, most) -> those that are kept where there are more.
    """
    if not found:
        return [], [Refused("no-example", "")]
    refused = [] if finished else [_refused("example-cut", found[-1])]
    good: list[Instance] = []
    for one in found if finished else found[:-1]:
        if reason := _wrong(one):
            refused.append(_refused(reason, one))
        elif one in good:
            refused.append(_refused("example-twice", one))
        else:
            good.append(one)
    given = [one.input for one in good if one.input]
    if len(set(given)) < len(given):
        return [], [*refused, *(_refused("outputs-differ", one) for one in good)]
    if len(good) > most:
        chosen = set(choose(list(range(len(good))), most))
        refused += [_refused("over-max-instances", one) for index, one in enumerate(good) if index not in chosen]
        good = [one for index, one in enumerate(good) if index in chosen]
    return good, refused


def _wrong(one: Instance) -> str | None:
    if one.input == one.output:
        return "input-is-output"
    if not one.output:
        return "empty-output"
    return "ends-with-colon" if one.input.endswith((":", "：")) or one.output.endswith((":", "：")) else None


def _refused(reason: str, one: Instance) -> Refused:
    return Refused(reason, f"{one.input} -> {one.output}")
