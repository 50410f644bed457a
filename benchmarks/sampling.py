"""Speed of our engine beside transformers' generate: the same prompts, N answers each, the same sampling parameters.

    python -m benchmarks.sampling [--model FOLDER] [--dtype float32] [--prompts 24] [--n 4] [--tokens 24]

FOLDER is the `model/` folder of an import stage; without it the quickstart's model is imported. The sides take turns,
so that other load on the machine hits both; ratios of the same round are what to read, seconds are this machine's of
that minute. No answer ends early (both sides generate `--tokens` tokens), so both do the same work. Not a measure of
quality; prints a table and writes benchmarks/out/sampling-DTYPE.json.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignment.inference.engine import Engine, left_padded
from alignment.inference.requests import Draw, Request
from alignment.records import Message
from alignment.templates import encode_prompt
from benchmarks.model import OUT, base_model

WORDS = (
    "the", "ferry", "leaves", "harbour", "at", "nine", "and", "carries", "forty", "cars", "two", "lorries", "until",
    "ice",
)


def conversations(count: int, words: int) -> list[list[Message]]:
    """Made-up passages and questions of slightly different lengths, the same in every run."""
    chance = random.Random(7)
    return [
        [{"role": "user", "content": " ".join(chance.choices(WORDS, k=words - chance.randrange(words // 5 + 1))) + "?"}]
        for _ in range(count)
    ]


def ours(engine: Engine, prompts: list[list[Message]], draw: Draw, n: int) -> Callable[[], int]:
    """A function that answers all prompts as one batch and returns the number of tokens."""
    requests = [
        Request(str(row), prompt, tuple(Draw(**{**vars(draw), "seed": row * n + index}) for index in range(n)))
        for row, prompt in enumerate(prompts)
    ]
    return lambda: sum(len(said.ids) for own in engine.generate(requests) for said in own)


def theirs(engine: Engine, prompts: list[list[Message]], draw: Draw, n: int) -> Callable[[], int]:
    """The same with model.generate(num_return_sequences=n)."""
    ids, mask = left_padded([encode_prompt(engine.tokenizer, prompt) for prompt in prompts], engine.model.device)

    def run() -> int:
        with torch.inference_mode():
            out = engine.model.generate(
                input_ids=ids, attention_mask=mask, do_sample=True, num_return_sequences=n, top_k=draw.top_k,
                temperature=draw.temperature, top_p=draw.top_p, repetition_penalty=draw.repetition_penalty,
                max_new_tokens=draw.max_new_tokens, min_new_tokens=draw.max_new_tokens,
                pad_token_id=engine.tokenizer.pad_token_id,
            )
        return int(out[:, ids.shape[1]:].numel())

    return run


def seconds(run: Callable[[], int], wanted: int) -> float:
    began = time.perf_counter()
    made = run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    spent = time.perf_counter() - began
    if made != wanted:
        raise SystemExit(f"{made} tokens were generated, not {wanted}: the sides did not do the same work")
    return spent


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("--model", type=Path, help="a local model folder; default: the quickstart's")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--words", type=int, default=90, help="words of a prompt, about as many tokens")
    parser.add_argument("--n", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(options, options.model or base_model(Path(folder)))
    return 0


def measure(options: argparse.Namespace, folder: Path) -> None:
    """Run the rounds, print the table, write the JSON."""

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, options.dtype))
    engine = Engine(model.to(options.device).eval(), tokenizer)
    engine.stops = frozenset()
    prompts = conversations(options.prompts, options.words)
    draw = Draw(temperature=0.8, top_p=0.9, max_new_tokens=options.tokens)
    sides = {"ours": ours(engine, prompts, draw, options.n), "generate": theirs(engine, prompts, draw, options.n)}
    wanted = options.prompts * options.n * options.tokens
    spent: dict[str, list[float]] = {side: [] for side in sides}
    for round_number in range(options.rounds + 1):
        order = list(sides) if round_number % 2 else list(sides)[::-1]
        for side in order:
            taken = seconds(sides[side], wanted)
            if round_number:  # the first round warms up
                spent[side].append(taken)
    ratios = [theirs_s / ours_s for ours_s, theirs_s in zip(spent["ours"], spent["generate"], strict=True)]
    result = {
        "model": str(options.model or "quickstart"), "dtype": options.dtype, "device": options.device,
        "threads": torch.get_num_threads(), "prompts": options.prompts, "n": options.n,
        "prompt_tokens": [len(encode_prompt(tokenizer, prompt)) for prompt in prompts],
        "tokens": options.tokens, "seconds": spent, "ratios": ratios, "median_ratio": statistics.median(ratios),
        "tokens_per_second": {side: wanted / statistics.median(values) for side, values in spent.items()},
    }
    table = Table("side", "seconds (each round)", "tokens/s (median)")
    for side, values in spent.items():
        table.add_row(side, ", ".join(f"{value:.2f}" for value in values), f"{wanted / statistics.median(values):.0f}")
    console = Console(file=sys.stdout)
    console.print(table)
    console.print(f"generate / ours: median {result['median_ratio']:.2f}, rounds "
                  + ", ".join(f"{ratio:.2f}" for ratio in ratios))
    out = options.out / f"sampling-{options.dtype}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
