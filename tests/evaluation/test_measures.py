"""Metrics by name: numbers worked out by hand, properties that hold for any text, and other people's own scripts."""

from __future__ import annotations

import math
import re
import string
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF

import alignment.evaluation.measures as measures
from alignment.config.stages.evaluate import READ_BY, USUAL
from alignment.evaluation.measures import NAMES, Reply, Rules, measure_of
from alignment.evaluation.measures.bleu import cut_of
from alignment.evaluation.measures.final_number import final_number
from alignment.evaluation.measures.question_type import named
from alignment.evaluation.measures.yes_no import verdict
from alignment.evaluation.metrics import pooled_ci
from alignment.evaluation.rouge import units

PLAIN = Rules()
TEXT = st.text(st.sampled_from("ab cd.,-'\n"), max_size=30)
REFERENCES = st.lists(st.text(st.sampled_from("ab cd.,"), min_size=1, max_size=30), min_size=1, max_size=3)


def of(name: str, text: str, *references: str, rules: Rules = PLAIN, kind: str | None = None) -> float:
    return measure_of(name).of(Reply(text, True, references, kind), rules)


def corpus(name: str, replies: list[Reply], rules: Rules = PLAIN) -> float:
    pooled = measure_of(name).pooled
    assert pooled is not None
    return pooled_ci(np.array([pooled.counts(reply, rules) for reply in replies]), pooled.total, resamples=1).value


# --- the list ---


def test_every_name_is_a_file_and_every_file_a_name() -> None:
    files = {path.stem for path in Path(measures.__file__).parent.glob("*.py")} - {"__init__", "base"}
    assert files == set(NAMES)
    assert set(USUAL) <= set(NAMES)
    assert set().union(*READ_BY.values()) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_facts_hold_for_every_metric(name: str) -> None:
    one = measure_of(name)
    assert one.title
    assert one.text.endswith(".")
    assert one.source
    full = Reply("Yes, 7 boats.", True, ("Yes, 7 boats.",), "odd", (-2.0, 4))
    rules = Rules(kinds=frozenset({"odd", "even"}))
    assert one.lacks(full, rules) is None
    assert math.isfinite(one.of(full, rules))
    bare = Reply("Yes, 7 boats.")
    assert (one.needs is None) == (one.lacks(bare, rules) is None)
    assert math.isnan(one.of(bare, rules)) == (one.needs is not None)
    if one.span in ("0 to 1", "0 to 100") and name != "question_type":
        assert one.of(full, rules) == pytest.approx(float(one.span[5:])), "a right answer has the most there is"


@pytest.mark.parametrize(("key", "change"), [
    ("answer_pattern", Rules(pattern=r"(?P<answer>\w+)", kinds=frozenset({"odd"}))),
    ("language", Rules(language="de", kinds=frozenset({"odd"}), cut="char")),
    ("segmentation", Rules(segmentation="jieba", kinds=frozenset({"odd"}))),
])
def test_what_a_key_is_said_to_be_read_by_reads_it(key: str, change: Rules) -> None:
    answers = ["no. die yes 5, odd", "die Katze", "Katze", "die", "odd", "北京大学", "5", "yes. The answer is no."]
    plain = Rules(kinds=frozenset({"odd"}))
    differing = {name for name in NAMES for text in answers for reference in (*answers, "yes", "die no", "北京 1")
                 if measure_of(name).of(Reply(text, True, (reference,), "odd"), plain)
                 != pytest.approx(measure_of(name).of(Reply(text, True, (reference,), "odd"), change), nan_ok=True)}
    assert differing == READ_BY[key]


# --- ROUGE ---


@settings(deadline=None, max_examples=60)
@given(TEXT, REFERENCES)
def test_rouge_is_rouge_scores_own_on_english(text: str, references: list[str]) -> None:
    theirs = RougeScorer(["rouge1", "rouge2", "rougeL"]).score_multi(references, text)
    for name, which in (("rouge1", "rouge1"), ("rouge2", "rouge2"), ("rouge_l", "rougeL")):
        assert of(name, text, *references) == pytest.approx(theirs[which].fmeasure)


def test_rouge_in_other_scripts() -> None:
    assert of("rouge1", "कताब माज पर हो", "किताब मेज पर है") == 0.25, "letters without their vowel signs are no word"
    assert of("rouge2", "我爱北京", "我爱上海") == pytest.approx(1 / 3), "one of three pairs of characters"
    assert of("rouge1", "Größe", "größe") == of("rouge1", "e\u0301te\u0301", "\u00e9t\u00e9") == 1


def test_jieba_cuts_chinese_words_and_nothing_else() -> None:
    assert units("北京大学的学生, 3 years old!", "jieba") == ["北京大学", "的", "学生", "3", "years", "old"]
    assert units("北京大学的学生", None) == list("北京大学的学生")
    cut = Rules(segmentation="jieba")
    assert of("rouge1", "我们去北京大学", "他们去北京大学", rules=cut) == pytest.approx(2 / 3)
    assert of("rouge1", "我们去北京大学", "他们去北京大学") == pytest.approx(6 / 7)
    assert of("rouge_l", "the cat", "the cat sat", rules=cut) == of("rouge_l", "the cat", "the cat sat")


# --- BLEU and chrF ---


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(TEXT, REFERENCES), min_size=1, max_size=5))
def test_bleu_and_chrf_are_sacrebleus_own(rows: list[tuple[str, list[str]]]) -> None:
    replies = [Reply(text, True, tuple(references)) for text, references in rows]
    streams = [[references[place] if place < len(references) else None for _, references in rows] for place in range(3)]
    streams = [stream for stream in streams if any(each is not None for each in stream)]
    texts = [text for text, _ in rows]
    assert corpus("bleu", replies) == pytest.approx(BLEU().corpus_score(texts, streams).score, abs=1e-9)
    assert corpus("chrf", replies) == pytest.approx(CHRF().corpus_score(texts, streams).score, abs=1e-9)
    for text, references in rows:
        wanted = BLEU(effective_order=True).sentence_score(text, references).score
        assert of("bleu", text, *references) == pytest.approx(wanted, abs=1e-9)
        assert of("chrf", text, *references) == pytest.approx(CHRF().sentence_score(text, references).score, abs=1e-9)


@pytest.mark.parametrize(("language", "texts", "cut"), [
    (None, ["The cat sat.", "42"], "13a"), (None, ["我爱北京天安门。", "Python 很好用"], "zh"), (None, [], "13a"),
    (None, ["東京はとてもきれいです。"], "char"), (None, ["ประเทศไทย"], "char"), (None, ["किताब मेज पर है"], "13a"),
    (None, ["Größe zählt nicht"], "13a"), ("zh", ["cat"], "zh"), ("ja", ["cat"], "char"), ("de", ["我"], "13a"),
])
def test_the_tokenizer_fits_the_references(language: str | None, texts: list[str], cut: str) -> None:
    assert cut_of(language, texts) == cut


def test_chinese_bleu_counts_characters() -> None:
    zh = Rules(language="zh", cut="zh")
    replies = [Reply("我爱北京天安门", True, ("我爱北京天安门广场",)), Reply("你好", True, ("您好",))]
    # 1-grams 7+1 of 9, 2-grams 6 of 7, 3-grams 5 of 5, 4-grams 4 of 4; 9 characters against 11.
    by_hand = 100 * math.exp(1 - 11 / 9) * (8 / 9 * 6 / 7) ** 0.25
    assert corpus("bleu", replies, zh) == pytest.approx(by_hand)
    signature = measure_of("bleu").signature
    assert signature is not None
    assert re.fullmatch(r"nrefs:1\|case:mixed\|eff:no\|tok:zh\|smooth:exp\|version:2\.\d+\.\d+", signature(zh, {1}))
    assert "nrefs:var" in signature(zh, {1, 2})


def test_decomposed_letters_are_the_same_letters() -> None:
    for name in ("bleu", "chrf"):
        assert of(name, "le cafe\u0301 est ferme\u0301 ici", "le caf\u00e9 est ferm\u00e9 ici") == pytest.approx(100)


def test_bleu_of_files_is_that_of_the_command(tmp_path: Path) -> None:
    said = ["The cat sat on the mat.", "A dog barks at night"]
    wanted = ["The cat is on the mat.", "Dogs bark at night."]
    (tmp_path / "said").write_text("\n".join(said) + "\n")
    (tmp_path / "wanted").write_text("\n".join(wanted) + "\n")
    done = subprocess.run([Path(sys.executable).with_name("sacrebleu"), tmp_path / "wanted", "-i", tmp_path / "said",
                           "-b", "-w", "6", "-m", "bleu", "chrf"], capture_output=True, text=True, check=True)
    theirs = [float(number) for number in re.findall(r"\d+\.\d{6}", done.stdout)]
    replies = [Reply(text, True, (reference,)) for text, reference in zip(said, wanted, strict=True)]
    assert [corpus("bleu", replies), corpus("chrf", replies)] == pytest.approx(theirs, abs=1e-6)


# --- short answers ---


def theirs(text: str) -> list[str]:
    """SQuAD's own normalisation, for ASCII."""
    text = "".join(sign for sign in text.lower() if sign not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


@settings(max_examples=80)
@given(TEXT, REFERENCES)
def test_recall_and_containment_follow_squads_normalisation(text: str, references: list[str]) -> None:
    def recall(wanted: list[str], said: list[str]) -> float:
        if not wanted or not said:
            return float(wanted == said)
        return sum((Counter(wanted) & Counter(said)).values()) / len(wanted)

    def within(wanted: list[str], said: list[str]) -> bool:
        return f" {' '.join(wanted)} " in f" {' '.join(said)} " if wanted else not said

    pairs = [(theirs(reference), theirs(text)) for reference in references]
    assert of("word_recall", text, *references) == pytest.approx(max(recall(*pair) for pair in pairs))
    assert of("containment", text, *references) == float(any(within(*pair) for pair in pairs))
    assert of("containment", text, *references) <= of("word_recall", text, *references)
    assert of("exact_match", text, *references) <= of("containment", text, *references)


def test_recall_and_containment_by_hand() -> None:
    long = "It was not known until 1969 that the lake is in New York, and no one asked."
    assert of("containment", long, "New York.") == 1
    assert of("containment", long, "York New") == 0
    assert of("word_recall", long, "York New") == 1
    assert of("word_recall", long, "New York City") == pytest.approx(2 / 3)
    assert of("containment", "It is not known.", "no") == 0, "no whole word"
    assert of("word_recall", "New York", "New York, New York") == 0.5
    assert of("containment", "答案是北京大学。", "北京") == 1
    assert of("containment", "so: Paris", "Paris", rules=Rules(pattern=r"so: (?P<answer>.*)")) == 1


# --- yes or no ---


@pytest.mark.parametrize(("text", "said"), [
    ("Yes", True), ("no.", False), ("**Yes**, it is.", True), ("No, it is not.", False), ("No it is not", False),
    ("No ships came that day.", None), ("Nobody knows.", None), ("not really", None), ("", None), ("...", None),
    ("yes because it froze", True), ("True", True), ("False.", False), ("False positives are bad.", None),
    ("It froze, so the answer is no.", False), ("No, wait. The answer is: yes", True), ("Therefore, no.", False),
    ("The harbour freezes. Ships stop. Yes.", True), ("Yes and no.", None), ("yes or no?", None), ("yes/no", None),
    ("The correct answer is: **Yes**.", True), ("Is there no ice? It says that there is none.", None),
    ("是的，港口结冰。", True), ("不是。", False), ("是", True), ("是否结冰？", None), ("对于港口来说很深", None),
    ("对", True), ("港口结冰。答案：否", False), ("没有，船停了。", False), ("YES!", True), ("ｙｅｓ", True),
    ("no\nIt is deep.", False), ("答案是否定的", False),
])
def test_what_is_said_of_yes_and_no(text: str, said: bool | None) -> None:
    assert verdict(text) is said


@given(st.text(max_size=40))
def test_a_conclusion_outlives_what_stands_before_it(text: str) -> None:
    assert verdict(text) in (True, False, None)
    assert verdict(f"{text}\nThe answer is no.") is False


def test_yes_no_is_right_wrong_or_undefined() -> None:
    assert of("yes_no", "Yes, it is.", "Yes") == of("yes_no", "no", "No, it freezes.") == 1
    assert of("yes_no", "Yes, it is.", "No") == of("yes_no", "It is deep.", "Yes") == 0
    assert math.isnan(of("yes_no", "Yes", "nine metres"))
    assert measure_of("yes_no").lacks(Reply("", references=("nine",)), Rules()) == "no reference that says yes or no"


# --- numbers ---


@pytest.mark.parametrize(("text", "number"), [
    ("#### 1,234", "1234"), ("It is $18.00 a day.", "18"), ("-5", "-5"), ("$-5.5", "-5.5"), ("-$5.50", "-5.5"),
    ("(−3)", "-3"), ("5-3", "3"), ("10 - 3", "3"), ("16 - 7 = 9", "9"), ("1 1/2", "3/2"), ("3/4 of it", "3/4"),
    ("5½", "11/2"), (r"\boxed{42}", "42"), (r"\frac{3}{4}", "3/4"), ("1,00,000", "100000"), ("1.5e3", "1500"),
    ("50%", "50"), ("18/day", "18"), ("12,345.678", "12345.678"), ("3, 4, 5", "5"), ("1,2", "2"), ("5/12/2023", "2023"),
    ("12 then #### 7\nand 9", "7"), ("#### 5 #### 6", "6"), ("５６", "56"), ("共18个苹果", "18"), ("1,234.", "1234"),
    ("+7", "7"), ("x=5", "5"), (".5", "0.5"), ("10²", "10"), ("7 boats, A4 paper", "7"), ("٣", "3"), ("90+2=92", "92"),
])
def test_the_number_of_a_text(text: str, number: str) -> None:
    assert final_number(text) == Fraction(number)


@pytest.mark.parametrize("text", ["", "no number", "####", "7 #### ", "A4", "1/0", "9" * 4000, "seven"])
def test_a_text_without_a_number_has_none(text: str) -> None:
    assert final_number(text) is None


@given(st.decimals(-10**12, 10**12, allow_nan=False, places=3), st.sampled_from(["{:,}", "{}"]),
       st.sampled_from(["#### {}", "The answer is {}.", "so ${}", "= {} boats", "It is {}!", "First 3, then {}"]))
def test_a_number_is_read_back_as_it_was_written(value: object, form: str, sentence: str) -> None:
    assert final_number(sentence.format(form.format(value))) == Fraction(str(value))


@settings(deadline=None)
@given(st.text(st.sampled_from("0123456789,./-–+$%e#½ a\n"), max_size=60))
def test_any_text_has_a_number_or_none(text: str) -> None:
    found = final_number(text)
    assert found is None or isinstance(found, Fraction)
    if found is None and "#" not in text:
        assert not re.search(r"(?:^|\s)\d{1,9}(?:\s|$)(?!.*\d)", text, re.DOTALL)


def test_numbers_are_compared_as_numbers() -> None:
    solved = "Janet sells 16 - 3 - 4 = <<16-3-4=9>>9 duck eggs.\n#### 18"
    assert of("final_number", "9 * 2 = 18. So she makes $18.00 every day.", solved) == 1
    assert of("final_number", "#### 18.5", solved) == of("final_number", "She makes nothing.", solved) == 0
    assert of("final_number", "She has 18 left of 20", solved) == 0, "the last number counts"
    assert math.isnan(of("final_number", "18", "eighteen"))


# --- the kind of a question ---


def test_the_kind_that_an_answer_names() -> None:
    kinds = Rules(kinds=frozenset({"single-hop", "multi-hop", "multi_hop bridge", "inter"}))
    assert of("question_type", "This is a Multi Hop question.", "x", rules=kinds, kind="multi-hop") == 1
    assert of("question_type", "multi-hop bridge", "x", rules=kinds, kind="multi_hop bridge") == 1
    assert of("question_type", "multi-hop bridge", "x", rules=kinds, kind="multi-hop") == 0
    assert of("question_type", "single-hop or multi-hop", "x", rules=kinds, kind="multi-hop") == 0, "names both"
    assert of("question_type", "an interesting one", "x", rules=kinds, kind="inter") == 0
    assert math.isnan(of("question_type", "inter", "x", rules=kinds))
    assert named("Typ: inter. multi-hop", kinds.kinds) == {"inter", "multi-hop"}
