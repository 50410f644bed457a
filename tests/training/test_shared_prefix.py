"""Rows in fewer tokens than TRL's layout has: the same losses, gradients and metrics, or TRL's layout, said why."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from alignment.artifacts import Artifact, Store
from alignment.records import Record
from tests.training.families import FAMILIES, family
from tests.training.made import FULL, LORA, context, preferred, stage
from tests.training.test_methods import trainer_for

PAIRS = [
    preferred("long", "What colour is the boat of number seven, please say it in one word." * 2, "red", "It is blue."),
    preferred("one-sided", "Which?", "The second of all of them, as far as anybody here knows for sure.", "no"),
    preferred("alike", "Say a number.", "It is twenty two", "It is twenty three"),
    preferred("short", "Hm?", "a", "b"),
    preferred("begins", "How many?", "two", "two boats"),
]
NEAR = 2e-6
"""Of float32 numbers, relative to the largest."""
NOT = {
    "bloom": "differ", "opt": "dropout", "gptj": "", "recurrent_gemma": "layers", "falcon": "",
}


@pytest.fixture(scope="module")
def bases(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Artifact]:
    return cache(lambda name: family(name, store, tmp_path_factory.mktemp(f"shared-{name}".replace("_", "-"))))


def learned(trainer: Any, layout: bool) -> tuple[float, dict[str, Any], dict[str, float]]:
    """Loss, gradients by name, and what would be logged, of one batch of every row."""
    trainer.data_collator.collator.on = layout
    (batch,) = trainer.get_train_dataloader()
    batch.pop("row")
    assert ("laid_ids" in batch) is layout
    trainer.model.train()
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, dict(batch))
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    metrics = {name: sum(values) / len(values) for name, values in trainer._metrics["train"].items()}
    trainer._metrics["train"].clear()
    trainer._total_train_tokens = 0
    return float(loss), gradients, metrics


def apart(one: Any, other: Any) -> float:
    """Largest difference of two sets of gradients, relative to the largest gradient."""
    assert one.keys() == other.keys()
    most = max(float(gradient.abs().max()) for gradient in one.values())
    return max(float((gradient - other[name]).abs().max()) for name, gradient in one.items()) / most


if __name__ == "__main__":
    import sys, tempfile, torch
    torch.set_num_threads(1)
    from alignment.inference.loading import load_tokenizer
    root = Path(tempfile.mkdtemp())
    s = Store(str(root / "store"))
    for name in sys.argv[1:] or FAMILIES:
        work = root / f"w-{name}".replace("_", "-"); work.mkdir()
        b = family(name, s, work)
        tok = load_tokenizer(b.path() / "model", side="right")
        for tag in ("dpo", "reward", "sft"):
            for strategy in (LORA, FULL):
                try:
                    of = stage(tag, strategy=strategy, trl={"per_device_train_batch_size": 8}, reference="adapter") if tag == "dpo" and strategy is LORA else stage(tag, strategy=strategy, trl={"per_device_train_batch_size": 8})
                    t, made = trainer_for(of, b, tok, work / f"{tag}{strategy['kind']}", PAIRS)
                except Exception as e:
                    print(name, tag, strategy["kind"], "ERR", repr(e)[:150]); continue
                t.settle_layout()
                if t.why_not: print(name, tag, strategy["kind"], "NOT:", t.why_not); continue
                a = learned(t, False); c = learned(t, True)
                bad = {k: (a[2][k], c[2][k]) for k in a[2] if abs(a[2][k]-c[2][k]) > 1e-5*max(1,abs(a[2][k]))}
                print(name, tag, strategy["kind"], f"loss {a[0]:.6f} d {abs(a[0]-c[0]):.1e} grad {apart(a[1], c[1]):.1e}", t.windows, bad, len(a[2]))
