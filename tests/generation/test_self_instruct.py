"""Prompts and parsers of Self-Instruct: what is shown is what is read, and all that is refused has a reason."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.config import Filters, SelfInstruct
from alignment.config.prompts import PromptFile, fill, read_prompt
from alignment.errors import ConfigError
from alignment.generation import self_instruct as recipe
from alignment.generation.refused import Refused
from alignment.generation.tasks import Instance, Task, seed_task, to_record
from alignment.records import Record

LANGUAGES = pytest.mark.parametrize("language", ["en", "zh"])
WORD = st.text(st.characters(categories=["Lu", "Ll", "Lo"]), min_size=1, max_size=6)
SENTENCE = st.lists(WORD, min_size=1, max_size=8).map(" ".join)


def stage(language: str = "en", **more: object) -> SelfInstruct:
    return SelfInstruct.model_validate({"name": "gen", "recipe": "self_instruct", "teacher": "base",
                                        "seeds": ("seeds/train",), "language": language, **more})


def filters(language: str = "en", **more: object) -> Filters:
    return stage(language, filters=more).filters


def good(text: str) -> bool:
    """Whether a text stands for itself in the forms: it is no label of them."""
    return not any(label.lower() in text.lower() for form in recipe.FORMS.values() for label in form if label.isalpha())


# --- items ---


@given(st.lists(SENTENCE, min_size=1, max_size=9))
def test_a_numbered_list_is_read_as_it_was_written(texts: list[str]) -> None:
    shown = recipe.numbered([Task("t", text) for text in texts])
    assert list(recipe.items(shown)) == [text[:1].upper() + text[1:] for text in texts]


@given(st.text(max_size=200), st.booleans())
def test_any_response_is_read_without_an_error_and_nothing_of_it_is_blank(text: str, blank_line: bool) -> None:
    said, _ = recipe.cut(text, last_item=16, blank_line=blank_line)
    for item in recipe.items(said):
        if isinstance(item, str):
            assert item.strip()
            recipe.refusal(item, filters(), "en")
            recipe.refusal(item, filters("zh"), "zh")
    for language in ("en", "zh"):
        assert all(isinstance(one, Instance) for one in recipe.input_first(text, language))
        assert all(isinstance(one, Instance) for one in recipe.output_first(text, language))
        assert recipe.says_classification(text, language) in (True, False, None)


@pytest.mark.parametrize(("text", "wanted"), [
    (" write a poem.\n10. Sort 3.5 and 2.\n11) Ask USA", ["Write a poem.", "Sort 3.5 and 2.", "Ask USA"]),
    ("Here are new tasks:\n\n1. **Sing.**\n2、唱歌", [Refused("introduction", "Here are new tasks:"), "Sing.", "唱歌"]),
    ("9.\n10. Sing.", [Refused("empty-item", "9."), "Sing."]),
    ("9. Sing\n   about   rain.", ["Sing about rain."]), ("", []), (" \n ", []),
])
def test_items_of_a_response(text: str, wanted: list[object]) -> None:
    assert list(recipe.items(text)) == wanted


def test_a_response_ends_at_a_blank_line_or_at_the_last_item_where_asked() -> None:
    text = "a\n10. b\n\n11. c\n16. d"
    assert recipe.cut(text, last_item=16, blank_line=True) == ("a\n10. b", True)
    assert recipe.cut(text, last_item=16, blank_line=False) == ("a\n10. b\n\n11. c", True)
    assert recipe.cut(text, last_item=None, blank_line=False) == (text, False)
    assert recipe.cut("a\nin 16. June", last_item=16, blank_line=True) == ("a\nin 16. June", False)


# --- filters ---


@pytest.mark.parametrize(("language", "text", "reason"), [
    ("en", "Sing a song", "too-short"), ("en", "Sing a short song", None), ("en", "word " * 150, None),
    ("en", "word " * 151, "too-long"), ("en", "Describe the image to me", "other-modality"),
    ("en", "Please Draw me a sheep", "other-modality"), ("en", "Tell me where to go to now", "other-modality"),
    ("en", "Explain imagery and the mapping of drawers", None), ("en", "Write a program that sorts", "unwanted-start"),
    ("en", "Write programs that sort lists", None), ("en", "- List three good books", "punctuation-first"),
    ("en", "Über den Wolken muss die", "not-ascii-first"), ("en", "Mix 请写一首关于夏天的诗", "other-language"),
    ("en", "123 456 789 1011", "other-language"),
    ("zh", "写首歌", "too-short"), ("zh", "写一首歌", "too-short"), ("zh", "写一首新歌", None),
    ("zh", "写" * 300, None),
    ("zh", "写" * 301, "too-long"), ("zh", "描述这张图片的内容", "other-modality"),
    ("zh", "编写一个程序来排序", "unwanted-start"), ("zh", "“春天”的反义词是什么", "punctuation-first"),
    ("zh", "Write a poem about the summer", "other-language"), ("zh", "把 The quick brown fox 翻译成中文", None),
])
def test_an_instruction_is_refused_for_the_first_reason_that_holds(
    language: str, text: str, reason: str | None
) -> None:
    assert recipe.refusal(text, filters(language), language) == reason  # type: ignore[arg-type]


def test_every_filter_can_be_switched_off() -> None:
    off = filters(min_words=0, max_words=10**6, forbidden=(), starts=(), punctuation_first=True, ascii_first=False,
                  own_language=0.0)
    for text in ("x", "word " * 999, "Draw a map", "Write a program", "- a", "é", "请写", "。"):
        assert recipe.refusal(text, off, "en") is None


# --- kinds ---


@pytest.mark.parametrize(("language", "text", "said"), [
    ("en", "Yes", True), ("en", " **yes**, it is", True), ("en", "No.", False), ("en", "Yesterday", None),
    ("en", "Maybe", None), ("en", "", None), ("zh", "是", True), ("zh", "是的。", True), ("zh", "否", False),
    ("zh", "不是", False), ("zh", "也许", None),
])
def test_what_an_answer_says_of_a_task(language: str, text: str, said: bool | None) -> None:
    assert recipe.says_classification(text, language) is said  # type: ignore[arg-type]


@LANGUAGES
@pytest.mark.parametrize("kind", [True, False])
def test_the_answer_that_is_shown_is_read(language: str, kind: bool) -> None:
    shown = recipe.shown_kind(Task("t", "Sort.", kind), language)  # type: ignore[arg-type]
    assert recipe.says_classification(shown.splitlines()[-1].split(":")[-1].split("：")[-1],
                                      language) is kind  # type: ignore[arg-type]


# --- examples ---

TEXT = SENTENCE.filter(good)
INSTANCES = st.lists(st.builds(Instance, st.one_of(st.just(""), TEXT), TEXT), min_size=1, max_size=4)


@LANGUAGES
@given(found=INSTANCES)
def test_examples_are_read_as_they_were_shown(language: str, found: list[Instance]) -> None:
    """Input before output; in Self-Instruct's form an example without a number is alone."""
    shown = recipe.shown_instances(Task("t", "Sort.", False, found), language, output_first=False)  # type: ignore[arg-type]
    body = shown.split("\n", 1)[1]
    assert recipe.input_first(body, language) == found  # type: ignore[arg-type]
    after = f"{body}\n\n{shown}"
    assert recipe.input_first(after, language) == found, "what follows is another task"  # type: ignore[arg-type]


@LANGUAGES
@given(found=INSTANCES)
def test_labels_are_read_as_they_were_shown(language: str, found: list[Instance]) -> None:
    shown = recipe.shown_instances(Task("t", "Sort.", True, found), language, output_first=True)  # type: ignore[arg-type]
    assert recipe.output_first(shown.split("\n", 1)[1], language) == found  # type: ignore[arg-type]


@pytest.mark.parametrize(("text", "wanted"), [
    ("I cannot do that.", []), ("", []), ("Output: red", [("", "red")]),
    ("Sure!\nExample 1\nInput: sky\nOutput: blue\n\nExample 2\nInput: sun\nOutput: red", [("sky", "blue"),
                                                                                          ("sun", "red")]),
    ("**Example 1:**\n**Input:** sky\n**Output:** blue", [("sky", "blue")]),
    ("Example\nThe sky is blue.", [("", "The sky is blue.")]),
    ("Input: a\nOutput: b\nInput: c\nOutput: d", [("a", "b")]),
    ("Output: see the Example sentence above", [("", "see the Example sentence above")]),
    ("Example 1\nInput: sky", [("sky", "")]),
])
def test_examples_of_an_answer(text: str, wanted: list[tuple[str, str]]) -> None:
    assert recipe.input_first(text, "en") == wanted


def first(places: list[int], most: int) -> list[int]:
    return places[:most]


@pytest.mark.parametrize(("found", "finished", "kept", "reasons"), [
    ([], True, [], ["no-example"]), ([("a", "b")], False, [], ["example-cut"]),
    ([("a", "b"), ("c", "d")], False, [("a", "b")], ["example-cut"]), ([("a", "a")], True, [], ["input-is-output"]),
    ([("a", "")], True, [], ["empty-output"]), ([("a:", "b"), ("c", "d：")], True, [], ["ends-with-colon"] * 2),
    ([("a", "b"), ("a", "c")], True, [], ["outputs-differ"] * 2), ([("", "b"), ("", "c")], True, [("", "b"), ("", "c")],
                                                                   []),
    ([("a", "b"), ("a", "b")], True, [("a", "b")], ["example-twice"]),
    ([("", str(n)) for n in range(4)], True, [("", "0"), ("", "1"), ("", "2")], ["over-max-instances"]),
])
def test_examples_are_kept_or_refused_with_the_reason(
    found: list[tuple[str, str]], finished: bool, kept: list[tuple[str, str]], reasons: list[str]
) -> None:
    got, refused = recipe.kept_instances([Instance(*one) for one in found], finished=finished, most=3, choose=first)
    assert got == kept
    assert [one.reason for one in refused] == reasons


@given(st.lists(st.tuples(st.sampled_from(["", "a", "b:", "c"]), st.sampled_from(["", "a", "d", "e:"])), min_size=1),
       st.booleans())
def test_every_example_is_either_kept_or_refused(found: list[tuple[str, str]], finished: bool) -> None:
    kept, refused = recipe.kept_instances([Instance(*one) for one in found], finished=finished, most=2,
                                          choose=random.Random(1).sample)
    assert len(kept) + len(refused) == len(found)
    assert len(kept) <= 2


# --- prompt files, rows ---


@LANGUAGES
def test_the_shipped_prompts_have_their_slots(language: str) -> None:
    for prompt in stage(language).prompt_files():
        text = read_prompt(prompt, "test")
        values = {name: f"<{name}>" for name in (*prompt.needed, *prompt.allowed)}
        assert "{" not in fill(text, values)
        assert all(f"<{name}>" in fill(text, values) for name in prompt.needed)


@pytest.mark.parametrize(("text", "problem"), [
    ("Go on: {tasks}", "lacks {next}"), ("{tasks} {next} {nxt}", "has {nxt}, which nothing fills"),
])
def test_a_prompt_file_without_its_slot_is_one_clear_error(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "own.txt").write_text(text)
    prompt = PromptFile("s", "instructions", str(tmp_path / "own.txt"), ("tasks", "next"), ("last",))
    with pytest.raises(ConfigError, match=problem.replace("{", r"\{")):
        read_prompt(prompt, "stage gen")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_prompt(prompt._replace(path=str(tmp_path / "none.txt")), "stage gen")


def test_slots_within_a_value_stay_as_they_are() -> None:
    assert fill("{a} {b}", {"a": "{b}", "b": "{a}"}) == "{b} {a}"


def test_a_row_is_a_seed_again() -> None:
    task = Task("r1-1-1", "Add.", True, [Instance("1 and 2", "3"), Instance("", "0")], {"request": "r1-1"},
                [("s", 0.5)], 0.1)
    record = to_record(task, 0, "self_instruct")
    assert record.prompt == [{"role": "user", "content": "Add.\n\n1 and 2"}]
    again = seed_task(Record.from_json(record.to_json()))
    assert isinstance(again, Task)
    assert (again.instruction, again.is_classification, again.instances) == ("Add.", True, [Instance("1 and 2", "3")])


def test_other_rows_are_seeds_where_they_ask_one_question() -> None:
    asked = [{"role": "user", "content": "Hi?"}]
    plain = seed_task(Record("a", "prompt-completion", asked, "Yes."))
    assert isinstance(plain, Task)
    assert plain.instances == [Instance("", "Yes.")]
    assert seed_task(Record("a", "prompt-only", asked)) == "no answer"
    assert seed_task(Record("a", "messages", messages=[*asked, {"role": "assistant", "content": "A"}, *asked,
                                                      {"role": "assistant", "content": "B"}])) == "no single question"
