"""How sure a reward model is against how often it is right, as inline SVG: points on a square with its diagonal. Pure;
computes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from alignment.report.format import is_number, number
from alignment.report.svg import Scale, picture, tag, ticks

WIDTH, HEIGHT = 360.0, 300.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 350.0, 18.0, 256.0
LARGEST = 7.0
"""Radius of a point that stands for all pairs."""


def calibration_chart(title: str, bins: Sequence[Mapping[str, Any]], colour: str) -> Markup:
    """A point for each bin, the larger the more pairs it stands for, with the 95 % interval of the share that is right;
    on the dashed line a model is right as often as it is sure."""
    known = [one for one in bins if is_number(one.get("confidence")) and is_number(one.get("right"))]
    if not known:
        return picture(WIDTH, HEIGHT, f"{title}: no pairs")
    x, y = Scale((0.5, 1.0), (LEFT, RIGHT)), Scale((0.0, 1.0), (BOTTOM, TOP))
    whole = sum(one["rows"] for one in known)
    children = []
    for level in ticks(0.0, 1.0, 5):
        children += [tag("line", x1=LEFT, x2=RIGHT, y1=y(level), y2=y(level), class_="grid"),
                     tag("text", f"{level:.1f}", x=LEFT - 6, y=y(level) + 3.5, text_anchor="end")]
    children.append(tag("line", x1=LEFT, x2=RIGHT, y1=BOTTOM, y2=BOTTOM, class_="axis"))
    for level in ticks(0.5, 1.0, 5):
        children += [tag("line", x1=x(level), x2=x(level), y1=BOTTOM, y2=BOTTOM + 4, class_="axis"),
                     tag("text", f"{level:.1f}", x=x(level), y=BOTTOM + 16, text_anchor="middle")]
    children += [tag("text", "how sure, sigmoid of the margin; the height: share right", x=(LEFT + RIGHT) / 2,
                     y=BOTTOM + 32, text_anchor="middle", class_="label"),
                 tag("line", x1=x(0.5), x2=x(1.0), y1=y(0.5), y2=y(1.0), class_="reference")]
    for one in known:
        place = x(one["confidence"])
        told = (f"{number(one['rows'])} pairs, {number(one['confidence'], 2)} sure, {number(one['right'], 2)} right "
                f"[{number(one['right_low'], 2)}, {number(one['right_high'], 2)}]")
        children.append(tag("line", x1=place, x2=place, y1=y(one["right_low"]), y2=y(one["right_high"]),
                            class_=f"span {colour}"))
        children.append(tag("circle", tag("title", told), cx=place, cy=y(one["right"]), class_=f"dot {colour}",
                            r=2.2 + (LARGEST - 2.2) * (one["rows"] / whole) ** 0.5))
    return picture(WIDTH, HEIGHT, title, *children)
