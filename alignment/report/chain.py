"""The chain of a run as a picture: a box for every stage, arrows for the models and rows it reads.

Positions come from layout.py. Text that would not fit its box is cut and kept whole in the box's title.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from markupsafe import Markup

from alignment.config import Run
from alignment.report.layout import BOX_HEIGHT, BOX_WIDTH, Box, Wire, arrange
from alignment.report.svg import picture, px, shortened, tag, text_width


@dataclass(frozen=True)
class StageText:
    """What a box says. `done` False draws it dashed."""

    kind: str
    rows: str
    digest: str
    time: str
    done: bool


def chain(run: Run, texts: Mapping[str, StageText], colours: Mapping[str, str]) -> Markup:
    """The picture.

    Args:
        texts: one entry for every stage of the run.
        colours: colour class of a stage's box and of the arrows of its model; a stage without one is plain.
    """
    layout = arrange(run)
    lanes = [tag("text", name, x=x, y=14.0, class_="lane") for name, x in layout.lanes]
    wires = [_wire(run, wire, colours.get(wire.source, "plain")) for wire in layout.wires]
    boxes = [_box(box, texts[name], colours.get(name, "plain")) for name, box in layout.boxes.items()]
    title = f"Chain of run {run.name}: " + "; ".join(_sentence(run, stage.name) for stage in run.stages)
    return picture(layout.width, layout.height, title, *lanes, *wires, *boxes, class_="chain")


def _sentence(run: Run, name: str) -> str:
    sources = refs(run, name)
    return f"{name} from {', '.join(sources)}" if sources else name


def refs(run: Run, name: str, source: str | None = None) -> list[str]:
    """What a stage reads, as the run file names it (`base`, `seed/train`); of one source only, where given."""
    stage = run.stage(name)
    found = [model.stage for model in stage.model_refs()] + [rows.ref for rows in stage.row_refs()]
    found += [other for other in stage.inputs() if other not in {ref.split("/")[0] for ref in found}]
    return list(dict.fromkeys(ref for ref in found if source is None or ref.split("/")[0] == source))


def _wire(run: Run, wire: Wire, colour: str) -> Markup:
    kind = "model" if run.stage(wire.source).makes in ("policy", "reward", "embedder", "endpoint") else "rows"
    x, y = wire.points[-1]
    return tag(
        "g", tag("title", f"{', '.join(refs(run, wire.target, wire.source))} → {wire.target}"),
        tag("path", d=rounded((*wire.points[:-1], (x, y - 5))), class_="wire"),
        tag("path", d=f"M{px(x - 4)},{px(y - 7)}L{px(x)},{px(y)}L{px(x + 4)},{px(y - 7)}Z", class_="head"),
        class_=f"wire-{kind} {colour}",
    )


def rounded(points: tuple[tuple[float, float], ...], radius: float = 5.0) -> str:
    """An SVG path through upright and level lines with round corners."""
    parts = [f"M{px(points[0][0])},{px(points[0][1])}"]
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        room = min(radius, _distance(before, corner) / 2, _distance(corner, after) / 2)
        enter, leave = _towards(corner, before, room), _towards(corner, after, room)
        parts.append(f"L{px(enter[0])},{px(enter[1])}Q{px(corner[0])},{px(corner[1])} {px(leave[0])},{px(leave[1])}")
    return "".join([*parts, f"L{px(points[-1][0])},{px(points[-1][1])}"])


def _distance(a: tuple[float, float], b: tuple[float, float]) -> float:
    return abs(a[0] - b[0]) + abs(a[1] - b[1])


def _towards(start: tuple[float, float], goal: tuple[float, float], length: float) -> tuple[float, float]:
    share = length / (_distance(start, goal) or 1.0)
    return start[0] + (goal[0] - start[0]) * share, start[1] + (goal[1] - start[1]) * share


def _box(box: Box, text: StageText, colour: str) -> Markup:
    left, right, inner = box.x + 16, box.x + BOX_WIDTH - 12, BOX_WIDTH - 28
    time_width = text_width(text.time, 11) + 10
    digest_width = text_width(text.digest, 11, 0.62) + 10
    whole = "\n".join(part for part in (box.name, text.kind, text.rows, text.digest, text.time) if part)
    return tag(
        "g", tag("title", whole),
        tag("rect", x=box.x, y=box.y, width=BOX_WIDTH, height=BOX_HEIGHT, rx=7.0, class_="box"),
        tag("rect", x=box.x + 6, y=box.y + 10, width=3.0, height=BOX_HEIGHT - 20, rx=1.5, class_="edge"),
        tag("text", shortened(box.name, inner - time_width, 14), x=left, y=box.y + 23, class_="stage"),
        tag("text", text.time, x=right, y=box.y + 23, text_anchor="end", class_="quiet"),
        tag("text", shortened(text.kind, inner - digest_width, 12), x=left, y=box.y + 42, class_="kind"),
        tag("text", text.digest, x=right, y=box.y + 42, text_anchor="end", class_="quiet mono"),
        tag("text", shortened(text.rows, inner, 11.5), x=left, y=box.y + 61, class_="quiet"),
        class_=colour if text.done else f"{colour} missing",
    )
