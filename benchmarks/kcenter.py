"""Speed of k-center greedy beside the plain loop, and whether both pick the same points from the same start.

    python -m benchmarks.kcenter [--rows 100000] [--width 384] [--take 1000] [--plain 30]

The plain loop is the one of the reference implementations, which compute the distances of all points to each new pick
anew: `plain`, in numpy and float64, which is what decides. The same can be had with one float32 matrix-vector product a
pick, without any further idea: `products`, whose picks need not be the same. Both are timed over their first picks and
the others counted like them, as each pick costs the same; the plain loop's picks are compared with ours as far as it
went. Points: Gaussian, which all lie about equally far from each other, and clusters of unequal size and spread on the
unit sphere, as sentence embeddings are. Times are CPU seconds of one process, as other work on the machine does not
count in them; on several cores ours is faster than they say and the plain loop, which numpy runs on one, is not. Prints
a table and writes benchmarks/results/kcenter.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy
from rich.console import Console
from rich.table import Table

from alignment.selection.kcenter import Floats, Whole, k_center, squared

RESULTS = Path(__file__).parent / "results" / "kcenter.json"


def plain(points: Floats, take: int, first: int) -> Whole:
    """The loop as it is written everywhere, in the arithmetic that the fast one is held to."""
    chosen = [first]
    nearest = squared(points, points[first])
    nearest[first] = -1.0
    while len(chosen) < take:
        pick = int(nearest.argmax())
        chosen.append(pick)
        numpy.minimum(nearest, squared(points, points[pick]), out=nearest)
        nearest[pick] = -1.0
    return numpy.array(chosen)


def products(points: Floats, take: int, first: int) -> Whole:
    """The same with |x|^2 + |c|^2 - 2 x c in float32: near ties may fall otherwise."""
    chosen, norms = [first], numpy.square(points).sum(axis=1)
    nearest = norms + norms[first] - 2 * (points @ points[first])
    nearest[first] = -1.0
    while len(chosen) < take:
        pick = int(nearest.argmax())
        chosen.append(pick)
        numpy.minimum(nearest, norms + norms[pick] - 2 * (points @ points[pick]), out=nearest)
        nearest[pick] = -1.0
    return numpy.array(chosen)


def gaussian(rows: int, width: int) -> Floats:
    return numpy.random.default_rng(1).standard_normal((rows, width), dtype=numpy.float32)


def clustered(rows: int, width: int) -> Floats:
    """300 clusters, sizes and spreads far apart, on the unit sphere."""
    draw = numpy.random.default_rng(2)
    centers = draw.standard_normal((300, width), dtype=numpy.float32)
    weights = draw.pareto(1.0, 300) + 0.05
    which = draw.choice(300, rows, p=weights / weights.sum())
    spread = draw.uniform(0.2, 1.2, 300).astype(numpy.float32)[which, None]
    made = centers[which] + spread * draw.standard_normal((rows, width), dtype=numpy.float32)
    found: Floats = made / numpy.linalg.norm(made, axis=1, keepdims=True)
    return found


def measure(name: str, points: Floats, take: int, picks: int) -> dict[str, Any]:
    """CPU seconds of a whole selection, by each way."""
    began = time.process_time()
    ours = k_center(points, take, 0).indices
    seconds = time.process_time() - began
    taken = {}
    for way in (plain, products):
        began = time.process_time()
        theirs = way(points, picks, 0)
        taken[way.__name__] = (time.process_time() - began) / picks * take
        if way is plain:
            same = int((theirs == ours[:picks]).sum())
    return {"points": name, "rows": len(points), "width": points.shape[1], "take": take, "seconds": round(seconds, 3),
            "plain_seconds": round(taken["plain"], 1), "products_seconds": round(taken["products"], 1),
            "times": round(taken["plain"] / seconds, 1), "times_products": round(taken["products"] / seconds, 2),
            "same_picks": f"{same} of the first {picks}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--take", type=int, nargs="*", default=[1_000, 4_000])
    parser.add_argument("--plain", type=int, default=30)
    given = parser.parse_args()
    made = [measure(draw.__name__, draw(given.rows, given.width), take, min(given.plain, take))
            for draw in (gaussian, clustered) for take in given.take]
    table = Table("points", "take", "ours, s", "plain loop, s", "times", "float32 products, s", "times", "same picks")
    for one in made:
        table.add_row(one["points"], f"{one['take']:,}", f"{one['seconds']:.1f}", f"{one['plain_seconds']:,.0f}",
                      f"{one['times']:,.0f}", f"{one['products_seconds']:,.0f}", f"{one['times_products']:.1f}",
                      one["same_picks"])
    Console().print(table)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(),
                                   "python": platform.python_version(), "numpy": numpy.__version__, "results": made},
                                  indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
