"""A cluster's profile on this machine: what `run` obeys of it, where artifacts lie, how other commands find them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.config import hardware
from alignment.config.hardware import _Gpu
from tests import small
from tests.cli.conftest import Call
from tests.planner.test_auto import LLAMA

CLUSTER = ("--profile", "cluster.yaml")
SHIPPED = ("--profile", "single-24gb")
Seen = Callable[[str, float], None]


@pytest.fixture
def here(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of one import, and a profile whose storage is a folder of the test; no cluster."""
    monkeypatch.delenv("KUBEALIGN_PROFILE", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    storage = tmp_path / "storage"
    storage.mkdir()
    Path("run.yaml").write_text(yaml.safe_dump({"name": "small", "store": "kept", "stages": [small.data(tmp_path)]}))
    Path("cluster.yaml").write_text(yaml.safe_dump({"name": "mine", "compute": {"device": "cpu"}, "cluster": {
        "storage": {"url": str(storage), "mount": str(storage), "claim": "artifacts"}}}))
    return tmp_path


@pytest.fixture
def seven(call: Call, tmp_path: Path) -> str:
    """A run file with a 7B model, of which config.json alone is there, trained by `auto`."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(LLAMA["7B"] | {"max_position_embeddings": 4096}))
    base = {"name": "base", "kind": "import", "model": {"source": "folder", "path": "model"}}
    tree: dict[str, Any] = {"name": "n", "store": "store", "stages": [
        base, small.data(tmp_path), small.train("sft", strategy={"kind": "auto"})]}
    Path("run.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    return "run.yaml"


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Puts a GPU of a name and so many GiB where this machine's would be looked for."""
    def put(name: str, gib: float) -> None:
        monkeypatch.setattr(hardware, "_gpu", lambda: _Gpu(name, 8, int(gib * 2**30)))
        monkeypatch.setattr("alignment.checks.machine._without_gpu", lambda: None)
    return put


def test_a_run_is_made_here_in_its_own_store_and_found_there_with_the_same_profile(here: Path, call: Call) -> None:
    made = call("run", "run.yaml", *CLUSTER)
    assert made.code == 0, made.err
    assert f"profile mine on this machine: its compute is obeyed, its cluster (pods, storage {here}/storage) is not " \
           "used; artifacts are in kept" in made.err
    assert not list((here / "storage").iterdir())
    page = Path("kept/runs/small/report.html").read_text()
    for verb in ("run", "status", "logs", "report"):
        assert f"kubealign {verb} run.yaml --profile cluster.yaml --here" in page
    status = call("status", "run.yaml", *CLUSTER, "--here")
    assert "1 of 1 stages finished" in status.out
    assert "kubealign report run.yaml --profile cluster.yaml --here" in status.out
    assert json.loads(call("status", "run.yaml", *CLUSTER, "--here", "--json").out)["store"] == "kept"
    assert "--- data, attempt" in call("logs", "run.yaml", *CLUSTER, "--here").out
    assert call("report", "run.yaml", *CLUSTER, "--here").out.strip().endswith("kept/runs/small/report.html")
    plan = call("plan", "run.yaml", *CLUSTER, "--here")
    assert "1 of 1 stages finished" in plan.out
    assert "kubealign run run.yaml --profile cluster.yaml --here" in plan.out
    assert call("check", "run.yaml", *CLUSTER, "--here", "--deep").code == 0
    assert "finished before" in call("run", "run.yaml", *CLUSTER, "--here").err


@pytest.mark.parametrize("verb", ["status", "report", "logs"])
def test_without_here_the_cluster_is_asked_and_this_machines_run_is_named(verb: str, here: Path, call: Call) -> None:
    before = call(verb, "run.yaml", *CLUSTER)
    assert before.code == 2
    assert "--here" not in before.err, "nothing of it is here yet"
    call("run", "run.yaml", *CLUSTER)
    after = call(verb, "run.yaml", *CLUSTER)
    assert after.code == 2, "no other store is looked at instead"
    assert after.out == ""
    assert f"store kept has a run small too: kubealign {verb} run.yaml --profile cluster.yaml --here" in after.err


def test_overrides_of_what_is_not_used_here_are_refused_and_the_store_is_obeyed(here: Path, call: Call) -> None:
    void = call("run", "run.yaml", *CLUSTER, "--set", "cluster.worker.memory=4Gi")
    assert void.code == 2
    assert "this override has no effect" in void.err
    assert not Path("kept").exists()
    assert call("run", "run.yaml", *CLUSTER, "--set", "store=other").code == 0
    assert Path("other/runs/small/report.html").exists()
    asked = call("status", "run.yaml", *CLUSTER, "--set", "store=other")
    assert "the profile says where artifacts lie" in asked.err


def test_here_says_nothing_where_the_profile_has_no_cluster(here: Path, call: Call) -> None:
    Path("laptop.yaml").write_text("name: laptop\nstore: own\n")
    assert call("run", "run.yaml", "--profile", "laptop.yaml").code == 0
    status = call("status", "run.yaml", "--profile", "laptop.yaml", "--here")
    assert "1 of 1 stages finished" in status.out
    assert status.err == ""


def test_a_7b_on_one_24_gb_card_is_qlora_and_no_key_is_changed(call: Call, seven: str, seen: Seen) -> None:
    seen("NVIDIA GeForce RTX 4090", 23.6)
    said = call("plan", seven, *SHIPPED, "--here")
    assert said.code == 0, said.err
    assert "qlora r 16" in said.out
    assert "of 21.9 on l4" in " ".join(said.out.split())
    assert "artifacts are in store; planned is for l4, and here is NVIDIA GeForce RTX 4090" in said.err
    assert "qlora r 16" in call("plan", seven, *SHIPPED).out, "as its pods would make it"
    named = call("plan", seven, *SHIPPED, "--here", "--set", "compute.gpu='4090'")
    assert "of 23.5 on 4090" in " ".join(named.out.split())
    assert "planned is for" not in named.err


def test_a_card_with_less_memory_than_the_profile_names_is_refused(call: Call, seven: str, seen: Seen) -> None:
    seen("NVIDIA RTX A4000", 15.7)
    said = call("run", seven, *SHIPPED)
    assert said.code == 2
    assert "this machine's GPU has less memory than the one that is named" in said.err
    assert "at most 15.7 GiB, as NVIDIA RTX A4000 has here" in said.err
    seen("NVIDIA L4", 11.0)
    assert "at most 11.0 GiB, as NVIDIA L4 has here" in call("run", seven, *SHIPPED).err, "a part of one"


@pytest.mark.parametrize("options", [("--here",), ("--gpus", "none")])
def test_without_a_gpu_auto_says_that_it_is_the_cpu_in_float32(
    call: Call, seven: str, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "_gpu", lambda: None)
    said = call("plan", seven, *SHIPPED, *options)
    assert said.code == 0, said.err
    flat = " ".join(said.out.split())
    named = "" if "--gpus" in options else ", though compute.gpu says l4"
    assert f"lora, chosen by auto: no GPU{named}, so an adapter on the CPU in float32" in flat
    assert "on this machine's CPU" in flat
