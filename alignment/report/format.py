"""Numbers, times and texts as a person reads them. Pure; no HTML and no colours here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, TypeGuard

NONE = "–"
"""Shown where a value is absent or not a number."""

DECIMALS = {"perplexity": 2, "words": 1, "reward": 2, "bleu": 1, "chrf": 1, "calls": 2, "turns": 2}
"""Metrics that are not rates; every other metric is shown with three decimals."""


def is_number(value: Any) -> TypeGuard[float]:
    """True for finite ints and floats, not for bools, None, NaN and infinities."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def side(low: Any, high: Any, middle: float) -> int:
    """Where an interval lies: 1 above `middle`, -1 below it, 0 where it holds it or is not known."""
    if not is_number(low) or not is_number(high):
        return 0
    return 1 if low > middle else -1 if high < middle else 0


def number(value: Any, decimals: int | None = None) -> str:
    """A value with `decimals` places, or with about three significant digits when they are not given."""
    if not is_number(value):
        return NONE
    if decimals is not None:
        return f"{value:,.{decimals}f}"
    value, size = value + 0, abs(value)  # no minus before zero
    if size and (size < 1e-3 or size >= 1e9):
        return f"{value:.2e}"
    if float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:,.{3 if size < 10 else 1 if size < 1000 else 0}f}"


def told_apart(left: Any, right: Any) -> tuple[str, str]:
    """Two values as `number` shows them, with as many more digits as it takes to see that they differ."""
    shown = number(left), number(right)
    if shown[0] == shown[1] and is_number(left) and is_number(right) and left != right:
        fixed = [f".{places}f" for places in range(4, 10)] if abs(left) < 1e9 else []
        for style in [*fixed, *(f".{digits}g" for digits in range(4, 18))]:
            if format(left, style) != format(right, style):
                return format(left, style), format(right, style)
    return shown


def metric(name: str, value: Any) -> str:
    """A metric of an evaluation in the metric's own number of decimals."""
    return number(value, DECIMALS.get(name, 3))


def interval(name: str, low: Any, high: Any) -> str:
    """`[low, high]`, or nothing where there is no interval."""
    return f"[{metric(name, low)}, {metric(name, high)}]" if is_number(low) and is_number(high) else ""


def duration(seconds: Any) -> str:
    """Seconds as `8.4 s`, `5 min 12 s` or `2 h 05 min`."""
    if not is_number(seconds):
        return NONE
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def when(text: str) -> str:
    """An ISO time without its fraction of a second; anything else as it stands."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return text
    zone = moment.strftime("%Z") if moment.tzinfo else ""
    return f"{moment:%Y-%m-%d %H:%M} {zone}".rstrip()


def between(first: str, last: str) -> float:
    """Seconds from one ISO time to another; not a number where one is none."""
    try:
        return (datetime.fromisoformat(last) - datetime.fromisoformat(first)).total_seconds()
    except (ValueError, TypeError):
        return math.nan


def size(count: int) -> str:
    """Bytes as `1.2 GB` (powers of ten)."""
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.1f} {units[0]}"


def clip(text: str, limit: int) -> str:
    """At most `limit` characters; what was cut is counted, never hidden."""
    return text if len(text) <= limit else f"{text[:limit].rstrip()} … ({len(text) - limit:,} more characters)"


def flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested facts as (dotted key, text) pairs; long lists are shortened with their length."""
    if isinstance(value, Mapping):
        return [pair for key, item in value.items() for pair in flat(item, f"{prefix}.{key}" if prefix else str(key))]
    if isinstance(value, Sequence) and not isinstance(value, str):
        texts = [str(item) for item in value[:12]]
        more = f", … ({len(value)} in all)" if len(value) > 12 else ""
        return [(prefix, clip(", ".join(texts), 400) + more)]
    if isinstance(value, bool) or value is None:
        return [(prefix, {True: "yes", False: "no", None: NONE}[value])]
    return [(prefix, number(value) if isinstance(value, int | float) else clip(str(value), 400))]
