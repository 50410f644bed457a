"""k-center greedy: the picks of the plain loop, ties and all, whatever the points are like."""

from __future__ import annotations

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from alignment.selection import kcenter
from alignment.selection.kcenter import k_center, squared
from alignment.selection.projection import map_of, principal
from benchmarks.kcenter import clustered, gaussian, plain


@pytest.fixture(autouse=True, scope="module")
def _small_steps() -> None:
    """Few points are followed at once and blocks are small, so that a few points go every way."""
    patch = pytest.MonkeyPatch()
    patch.setattr(kcenter, "ACTIVE", 4)
    patch.setattr(kcenter, "BLOCK", 8)
    patch.setattr(kcenter, "PAIRS", 8)
    patch.setattr(kcenter, "FEW", 3)
    yield
    patch.undo()


SHAPES = st.tuples(st.integers(1, 60), st.integers(1, 5))
GRID = arrays(numpy.float32, SHAPES, elements=st.integers(-2, 2).map(float))
"""Many points are equal, and many distances."""
ANY = arrays(numpy.float32, SHAPES, elements=st.floats(-1e4, 1e4, width=32))


@given(st.one_of(GRID, ANY), st.data())
def test_picks_are_those_of_the_plain_loop(points: numpy.ndarray, data: st.DataObject) -> None:
    take, first = data.draw(st.integers(1, len(points))), data.draw(st.integers(0, len(points) - 1))
    picks = k_center(points, take, first)
    assert picks.indices.tolist() == plain(points, take, first).tolist()
    assert len(set(picks.indices.tolist())) == take


@given(st.integers(0, 2**32 - 1))
def test_points_far_from_zero_and_near_each_other_too(seed: int) -> None:
    """Products in float32 lose most digits there."""
    points = (1000 + 1e-3 * numpy.random.default_rng(seed).standard_normal((50, 4))).astype(numpy.float32)
    assert k_center(points, 30, 7).indices.tolist() == plain(points, 30, 7).tolist()


@pytest.mark.parametrize("draw", [gaussian, clustered])
def test_embeddings_of_usual_width_too(draw: object) -> None:
    points = draw(1500, 96)  # type: ignore[operator]
    assert k_center(points, 200, 3).indices.tolist() == plain(points, 200, 3).tolist()


@given(GRID, st.data())
def test_distances_and_radius_are_those_of_the_points(points: numpy.ndarray, data: st.DataObject) -> None:
    take = data.draw(st.integers(1, len(points)))
    picks = k_center(points, take, 0)
    for number, index in enumerate(picks.indices[1:], 1):
        before = [squared(points[[index]], points[other])[0] for other in picks.indices[:number]]
        assert picks.distances[number] == numpy.sqrt(min(before))
    nearest = numpy.min([squared(points, points[index]) for index in picks.indices], axis=0)
    assert picks.radius == numpy.sqrt(nearest.max())
    assert (numpy.diff(picks.distances[1:]) <= 0).all(), "each pick is no farther than the one before"


@given(ANY, st.data())
def test_a_row_alone_has_the_sum_that_it_has_among_others(points: numpy.ndarray, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(points) - 1))
    assert squared(points[at : at + 1], points[0])[0] == squared(points, points[0])[at]


@pytest.mark.parametrize(("take", "first", "value"), [(0, 0, 1.0), (4, 0, 1.0), (1, 3, 1.0), (2, 0, numpy.nan)])
def test_what_cannot_be_picked_is_an_error(take: int, first: int, value: float) -> None:
    with pytest.raises(ValueError, match=r"fit|finite"):
        k_center(numpy.full((3, 2), value, dtype=numpy.float32), take, first)


@given(arrays(numpy.float32, st.tuples(st.integers(3, 30), st.integers(2, 6)),
              elements=st.floats(-50, 50, width=32)))
def test_two_dimensions_hold_the_variance_that_they_say(points: numpy.ndarray) -> None:
    placed, share = principal(points)
    centred = points - points.mean(axis=0, dtype=numpy.float64)
    singular = numpy.linalg.svd(centred, compute_uv=False)
    whole = float((singular**2).sum())
    if whole > 1e-3:
        assert share == pytest.approx(float((singular[:2] ** 2).sum()) / whole, abs=1e-6)
        assert float((placed**2).sum()) == pytest.approx(share * whole, rel=1e-5, abs=1e-6)


def test_a_map_draws_some_of_many_and_says_of_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignment.selection.projection.DRAWN_OTHERS", 5)
    ids = [f"r{number}" for number in range(20)]
    made = map_of(ids, gaussian(20, 8), [1, 4])
    assert made["of"] == [2, 18]
    assert (len(made["chosen"]), len(made["others"])) == (2, 5)
    turned = map_of(ids[::-1], gaussian(20, 8)[::-1], [18, 15])
    assert numpy.allclose(sorted(made["others"]), sorted(turned["others"]), atol=1e-3), "whatever their order"
