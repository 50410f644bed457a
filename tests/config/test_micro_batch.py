"""A batch is shared out over any number of workers that divides it, without a change of the run."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.config import Sft, load_run

SIZES = st.integers(min_value=1, max_value=64)


def stage(batch_size: int, micro_batch_size: int) -> Sft:
    return Sft(name="s", kind="train", method="sft", model="m", rows=("d/train",), batch_size=batch_size,
               micro_batch_size=micro_batch_size)


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


def test_the_quickstart_runs_on_two_workers_as_it_is():
    run = load_run("configs/runs/quickstart.yaml")
    assert all(item.micro_batch(2) for item in run.stages if item.kind == "train")
