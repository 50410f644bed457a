"""Exact match and F1 against independent copies of the rules of SQuAD's and MLQA's scripts, and in every script."""

from __future__ import annotations

import json
import random
import re
import string
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from alignment.rewards import exact_match, normalize_answer, token_f1

XQUAD = Path(__file__).parents[3] / "shared" / "data" / "qa"
EVERY_MARK = set(string.punctuation) | {
    char for char in map(chr, range(sys.maxunicode)) if unicodedata.category(char)[0] == "P"}
GONE = {"en": "a|an|the", "es": "un|una|unos|unas|el|la|los|las", "vi": "của|là|cái|chiếc|những",
        "de": "ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des"}


def squad(text: str) -> list[str]:
    """SQuAD 1.1 and 2.0: lower, punctuation of ASCII, articles, blanks."""
    kept = "".join(char for char in text.lower() if char not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()


def mlqa(text: str, language: str) -> list[str]:
    """MLQA v1: lower, all punctuation, the language's articles, blanks; Chinese characters one by one."""
    kept = "".join(char for char in text.lower() if char not in EVERY_MARK)
    if language in GONE:
        kept = re.sub(rf"\b({GONE[language]})\b", " ", kept)
    if language == "ar":
        kept = kept.replace("ال", " ")
    if language == "zh":
        kept = re.sub("([\u4e00-\u9fa5])", r" \1 ", kept)
    return kept.split()


def f1(said: list[str], wanted: list[str]) -> float:
    if not said or not wanted:
        return float(said == wanted)
    common = sum((Counter(said) & Counter(wanted)).values())
    precision, recall = common / len(said), common / len(wanted)
    return 2 * precision * recall / (precision + recall) if common else 0.0


def both(one: str, other: str, language: str | None = None) -> tuple[float, float]:
    return exact_match(one, [other], language), token_f1(one, [other], language)


english = st.lists(st.sampled_from([
    "the", "The", "a", "an", "A.", "cat", "Cat's", "don’t", "“quoted”", "1990–1995", "$1,000.50", "café", "Größe",
    "naïve", "…", "-", "e.g.", "x²", "½", "Word™", "£5", "the-end", "α-helix", "\xa0", "_", "U.S.A.", "'",
    "ﬁve", "a’s", "°C"]), max_size=8).map(" ".join)


@settings(deadline=None)
@given(english, english)
@example("a", "the")
@example("", "cat")
@example("1990–1995", "1990–1995 … x²")
def test_english_has_the_numbers_of_squad(one: str, other: str) -> None:
    said, wanted = squad(one), squad(other)
    assert both(one, other) == (float(said == wanted), pytest.approx(f1(said, wanted)))


@settings(deadline=None)
@given(*[st.text(st.characters(max_codepoint=0x17F) | st.sampled_from("  ’“”–—…™"), max_size=20)] * 2)
def test_any_text_in_latin_letters_has_the_numbers_of_squad(one: str, other: str) -> None:
    one, other = (unicodedata.normalize("NFC", text) for text in (one, other))
    said, wanted = squad(one), squad(other)
    assert both(one, other) == (float(said == wanted), pytest.approx(f1(said, wanted)))


WORDS = {
    "zh": ["北京", "北", "京", "“上海”", "，", "2008年", "GPT-4", "the", "《红楼梦》", "·", "30%", "A", "。", "毛泽东"],
    "hi": ["किताब", "कीताब", "कताब", "मेज", "है।", "2008", "दिल्ली,", "(नई", "the", "राम-श्याम"],
    "ar": ["كتاب", "الكتاب", "كِتاب", "،", "القاهرة؟", "2008", "«مصر»", "في", "وال"],
    "de": ["der", "Hund", "„Hund“", "die", "Die", "Größe", "des", "3,5", "–", "the", "ein", "a"],
    "es": ["el", "perro", "¿Qué?", "la", "«casa»", "niño", "un", "the", "unas", "1.000"],
    "vi": ["của", "Nghệ", "An", "Nghệ An", "là", "những", "Việt", "“Huế”", "cái", "a"],
}
pairs = st.sampled_from(sorted(WORDS)).flatmap(lambda language: st.tuples(
    st.just(language), *[st.lists(st.sampled_from(WORDS[language]), max_size=6).map(" ".join)] * 2))


@settings(deadline=None)
@given(pairs)
def test_a_language_has_the_numbers_of_mlqa(drawn: tuple[str, str, str]) -> None:
    language, one, other = drawn
    said, wanted = mlqa(one, language), mlqa(other, language)
    expected = (float(said == wanted), pytest.approx(f1(said, wanted)))
    assert both(one, other, language) == expected
    native = "".join(char for char in one + other if char.isalpha() and not char.isascii())
    latin = sum(char.isascii() and char.isalpha() for char in one + other)
    if language in ("zh", "hi") and len(native) > latin:
        assert both(one, other) == expected, "known by its letters"


@pytest.mark.skipif(not XQUAD.is_dir(), reason="reads ../shared/data, which is not here")
@pytest.mark.parametrize("language", ["zh", "en"])
def test_answers_of_xquad_have_their_own_scripts_numbers(language: str) -> None:
    """Each answer against another about the same passage, and against a part of its own passage."""
    rng, compared, above = random.Random(0), 0, 0
    for article in json.loads((XQUAD / f"xquad.{language}.json").read_text("utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            answers = [qa["answers"][0]["text"] for qa in paragraph["qas"]]
            start = rng.randrange(len(paragraph["context"]))
            for answer in answers:
                part, sign = paragraph["context"][start:start + 30], "." if language == "en" else "，"
                for said in (answer, rng.choice(answers), answer[1:], f"“{answer}{sign}", part):
                    mine, wanted = (squad(text) if language == "en" else mlqa(text, "zh") for text in (said, answer))
                    assert both(said, answer, language) == (float(mine == wanted), pytest.approx(f1(mine, wanted)))
                    compared, above = compared + 1, above + (token_f1(said, [answer]) > 0)
    assert compared > 5000
    assert above > 2000


SCRIPTS = {
    "Latin": "cat house river", "Cyrillic": "кот дом река", "Greek": "γάτα σπίτι ποταμός", "Devanagari": "बिल्ली घर नदी",
    "Arabic": "قطة بيت نهر", "Hebrew": "חתול בית נהר", "Chinese": "猫 屋 河", "Kana": "ねこ うち カワ",
    "Thai": "แมว บ้าน ธุดง", "Lao": "ແມວ ເຮືອນ ນ້ຳ", "Khmer": "ឆ្មា ផ្ទះ ទន្លេ", "Burmese": "ကြောင် အိမ် မြစ်",
    "Hangul": "고양이 집 강", "Tamil": "பூனை வீடு ஆறு", "Tibetan": "ཞི་མི ཁང་པ གཙང་པོ",
    "Amharic": "ድመት ቤት ወንዝ", "Georgian": "კატა სახლი მდინარე",
}
drawn_texts = st.sampled_from(sorted(SCRIPTS)).flatmap(
    lambda name: st.lists(st.sampled_from(SCRIPTS[name].split()), min_size=1, max_size=5).map(" ".join))


@settings(deadline=None)
@given(drawn_texts, drawn_texts)
def test_f1_is_symmetric_and_one_on_equal_texts(one: str, other: str) -> None:
    assert token_f1(one, [other]) == token_f1(other, [one])
    assert both(one, one) == both(one, unicodedata.normalize("NFD", one)) == both(one, f"- {one.upper()} !") == (1, 1)
    assert one.isascii() or both(one, f"«{one}»…") == (1, 1)
    assert (token_f1(one, [other]) == 1) >= (exact_match(one, [other]) == 1)


@pytest.mark.parametrize("name", SCRIPTS)
def test_f1_is_zero_on_disjoint_texts(name: str) -> None:
    first, _, last = SCRIPTS[name].split()
    assert both(first, last) == (0, 0)
    for other in SCRIPTS:
        if other != name:
            assert both(SCRIPTS[name], SCRIPTS[other]) == (0, 0)


@settings(deadline=None)
@given(st.lists(st.sampled_from("कखगतदनपबमर"), min_size=1, max_size=6), st.data())
def test_a_word_with_another_vowel_sign_is_another_word(letters: list[str], data: st.DataObject) -> None:
    signs = st.sampled_from(["", "ा", "ि", "ी", "ु", "े", "ो"])
    one, other = ("".join(letter + data.draw(signs) for letter in letters) for _ in range(2))
    assert token_f1(f"{one} है", [f"{other} है"]) == (1 if one == other else 0.5)


def test_part_of_an_answer_without_blanks_counts() -> None:
    assert token_f1("北京大学", ["北京"]) == pytest.approx(2 / 3)
    assert token_f1("ประเทศไทย", ["ไทย"]) == pytest.approx(2 * 3 / (9 + 3))
    assert exact_match("ＮＢＡ。", ["nba"]) == 1
    assert normalize_answer("《红楼梦》") == "红 楼 梦"
