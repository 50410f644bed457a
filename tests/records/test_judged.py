"""Pairs as judges' data sets have them: who is preferred, what is a tie, who voted how; nothing learns from a tie."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.data.projections import to_preference, to_prompt, to_sft, to_unpaired
from alignment.records import Record
from alignment.records.importers import Options
from alignment.records.importers.judged import SECTIONS, pandalm
from tests.records.drawn import GOOD, bad, good, quick, sound_records, user, without

KEEP = Options(ties=True)


def votes(*values: Any) -> dict[str, Any]:
    return {**GOOD["pandalm"], **{f"annotator{n}": value for n, value in enumerate(values, 1)}}


@pytest.mark.parametrize("cast", list(product((0, 1, 2), repeat=3)))
def test_most_votes_win_whoever_cast_them(cast: tuple[int, ...]) -> None:
    first, second, ties = (cast.count(side) for side in (1, 2, 0))
    if max(first, second, ties) == 1:
        assert bad("pandalm", votes(*cast)).slug == bad("pandalm", votes(*cast), KEEP).slug == "annotators-disagree"
        return
    if ties > 1:
        assert bad("pandalm", votes(*cast)).slug == "tie"
    else:
        record = good("pandalm", votes(*cast))
        assert (record.completion, record.rejected) == (("3", "4") if first > second else ("4", "3"))
        assert record.meta["agreement"] == ("unanimous" if max(first, second) == 3 else "majority")
        assert "votes" not in record.meta
    kept = good("pandalm", votes(*cast), KEEP)
    assert kept.type == ("tie" if ties > 1 else "preference")
    text = {"completion": kept.completion, "rejected": kept.rejected, "tie": None}
    assert [text[side] for side in kept.meta["votes"].values()] == [{0: None, 1: "3", 2: "4"}[vote] for vote in cast]


def test_a_pandalm_row_is_a_preference_with_its_own_id() -> None:
    record = pandalm({**votes(1, 1, 1), "meta": {"by": "x", "votes": "mine"}})
    assert record == Record("3", "preference", [user("Add.\n\n1")], "3", "4",
                            meta={"by": "x", "votes": "mine", "agreement": "unanimous"})  # fmt: skip


@pytest.mark.parametrize(("row", "slug"), [
    (votes(1, 1, None), "missing-field"),
    (votes(1, 1, 3), "wrong-type"),
    (votes(1, 1, -1), "wrong-type"),
    (votes(1, 1, "1"), "wrong-type"),
    (votes(True, 1, 1), "wrong-type"),
    (votes(1, 1, [1]), "wrong-type"),
    (without(GOOD["pandalm"], "annotator3"), "missing-field"),
    (without(GOOD["pandalm"], "instruction"), "missing-field"),
    (without(GOOD["pandalm"], "response1"), "missing-field"),
    ({**GOOD["pandalm"], "response2": 4}, "wrong-type"),
])  # fmt: skip
def test_a_pandalm_row_is_refused_with_its_reason(row: dict[str, Any], slug: str) -> None:
    assert bad("pandalm", row).slug == slug


@pytest.mark.parametrize(("label", "sides"), [(0, ("So.", "Not so.")), (1, ("Not so.", "So."))])
def test_auto_js_label_says_which_answer_is_better(label: int, sides: tuple[str, str]) -> None:
    record = good("auto-j", {**GOOD["auto-j"], "label": label})
    assert (record.type, (record.completion, record.rejected), record.meta["kind"]) == ("preference", sides, "chatting")
    assert good("auto-j", {**GOOD["auto-j"], "kind": "mine"}).meta["kind"] == "mine"


TIES = {"auto-j": {"label": 2}, "ultrafeedback-binarized": {"score_chosen": 7.0}, "preference": {"type": "tie"},
        "pandalm": {"annotator1": 0, "annotator2": 0}}


@pytest.mark.parametrize("format", TIES)
def test_a_tie_is_a_bad_row_or_kept_as_a_row_that_nothing_learns_from(format: str) -> None:
    row = {**GOOD[format], **TIES[format]}
    assert bad(format, row).slug == "tie"
    record = good(format, row, KEEP)
    assert record.type == "tie"
    assert record.completion
    assert record.rejected
    assert record.reference() is None
    assert [to_preference(record), to_sft(record), to_unpaired(record)] == [
        "tie is no preference", "tie has no answer to learn", "tie has no label"]
    assert isinstance(asked := to_prompt(record), Record)
    assert asked.completion is None
    assert good(format, GOOD[format], KEEP).type == "preference"


@quick
@given(sound_records().filter(lambda record: record.type == "tie"))
def test_a_tie_of_ours_is_read_again_as_a_tie_and_never_as_a_preference(record: Record) -> None:
    raw = {"prompt": record.prompt, "completion": record.completion, "rejected": record.rejected, "type": "tie"}
    assert bad("preference", raw).slug == "tie"
    made = good("preference", raw, KEEP)
    assert (made.type, made.completion, made.rejected) == ("tie", record.completion, record.rejected)


@pytest.mark.parametrize(("format", "row", "slug"), [
    ("auto-j", {"label": 3}, "wrong-type"), ("auto-j", {"label": "1"}, "wrong-type"),
    ("auto-j", {"label": True}, "wrong-type"), ("auto-j", {"label": None}, "missing-field"),
    ("auto-j", {"response 1": ""}, "empty-answer"), ("auto-j", {"prompt": ["x"]}, "wrong-type"),
    ("reward-bench", {"subset": None}, "missing-field"), ("reward-bench", {"chosen": ["a", "b"]}, "wrong-type"),
    ("reward-bench", {"rejected": "So."}, "chosen-equals-rejected"),
    ("ultrafeedback-binarized", {"score_rejected": 9}, "scores-disagree"),
    ("ultrafeedback-binarized", {"score_chosen": "8"}, "wrong-type"),
    ("ultrafeedback-binarized", {"score_chosen": float("nan")}, "missing-field"),
])  # fmt: skip
def test_a_judged_row_is_refused_with_its_reason(format: str, row: dict[str, Any], slug: str) -> None:
    assert bad(format, {**GOOD[format], **row}).slug == slug


@pytest.mark.parametrize(("section", "subset"), [(name, one) for name, all_ in SECTIONS.items() for one in all_])
def test_a_subset_of_rewardbench_is_in_its_section(section: str, subset: str) -> None:
    record = good("reward-bench", {**GOOD["reward-bench"], "subset": subset})
    assert (record.meta["kind"], record.meta["section"], record.id) == (subset, section, f"s-{subset}-7")
    assert record.meta["models"] == {"chosen": "human", "rejected": "gpt-4"}


def test_an_unknown_subset_has_no_section_and_a_row_without_an_id_its_number() -> None:
    record = good("reward-bench", {**without(GOOD["reward-bench"], "id"), "subset": "my-own"})
    assert (record.id, "section" in record.meta) == ("s-1", False)


@quick
@given(st.floats(-10, 10), st.floats(-10, 10))
def test_scores_say_who_is_better_and_equal_ones_that_nobody_is(one: float, other: float) -> None:
    row = {**GOOD["ultrafeedback-binarized"], "score_chosen": max(one, other), "score_rejected": min(one, other)}
    record = good("ultrafeedback-binarized", row, KEEP)
    assert record.type == ("tie" if one == other else "preference")
    assert record.meta["scores"] == {"completion": max(one, other), "rejected": min(one, other)}
    assert record.meta["group"] == "p"
