"""Passages of a document: they cover it, overlap by whole sentences, and cut no word and no Chinese character."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.data.documents.blocks import Block, Part
from alignment.data.documents.chunks import Passage, passages, sentences
from alignment.words import word_starts

WORDS = st.sampled_from(["a", "harbour", "Dr.", "3.5", "well-known", "tide.", "ice!", "Why?", "ferry,", "你", "好。",
                         "港口，", "が\u3099", "क्षि", "กำ", "e\u0301t", "(so.)", "x" * 30, "\u200b", "。」", "—"])
TEXTS = st.lists(st.tuples(WORDS, st.sampled_from([" ", "", "\n", "  "])), min_size=1, max_size=60).map(
    lambda parts: "".join(word + gap for word, gap in parts).strip())
BLOCKS = st.lists(st.builds(Block, TEXTS.filter(bool), st.sampled_from([0, 0, 0, 0, 1, 2])), min_size=1, max_size=8)


@given(BLOCKS, st.integers(1, 40), st.data())
def test_passages_cover_the_text_and_show_again_what_they_say(
    blocks: list[Block], most: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(0, most // 2))
    part = Part(blocks)
    made = passages(part, most, overlap)
    assert made
    text, reached = part.text, 0
    for number, one in enumerate(made):
        assert one.text == text[one.start:one.end]
        assert one.text == one.text.strip()
        # Nothing but blank space lies between what was shown and what comes.
        assert not text[reached:one.start].strip()
        assert one.end > reached or not text[reached:].strip(), "each passage has something new"
        again = text[one.start:reached] if one.start < reached else ""
        assert (one.shown_again > 0) == bool(word_starts(again))
        assert one.shown_again <= overlap
        if number == 0 or overlap == 0:
            assert one.shown_again == 0
        assert not _inside_a_character(text, one.start)
        reached = one.end
    assert not text[reached:].strip()


def _inside_a_character(text: str, place: int) -> bool:
    return 0 < place < len(text) and unicodedata.category(text[place]) in ("Mn", "Mc") and not text[place - 1].isspace()


@given(BLOCKS, st.integers(1, 40))
def test_no_passage_is_longer_than_asked_for(blocks: list[Block], most: int) -> None:
    assert max(one.words for one in passages(Part(blocks), most, most // 3)) <= most


@given(st.text(alphabet="你好世界，。a b1.\n", min_size=1, max_size=80).map(str.strip).filter(bool), st.integers(1, 9))
def test_without_overlap_the_passages_are_the_text(text: str, most: int) -> None:
    made = passages(Part([Block(text)]), most, 0)
    assert "".join("".join(one.text.split()) for one in made) == "".join(text.split())
    borders = {*word_starts(text), *sentences(text)}
    assert all(one.start in borders for one in made)


def cut(blocks: list[Block], most: int, overlap: int) -> list[Passage]:
    return passages(Part(blocks), most, overlap)


def test_paragraphs_stay_whole_where_that_leaves_half_a_passage() -> None:
    made = cut([Block("One two three. Four five six."), Block("Seven eight nine. Ten eleven twelve.")], 9, 0)
    assert [one.text for one in made] == ["One two three. Four five six.", "Seven eight nine. Ten eleven twelve."]
    made = cut([Block("One two three. Four five six."), Block("Seven eight nine. Ten eleven twelve.")], 13, 0)
    assert len(made) == 1


def test_the_last_sentences_are_shown_again() -> None:
    made = cut([Block("A b c d. E f g. H i j k l. M n o. P q r.")], 12, 4)
    assert [one.text for one in made] == ["A b c d. E f g. H i j k l.", "M n o. P q r."]
    assert [one.shown_again for one in made] == [0, 0], "the sentence of five words is over four"
    made = cut([Block("A b c d. E f g. H i j k l. M n o. P q r.")], 12, 5)
    assert made[1].text == "H i j k l. M n o. P q r."
    assert made[1].shown_again == 5


def test_a_heading_goes_with_what_it_is_above_and_passages_know_their_headings() -> None:
    blocks = [Block("Harbour", 1), Block("Deep water here. Ships come in."), Block("Tides", 2),
              Block("It rises at four. It falls at ten. Nobody swims then at all.")]
    made = cut(blocks, 9, 4)
    assert [(one.text.split("\n")[0], one.headings) for one in made] == [
        ("Harbour", ()), ("Tides", ("Harbour",)),
        ("It falls at ten. Nobody swims then at all.", ("Harbour", "Tides"))]
    assert made[1].shown_again == 0, "nothing is shown again over a heading"


def test_a_long_sentence_is_cut_between_words_alone() -> None:
    made = cut([Block(" ".join(f"w{number}" for number in range(25)))], 10, 3)
    assert all(one.words <= 10 for one in made)
    assert {word for one in made for word in one.text.split()} == {f"w{number}" for number in range(25)}
    han = cut([Block("港" * 25)], 10, 0)
    assert [len(one.text) for one in han] == [10, 10, 5]


@pytest.mark.parametrize(("text", "many"), [
    ("He met Dr. Smith at 3.5 p.m. today. Then he left.", 2), ("See e.g. the ferry. J. R. Bell built it!", 2),
    ("他来了。她说：“好！”然后走了？", 3), ("One line\nanother line", 2), ("", 1), ("No end", 1),
])
def test_where_sentences_end(text: str, many: int) -> None:
    assert len(sentences(text)) == many


def test_a_large_document_is_cut_in_time_that_grows_with_it() -> None:
    part = Part([Block(f"Paragraph {number} says this. And that, too.") for number in range(20_000)])
    assert len(passages(part, 200, 40)) > 700
