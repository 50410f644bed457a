"""A stage that stops in the middle and is started again ends with the losses and weights of one left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from alignment.config import METHODS
from alignment.pipeline import execute
from alignment.training import fit as fit_module
from tests import small
from tests.matrix import cases

LORA = {"kind": "lora", "r": 4, "alpha": 8, "dropout": 0.1}
FULL = {"kind": "full"}
WHOLE = {**LORA, "modules_to_save": ["embed_tokens"]}


class Stops(TrainerCallback):
    """Raises after step 5: between the checkpoints of steps 4 and 6."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 5:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("method", "strategy"), cases(
    [*((method.tag, FULL if number % 2 else LORA) for number, method in enumerate(METHODS)), ("dpo", WHOLE)],
    [*((method.tag, LORA if number % 2 else FULL) for number, method in enumerate(METHODS)), ("reward", WHOLE)],
))
def test_resume_equals_uninterrupted(
    tmp_path: Path, method: str, strategy: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if method in ("grpo", "rloo", "ppo") and "dropout" in strategy:
        strategy = strategy | {"dropout": 0.0}  # which they refuse
    # The start is an adapter for lora, so that DPO's frozen reference copy is in the checkpoints too.
    start = small.train("start", strategy=strategy, epochs=2)
    more = {"trl": {"beta": 0.1, "max_steps": 8}} if method in ("grpo", "rloo") else {}
    stage = small.train("stage", method, "start", strategy=strategy, epochs=3, micro_batch_size=4, **more)
    alone = execute(small.run(tmp_path / "alone", start, stage)).artifacts["stage"]
    run = small.run(tmp_path / "stopped", start, stage)
    for before in run.stages[:-1]:
        execute(run, only=before.name)
    with monkeypatch.context() as patch:
        fit = fit_module.fit
        patch.setattr(fit_module, "fit", lambda context, workers, callbacks: fit(
            context, workers=workers, callbacks=(*callbacks, Stops())))
        with pytest.raises(KeyboardInterrupt):
            execute(run, only="stage")
    assert execute(run, only="data").artifacts["stage"] is None
    resumed = execute(run).artifacts["stage"]
    assert resumed.manifest.facts["timing"]["resumed_from_step"] == 4
    assert small.losses(resumed) == small.losses(alone)
    weights = {name: entry.sha256 for name, entry in alone.manifest.files.items() if name.endswith(".safetensors")}
    assert weights == {name: e.sha256 for name, e in resumed.manifest.files.items() if name.endswith(".safetensors")}
