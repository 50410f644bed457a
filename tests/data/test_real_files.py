"""Every format with a real file, through the import stage; counts against the data's own README."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from alignment.data.import_data import import_data
from alignment.data.overlap import find_overlap
from tests.data.written import bad_of, rows_of

QA = {"prompt": "question", "completion": "answer"}
FILES = {
    "qa/xquad.en.json": ("squad", {}, "prompt-completion"),
    "qa/xquad.zh.json": ("squad", {}, "prompt-completion"),
    "qa/boolq_validation.jsonl": ("boolq", {}, "prompt-completion"),
    "qa/drop_contrast_test.json": ("drop", {}, "prompt-completion"),
    "qa/hotpot_distractor_60.json": ("hotpotqa", {}, "prompt-completion"),
    "qa/truthfulqa.csv": ("columns", {"prompt": "Question", "completion": "Best Answer"}, "prompt-completion"),
    "preferences/dpo_en_demo.json": ("sharegpt-preference", {}, "preference"),
    "preferences/dpo_zh_demo.json": ("sharegpt-preference", {}, "preference"),
    "preferences/kto_en_demo.json": ("unpaired", {}, "unpaired"),
    "preferences/hh_harmless_1400.jsonl": ("hh-transcript", {}, "preference"),
    "preferences/pandalm_testset_v1.json": ("pandalm", {}, "preference"),
    "instruct/alpaca_en_999.json": ("alpaca", {}, "prompt-completion"),
    "instruct/alpaca_zh_1000.json": ("alpaca", {}, "prompt-completion"),
    "reasoning/gsm8k_train_3000.jsonl": ("columns", QA, "prompt-completion"),
}
EXPECTED_BAD = {  # what a look at the files found; everything else must come in
    "qa/boolq_validation.jsonl": {},
    "qa/hotpot_distractor_60.json": {},
    "qa/truthfulqa.csv": {},
    "preferences/kto_en_demo.json": {},
    "preferences/hh_harmless_1400.jsonl": {"empty-answer": 4, "prompts-differ": 1},
    "reasoning/gsm8k_train_3000.jsonl": {},
}


@pytest.mark.parametrize("name", FILES)
def test_every_row_is_accounted_for_and_no_text_crosses_the_split(name, real_data, readme_rows, context_of):
    format, columns, type = FILES[name]
    context = context_of({"data": [{"path": str(real_data / name), "format": format, "columns": columns}],
                          "split": {"by": "ratio", "ratios": {"train": 0.8, "test": 0.2}}, "max_bad": None})
    outcome = import_data(context)
    train, test, bad = rows_of(context, "train"), rows_of(context, "test"), bad_of(context)
    assert outcome.rows.read == readme_rows[Path(name).name] == len(train) + len(test) + len(bad)
    assert outcome.rows.written == {"train": len(train), "test": len(test)}
    assert outcome.rows.dropped == Counter(row["reason"].partition(":")[0] for row in bad)
    if name in EXPECTED_BAD:
        assert outcome.rows.dropped == EXPECTED_BAD[name]
    elif format != "pandalm":
        assert set(outcome.rows.dropped) <= {"duplicate-row"}
    assert {row.type for row in train + test} == {type}
    assert len({row.id for row in train + test}) == len(train + test)
    assert all(row.prompt[-1]["role"] in ("user", "tool") and row.completion.strip() for row in train + test)
    # Ratios are met within one piece; the largest (a DROP passage with its near-copies) is far under 5 %.
    assert abs(len(test) / len(train + test) - 0.2) < 0.05
    assert find_overlap(test, train) == {} == find_overlap(train, test)
    assert outcome.facts["cross_split_overlap"] == {}


def test_pandalm_ties_and_majorities_are_those_of_the_file(real_data, context_of):
    path = real_data / "preferences/pandalm_testset_v1.json"
    context = context_of({"data": [{"path": str(path), "format": "pandalm"}], "max_bad": None,
                          "split": {"by": "ratio", "ratios": {"all": 1.0}}})
    outcome = import_data(context)
    raw = {f"pandalm-testset-v1-{row['idx']}": row for row in json.loads(path.read_text(encoding="utf-8"))}
    votes = {key: Counter(row[f"annotator{n}"] for n in (1, 2, 3)) for key, row in raw.items()}
    assert outcome.rows.dropped["tie"] == sum(v[0] >= 2 for v in votes.values()) > 0
    assert outcome.rows.dropped.get("annotators-disagree", 0) == sum(len(v) == 3 for v in votes.values())
    for record in rows_of(context, "all"):
        winner = 1 if votes[record.id][1] >= 2 else 2
        assert record.completion == raw[record.id][f"response{winner}"]
        assert record.rejected == raw[record.id][f"response{3 - winner}"]
        assert record.meta["agreement"] == ("unanimous" if len(votes[record.id]) == 1 else "majority")


def test_pandalm_ties_are_kept_where_the_stage_says_so_with_every_vote(real_data, context_of):
    path = real_data / "preferences/pandalm_testset_v1.json"
    context = context_of({"data": [{"path": str(path), "format": "pandalm"}], "ties": "keep", "max_bad": None,
                          "split": {"by": "ratio", "ratios": {"all": 1.0}}})
    outcome = import_data(context)
    raw = {f"pandalm-testset-v1-{row['idx']}": row for row in json.loads(path.read_text(encoding="utf-8"))}
    rows = rows_of(context, "all")
    assert outcome.rows.dropped == {"duplicate-row": 100, "empty-answer": 54, "wrong-type": 6}
    assert Counter(row.type for row in rows) == {"preference": 760, "tie": 79}
    for row in rows:
        texts = {"completion": row.completion, "rejected": row.rejected, "tie": None}
        wanted = {0: None, 1: raw[row.id]["response1"], 2: raw[row.id]["response2"]}
        assert [texts[side] for side in row.meta["votes"].values()] == [
            wanted[raw[row.id][f"annotator{n}"]] for n in (1, 2, 3)]


def test_hh_transcripts_lose_no_text(real_data, context_of):
    path = real_data / "preferences/hh_harmless_1400.jsonl"
    context = context_of({"data": [{"path": str(path), "format": "hh-transcript", "name": "hh"}], "max_bad": None,
                          "split": {"by": "ratio", "ratios": {"all": 1.0}}})
    import_data(context)
    raw = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    speakers = {"user": "\n\nHuman:", "assistant": "\n\nAssistant:"}
    for record in rows_of(context, "all"):
        row = raw[int(record.id.removeprefix("hh-")) - 1]
        for field, answer in (("chosen", record.completion), ("rejected", record.rejected)):
            text = "".join(f"{speakers[turn['role']]} {turn['content']}" for turn in record.prompt)
            assert (text + "\n\nAssistant: " + answer).split() == row[field].split()


def test_squad_answers_are_in_their_passage_and_boolq_says_yes_or_no(real_data, context_of):
    context = context_of({"data": [{"path": str(real_data / "qa/xquad.en.json"), "format": "squad"},
                                   {"path": str(real_data / "qa/boolq_validation.jsonl"), "format": "boolq"}],
                          "system": "Answer from the passage.", "passage_prompt": "Q: {question}\nP: {passage}",
                          "split": {"by": "ratio", "ratios": {"all": 1.0}}})
    outcome = import_data(context)
    for record in rows_of(context, "all"):
        assert record.prompt[0] == {"role": "system", "content": "Answer from the passage."}
        assert record.prompt[1]["content"] == f"Q: {record.meta['question']}\nP: {record.meta['passage']}"
        if record.meta["kind"] == "extractive":
            assert record.completion in record.meta["passage"]
        else:
            assert record.completion in ("Yes", "No")
    assert outcome.facts["kinds"] == {"extractive": 1188, "yes-no": 3270}
    assert outcome.facts["sources"]["xquad"]["read"] == 1190


def test_t0_rows_about_one_text_stay_together(real_data, context_of):
    """The hard case: the same review in many templates, hundreds of rows that overlap others."""
    path = real_data / "instruct/t0_p3_5k.jsonl"
    context = context_of({"data": [{"path": str(path), "format": "prompt-completion", "take": 1500}],
                          "split": {"by": "ratio", "ratios": {"train": 0.8, "test": 0.2}}})
    outcome = import_data(context)
    train, test = rows_of(context, "train"), rows_of(context, "test")
    assert outcome.rows.read == 4979
    assert len(train) + len(test) == 1500
    assert find_overlap(test, train) == {}
