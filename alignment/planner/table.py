"""The tables of docs/planner.md, made from the formulas: `python -m alignment.planner.table` writes them into the page.

A test holds the page to them. Models by their makers' config.json.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from alignment.config.sharding import ZERO
from alignment.planner import estimate
from alignment.planner.activations import Pass
from alignment.planner.estimate import ADAM, ADAM_8BIT, train_memory
from alignment.planner.sharing import GIB, overhead
from alignment.planner.sizes import ModelSize, size_from_config

_PAGE = Path(__file__).resolve().parents[2] / "docs" / "planner.md"
_KEYS = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
         "intermediate_size", "vocab_size", "tie_word_embeddings")
MODELS: dict[str, tuple[Any, ...]] = {
    "0.5B (Qwen2.5)": ("qwen2", 896, 24, 14, 2, 4864, 151936, True),
    "1.5B (Qwen2.5)": ("qwen2", 1536, 28, 12, 2, 8960, 151936, True),
    "7B (Qwen2.5)": ("qwen2", 3584, 28, 28, 4, 18944, 152064, False),
    "8B (Llama 3.1)": ("llama", 4096, 32, 32, 8, 14336, 128256, False),
    "13B (Llama 2)": ("llama", 5120, 40, 40, 40, 13824, 32000, False),
    "32B (Qwen2.5)": ("qwen2", 5120, 64, 40, 8, 27648, 152064, False),
    "70B (Llama 3.1)": ("llama", 8192, 80, 64, 8, 28672, 128256, False),
}
LLAMA_2_7B = ("llama", 4096, 32, 32, 32, 11008, 32000, False)
MEASURED = (("qlora", 1, 1024, 6), ("qlora", 1, 2048, 7), ("qlora", 1, 4096, 9), ("qlora", 1, 8192, 12),
            ("qlora", 1, 16384, 19), ("qlora", 1, 32768, 32), ("lora", 4, 1024, 17))
"""Strategy, rows, tokens of a row and whole GB, as LLaMA-Factory measured them (docs/planner.md has the address)."""
ROW = 2048
"""Tokens of the one row of a forward pass in the first two tables."""


def size_of(shape: tuple[Any, ...]) -> ModelSize:
    """Of a row of `MODELS`."""
    size = size_from_config(dict(zip(_KEYS, shape, strict=True)))
    assert size is not None
    return size


def gib(size: ModelSize, kind: str, sharding: str = "none", workers: int = 1, *, rank: int = 16, rows: int = 1,
        length: int = ROW) -> float:
    """GiB on each GPU, of sft with activations computed again."""
    return train_memory(
        size, lora_rank=None if kind == "full" else rank, frozen_bytes=estimate.BFLOAT16, sequences=rows, length=length,
        checkpointing=True, quantised=kind == "qlora", optimizer=ADAM_8BIT if kind == "qlora" else ADAM,
        sharding=sharding, workers=workers, on_gpu=True).total / GIB


def strategies() -> str:
    """One GPU."""
    rows = [[name, f"{size.parameters / 1e9:.2f}", *(f"{gib(size, kind):.1f}" for kind in ("full", "lora", "qlora"))]
            for name, size in _sizes()]
    return _table(["model", "10^9 weights", "full", "lora r 16", "qlora r 16"], rows)


def shardings() -> str:
    """Eight GPUs."""
    columns = [("full", "none"), *(("full", name) for name in ZERO), ("lora", "none"), ("lora", "zero3"),
               ("qlora", "none")]
    rows = [[name, *(f"{gib(size, kind, sharding, 8):.1f}" for kind, sharding in columns)] for name, size in _sizes()]
    return _table(["model", *(kind if sharding == "none" else f"{kind}, {sharding}" for kind, sharding in columns)],
                  rows)


def beside_others() -> str:
    """What others publish for the same."""
    unsloth = {"7B (Qwen2.5)": (19, 5), "8B (Llama 3.1)": (22, 6), "32B (Qwen2.5)": (76, 26),
               "70B (Llama 3.1)": (164, 41)}
    rows = []
    for name, size in _sizes():
        lora, qlora = unsloth.get(name, ("", ""))
        rows.append([name, f"{gib(size, 'full') * GIB / 1e9:.0f}", f"{16 * size.parameters / 1e9:.0f}",
                     f"{18 * size.parameters / 1e9:.0f}", f"{gib(size, 'lora') * GIB / 1e9:.0f}", str(lora),
                     f"{gib(size, 'qlora') * GIB / 1e9:.1f}", str(qlora)])
    return _table(["model", "full", "Accelerate", "Megatron Bridge", "lora", "Unsloth, 16 bit", "qlora",
                   "Unsloth, 4 bit"], rows)


def beside_measured() -> str:
    """LLaMA-Factory's measured peaks of Llama 2 7B, r 8; here, and with whole logits and without masks, as there."""
    size = size_of(LLAMA_2_7B)
    rows = [[kind, str(count), f"{length:,}",
             f"{gib(size, kind, rank=8, rows=count, length=length) * GIB / 1e9:.1f}",
             f"{with_whole_logits(size, kind, count, length) / 1e9:.1f}", str(seen)]
            for kind, count, length, seen in MEASURED]
    return _table(["strategy", "rows", "tokens of a row", "here", "with whole logits", "measured there"], rows)


def with_whole_logits(size: ModelSize, kind: str, rows: int, length: int) -> float:
    """Bytes of sft with r 8 on one GPU where the loss is transformers' own and attention takes no mask: at the loss the
    logits are there four times in float32 (themselves, shifted by one, their log-probabilities and the gradient)."""
    memory = train_memory(
        size, lora_rank=8, frozen_bytes=estimate.BFLOAT16, sequences=rows, length=length, checkpointing=True,
        quantised=kind == "qlora", padded=False, on_gpu=True)
    tokens = rows * length
    one = Pass(size, rows, length, "autocast", 8, padded=False, on_gpu=True)
    loss = one.saved(True) + 4 * tokens * size.vocab * estimate.FLOAT32
    states = memory.weights + memory.gradients + memory.optimizer
    return states + max(loss + overhead(loss, on_gpu=True), memory.total - states)


TABLES: dict[str, Callable[[], str]] = {
    "strategies": strategies, "shardings": shardings, "beside-others": beside_others,
    "beside-measured": beside_measured,
}


def filled(page: str) -> str:
    """The page with every table made anew, each between `<!-- NAME -->` and `<!-- /NAME -->`."""
    for name, make in TABLES.items():
        page, found = re.subn(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", rf"\g<1>{make()}\g<2>", page,
                              flags=re.DOTALL)
        assert found == 1, name
    return page


def _sizes() -> Iterator[tuple[str, ModelSize]]:
    return ((name, size_of(shape)) for name, shape in MODELS.items())


def _table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---", *("---:" for _ in columns[1:])], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    _PAGE.write_text(filled(_PAGE.read_text(encoding="utf-8")), encoding="utf-8")
