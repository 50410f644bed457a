"""What a served replica takes, and when `plan` and `check` say that its pod cannot hold it."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignment.config import Profile, Run, Serve, load_profile, load_run
from alignment.planner.model_sizes import of_stage
from alignment.planner.serving import LIBRARIES, served_memory, short_of

ROOT = Path(__file__).parents[2]


def tiny(**serve: object) -> Run:
    run = load_run(ROOT / "configs/runs/tiny.yaml")
    return run.model_copy(update={"serve": Serve.model_validate(serve)})


def test_a_base_and_its_adapters_share_the_weights_and_a_reward_model_has_its_own() -> None:
    size = of_stage(tiny(), tiny().stage("base"))
    assert size is not None

    def weights(*models: str) -> int:
        found = served_memory(tiny(models=list(models)), on_gpu=False)
        assert found is not None
        return found.weights

    whole = size.parameters * 4
    assert weights("base") == whole
    assert whole < weights("base", "sft") < 1.5 * whole
    assert weights("base", "sft", "dpo") - weights("base", "sft") == weights("base", "sft") - whole
    assert weights("base", "sft", "rm") > 2 * whole


def test_more_answers_at_once_and_longer_ones_take_more() -> None:
    one, more, longer = (served_memory(tiny(limits=limits), on_gpu=False) for limits in (
        {"rows": 1}, {"rows": 4}, {"rows": 1, "longest": 8192}))
    assert one is not None
    assert more is not None
    assert longer is not None
    assert more.cache == longer.cache == 4 * one.cache


def test_a_run_that_serves_nothing_takes_nothing() -> None:
    assert served_memory(load_run(ROOT / "configs/runs/tiny.yaml"), on_gpu=False) is None


def small(memory: str) -> Profile:
    return load_profile("dev-cpu", [f"cluster.serve.worker={{cpu: '1', memory: {memory}, shm: 256Mi}}"])


def test_a_pod_that_cannot_hold_the_models_is_said() -> None:
    assert LIBRARIES + 2**28 > 2**30
    said = short_of(tiny(), small("1Gi"))
    assert said is not None
    assert "1Gi of memory (profile dev-cpu, cluster.serve.worker)" in said
    assert "1.8Gi" in said
    assert short_of(tiny(), small("2560Mi")) is None
    assert short_of(load_run(ROOT / "configs/runs/tiny.yaml"), small("1Gi")) is None


@pytest.mark.parametrize("where", ["worker={workers: 2}", "head={workers: 2}", "head={gpus: 1}"])
def test_what_no_pod_that_serves_obeys_is_refused(where: str) -> None:
    with pytest.raises(Exception, match="remove it"):
        load_profile("dev-cpu", [f"cluster.serve.{where}"])
