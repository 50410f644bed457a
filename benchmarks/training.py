"""Training: our SFT defaults and whole-stage overhead against plain TRL, side by side in one run.

    python -m benchmarks.training [--repeats 3] [--rows 48] [--model FOLDER]

Two comparisons, each repeated in turn so that a drifting machine hits both sides alike:
  throughput  tokens/s of the training loop: our stage, TRL with the same arguments, TRL with its own defaults
              (gradient checkpointing on), on the same rows, model and number of steps
  overhead    whole-process seconds of `ray_jobs/train.py` against a bare TRL script doing the same steps

Measures; judges nothing. Prints a table and writes benchmarks/out/training.json.
"""

from __future__ import annotations

import argparse
import json
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

from benchmarks.model import GGUF, OUT

ROOT = Path(__file__).resolve().parent.parent
SEEDS = ROOT / "configs" / "seeds" / "harbour.jsonl"

BARE = '''
import json, sys, time
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
began = time.monotonic()
trainer.train()
seconds = time.monotonic() - began
trainer.save_model(options["out"] + "/model")
tokens = sum(len(row["input_ids"]) for row in trainer.train_dataset)
print(json.dumps({"tokens_per_second": tokens / seconds, "train_seconds": seconds}))
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


def ours(file: Path, seed: int) -> dict[str, float]:
    """One fresh SFT stage as its own process; a new seed makes it a new artifact."""
    from alignment.config import load_run
    from alignment.pipeline import status

    overrides = [f"seed={seed}"]
    for stage in ("base", "data"):
        command = [sys.executable, str(ROOT / "ray_jobs/import_stage.py"), str(file), stage, *overrides]
        subprocess.run(command, check=True, capture_output=True)
    began = time.monotonic()
    subprocess.run([sys.executable, str(ROOT / "ray_jobs/train.py"), str(file), "sft", *overrides], check=True,
                   capture_output=True)
    whole = time.monotonic() - began
    run = load_run(file, overrides)
    made = status(run)["sft"]
    assert made is not None
    timing = made.manifest.facts["timing"]
    return {"tokens_per_second": timing["tokens_per_second"], "train_seconds": timing["train_seconds"], "whole": whole}


def bare(model: Path, rows: int, folder: Path, **extra: Any) -> dict[str, float]:
    """One bare TRL script as its own process."""
    options = {"model": str(model), "seeds": str(SEEDS), "rows": rows, "out": str(folder), "extra": extra}
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", BARE, json.dumps(options)], check=True, capture_output=True, text=True)
    whole = time.monotonic() - began
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {**result, "whole": whole}


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
            model = next((folder / "store" / "artifacts").glob("base-*")) / "model"
            sides["TRL, same arguments"].append(
                bare(model, arguments.rows, folder / "trl", gradient_checkpointing=False, save_strategy="no"))
            sides["TRL, its defaults"].append(bare(model, arguments.rows, folder / "trl"))
    report(sides, arguments)


def report(sides: dict[str, list[dict[str, float]]], arguments: argparse.Namespace) -> None:
    """Medians, and ratios repeat by repeat against TRL with the same arguments."""
    table = Table(title=f"SFT, LoRA r 16, {arguments.rows} rows, batch 8, {arguments.repeats} repeats (medians)")
    for column in ("", "tokens/s", "ratio", "whole process s", "ratio"):
        table.add_column(column, justify="left" if not column else "right")
    reference, out = sides["TRL, same arguments"], {}
    for name, runs in sides.items():
        speed = [run["tokens_per_second"] for run in runs]
        whole = [run["whole"] for run in runs]
        ratios = [a["tokens_per_second"] / b["tokens_per_second"] for a, b in zip(runs, reference, strict=True)]
        wholes = [a["whole"] / b["whole"] for a, b in zip(runs, reference, strict=True)]
        table.add_row(name, f"{statistics.median(speed):.0f}", f"{statistics.median(ratios):.2f}",
                      f"{statistics.median(whole):.1f}", f"{statistics.median(wholes):.2f}")
        out[name] = {"runs": runs, "speed_ratio": statistics.median(ratios), "whole_ratio": statistics.median(wholes)}
    Console().print(table)
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "training.json").write_text(json.dumps(out, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
