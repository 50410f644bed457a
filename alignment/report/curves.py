"""Training curves: which of the logged values of a train stage are worth a chart, and their points.

Train and evaluation stand in one chart; a noisy train curve is drawn faint behind its running mean. The names are
TRL's log keys (SFTTrainer, RewardTrainer, DPOTrainer, ...); keys that a stage did not log make no chart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from markupsafe import Markup

from alignment.config import TrainBase
from alignment.report.charts import Series, line_chart, thinned
from alignment.report.format import is_number
from alignment.report.svg import Point

NOISY = 24
"""A train curve of at least so many points gets a running mean."""


@dataclass(frozen=True)
class Panel:
    """One chart: (label, log key, colour) lines; the key's eval_ twin joins by itself. A key with a * is a chart for
    each that was logged, and its name joins the title."""

    title: str
    keys: tuple[tuple[str, str, str], ...]
    bounds: tuple[float, float] | None = None
    reference: float | None = None
    minor: bool = False
    """Shown below the fold."""


_LOSS = Panel("Loss", (("train", "loss", "s1"),))
_TOKENS = Panel("Token accuracy", (("train", "mean_token_accuracy", "s1"),), bounds=(0, 1))
_ENTROPY = Panel("Entropy, nats per token", (("train", "entropy", "s1"),))
_STEPS = (
    Panel("Learning rate", (("train", "learning_rate", "s0"),), minor=True),
    Panel("Gradient norm", (("train", "grad_norm", "s0"),), minor=True),
)
_ONLINE = (
    Panel("Reward", (("train", "reward", "s1"),)),
    Panel("Part of the reward", (("train", "rewards/*/mean", "s1"),)),
    Panel("KL to the reference, nats per token", (("train", "kl", "s1"),), reference=0.0),
    _ENTROPY,
    Panel("Length of an answer, tokens", (("train", "completions/mean_length", "s1"),)),
    Panel("Answers cut at max_new_tokens", (("train", "completions/clipped_ratio", "s1"),), bounds=(0, 1), minor=True),
    Panel("Prompts whose answers all earn the same", (("train", "frac_reward_zero_std", "s0"),), bounds=(0, 1),
          minor=True),
    Panel("Drawn against learned log-probabilities, nats per token", (("train", "sampling/logp_difference", "s0"),),
          minor=True),
    Panel("Loss", (("train", "loss", "s0"),), minor=True),
    *_STEPS,
)
_PPO = (
    Panel("Value loss", (("train", "value_loss", "s1"),)),
    Panel("Clipped tokens", (("of the policy's loss", "clip_fraction", "s1"),
                             ("of the value loss", "value_clip_fraction", "s2")), bounds=(0, 1)),
    Panel("Change of an update, approximate KL", (("train", "approx_kl", "s0"),), minor=True),
)
PANELS: dict[str, tuple[Panel, ...]] = {
    "grpo": _ONLINE, "rloo": _ONLINE, "ppo": (*_ONLINE, *_PPO),
    "sft": (_LOSS, _TOKENS, _ENTROPY, *_STEPS),
    "reward": (
        _LOSS,
        Panel("Pairs ranked right", (("train", "accuracy", "s1"),), bounds=(0, 1), reference=0.5),
        Panel("Margin, chosen − rejected", (("train", "margin", "s1"),), reference=0.0),
        *_STEPS,
    ),
    "dpo": (
        _LOSS,
        Panel("Pairs ranked right", (("train", "rewards/accuracies", "s1"),), bounds=(0, 1), reference=0.5),
        Panel("Implicit rewards", (("chosen", "rewards/chosen", "s2"), ("rejected", "rewards/rejected", "s4")),
              reference=0.0),
        Panel("Margin, chosen − rejected", (("train", "rewards/margins", "s1"),), reference=0.0, minor=True),
        Panel(_TOKENS.title, _TOKENS.keys, _TOKENS.bounds, minor=True),
        *_STEPS,
    ),
    "kto": (
        _LOSS,
        Panel("Implicit rewards", (("wanted", "rewards/chosen", "s2"), ("unwanted", "rewards/rejected", "s4")),
              reference=0.0),
        Panel("KL to the reference, nats", (("train", "kl", "s1"),), reference=0.0),
        Panel("Margin, wanted − unwanted", (("train", "rewards/margins", "s1"),), reference=0.0, minor=True),
        *_STEPS,
    ),
    "orpo": (
        _LOSS,
        Panel("Pairs ranked right", (("train", "rewards/accuracies", "s1"),), bounds=(0, 1), reference=0.5),
        Panel("Its two terms", (("cross entropy", "nll_loss", "s2"), ("log of the odds ratio's sigmoid",
                                                                      "log_odds_ratio", "s4"))),
        Panel("Margin, chosen − rejected", (("train", "rewards/margins", "s1"),), reference=0.0, minor=True),
        *_STEPS,
    ),
    "distill": (_LOSS, Panel("Entropy, nats per token", (("train", "entropy", "s1"),)), *_STEPS),
}


Charts = list[tuple[str, Markup]]
"""(title, chart) pairs."""


def charts_of(stage: TrainBase, events: Sequence[dict[str, Any]]) -> tuple[Charts, Charts]:
    """The charts of a train stage: those to look at first, and the minor ones."""
    groups: tuple[Charts, Charts] = ([], [])
    for panel in (one for pattern in PANELS[stage.method] for one in _each(pattern, events)):
        series = [line for label, key, colour in panel.keys for line in lines_of(events, label, key, colour)]
        if panel.minor and not any(len(line.points) > 1 for line in series):
            continue
        if series:
            chart = line_chart(f"{stage.name}: {panel.title}", series, bounds=panel.bounds, reference=panel.reference)
            groups[panel.minor].append((panel.title, chart))
    return groups


def _each(panel: Panel, events: Sequence[dict[str, Any]]) -> Iterator[Panel]:
    """The panel, or one for each logged key that its pattern meets."""
    (label, pattern, colour), *_ = panel.keys
    if "*" not in pattern:
        yield panel
        return
    for key in sorted({key for line in events for key in line if fnmatchcase(key, pattern)}):
        before, _, after = pattern.partition("*")
        name = key.removeprefix(before).removesuffix(after)
        yield replace(panel, title=f"{panel.title}: {name}", keys=((label, key, colour),))


def lines_of(events: Sequence[dict[str, Any]], label: str, key: str, colour: str) -> list[Series]:
    """Train and eval lines of one log key; none where nothing was logged."""
    train, evaluated = points_of(events, "train", key), points_of(events, "eval", f"eval_{key}")
    lines = []
    if len(train) >= NOISY:
        window = max(5, len(train) // 20)
        lines.append(Series(label, thinned(train), colour, "faint"))
        lines.append(Series(f"{label}, mean of {window}", thinned(running_mean(train, window)), colour))
    elif train:
        lines.append(Series(label, train, colour, "dots" if len(train) < 3 else "line"))
    if evaluated:
        single = label == "train"
        lines.append(Series("eval" if single else f"{label}, eval", evaluated, "s3" if single else colour, "dots"))
    return lines


def points_of(events: Sequence[dict[str, Any]], event: str, key: str) -> list[Point]:
    """(step, value) of one event kind; the later of two lines for one step counts (a resumed stage repeats some)."""
    found = {
        float(line["step"]): float(line[key])
        for line in events
        if line.get("event") == event and is_number(line.get("step")) and is_number(line.get(key))
    }
    return sorted(found.items())


def running_mean(points: Sequence[Point], window: int) -> list[Point]:
    """Mean of each point and up to window - 1 points before it."""
    means = []
    for index, (x, _) in enumerate(points):
        last = [y for _, y in points[max(0, index - window + 1): index + 1]]
        means.append((x, sum(last) / len(last)))
    return means
