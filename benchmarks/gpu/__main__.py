"""One part of the GPU benchmark: ours beside plain TRL or transformers, in processes of their own, in turns.

    python -m benchmarks.gpu {sft,qlora,dpo,reward,sampling} [--shape llama-8b] [--seconds 330] [--out FOLDER]

  sft, qlora   LoRA r 16 on every linear layer; qlora again under a cap of 24 GiB
  dpo, reward  pairs whose prompt is half or eight ninths of the sequence
  sampling     our engine beside transformers' generate

Each side takes two steps to warm up, then the median of the timed ones counts. What does not fit into the seconds is
listed as not run; a side that fails is listed with the end of what it said. MFU counts 4 N floating-point operations a
token (frozen weights have no gradients of their own; forward and backward through them are 2 N each), over the dense
bfloat16 rate of the card. Writes FOLDER/gpu-PART-SHAPE.json and prints a table. Judges nothing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.table import Table

from benchmarks.gpu.shapes import SHAPES, Shape, make_model, write_rows

WARM = 2
"""Steps before the timed ones."""
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12, "4090": 165e12, "A6000": 155e12}
"""Dense bfloat16 operations a second by the vendor's data sheets; a part of the card's name."""
PLAIN = {"trl": {}, "trl, no checkpointing": {"gradient_checkpointing": False}}


class Bench:
    """A part's folder, its clock, and what its sides gave."""

    def __init__(self, shape: Shape, folder: Path, seconds: float) -> None:
        self.shape, self.folder, self.ends = shape, folder, time.monotonic() + seconds
        self.results: list[dict[str, Any]] = []
        self.tiny = _tiny_tokenizer(folder)
        make_model(shape, self.tiny, folder / "weights")

    def side(self, label: dict[str, Any], **options: Any) -> dict[str, Any]:
        """One process; what it printed last, or why there is nothing."""
        left = self.ends - time.monotonic()
        if left < 20:
            found: dict[str, Any] = {"not_run": "no time was left"}
        else:
            command = [sys.executable, "-m", "benchmarks.gpu.side", json.dumps(options)]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=left)
                found = (json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else
                         {"failed": (done.stderr or done.stdout).strip()[-600:]})
            except subprocess.TimeoutExpired:
                found = {"not_run": f"not finished in the {left:.0f} s that were left"}
        print(json.dumps(label | {k: v for k, v in found.items() if k != "seconds"}), flush=True)
        return found

    def keep(self, label: dict[str, Any], found: dict[str, Any], tokens: float) -> None:
        """Add a side's figures, with tokens/s over its timed steps."""
        timed = found.pop("seconds", [])[WARM - 1:]
        rate = tokens / statistics.median(timed) if timed else None
        self.results.append(label | found | {"tokens_per_second": rate, "step_seconds": timed})


def _tiny_tokenizer(folder: Path) -> Path:
    """The model folder of a tiny import, for its tokenizer and chat template."""
    file = folder / "tiny.yaml"
    model = {"source": "tiny", "vocab_size": 512, "hidden_size": 32, "layers": 1, "heads": 2}
    file.write_text(yaml.safe_dump({"name": "tiny", "store": str(folder / "tiny"), "stages": [
        {"name": "base", "kind": "import", "model": model}]}), encoding="utf-8")
    from alignment.config import load_run
    from alignment.pipeline import execute

    artifact = execute(load_run(file)).artifacts["base"]
    assert artifact is not None
    return artifact.path() / "model"


def training(bench: Bench, part: str) -> None:
    """Train stages of one method, at every length."""
    shape, method = bench.shape, "sft" if part == "qlora" else part
    pairs, sequences = method != "sft", 1 if method == "sft" else 2
    for length in shape.lengths:
        for answer in (length // 2, length // 9) if pairs else (length // 2,):
            name = f"{length}-{answer}"
            data, steps = bench.folder / f"{name}.jsonl", shape.steps + WARM
            write_rows(bench.tiny, data, shape.rows * steps, length, answer, pairs=pairs)
            base: dict[str, Any] = {}
            caps = (None, 24) if part == "qlora" else (None,)
            for cap in caps:
                file = run_file(bench, f"{name}-{cap or 0}", data, method, part, length, steps, seed=cap or 1)
                common = {"file": str(file), "stage": "train", "cap": cap}
                if not base:
                    base = bench.side({"prepare": name}, side="prepare", **common)
                    if "model" not in base:
                        bench.results.append({"part": part, "length": length, "side": "imports"} | base)
                        return
                sides: dict[str, dict[str, Any]] = {"ours": {"side": "ours", **common}} | {
                    title: {"side": "trl", "model": base["model"], "method": method, "data": str(data), "cap": cap,
                            "rows": shape.rows, "steps": steps, "length": length, "quantised": part == "qlora",
                            "out": str(bench.folder / "trl"), "extra": extra}
                    for title, extra in PLAIN.items()}
                row_tokens = float(length)  # the last word may not fit; ours tells
                for side, options in sides.items():
                    label = {"part": part, "length": length, "answer": answer, "side": side, "cap_gib": cap}
                    found = bench.side(label, **options)
                    row_tokens = found.pop("row_tokens", row_tokens)
                    bench.keep(label, found, shape.rows * sequences * row_tokens)


def run_file(
    bench: Bench, name: str, data: Path, method: str, part: str, length: int, steps: int, seed: int
) -> Path:
    """A run that trains on the rows. The store is shared, so that the model is imported once; with another seed the
    same training is made again."""
    strategy = {"kind": "qlora" if part == "qlora" else "lora", "r": 16, "alpha": 32}
    rows = {"path": str(data), "format": "prompt-completion" if method == "sft" else "preference"}
    tree = {
        "name": f"gpu-{name}", "store": str(bench.folder / "store"), "seed": seed,
        "compute": {"device": "cuda" if torch.cuda.is_available() else "cpu", "dtype": "bfloat16"},
        "stages": [
            {"name": "base", "kind": "import", "dtype": "bfloat16",
             "model": {"source": "folder", "path": str(bench.folder / "weights")}},
            {"name": "data", "kind": "import", "data": [rows], "split": {"by": "ratio", "ratios": {"train": 1.0}}},
            {"name": "train", "kind": "train", "method": method, "model": "base", "rows": ["data/train"],
             "strategy": strategy, "batch_size": bench.shape.rows, "micro_batch_size": bench.shape.rows,
             "learning_rate": 1e-4, "max_length": length + 16, "checkpoints": {"every": 1000},
             "trl": {"max_steps": steps}},
        ],
    }
    file = bench.folder / f"{name}-{part}.yaml"
    file.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return file


def sampling(bench: Bench) -> None:
    """Our engine and plain generate in one process, in turns: benchmarks.sampling."""
    prompts, n, words, tokens = bench.shape.answers
    device = "cuda" if torch.cuda.is_available() else "cpu"
    out = bench.folder / "sampling"
    command = [sys.executable, "-m", "benchmarks.sampling", "--model", str(bench.folder / "weights"), "--dtype",
               "bfloat16", "--device", device, "--prompts", str(prompts), "--n", str(n), "--words", str(words),
               "--tokens", str(tokens), "--rounds", "2", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=max(1.0, bench.ends - time.monotonic()))
    if done.returncode:
        bench.results.append({"part": "sampling", "failed": done.stderr.strip()[-600:]})
        return
    made = json.loads((out / "sampling-bfloat16.json").read_text(encoding="utf-8"))
    for side, rate in made["tokens_per_second"].items():
        bench.results.append({"part": "sampling", "side": side, "tokens_per_second": rate, "step_seconds":
                              made["seconds"][side]})


def show(results: list[dict[str, Any]], card: str) -> None:
    """The table; a ratio is to `trl` (or generate) of the same line of figures."""
    table = Table(title=card)
    columns = ("part", "length", "answer", "cap GiB", "side", "tokens/s", "ratio", "MFU", "peak GiB", "planned GiB")
    for column in columns:
        table.add_column(column, justify="left" if column in ("part", "side") else "right")
    for item in results:
        same = [one for one in results if all(one.get(key) == item.get(key) for key in ("length", "answer", "cap_gib"))]
        plain = next((one.get("tokens_per_second") for one in same if one.get("side") in ("trl", "generate")), None)
        rate, said = item.get("tokens_per_second"), item.get("failed") or item.get("not_run")
        table.add_row(
            item["part"], str(item.get("length", "")), str(item.get("answer", "")), str(item.get("cap_gib") or ""),
            item.get("side", ""), f"{rate:,.0f}" if rate else (said or "")[-60:],
            f"{rate / plain:.2f}" if rate and plain else "", f"{item['mfu']:.1%}" if item.get("mfu") else "",
            gib(max(item["peak"].values())) if "peak" in item else "", gib(item.get("planned")))
    Console(file=sys.stdout, width=150).print(table)


def gib(size: float | None) -> str:
    return "" if size is None else f"{size / 2**30:.2f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", choices=["sft", "qlora", "dpo", "reward", "sampling"])
    parser.add_argument("--shape", choices=SHAPES, default="llama-8b" if torch.cuda.is_available() else "tiny")
    parser.add_argument("--seconds", type=float, default=330.0, help="for all of the part")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "results")
    parser.add_argument("--work", type=Path, help="a folder for weights (17 GB each of two copies of an 8B) and stores")
    options = parser.parse_args()
    card = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU"
    began, folder = time.monotonic(), Path(tempfile.mkdtemp(dir=options.work))
    try:
        bench = Bench(SHAPES[options.shape], folder, options.seconds)
        sampling(bench) if options.part == "sampling" else training(bench, options.part)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    rated = next((value for name, value in PEAKS.items() if name in card), None)
    parameters = next((item["parameters"] for item in bench.results if "parameters" in item), None)
    for item in bench.results:
        if rated and parameters and item.get("tokens_per_second") and "length" in item:
            item["mfu"] = 4 * parameters * item["tokens_per_second"] / rated
    body = {"card": card, "shape": options.shape, "torch": torch.__version__, "seconds": time.monotonic() - began,
            "mfu": "4 N operations a token over the card's dense bfloat16 rate", "results": bench.results}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"gpu-{options.part}-{options.shape}.json").write_text(json.dumps(body, indent=2) + "\n",
                                                                         encoding="utf-8")
    show(bench.results, f"{options.part} · {options.shape} · {card}")
    return 1 if any("failed" in item for item in bench.results) else 0


if __name__ == "__main__":
    raise SystemExit(main())
