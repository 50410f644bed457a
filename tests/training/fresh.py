"""A process that never trained: asked for an artifact's numbers, it loads it as evaluation does. One line, one answer.

Run as a script by `Fresh`; a test asks it through that.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from alignment.artifacts import Artifact


class Fresh:
    """The process, started at the first question."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def ask(self, artifact: Artifact, prompts: list[str], answers: list[str], *, merge: bool = True) -> list[float]:
        """Log-probabilities of the answers, end token included; or scores, where it is a reward model."""
        if self._process is None:
            self._process = subprocess.Popen([sys.executable, "-m", "tests.training.fresh"], text=True,
                                             cwd=Path(__file__).parents[2], stdin=subprocess.PIPE,
                                             stdout=subprocess.PIPE)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({
            "store": artifact.store.url, "key": artifact.key, "merge": merge, "prompts": prompts,
            "answers": answers}) + "\n")
        self._process.stdin.flush()
        values: list[float] = json.loads(self._process.stdout.readline())
        return values

    def close(self) -> None:
        if self._process is not None:
            self._process.communicate()


def _answer(asked: dict[str, Any]) -> list[float]:
    import torch

    from alignment.artifacts import Store
    from alignment.inference.info import model_info
    from alignment.inference.loading import load_policy, load_reward, load_tokenizer
    from alignment.inference.scoring import RewardScorer, log_probs

    artifact = Store(asked["store"]).find(asked["key"])
    assert artifact is not None
    tokenizer = load_tokenizer(artifact.path() / "model", side="right")
    items = [([{"role": "user", "content": prompt}], answer)
             for prompt, answer in zip(asked["prompts"], asked["answers"], strict=True)]
    if model_info(artifact)["role"] == "reward":
        return RewardScorer(load_reward(artifact, dtype=torch.float32, device="cpu"), tokenizer).score(items)
    model = load_policy(artifact, dtype=torch.float32, device="cpu", merge=asked["merge"])
    return [value for value, _ in log_probs(model, tokenizer, items)]


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(_answer(json.loads(line))), flush=True)
