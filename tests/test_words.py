"""What a word is: in every script, against rouge_score and str.split where they are right."""

from __future__ import annotations

import unicodedata
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import tokenize

from alignment.words import form, pieces, word_starts, words

LINES = {
    "Hindi": ("किताब मेज पर है।", ["किताब", "मेज", "पर", "है"]),
    "Bengali": ("বইটি টেবিলে আছে।", ["বইটি", "টেবিলে", "আছে"]),
    "Tamil": ("புத்தகம் மேசையில்", ["புத்தகம்", "மேசையில்"]),
    "Arabic with vowels": ("كِتَابٌ، عَلَى", ["كِتَابٌ", "عَلَى"]),
    "Persian with a joiner": ("می‌خواهم بروم", ["می‌خواهم", "بروم"]),
    "Hebrew with points": ("שָׁלוֹם עוֹלָם", [unicodedata.normalize("NFC", word) for word in ("שָׁלוֹם", "עוֹלָם")]),
    "Korean": ("책이 책상 위에 있다.", ["책이", "책상", "위에", "있다"]),
    "Chinese": ("书，在桌子上。", ["书", "在", "桌", "子", "上"]),
    "Japanese": ("本・コーヒー", ["本", "コ", "ー", "ヒ", "ー"]),
    "half-width kana": ("ｶﾞ", ["ガ"]),
    "Thai": ("น้ำแข็ง ๑๒๓", ["น้ำ", "แ", "ข็", "ง", "๑๒๓"]),
    "Lao": ("ນ້ຳ", ["ນ້ຳ"]),
    "Khmer with stacked consonants": ("ខ្មែរ", ["ខ្មែ", "រ"]),
    "Burmese": ("မြန်မာ။", ["မြ", "န်", "မာ"]),
    "Tibetan": ("བོད་སྐད།", ["བོ", "ད", "སྐ", "ད"]),
    "Amharic": ("ሰላም፡ነህ", ["ሰላም", "ነህ"]),
    "Greek": ("ΛΌΓΟΣ, λόγος", ["λόγοσ", "λόγοσ"]),
    "Russian": ("«Война и мир»", ["война", "и", "мир"]),
    "German": ("Größe – 3,5", ["größe", "3", "5"]),
    "mixed": ("我爱 GPT-4 が", ["我", "爱", "gpt", "4", "が"]),
    "Khmer with spaces of no width": ("ភាសា\u200bខ្មែរ", ["ភា", "សា", "ខ្មែ", "រ"]),
    "marks of direction": ("\u200fשלום\u200e \u202bעולם\u202c\ufeff", ["שלום", "עולם"]),
    "full width": ("ＧＰＴ４", ["gpt4"]),
    "not to be taken apart": ("½ x² Word™ ❤️", ["½", "x²", "word"]),
}
LETTERS = "".join(line for line, _ in LINES.values()) + " \u0301\u200d\ufe0f\u200b\u200f"
texts = st.text(st.sampled_from(LETTERS), max_size=30)


@pytest.mark.parametrize(("text", "expected"), LINES.values(), ids=LINES)
def test_words_of_every_script(text: str, expected: list[str]) -> None:
    assert words(text) == expected
    assert words(unicodedata.normalize("NFD", text)) == expected


@settings(deadline=None)
@given(st.text(st.characters(max_codepoint=127)))
def test_ascii_is_cut_as_rouge_score_and_split_do(text: str) -> None:
    assert words(text) == tokenize.tokenize(text, None)
    assert pieces(text) == text.lower().split()


@settings(deadline=None)
@given(st.text(st.characters(max_codepoint=0x24F)))
def test_pieces_of_latin_texts_stand_between_blanks(text: str) -> None:
    assert pieces(text) == form(text).split()


@settings(deadline=None)
@given(texts)
def test_nothing_is_lost_and_nothing_depends_on_how_it_is_written(text: str) -> None:
    letters = [char for char in form(text) if char.isalnum()]
    for cut in (words, pieces):
        assert [char for word in cut(text) for char in word if char.isalnum()] == letters
        assert cut(text) == cut(unicodedata.normalize("NFD", text)) == cut(form(text))
    assert all(word[0].isalnum() for word in words(text)), "no word begins with a mark"
    assert words(text) == words(" ".join(words(text)))


def test_joined_characters_belong_to_words() -> None:
    assert words("name_of code", joined="_") == ["name_of", "code"]
    assert words("größe_x मेज_", joined="_") == ["größe_x", "मेज_"]


def test_punctuation_between_characters_is_no_piece_and_inside_a_word_it_stays() -> None:
    assert pieces("ភាសា\u200bខ្មែរ") == words("ភាសា\u200bខ្មែរ")
    assert pieces("北京，“上海”。 don't - 3,5") == ["北", "京", "上", "海", "don't", "-", "3,5"]


@pytest.mark.parametrize(("text", "cut"), [
    ("a well-known - fact.", ["a ", "well-known - ", "fact."]), ("... so", ["... so"]), ("(so) it", ["(so) ", "it"]),
    ("你好，世界。GPT模型 3.5 米！", ["你", "好，", "世", "界。", "GPT", "模", "型 ", "3.5 ", "米！"]),
    ("「你好」他说", ["「你", "好」", "他", "说"]), ("が\u3099か", ["が\u3099", "か"]), ("กำไร", ["กำ", "ไ", "ร"]),
    ("naïve “so” — it", ["naïve ", "“so” — ", "it"]),
])
def test_where_words_begin_in_a_text_as_it_stands(text: str, cut: list[str]) -> None:
    starts = word_starts(text)
    assert [text[begin:end] for begin, end in zip([0, *starts[1:]], [*starts[1:], len(text)], strict=True)] == cut


@given(st.text(max_size=60))
def test_words_begin_with_what_is_no_mark_and_rise(text: str) -> None:
    starts = word_starts(text)
    assert starts == sorted(set(starts))
    for begin, end in pairwise([*starts, len(text)]):
        assert any(sign.isalnum() for sign in text[begin:end])
        assert unicodedata.category(text[begin]) not in ("Mn", "Mc") or begin == 0 or text[begin - 1].isspace()
