"""Metrics and events: what a small run of every kind emits is what the tables declare, no more and no less.

One chain with everything switched on that makes a metric or an event appear; it takes about 15 seconds.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from alignment.artifacts import Artifact
from alignment.config import KINDS, METHODS, Run, parse_run
from alignment.distributed.generate import shared
from alignment.evaluation.measures import NAMES
from alignment.inference import judging
from alignment.inference.requests import Request
from alignment.pipeline import execute
from alignment.reference.emitted import Event, Metric, events, metrics
from tests import small
from tests.distributed.test_document_qa import said
from tests.distributed.test_generate import seed_rows
from tests.evaluation.harness_tasks import stage, write
from tests.evaluation.test_retrieve import TOKENS, hotpot
from tests.generation.hops import hop_teacher
from tests.generation.scripted import Scripted, good_teacher

SCORE = {"model": "reward", "function": "brevity"}
SHORT = {"temperature": 0.0, "max_new_tokens": 4}
PLACES = {"SPLIT": r"[a-z0-9_-]+", "MODEL": r"[a-z0-9-]+", "CHALLENGER": r"[a-z0-9-]+", "BASELINE": r"[a-z0-9-]+",
          **dict.fromkeys(("JUDGE", "SCORER", "COMPARING", "FIRST", "SECOND"), r"[a-z0-9-]+"),
          "FORM": r"(safetensors|gguf_[a-z0-9_]+)", "TASK": r"[a-z0-9_-]+",
          "METRIC": r"[a-z_]+?(?<!_gain)(?<!_low)(?<!_high)(?:/[a-z-]+)?"}
OF_ALL = {"time", "event"}


def crossing(folder: Path) -> dict[str, Any]:
    """An import whose splits, as the file gives them, share a passage."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "crossing.jsonl"
    file.write_text("".join(json.dumps({
        "passage": "The harbour is nine metres deep, and it freezes in most winters.", "question": question,
        "answer": "Yes, 9 metres.", "split": split,
    }) + "\n" for question, split in (("Is it deep?", "train"), ("Does it freeze in winter?", "test"))))
    return {"name": "crossing", "kind": "import", "data": [{"path": str(file), "format": "passage-qa"}],
            "split": {"by": "field", "names": ["train", "test"]}}


def seeds(folder: Path) -> dict[str, Any]:
    file = folder / "seeds.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in seed_rows()), encoding="utf-8")
    return {"name": "seeds", "kind": "import", "data": [{"path": str(file), "format": "self-instruct"}],
            "split": {"by": "ratio", "ratios": {"train": 1.0}}}


def documents(folder: Path) -> dict[str, Any]:
    (folder / "docs").mkdir()
    (folder / "docs" / "a.txt").write_text("The harbour is nine metres deep, and it freezes in most winters. Ferries "
                                           "stop then, and the pilot repairs the nets of his sister.")
    return {"name": "import-documents", "kind": "import", "documents": [{"path": str(folder / "docs")}]}


def rated(folder: Path) -> dict[str, Any]:
    """Pairs of which several people say something, in sections."""
    file = folder / "rated.jsonl"
    file.write_text("".join(json.dumps({
        "instruction": f"What is number {n * 7919}?", "response1": f"It is {n}." + " So." * n,
        "response2": "Who knows?", "annotator1": n % 3, "annotator2": n % 3, "annotator3": 1,
        "meta": {"section": "Chat"},
    }) + "\n" for n in range(6)), encoding="utf-8")
    return {"name": "rated", "kind": "import", "data": [{"path": str(file), "format": "pandalm"}], "ties": "keep",
            "split": {"by": "ratio", "ratios": {"test": 1.0}}}


def taught(request: Request) -> tuple[str, bool]:
    """Self-instruct's tasks, or questions and answers."""
    asked = request.prompt[-1]["content"]
    return said(asked, request.id) if "Passage:" in asked else good_teacher(request)


def chain(folder: Path) -> Run:
    """Every kind and method; a stage is called as its class is tagged, but for base and data."""
    held = {"eval_rows": "data/dev", "checkpoints": {"every": 2, "final": "best"}}
    more = {"grpo": {"trl": {"beta": 0.1}}}  # a reference, which only some have without being asked
    trained = [small.train(method.tag, method.tag, "base" if method is METHODS[0] else METHODS[0].tag, **held,
                           **more.get(method.tag, {})) for method in METHODS]
    return small.run(
        folder, crossing(folder), *trained, seeds(folder),
        {"name": "self-instruct", "kind": "generate", "recipe": "self_instruct", "teacher": "base",
         "seeds": ["seeds/train"], "take": 4, "requests_per_round": 3, "hygiene": {"personal_data": ["email"]}},
        documents(folder),
        {"name": "document-qa", "kind": "generate", "recipe": "document_qa", "teacher": "base",
         "passages": ["import-documents/train"], "take": 4, "rounds": 2, "questions_per_request": 2,
         "hygiene": {"personal_data": ["ip"]}},
        {"name": "contrastive", "kind": "generate", "recipe": "contrastive", "teacher": "base", "rows": ["data/train"],
         "take": 4, "score": {"judge": {"model": "base"}}, "min_score": 7, "hygiene": {"personal_data": ["ip"]}},
        {"name": "multihop", "kind": "generate", "recipe": "multihop", "teacher": "base", "take": 4,
         "requests_per_round": 4, "negative_share": 1.0, "hygiene": {"personal_data": ["ip"]}},
        {"name": "import-endpoint", "kind": "import",
         "model": {"source": "endpoint", "base_url": "http://127.0.0.1:9/v1", "model": "never-asked"}},
        {"name": "import-reward", "kind": "import", "role": "reward", "model": small.BASE["model"]},
        {"name": "import-embedder", "kind": "import", "role": "embedder", "model": small.BASE["model"]},
        {"name": "select-quality", "kind": "select", "by": "quality", "rows": ["data/train"], "quantile": 0.25,
         "score": {"model": "import-reward"}},
        {"name": "select-coverage", "kind": "select", "by": "coverage", "rows": ["data/train"],
         "embedder": "import-embedder", "pooling": "mean", "take": 4},
        {"name": "select-random", "kind": "select", "by": "random", "rows": ["data/train"], "take": 4},
        {"name": "select-merge", "kind": "select", "by": "merge", "rows": ["select-random/train", "data/dev"]},
        *({"name": name, **kind, "model": "sft", "previous": "base", "prompts": ["data/train"], "take": 4,
           "n": 2, "batch_size": 4, "sampling": {"max_new_tokens": 4},
           "score": {**SCORE, "judge": {"model": "other", "mode": "compare"}}}
          for name, kind in (("sample", {"kind": "sample"}),
                             ("judged-pairs", {"kind": "generate", "recipe": "judged_pairs"}))),
        {"name": "select-necessity", "kind": "select", "by": "necessity", "rows": ["data/train"],
         "answers": "sample/samples", "threshold": 1e9},
        {"name": "infer", "kind": "infer", "model": "sft", "prompts": "data/test", "sampling": SHORT},
        {"name": "evaluate", "kind": "evaluate", "models": ["base", "sft"], "rows": "data/test", "take": 4,
         "metrics": list(NAMES), "score": {**SCORE, "judge": {"model": "other", "mode": "compare"}},
         "bootstrap": 100, "sampling": SHORT},
        {"name": "judgments", "kind": "evaluate", "models": ["base", "sft"], "rows": "crossing/test",
         "metrics": ["yes_no", "final_number"], "bootstrap": 100, "sampling": SHORT,
         "score": {"judge": {"model": "other"}}},
        rated(folder),
        {"name": "evaluate-pairs", "kind": "evaluate", "rows": "rated/test", "bootstrap": 100, "judges": {
            "theirs": {"model": "import-reward"}, "brief": {"function": "brevity"},
            "talker": {"judge": {"model": "other", "mode": "compare"}}}},
        {**stage(write(folder), "base", "sft"), "name": "evaluate-harness"},
        *walks(folder),
        {"name": "choose", "kind": "choose", "models": ["base", "sft"],
         "bounds": ["evaluate.sft_vs_base.win_rate >= 0"]},
        {"name": "export", "kind": "export", "model": "sft", "form": ["safetensors", "gguf"], "rows": "data/test",
         "take": 2, "push_to_hub": {"repo": "me/mine", "dry_run": True}},
    )


def walks(folder: Path) -> list[dict[str, Any]]:
    """An evaluation whose model may retrieve."""
    (folder / "hotpot.json").write_text(json.dumps([hotpot(0), hotpot(1)]))
    return [{**small.BASE, "name": "asks", **TOKENS},
            {"name": "hops", "kind": "import", "data": [{"path": str(folder / "hotpot.json"), "format": "hotpotqa"}],
             "retrieve": True, "split": {"by": "ratio", "ratios": {"test": 1.0}}},
            {"name": "walks", "kind": "evaluate", "models": ["asks"], "rows": "hops/test", "bootstrap": 100,
             "sampling": SHORT, "retrieve": {"embedder": "import-embedder", "pooling": "mean"}}]


def from_chain(folder: Path, made: dict[str, Artifact | None]) -> Run:
    """In another store: an adapter, a reward model, the adapter as an embedder, and rows of the chain's."""
    sft, reward, sample = (made[name] for name in ("sft", "reward", "sample"))
    assert sft is not None
    assert reward is not None
    assert sample is not None
    there = {"source": "artifact", "store": sft.store.url}
    return parse_run(json.dumps({"name": "from-chain", "store": str(folder / "other"), "stages": [
        {"name": "it", "kind": "import", "model": {**there, "artifact": sft.key}},
        {"name": "scores", "kind": "import", "role": "reward", "model": {**there, "artifact": reward.key}},
        {"name": "embeds", "kind": "import", "role": "embedder", "model": {**there, "artifact": sft.key}},
        {"name": "rows", "kind": "import",
         "rows": {"artifact": sample.key, "store": sft.store.url, "splits": ["samples"]}}]}))


def says(request: Request) -> tuple[str, bool]:
    """As a judge, that short answers are good and the first of two is better; as a teacher, a long one."""
    text = request.prompt[-1]["content"]
    if "/judge/" not in request.id:
        return f"The thing has many colours, {len(text)} in all, as one sees from afar.", True
    return "Verdict: A" if "Answer B:" in text else f"Score: {9 if 'many colours' not in text else 2}", True


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[type, list[Artifact]]:
    """Stage class -> its finished artifacts."""
    run = chain(tmp_path_factory.mktemp("chain"))
    found: dict[type, list[Artifact]] = {}
    with pytest.MonkeyPatch.context() as patch:  # what a random model says keeps no row
        patch.setattr(shared, "open_engine", lambda context, name: Scripted(
            {"contrastive": says, "multihop": hop_teacher}.get(context.stage.name, taught)))
        patch.setattr(judging, "open_engine", lambda context, name: Scripted(says))
        artifacts = execute(run).artifacts
    other = from_chain(tmp_path_factory.mktemp("other"), artifacts)
    for one, made in ((run, artifacts), (other, execute(other).artifacts)):
        for name, artifact in made.items():
            assert artifact is not None
            found.setdefault(type(one.stage(name)), []).append(artifact)
    return found


def fits(metric: Metric, name: str) -> bool:
    pattern = re.escape(metric.name)
    for place, names in PLACES.items():
        pattern = pattern.replace(place, names)
    return re.fullmatch(pattern, name) is not None


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.tag)
def test_metrics_are_those_declared(kind: type, finished: dict[type, list[Artifact]]) -> None:
    emitted = {name: value for artifact in finished[kind] for name, value in artifact.manifest.metrics.items()}
    declared = metrics(kind)
    assert not [name for name in emitted if not any(fits(metric, name) for metric in declared)], "declare them"
    assert not [m.name for m in declared if not any(fits(m, name) for name in emitted)], "nothing emits them"
    for metric in declared:
        for name, value in emitted.items():
            if fits(metric, name):
                assert within(metric.span, value), (name, metric.span, value)


def within(span: str, value: float) -> bool:
    """Whether a value is one that the table's words allow."""
    if span.startswith("whole number"):
        return value >= 0 and value == int(value)
    spans = {"0 to 1": (0, 1), "-1 to 1": (-1, 1), "0 or more": (0, float("inf")), "1 or more": (1, float("inf")),
             "0 to 100": (0, 100), "-100 to 100": (-100, 100)}
    low, high = spans.get(span, (-float("inf"), float("inf")))
    return low <= value <= high


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.tag)
def test_events_are_those_declared(kind: type, finished: dict[type, list[Artifact]]) -> None:
    emitted: dict[str, set[str]] = {}
    for artifact in finished[kind]:
        for line in (artifact.path() / "events.jsonl").read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            emitted.setdefault(entry["event"], set()).update(entry)
    declared: dict[str, Event] = {event.name: event for event in events(kind)}
    assert set(emitted) == set(declared)
    for name, fields in emitted.items():
        # The chain's rewards have one part each, called as in small.ONLINE.
        assert fields == {*(field.replace("PART", "brief") for field in declared[name].fields), *OF_ALL}, name


def test_evaluate_declares_every_column_of_its_table() -> None:
    from alignment.config import Evaluate
    from alignment.evaluation.results import COMPARED, CONTROLLED, GAINED, SCORED, TRACED
    from alignment.reference.emitted import GAINED as DECLARED

    named = {metric.name.rpartition(".")[2] for metric in metrics(Evaluate)}
    pairs = [*COMPARED.values(), *CONTROLLED.values(), *(f"{metric}_gain" for metric in (*NAMES, "style"))]
    ends = {f"{name}_{'high' if name.startswith('perplexity') else 'low'}" for name in pairs}
    assert named == {*NAMES, *SCORED, *TRACED, *pairs, *ends, "judge_read_share", "judge_agreement"}
    assert (*DECLARED, "style") == GAINED
