"""Points in a plane as inline SVG: a map of embeddings, what was chosen over what was not. Pure; computes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from alignment.report.charts import Series, legend
from alignment.report.svg import Point, Scale, picture, tag, widened

WIDTH, HEIGHT = 460.0, 360.0
LEFT, TOP, EDGE = 10.0, 30.0, 10.0


def scatter(title: str, groups: Sequence[tuple[str, Sequence[Point], str]]) -> Markup:
    """(label, points, colour) of each group, the later over the earlier, the last larger. Axes have no scale: only
    nearness counts."""
    points = [point for _, own, _ in groups for point in own]
    if not points:
        return picture(WIDTH, HEIGHT, f"{title}: no points")
    x = Scale(widened([one for one, _ in points]), (LEFT + 4, WIDTH - EDGE - 4))
    y = Scale(widened([one for _, one in points]), (HEIGHT - EDGE - 4, TOP + 4))
    children = [tag("rect", x=LEFT, y=TOP, width=WIDTH - EDGE - LEFT, height=HEIGHT - EDGE - TOP, class_="axis",
                    fill="none")]
    for place, (_, own, colour) in enumerate(groups):
        of_last = place == len(groups) - 1
        children += [tag("circle", cx=x(a), cy=y(b), r=3.6 if of_last else 2.0, class_=f"dot {colour}",
                         fill_opacity="0.9" if of_last else "0.55") for a, b in own]
    marks = [Series(label, (), colour, style="dots") for label, _, colour in groups]
    return picture(WIDTH, HEIGHT, title, *children, *legend(marks))


def map_note(drawn: Mapping[str, Any]) -> str:
    """How much of the rows a map shows, in words."""
    parts = [f"{len(drawn[name]):,} of {of:,} {word}" if len(drawn[name]) < of else f"all {of:,} {word}"
             for name, of, word in zip(("chosen", "others"), drawn["of"], ("chosen rows", "others"), strict=True)]
    return (f"instructions by their two principal components, which hold {drawn['variance']:.0%} of the variance; "
            f"drawn are {' and '.join(parts)}")
