"""Which record serves which method."""

from __future__ import annotations

from alignment.data.projections import to_preference, to_sft
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
    assert to_preference(Record("8", "preference", ASK, "a b", "\ta b\n")) == "chosen equals rejected"
