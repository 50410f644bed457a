"""Figures over eval_rows are means over rows, or tokens, however many rows a forward pass has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alignment.artifacts import Artifact, Store
from tests.training.made import context, preferences, published_rows

METHODS = {"sft": "mean_token_accuracy", "reward": "margin", "dpo": "rewards/margins", "distill": "entropy"}
"""And one figure of each beside the loss."""


@pytest.fixture(scope="module")
def uneven(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Rows to evaluate on of which one is left over in passes of four."""
    return published_rows(store, tmp_path_factory.mktemp("uneven"), "data-000000000005", train=preferences(8),
                          dev=preferences(5))


@pytest.mark.parametrize("method", METHODS)
def test_the_rows_of_a_pass_are_no_part_of_what_is_measured(
    method: str, store: Store, base: Artifact, uneven: Artifact, tmp_path: Path
) -> None:
    def measured(rows: int) -> dict[str, Any]:
        from alignment.training.fit import fit

        made = context(store, tmp_path / f"held-{method}-{rows}", base, uneven, method, batch_size=4,
                       micro_batch_size=rows, learning_rate=5e-3, eval_rows="data/dev", trl={"max_steps": 2})
        fit(made)
        lines = [json.loads(line) for line in made.events.read_text(encoding="utf-8").splitlines()]
        return next(line for line in lines if line["event"] == "eval")

    apart, together = measured(1), measured(4)
    for name in ("eval_loss", f"eval_{METHODS[method]}"):
        assert together[name] == pytest.approx(apart[name], rel=2e-4, abs=1e-6), name
    if method == "reward":
        assert together["eval_min_reward"] == pytest.approx(apart["eval_min_reward"], rel=2e-4)
