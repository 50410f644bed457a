"""Where the boxes and arrows of a run's chain go: layers from top to bottom, lanes from left to right.

Stages stand in layers by longest path, in the lane of what they make (rows, language models, judgements). Arrows
run in the gaps between layers and in the gutters between columns only, so that none crosses a box, however long
the chain is. Every arrow has a place of its own in each gap and gutter; arrows from one stage share their trunk.
Draws nothing (chain.py does). After the layered drawing of Sugiyama et al. 1981.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from alignment.config import Run

BOX_WIDTH, BOX_HEIGHT = 264.0, 74.0
TRACK = 9.0
"""Distance of parallel arrows."""
HEAD = 34.0
"""Space for the lanes' names above the first layer."""
OUT_PORT = 0.64
"""Where an arrow leaves a box that none of its targets stands under (share of the width): never an in-port's place."""

LANES = ("Rows", "Language models", "Reward and evaluation")


@dataclass(frozen=True)
class Box:
    name: str
    lane: int
    layer: int
    column: int
    x: float
    y: float


@dataclass(frozen=True)
class Wire:
    """One arrow; `points` are its corners, the last one is its tip."""

    source: str
    target: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Layout:
    boxes: dict[str, Box]
    wires: tuple[Wire, ...]
    lanes: tuple[tuple[str, float], ...]
    """(name, x) of every lane that has boxes."""
    width: float
    height: float


_LANE = {"rows": 0, "policy": 1, "reward": 2, "embedder": 2, "table": 2, "files": 2, "endpoint": 1}


def lane_of(run: Run, name: str) -> int:
    """Index into LANES by what the stage makes."""
    return _LANE[run.stage(name).makes]


def layers_of(run: Run) -> dict[str, int]:
    """Layer of every stage: one below its lowest input; a stage without inputs stands just above its first reader."""
    layers: dict[str, int] = {}
    for stage in run.stages:
        layers[stage.name] = max((layers[name] + 1 for name in stage.inputs()), default=0)
    for stage in run.stages:
        readers = [layers[other.name] for other in run.stages if stage.name in other.inputs()]
        if not stage.inputs() and readers:
            layers[stage.name] = min(readers) - 1
    return layers


def arrange(run: Run) -> Layout:
    """The whole layout of a run's chain, in pixels from the top left corner."""
    layers = layers_of(run)
    columns = _columns(run, layers)
    edges = [(name, stage.name) for stage in run.stages for name in stage.inputs()]
    router = _Router(layers, {name: column for name, (_, column) in columns.items()}, edges)
    lefts, tops, width, height = router.measure()
    boxes = {
        name: Box(name, lane, layers[name], column, lefts[column], tops[layers[name]])
        for name, (lane, column) in columns.items()
    }
    firsts: dict[int, float] = {}
    for box in boxes.values():
        firsts[box.lane] = min(box.x, firsts.get(box.lane, box.x))
    return Layout(boxes, tuple(router.wires()), tuple((LANES[lane], firsts[lane]) for lane in sorted(firsts)),
                  width, height)


def _columns(run: Run, layers: dict[str, int]) -> dict[str, tuple[int, int]]:
    """Stage -> (lane, column). A lane is as many columns wide as its fullest layer."""
    cells: dict[tuple[int, int], list[str]] = defaultdict(list)
    for stage in run.stages:
        cells[lane_of(run, stage.name), layers[stage.name]].append(stage.name)
    widths = [max((len(names) for (lane, _), names in cells.items() if lane == index), default=0) for index in range(3)]
    starts = [sum(widths[:index]) for index in range(3)]
    return {
        name: (lane, starts[lane] + place) for (lane, _), names in cells.items() for place, name in enumerate(names)
    }


class _Router:
    """Finds a trunk for every stage and a track for every turn; all lengths are known only after that."""

    def __init__(self, layers: dict[str, int], columns: dict[str, int], edges: Sequence[tuple[str, str]]) -> None:
        self.layers, self.columns, self.edges = layers, columns, edges
        self.taken = {(columns[name], layers[name]) for name in layers}
        self.last_column, self.last_layer = max(columns.values()), max(layers.values())
        self.straight = {edge: self._is_free_below(*edge) for edge in edges}
        self.gutters: dict[int, list[str]] = defaultdict(list)
        for source, target in edges:
            gutter = self._gutter(source)
            if not self.straight[source, target] and source not in self.gutters[gutter]:
                self.gutters[gutter].append(source)
        self.tracks: dict[tuple[int, str], int] = {}
        self.counts: dict[int, int] = {}

    def _is_free_below(self, source: str, target: str) -> bool:
        """Whether the source's own column is empty from the source down to the target's layer."""
        column, between = self.columns[source], range(self.layers[source] + 1, self.layers[target])
        return not any((column, layer) in self.taken for layer in between)

    def _gutter(self, source: str) -> int:
        """The gutter right of the source's column; of the last column, the one left of it."""
        column = self.columns[source]
        return column - 1 if column == self.last_column and column > 0 else column

    def measure(self) -> tuple[list[float], list[float], float, float]:
        """Left edges of columns, upper edges of layers, width and height."""
        self.lefts, x = [], 2.0
        for column in range(self.last_column + 1):
            self.lefts.append(x)
            x += BOX_WIDTH + 34 + TRACK * len(self.gutters[column])
        width = x - 34 + (4 if not self.gutters[self.last_column] else 24)
        self._ports()
        self._assign_tracks()
        self.tops, y = [], HEAD
        for layer in range(self.last_layer + 1):
            self.tops.append(y)
            y += BOX_HEIGHT + 30 + TRACK * max(self.counts.get(layer, 0) - 1, 0)
        return self.lefts, self.tops, width, self.tops[-1] + BOX_HEIGHT + 4

    def _trunk(self, edge: tuple[str, str]) -> float:
        """x of the upright part of an arrow between the source's gap and the target's gap."""
        source = edge[0]
        if self.straight[edge]:
            return self.outs[source]
        gutter = self._gutter(source)
        return self.lefts[gutter] + BOX_WIDTH + 17 + TRACK * self.gutters[gutter].index(source)

    def _ports(self) -> None:
        """Where arrows enter a box (spread over its width, in the order they come from) and leave one."""
        self.ins: dict[tuple[str, str], float] = {}
        self.outs = {name: self.lefts[column] + BOX_WIDTH * OUT_PORT for name, column in self.columns.items()}
        for target in self.layers:
            arriving = [edge for edge in self.edges if edge[1] == target]
            arriving.sort(key=lambda edge: (self._trunk(edge), self.layers[edge[0]]))
            for index, edge in enumerate(arriving, start=1):
                self.ins[edge] = self.lefts[self.columns[target]] + BOX_WIDTH * index / (len(arriving) + 1)
        for source, target in self.edges:
            if self.straight[source, target] and self.columns[source] == self.columns[target]:
                self.outs[source] = self.ins[source, target]

    def _assign_tracks(self) -> None:
        """A height in each gap for every source that turns there; sources that do not overlap share one."""
        turns: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for edge in self.edges:
            source, target = edge
            turns[self.layers[source]][source] += [self.outs[source], self._trunk(edge)]
            turns[self.layers[target] - 1][source] += [self._trunk(edge), self.ins[edge]]
        for gap, users in turns.items():
            spans = sorted((min(xs), max(xs), source) for source, xs in users.items() if max(xs) - min(xs) > 0.5)
            ends: list[float] = []
            for low, high, source in spans:
                track = next((index for index, end in enumerate(ends) if end + 6 < low), len(ends))
                ends[track:track + 1] = [high]
                self.tracks[gap, source] = track
            self.counts[gap] = len(ends)

    def _height(self, gap: int, source: str) -> float:
        return self.tops[gap] + BOX_HEIGHT + 13 + TRACK * self.tracks.get((gap, source), 0)

    def wires(self) -> Iterable[Wire]:
        for edge in self.edges:
            source, target = edge
            first, last = self.layers[source], self.layers[target] - 1
            begin, trunk, end = self.outs[source], self._trunk(edge), self.ins[edge]
            points = [(begin, self.tops[first] + BOX_HEIGHT), (begin, self._height(first, source))]
            if last > first:
                points += [(trunk, self._height(first, source)), (trunk, self._height(last, source))]
            points += [(end, self._height(last, source)), (end, self.tops[last + 1])]
            yield Wire(source, target, tuple(_simple(points)))


def _simple(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The same way without points that repeat or lie on a straight line."""
    kept = [points[0]]
    for index in range(1, len(points) - 1):
        (ax, ay), (bx, by), (cx, cy) = kept[-1], points[index], points[index + 1]
        if (ax, ay) != (bx, by) and not (ax == bx == cx or ay == by == cy):
            kept.append(points[index])
    return [*kept, points[-1]]
