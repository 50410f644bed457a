"""Stages of document_qa: rows with passage, question, answer and origin; going on after an interruption; refusals;
teachers behind an endpoint."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.artifacts import Artifact, Store
from alignment.config import Run, parse_run
from alignment.distributed.generate import shared
from alignment.errors import ConfigErrors, DataError, StageError
from alignment.inference.endpoint import generator
from alignment.inference.requests import Request
from alignment.pipeline import execute, keys
from alignment.records import read_records
from tests import small
from tests.endpoint_server import Asked, Reply, answer, endpoint, error, teacher
from tests.generation.scripted import NOUNS, VERBS, Scripted
from tests.inference.test_endpoint import Passing

GEN: dict[str, Any] = {"name": "gen", "kind": "generate", "recipe": "document_qa", "teacher": "base",
                       "passages": ["docs/train"], "take": 12, "rounds": 6, "questions_per_request": 2, "batch_size": 2}


def docs(folder: Path, count: int = 5) -> dict[str, Any]:
    """An import of a small document each for `count` invented towns."""
    (folder / "docs").mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / "docs" / f"d{number}.txt").write_text(
            f"Town {number} lies by a {NOUNS[number]}. Its mayor likes to {VERBS[number].lower()} on Mondays and rests "
            f"in the {NOUNS[-number - 1]} on Sundays.\n")
    return {"name": "docs", "kind": "import", "documents": [{"path": str(folder / "docs")}]}


def run_of(folder: Path, *stages: dict[str, Any], **gen: Any) -> Run:
    return parse_run(yaml.safe_dump({
        "name": "asked", "seed": 3, "store": str(folder / "store"), "compute": {"dtype": "float32", "device": "cpu"},
        "stages": [small.BASE, docs(folder), {**GEN, **gen}, *stages]}, sort_keys=False))


def said(text: str, name: str) -> tuple[str, bool]:
    """Two questions of the branch that is asked for, or an answer; a function of prompt and name."""
    if "numbered from" in text:
        number = int(re.findall(r"numbered from (\d+) on", text)[0])
        draw = random.Random(f"{text}/{name}")

        def question(judged: bool) -> str:
            noun, other, mark = draw.choice(NOUNS), draw.choice(NOUNS), draw.getrandbits(40)
            verb = draw.choice(VERBS).lower()
            return (f"Did somebody {verb} the {noun} {mark} near {other} {mark + 1}?" if judged else
                    f"Who will {verb} every {noun} {mark} beside {other} {mark + 1}?")

        judged = "new yes/no questions" in text
        return f"{question(judged)}\n{number + 1}. {question(judged)}", True
    if "Begin with Yes or No" in text:
        return "Yes, the town lies by it.", True
    return "The mayor of the town", True


def good(request: Request) -> tuple[str, bool]:
    return said(request.prompt[-1]["content"], request.id)


def by(monkeypatch: pytest.MonkeyPatch, engine: Scripted) -> Scripted:
    monkeypatch.setattr(shared, "open_engine", lambda context, name: engine)
    return engine


def made(run: Run) -> Artifact:
    artifact = Store(run.store).find(keys(run)["gen"].key)
    assert artifact is not None
    return artifact


def bad_of(artifact: Artifact) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (artifact.path() / "bad.jsonl").read_text(encoding="utf-8").splitlines()]


def test_documents_become_rows_that_a_model_is_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = by(monkeypatch, Scripted(good))
    run = run_of(tmp_path, small.train("sft", rows=["gen/train"], epochs=1, max_length=512))
    artifacts = execute(run).artifacts
    gen, sft, base = made(run), artifacts["sft"], artifacts["base"]
    assert sft is not None
    assert base is not None
    rows = read_records(gen.path() / "rows" / "train.jsonl")
    assert len(rows) == gen.manifest.metrics["rows_train"] == sft.manifest.rows.read == 12
    assert [row.meta["kind"] for row in rows].count("judgmental") == 6
    assert artifacts["docs"] is not None
    documents = {row.id: row for row in read_records(artifacts["docs"].path() / "rows" / "train.jsonl")}
    for row in rows:
        meta, origin = row.meta, row.meta["origin"]
        assert meta["passage"] == documents[origin["passage"]].meta["passage"]
        assert meta["document"] == documents[origin["passage"]].meta["document"]
        assert meta["group"] == documents[origin["passage"]].meta["group"]
        assert row.prompt == [{"role": "user", "content": f"{meta['passage']}\n\n{meta['question']}"}]
        assert row.completion == ("Yes. The town lies by it." if meta["kind"] == "judgmental" else
                                  "The mayor of the town")
        assert origin["model"] == base.manifest.digest
        assert set(origin) == {"request", "prompt", "seeds", "machine", "model", "passage", "branch", "answer"}
        assert origin["branch"] == meta["kind"]
        assert len(origin["seeds"]) + len(origin["machine"]) == 8
    assert not any(row.meta["origin"]["machine"] for row in rows), "one round suffices, and has none to show"
    assert len(engine.asked) == len(set(engine.asked)) == gen.manifest.metrics["requests"]
    assert gen.manifest.metrics["passages"] == len({row.meta["origin"]["passage"] for row in rows})
    assert gen.manifest.metrics["yes_share"] == 1.0
    assert gen.manifest.facts["seeds"] == {"judgmental": 16, "open": 16}


def test_what_was_kept_is_shown_from_the_next_round_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by(monkeypatch, Scripted(good))
    run = run_of(tmp_path, questions_per_round=4, machine_demonstrations=3)
    execute(run)
    rows = read_records(made(run).path() / "rows" / "train.jsonl")
    branch = {row.id: row.meta["kind"] for row in rows}
    shown = [(row.meta["origin"]["machine"], row) for row in rows if not row.id.startswith("r1-")]
    assert max(len(machine) for machine, _ in shown) == 3
    for machine, row in shown:
        assert {branch[one] for one in machine} <= {row.meta["kind"]}
        assert all(int(one[1:].partition("-")[0]) < int(row.id[1:].partition("-")[0]) for one in machine)


def test_each_passage_has_its_turn_in_both_branches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by(monkeypatch, Scripted(good))
    run = run_of(tmp_path, take=40, questions_per_request=2)
    execute(run)
    rows = read_records(made(run).path() / "rows" / "train.jsonl")
    requests = {row.meta["origin"]["request"]: (row.meta["kind"], row.meta["origin"]["passage"]) for row in rows}
    times = Counter(requests.values())
    assert len(times) == 10
    assert max(times.values()) - min(times.values()) <= 1


@pytest.mark.parametrize("stop_after", [0, 3, 7, 14])
def test_interrupted_work_goes_on_with_nothing_asked_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    keyed = {"questions_per_round": 8}
    whole = by(monkeypatch, Scripted(good))
    wanted = run_of(tmp_path / "whole", **keyed)
    execute(wanted)
    first = by(monkeypatch, Scripted(good, stop_after))
    with pytest.raises(KeyboardInterrupt):
        execute(run_of(tmp_path, **keyed))
    second = by(monkeypatch, Scripted(good))
    run = run_of(tmp_path, **keyed, batch_size=2)
    execute(run)
    assert sorted(first.asked + second.asked) == sorted(whole.asked)
    for name in ("rows/train.jsonl", "bad.jsonl"):
        assert (made(run).path() / name).read_bytes() == (made(wanted).path() / name).read_bytes()


def test_a_budget_is_used_up_and_a_question_that_it_leaves_out_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = by(monkeypatch, Scripted(good))
    run = run_of(tmp_path, max_requests=8)
    execute(run)
    assert len(engine.asked) == 8  # two for questions, four answers; then one more and one
    assert made(run).manifest.metrics["rows_train"] == 5
    assert made(run).manifest.rows.dropped == {"over-budget": 1}


def bad_teacher(request: Request) -> tuple[str, bool]:
    """Breaks a rule in every row of the first round, a rule after the other."""
    text = request.prompt[-1]["content"]
    if "numbered from" not in text:
        number = sum(map(ord, request.id)) % 4
        return ("", "I cannot tell, as an AI.", "港口很深很深", "x")[number], number < 3
    return ("Here they are:\n9. The mayor rests.\n10. Is it so, or who is it?\n11. \n12. Who is the mayor of this?\n"
            "13. Who is the mayor of this?\n14. Why did the town move its market to the far bank of the river?\n"
            "15. 谁是镇长？\n16. Is the town old? Yes."), True


def test_a_teacher_that_breaks_every_rule_is_refused_with_every_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by(monkeypatch, Scripted(bad_teacher))
    run = run_of(tmp_path, rounds=4, patience=2, questions_per_request=8)
    with pytest.raises(StageError, match="nothing that the teacher said could be kept") as stopped:
        execute(run)
    lines = [json.loads(line) for line in next(Path(run.store, "work").glob("document-qa-*/bad.jsonl")).read_text(
        encoding="utf-8").splitlines()]
    reasons = {line["reason"] for line in lines}
    assert {"introduction", "not-a-question", "empty-item", "duplicate", "not-novel", "not-judgmental",
            "other-language"} <= reasons
    assert reasons & {"empty-answer", "declined", "answer-cut"}
    assert "%" in str(stopped.value.found)
    assert all(line["origin"]["passage"].startswith("d") for line in lines)
    near = next(line for line in lines if line["reason"] == "not-novel")
    assert near["origin"]["nearest"][0] == "open-seed-1"


def test_a_model_of_random_weights_ends_within_its_rounds(tmp_path: Path) -> None:
    """The real engine."""
    short = {"temperature": 1.0, "max_new_tokens": 12}
    run = run_of(tmp_path, rounds=2, patience=1, questions=short, answers=short, max_prompt_tokens=1500, take=4)
    with pytest.raises(StageError, match="nothing that the teacher said could be kept"):
        execute(run)


def test_rows_of_an_import_with_passages_and_seeds_of_rows_serve_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = by(monkeypatch, Scripted(good))
    run = small.run(tmp_path, {**GEN, "passages": ["data/train"], "seeds": ["data/dev"], "judgmental_share": 0.0,
                               "decontaminate": ["data/test"]}, count=40)
    execute(run)
    gen = made(run)
    assert (gen.manifest.facts["passages"], gen.manifest.facts["seeds"]["open"]) == (24, 8)
    assert gen.manifest.metrics["judgmental_share"] == 0.0
    assert gen.manifest.metrics["rows_train"] == 12
    assert not any("-judgmental" in name for name in engine.asked)
    assert {row.meta["group"][0] for row in read_records(gen.path() / "rows" / "train.jsonl")} == {"g"}


def test_it_asks_and_reads_in_chinese(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def chinese(request: Request) -> tuple[str, bool]:
        text, draw = request.prompt[-1]["content"], random.Random(request.id)
        if "编号" not in text:
            return ("答案：是的，港口冬天会结冰。", True) if "“是”或“否”" in text else ("九米深。", True)
        names = ["".join(chr(draw.randrange(0x4E00, 0x9000)) for _ in range(12)) for _ in range(2)]
        made = [f"{name}是不是很深？" if "判断题" in text else f"{name}为什么很深？" for name in names]
        return f"{made[0]}\n10、{made[1]}回答：不知道。", True

    by(monkeypatch, Scripted(chinese))
    (tmp_path / "zh").mkdir()
    (tmp_path / "zh" / "a.txt").write_text("港口有九米深，大多数冬天都会结冰。渡轮那时停航，领航员修补他妹妹的渔网。")
    run = run_of(tmp_path, language="zh", take=4)
    tree = run.model_dump(mode="json", exclude_none=True)
    tree["stages"][1]["documents"] = [{"path": str(tmp_path / "zh")}]
    run = parse_run(yaml.safe_dump(tree))
    execute(run)
    rows = read_records(made(run).path() / "rows" / "train.jsonl")
    assert {(row.meta["kind"], row.completion) for row in rows} == {
        ("judgmental", "是。港口冬天会结冰。"), ("open", "九米深。")}
    assert all(row.meta["question"].endswith("？") for row in rows)
    assert made(run).manifest.facts["trimmed"] == 2


def test_no_passages_and_long_ones_are_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by(monkeypatch, Scripted(good))
    with pytest.raises(DataError, match="no prompt of a round fits"):
        execute(run_of(tmp_path, max_prompt_tokens=20))
    file = tmp_path / "plain.jsonl"
    file.write_text('{"prompt": "a b", "completion": "c"}\n')
    plain = {"name": "plain", "kind": "import", "data": [{"path": str(file), "format": "prompt-completion"}],
             "split": {"by": "ratio", "ratios": {"train": 1.0}}}
    with pytest.raises(DataError, match="no row has a passage"):
        execute(small.run(tmp_path, plain, {**GEN, "passages": ["plain/train"]}))


@pytest.mark.parametrize(("key", "value"), [
    ("take", 0), ("max_requests", 1), ("machine_demonstrations", 8), ("passage_prompt", "{passage}"),
    ("decontaminate", ["docs/train"]), ("judgmental_share", 1.5), ("filters", {"min_words": 70}), ("passages", []),
    ("demonstrations", 0), ("language", "fr")])
def test_a_config_that_can_make_nothing_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(ConfigErrors, match=key):
        run_of(tmp_path, **{key: value})


def test_a_prompt_file_that_nothing_reads_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigErrors, match="is not read"):
        run_of(tmp_path, judgmental_share=0.0, prompts={"judgmental_answer": "a.txt"})


# --- an endpoint ---


def reply(one: Asked) -> Reply:
    return answer(said(one.last, str(one.body["seed"]))[0])


def there(folder: Path, url: str, gen: dict[str, Any] | None = None, **model: Any) -> Run:
    return parse_run(yaml.safe_dump({
        "name": "asked", "seed": 3, "store": str(folder / "store"), "compute": {"dtype": "float32", "device": "cpu"},
        "stages": [teacher(url, **model), docs(folder), {**GEN, "teacher": "teacher", "take": 6, **(gen or {})}]},
        sort_keys=False))


@pytest.fixture
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator, "Clock", lambda: Passing().clock())


@pytest.mark.usefixtures("_no_pauses")
def test_an_endpoint_asks_and_answers_and_a_failure_is_no_answer(tmp_path: Path) -> None:
    fails: list[str] = []

    def faulty(one: Asked) -> Reply:
        if "numbered from" not in one.last and not fails:
            fails.append(one.last)
        return error(500, "boom") if one.last in fails else reply(one)

    with endpoint(faulty) as server:
        run = there(tmp_path, server.url, limits={"retries": 0, "concurrency": 1})
        execute(run)
        assert {one.body["presence_penalty"] for one in server.asked} == {2.0, 1.5}
    gen = made(run)
    assert gen.manifest.metrics["rows_train"] == 6, "another round makes up for it"
    assert gen.manifest.metrics["rounds"] == 2
    lines = [line for line in bad_of(gen) if "found" in line]
    assert [line["reason"] for line in lines] == ["the endpoint failed"]
    assert lines[0]["step"].endswith("_answer")
    assert gen.manifest.facts["endpoints"]["teacher"]["requests"] >= 10


@pytest.mark.usefixtures("_no_pauses")
def test_a_spent_budget_goes_on_later_with_nothing_paid_twice(tmp_path: Path) -> None:
    short = {"questions": {"max_new_tokens": 5}, "answers": {"temperature": 0.0, "max_new_tokens": 5}}
    price = {"input": 0.0, "output": 5000.0}
    with endpoint(reply) as server:
        whole = there(tmp_path / "whole", server.url, short, limits={"price": price})
        execute(whole)
        wanted = len(server.asked)
        with pytest.raises(StageError, match="the budget for the endpoint is spent"):
            execute(there(tmp_path, server.url, short, limits={"price": price, "budget": 0.13}))
        rich = there(tmp_path, server.url, short, limits={"price": price, "budget": 9.0})
        execute(rich)
        assert len(server.asked) == 2 * wanted
    for name in ("rows/train.jsonl", "bad.jsonl"):
        assert (made(rich).path() / name).read_bytes() == (made(whole).path() / name).read_bytes()
