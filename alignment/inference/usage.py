"""What endpoints took for a stage's answers, and which engines gave the others: added up for the manifest, and said
while it goes on. Plain numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from alignment.context import StageContext

TEMPLATE = "the endpoint's own, around the messages as they are; no template of this store has a part in it"
Used = Mapping[str, Any]
"""A `Usage` by its names, as rows keep it."""


def totals(used: Iterable[Used | None]) -> dict[str, Any] | None:
    """The sum over answers and failures of one model; None where no endpoint gave any.

    Returns:
        requests: attempts included; prompt_tokens, completion_tokens; cost: None without a price; uncounted: answers
        whose tokens the endpoint does not say, which are in no sum; lost_at_most: what attempts whose reply never came
        may have cost beside; answered_as: how the endpoint calls who answered.
    """
    rows = [one for one in used if one is not None]
    if not rows:
        return None
    costs = [one["cost"] for one in rows if one["cost"] is not None]
    return {
        "requests": sum(one["attempts"] for one in rows),
        "prompt_tokens": sum(one["prompt_tokens"] or 0 for one in rows),
        "completion_tokens": sum(one["completion_tokens"] or 0 for one in rows),
        "cost": round(sum(costs), 9) if costs else None,
        "uncounted": sum(one["prompt_tokens"] is None for one in rows),
        "lost_at_most": round(sum(one["lost"] for one in rows), 9),
        "answered_as": sorted({one["model"] for one in rows if one["model"]}),
    }


def speed(tokens: int, seconds: float) -> dict[str, float]:
    """Over all parts of a stage, those of earlier attempts included; workers run at once, so it is per worker."""
    return {"tokens": tokens, "seconds": round(seconds, 3), "tokens_per_second": round(tokens / max(seconds, 1e-9), 1)}


def budgets(context: StageContext, names: Iterable[str | None]) -> list[float | None]:
    """Of the endpoints among the stages of these names."""
    models = [context.run.stage(name).endpoint for name in names if name is not None]
    return [model.limits.budget for model in models if model is not None]


def endpoint_facts(context: StageContext, taken: Mapping[str, Iterable[Used | None]]) -> dict[str, Any]:
    """{"endpoints": {stage's name: who was asked, and `totals`}} for the manifest; empty where none was.

    Args:
        taken: the stage that names an endpoint -> what each of its answers and failures took.
    """
    made = {}
    for name, used in taken.items():
        model = context.run.stage(name).endpoint
        if model is not None:
            made[name] = {"base_url": model.base_url, "model": model.model, "template": TEMPLATE} | (totals(used) or {})
    return {"endpoints": made} if made else {}


def engine_facts(taken: Mapping[str, Iterable[Used]]) -> dict[str, Any]:
    """{"engines": {stage's name: who answered}} for the manifest; a list of more than one where a stage went on with
    another engine or version. Empty where no model here answered.

    Args:
        taken: the stage that made a model -> who answered (Generator.made_by), any number of times.
    """
    made: dict[str, list[dict[str, Any]]] = {}
    for name, engines in taken.items():
        for one in map(dict, engines):
            if one not in made.setdefault(name, []):
                made[name].append(one)
    return {"engines": {name: found for name, found in made.items() if found}} if any(made.values()) else {}


class Tally:
    """Tokens a second and cost so far, as progress says them.

    Args:
        budgets: of the endpoints that are asked.
    """

    def __init__(self, budgets: Iterable[float | None] = ()) -> None:
        known = [budget for budget in budgets if budget is not None]
        self.budget = sum(known) if known else None
        self.tokens, self.seconds, self.cost = 0, 0.0, 0.0

    def add(self, tokens: int, seconds: float, used: Iterable[Used | None]) -> str:
        """After one more batch: `412 tokens/s, cost 1.24 of 5`; per worker, over all attempts."""
        self.tokens, self.seconds = self.tokens + tokens, self.seconds + seconds
        self.cost += sum((one["cost"] or 0.0) + one["lost"] for one in used if one is not None)
        rate = f"{self.tokens / self.seconds:.0f} tokens/s" if self.seconds else ""
        goal = "" if self.budget is None else f" of {self.budget:g}"
        return ", ".join(filter(None, [rate, f"cost {self.cost:.4g}{goal}" if self.cost else ""]))
