from __future__ import annotations
import json
from pathlib import Path
from typing import Any

import pytest

from alignment.artifacts import Artifact, Store
from tests.training.made import FULL, LORA, context, preferences, published_rows, stage

REWARD = {"parts": {"short": {"function": "brevity"}}}


def test_try(base: Artifact, rows: Artifact, tmp_path: Path) -> None:
    from alignment.training.fit import fit
    folder = tmp_path / "x"
    folder.mkdir()
    made = context(Store(str(tmp_path / "own")), folder, base, rows, "ppo", reward=REWARD, max_new_tokens=8, eval_rows="data/dev", epochs=3, batch_size=8, micro_batch_size=4, minibatches=2)
    fit(made)
    print(made.events.read_text())
    print((made.out / "training.json").read_text())
    print(sorted(p.name for p in (made.work / "checkpoints").rglob("*")))
