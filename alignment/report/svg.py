"""SVG by hand: elements, scales, ticks, text widths. Pure, escaped everywhere; knows nothing of stages or metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

Point = tuple[float, float]


@dataclass(frozen=True)
class Scale:
    """Linear map of `domain` onto `pixels`."""

    domain: tuple[float, float]
    pixels: tuple[float, float]

    def __call__(self, value: float) -> float:
        (low, high), (start, end) = self.domain, self.pixels
        return start + (value - low) / (high - low) * (end - start)


def tag(name: str, *children: str, **attributes: str | float | None) -> Markup:
    """One element. Strings are escaped, Markup is not; `class_` and `text_anchor` give class and text-anchor."""
    parts = [
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), px(value) if isinstance(value, float) else value)
        for key, value in attributes.items()
        if value is not None
    ]
    inner = Markup("").join(escape(child) for child in children)
    return Markup("<{}{}>{}</{}>").format(Markup(name), Markup("").join(parts), inner, Markup(name))


def px(value: float) -> str:
    """A coordinate with at most two decimals."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def picture(width: float, height: float, title: str, *children: str, class_: str = "chart") -> Markup:
    """The <svg> element with its title, scaling with the page's width."""
    box = f"0 0 {px(width)} {px(height)}"
    return tag("svg", tag("title", title), *children, class_=class_, viewBox=box, role="img", aria_label=title)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round values (1, 2, 2.5 or 5 times a power of ten) that cover low..high, about so many."""
    span = high - low
    raw = span / max(about, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]  # a learning rate may be very small


def widened(values: Sequence[float], least: float = 0.0) -> tuple[float, float]:
    """Smallest and largest value, apart from each other even when all are the same.

    Args:
        least: how far apart at least, as a share of the largest: what differs by less is shown as nearly level.
    """
    low, high = min(values), max(values)
    if high == low:
        return low - (abs(low) * 0.1 or 0.5), high + (abs(high) * 0.1 or 0.5)
    more = max(0.0, least * max(abs(low), abs(high)) - (high - low)) / 2
    return low - more, high + more


def polyline(points: Sequence[Point], **attributes: str | float | None) -> Markup:
    return tag("polyline", points=" ".join(f"{px(x)},{px(y)}" for x, y in points), **attributes)


def text_width(text: str, size: float, factor: float = 0.56) -> float:
    """Width of a text in a usual sans-serif font, estimated (wide East Asian characters count double)."""
    return sum(1.8 if ord(char) > 0x2E80 else 1.0 for char in text) * size * factor


def shortened(text: str, width: float, size: float) -> str:
    """The text, cut with an ellipsis where it would be wider than `width`."""
    if text_width(text, size) <= width:
        return text
    while text and text_width(text + "…", size) > width:
        text = text[:-1]
    return text + "…"
