"""Numbers of TRL 1.12.0's PPO, which TRL 1.13 removed: how tests/training/ppo_trl_1_12.json was made.

    pip download --no-deps trl==1.12.0 -d /tmp/trl && unzip -d /tmp/trl /tmp/trl/*.whl
    python -m tests.training.ppo_oracle /tmp/trl > tests/training/ppo_trl_1_12.json

Runs the lines of `trl.experimental.ppo.PPOTrainer.train` that compute rewards, advantages and losses, as they stand in
that file, over small random rollouts. Nothing of them is kept here.
"""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

FIRST, AFTER_ROLLOUT = "# be very careful with `padding_mask_p1`", "advantages = torch.masked_fill"
LOSSES, AFTER_LOSSES = "logits /= args.temperature", "accelerator.backward(loss)"
STATISTICS, AFTER_STATISTICS = "pg_clipfrac = masked_mean(", "approxkl_stats["
HELPERS, AFTER_HELPERS = "def masked_mean(", "# taken from https://github.com/OpenLMLab"
CASES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "k3": {"kl_estimator": "k3", "kl_coef": 0.2},
    "discounted": {"gamma": 0.9, "lam": 0.8},
    "whitened rewards": {"whiten_rewards": True},
    "tight": {"cliprange": 0.05, "cliprange_value": 0.05, "vf_coef": 0.5},
}
DEFAULTS = {"kl_coef": 0.05, "kl_estimator": "k1", "whiten_rewards": False, "gamma": 1.0, "lam": 0.95,
            "cliprange": 0.2, "cliprange_value": 0.2, "vf_coef": 0.1, "temperature": 0.7}
LENGTHS, WIDTH, VOCABULARY = [6, 3, 1, 4], 6, 5


def between(text: str, first: str, after: str, *, whole: bool = False) -> str:
    """The lines from the one that begins with `first` to one that has `after`, that one itself only if `whole`."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.strip().startswith(first))
    end = next(i for i, line in enumerate(lines) if i > start and after in line)
    return textwrap.dedent("\n".join(lines[start:end + whole]))


def rollouts() -> dict[str, torch.Tensor]:
    """Answers of 6, 3, 1 and 4 tokens with what was computed of them, from a seed."""
    random = torch.Generator().manual_seed(11)

    def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return torch.randn(*shape, generator=random) * scale

    rows = len(LENGTHS)
    logprobs = -normal(rows, WIDTH).abs()
    return {
        "scores": normal(rows), "logprobs": logprobs, "ref_logprobs": logprobs + normal(rows, WIDTH, scale=0.2),
        "values": normal(rows, WIDTH, scale=0.5), "new_values": normal(rows, WIDTH, scale=0.5),
        "logits": normal(rows, WIDTH, VOCABULARY),
        "responses": torch.randint(VOCABULARY, (rows, WIDTH), generator=random),
    }


def oracle(source: str, given: dict[str, torch.Tensor], **arguments: Any) -> dict[str, Any]:
    """What TRL's lines make of the rollouts."""
    args, rows = SimpleNamespace(**{**DEFAULTS, **arguments}), list(range(len(LENGTHS)))
    names: dict[str, Any] = {
        "torch": torch, "args": args, "INVALID_LOGPROB": 1.0, "empty_cache": lambda: None,
        "sequence_lengths": torch.tensor(LENGTHS) - 1,
        **{name: given[name].clone() for name in ("responses", "logprobs", "ref_logprobs", "scores", "values")},
    }
    exec(between(source, HELPERS, AFTER_HELPERS), names)
    exec(between(source, FIRST, AFTER_ROLLOUT, whole=True), names)
    names |= {
        "micro_batch_inds": rows, "mb_advantage": names["advantages"], "mb_logprobs": names["logprobs"],
        "mb_return": names["returns"], "mb_values": names["values"], "mb_responses": given["responses"],
        "logits": given["logits"].clone(), "context_length": 1,
        "vpred_temp": torch.cat([given["new_values"], torch.zeros(len(rows), 1)], 1)[..., None],
        "selective_log_softmax": lambda logits, ids: logits.log_softmax(-1).gather(-1, ids[..., None]).squeeze(-1),
    }
    exec(between(source, LOSSES, AFTER_LOSSES), names)
    exec(between(source, STATISTICS, AFTER_STATISTICS), names)
    kept = ("kl", "rewards", "advantages", "returns", "new_logprobs", "pg_loss", "vf_loss", "loss", "pg_clipfrac",
            "vf_clipfrac", "entropy", "approxkl")
    return {"arguments": vars(args), **{name: names[name].tolist() for name in kept}}


def main(folder: str) -> None:
    source = Path(folder, "trl/experimental/ppo/ppo_trainer.py").read_text(encoding="utf-8")
    given = rollouts()
    json.dump({
        "source": "trl 1.12.0, trl/experimental/ppo/ppo_trainer.py", "lengths": LENGTHS,
        "rollouts": {name: tensor.tolist() for name, tensor in given.items()},
        "cases": {name: oracle(source, given, **arguments) for name, arguments in CASES.items()},
    }, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
