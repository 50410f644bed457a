"""Which record serves which method."""

from __future__ import annotations

import pytest

from alignment.data.projections import project, to_preference, to_prompt, to_sft
from alignment.errors import DataError
from alignment.records import Record

ASK = [{"role": "user", "content": "ask"}]
TALK = [*ASK, {"role": "assistant", "content": "one"}, *ASK, {"role": "assistant", "content": "two"}]
ROWS = {
    "messages": Record("1", "messages", messages=TALK),
    "pair": Record("2", "prompt-completion", ASK, "yes"),
    "preference": Record("3", "preference", ASK, "yes", "no"),
    "wanted": Record("4", "unpaired", ASK, "yes", label=True),
    "unwanted": Record("5", "unpaired", ASK, "no", label=False),
    "prompt": Record("6", "prompt-only", ASK),
}
ANSWERED = [*ASK, {"role": "assistant", "content": "yes"}]


def test_sft_takes_every_row_with_a_wanted_answer():
    made = {name: to_sft(record) for name, record in ROWS.items()}
    assert made["messages"] == TALK
    assert made["pair"] == made["preference"] == made["wanted"] == ANSWERED
    assert "unwanted" in made["unwanted"]
    assert "no answer" in made["prompt"]
    assert isinstance(to_sft(Record("7", "messages", messages=TALK[:3])), str)


def test_only_preferences_are_preferences():
    assert to_preference(ROWS["preference"]) == (ASK, "yes", "no")
    assert all(isinstance(to_preference(record), str) for name, record in ROWS.items() if name != "preference")
    assert to_preference(Record("8", "preference", ASK, "a b", "a  b")) == "chosen equals rejected"


def test_every_prompt_comes_with_its_reference():
    made = {name: to_prompt(record) for name, record in ROWS.items()}
    assert made["messages"] == (TALK[:3], "two")
    assert made["pair"] == made["preference"] == made["wanted"] == (ASK, "yes")
    assert made["unwanted"] == made["prompt"] == (ASK, None)
    assert isinstance(to_prompt(Record("7", "messages", messages=TALK[:3])), str)


def test_rows_that_cannot_serve_are_counted_and_a_set_of_them_is_an_error():
    fit, unfit = project(ROWS.values(), to_preference, "dpo", "stage dpo, rows seed/train")
    assert [record.id for record, _ in fit] == ["3"]
    assert len(unfit) == 5
    with pytest.raises(DataError) as caught:
        project([ROWS["prompt"], ROWS["pair"]], to_preference, "dpo", "stage dpo, rows seed/train")
    assert "dpo" in caught.value.problem
    assert "prompt-only" in caught.value.found
    assert caught.value.expected == "preference"
