"""Shipped recipes of large models, and the small ones beside them that run on a CPU: one is the other, smaller."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alignment.config import load_run

RUNS = Path(__file__).parents[2] / "configs/runs"
OF_ITS_OWN = "mods-small"  # its judge is trained and not fetched, and it has random rows beside
SMALL = sorted(path for path in RUNS.glob("*-small.yaml") if path.stem != OF_ITS_OWN)
DIFFERS = {"model", "data", "take", "max_bad", "batch_size", "micro_batch_size", "learning_rate", "max_length",
           "max_new_tokens", "max_prompt_tokens", "sampling", "checkpoints", "ratios", "overlap", "dtype", "pad_token",
           "gradient_checkpointing", "warmup_steps", "max_steps", "max_tokens", "licence", "base_model", "datasets",
           "limits", "repo"}
"""Keys in which a small recipe may be another: model, data, sizes, and what follows from them (a card's words)."""


def _same(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _same(item) for key, item in value.items()
                if key not in DIFFERS or (key == "model" and isinstance(item, str))}  # a stage's name
    return [_same(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("path", SMALL, ids=[path.stem for path in SMALL])
def test_a_small_recipe_is_its_large_one_with_other_sizes(path: Path) -> None:
    small, large = load_run(path), load_run(path.with_name(path.name.replace("-small", "")))
    for one, other in zip(small.stages, large.stages, strict=True):
        assert _same(one.model_dump(mode="json")) == _same(other.model_dump(mode="json"))
    assert small.aims == large.aims


def test_each_large_recipe_has_a_small_one() -> None:
    assert {path.stem for path in SMALL} == {"qwen-sft-small", "llama2-guanaco-small", "socratic-small"}
    for path in SMALL:
        large = load_run(path.with_name(path.name.replace("-small", "")))
        assert large.params["model"].split("/")[0] in ("Qwen", "meta-llama")


def test_the_recipes_numbers_are_their_publications() -> None:
    qwen, guanaco = (load_run(RUNS / f"{name}.yaml") for name in ("qwen-sft", "llama2-guanaco"))
    sft: Any = qwen.stage("sft")
    assert (sft.strategy.r, sft.strategy.alpha, sft.strategy.dropout) == (8, 16, 0.05)
    assert (sft.learning_rate, sft.epochs, sft.max_length) == (3e-4, 3, 254 + 254)
    first, second = guanaco.stage("sft"), guanaco.stage("dpo")
    for stage in (first, second):
        assert (stage.strategy.kind, stage.strategy.r, stage.strategy.alpha) == ("qlora", 64, 16)  # type: ignore[union-attr]
    assert second.trl["beta"] == 0.1  # type: ignore[union-attr]
    assert (second.learning_rate, second.batch_size, second.trl["max_steps"]) == (5e-4, 16, 1000)  # type: ignore[union-attr]


def test_mods_is_one_chain_large_and_small() -> None:
    """Which stage reads which, and how it selects, learns or asks; sizes, judge and embedder differ."""
    def chain(name: str) -> list[tuple[str, ...]]:
        stages = [stage for stage in load_run(RUNS / f"{name}.yaml").stages
                  if stage.name in ("quality", "seed", "first", "answers", "needed", "more", "chosen", "sft")]
        return [(stage.name, stage.tag, *(ref.ref for ref in stage.row_refs() if not ref.ref.endswith("/dev")),
                 *(ref.stage for ref in stage.model_refs() if ref.role == "policy")) for stage in stages]

    assert len(chain("mods")) == 8
    assert chain("mods") == chain("mods-small")
