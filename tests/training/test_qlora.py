"""QLoRA: the base that an adapter was trained over is the one that it is measured, continued and merged over."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from alignment.artifacts import Artifact, Store
from alignment.errors import ModelError
from tests.models import published
from tests.training.families import WIDE, family
from tests.training.fresh import Fresh
from tests.training.made import FULL, LORA, context, preferred, published_rows
from tests.training.test_families import PROMPTS, RIGHT, WRONG, loss, preference_loss, score_loss

QLORA: dict[str, Any] = {"kind": "qlora", "r": 4, "alpha": 8}
NEAR = 1e-4
Trained = tuple[Artifact, float, dict[str, Any]]
Train = Callable[..., Trained]


@pytest.fixture(scope="module")
def fresh() -> Iterator[Fresh]:
    made = Fresh()
    yield made
    made.close()


@pytest.fixture(scope="module")
def bases(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Artifact]:
    return cache(lambda name: family(name, store, tmp_path_factory.mktemp(f"wide-{name}".replace("_", "-")),
                                     **WIDE[name]))


@pytest.fixture(scope="module")
def pairs(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    rows = [preferred(f"p{index}", *texts) for index, texts in enumerate(zip(PROMPTS, RIGHT, WRONG, strict=True))]
    return published_rows(store, tmp_path_factory.mktemp("pairs"), "data-111111111111", train=rows, dev=rows)


@pytest.fixture
def train(store: Store, pairs: Artifact, tmp_path: Path) -> Train:
    """(start, method, keys) -> what the stage publishes, the last loss that the trainer measured, and its facts."""
    def made(start: Artifact, method: str = "sft", **keys: Any) -> Trained:
        from alignment.training.fit import fit, read_outcome

        folder = tmp_path / f"{method}-{len(list(tmp_path.iterdir()))}-{tmp_path.name}".replace("_", "-").lower()
        of = context(store, folder, start, pairs, method, **{
            "batch_size": 4, "micro_batch_size": 4, "eval_rows": "data/dev", "learning_rate": 5e-2, "strategy": QLORA,
            **keys, "trl": {"max_steps": 2, "lr_scheduler_type": "constant", **keys.get("trl", {})}})
        fit(of)
        facts = read_outcome(of).facts
        events = [json.loads(line) for line in of.events.read_text(encoding="utf-8").splitlines()]
        return (published(store, of.key, of.out), next(e["eval_loss"] for e in reversed(events) if "eval_loss" in e), facts)

    return made


@pytest.mark.parametrize("name", WIDE)
def test_a_chain_over_four_bits_is_measured_as_it_was_trained(
    name: str, bases: Callable[[str], Artifact], train: Train, fresh: Fresh
) -> None:
    base = bases(name)
    sft, trained, facts = train(base)
    print(name, facts)
    assert trained < loss(fresh, base) - 0.1, "two steps change what the model says"
    assert loss(fresh, sft) == pytest.approx(trained, abs=NEAR)
    assert loss(fresh, sft, merge=False) == pytest.approx(trained, abs=NEAR)
    dpo, trained, _ = train(sft, "dpo")
    assert abs(trained - math.log(2)) > 0.01, "two steps change what it prefers"
    assert preference_loss(fresh, dpo, sft) == pytest.approx(trained, abs=NEAR)
    reward, trained, facts = train(sft, "reward")
    print(facts)
    assert score_loss(fresh, reward) == pytest.approx(trained, abs=NEAR)
