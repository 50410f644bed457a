"""A picture of embeddings: two dimensions of many, and which points of it are drawn. numpy alone."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from typing import Any

import numpy
from numpy.typing import NDArray

DRAWN_CHOSEN, DRAWN_OTHERS = 500, 1000
"""Points of a map, at most: more would be a blot."""
_BLOCK = 8192


def principal(points: NDArray[numpy.float32]) -> tuple[NDArray[numpy.float64], float]:
    """The first two principal components of points [n, d], -> [n, 2], and the share of the variance that they hold.

    By the eigenvectors of the covariance matrix [d, d], which are the right singular vectors of the centred points. Of
    a component's two directions the one in which its largest entry is positive. Points without any spread are at 0.
    """
    mean = points.mean(axis=0, dtype=numpy.float64)
    width = points.shape[1]
    covariance = numpy.zeros((width, width))
    for start in range(0, len(points), _BLOCK):
        block = points[start : start + _BLOCK] - mean
        covariance += block.T @ block
    values, vectors = numpy.linalg.eigh(covariance / max(1, len(points)))
    axes = vectors[:, ::-1][:, :2]
    axes = axes * numpy.sign(axes[numpy.abs(axes).argmax(axis=0), numpy.arange(axes.shape[1])])
    placed = numpy.zeros((len(points), 2))
    for start in range(0, len(points), _BLOCK):
        placed[start : start + _BLOCK, : axes.shape[1]] = (points[start : start + _BLOCK] - mean) @ axes
    whole = float(values.sum())
    return placed, float(values[::-1][:2].sum() / whole) if whole > 0 else 0.0


def map_of(ids: Sequence[str], points: NDArray[numpy.float32], chosen: Collection[int]) -> dict[str, Any]:
    """What the report draws: {"chosen", "others": [[x, y], ...], "of": [chosen, others], "variance"}.

    All rows make the projection. Where there are more than are drawn, those with the smallest hashes of their ids are.
    """
    placed, variance = principal(points)
    taken = set(chosen)
    groups = {"chosen": sorted(taken), "others": [at for at in range(len(ids)) if at not in taken]}
    drawn: dict[str, Any] = {}
    for (name, places), most in zip(groups.items(), (DRAWN_CHOSEN, DRAWN_OTHERS), strict=True):
        some = sorted(places, key=lambda at: hashlib.sha256(ids[at].encode()).digest())[:most]
        drawn[name] = [[round(float(value), 4) for value in placed[at]] for at in some]
    return {**drawn, "of": [len(places) for places in groups.values()], "variance": round(variance, 4)}
