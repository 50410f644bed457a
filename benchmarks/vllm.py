"""Speed of our vLLM engine beside a bare `vllm.LLM`: the same prompts, the same lengths of answers.

    python -m benchmarks.vllm [--prompts 200] [--n 4] [--mean 16] [--longest 128] [--temperature 0.8] [--top-p 0.95]
                               [--dtype bfloat16] [--device cpu]

The bare side gets all requests at once, with vLLM's own sampler and defaults; so does a tuned one, in one process and
with the options that we start vLLM with on a CPU (blocks of 32, so that short prompts share theirs). Ours gets them as
a stage does, in batches of 32 prompts, those to come begun ahead; its prompts are tokenized and its answers decoded in
one process and made in another. Lengths of answers are drawn once, log-normal, so that a few are long; no answer ends
by itself, so both sides do the same work. Sides run one after the other, each after a warm-up. On a machine with other
work read tokens per CPU second; both count all processes of a side. On CPUs vLLM's sampler sorts the whole vocabulary
for top_p, and ours does not: `--top-p 1` leaves that out of the comparison, `--temperature 0` all of sampling. The
model is the quickstart's. Not a measure of quality. Prints a table, and puts the measurement into
benchmarks/results/vllm.json, beside those with other settings.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results" / "vllm.json"
BATCH = 32
WARM_UP = 8
TICKS = os.sysconf("SC_CLK_TCK")


def lengths(count: int, mean: float, longest: int) -> list[int]:
    """Tokens of answers, log-normal with sigma 1: most are short and a few long."""
    draw = random.Random(5)
    mu = math.log(mean) - 0.5
    return [max(1, min(longest, round(math.exp(draw.gauss(mu, 1.0))))) for _ in range(count)]


def spent() -> float:
    """CPU seconds of this process and all that it started and that run (Linux)."""
    found: dict[int, tuple[int, float]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text(encoding="utf-8").rpartition(")")[2].split()
            found[int(stat.parent.name)] = int(fields[1]), (int(fields[11]) + int(fields[12])) / TICKS
    mine = {os.getpid()}
    while more := {process for process, (parent, _) in found.items() if parent in mine} - mine:
        mine |= more
    return sum(found[process][1] for process in mine)


def ours(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Through `VllmGenerator`, as a sample stage's batches do."""
    from alignment.artifacts import Store
    from alignment.config import parse_run
    from alignment.context import StageContext
    from alignment.inference.requests import Draw, Request
    from alignment.inference.vllm.generator import VllmGenerator
    from benchmarks.sampling import conversations

    artifact = Store(str(folder.parents[2])).find(folder.parent.name)
    assert artifact is not None
    run = parse_run(json.dumps({"name": "bench", "compute": {
        "engine": "vllm", "dtype": options.dtype, "device": options.device}, "stages": [
            {"name": "base", "kind": "import", "model": {"source": "tiny"}},
            {"name": "rows", "kind": "import", "data": [{"path": "x.jsonl", "format": "passage-qa"}],
             "split": {"by": "ratio", "ratios": {"train": 0.5, "test": 0.5}}},
            {"name": "rs", "kind": "sample", "model": "base", "prompts": ["rows/train"],
             "score": {"function": "brevity"}, "sampling": {"max_new_tokens": options.longest},
             "max_prompt_tokens": 256}]}))
    context = StageContext(run, run.stage("rs"), artifact.store, "rs-0", "d" * 64, {"base": artifact}, folder)
    wanted = lengths(options.prompts * options.n, options.mean, options.longest)
    requests = [
        Request(str(row), prompt, tuple(
            Draw(options.temperature, options.top_p, max_new_tokens=wanted[place], seed=place)
            for place in range(row * options.n, (row + 1) * options.n)))
        for row, prompt in enumerate(conversations(options.prompts, 60))
    ]
    with VllmGenerator(context, "base") as engine:
        engine.load()
        engine.stops = ()
        warm = [Request(f"warm-{one.id}", one.prompt, one.draws) for one in requests[:WARM_UP]]
        engine.generate(warm)
        began, cpu = time.perf_counter(), spent()
        batches = [requests[start : start + BATCH] for start in range(0, len(requests), BATCH)]
        told = tokens = 0
        for place, batch in enumerate(batches):
            told = max(told, place)
            while told < len(batches) and engine.ahead:
                engine.begin(batches[told])
                told += 1
            tokens += sum(len(one.ids) for own in engine.generate(batch) for one in own)
        return {"seconds": time.perf_counter() - began, "cpu_seconds": spent() - cpu, "tokens": tokens}


def tuned(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """`vllm.LLM` with what we start vLLM with on a CPU, in one process; sampling is vLLM's."""
    from alignment.inference.vllm.choice import SEQUENCES

    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    return bare(options, folder, block_size=32, max_num_seqs=SEQUENCES, max_num_batched_tokens=2048)


def bare(options: argparse.Namespace, folder: Path, **more: int) -> dict[str, float]:
    """`vllm.LLM` with its defaults, all requests at once."""
    import vllm
    from transformers import AutoTokenizer

    from alignment.templates import encode_prompt
    from benchmarks.sampling import conversations

    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = [encode_prompt(tokenizer, prompt) for prompt in conversations(options.prompts, 60)]
    extra: dict[str, Any] = dict(more)
    if options.device == "cpu":
        extra |= {"kv_cache_memory_bytes": 2**31, "enforce_eager": True}
    model = vllm.LLM(str(folder), dtype=options.dtype, max_model_len=256 + options.longest, generation_config="vllm",
                     **extra)
    asked = [{"prompt_token_ids": prompt} for prompt in prompts for _ in range(options.n)]
    params = [vllm.SamplingParams(temperature=options.temperature, top_p=options.top_p, max_tokens=length,
                                  ignore_eos=True)
              for length in lengths(options.prompts * options.n, options.mean, options.longest)]
    model.generate(asked[: WARM_UP * options.n], params[: WARM_UP * options.n], use_tqdm=False)
    began, cpu = time.perf_counter(), spent()
    tokens = sum(len(one.outputs[0].token_ids) for one in model.generate(asked, params, use_tqdm=False))
    return {"seconds": time.perf_counter() - began, "cpu_seconds": spent() - cpu, "tokens": tokens}


SIDES: dict[str, Callable[[argparse.Namespace, Path], dict[str, float]]] = {
    "bare": bare, "tuned": tuned, "ours": ours}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--n", type=int, default=4)
    parser.add_argument("--mean", type=float, default=16, help="tokens of an answer, about")
    parser.add_argument("--longest", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--side", choices=list(SIDES), help="run one side alone, in this process")
    parser.add_argument("--folder", type=Path, help="the model folder of a side")
    options = parser.parse_args()
    if options.side is not None:
        print(json.dumps(SIDES[options.side](options, options.folder)))
        return 0
    from benchmarks.model import base_model

    with tempfile.TemporaryDirectory() as folder:
        model = base_model(Path(folder))
        sides = {side: _apart(side, model) for side in SIDES if side != "tuned" or options.device == "cpu"}
    show(options, sides)
    return 0


def _apart(side: str, model: Path) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-m", "benchmarks.vllm", *sys.argv[1:], "--side", side, "--folder",
                           str(model)], stdout=subprocess.PIPE, text=True, check=True,
                          env={"VLLM_CPU_OMP_THREADS_BIND": "nobind", **os.environ})
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def show(options: argparse.Namespace, sides: dict[str, dict[str, float]]) -> None:
    """Print the table, write the JSON."""
    if len({one["tokens"] for one in sides.values()}) > 1:
        raise SystemExit(f"the sides did not do the same work: {sides}")
    rates = {side: {unit: round(one["tokens"] / one[unit], 1) for unit in ("seconds", "cpu_seconds")}
             for side, one in sides.items()}
    ratios = {side: {unit: round(rates["ours"][unit] / one[unit], 3) for unit in one}
              for side, one in rates.items() if side != "ours"}
    table = Table("side", "tokens", "seconds", "CPU seconds", "tokens/s", "tokens per CPU second")
    for side, one in sides.items():
        table.add_row(side, f"{one['tokens']:.0f}", f"{one['seconds']:.1f}", f"{one['cpu_seconds']:.1f}",
                      f"{rates[side]['seconds']:.0f}", f"{rates[side]['cpu_seconds']:.0f}")
    console = Console(file=sys.stdout)
    console.print(table)
    for side, ratio in ratios.items():
        console.print(f"ours / {side}: {ratio['seconds']:.2f} by the clock, {ratio['cpu_seconds']:.2f} by CPU time")
    settings = {"prompts": options.prompts, "n": options.n, "mean": options.mean, "longest": options.longest,
                "temperature": options.temperature, "top_p": options.top_p, "dtype": options.dtype,
                "device": options.device, "machine": platform.machine(), "threads": os.environ.get("OMP_NUM_THREADS")}
    before = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []
    kept = [one for one in before if any(one[key] != value for key, value in settings.items())]
    kept.append({**settings, "sides": sides, "rates": rates, "ours_over": ratios})
    RESULTS.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
