"""k-center greedy: points that lie far from each other, the same ones as the plain loop picks, much faster.

The plain loop (Gonzalez 1985; as in CASIA-LM/MoDS and Sener and Savarese's code) keeps for every point the distance to
its nearest chosen one, picks the farthest, and computes the distances of all points to it: n d operations and a pass
over memory for each pick. Here a distance that cannot be the largest is not computed exactly:

    upper bounds of all points      by matrix products in float32, for many picks at once, with the error's bound added
    a few thousand with the largest exactly, in float64, after each pick
    a pick                          is sure where the largest exact one is above every other point's upper bound; else
                                    the bounds are brought up to date and the few are gathered anew

The arithmetic that decides is defined as: coordinates in float32, squared differences summed in float64 (`squared`),
squared distances compared, the first of equal ones. So picks are those of the plain loop in that arithmetic, to the
last tie. numpy alone; knows no rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy
from numpy.typing import NDArray

Floats = NDArray[numpy.float32]
Doubles = NDArray[numpy.float64]
Whole = NDArray[numpy.int64]
ACTIVE = 1024
"""Points that are followed exactly, at first; more where they last for few picks."""
BLOCK = 4096
"""Points of one matrix product: its result stays in a core's cache for usual numbers of picks."""
FEW = 24
"""Picks between two gatherings below which more points are followed."""
PAIRS = 16384
"""Differences that are taken at once."""
UNIT = 2.0**-24
"""Half a unit in the last place of float32, at 1."""


@dataclass(frozen=True)
class Picks:
    """Chosen points.

    Attributes:
        indices: in the order in which they were picked, [take].
        distances: of each to the nearest of those before it, [take]; infinite for the first.
        radius: the largest distance of any point to its nearest chosen one.
    """

    indices: Whole
    distances: Doubles
    radius: float


def squared(points: Floats, others: Floats) -> Doubles:
    """Squared Euclidean distances of points [m, d] to one point [d] or to one each [m, d], -> [m].

    The sum over d is numpy's pairwise one over a contiguous axis, which is the same whatever m is.
    """
    difference = points.astype(numpy.float64)
    difference -= others
    numpy.square(difference, out=difference)
    summed: Doubles = difference.sum(axis=1)
    return summed


def k_center(points: Floats, take: int, first: int, on_picks: Callable[[int], None] | None = None) -> Picks:
    """`take` points [n, d], beginning with the index `first`.

    Args:
        points: finite.
        on_picks: called with the number of picks so far, now and then.

    Raises:
        ValueError: take is not between 1 and n, first is no index, or a coordinate is not finite.
    """
    rows = len(points)
    if not 1 <= take <= rows or not 0 <= first < rows:
        raise ValueError(f"take {take} and first {first} do not fit {rows} points")
    points = numpy.ascontiguousarray(points, dtype=numpy.float32)
    if not numpy.isfinite(points).all():
        raise ValueError("a coordinate is not a finite number")
    search = _Search(points)
    search.choose(first, numpy.inf)
    while len(search.chosen) < take:
        at = search.farthest()
        search.choose(int(search.followed[at]), float(search.exact[at]))
        if on_picks is not None and len(search.chosen) % 64 == 0:
            on_picks(len(search.chosen))
    radius = 0.0
    if take < rows:
        at = search.farthest()  # which may gather the followed points anew
        radius = float(numpy.sqrt(search.exact[at]))
    return Picks(numpy.array(search.chosen, dtype=numpy.int64), numpy.sqrt(numpy.array(search.found)), radius)


class _Search:
    """The state between picks.

    Attributes:
        upper: squared distance to the nearest chosen point, at least; of chosen points -1, [n].
        followed: indices whose distances are known exactly, rising, [m].
        exact: those distances, squared; of chosen ones -1, [m].
        rest: the largest `upper` of points that are not followed.
        applied: how many of the chosen points `upper` knows.
    """

    def __init__(self, points: Floats) -> None:
        self.points = points
        self.norms = numpy.empty(len(points))
        for start in range(0, len(points), BLOCK):
            block = points[start : start + BLOCK].astype(numpy.float64)
            self.norms[start : start + BLOCK] = numpy.square(block, out=block).sum(axis=1)
        self.errors = self._errors()
        self.upper = numpy.full(len(points), numpy.inf)
        self.chosen: list[int] = []
        self.found: list[float] = []
        self.applied = 0
        self.size = ACTIVE
        self.picks = 0
        self._follow(numpy.empty(0, dtype=numpy.int64), numpy.empty(0))
        self.rest = numpy.inf

    def _errors(self) -> Doubles:
        """By how much a squared distance of each point by `_near` may be off, [n].

        A dot product of d float32 numbers is off by at most d u / (1 - d u) times the product of the norms, in any
        order of its sum (Higham, Accuracy and Stability, 3.1); then come the rounding of one norm and two sums.
        Doubled, so that float64's own rounding and the plain loop's are within.
        """
        width = self.points.shape[1]
        gamma = width * UNIT / (1 - width * UNIT)
        largest = float(numpy.sqrt(self.norms.max()))
        own = numpy.sqrt(self.norms)
        bound: Doubles = 2 * ((2 * gamma + 4 * UNIT) * own * largest + 4 * UNIT * largest**2) + 1e-300
        return bound

    def _near(self, points: Floats, norms: Doubles, centers: Whole) -> Any:
        """Squared distances of points [m, d] to centers [p] less the points' own norms, in float32, [m, p]."""
        made = points @ self.points[centers].T
        made *= -2
        made += self.norms[centers].astype(numpy.float32)
        return made

    def choose(self, index: int, found: float) -> None:
        """Take a point, whose squared distance to its nearest chosen one was `found`."""
        self.chosen.append(index)
        self.found.append(found)
        self.upper[index] = -1.0
        self.picks += 1
        if not len(self.followed):
            return
        self.exact[self.followed == index] = -1.0
        center = numpy.array([index])
        about = self._near(self.near, self.near_norms, center)[:, 0] + self.near_norms
        changed = numpy.nonzero((about - self.near_errors < self.exact) & (self.exact > 0))[0]
        for start in range(0, len(changed), PAIRS):
            some = changed[start : start + PAIRS]
            self.exact[some] = numpy.minimum(self.exact[some], squared(self.near[some], self.points[index]))

    def farthest(self) -> int:
        """Place among the followed of the point that is farthest from all chosen, the first of equals."""
        if len(self.followed):
            at = int(self.exact.argmax())
            if self.exact[at] > self.rest:
                return at
        if self.picks < FEW:
            self.size *= 2
        self.picks = 0
        self._catch_up()
        while True:
            self._gather()
            at = int(self.exact.argmax())
            if self.exact[at] > self.rest or len(self.followed) == len(self.points):
                return at
            self.size *= 2  # so many lie within the error of the largest, or are equal to it

    def _catch_up(self) -> None:
        """Bring all upper bounds up to the last pick; those of followed points are exact."""
        self.upper[self.followed] = self.exact
        centers = numpy.array(self.chosen[self.applied :], dtype=numpy.int64)
        for start in range(0, len(self.points) if len(centers) else 0, BLOCK):
            block = slice(start, start + BLOCK)
            about = self._near(self.points[block], self.norms[block], centers).min(axis=1)
            bound = numpy.maximum(about + self.norms[block] + self.errors[block], 0.0)
            numpy.minimum(self.upper[block], bound, out=self.upper[block])
        self.applied = len(self.chosen)

    def _gather(self) -> None:
        """Follow the points with the largest upper bounds, at least `size` of them; of the rest keep the largest."""
        rows, size = len(self.points), min(self.size, len(self.points))
        if size == rows:
            wanted, self.rest = numpy.arange(rows), -numpy.inf
        else:
            order = numpy.argpartition(self.upper, rows - size)
            self.rest = float(self.upper[order[: rows - size]].max())
            wanted = numpy.sort(order[rows - size :])
        known = numpy.full(rows, numpy.nan)
        known[self.followed] = self.exact
        exact = known[wanted]
        new = numpy.nonzero(numpy.isnan(exact) & (self.upper[wanted] >= 0))[0]
        exact[self.upper[wanted] < 0] = -1.0
        exact[new] = self._exactly(wanted[new])
        self.upper[wanted] = exact
        self._follow(wanted, exact)

    def _follow(self, indices: Whole, exact: Doubles) -> None:
        self.followed, self.exact = indices, exact
        self.near, self.near_norms = self.points[indices], self.norms[indices]
        self.near_errors = self.errors[indices]

    def _exactly(self, indices: Whole) -> Doubles:
        """Squared distances of points to their nearest chosen one, in float64 over pairs that float32 cannot rule
        out."""
        centers = numpy.array(self.chosen, dtype=numpy.int64)
        made = numpy.full(len(indices), numpy.inf)
        step = max(1, 2_000_000 // len(centers))
        for start in range(0, len(indices), step):
            some = indices[start : start + step]
            about = self._near(self.points[some], self.norms[some], centers)
            limit = about.min(axis=1) + 2 * self.errors[some]
            row, center = numpy.nonzero(about <= limit[:, None])
            for at in range(0, len(row), PAIRS):
                pair = slice(at, at + PAIRS)
                distances = squared(self.points[some[row[pair]]], self.points[centers[center[pair]]])
                numpy.minimum.at(made, start + row[pair], distances)
        return made
