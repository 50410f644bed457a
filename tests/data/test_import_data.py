"""The import stage: every reason for a bad row, draws, splits, errors, files it leaves."""

from __future__ import annotations

import gc
import json
import tracemalloc
from pathlib import Path

import fsspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alignment.artifacts import Store
from alignment.config import ImportData, parse_run
from alignment.context import StageContext
from alignment.data.import_data import import_data
from alignment.data.read import divided, drawn, source_names
from alignment.errors import ConfigErrors, DataError
from alignment.records import Record
from tests.data.written import bad_of, rows_of

RUN = parse_run("name: r\nstages: [{name: b, kind: import, model: {source: tiny}}]")
ALL = {"by": "ratio", "ratios": {"all": 1.0}}
TURNS = [{"role": "user", "content": "Name a colour of the sky."}, {"role": "assistant", "content": "Blue."}]
GOOD = {
    "messages": {"messages": TURNS},
    "prompt-completion": {"prompt": "Name a colour.", "completion": "Red."},
    "preference": {"prompt": TURNS[:1], "chosen": TURNS[1:], "rejected": "Green."},
    "unpaired": {"prompt": "Name a colour.", "completion": "Red.", "label": False},
    "prompt-only": {"prompt": "Name a colour."},
    "passage-qa": {"id": 7, "group": "g", "passage": "The sky is {blue}.", "question": "Which {passage}?",
                   "answer": "Blue", "type": "open"},
    "alpaca": {"instruction": "Add.", "input": "1 and 2", "output": "3"},
    "sharegpt": {"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi."}]},
    "sharegpt-preference": {"conversations": [{"from": "human", "value": "Hello"}],
                            "chosen": {"from": "gpt", "value": "Hi."}, "rejected": {"from": "gpt", "value": "No."}},
    "hh-transcript": {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello.", "rejected": "\n\nHuman: Hi\n\nAssistant: No."},
    "pandalm": {"idx": 3, "instruction": "Add.", "input": "", "response1": "3", "response2": "4", "annotator1": 2,
                "annotator2": 2, "annotator3": 1},
    "boolq": {"question": "is it blue", "passage": "It is blue.", "answer": True},
    "hotpotqa": {"_id": "h", "question": "Who?", "answer": "Ann", "type": "bridge",
                 "context": [["Ann", ["Ann sang. ", "Often."]], ["Bob", ["Bob ran."]]]},
    "musique": {"id": "2hop__1_2", "question": "Who?", "answer": "Ann", "answer_aliases": ["Anna"], "answerable": True,
                "paragraphs": [{"title": "Ann", "paragraph_text": "Ann sang."}]},
    "stack-exchange-paired": {"qid": 5, "question": "How?", "response_j": "So.", "response_k": "Not so."},
    "votes": {"messages": TURNS[:1], "chosen": TURNS[1], "rejected": {"role": "assistant", "content": "Green."},
              "models": {"a": "dpo", "b": "base"}, "vote": "a"},
}
SQUAD = {"data": [{"paragraphs": [{"context": "Ann sang.", "qas": [
    {"id": "a", "question": "Who?", "answers": [{"text": "Ann"}, {"text": "Ann"}, {"text": "she"}]},
    {"id": "b", "question": "Who ran?", "answers": [], "is_impossible": True}]}]}]}
DROP = {"p1": {"passage": "Ann sang twice on 3 May 1900.", "qa_pairs": [
    {"query_id": "n", "question": "How often?", "answer": {"number": "2", "spans": [], "date": {}}},
    {"query_id": "s", "question": "Who and what?", "answer": {"number": "", "spans": ["Ann", "song"], "date": {}}},
    {"query_id": "d", "question": "When?",
     "answer": {"number": "", "spans": [], "date": {"day": "3", "month": "May", "year": ""}}}]}}


def one(context_of, path, format, **stage):
    source = {"path": path, "format": format, "name": "s"}
    context = context_of({"data": [source], "split": ALL, "max_bad": None, **stage})
    return context, import_data(context)


@pytest.mark.parametrize("format", GOOD)
def test_a_good_row_comes_in(format, context_of, write_rows):
    context, outcome = one(context_of, write_rows([GOOD[format]]), format, system="Be brief.")
    [record] = rows_of(context, "all")
    assert bad_of(context) == []
    assert outcome.rows.read == 1
    assert record.conversation()[0] == {"role": "system", "content": "Be brief."}
    assert record.meta["source"] == "s"


def test_what_becomes_of_the_fields(context_of, write_rows):
    def record(format, row=None):
        context, _ = one(context_of, write_rows([row or GOOD[format]]), format)
        return rows_of(context, "all")[0]

    assert record("preference").conversation() == TURNS
    assert record("preference").rejected == "Green."
    whole = {"chosen": TURNS, "rejected": [TURNS[0], {"role": "assistant", "content": "Pink."}]}
    assert (record("preference", whole).prompt, record("preference", whole).rejected) == (TURNS[:1], "Pink.")
    repeated = {"prompt": TURNS[0]["content"], **whole}
    assert record("preference", repeated).prompt == TURNS[:1]
    assert record("unpaired").label is False
    assert record("alpaca").prompt[0]["content"] == "Add.\n\n1 and 2"
    pandalm = record("pandalm")
    assert (pandalm.id, pandalm.completion, pandalm.rejected) == ("s-3", "4", "3")
    assert pandalm.meta["agreement"] == "majority"
    assert record("boolq").completion == "Yes"
    assert record("hotpotqa").meta["passage"] == "Ann: Ann sang. Often.\n\nBob: Bob ran."
    musique = record("musique")
    assert (musique.meta["kind"], musique.meta["references"]) == ("2hop", ["Ann", "Anna"])
    assert record("musique", {**GOOD["musique"], "answerable": False}).type == "prompt-only"
    assert record("stack-exchange-paired").meta["group"] == "5"
    qa = record("passage-qa")
    assert qa.prompt[0]["content"] == "The sky is {blue}.\n\nWhich {passage}?"
    assert (qa.id, qa.meta["group"], qa.meta["kind"]) == ("s-7", "g", "open")
    pair = record("passage-qa", {**GOOD["passage-qa"], "rejected": "Red"})
    assert (pair.type, pair.completion, pair.rejected) == ("preference", "Blue", "Red")


def test_nested_files(context_of, write_rows):
    context, _ = one(context_of, write_rows([SQUAD], "squad.json"), "squad")
    answered, impossible = rows_of(context, "all")
    assert (answered.id, answered.completion, answered.meta["references"]) == ("s-a", "Ann", ["Ann", "she"])
    assert (impossible.type, impossible.meta["kind"]) == ("prompt-only", "unanswerable")
    assert impossible.meta["references"] == []
    assert answered.meta["group"] == impossible.meta["group"]
    context, outcome = one(context_of, write_rows([DROP], "drop.json"), "drop")
    assert [row.completion for row in rows_of(context, "all")] == ["2", "Ann, song", "3 May"]
    assert outcome.facts["kinds"] == {"number": 1, "spans": 1, "date": 1}


@pytest.mark.parametrize("format", ["alpaca", "reward-bench"])
def test_ties_are_not_asked_of_files_that_have_none(format):
    stage = {"kind": "import", "name": "seed", "data": [{"path": "a", "format": format}], "split": ALL, "ties": "keep"}
    with pytest.raises(ConfigErrors, match="no source has rows that may be ties"):
        parse_run(json.dumps({"name": "r", "stages": [stage]}))


def test_a_run_may_name_the_answer_of_unanswerable_questions(context_of, tmp_path):
    path = tmp_path / "squad.json"
    path.write_text(json.dumps(SQUAD))
    context, outcome = one(context_of, str(path), "squad", unanswerable="The passage does not say.")
    answered, impossible = rows_of(context, "all")
    assert (impossible.type, impossible.completion) == ("prompt-completion", "The passage does not say.")
    assert impossible.meta["references"] == ["The passage does not say."]
    assert answered.completion == "Ann"
    assert outcome.facts["kinds"] == {"extractive": 1, "unanswerable": 1}


@pytest.mark.parametrize(("format", "text", "problem"), [
    ("alpaca", "No.", "no source has questions that are marked"), ("squad", "  ", "an answer without text")])
def test_an_answer_that_nothing_asks_for_is_refused(format, text, problem):
    source = {"path": "a", "format": format}
    stage = {"kind": "import", "name": "seed", "data": [source], "split": ALL, "unanswerable": text}
    with pytest.raises(ConfigErrors, match=problem):
        parse_run(json.dumps({"name": "r", "stages": [stage]}))


SURROGATE = '{"prompt": "Say \\ud800", "completion": "x"}'
BAD = [
    ("prompt-completion", {"prompt": " ", "completion": "x"}, "empty-prompt"),
    ("prompt-completion", {"prompt": "x", "completion": "\n"}, "empty-answer"),
    ("prompt-completion", {"prompt": "x"}, "missing-field"),
    ("prompt-completion", {"prompt": "x", "completion": None}, "missing-field"),
    ("prompt-completion", {"prompt": "x", "completion": 3}, "wrong-type"),
    ("prompt-completion", ["x", "y"], "wrong-type"),
    ("prompt-completion", {"id": [1], "prompt": "x", "completion": "y"}, "wrong-type"),
    ("prompt-completion", {"prompt": "x", "completion": []}, "empty-answer"),
    ("prompt-completion", {"prompt": [{"role": "oracle", "content": "x"}], "completion": "y"}, "unknown-role"),
    ("prompt-completion", {"prompt": TURNS, "completion": "y"}, "prompt-not-from-user"),
    ("prompt-completion", {"prompt": [*TURNS, {"role": "system", "content": "s"}, TURNS[0]], "completion": "y"},
     "misplaced-system"),
    ("prompt-completion", {"prompt": [{"role": "user", "content": ""}, *TURNS[1:], TURNS[0]], "completion": "y"},
     "empty-message"),
    ("prompt-completion", '{"prompt": "x", "completion": ', "broken-json"),
    ("prompt-completion", "[" * 100_000, "broken-json"),
    ("prompt-completion", SURROGATE, "broken-text"),
    ("messages", {"messages": TURNS[:1]}, "last-not-assistant"),
    ("messages", {"messages": []}, "empty-prompt"),
    ("messages", {"messages": [{"role": "user", "content": ["x"]}]}, "wrong-type"),
    ("preference", {"prompt": "x", "chosen": " a b", "rejected": "a b\n"}, "chosen-equals-rejected"),
    ("preference", {"prompt": "x", "chosen": TURNS, "rejected": [{"role": "user", "content": "z"}, TURNS[1]]},
     "prompts-differ"),
    ("preference", {"prompt": "x", "chosen": TURNS[:1], "rejected": "y"}, "last-not-assistant"),
    ("unpaired", {"prompt": "x", "completion": "y", "label": "good"}, "wrong-type"),
    ("passage-qa", {"passage": "", "question": "x", "answer": "y"}, "empty-prompt"),
    ("sharegpt", {"conversations": [{"from": "narrator", "value": "x"}]}, "unknown-role"),
    ("hh-transcript", {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: z\n\nAssistant: c"},
     "prompts-differ"),
    ("hh-transcript", {"chosen": "no turns", "rejected": "\n\nHuman: z\n\nAssistant: c"}, "broken-transcript"),
    ("hh-transcript", {"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: a"}, "last-not-assistant"),
    ("pandalm", {**GOOD["pandalm"], "idx": 4, "annotator1": 0}, "annotators-disagree"),
    ("pandalm", {**GOOD["pandalm"], "idx": 4, "annotator1": 0, "annotator2": 0}, "tie"),
    ("pandalm", {**GOOD["pandalm"], "idx": 4, "annotator1": 9}, "wrong-type"),
    ("boolq", {"question": "is it", "passage": "It is.", "answer": "yes"}, "wrong-type"),
    ("hotpotqa", {**GOOD["hotpotqa"], "context": ["Ann"]}, "wrong-type"),
    ("hotpotqa", {**GOOD["hotpotqa"], "context": {"title": 3, "sentences": [["x"]]}}, "wrong-type"),
]


@pytest.mark.parametrize(("format", "bad", "slug"), BAD, ids=[f"{f}-{s}-{i}" for i, (f, _, s) in enumerate(BAD)])
def test_a_bad_row_is_kept_with_its_reason(format, bad, slug, context_of, write_rows):
    context, outcome = one(context_of, write_rows([GOOD[format], bad]), format)
    [kept] = bad_of(context)
    assert kept["reason"].partition(":")[0] == slug
    assert (kept["source"], kept["row"]) == ("s", 2)
    assert kept["raw"] == (bad if isinstance(bad, str) else json.dumps(bad, ensure_ascii=False))[:2000]
    assert outcome.rows.dropped == {slug: 1}
    assert len(rows_of(context, "all")) == 1


def test_duplicates_are_kept_once_also_across_sources(context_of, write_rows):
    row, other = {"id": "1", "prompt": "x", "completion": "y"}, {"id": "1", "prompt": "x", "completion": "z"}
    sources = [{"path": write_rows(rows, f"{name}.jsonl"), "format": "prompt-completion"}
               for name, rows in (("a", [row, other, {**row, "id": "2"}]), ("b", [row]))]
    context = context_of({"data": sources, "split": ALL, "max_bad": None})
    outcome = import_data(context)
    assert outcome.rows.dropped == {"duplicate-id": 1, "duplicate-row": 2}
    assert [row.id for row in rows_of(context, "all")] == ["a-1"]
    assert "a-1" in bad_of(context)[-1]["reason"]


def test_broken_nested_pieces_are_bad_rows(context_of, write_rows):
    squad = json.loads(json.dumps(SQUAD))
    squad["data"] += [{"title": "no paragraphs"}, "text"]
    squad["data"][0]["paragraphs"] += [{"context": "Bob ran."}, {"qas": [{"id": "c", "question": "x", "answers": []}]}]
    _, outcome = one(context_of, write_rows([squad], "squad.json"), "squad")
    assert outcome.rows.read == 6
    assert outcome.rows.dropped == {"missing-field": 2, "empty-answer": 1, "wrong-type": 1}


def test_lines_end_at_newlines_only_and_a_bad_encoding_costs_one_row(context_of, tmp_path):
    rows = ['{"prompt": "a\u2028b", "completion": "c\x85d"}'.encode(), b'{"prompt": "\xff", "completion": "x"}', b"",
            b'{"prompt": "e", "completion": "f"}\r']
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\n".join(rows))
    context, _ = one(context_of, str(path), "prompt-completion")
    first, last = rows_of(context, "all")
    assert (first.prompt[0]["content"], first.completion, last.id) == ("a\u2028b", "c\x85d", "s-4")
    [bad] = bad_of(context)
    assert (bad["row"], bad["reason"].partition(":")[0]) == (2, "broken-encoding")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_row_is_lost_whatever_is_broken(data, tmp_path_factory):
    """Random bytes are put into random lines of a good file: read == written + bad, line for line."""
    lines = [json.dumps({"prompt": f"question {i}", "completion": f"answer {i}"}).encode() for i in range(8)]
    for index in data.draw(st.lists(st.integers(0, 7), max_size=6)):
        place = data.draw(st.integers(0, len(lines[index])))
        noise = data.draw(st.binary(min_size=1, max_size=5)).replace(b"\n", b"?")
        lines[index] = lines[index][:place] + noise + lines[index][place + data.draw(st.integers(0, 20)):]
    lines.append(b'{"prompt": "always good", "completion": "yes"}')
    folder = tmp_path_factory.mktemp("noise")
    (folder / "rows.jsonl").write_bytes(b"\n".join(lines))
    run = parse_run(json.dumps({"name": "test", "store": str(folder / "store"), "stages": [
        {"kind": "import", "name": "seed", "split": ALL, "max_bad": None,
         "data": [{"path": str(folder / "rows.jsonl"), "format": "prompt-completion", "name": "s"}]}]}))
    context = StageContext(run, run.stages[0], Store(run.store), "seed-0", "0", {}, folder / "work")
    outcome = import_data(context)
    good = [int(row.id.removeprefix("s-")) for row in rows_of(context, "all")]
    bad = [row["row"] for row in bad_of(context)]
    assert sorted(good + bad) == [number for number, line in enumerate(lines, 1) if line.strip()]
    assert outcome.rows.read == len(good) + len(bad)


@pytest.mark.parametrize(("name", "content", "problem"), [
    ("a.jsonl", "", "empty"), ("a.json", " \n", "empty"), ("a.json", "[]", "no rows"), ("a.csv", "prompt\n", "no rows"),
    ("a.json", '[{"prompt": "x"},\n {"prompt" "y"}]', "not valid JSON"), ("a.json", '{\n"rows":\n1\n}', "wrong shape"),
    ("a.parquet", "PAR1 nothing", "not a Parquet file"),
])  # fmt: skip
def test_a_file_that_cannot_be_used_is_an_error(name, content, problem, context_of, tmp_path):
    (tmp_path / name).write_text(content)
    context = context_of({"split": ALL, "data": [{"path": str(tmp_path / name), "format": "columns",
                                                 "columns": {"prompt": "prompt"}}]})
    with pytest.raises(DataError, match=problem) as caught:
        import_data(context)
    assert name in caught.value.where


@pytest.mark.parametrize(("format", "content"), [("squad", "[1]"), ("squad", '{"data": 3}'), ("drop", '{"data": []}'),
                                                 ("drop", "[]"), ("squad", '{"data": []}')])
def test_a_nested_file_of_another_shape_is_an_error(format, content, context_of, tmp_path):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(DataError):
        one(context_of, str(tmp_path / "x.json"), format)


def test_files_come_from_any_file_system_and_packed(context_of):
    with fsspec.open("memory://bucket/rows.jsonl.gz", "wb", compression="infer") as file:
        file.write(json.dumps(GOOD["alpaca"]).encode())
    context, _ = one(context_of, "memory://bucket/rows.jsonl.gz", "alpaca")
    assert rows_of(context, "all")[0].completion == "3"
    with pytest.raises(DataError, match="cannot be read"):
        one(context_of, "nosuchprotocol://bucket/rows.jsonl", "alpaca")


def test_a_missing_file_names_its_path(context_of, tmp_path):
    with pytest.raises(DataError, match="cannot be read") as caught:
        one(context_of, str(tmp_path / "nowhere.jsonl"), "alpaca")
    assert caught.value.where.endswith("nowhere.jsonl")


def columns(context_of, path, mapping, **stage):
    context = context_of({"data": [{"path": path, "format": "columns", "columns": mapping, "name": "s"}], "split": ALL,
                          "max_bad": None, **stage})
    import_data(context)
    return context


def test_columns_of_csv_parquet_and_json_lines(context_of, tmp_path, write_rows):
    mapping = {"id": "key", "prompt": "q", "completion": "a", "label": "ok"}
    (tmp_path / "t.csv").write_text('key,q,a,ok\n1,"two\nlines, ""quoted""",yes,true\n2,short\n3,"x"y,z,0\n4,b,c,0\n')
    context = columns(context_of, str(tmp_path / "t.csv"), mapping)
    first, last = rows_of(context, "all")
    assert (first.id, first.prompt[0]["content"], first.label) == ("s-1", 'two\nlines, "quoted"', True)
    assert (last.id, last.label) == ("s-4", False)
    assert [(row["row"], row["reason"].split(":")[0], row["raw"]) for row in bad_of(context)] == [
        (4, "wrong-columns", "2,short\n"), (5, "broken-csv", '3,"x"y,z,0\n')]
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    table = {"key": [1, 2], "q": ["x", None], "a": [42, 7], "ok": [True, False]}
    parquet.write_table(pyarrow.table(table), tmp_path / "t.parquet")
    context = columns(context_of, str(tmp_path / "t.parquet"), mapping)
    assert [(row.id, row.completion) for row in rows_of(context, "all")] == [("s-1", "42")]
    assert bad_of(context)[0]["reason"].startswith("missing-field: prompt")
    context = columns(context_of, write_rows([{"q": "x", "a": "y"}]), {"prompt": "q", "chosen": "a", "rejected": "q"})
    assert rows_of(context, "all")[0].type == "preference"


def test_an_open_quote_is_an_error_with_its_line(context_of, tmp_path):
    (tmp_path / "t.csv").write_text('q\nfine\n"never closed\nmore\n')
    with pytest.raises(DataError, match="not valid CSV") as caught:
        columns(context_of, str(tmp_path / "t.csv"), {"prompt": "q"})
    assert caught.value.where.endswith("t.csv:3")


def test_missing_columns_are_one_error(context_of, write_rows):
    path = write_rows([{"q": "x", "part": "train"}])
    with pytest.raises(DataError) as caught:
        columns(context_of, path, {"prompt": "question", "completion": "answer"})
    assert "question, answer" in caught.value.problem
    assert caught.value.found == ["q", "part"]
    with pytest.raises(DataError, match="make no row type") as caught:
        columns(context_of, path, {"prompt": "q", "rejected": "q"})
    assert caught.value.found == ["prompt", "rejected"]


def test_splits_by_field(context_of, write_rows):
    rows = [{"prompt": f"unlike {word}", "completion": "x", "part": part}
            for word, part in (("one", "train"), ("two", "dev"), ("three", "trian"), ("four", None))]
    split = {"by": "field", "field": "part", "names": ["train", "dev"]}
    context, outcome = one(context_of, write_rows(rows), "prompt-completion", split=split)
    assert outcome.rows.written == {"train": 1, "dev": 1}
    assert [row["reason"].partition(":")[0] for row in bad_of(context)] == ["unknown-split", "missing-field"]
    context = columns(context_of, write_rows(rows), {"prompt": "prompt", "completion": "completion"}, split=split)
    assert rows_of(context, "dev")[0].prompt[0]["content"] == "unlike two"


@given(st.permutations([("train", 0.6), ("dev", 0.2), ("test", 0.1), ("rest", 0.1)]))
@settings(deadline=None)
def test_in_which_order_ratios_are_written_changes_no_split(order):
    """Programs between a run file and its stage sort the keys of mappings, Kubernetes for one."""
    def cut(pairs):
        split = {"by": "ratio", "ratios": dict(pairs)}
        stage = ImportData.model_validate({"name": "data", "data": ({"path": "x.jsonl", "format": "alpaca"},),
                                           "split": split})
        records = [Record(str(number), "prompt-only", [{"role": "user", "content": f"Number {number}?"}])
                   for number in range(50)]
        splits, _ = divided(RUN, stage, records)
        return {name: [record.id for record in rows] for name, rows in splits.items()}

    assert cut(order) == cut(sorted(order))


def test_overlap_across_field_splits_is_counted_and_told(context_of, write_rows):
    passage = "The ship left the harbour at dawn and nobody on board had slept for two whole days."
    rows = [{"id": part, "passage": passage, "question": f"What of {part}?", "answer": "x", "split": part}
            for part in ("train", "test")]
    split = {"by": "field", "names": ["train", "test"]}
    context, outcome = one(context_of, write_rows(rows), "passage-qa", split=split)
    assert outcome.facts["cross_split_overlap"] == {"same-passage": 1}
    events = [json.loads(line) for line in context.events.read_text().splitlines()]
    [event] = [event for event in events if event["event"] == "cross_split_overlap"]
    assert event["examples"] == [{"row": "s-test", "seen": "s-train", "reason": "same-passage"}]
    assert {event["event"] for event in events} == {"source", "examples", "cross_split_overlap"}


def test_too_many_bad_rows_stop_the_stage_and_are_left_to_look_at(context_of, write_rows):
    path = write_rows([{"prompt": "x", "completion": "y"}, *[{"prompt": f"{i}"} for i in range(4)]])
    with pytest.raises(DataError) as caught:
        one(context_of, path, "prompt-completion", max_bad=0.5)
    assert "4 of 5 rows are bad" in caught.value.problem
    assert caught.value.found.count("missing-field: completion") == 3
    left = Path(caught.value.hint.split("rows are in ")[1].split(";")[0])
    assert len(left.read_text().splitlines()) == 4
    one(context_of, path, "prompt-completion", max_bad=0.8)


def test_an_empty_split_is_an_error_with_counts(context_of, write_rows):
    path = write_rows([{"prompt": "x", "completion": "y", "split": "train"}])
    with pytest.raises(DataError, match="split dev has no rows") as caught:
        one(context_of, path, "prompt-completion", split={"by": "field", "names": ["train", "dev"]})
    assert "'train': 1, 'dev': 0" in caught.value.found


def test_a_passage_prompt_without_its_fields_is_an_error(context_of, write_rows):
    with pytest.raises(DataError, match=r"lacks \{passage\}"):
        one(context_of, write_rows([GOOD["boolq"]]), "boolq", passage_prompt="{question}")


def test_take_follows_scale_and_seed(context_of, write_rows):
    path = write_rows([{"prompt": f"say {i}", "completion": "x"} for i in range(100)])

    def taken(**run):
        context = context_of({"data": [{"path": path, "format": "prompt-completion", "take": 20}], "split": ALL}, **run)
        outcome = import_data(context)
        rows = [int(row.id.rpartition("-")[2]) for row in rows_of(context, "all")]
        assert outcome.rows.dropped == {"not-taken": 100 - len(rows)}
        assert outcome.metrics["rows_all"] == len(rows)
        assert rows == sorted(rows)
        return rows

    assert taken() == taken()
    assert len(taken()) == 20
    assert taken() != taken(seed=1)
    assert set(taken()) < set(taken(scale=2.0))
    assert len(taken(scale=2.0)) == 40


def test_a_stage_that_is_called_again_leaves_the_same_rows(context_of, write_rows):
    context, first = one(context_of, write_rows([GOOD["alpaca"], {}]), "alpaca")
    rows = (context.out / "rows" / "all.jsonl").read_bytes(), (context.out / "bad.jsonl").read_bytes()
    assert import_data(context) == first
    assert rows == ((context.out / "rows" / "all.jsonl").read_bytes(), (context.out / "bad.jsonl").read_bytes())


def test_two_files_of_one_name_get_names_of_their_own(context_of):
    stage = context_of({"split": ALL, "data": [{"path": p, "format": "alpaca"} for p in (
        "a/Train Set.json", "s3://b/train_set.jsonl.gz", "x/数据.json")]}).stage
    assert source_names(stage.data) == ["train-set", "train-set-2", "rows"]


def test_a_smaller_draw_is_part_of_a_larger_one():
    assert drawn(50, None, 0, "s") is None is drawn(50, 50, 0, "s")
    small, large = drawn(50, 5, 0, "s"), drawn(50, 30, 0, "s")
    assert len(set(small)) == 5
    assert set(small) < set(large) < set(range(50))


def test_keys_that_nothing_reads_are_in_the_manifest_by_source(context_of, write_rows):
    rows = [{**GOOD["prompt-completion"], "prompt": f"Say {n}.", "score": n} for n in range(3)]
    plain = write_rows([GOOD["alpaca"]], "plain.jsonl")
    context = context_of({"data": [{"path": write_rows(rows), "format": "prompt-completion"},
                                   {"path": plain, "format": "alpaca"}], "split": ALL})
    sources = import_data(context).facts["sources"]
    assert sources["rows"]["unread"] == {"score": 3}
    assert "unread" not in sources["plain"]


def test_rows_without_a_group_are_no_group(context_of, tmp_path):
    lines = [f"{'t1' if n < 2 else ''},Where is berth {n} of the harbour?,By lamp {n}." for n in range(40)]
    (tmp_path / "rows.csv").write_text("\n".join(["thread,q,a", *lines]) + "\n")
    columns = {"prompt": "q", "completion": "a", "group": "thread"}
    context = context_of({"data": [{"path": str(tmp_path / "rows.csv"), "format": "columns", "columns": columns}],
                          "split": {"by": "ratio", "ratios": {"train": 0.5, "test": 0.5}}})
    assert import_data(context).rows.written == {"train": 20, "test": 20}


def test_an_import_holds_numbers_and_no_rows(context_of, write_rows):
    """Rows of 20,000 letters: more of them take less than a quarter of what they hold."""
    def peak(count):
        path = write_rows([{"prompt": f"say {number} to {number}", "completion": "x" * 20_000}
                           for number in range(count)])
        context = context_of({"data": [{"path": path, "format": "prompt-completion"}],
                              "split": {"by": "ratio", "ratios": {"train": 0.9, "test": 0.1}}})
        gc.collect()
        tracemalloc.start()
        import_data(context)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(100)  # what is made once
    few, many = peak(150), peak(500)
    assert many - few < 350 * 5_000
