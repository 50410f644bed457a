"""Charts as inline SVG: lines, histograms, intervals, bars. Pure functions from numbers to markup.

Colours are CSS classes (`s0`..`s7`), so that one drawing serves light, dark and paper. Hover shows values
with SVG titles and CSS alone. Knows nothing of stages or metrics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from alignment.report.format import is_number, number
from alignment.report.svg import Point, Scale, picture, polyline, px, shortened, tag, text_width, ticks, widened


@dataclass(frozen=True)
class Series:
    """Points in drawing order (x rising). `style`: line, faint (behind another, not in the legend), or dots (line
    with markers)."""

    label: str
    points: Sequence[Point]
    colour: str
    style: str = "line"


def thinned(points: Sequence[Point], limit: int = 200) -> list[Point]:
    """At most `limit` points: means of neighbouring points where there are more."""
    if len(points) <= limit:
        return list(points)
    edges = [round(index * len(points) / limit) for index in range(limit + 1)]
    groups = [points[start:end] for start, end in pairwise(edges)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


# --- lines --------------------------------------------------------------------------------------------------

WIDTH, HEIGHT = 360.0, 232.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 350.0, 32.0, 194.0
LEVEL = 1e-3
"""Share of a value below which its changes do not fill a chart: their ticks would need more digits than are told."""


def line_chart(
    title: str, series: Sequence[Series], *, x_label: str = "step", bounds: tuple[float, float] | None = None,
    reference: float | None = None,
) -> Markup:
    """Lines over a common x axis, with ticks, legend, and values on hover.

    Args:
        series: points that are not finite are left out.
        bounds: limits that the y axis never leaves, for example (0, 1) for a rate.
        reference: a y value with a meaning (chance, zero), drawn as a thin line when in range.
    """
    series = [Series(s.label, [p for p in s.points if is_number(p[0]) and is_number(p[1])], s.colour, s.style)
              for s in series]
    series = [s for s in series if s.points]
    if not series:
        return picture(WIDTH, HEIGHT, f"{title}: no values")
    xs = [x for s in series for x, _ in s.points]
    y_ticks = ticks(*widened([y for s in series for _, y in s.points], LEVEL))
    if bounds is not None:
        y_ticks = [value for value in y_ticks if bounds[0] - 1e-9 <= value <= bounds[1] + 1e-9]
        y_ticks = y_ticks if len(y_ticks) > 1 else list(bounds)
    x = Scale(widened(xs), (LEFT, RIGHT))
    y = Scale((y_ticks[0], y_ticks[-1]), (BOTTOM, TOP))
    whole = all(value == int(value) for value in xs)
    x_ticks = [t for t in ticks(*x.domain, 5) if _inside(t, x.domain) and (t == int(t) or not whole)]
    children = [*_y_axis(y, y_ticks), *_x_axis(x, x_ticks, x_label)]
    if reference is not None and _inside(reference, y.domain):
        children.append(tag("line", x1=LEFT, x2=RIGHT, y1=y(reference), y2=y(reference), class_="reference"))
    for item in series:
        placed = [(x(a), y(b)) for a, b in item.points]
        children.append(polyline(placed, class_=f"line {item.style} {item.colour}"))
        if item.style == "dots":
            children += [tag("circle", cx=a, cy=b, r=2.6, class_=f"dot {item.colour}") for a, b in placed]
    return picture(WIDTH, HEIGHT, title, *children, *legend(series), *_hover(series, x))


def _inside(value: float, domain: tuple[float, float]) -> bool:
    return domain[0] - 1e-9 <= value <= domain[1] + 1e-9


def _y_axis(y: Scale, values: Sequence[float], left: float = LEFT, right: float = RIGHT) -> list[Markup]:
    lines = [tag("line", x1=left, x2=right, y1=y(v), y2=y(v), class_="grid") for v in values]
    return lines + [tag("text", _tick(v, values), x=left - 6, y=y(v) + 3.5, text_anchor="end") for v in values]


def _x_axis(x: Scale, values: Sequence[float], label: str, bottom: float = BOTTOM) -> list[Markup]:
    start, end = x.pixels
    return [
        tag("line", x1=start, x2=end, y1=bottom, y2=bottom, class_="axis"),
        *[tag("line", x1=x(v), x2=x(v), y1=bottom, y2=bottom + 4, class_="axis") for v in values],
        *[tag("text", _tick(v, values), x=x(v), y=bottom + 16, text_anchor="middle") for v in values],
        tag("text", label, x=(start + end) / 2, y=bottom + 32, text_anchor="middle", class_="label"),
    ]


def _tick(value: float, values: Sequence[float]) -> str:
    """One number of decimals for a whole axis, as many as its step needs."""
    step = abs(values[1] - values[0]) if len(values) > 1 else abs(value) or 1
    if step < 1e-4:
        digits = next((d for d in range(1, 9) if all(abs(float(f"{v:.{d}e}") - v) < step * 0.01 for v in values)), 9)
        return f"{value:.{digits}e}" if value else "0"
    decimals = next((d for d in range(6) if abs(round(step, d) - step) < step * 1e-6), 6)
    return f"{value:,.{decimals}f}"


def legend(series: Sequence[Series], left: float = LEFT) -> list[Markup]:
    """Marks and labels of series in a line above a chart."""
    children, x = [], left
    for item in series:
        if item.style == "faint":
            continue
        children.append(tag("line", x1=x, x2=x + 16, y1=13.0, y2=13.0, class_=f"line {item.style} {item.colour}"))
        if item.style == "dots":
            children.append(tag("circle", cx=x + 8, cy=13.0, r=2.6, class_=f"dot {item.colour}"))
        children.append(tag("text", item.label, x=x + 21, y=16.5))
        x += 21 + text_width(item.label, 11) + 14
    return children


HOVERS = 80
"""About so many places of a chart answer to the pointer: more would be narrower than a hand is steady."""


def _hover(series: Sequence[Series], x: Scale) -> list[Markup]:
    """Upright bands that light up and say their values; with many points, every so many of them."""
    at: dict[float, list[str]] = {}
    for item in series:
        for a, b in item.points:
            at.setdefault(a, []).append(f"{item.label}: {number(b)}")
    places = sorted(at)
    if len(places) > HOVERS:
        fullest = sorted(places, key=lambda a: -len(at[a]))[:HOVERS // 4]  # those with evaluations
        places = sorted({*fullest, *places[::-(-len(places) // HOVERS)]})
    bands = []
    for index, a in enumerate(places):
        left = x(a) if index == 0 else (x(places[index - 1]) + x(a)) / 2
        right = x(a) if index == len(places) - 1 else (x(a) + x(places[index + 1])) / 2
        title = tag("title", "\n".join([f"step {number(a)}", *at[a]]))
        bands.append(tag("rect", title, x=left, y=TOP, width=max(right - left, 3.0), height=BOTTOM - TOP, class_="at"))
    return bands


# --- distributions ------------------------------------------------------------------------------------------


SHARE = "the height is the share of answers"


@dataclass(frozen=True)
class Counts:
    """A histogram: len(edges) == len(counts) + 1. `filled` draws its area, not its outline alone; `of` says of what."""

    label: str
    edges: Sequence[float]
    counts: Sequence[float]
    colour: str
    filled: bool = True
    of: str = "answers"

    @property
    def usable(self) -> bool:
        return len(self.edges) == len(self.counts) + 1 > 1 and sum(self.counts) > 0 and self.edges[-1] > self.edges[0]


def histogram(title: str, items: Sequence[Counts], *, x_label: str, cut: float | None = None) -> Markup:
    """Histograms over each other, each as shares of its own total; an upright line at `cut`, where it is in range."""
    items = [item for item in items if item.usable]
    width, height, right, bottom = 460.0, 236.0, 450.0, 198.0
    if not items:
        return picture(width, height, f"{title}: no values")
    shares = [[count / sum(item.counts) for count in item.counts] for item in items]
    x = Scale(widened([edge for item in items for edge in item.edges]), (LEFT, right))
    y_ticks = ticks(0.0, max(max(share) for share in shares), 4)
    y = Scale((0.0, y_ticks[-1]), (bottom, TOP))
    children = [*_y_axis(y, y_ticks, LEFT, right)]
    for item, share in zip(items, shares, strict=True):
        path = f"M{px(x(item.edges[0]))},{px(bottom)}" + "".join(
            f"V{px(y(value))}H{px(x(end))}" for value, end in zip(share, item.edges[1:], strict=True)
        ) + f"V{px(bottom)}"
        text = f"{item.label}: {number(sum(item.counts))} {item.of}"
        children.append(tag("path", tag("title", text), d=path,
                            class_=f"steps {'filled' if item.filled else 'outline'} {item.colour}"))
    if cut is not None and _inside(cut, x.domain):
        children.append(tag("line", tag("title", f"cut at {number(cut)}"), x1=x(cut), x2=x(cut), y1=TOP, y2=bottom,
                            class_="reference"))
    children += _x_axis(x, [t for t in ticks(*x.domain, 8) if _inside(t, x.domain)], x_label, bottom)
    return picture(width, height, title, *children, *legend([Series(i.label, (), i.colour) for i in items]))


# --- intervals and bars -------------------------------------------------------------------------------------


def whisker(
    title: str, value: float, low: float | None, high: float | None, domain: tuple[float, float], colour: str, *,
    reference: float | None = None, width: float = 110.0,
) -> Markup:
    """A dot with its interval on a thin scale; `reference` is marked with an upright line."""
    height, middle = 16.0, 8.0
    x = Scale(domain, (4.0, width - 4.0))
    children = [tag("line", x1=0.0, x2=width, y1=middle, y2=middle, class_="rail")]
    if reference is not None and _inside(reference, domain):
        children.append(tag("line", x1=x(reference), x2=x(reference), y1=0.0, y2=height, class_="reference"))
    if is_number(low) and is_number(high) and low is not None and high is not None:
        children.append(tag("line", x1=x(low), x2=x(high), y1=middle, y2=middle, class_=f"span {colour}"))
    children.append(tag("circle", cx=x(value), cy=middle, r=3.6, class_=f"dot {colour}"))
    return tag("svg", tag("title", title), *children, class_="whisker", viewBox=f"0 0 {px(width)} {px(height)}",
               width=width, height=height, role="img", aria_label=title)


def bars(title: str, items: Sequence[tuple[str, float, str, str]]) -> Markup:
    """Horizontal bars from zero: (label, value, text at the end, colour) each."""
    width, row, end = 540.0, 25.0, 90.0
    left = min(max((text_width(label, 12.5) for label, *_ in items), default=0.0) + 16, 170.0)
    longest = max([value for _, value, _, _ in items if is_number(value)], default=0.0) or 1.0
    children: list[Markup] = []
    for index, (label, value, text, colour) in enumerate(items):
        top = index * row
        size = max((width - left - end) * value / longest, 1.5) if is_number(value) else 0.0
        children += [
            tag("text", shortened(label, left - 12, 12.5), x=0.0, y=top + 17, class_="name"),
            tag("rect", x=left, y=top + 6, width=size, height=row - 12, rx=2.5, class_=f"bar {colour}"),
            tag("text", text, x=left + size + 8, y=top + 17),
        ]
    return picture(width, max(len(items) * row, row), title, *children, class_="chart wide")


# --- a picture of its own -----------------------------------------------------------------------------------


def lengths_picture(edges: Sequence[float], counts: Sequence[int]) -> Markup:
    """A histogram of token lengths as an SVG file: it brings its colours, since no page does."""
    width, height, right, bottom = 640.0, 300.0, 625.0, 250.0
    x = Scale((edges[0], edges[-1]), (LEFT, right))
    levels = ticks(0.0, float(max(counts)), 4)
    y = Scale((0.0, levels[-1]), (bottom, TOP))
    columns = [
        tag("rect", tag("title", f"{low:.0f} to {high - 1:.0f} tokens: {many} sequences"), x=x(low) + 0.5, y=y(many),
            width=max(0.5, x(high) - x(low) - 1), height=bottom - y(many), fill="#3b6ea8")
        for low, high, many in zip(edges, edges[1:], counts, strict=False)]
    grid = [Markup("").join((
        tag("line", x1=LEFT, x2=right, y1=y(level), y2=y(level), stroke="#d5d9de"),
        tag("text", number(level), x=LEFT - 6, y=y(level) + 4, text_anchor="end"))) for level in levels]
    below = [tag("text", number(value), x=x(value), y=bottom + 18, text_anchor="middle")
             for value in ticks(*x.domain, 8) if _inside(value, x.domain)]
    label = tag("text", "tokens of a sequence", x=(LEFT + right) / 2, y=bottom + 40, text_anchor="middle")
    return tag("svg", tag("title", "Token lengths"), tag("rect", width="100%", height="100%", fill="#ffffff"), *grid,
               *columns, *below, label, xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {px(width)} {px(height)}",
               width=width, height=height, font_family="system-ui, sans-serif", font_size="12", fill="#39424e")
