"""Means over `eval_rows`, where TRL takes the mean of the means of forward passes.

The last pass of an evaluation is mostly smaller than the others, and TRL's log counts it like a whole one: of 12 pairs
in passes of 8 and 4 an accuracy of 0.6875 was logged, which no 12 pairs have, and a margin of 0.042 for 0.031. The loss
of sft is a mean over tokens in each pass, and transformers weighs passes by their rows. Here what is per row is weighed
by rows, what is per token by tokens, so that how many rows a pass has is no part of these figures. Not mended: means
over the tokens of rejected answers are weighed by those of the chosen; with several workers accelerate fills the last
pass up with rows of the first, which count twice.
"""

from __future__ import annotations

from typing import Any

import torch

PER_TOKEN = {"mean_token_accuracy", "entropy", "logits/chosen", "logits/rejected"}
EXTREMES = {"min_reward": min, "max_reward": max}


class HeldMeans:
    """Mixin before a TRL trainer, behind those that lay a batch out otherwise."""

    accelerator: Any
    loss_is_per_token = False
    """Whether the loss of a pass is the mean over its tokens that are learned."""
    seen: list[tuple[float, float, float]] | None = None
    """Of each pass of an evaluation rows, tokens that are learned, and the loss; over all ranks."""

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        rows, tokens = _size(inputs)
        made = super().prediction_step(model, inputs, *args, **kwargs)  # type: ignore[misc]
        here = torch.tensor([[rows, tokens, tokens * float(made[0])]], device=self.accelerator.device)
        rows, tokens, lost = self.accelerator.gather(here).sum(0).tolist()
        self.seen = [*(self.seen or []), (rows, tokens, lost / max(tokens, 1))]
        return made

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        self.seen = None
        output = super().evaluation_loop(*args, **kwargs)  # type: ignore[misc]
        if self.seen and self.loss_is_per_token:
            key = f"{kwargs.get('metric_key_prefix', 'eval')}_loss"
            output.metrics[key] = _mean([loss for _, _, loss in self.seen], [tokens for _, tokens, _ in self.seen])
        return output

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        passes, self.seen = self.seen or [], None
        kept = getattr(self, "_metrics", None) or getattr(self, "_stored_metrics", {})
        for name, values in kept.get("eval", {}).items() if passes else ():
            plain = name.removeprefix("eval_")
            if plain in EXTREMES:
                values[:] = [EXTREMES[plain](values)]
            elif len(values) == len(passes):
                values[:] = [_mean(values, [one[plain in PER_TOKEN] for one in passes])]
        super().log(logs, *args, **kwargs)  # type: ignore[misc]


def _size(inputs: dict[str, Any]) -> tuple[int, int]:
    """Rows of a batch as a trainer takes it, and tokens of answers; of pairs those of the chosen, which come first."""
    if "tool_mask" in inputs:  # distill
        return len(inputs["tool_mask"]), int(inputs["tool_mask"].sum())
    if "labels" in inputs:  # sft
        return len(inputs["labels"]), int((inputs["labels"][:, 1:] != -100).sum())
    if "label" in inputs:  # kto
        return len(inputs["label"]), int(inputs["completion_mask"].sum())
    chosen = inputs.get("completion_mask", inputs["input_ids"]).chunk(2)[0]
    return len(chosen), int(chosen.sum()) if "completion_mask" in inputs else len(chosen)


def _mean(values: list[float], weights: list[float]) -> float:
    whole = sum(weights)
    return float(sum(value * weight for value, weight in zip(values, weights, strict=True)) / whole) if whole else 0.0
