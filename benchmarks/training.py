"""Training: our SFT defaults and whole-stage overhead against plain TRL, side by side in one run.

    python -m benchmarks.training [--repeats 3] [--rows 48] [--model FOLDER]

Each side is a process of its own, repeated in turn so that a drifting machine hits all alike: `ray_jobs/train.py`, a
bare TRL script with the same arguments, and one with TRL's defaults (gradient checkpointing on), on the same rows,
model and number of steps. Of each the CPU seconds (user and system, children too) of the whole process, and of what
comes before, in and after `Trainer.train()`; wall seconds beside them, which another program on the machine changes.

Measures; judges nothing. Prints a table and writes benchmarks/results/training.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from benchmarks.model import GGUF

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SEEDS = ROOT / "configs" / "seeds" / "harbour.jsonl"

WATCHED = '''
import json, os, runpy, sys, time
from transformers import Trainer
plain, out = Trainer.train, os.environ["BENCHMARK_TRAIN"]
def train(self, *args, **kwargs):
    began = time.process_time(), time.monotonic()
    made = plain(self, *args, **kwargs)
    cpu, wall = time.process_time() - began[0], time.monotonic() - began[1]
    with open(out, "w") as file:
        json.dump({"cpu_before": began[0], "cpu_train": cpu, "train": wall}, file)
    return made
Trainer.train = train
if __name__ == "__main__":
    if sys.argv[1].endswith(".py"):
        sys.argv = sys.argv[1:]
        sys.path.insert(0, os.path.dirname(sys.argv[0]))
        runpy.run_path(sys.argv[0], run_name="__main__")
'''
"""Measures `train()` of the script that its arguments name, or of what follows it."""
BARE = '''
import json, sys
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer
options = json.loads(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(options["model"])
model = AutoModelForCausalLM.from_pretrained(options["model"], dtype=torch.float32)
rows = [json.loads(line) for line in open(options["seeds"], encoding="utf-8")][: options["rows"]]
data = Dataset.from_list([{
    "prompt": [{"role": "user", "content": row["passage"] + "\\n\\n" + row["question"]}],
    "completion": [{"role": "assistant", "content": row["answer"]}]} for row in rows])
arguments = SFTConfig(
    output_dir=options["out"], per_device_train_batch_size=8, num_train_epochs=1, learning_rate=1e-4, bf16=False,
    use_cpu=True, report_to="none", disable_tqdm=True, logging_steps=1, **options["extra"])
trainer = SFTTrainer(model=model, args=arguments, processing_class=tokenizer, train_dataset=data,
                     peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
trainer.train()
trainer.save_model(options["out"] + "/model")
'''


def run_file(folder: Path, model: dict[str, Any], rows: int) -> Path:
    """A run with one SFT stage over the first rows of the seeds."""
    few = folder / "rows.jsonl"
    lines = SEEDS.read_text(encoding="utf-8").splitlines(keepends=True)
    few.write_text("".join(lines[:rows]), encoding="utf-8")
    tree = {
        "name": "bench", "store": str(folder / "store"), "compute": {"dtype": "float32", "device": "cpu"},
        "stages": [
            {"name": "base", "kind": "import", "model": model, "dtype": "float32"},
            {"name": "data", "kind": "import", "split": {"by": "ratio", "ratios": {"train": 1.0}},
             "data": [{"path": str(few), "format": "passage-qa"}]},
            {"name": "sft", "kind": "train", "method": "sft", "model": "base", "rows": ["data/train"],
             "batch_size": 8, "micro_batch_size": 8, "learning_rate": 1e-4, "checkpoints": {"every": 1000}},
        ],
    }
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return file


def measured(command: list[str], folder: Path) -> dict[str, float]:
    """Seconds of a process that runs WATCHED: wall, and CPU of the whole and of its parts."""
    told = folder / "train.json"
    environment = {**os.environ, "BENCHMARK_TRAIN": str(told), "OMP_WAIT_POLICY": "PASSIVE"}  # the same for all sides
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(command, check=True, capture_output=True, env=environment)
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    made: dict[str, float] = json.loads(told.read_text(encoding="utf-8"))
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {**made, "cpu_after": cpu - made["cpu_before"] - made["cpu_train"], "cpu": cpu, "whole": wall}


def ours(file: Path, seed: int) -> dict[str, float]:
    """One fresh SFT stage as its own process; a new seed makes it a new artifact."""
    overrides = [f"seed={seed}"]
    for stage in ("base", "data"):
        command = [sys.executable, str(ROOT / "ray_jobs/import_stage.py"), str(file), stage, *overrides]
        subprocess.run(command, check=True, capture_output=True)
    return measured([sys.executable, "-c", WATCHED, str(ROOT / "ray_jobs/train.py"), str(file), "sft", *overrides],
                    file.parent)


def imported(file: Path) -> Path:
    """The model folder that our side trains from."""
    from alignment.config import load_run
    from alignment.pipeline import status

    artifact = status(load_run(file, []))["base"]
    assert artifact is not None
    return artifact.path() / "model"


def bare(model: Path, rows: int, folder: Path, **extra: Any) -> dict[str, float]:
    """One bare TRL script as its own process."""
    options = {"model": str(model), "seeds": str(SEEDS), "rows": rows, "out": str(folder / "trl"), "extra": extra}
    return measured([sys.executable, "-c", WATCHED + BARE, json.dumps(options)], folder)


def main() -> None:
    """Run the comparisons, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--model", type=Path, help="a local model folder; default: the quickstart's")
    arguments = parser.parse_args()
    source = {"source": "folder", "path": str(arguments.model)} if arguments.model else GGUF
    sides: dict[str, list[dict[str, float]]] = {"kubealign": [], "TRL, same arguments": [], "TRL, its defaults": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = run_file(folder, source, arguments.rows)
        for repeat in range(arguments.repeats):
            sides["kubealign"].append(ours(file, repeat))
            model = imported(file)
            sides["TRL, same arguments"].append(
                bare(model, arguments.rows, folder, gradient_checkpointing=False, save_strategy="no"))
            sides["TRL, its defaults"].append(bare(model, arguments.rows, folder))
    report(sides, arguments)


PARTS = ("cpu_before", "cpu_train", "cpu_after", "cpu", "train", "whole")


def report(sides: dict[str, list[dict[str, float]]], arguments: argparse.Namespace) -> None:
    """Medians, and ratios repeat by repeat against TRL with the same arguments."""
    table = Table(title=f"Seconds (medians of {arguments.repeats}): SFT, LoRA r 16, {arguments.rows} rows, batch 8")
    for column in ("", "CPU before", "CPU train()", "CPU after", "CPU", "wall train()", "wall"):
        table.add_column(column, justify="left" if not column else "right")
    reference, out = sides["TRL, same arguments"], dict[str, Any]()
    for name, runs in sides.items():
        ratios = {part: [b[part] / a[part] for a, b in zip(runs, reference, strict=True)] for part in PARTS}
        table.add_row(name, *(f"{statistics.median(run[part] for run in runs):.1f}" for part in PARTS))
        table.add_row("  TRL, same arguments / this", *(f"{statistics.median(ratios[part]):.2f}" for part in PARTS))
        out[name] = {"runs": runs, "ratio": {part: [statistics.median(found), min(found), max(found)]
                                             for part, found in ratios.items()}}
    Console(width=120).print(table)
    RESULTS.mkdir(parents=True, exist_ok=True)
    made = {"rows": arguments.rows, "threads": os.environ.get("OMP_NUM_THREADS"), **out}
    (RESULTS / "training.json").write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
