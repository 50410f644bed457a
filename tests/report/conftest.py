"""A finished run of eight stages, published through the real store: known numbers, hostile texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.artifacts import Artifact, Manifest, RowCounts, Store, digest_of, key_of
from alignment.config import Run, parse_run

LORA = {"kind": "lora", "r": 16, "alpha": 32}
EVIL = '<script>alert("x")</script><img src=http://evil.example/x.png onerror=alert(1)>'


def train(name: str, method: str, model: str, *rows: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": "train", "method": method, "model": model, "rows": list(rows), "strategy": LORA,
            **more}


BASE = {"name": "base", "kind": "import", "model": {"source": "tiny"}}
SEED = {"name": "seed", "kind": "import", "data": [{"path": "rows.jsonl", "format": "passage-qa"}],
        "split": {"by": "ratio", "ratios": {"train": 0.7, "dev": 0.1, "test": 0.2}}}
STAGES = [
    BASE, SEED,
    train("sft", "sft", "base", "seed/train", eval_rows="seed/dev"),
    train("rm", "reward", "sft", "seed/train"),
    {"name": "best", "kind": "sample", "model": "sft", "prompts": ["seed/train"], "n": 4, "score": {"model": "rm"}},
    train("sft2", "sft", "base", "best/best", "seed/train"),
    train("dpo", "dpo", "sft2", "best/pairs"),
    {"name": "eval", "kind": "evaluate", "models": ["base", "sft", "sft2", "dpo"], "rows": "seed/test",
     "score": {"model": "rm"}},
]
AIMS = ["eval.dpo.exact_match > eval.base.exact_match", "rm.eval_accuracy >= 0.9", "eval.dpo.nothing >= 1"]


def run_of(folder: Path, stages: list[dict[str, Any]] = STAGES, aims: list[str] = AIMS, **top: Any) -> Run:
    tree = {"name": "qa", "seed": 5, "store": str(folder / "store"), "stages": stages, "aims": aims, **top}
    return parse_run(yaml.safe_dump(tree, sort_keys=False))


def cell(value: float | None, width: float = 0.05) -> dict[str, float | None]:
    if value is None:
        return {"value": None, "low": None, "high": None}
    return {"value": value, "low": value - width, "high": value + width}


def results() -> dict[str, Any]:
    exact = {"base": 0.2, "sft": 0.4, "sft2": 0.5, "dpo": 0.6}
    lines: dict[str, Any] = {
        model: {"exact_match": cell(value), "f1": cell(value + 0.1), "perplexity": cell(9 - 10 * value, 0.5),
                "words": cell(12.0, 1.0), "reward": cell(None if model == "base" else value)}
        for model, value in exact.items()
    }
    lines["reference"] = {"reward": cell(0.99), "words": cell(3.0, 0.1)}
    pairs = [(model, "base") for model in ("sft", "sft2", "dpo")]
    return {
        "rows": 80, "models": lines,
        "compare": [{"challenger": a, "baseline": b, "by": "score", "rate": 0.7, "low": 0.6, "high": 0.8, "wins": 50,
                     "ties": 12, "losses": 18, "dropped": 0} for a, b in pairs],
        "differences": [{"challenger": a, "baseline": b, "metric": "exact_match", "value": exact[a] - exact[b],
                         "low": exact[a] - exact[b] - 0.1, "high": exact[a] - exact[b] + 0.1} for a, b in pairs],
        "by_kind": {"open": {model: {"exact_match": value, "f1": None, "n": 60} for model, value in exact.items()}},
        "reward_histogram": {"sft": {"edges": [-1, 0, 1], "counts": [30, 50]},
                             "dpo": {"edges": [-1, 0, 1], "counts": [8, 72]}},
    }


def answers(count: int = 80) -> list[dict[str, Any]]:
    def one(right: bool, index: int) -> dict[str, Any]:
        return {"text": f"answer {index} {EVIL}" if index % 5 == 0 else f"answer {index}", "finished": right,
                "exact_match": float(right), "f1": float(right), "reward": 0.5}

    return [
        {"id": f"r{i}", "kind": ("open", "judgmental", "long")[i % 3], "question": f"Question {i}? {EVIL}",
         "passage": "A passage. " * 60, "prompt": [], "reference": f"answer {i}",
         "answers": {"base": one(i % 4 == 0, i), "sft": one(True, i), "sft2": one(True, i), "dpo": one(i % 5 > 1, i)}}
        for i in range(count)
    ]


def events(name: str) -> str:
    lines: list[dict[str, Any]] = [{"time": 0.0, "event": "start"}]
    for step in range(1, 51):
        lines.append({"time": step, "event": "train", "step": step, "loss": 2 - step / 50, "learning_rate": 1e-4,
                      "accuracy": step / 50, "margin": step / 10, "rewards/accuracies": step / 50,
                      "rewards/chosen": step / 100, "rewards/rejected": -step / 100, "mean_token_accuracy": 0.5})
        if step % 10 == 0:
            lines.append({"time": step, "event": "eval", "step": step, "eval_loss": 2.1 - step / 50})
    return "\n".join(map(json.dumps, lines)) + '\n{"time": 51, "event": "tr'


def publish(store: Store, run: Run, name: str, files: dict[str, str], **fields: Any) -> Artifact:
    """A finished artifact with these files, through lease and rename as the pipeline makes it."""
    stage = run.stage(name)
    digest = digest_of([run.name, name])
    key = key_of(name, digest)
    folder = store.workdir(key) / "out"
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text, encoding="utf-8")
    manifest = Manifest(
        key=key, digest=digest, stage=name, kind=stage.kind, config=stage.model_dump(mode="json"),
        inputs={other: key_of(other, digest_of([run.name, other])) for other in stage.inputs()}, files={},
        versions={"trl": "1.16.0"}, started="2026-01-02T03:04:05Z", finished="2026-01-02T03:14:05Z",
        **{"seconds": 60.0, **fields},
    )
    with store.lease(key) as lease:
        return store.publish(manifest, folder, lease)


def finish(run: Run) -> dict[str, Artifact]:
    """Every stage of a run, finished."""
    store = Store(run.store)
    flat = {f"{model}.exact_match": line["exact_match"]["value"]
            for model, line in results()["models"].items() if "exact_match" in line}
    special: dict[str, dict[str, Any]] = {
        "base": {"files": {"model/model.safetensors": "x"},
                 "facts": {"template": {"name": "chatml", "hash": "abcdef0123456789"}}},
        "seed": {"files": {"rows/train.jsonl": "{}\n", "bad.jsonl": "{}\n"},
                 "rows": RowCounts(read=420, written={"train": 280, "test": 80}, dropped={f"odd reason {EVIL}": 60})},
        "rm": {"metrics": {"eval_accuracy": 0.8}},
        "best": {"files": {"rows/best.jsonl": "{}\n"}, "metrics": {"mean_score": 0.25, "best_score": 1.5},
                 "facts": {"histogram": {"edges": [0, 1, 2], "counts": [3, 1]}}},
        "dpo": {"facts": {"reference": {"artifact": "sft2-0123", "how": "frozen copy of the start adapter"}}},
        "eval": {"files": {"results.json": json.dumps(results()),
                           "answers.jsonl": "".join(json.dumps(row) + "\n" for row in answers())}, "metrics": flat},
    }
    made = {}
    for stage in run.stages:
        fields = dict(special.get(stage.name, {}))
        files = fields.pop("files", {})
        if stage.kind == "train":
            files = {"model/adapter_model.safetensors": "x", "events.jsonl": events(stage.name)}
        made[stage.name] = publish(store, run, stage.name, files, **fields)
    return made


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, Artifact]]:
    run = run_of(tmp_path_factory.mktemp("finished"), description=f"A run {EVIL}")
    return run, finish(run)
