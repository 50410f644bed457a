"""Rows laid out in fewer tokens against TRL's layout: plain TRL trainers and ours, side by side in one process.

    python -m benchmarks.pairs [--repeats 3] [--rows 4] [--steps 2] [--threads 2] [--model FOLDER]

For DPO and reward, pairs with prompts of 256 and answers of 32 tokens, and 128 and 128; for SFT, rows of 256 and 32,
and rows of mixed lengths. LoRA r 16 on the quickstart's model, float32. Each repeat runs, in turn, TRL's trainer and
ours; for SFT and reward also ours with TRL's layout (what the guards cost by themselves), and for SFT TRL with its own
default of gradient checkpointing. Wall and CPU seconds of `train()`, reference included; the ratio is taken repeat by
repeat, and losses are compared. Measures; judges nothing. Prints a table and writes benchmarks/results/pairs.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.model import base_model

RESULTS = Path(__file__).resolve().parent / "results"
SHAPES: dict[str, tuple[tuple[int, int], ...]] = {
    "256/32": ((256, 32),), "128/128": ((128, 128),), "mixed": ((20, 120), (240, 30), (60, 60), (130, 10)),
}
CASES = (("dpo", "256/32"), ("dpo", "128/128"), ("reward", "256/32"), ("reward", "128/128"), ("sft", "256/32"),
         ("sft", "mixed"))
SIDES = {"dpo": ("TRL", "ours"), "reward": ("TRL", "ours", "ours, TRL's layout"),
         "sft": ("TRL", "ours", "ours, TRL's layout", "TRL, its defaults")}


def rows(method: str, shape: str, count: int) -> list[dict[str, Any]]:
    """Token columns of `count` rows, of random ids; prompts and answers have the shape's lengths in turn."""
    draw = random.Random(7)

    def some(size: int) -> list[int]:
        return [draw.randrange(1000, 40000) for _ in range(size)]

    made = []
    for number in range(count):
        prompt, answer = (some(size) for size in SHAPES[shape][number % len(SHAPES[shape])])
        other = some(len(answer))
        if method == "sft":
            made.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
        elif method == "dpo":
            made.append({"prompt_ids": prompt, "chosen_ids": answer, "rejected_ids": other})
        else:
            made.append({"chosen_ids": prompt + answer, "rejected_ids": prompt + other})
    return [{**row, "row": number} for number, row in enumerate(made)]


def trainer_for(method: str, side: str, folder: Path, data: list[dict[str, Any]], size: int) -> Any:
    """A fresh trainer on a fresh adapter."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from transformers.trainer_callback import PrinterCallback
    from trl import DPOTrainer, RewardTrainer, SFTTrainer

    from alignment.training.guards import Rows
    from alignment.training.methods import dpo, reward, sft

    ours = {"dpo": dpo, "reward": reward, "sft": sft}[method].METHOD
    plain = {"dpo": DPOTrainer, "reward": RewardTrainer, "sft": SFTTrainer}[method]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token_id = 0
    torch.manual_seed(3)
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear",
                        task_type="SEQ_CLS" if method == "reward" else "CAUSAL_LM")
    if method == "reward":
        model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32, num_labels=1,
                                                                   pad_token_id=0)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    arguments = ours.config(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=size, num_train_epochs=1, learning_rate=1e-4,
        bf16=False, use_cpu=True, report_to="none", disable_tqdm=True, logging_steps=1, save_strategy="no",
        max_length=None, dataloader_pin_memory=False, gradient_checkpointing=side == "TRL, its defaults",
        **({"dataset_kwargs": {"skip_prepare_dataset": True}} if method == "sft" else {}))
    kind = ours.trainer if side.startswith("ours") else _prepared(plain)
    trainer: Any = kind(model=get_peft_model(model, config), args=arguments, processing_class=tokenizer,
                   train_dataset=Dataset.from_list(data))
    if side.startswith("ours"):
        trainer.row_ids = [str(row["row"]) for row in data]
        if side == "ours":
            trainer.settle_layout("benchmark")
        trainer.data_collator = Rows(trainer.data_collator)
    trainer.remove_callback(PrinterCallback)
    return trainer


def _prepared(plain: type[Any]) -> type[Any]:
    """TRL's trainer as it is, but that rows come tokenized."""
    return type(plain.__name__, (plain,), {"_prepare_dataset": lambda self, dataset, *args, **kwargs: dataset})


def timed(method: str, side: str, folder: Path, data: list[dict[str, Any]], size: int) -> dict[str, Any]:
    """Seconds of one training, and its losses."""
    trainer = trainer_for(method, side, folder, data, size)
    wall, cpu = time.monotonic(), time.process_time()
    trainer.train()
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    return {"wall": wall, "cpu": cpu, "losses": [e["loss"] for e in trainer.state.log_history if "loss" in e]}


def main() -> None:
    """Run every case, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=4, help="of one optimizer step")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cases", nargs="*", help="such as dpo:256/32; default: all")
    parser.add_argument("--model", type=Path, help="a local model folder; default: the quickstart's")
    given = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: the same for both sides
    import torch

    torch.set_num_threads(given.threads)
    cases = [tuple(case.split(":")) for case in given.cases] if given.cases else CASES
    out: dict[str, Any] = {"torch": torch.__version__, **{k: getattr(given, k) for k in ("rows", "steps", "threads")}}
    with tempfile.TemporaryDirectory() as name:
        folder = given.model or base_model(Path(name))
        for method, shape in cases:
            data = rows(method, shape, given.rows * given.steps)
            sides, runs = SIDES[method], {side: list[dict[str, Any]]() for side in SIDES[method]}
            timed(method, "ours", folder, data[:given.rows], given.rows)  # whatever only the first one waits for
            for repeat in range(given.repeats):
                for side in sides if repeat % 2 == 0 else sides[::-1]:
                    runs[side].append(timed(method, side, folder, data, given.rows))
            out[f"{method} {shape}"] = {side: summed(found, runs["TRL"]) for side, found in runs.items()}
    report(out, given.repeats)


def summed(found: list[dict[str, Any]], plain: list[dict[str, Any]]) -> dict[str, Any]:
    """Seconds, and how many times as fast as TRL's with the same arguments, repeat by repeat."""
    ratios = {clock: [b[clock] / a[clock] for a, b in zip(found, plain, strict=True)] for clock in ("wall", "cpu")}
    return {"runs": found, **{f"{clock}_ratio": statistics.median(values) for clock, values in ratios.items()},
            **{f"{clock}_spread": [min(values), max(values)] for clock, values in ratios.items()},
            "loss_apart": max(abs(one - other) for a, b in zip(found, plain, strict=True)
                              for one, other in zip(a["losses"], b["losses"], strict=True))}


def report(out: dict[str, Any], repeats: int) -> None:
    """The table on the terminal, the numbers in a file that is kept."""
    table = Table(title=f"TRL's seconds / ours, LoRA r 16, {out['rows']} rows a step, {out['threads']} threads, "
                        f"{repeats} repeats (median, least to most)")
    for column in ("", "", "wall s", "wall ratio", "CPU ratio", "loss apart"):
        table.add_column(column, justify="left" if not column else "right")
    for case, sides in out.items():
        for side, made in sides.items() if isinstance(sides, dict) else ():
            table.add_row(case, side, f"{statistics.median(run['wall'] for run in made['runs']):.1f}", *(
                f"{made[f'{clock}_ratio']:.2f} ({made[f'{clock}_spread'][0]:.2f} to {made[f'{clock}_spread'][1]:.2f})"
                for clock in ("wall", "cpu")), f"{made['loss_apart']:.0e}")
    Console().print(table)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "pairs.json").write_text(json.dumps(out, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
