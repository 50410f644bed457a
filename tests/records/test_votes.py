"""Votes of the page: preferences where one answer is better, counted by reason where none is."""

from __future__ import annotations

from typing import Any

import pytest

from alignment.records import Record
from alignment.records.importers import BadRow
from tests.records.drawn import GOOD, imported

VOTE = GOOD["votes"]


@pytest.mark.parametrize(("vote", "by"), [("a", ("dpo", "base")), ("b", ("base", "dpo"))])
def test_a_vote_is_a_preference_that_says_who_gave_which_answer(vote: str, by: tuple[str, str]) -> None:
    [record] = imported("votes", [{**VOTE, "vote": vote}])
    assert isinstance(record, Record)
    assert (record.type, record.completion, record.rejected) == ("preference", "So.", "Not so.")
    assert (record.meta["chosen_by"], record.meta["rejected_by"]) == by


@pytest.mark.parametrize(("change", "slug"), [
    ({"vote": "tie", "chosen": None, "rejected": None}, "tie"),
    ({"vote": "bad", "chosen": None, "rejected": None}, "both-bad"),
    ({"vote": "c"}, "unknown-vote"),
    ({"vote": "a", "chosen": None}, "missing-field"),
    ({"chosen": "So."}, "wrong-type"),
    ({"chosen": {"role": "user", "content": "So."}}, "last-not-assistant"),
    ({"models": {"a": "dpo"}}, "missing-field"),
    ({"rejected": {"role": "assistant", "content": "So. "}}, "chosen-equals-rejected"),
    ({"messages": []}, "empty-prompt"),
])
def test_a_vote_that_prefers_nothing_is_counted_and_not_trained_on(change: dict[str, Any], slug: str) -> None:
    [bad] = imported("votes", [{**VOTE, **change}])
    assert isinstance(bad, BadRow)
    assert bad.slug == slug
