"""Gates of online training: what stops a collapse, and a start that is not one.

    values of a log line   kl, mismatch, entropy, reward, length -> Gate.look, by the names of config's `Gates`
    before the first step  the policy is its reference: prove_start

A limit counts once it is passed in three log lines in a row, since one batch is noise; what is no number counts at
once. Every rank sees the same reduced values, so all stop together. Does not compute a value: trainers log them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from transformers import TrainerCallback

from alignment.config.stages.online import Gates
from alignment.errors import StageError

IN_A_ROW = 3
SAME = 1e-3
"""KL to the reference before the first step, in nats per token, that rounding explains."""
LOGGED = {"kl": "kl", "mismatch": "sampling/logp_difference", "entropy": "entropy", "reward": "reward",
          "length": "completions/mean_length"}
"""Gate -> the key under which trainers log its value."""


class Rule(NamedTuple):
    """Of one gate: the limit where the stage says none, whether it is the most or the least, and what passing means."""

    default: float | None
    most: bool
    meaning: str


RULES = {
    "kl": Rule(10.0, True, "the policy has left its reference: lower the learning rate, or raise the KL's weight "
                           "(trl.beta; kl_coef of ppo)"),
    "mismatch": Rule(0.2, True, "other tokens' log-probabilities are learned than were drawn: a fault of the model's "
                                "code or its arithmetic; try compute.dtype float32"),
    "entropy": Rule(None, False, "answers to a prompt are nearly all the same, so nothing is left to learn from: lower "
                                 "the learning rate, raise the temperature"),
    "reward": Rule(None, False, "the reward falls: lower the learning rate, look at the parts of the reward"),
    "length": Rule(None, False, "answers get too short: look at what the reward pays for"),
}


class Gate(TrainerCallback):  # type: ignore[misc]
    """Holds what is logged to a stage's gates.

    Args:
        where: the stage, in errors.
    """

    def __init__(self, gates: Gates, where: str) -> None:
        self.where = where
        self.limits = {name: rule.default if getattr(gates, name) is None else getattr(gates, name)
                       for name, rule in RULES.items()}
        self._passed: Counter[str] = Counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # A resumed run counts on from what was logged before its checkpoint.
        self._passed.clear()
        for entry in state.log_history:
            if "loss" in entry:
                self.look(entry["step"], _values(entry))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.look(state.global_step, _values(logs))

    def look(self, step: int, values: Mapping[str, float]) -> None:
        """Hold one log line to the gates.

        Args:
            values: gate -> its value; those that are not measured are left out.

        Raises:
            StageError: a value is no number, or its limit is passed for the third time in a row.
        """
        for name, value in values.items():
            rule, limit = RULES[name], self.limits[name]
            if not math.isfinite(value):
                raise StageError(f"the {LOGGED[name]} of online training is no number", found=str(value),
                                 where=f"{self.where}, step {step}", expected="a finite number",
                                 hint="lower the learning rate; checkpoints are kept")
            if limit is None or (value <= limit if rule.most else value >= limit):
                self._passed[name] = 0
                continue
            self._passed[name] += 1
            if self._passed[name] >= IN_A_ROW:
                raise StageError(
                    f"a gate stopped the training: {LOGGED[name]} is {'over' if rule.most else 'under'} its limit, "
                    f"{IN_A_ROW} log lines in a row", where=f"{self.where}, gates.{name}, step {step}",
                    found=round(value, 6), expected=f"at {'most' if rule.most else 'least'} {limit:g}",
                    hint=f"{rule.meaning}; checkpoints are kept")


def _values(entry: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(entry[key]) for name, key in LOGGED.items() if entry.get(key) is not None}


def prove_start(kl: float, where: str, same: float = SAME) -> None:
    """Hold the KL before the first step to zero.

    Args:
        kl: to the reference, nats per token, of answers of the policy as it starts.
        same: how far from 0 it may be.

    Raises:
        StageError: the policy is not its reference, so every later KL would be to something else than is said.
    """
    if not abs(kl) <= same:
        raise StageError("the policy is not its reference before the first step", where=where, found=round(kl, 6),
                         expected=f"a KL of 0 nats per token, within {same:g}",
                         hint="a fault of the model's code, or of how its reference is made")
