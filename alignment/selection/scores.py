"""Cuts through scores: thresholds, quantiles, histograms. Pure; every score is a finite number here."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, pstdev

import numpy

from alignment.errors import StageError
from alignment.records import Record
from alignment.selection.rows import Selected, with_meta

BINS = 20


def quantile_cut(scores: Sequence[float], quantile: float) -> float:
    """The smallest score that at least this share of the scores does not exceed (the inverted distribution function):
    always one of the scores, never between two.

    Raises:
        StageError: all scores are the same, so that no quantile tells them apart.
    """
    if min(scores) == max(scores):
        raise StageError("all scores are the same, so a quantile cannot tell rows apart", found=f"{scores[0]:g}, "
                         f"{len(scores)} times", hint="does the scorer read the rows? a threshold takes all or none")
    return float(numpy.quantile(numpy.asarray(scores, dtype=numpy.float64), quantile, method="inverted_cdf"))


def above(scored: Sequence[tuple[Record, float]], cut: float, key: str) -> Selected:
    """Rows whose score is above the cut, with the score in `meta` under `key`."""
    return _parted(scored, key, [score > cut for _, score in scored], "score not above the cut")


def below(scored: Sequence[tuple[Record, float]], cut: float, key: str, *, inclusive: bool) -> Selected:
    """Rows whose score is below the cut.

    Args:
        inclusive: whether a score that is the cut counts as below: so with a quantile, which is one of the scores.
    """
    kept = [score <= cut if inclusive else score < cut for _, score in scored]
    return _parted(scored, key, kept, "score not below the cut")


def _parted(scored: Sequence[tuple[Record, float]], key: str, kept: Sequence[bool], reason: str) -> Selected:
    made = Selected()
    for (record, score), keep in zip(scored, kept, strict=True):
        if keep:
            made.records.append(with_meta(record, **{key: score}))
        else:
            made.left.append({"id": record.id, "reason": reason, "score": score})
    return made


def histogram(scores: Sequence[float]) -> dict[str, list[float] | list[int]]:
    """21 edges and 20 counts."""
    counts, edges = numpy.histogram(scores, bins=BINS)
    return {"edges": [round(float(edge), 6) for edge in edges], "counts": [int(count) for count in counts]}


def printed(found: dict[str, list[float] | list[int]], cut: float) -> list[str]:
    """The histogram for a terminal, a line for each bin; the bin with the cut is marked."""
    edges, counts = found["edges"], found["counts"]
    most, lines = max(*counts, 1), []
    for low, high, many in zip(edges, edges[1:], counts, strict=False):
        mark = " <- cut" if low <= cut < high else ""
        lines.append(f"{low:10.3f} {'#' * round(40 * many / most):40s} {many:,}{mark}")
    return lines


def measures(scores: Sequence[float], cut: float) -> dict[str, float]:
    """Mean and standard deviation over all rows that have a score, and the cut that was used."""
    return {"mean_score": fmean(scores), "score_std": pstdev(scores), "cut": cut}
