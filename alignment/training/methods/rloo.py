"""REINFORCE with a leave-one-out baseline (Ahmadian et al. 2024, arXiv:2402.14740); the reference, where beta asks for
one, is the start model."""

from __future__ import annotations

from typing import Any

from trl import RLOOConfig, RLOOTrainer

from alignment.training.methods import Method
from alignment.training.online import FINAL, OnlineTrainer, arguments, columns, extras, facts
from alignment.training.shared_prompt import OnePrompt


class GuardedRloo(OnlineTrainer, OnePrompt, RLOOTrainer):  # type: ignore[misc]
    """TRL's RLOO trainer; a prompt goes through the model once for several of its answers."""

    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> list[list[int]]:
        return self._answers(prompt_ids)


METHOD = Method(GuardedRloo, RLOOConfig, columns, arguments, FINAL, facts, extras=extras, best=("reward", True))
