"""`probe`: a real training on a small model, what it leaves in the store, and what a run makes of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from alignment.artifacts import Store
from alignment.cli.show import memory
from alignment.config import Run, load_profile, load_run
from alignment.config.arithmetic import settled_here
from alignment.config.cards import parse_cards
from alignment.config.hardware import processor
from alignment.pipeline.keys import keys
from alignment.planner import Rates, on_cards, plan
from alignment.planner.probed import Probed, read, write
from tests import small
from tests.cli.conftest import Call

SEEN = Probed("sft", "somewhere", 8, 60, 10**9, {"step": 2 * 10**9, "save": 10**9}, 12.0)


@pytest.fixture
def run(call: Call, tmp_path: Path) -> Run:
    """run.yaml in the working directory, nothing of it made."""
    tree = {"name": "small", "store": "store", "compute": {"dtype": "float32", "device": "cpu"},
            "stages": [small.BASE, small.data(tmp_path), small.train("sft", eval_rows="data/dev")]}
    Path("run.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    return load_run("run.yaml")


def test_what_was_measured_is_found_again_by_the_key(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert read(store, "sft-1") is None
    write(store, "sft-1", SEEN)
    assert read(store, "sft-1") == SEEN
    assert SEEN.peak == 2 * 10**9
    (tmp_path / "probes" / "sft-1.json").write_text('{"of": "a later version"}')
    assert read(store, "sft-1") is None


def test_what_a_probe_has_refuted_here_is_not_run(call: Call, run: Run) -> None:
    refuted = dataclasses.replace(SEEN, device=processor("cpu"), refuted="out of memory: 3 GiB asked")
    write(Store("store"), keys(run)["sft"].key, refuted)
    said = call("run", "run.yaml")
    assert said.code == 2
    assert "a probe of sft on" in said.err
    assert "out of memory: 3 GiB asked; 1.9 GiB seen, 0.9 planned" in said.err
    assert f"sft: probed on {processor('cpu')}: 2 GB measured, 1 GB planned" in call("plan", "run.yaml").out
    other = call("plan", "run.yaml", "--set", "sft.epochs=2")
    assert "probed" not in other.out, "another stage"


def test_the_next_plan_starts_from_what_was_seen_and_shows_both(call: Call, run: Run) -> None:
    run = settled_here(run)
    [item] = [item for item in plan(run, {one.name: None for one in run.stages}, Rates(1, 1)) if item.name == "sft"]
    assert item.memory is not None
    write(Store("store"), "sft-of-another-run", dataclasses.replace(
        SEEN, rows=item.micro_batch, length=item.length, like=item.like))
    said = call("plan", "run.yaml", "--set", "sft.epochs=2").out
    assert "sft: 2 GB starts from a probe of sft on somewhere: 2 GB measured with 8 rows of up to " in said
    assert f"{item.length} tokens; {memory(item.memory.total)} by the formulas" in said
    row = next(line for line in said.splitlines() if line.startswith("sft "))
    assert "~2 GB" in row
    table = said.partition("memory per worker")[2].splitlines()
    assert table[1].split()[-3:] == ["probed", "in", "all"]
    fewer = call("plan", "run.yaml", "--set", "sft.micro_batch_size=2").out
    assert f"tokens, here 2 of up to {item.length}, by which alone activations differ" in fewer
    assert "starts from" not in call("plan", "run.yaml", "--set", "sft.strategy.r=8").out


def test_a_probe_that_saw_more_than_a_card_has_is_a_misfit(call: Call, run: Run) -> None:
    cards = parse_cards("4090")
    there = on_cards(run, cards)
    [item] = [item for item in plan(there, {one.name: None for one in run.stages}, Rates(1, 1), cards)
              if item.name == "sft"]
    write(Store("store"), "sft-there", dataclasses.replace(
        SEEN, rows=item.micro_batch, length=item.length, like=item.like, measured={"step": 30 * 10**9}))
    said = call("plan", "run.yaml", "--gpus", "4090").out
    assert "! sft: 30 GB, by what a probe measured, is more than 23.5 GiB on 4090" in said
    assert "kubealign run" not in said


def test_what_is_refuted_elsewhere_is_no_matter_here(call: Call, run: Run) -> None:
    write(Store("store"), keys(run)["sft"].key, dataclasses.replace(SEEN, refuted="out of memory"))
    assert call("run", "run.yaml", "--stage", "data").code == 0


@pytest.mark.parametrize(("arguments", "problem"), [
    (("--stage", "data"), "no train stage of this name"),
    (("--stage", "sft"), "what the stage reads is not finished"),
    (("--stage", "sft", "--profile", "single-24gb"), "what the stage reads is not finished"),
])
def test_what_cannot_be_probed_is_said(call: Call, run: Run, arguments: tuple[str, ...], problem: str) -> None:
    said = call("probe", "run.yaml", *arguments)
    assert said.code == 2
    assert problem in said.err
    assert not Path("store", "probes").exists()


@pytest.fixture
def pods(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[str, ...]]:
    """Writes a profile of pods with one L4 each, and what a probe found on some GPU; returns the arguments for both."""
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))

    def put(
        device: str, refuted: str | None, memory: float | None, peak: float = 2e9, **compute: object
    ) -> tuple[str, ...]:
        Path("pods.yaml").write_text(yaml.safe_dump({
            "name": "pods", "compute": {"gpu": "l4", "dtype": "bfloat16", **compute}, "cluster": {
                "storage": {"url": "/a/runs", "claim": "c", "mount": "/a"}, "worker": {"gpus": 1}}}))
        key = keys(load_profile("./pods.yaml").applied(run))["sft"].key
        write(Store("store"), key, dataclasses.replace(
            SEEN, device=device, refuted=refuted, memory=None if memory is None else int(memory * 2**30),
            measured={"step": int(peak)}))
        return "run.yaml", "--profile", "./pods.yaml"

    return put


@pytest.mark.parametrize(("device", "memory"), [("NVIDIA L4", 22.0), ("NVIDIA H100 80GB HBM3", 79.2)])
@pytest.mark.parametrize("verb", [("submit", "--dry-run"), ("submit",), ("preflight",), ("resume",)])
def test_what_a_probe_has_refuted_is_not_submitted(
    call: Call, pods: Callable[..., tuple[str, ...]], verb: tuple[str, ...], device: str, memory: float
) -> None:
    said = call(verb[0], *pods(device, "out of memory", memory), *verb[1:])
    assert said.code == 2
    assert f"a probe of sft on {device} ran out of memory" in said.err
    assert "profile pods" in said.err
    assert said.out == ""


@pytest.mark.parametrize(("device", "refuted", "memory", "peak", "compute", "words"), [
    ("Tesla T4", "out of memory", 14.6, 2e9, {}, "out of memory; not refused, as the profile's GPU is l4"),
    ("NVIDIA H100 80GB HBM3", None, 79.2, 40e9, {}, "40 GB measured, more than l4 has"),
    ("NVIDIA L4", "out of memory", 22.0, 2e9,
     {"workers": 2, "gpus_per_worker": 1, "sharding": "zero3"}, "the profile shares the model out"),
])
def test_what_a_probe_does_not_prove_there_is_said_and_submitted(
    call: Call, pods: Callable[..., tuple[str, ...]], device: str, refuted: str | None, memory: float, peak: float,
    compute: dict[str, object], words: str
) -> None:
    said = call("submit", *pods(device, refuted, memory, peak, **compute), "--dry-run")
    assert said.code == 0, said.err
    assert words in said.err


def test_a_plan_for_pods_shows_what_was_probed_and_says_where_nobody_looked(
    call: Call, pods: Callable[..., tuple[str, ...]]
) -> None:
    arguments = pods("NVIDIA L4", None, 22.0)
    said = call("plan", *arguments)
    assert said.code == 0, said.err
    assert "sft: probed on NVIDIA L4: 2 GB measured, 1 GB planned" in said.out
    line = "probes in /a/runs were not looked at, as it is not read from here; of this machine's store store they were"
    assert line in said.out
    assert line in call("submit", *arguments, "--dry-run").err
    assert "probed" not in call("plan", *arguments, "--set", "sft.epochs=2").out, "another stage"


def test_a_probe_in_storage_that_is_read_from_here_counts_before_this_machines(
    call: Call, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pods: Callable[..., tuple[str, ...]]
) -> None:
    arguments = pods("NVIDIA L4", None, 22.0)
    url = f"s3://bucket{tmp_path}"
    tree = yaml.safe_load(Path("pods.yaml").read_text())
    tree["cluster"]["storage"] = {"url": url, "secret": "s"}
    Path("pods.yaml").write_text(yaml.safe_dump(tree))
    asked = []
    monkeypatch.setattr("alignment.cluster.storage.truth.reachable", lambda given: asked.append(given) or True)
    there = Store(str(tmp_path / "there"))
    monkeypatch.setattr("alignment.artifacts.Store", lambda given: there if given == url else Store(given))
    write(there, keys(load_profile("./pods.yaml").applied(run))["sft"].key,
          dataclasses.replace(SEEN, device="NVIDIA L4", refuted="out of memory"))
    said = call("submit", *arguments)
    assert said.code == 2
    assert "a probe of sft on NVIDIA L4 ran out of memory" in said.err
    assert asked == [url]
    dry = call("submit", *arguments, "--dry-run")
    assert dry.code == 0, "it contacts nothing"
    assert asked == [url]


@pytest.mark.slow
def test_a_probe_measures_every_phase_and_leaves_the_stage_unmade(call: Call, run: Run) -> None:
    for stage in ("base", "data"):
        assert call("run", "run.yaml", "--stage", stage).code == 0
    said = call("probe", "run.yaml", "--stage", "sft")
    assert said.code == 0, said.err
    seen = read(Store("store"), keys(run)["sft"].key)
    assert seen is not None
    assert set(seen.measured) == {"step", "evaluation", "save", "resume"}
    assert seen.peak > 10**6
    assert seen.refuted is None
    assert (seen.rows, seen.device) == (8, processor("cpu"))
    assert not list(Path("store", "artifacts").glob("sft-*")), "a probe makes nothing"
    said = call("plan", "run.yaml")
    assert f"{memory(seen.peak)} starts from a probe of sft on {seen.device}: " in said.out
    assert f"{memory(seen.planned)} by the formulas" in said.out
