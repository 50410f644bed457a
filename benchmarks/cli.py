"""How fast the command line answers: start-up of sub-commands and imports of the rooms behind them.

    python benchmarks/cli.py [--repeat 7]

Every figure is a fresh Python process, bytecode already written. Prints a table and writes benchmarks/out/cli.json.
Does not measure runs: stages load heavy libraries on purpose.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

OUT = Path(__file__).parent / "out" / "cli.json"
COMMANDS = (
    ["--version"], ["--help"], ["schema"], ["check", "my-run.yaml"], ["status", "my-run.yaml"], ["plan", "my-run.yaml"],
)
IMPORTS = ("alignment.config", "alignment.artifacts", "alignment.cli.main", "alignment.pipeline", "alignment.report",
           "alignment.planner", "alignment.templates", "alignment.rewards", "alignment.data.import_data")


def measure(command: list[str], folder: Path, repeat: int) -> list[float]:
    """Wall seconds of `repeat` runs of a command, after one that is not counted."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["KUBEALIGN_CACHE"] = str(folder / "cache")
    seconds = []
    for attempt in range(repeat + 1):
        began = time.perf_counter()
        subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL,
                       stdin=subprocess.DEVNULL)
        if attempt:
            seconds.append(time.perf_counter() - began)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description="Start-up times of the command line.")
    parser.add_argument("--repeat", type=int, default=7, help="runs of each command")
    repeat = parser.parse_args().repeat
    kubealign = [sys.executable, "-c", "from alignment.cli.main import main; main()"]
    measured: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([*kubealign, "init", "my-run.yaml", "--recipe", "tiny"], cwd=folder, check=True,
                       stdout=subprocess.DEVNULL)
        for arguments in COMMANDS:
            measured["kubealign " + " ".join(arguments)] = measure([*kubealign, *arguments], folder, repeat)
        measured["python -c pass"] = measure([sys.executable, "-c", "pass"], folder, repeat)
        for module in IMPORTS:
            measured[f"import {module}"] = measure([sys.executable, "-c", f"import {module}"], folder, repeat)
    table = Table("what", "median ms", "fastest ms", "slowest ms")
    for what, seconds in measured.items():
        figures = (statistics.median(seconds), min(seconds), max(seconds))
        table.add_row(what, *(f"{1000 * value:.0f}" for value in figures))
    Console(width=100).print(table)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    made = {"python": sys.version.split()[0], "cores": os.cpu_count(), "seconds": measured}
    OUT.write_text(json.dumps(made, indent=2), encoding="utf-8")
    print(f"wrote {OUT}")


if __name__ == "__main__":
    main()
