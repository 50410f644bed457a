"""Small runs for tests: a model made on the spot and rows written by the test, through the real pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from alignment.config import Run, parse_run

BASE: dict[str, Any] = {
    "name": "base", "kind": "import", "dtype": "float32",
    "model": {"source": "tiny", "hidden_size": 32, "layers": 2, "heads": 4, "vocab_size": 384},
}
OTHER: dict[str, Any] = {**BASE, "name": "other", "model": {**BASE["model"], "hidden_size": 16, "layers": 1}}
"""Another model with the tokenizer and template of BASE; in runs whose stages ask for it."""
COLOURS = ["red", "blue", "green", "black", "white", "brown", "grey", "pink"]
THINGS = ["boat", "rope", "lamp", "net", "gate", "sail", "hut", "flag"]


def rows(count: int) -> list[dict[str, Any]]:
    """Passage questions with a right and a wrong answer; every passage is a group of its own."""
    made = []
    for index in range(count):
        colour, thing = COLOURS[index % 8], THINGS[index // 8 % 8]
        made.append({
            "id": f"r{index}", "group": f"g{index}", "passage": f"Number {index}: the {thing} is {colour}.",
            "question": f"What colour is the {thing} of number {index}?", "answer": colour,
            "rejected": COLOURS[(index + 3) % 8], "type": "open",
        })
    return made


def data(folder: Path, count: int = 40) -> dict[str, Any]:
    """An import-data stage over rows written into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows(count)), encoding="utf-8")
    return {
        "name": "data", "kind": "import", "data": [{"path": str(file), "format": "passage-qa"}],
        "split": {"by": "ratio", "ratios": {"train": 0.6, "dev": 0.2, "test": 0.2}},
    }


ONLINE: dict[str, Any] = {"reward": {"parts": {"brief": {"function": "brevity"}}}, "num_generations": 2,
                          "max_new_tokens": 4}
"""What a stage of an online method has beside."""


def train(name: str, method: str = "sft", model: str = "base", **more: Any) -> dict[str, Any]:
    """A train stage with small defaults; keyword arguments replace them."""
    if method in ("grpo", "rloo", "ppo"):
        more = {key: value for key, value in ONLINE.items() if (method, key) != ("ppo", "num_generations")} | more
    return {
        "name": name, "kind": "train", "method": method, "model": model, "rows": ["data/train"],
        "strategy": {"kind": "lora", "r": 4, "alpha": 8}, "batch_size": 8, "micro_batch_size": 8,
        "learning_rate": 5e-3, "checkpoints": {"every": 2}, **({"teacher": "other"} if method == "distill" else {}),
        **more,
    }


def run(folder: Path, *stages: dict[str, Any], count: int = 40, **top: Any) -> Run:
    """A Run with the base model, the data and `stages`, in a store below `folder`."""
    others = [OTHER] if any("other" in (stage.get("teacher"), stage.get("reference_model")) for stage in stages) else []
    tree = {
        "name": "small", "seed": 3, "store": str(folder / "store"), "compute": {"dtype": "float32", "device": "cpu"},
        "stages": [BASE, *others, data(folder, count), *stages], **top,
    }
    return parse_run(yaml.safe_dump(tree, sort_keys=False))


def losses(artifact: Any, event: str = "train", key: str = "loss") -> list[float]:
    """Losses of a finished train stage, in order of steps."""
    lines = (artifact.path() / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return [entry[key] for entry in map(json.loads, lines) if entry["event"] == event]
