"""Evaluations whose models retrieve while they answer: traces, numbers, corpora, interruptions; scripted models, and
one that has learned to call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.artifacts import Artifact
from alignment.config import Run, parse_run
from alignment.errors import DataError, KubeAlignError
from alignment.evaluation import answers as answering
from alignment.evaluation import questions as choosing
from alignment.inference.endpoint import generator
from alignment.inference.requests import Request
from alignment.pipeline import execute
from alignment.reference.aims import made_by
from alignment.report import render
from tests.endpoint_server import Asked as Heard
from tests.endpoint_server import Reply, answer, endpoint, error, teacher
from tests.inference.test_endpoint import Passing
from tests.inference.test_retrieving import Speaker, call

TOWNS = ["Haven", "Varde", "Lund", "Bremen", "Skagen", "Ribe", "Mandal", "Visby"]
TINY = {"source": "tiny", "hidden_size": 32, "layers": 2, "heads": 2, "vocab_size": 512}
TOKENS = {"template": "retrieval", "new_tokens": ["<|bof|>", "<|eof|>", "<|eot|>"], "dtype": "float32"}


def hotpot(number: int) -> dict[str, Any]:
    """Which of two towns is deeper; each town has a paragraph, two of them are supporting."""
    first, second = TOWNS[number % 8], TOWNS[(number + 3) % 8]
    return {"_id": f"h{number}", "type": "comparison", "question": f"Which is deeper, {first} or {second}? ({number})",
            "answer": first, "supporting_facts": [[first, 0], [first, 1], [second, 0]],
            "context": [[town, [f"{town} has a harbour. ", f"It is {len(town) + number} metres deep."]]
                        for town in (first, second, TOWNS[(number + 5) % 8])]}


def the_run(folder: Path, rows: int = 6, plain: bool = False, stages: tuple[dict[str, Any], ...] = (),
            compute: dict[str, Any] | None = None, **evaluate: Any) -> Run:
    file = folder / ("plain.jsonl" if plain else "hotpot.json")
    file.write_text(json.dumps({"prompt": "How deep?", "completion": "Nine."}) + "\n" if plain
                    else json.dumps([hotpot(number) for number in range(rows)]))
    data = {"name": "sets", "kind": "import", "split": {"by": "ratio", "ratios": {"test": 1.0}},
            "data": [{"path": str(file), "format": "prompt-completion" if plain else "hotpotqa"}],
            **({} if plain else {"retrieve": True})}
    stage = {"name": "eval", "kind": "evaluate", "models": ["base"], "rows": "sets/test", "bootstrap": 100,
             "batch_size": 2, "sampling": {"temperature": 0.0, "max_new_tokens": 8}, **evaluate}
    stage.setdefault("retrieve", {"embedder": "vectors", "pooling": "mean"})
    return parse_run(yaml.safe_dump({
        "name": "walks", "seed": 3, "store": str(folder / "store"),
        "compute": {"dtype": "float32", "device": "cpu", **(compute or {})},
        "stages": [{"name": "base", "kind": "import", "model": TINY, **TOKENS},
                   {"name": "vectors", "kind": "import", "role": "embedder", "model": TINY, "dtype": "float32"},
                   data, *stages, stage]}, sort_keys=False))


class Asks(Speaker):
    """Asks for what it was told to ask, row by row, then answers by what it was given."""

    def __init__(self, queries: dict[str, list[str]], stop_after: int | None = None) -> None:
        super().__init__({})
        self.queries, self.left = queries, stop_after

    def generate(self, requests: list[Request], on_progress: Any = None) -> Any:  # type: ignore[override]
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
        for request in requests:
            row, given = request.id, [turn["content"] for turn in request.prompt if turn["role"] == "tool"]
            asks = self.queries.get(row, [])
            self.said[row] = [call(asks[len(given)]) if len(given) < len(asks)
                              else f" {given[-1].split(':')[0]}" if given else " Haven"]
        return super().generate(requests)

    @property
    def made_by(self) -> dict[str, str]:
        return {}  # as an endpoint: no ids that a server could be held to

    def log_probs(self, items: Any) -> Any:
        return [(-1.0, 2) for _ in items]


@pytest.fixture
def asks(monkeypatch: pytest.MonkeyPatch) -> Any:
    def set_(engine: Asks) -> Asks:
        for room in (answering, choosing):
            monkeypatch.setattr(room, "open_engine", lambda context, name: engine)
        return engine

    return set_


def evaluated(run: Run) -> tuple[Artifact, dict[str, Any], dict[str, Any]]:
    """The artifact, its results, and its answers by row."""
    made = execute(run).artifacts["eval"]
    assert made is not None
    results = json.loads((made.path() / "results.json").read_text())
    lines = map(json.loads, (made.path() / "answers.jsonl").read_text().splitlines())
    return made, results, {line["id"]: line for line in lines}


def test_traces_tell_what_was_asked_and_found_and_numbers_follow_from_them(tmp_path: Path, asks: Any) -> None:
    engine = asks(Asks({"hotpot-h0": ["Haven", "Bremen"], "hotpot-h1": ["Varde", "varde "],
                        "hotpot-h2": ["one", "two", "three"]}))
    made, results, lines = evaluated(the_run(tmp_path, retrieve={
        "embedder": "vectors", "pooling": "mean", "steps": 2, "top_k": 1}))
    found = {row: line["answers"]["base"] for row, line in lines.items()}
    first = found["hotpot-h0"]
    assert [step["query"] for step in first["steps"]] == ["Haven", "Bremen"]
    assert (first["ended"], first["turns"]) == ("answered", 3)
    assert {row: one["ended"] for row, one in found.items()} == {
        "hotpot-h0": "answered", "hotpot-h1": "repeated-query", "hotpot-h2": "step-limit",
        **{f"hotpot-h{number}": "answered" for number in (3, 4, 5)}}
    assert (found["hotpot-h1"]["text"], found["hotpot-h1"]["exact_match"]) == ("", 0.0)
    own = {f"hotpot-{row['_id']}": {f"{title}: {''.join(told)}": title in {fact[0] for fact in row["supporting_facts"]}
                                    for title, told in row["context"]} for row in map(hotpot, range(6))}
    recalls = []
    for row, one in found.items():
        hits = [hit for step in one["steps"] for hit in step["found"]]
        assert all(own[row][hit["text"]] == hit["gold"] for hit in hits), "of its own passages alone"
        recalls.append(len({hit["text"] for hit in hits if hit["gold"]}) / 2)
    base = {name: cell["value"] for name, cell in results["models"]["base"].items()}
    assert base["gold_recall"] == pytest.approx(sum(recalls) / 6)
    assert (base["answered"], base["calls"], base["turns"]) == pytest.approx((4 / 6, 5 / 6, 11 / 6))
    assert made.manifest.metrics["base.gold_recall"] == base["gold_recall"]
    assert made.manifest.facts["retrieval"] == {
        "ended": {"base": {"answered": 4, "repeated-query": 1, "step-limit": 1}}, "passages": 18, "passages_cut": 0}
    assert lines["hotpot-h0"]["prompt"] == [{"role": "user", "content": hotpot(0)["question"]}]
    assert engine.ids["hotpot-h0"][0] == engine.tokenizer.apply_chat_template(
        lines["hotpot-h0"]["prompt"], add_generation_prompt=True, return_dict=False)


def test_a_corpus_is_searched_whole_and_gold_is_still_the_rows_own(tmp_path: Path, asks: Any) -> None:
    asks(Asks({f"hotpot-h{number}": [f"q{number}"] for number in range(6)}))
    run = the_run(tmp_path, retrieve={"embedder": "vectors", "pooling": "mean", "corpus": "sets/test", "top_k": 99})
    made, _, lines = evaluated(run)
    every = {f"{title}: {''.join(told)}" for row in map(hotpot, range(6)) for title, told in row["context"]}
    for line in lines.values():
        [step] = line["answers"]["base"]["steps"]
        assert {hit["text"] for hit in step["found"]} == every
        assert sum(hit["gold"] for hit in step["found"]) == 2
    assert set(made.manifest.metrics) <= set(made_by(run.stage("eval"))), "aims may ask for each"
    assert made.manifest.facts["retrieval"]["passages"] == len(every)
    assert made.manifest.metrics["base.gold_recall"] == made.manifest.metrics["base.fact_recall"] == 1.0


def test_a_stage_that_was_killed_asks_the_rows_that_it_has_not_and_ends_the_same(tmp_path: Path, asks: Any) -> None:
    queries = {f"hotpot-h{number}": ["Haven", "Lund"][: number % 3] for number in range(6)}
    (tmp_path / "whole").mkdir()
    asks(Asks(queries))
    whole = evaluated(the_run(tmp_path / "whole"))
    asks(Asks(queries, stop_after=3))
    with pytest.raises(KeyboardInterrupt):
        execute(the_run(tmp_path))
    again = asks(Asks(queries))
    made = evaluated(the_run(tmp_path))
    assert made[1:] == whole[1:]
    assert len(again.ids) < 6, "rows of finished batches are not asked again"


def test_rows_without_passages_are_left_out_by_name_and_none_left_is_an_error(tmp_path: Path, asks: Any) -> None:
    asks(Asks({}))
    with pytest.raises(DataError, match="no passages to retrieve from") as error:
        execute(the_run(tmp_path, plain=True))
    assert "retrieve: true" in str(error.value.expected)
    with pytest.raises(DataError, match="no row of the corpus has a passage"):
        execute(the_run(tmp_path, plain=True, retrieve={"embedder": "vectors", "pooling": "mean",
                                                        "corpus": "sets/test"}))


def test_a_template_without_calls_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    run = the_run(tmp_path)
    plain = {"name": "plain", "kind": "import", "model": TINY, "dtype": "float32"}
    tree = run.model_dump(mode="json", exclude_none=True)
    tree["stages"] = [plain, *tree["stages"]]
    tree["stages"][-1]["models"] = ["plain"]
    with pytest.raises(KubeAlignError, match="the chat template has no calls"):
        execute(parse_run(yaml.safe_dump(tree, sort_keys=False)))


def test_a_model_that_has_learned_to_call_is_asked_what_it_learned(tmp_path: Path) -> None:
    """Nothing is scripted: tiny weights learn one row's conversation by heart, and go through it."""
    sft = {"name": "sft", "kind": "train", "method": "sft", "model": "base", "rows": ["learn/train"],
           "loss": "assistant", "strategy": {"kind": "full"}, "batch_size": 1, "epochs": 80.0, "learning_rate": 5e-3,
           "max_length": 400}
    (tmp_path / "learn.json").write_text(json.dumps([hotpot(9)]))
    learn = {"name": "learn", "kind": "import", "retrieve": True, "split": {"by": "ratio", "ratios": {"train": 1.0}},
             "data": [{"path": str(tmp_path / "learn.json"), "format": "hotpotqa"}]}
    run = the_run(tmp_path, 2, stages=(learn, sft), models=["base", "sft"], overlap="drop",
                  sampling={"temperature": 0.0, "max_new_tokens": 120},
                  retrieve={"embedder": "vectors", "pooling": "mean", "top_k": 2})
    _, results, lines = evaluated(run)
    assert results["models"]["sft"]["calls"]["value"] > 0, [line["answers"]["sft"] for line in lines.values()]
    assert results["models"]["base"]["calls"]["value"] == 0


def test_an_endpoint_is_offered_the_function_and_its_calls_are_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real protocol: `retrieve` as a tool, its calls as tool_calls, what was found as messages of role tool."""
    monkeypatch.setattr(generator, "Clock", lambda: Passing().clock())

    def says(one: Heard) -> Reply:
        given = [turn for turn in one.body["messages"] if turn["role"] == "tool"]
        row = one.body["messages"][0]["content"].rpartition("(")[2].rstrip(")")
        if row == "3":
            return answer(None, "tool_calls", tool_calls=[{"id": "a", "type": "function", "function": {
                "name": "retrieve", "arguments": "{'query'"}}])
        if row == "2" and given:
            return error(400, "This model's maximum context length is 9 tokens.", "context_length_exceeded")
        if not given or row == "1":
            return answer(None, "tool_calls", tool_calls=[{"id": "a", "type": "function", "function": {
                "name": "retrieve", "arguments": json.dumps({"query": f"call {len(given)}"})}}])
        return answer(given[-1]["content"].split(":")[0])

    with endpoint(says) as server:
        run = the_run(tmp_path, 4, stages=(teacher(server.url),), models=["teacher"], perplexity=False,
                      retrieve={"embedder": "vectors", "pooling": "mean", "steps": 2})
        made, _, lines = evaluated(run)
        bodies = [one.body for one in server.asked]
    ended = {row: line["answers"]["teacher"]["ended"] for row, line in lines.items()}
    assert ended == {"hotpot-h0": "answered", "hotpot-h1": "step-limit", "hotpot-h2": "context-overflow",
                     "hotpot-h3": "call-unreadable"}
    assert all([tool["function"]["name"] for tool in body["tools"]] == ["retrieve"] for body in bodies)
    second = next(body["messages"] for body in bodies if "(0)" in body["messages"][0]["content"]
                  and len(body["messages"]) > 1)
    assert [turn["role"] for turn in second] == ["user", "assistant", "tool"]
    assert second[2]["tool_call_id"] == second[1]["tool_calls"][0]["id"]
    assert second[2]["content"] in {f"{title}: {''.join(told)}" for title, told in hotpot(0)["context"]}
    first = lines["hotpot-h0"]["answers"]["teacher"]
    assert (first["usage"]["prompt_tokens"], first["usage"]["attempts"]) == (40, 2), "of both turns"
    assert made.manifest.facts["endpoints"]["teacher"]["requests"] == len(bodies)


def test_the_report_shows_what_was_asked_and_found(tmp_path: Path, asks: Any) -> None:
    asks(Asks({"hotpot-h0": ["How deep is Haven?"], "hotpot-h1": ["one", "One"]}))
    run = the_run(tmp_path, retrieve={"embedder": "vectors", "pooling": "mean", "top_k": 3})
    page = render(run, execute(run).artifacts, None, "")
    assert "Gold passages found" in page
    assert "repeated-query 1" in " ".join(page.split())
    assert "How deep is Haven?" in page
    assert page.count('<div class="found gold">') == 4, "two of three passages, of two calls"
