"""Reward functions on written answers, and how they are found by name."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.config import Scorer
from alignment.errors import ConfigError, DataError
from alignment.records import Record
from alignment.rewards import combine, exact_match, functions, normalize_answer, resolve, token_f1
from alignment.rewards.functions import REFUSAL, brevity, evidence_style, word_count

PASSAGE = 'The ferry "Gull" leaves at nine. It carries forty cars and two lorries, and no dogs.'
OPEN = Record("q", "prompt-completion", [{"role": "user", "content": "?"}], 'nine ["leaves at nine"]',
              meta={"passage": PASSAGE})
UNANSWERABLE = Record("u", "prompt-completion", OPEN.prompt, REFUSAL, meta={"passage": PASSAGE})


@pytest.mark.parametrize(("answer", "score"), [
    ('nine ["leaves at nine"]', 1.0),
    ('  Forty cars ["It carries forty cars"]\n', 1.0),  # SHORT without regard to case, blanks around the answer
    ('No ["and no dogs"]', 1.0),  # yes and no need not stand in the passage
    ('yes. ["carries forty cars"]', 1.0),
    ('nine ["The ferry "Gull" leaves"]', 1.0),  # quotation marks of the passage itself
    ('ten ["leaves at nine"]', 0.8),  # a word from elsewhere
    ('nine ["leaves at ten"]', 0.6),  # an invented quotation
    ('nine ["Leaves at nine"]', 0.6),  # letter by letter means case too
    ('nine ["at nine"]', 0.6),  # two words prove little
    ('nine ["It carries forty cars and two lorries, and"]', 1.0),  # eight words
    ('nine ["It carries forty cars and two lorries, and no"]', 0.6),  # nine
    ('It carries forty cars and two lorries, and no dogs ["leaves at nine"]', 0.8),  # SHORT of ten words
    ('ten ["at ten"]', 0.4),
    ("nine", 0.0),
    ('nine ["leaves at nine"] I think.', 0.0),
    ('["leaves at nine"]', 0.0),
    ('nine [leaves at nine]', 0.0),
    ("", 0.0),
    (REFUSAL, 0.0),
])
def test_evidence_style(answer: str, score: float) -> None:
    assert evidence_style(OPEN, answer) == pytest.approx(score)


def test_refusing_is_right_only_where_the_reference_refuses() -> None:
    assert evidence_style(UNANSWERABLE, f" {REFUSAL} ") == 1
    assert evidence_style(UNANSWERABLE, "The passage does not say") == 0
    assert evidence_style(UNANSWERABLE, 'nine ["leaves at nine"]') == 0.2
    assert evidence_style(UNANSWERABLE, "nine") == 0


@given(st.text(alphabet='ab ["].N', max_size=30))
def test_evidence_style_stays_in_its_range(answer: str) -> None:
    assert 0 <= evidence_style(OPEN, answer) <= 1
    assert 0 <= evidence_style(UNANSWERABLE, answer) <= 0.2


def test_functions_refuse_rows_that_they_cannot_judge() -> None:
    bare = Record("r9", "prompt-only", OPEN.prompt)
    for function in (evidence_style, functions.exact_match, functions.token_f1):
        with pytest.raises(DataError) as error:
            function(bare, "x")
        assert error.value.where == "row r9"


def test_answers_after_squad() -> None:
    assert normalize_answer(" The  Cat, sat on an a-b! ") == "cat sat on ab"
    assert exact_match("the Cat.", ["dog", "cat"]) == 1
    assert exact_match("cats", ["cat"]) == 0
    assert token_f1("the black cat", ["a cat", "black black dog"]) == pytest.approx(2 / 3)
    assert token_f1("a", ["the"]) == 1  # both empty once normalised
    assert token_f1("cat", ["the"]) == 0
    assert token_f1("cat", []) == exact_match("cat", []) == 0
    assert functions.token_f1(OPEN, "leaves") == pytest.approx(2 / 5)


def test_words_are_counted_in_every_script() -> None:
    assert [word_count(OPEN, text) for text in ("", "one two", "两个字", "Nine metres.")] == [0, 2, 3, 2]


def test_brevity_falls_with_words() -> None:
    assert brevity(OPEN, "") == 0
    assert brevity(OPEN, "one") == 1
    assert brevity(OPEN, "w " * 64) == 0
    assert brevity(OPEN, "w " * 100) == 0
    assert brevity(OPEN, "a b") > brevity(OPEN, "a b c") > 0


def test_resolve_finds_built_ins_and_functions_of_ones_own() -> None:
    assert resolve("brevity") is brevity
    assert resolve("alignment.rewards.functions:exact_match") is functions.exact_match


@pytest.mark.parametrize("name", ["brevitee", "no.such.module:f", "alignment.rewards.functions:nope", ":f", "math:pi"])
def test_resolve_names_the_choices(name: str) -> None:
    with pytest.raises(ConfigError) as error:
        resolve(name)
    assert error.value.found == name
    assert "evidence_style" in str(error.value.expected)


def test_combine_weights_and_never_halves() -> None:
    both = Scorer(model="rm", function="brevity", model_weight=2.0, function_weight=0.5)
    assert combine(both, 4.0, 3.0) == 8
    assert math.isnan(combine(both, None, 3.0))
    assert math.isnan(combine(both, 4.0, float("nan")))
    assert combine(Scorer(function="brevity", model_weight=9), 4.0, None) == 4
    assert combine(Scorer(model="rm", function_weight=9), None, -3.0) == -3


def test_the_room_imports_without_torch() -> None:
    code = "import sys, alignment.rewards; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
