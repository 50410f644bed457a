"""Room for workers: what the cluster can never give is refused at once, what is awaited is said."""

from __future__ import annotations

import math
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment import progress
from alignment.config import Compute
from alignment.distributed.local import ensure_ray
from alignment.distributed.room import fitting, may_fit, wait_for_room
from alignment.errors import ConfigError

AMOUNT = st.integers(1, 80).map(lambda n: n / 10)
NODES = st.lists(st.fixed_dictionaries({"CPU": AMOUNT}, optional={"GPU": AMOUNT}), max_size=5)


@given(NODES, AMOUNT, st.one_of(st.none(), AMOUNT))
def test_workers_fit_whole_on_nodes_and_no_further_one_does(
    nodes: list[dict[str, float]], cpus: float, gpus: float | None
) -> None:
    need = {"CPU": cpus} | ({} if gpus is None else {"GPU": gpus})
    by_hand = 0
    for node in nodes:
        left = {name: round(node.get(name, 0.0) * 10) for name in need}
        while all(left[name] >= round(amount * 10) for name, amount in need.items()):
            left = {name: left[name] - round(amount * 10) for name, amount in need.items()}
            by_hand += 1
    assert fitting(nodes, need) == by_hand


@pytest.fixture
def local() -> Compute:
    compute = Compute(workers=2)
    ensure_ray(compute)
    return compute


@pytest.mark.ray
@pytest.mark.parametrize("asked", [
    {"gpus_per_worker": 64.0}, {"gpus_per_worker": 0.5, "workers": 999}, {"cpus_per_worker": 4096.0},
])
def test_what_a_local_cluster_never_has_is_an_error_at_once(local: Compute, asked: dict[str, float]) -> None:
    compute, began = local.model_copy(update=asked), time.monotonic()
    with pytest.raises(ConfigError, match=r"has no room for .*(GPU|4096 CPU)") as error:
        wait_for_room(compute, compute.workers, "stage sft")
    assert time.monotonic() - began < 5
    assert "on 1 node" in str(error.value.found)


@pytest.mark.ray
def test_what_is_not_free_now_is_waited_for_aloud(
    local: Compute, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setattr(progress, "PLAIN_EVERY", 0.3)
    every = ray.cluster_resources()["CPU"]
    compute = local.model_copy(update={"cpus_per_worker": math.floor(every) / 2})

    @ray.remote(num_cpus=math.ceil(every / 2 + 0.5))
    class Holder:
        def here(self) -> bool:
            return True

    holder = Holder.remote()
    assert ray.get(holder.here.remote())
    assert may_fit(compute, 2), "the cluster is large enough"
    done = threading.Event()
    waits = threading.Thread(target=lambda: (wait_for_room(compute, 2, "stage sft"), done.set()))
    waits.start()
    assert not done.wait(2.0)
    ray.kill(holder)
    assert done.wait(30)
    waits.join()
    said = capsys.readouterr().err
    assert f"stage sft: waits for 2 workers of {compute.cpus_per_worker:g} CPU each; the cluster has {every:g}" in said
    assert "on 1 node" in said
    time.sleep(0.5)
    assert capsys.readouterr().err == "", "what is over is not spoken of"
