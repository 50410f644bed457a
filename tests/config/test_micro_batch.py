"""A batch is shared out over any number of workers that divides it, without a change of the run."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.config import Sft, load_run
from alignment.config.stages.train import Kto

SIZES = st.integers(min_value=1, max_value=64)


def stage(batch_size: int, micro_batch_size: int | None) -> Sft:
    return Sft(name="s", kind="train", method="sft", model="m", rows=("d/train",), batch_size=batch_size,
               micro_batch_size=micro_batch_size)


def kto(batch_size: int) -> Kto:
    return Kto(name="s", kind="train", method="kto", model="m", rows=("d/train",), batch_size=batch_size)


@pytest.mark.parametrize(("batch", "micro", "workers", "rows"), [
    (8, 4, 0, 4), (8, 4, 1, 4), (8, 4, 2, 4), (4, 4, 2, 2), (4, 4, 4, 1), (12, 4, 2, 2), (4, 4, 3, 0), (2, 2, 4, 0),
])
def test_what_each_worker_takes(batch, micro, workers, rows):
    assert stage(batch, micro).micro_batch(workers) == rows


@given(SIZES, SIZES, st.integers(min_value=1, max_value=16))
def test_the_shares_make_up_the_batch(batch, micro, workers):
    rows = stage(batch, micro).micro_batch(workers)
    if rows:
        assert batch % (rows * workers) == 0
        assert rows <= micro
    else:
        assert batch % workers


@given(st.integers(min_value=1, max_value=200), st.integers(min_value=1, max_value=16), st.integers(1, 9))
def test_left_out_it_is_the_most_that_share_a_batch_evenly_and_fit(batch, workers, room):
    rows = stage(batch, None).micro_batch(workers, lambda rows: rows <= room)
    assert bool(rows) is (batch % workers == 0)
    if rows:
        assert batch % (rows * workers) == 0
        assert rows <= min(8, room)
        larger = [other for other in range(rows + 1, min(8, room) + 1) if (batch // workers) % other == 0]
        assert not larger
        assert not list(stage(batch, None).findings())


@given(st.integers(min_value=1, max_value=200))
def test_a_method_that_compares_rows_of_a_pass_takes_as_many_on_every_machine(batch):
    rows = kto(batch).micro_batch(1, lambda rows: False)
    assert [finding.place for finding in kto(batch).findings()] == ([] if rows else [("batch_size",)])
    assert bool(rows) is (batch > 1)
    assert not rows or (rows >= 2 and batch % rows == 0 and rows == kto(batch).micro_batch(1))


def test_the_quickstart_runs_on_two_workers_as_it_is():
    run = load_run("configs/runs/quickstart.yaml")
    assert all(item.micro_batch(2) for item in run.stages if item.kind == "train")
