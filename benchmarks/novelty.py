"""Speed of the novelty index beside the reference's way, which asks rouge_score for every text of the pool.

    python -m benchmarks.novelty [--data ../shared/data] [--pool 50000] [--candidates 300] [--sample 2500]

The pool is made of real instructions (Self-Instruct's 175 seed tasks, 999 of Alpaca, prompts of P3): half of one with
half of another, so that words are as frequent as they are. The reference's way takes a pool of 50,000 seconds for one
candidate, so it is timed over a sample of the pool and scaled up; it is linear in the pool. The reference spreads a
candidate over processes: on two cores it is twice as fast at best, and that is what is compared with, while the index
runs in one process. Times are CPU seconds, as other work on the machine does not count in them. Scores are compared
over the sample. Prints a table and writes benchmarks/results/novelty.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rouge_score import rouge_scorer

from alignment.generation.novelty import Novelty

RESULTS = Path(__file__).parent / "results" / "novelty.json"
CORES = 2
THRESHOLD = 0.7


def instructions(data: Path) -> list[str]:
    """Real ones, at most 60 words each."""
    found = []
    for name in ("seeds/self_instruct_seed_tasks_en.jsonl", "instruct/alpaca_en_999.json", "instruct/t0_p3_5k.jsonl"):
        text = (data / name).read_text(encoding="utf-8")
        rows = json.loads(text) if name.endswith(".json") else [json.loads(line) for line in text.split("\n") if line]
        found += [" ".join((row.get("instruction") or row["prompt"]).split()[:60]) for row in rows]
    return found


def mixed(real: list[str], count: int, seed: int) -> list[str]:
    """Half of one with half of another."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        one, other = (draw.choice(real).split() for _ in range(2))
        made.append(" ".join([*one[: max(1, len(one) // 2)], *other[len(other) // 2 :]]))
    return made


def measure(pool: list[str], candidates: list[str], sample: int) -> dict[str, Any]:
    """Seconds for a candidate, by the index and by the reference's way."""
    index = Novelty()
    began = time.process_time()
    for text in pool:
        index.add(text)
    adding = (time.process_time() - began) / len(pool)
    refusing, keeping = [], []
    for text in candidates:
        began = time.process_time()
        near = index.nearest(text, THRESHOLD)
        found = time.process_time()
        refusing.append(found - began)
        if near is None:
            index.similar(text)
        keeping.append(time.process_time() - began)
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    theirs, same = [], 0
    for text in candidates[:5]:
        began = time.process_time()
        scores = [scorer.score(other, text)["rougeL"].fmeasure for other in pool[:sample]]
        theirs.append((time.process_time() - began) / sample * len(pool))
        same += scores == index.scores(text)[:sample].tolist()
    ours, reference = statistics.mean(keeping), statistics.mean(theirs) / CORES
    return {
        "pool": len(pool), "candidates": len(candidates), "add_ms": round(1000 * adding, 4),
        "decide_ms": round(1000 * statistics.mean(refusing), 3), "whole_ms": round(1000 * ours, 3),
        "reference_ms": round(1000 * reference, 1), "rows_per_second": round(1 / ours, 1),
        "reference_rows_per_second": round(1 / reference, 3), "times": round(reference / ours, 1),
        "same_scores": f"{same} of {len(theirs)} candidates over {sample} texts",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--pool", type=int, nargs="*", default=[1_000, 10_000, 50_000])
    parser.add_argument("--candidates", type=int, default=300)
    parser.add_argument("--sample", type=int, default=1_000)
    given = parser.parse_args()
    real = instructions(given.data)
    pool, candidates = mixed(real, max(given.pool), 1), mixed(real, given.candidates, 2)
    made = [measure(pool[:size], candidates, min(given.sample, size)) for size in given.pool]
    table = Table("pool", "decide, ms", "with top 10 and mean, ms", "rows/s", f"reference on {CORES} cores, rows/s",
                  "times")
    for one in made:
        table.add_row(f"{one['pool']:,}", f"{one['decide_ms']:.2f}", f"{one['whole_ms']:.2f}",
                      f"{one['rows_per_second']:,.0f}", f"{one['reference_rows_per_second']:.3f}",
                      f"{one['times']:,.0f}")
    Console().print(table)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(),
                                   "python": platform.python_version(), "results": made}, indent=1) + "\n",
                       encoding="utf-8")


if __name__ == "__main__":
    main()
