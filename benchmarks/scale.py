"""Memory and speed of import, split, overlap, token columns, `check` and `plan` by the number of rows.

    python -m benchmarks.scale [--rows 10000 50000] [--steps import prepare ...] [--words 60] [--into FOLDER]

Rows are made: words of this repository's documentation, as frequent as there; one row in fifty is a near copy of an
earlier one, one in a hundred stands behind a shared instruction, one in two hundred is not usable. Each step is a
process of its own: its peak of resident memory (and what it held once its libraries were loaded), CPU seconds (its
children's too), rows per CPU second.

    import    read, checked, split 98 : 2, written; the splits compared with each other
    overlap   the held-out check of an evaluation: the small split against the large one
    prepare   token columns of an SFT stage, SmolLM2's tokenizer
    check     `kubealign check`     of a run over them
    plan      `kubealign plan`

Measures; judges nothing. Prints a table and writes benchmarks/results/scale.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results" / "scale.json"
STEPS = ("import", "overlap", "prepare", "check", "plan")
FRAME = "Read what follows with care and say in one short sentence whether its author liked it or did not:"


def write_rows(path: Path, count: int, words: int) -> None:
    """Prompt and answer of each row, half of `words` each, give or take a half."""
    draw = random.Random(f"{count}/{words}")
    docs = " ".join(page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").glob("*.md")))
    found = Counter(re.findall(r"[A-Za-z]+[,.;]?", docs)).most_common(8_000)
    vocabulary = [word for word, _ in found]
    weights = list(accumulate(count for _, count in found))

    def text(low: int, high: int) -> list[str]:
        return draw.choices(vocabulary, cum_weights=weights, k=draw.randint(low, high))

    recent: list[list[str]] = []
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            kind = draw.random()
            if kind < 0.02 and recent:
                prompt = list(draw.choice(recent))
                prompt[draw.randrange(len(prompt))] = "another"
            else:
                prompt = text(words // 4, words * 3 // 4)
                if kind < 0.03:
                    prompt = [*FRAME.split(), *prompt]
                recent = [*recent[-499:], prompt]
            row = {"id": number, "prompt": " ".join(prompt), "completion": " ".join(text(words // 4, words * 3 // 4))}
            file.write(json.dumps({} if kind > 0.995 else row) + "\n")


def run_of(folder: Path) -> dict[str, Any]:
    """A run over the rows, in a store within the folder."""
    return {"name": "scale", "store": str(folder / "store"), "stages": [
        {"name": "base", "kind": "import", "model": {"source": "tiny"}},
        {"name": "rows", "kind": "import", "max_bad": 0.02,
         "data": [{"path": str(folder / "rows.jsonl"), "format": "prompt-completion"}],
         "split": {"by": "ratio", "ratios": {"train": 0.98, "test": 0.02}}},
        {"name": "sft", "kind": "train", "method": "sft", "model": "base", "rows": ["rows/train"], "max_length": 1024},
        {"name": "eval", "kind": "evaluate", "models": ["base", "sft"], "rows": "rows/test"}]}


def do_import(folder: Path) -> dict[str, Any]:
    from alignment.artifacts import Store
    from alignment.config import parse_run
    from alignment.context import StageContext
    from alignment.data.import_data import import_data

    run = parse_run((folder / "run.yaml").read_text(encoding="utf-8"))
    context = StageContext(run, run.stage("rows"), Store(run.store), "rows-0", "0" * 64, {}, folder / "imported")
    shutil.rmtree(context.work, ignore_errors=True)
    begin()
    outcome = import_data(context)
    return {"read": outcome.rows.read, "written": outcome.rows.written, "dropped": outcome.rows.dropped}


def do_overlap(folder: Path) -> dict[str, Any]:
    from alignment.data.overlap import find_overlap
    from alignment.records import each_record, read_records

    begin()
    rows = folder / "imported" / "out" / "rows"
    found = find_overlap(read_records(rows / "test.jsonl"), each_record(rows / "train.jsonl"))
    return {"found": len(found)}


def do_prepare(folder: Path) -> dict[str, Any]:
    from alignment.config import TrainBase, parse_run
    from alignment.records import each_record
    from alignment.training.columns import made_once
    from alignment.training.looked_at import opened
    from alignment.training.methods import method_of
    from alignment.training.prepare import Prepared, prepare
    from alignment.training.ranks import Disk

    stage = parse_run((folder / "run.yaml").read_text(encoding="utf-8")).stage("sft")
    assert isinstance(stage, TrainBase)
    method, tokenizer = method_of(stage), opened(str(folder.parent / "tokenizer"), None, "benchmark")
    shutil.rmtree(folder / "prepared", ignore_errors=True)
    begin()

    def fill(into: Prepared) -> None:
        prepare(each_record(folder / "imported" / "out" / "rows" / "train.jsonl"), tokenizer, stage, "benchmark",
                method.columns, into)

    prepared, rows = made_once(folder / "prepared", Disk(0, 1, True), "train", fill)
    return {"columns": len(rows), "tokens": sum(prepared.lengths)}


def do_command(name: str, folder: Path) -> dict[str, Any]:
    from alignment.cli.main import main

    begin()
    sys.argv = ["kubealign", name, str(folder / "run.yaml")]
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"{name} ended with {end.code}") from end
    return {}


DO: dict[str, Callable[[Path], dict[str, Any]]] = {
    "import": do_import, "overlap": do_overlap, "prepare": do_prepare,
    "check": lambda folder: do_command("check", folder), "plan": lambda folder: do_command("plan", folder)}
_began: dict[str, float] = {}


def begin() -> None:
    """Libraries are there; from here on it counts."""
    _began.update(cpu=_cpu(), wall=time.monotonic(), mib=_peak())


def _cpu() -> float:
    return sum(use.ru_utime + use.ru_stime for use in map(resource.getrusage, (
        resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def _peak() -> float:
    """MiB of resident memory at most so far. Not getrusage's, which a process has from the one that started it."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / 1024


def one_step(step: str, folder: Path, out: Path) -> None:
    """In a process of its own: do it, and leave its figures in a file."""
    said = DO[step](folder)
    out.write_text(json.dumps({
        **said, "cpu_seconds": round(_cpu() - _began["cpu"], 2), "seconds": round(time.monotonic() - _began["wall"], 2),
        "peak_mib": round(_peak()), "libraries_mib": round(_began["mib"])}), encoding="utf-8")


def tokenizer_in(folder: Path) -> None:
    """SmolLM2's, from the package that carries it."""
    from importlib.util import find_spec

    from benchmarks.model import GGUF

    if not (folder / "tokenizer_config.json").exists():
        from transformers import AutoTokenizer

        spec = find_spec(GGUF["package"])
        assert spec is not None
        assert spec.origin is not None
        found = next(Path(spec.origin).parent.rglob(GGUF["file"]))
        AutoTokenizer.from_pretrained(found.parent, gguf_file=found.name).save_pretrained(folder)


def measure(count: int, steps: list[str], words: int, into: Path) -> list[dict[str, Any]]:
    """Every step over so many rows, each in a process of its own."""
    folder = into / str(count)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "rows.jsonl").exists():
        write_rows(folder / "rows.jsonl", count, words)
    (folder / "run.yaml").write_text(yaml.safe_dump(run_of(folder), sort_keys=False), encoding="utf-8")
    if "prepare" in steps:
        tokenizer_in(into / "tokenizer")
    made = []
    for step in steps:
        out = folder / f"{step}.json"
        subprocess.run([sys.executable, "-m", "benchmarks.scale", "--one", step, str(folder), str(out)], check=True,
                       stdout=subprocess.DEVNULL if step in ("check", "plan") else None)
        figures = json.loads(out.read_text(encoding="utf-8"))
        made.append({"rows": count, "step": step, **figures,
                     "rows_per_cpu_second": round(count / max(figures["cpu_seconds"], 1e-9))})
        Console(stderr=True).print(made[-1])
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, nargs="*", default=[10_000, 50_000])
    parser.add_argument("--steps", nargs="*", choices=STEPS, default=list(STEPS))
    parser.add_argument("--words", type=int, default=60)
    parser.add_argument("--into", type=Path)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        one_step(given.one[0], Path(given.one[1]), Path(given.one[2]))
        return
    with tempfile.TemporaryDirectory() as temporary:
        into = given.into or Path(temporary)
        made = [row for count in given.rows for row in measure(count, given.steps, given.words, into)]
    table = Table("rows", "step", "peak, MiB", "of it libraries", "CPU s", "rows per CPU s")
    for row in made:
        table.add_row(f"{row['rows']:,}", row["step"], f"{row['peak_mib']:,}", f"{row['libraries_mib']:,}",
                      f"{row['cpu_seconds']:.1f}", f"{row['rows_per_cpu_second']:,}")
    Console().print(table)
    if RESULTS.exists():  # what was measured of other numbers of rows stays
        there = {(row["rows"], row["step"]) for row in made}
        before = json.loads(RESULTS.read_text(encoding="utf-8"))["results"]
        made = [row for row in before if (row["rows"], row["step"]) not in there] + made
    RESULTS.write_text(json.dumps({"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(),
                                   "python": platform.python_version(), "words": given.words, "results": made},
                                  indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
