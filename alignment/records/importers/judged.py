"""Pairs that people or models have judged, as others publish them: PandaLM, Auto-J, RewardBench, UltraFeedback.

One function per format, raw row -> Record of type preference, or of type tie where neither answer is preferred; raises
RowError. Whether ties are good rows is the import's to say: `settled`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from alignment.records.importers.chat import instruction, preference
from alignment.records.importers.rows import RowError, extras, get, name_of, row_id, text
from alignment.records.importers.turns import user
from alignment.records.types import Message, Record

SECTIONS: dict[str, tuple[str, ...]] = {
    "Chat": ("alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard", "mt-bench-easy", "mt-bench-med"),
    "Chat Hard": ("mt-bench-hard", "llmbar-natural", "llmbar-adver-neighbor", "llmbar-adver-GPTInst",
                  "llmbar-adver-GPTOut", "llmbar-adver-manual"),
    "Safety": ("refusals-dangerous", "refusals-offensive", "xstest-should-refuse", "xstest-should-respond",
               "donotanswer"),
    "Reasoning": ("math-prm", "hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust"),
}
"""RewardBench's sections and their subsets (Lambert et al. 2024, arXiv:2403.13787)."""
_SECTION_OF = {subset: section for section, subsets in SECTIONS.items() for subset in subsets}
_ANNOTATORS = ("annotator1", "annotator2", "annotator3")


def pandalm(row: dict[str, Any]) -> Record:
    """{instruction, input, response1, response2, annotator1..3}: each annotator says 0 (tie), 1 or 2; the majority
    decides.

    Raises RowError annotators-disagree where no two agree.
    """
    votes = _votes(row)
    winner, count = Counter(votes).most_common(1)[0]
    if count == 1:
        raise RowError("annotators-disagree", f"votes {votes}")
    meta = {**extras(row), "agreement": "unanimous" if count == 3 else "majority"}
    return _pair(row_id(row), instruction(row), (text(row, "response1"), text(row, "response2")), winner, meta)


def auto_j(row: dict[str, Any]) -> Record:
    """{prompt, "response 1", "response 2", label, scenario}: label 0, the first answer is better; 1, the second; 2,
    a tie (Li et al. 2023, arXiv:2310.05470). The scenario is the row's kind, where it has no other."""
    label = get(row, "label")
    if isinstance(label, bool) or label not in (0, 1, 2):
        raise RowError("wrong-type", f"label is {label!r}, expected 0 (response 1), 1 (response 2) or 2 (a tie)")
    meta = extras(row)
    if scenario := name_of(row, "scenario"):
        meta.setdefault("kind", scenario)
    winner = {0: 1, 1: 2, 2: 0}[int(label)]
    answers = (text(row, "response 1"), text(row, "response 2"))
    return _pair(row_id(row), [user(text(row, "prompt"))], answers, winner, meta)


def reward_bench(row: dict[str, Any]) -> Record:
    """{prompt, chosen, rejected, chosen_model, rejected_model, subset, id}: the subset is the row's kind, and what
    stands before its number in its id, since numbers are of a subset; meta.section is RewardBench's own."""
    record, subset = preference(row), name_of(row, "subset")
    if not subset:
        raise RowError("missing-field", "subset, which says what a row of RewardBench is about")
    meta = {**record.meta}
    meta.setdefault("kind", subset)
    if (section := _SECTION_OF.get(subset)) is not None:
        meta["section"] = section
    models = {side: name for side in ("chosen", "rejected") if (name := name_of(row, f"{side}_model"))}
    if models:
        meta["models"] = models
    return replace(record, id=f"{subset}-{record.id}" if record.id else "", meta=meta)


def ultrafeedback_binarized(row: dict[str, Any]) -> Record:
    """{prompt, prompt_id, chosen, rejected, score_chosen, score_rejected}: equal scores are a tie. Rows of one prompt
    are one group.

    Raises RowError scores-disagree where the rejected answer has the higher score.
    """
    record, scores = preference(row), [_score(row, f"score_{side}") for side in ("chosen", "rejected")]
    if scores[0] < scores[1]:
        raise RowError("scores-disagree", f"score_chosen is {scores[0]:g}, score_rejected {scores[1]:g}")
    meta = {**record.meta, "scores": {"completion": scores[0], "rejected": scores[1]}}
    if prompt := name_of(row, "prompt_id"):
        meta.setdefault("group", prompt)
    return replace(record, type="tie" if scores[0] == scores[1] else "preference", meta=meta)


def settled(record: Record, row: dict[str, Any], format: str, *, keep: bool) -> Record:
    """The record as the import wants ties: kept, with meta.votes where the file has several annotators, or not.

    A row of ours (format preference) that says `type: tie` is one.

    Raises RowError tie where they are not kept.
    """
    if is_tie(row, format):
        record = replace(record, type="tie")
    if record.type == "tie" and not keep:
        raise RowError("tie", "neither answer is preferred; `ties: keep` keeps such rows, to evaluate judges by")
    if not keep or format != "pandalm":
        return record
    # `completion` is response2 where that won.
    sides = {0: "tie", 1: "completion", 2: "rejected"}
    if record.type != "tie" and Counter(_votes(row)).most_common(1)[0][0] == 2:
        sides = {0: "tie", 1: "rejected", 2: "completion"}
    votes = {name: sides[vote] for name, vote in zip(_ANNOTATORS, _votes(row), strict=True)}
    return replace(record, meta={**record.meta, "votes": votes})


def is_tie(row: dict[str, Any], format: str) -> bool:
    """Whether a row was written as a tie by a stage of ours."""
    return format == "preference" and row.get("type") == "tie"


def _pair(id_: str, prompt: list[Message], answers: tuple[str, str], winner: int, meta: dict[str, Any]) -> Record:
    """`winner`: 1 or 2; 0 where neither is preferred."""
    first, second = answers if winner != 2 else (answers[1], answers[0])
    return Record(id_, "preference" if winner else "tie", prompt, first, second, meta=meta)


def _votes(row: dict[str, Any]) -> list[int]:
    votes = []
    for field in _ANNOTATORS:
        vote = get(row, field)
        if isinstance(vote, bool) or vote not in (0, 1, 2):
            raise RowError("wrong-type", f"{field} is {vote!r}, expected 0, 1 or 2")
        votes.append(int(vote))
    return votes


def _score(row: dict[str, Any], field: str) -> float:
    value = get(row, field)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RowError("wrong-type", f"{field} is {type(value).__name__}, expected a number")
    return float(value)
