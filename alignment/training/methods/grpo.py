"""Group relative policy optimisation (Shao et al. 2024, arXiv:2402.03300); the reference, where beta asks for one, is
the start model."""

from __future__ import annotations

from typing import Any

from trl import GRPOConfig, GRPOTrainer

from alignment.training.methods import Method
from alignment.training.online import FINAL, OnlineTrainer, arguments, columns, extras, facts
from alignment.training.shared_prompt import OnePrompt


class GuardedGrpo(OnlineTrainer, OnePrompt, GRPOTrainer):  # type: ignore[misc]
    """TRL's GRPO trainer; a prompt goes through the model once for several of its answers."""

    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> tuple[
            list[list[int]], None]:
        return self._answers(prompt_ids), None


METHOD = Method(GuardedGrpo, GRPOConfig, columns, arguments, FINAL, facts, extras=extras, best=("reward", True))
