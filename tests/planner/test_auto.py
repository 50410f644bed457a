"""What `auto` chooses on which GPUs, that everybody who looks at a run makes one key of it, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.config import Full, Lora, Profile, QLora, Run, TrainBase, parse_run
from alignment.config.cards import GIB, Cards, parse_cards
from alignment.errors import ConfigError, KubeAlignError
from alignment.pipeline.keys import keys
from alignment.planner.auto import resolved, undecided
from alignment.planner.fits import misfit
from alignment.planner.model_sizes import of_stage as size_of_stage
from tests import small

LLAMA: dict[str, dict[str, Any]] = {
    "0.5B": {"model_type": "qwen2", "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14,
             "num_key_value_heads": 2, "intermediate_size": 4864, "vocab_size": 151936, "tie_word_embeddings": True},
    "7B": {"model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
           "intermediate_size": 11008, "vocab_size": 32000},
    "8B": {"model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256},
    "70B": {"model_type": "llama", "hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64,
            "num_key_value_heads": 8, "intermediate_size": 28672, "vocab_size": 128256},
}
AUTO = {"kind": "auto"}
Made = Callable[..., Run]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """A run that trains a model of so many parameters, of which config.json alone is there."""
    def make(size: str, *stages: dict[str, Any], **compute: Any) -> Run:
        folder = tmp_path / size
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(LLAMA[size] | {"max_position_embeddings": 4096}))
        base = {"name": "base", "kind": "import", "model": {"source": "folder", "path": str(folder)}}
        trained = stages or (small.train("sft", strategy=AUTO, batch_size=24),)
        return parse_run(yaml.safe_dump({"name": "n", "store": str(tmp_path / "store"), "compute": compute, "stages": [
            base, small.data(tmp_path), *trained]}))

    return make


def strategy(run: Run, name: str = "sft") -> Any:
    stage = run.stage(name)
    assert isinstance(stage, TrainBase)
    return stage.strategy


def chosen(run: Run, gpus: str) -> tuple[str, str]:
    cards = parse_cards(gpus)
    found, _ = resolved(run, None, lambda stage: cards)
    return strategy(found).kind, found.compute.sharding


@pytest.mark.parametrize(("size", "gpus", "kind"), [
    ("7B", "4090", "qlora"), ("8B", "l4", "qlora"), ("0.5B", "4090", "full"), ("8B", "a6000", "lora"),
    ("8B", "h100", "lora"), ("0.5B", "h200", "full"), ("70B", "h100", "qlora"), ("7B", "none", "lora"),
])
def test_one_gpu_gets_what_fits_first(made: Made, size: str, gpus: str, kind: str) -> None:
    assert chosen(made(size), gpus)[0] == kind


@pytest.mark.parametrize(("size", "gpus", "found"), [
    ("0.5B", "8xh100", ("full", "auto")), ("8B", "8xh100", ("full", "zero2")), ("8B", "3xh100", ("full", "zero3")),
])
def test_several_gpus_share_out_by_the_cheapest_that_fits(
    made: Made, size: str, gpus: str, found: tuple[str, str]
) -> None:
    assert chosen(made(size), gpus) == found


def test_a_sharding_that_is_said_is_kept(made: Made) -> None:
    cards = parse_cards("8xh100")
    run, _ = resolved(made("0.5B", sharding="zero3"), None, lambda stage: cards)
    assert (strategy(run).kind, run.compute.sharding) == ("full", "zero3")


def test_a_7b_on_24_gb_is_qlora_in_full_and_says_why(made: Made) -> None:
    run, _ = resolved(made("7B", small.train("sft", strategy=AUTO | {"r": 64, "alpha": 16})), None,
                      lambda stage: parse_cards("4090"))
    found = strategy(run)
    assert isinstance(found, QLora)
    assert (found.r, found.alpha, found.quantised, found.optim) == (64, 16, "nf4-double", "paged_adamw_8bit")
    assert found.why is not None
    assert found.why.startswith("qlora, chosen by auto: ")
    assert found.why.endswith("GiB of 23.5 on 4090")
    assert found.why in (run.stage("sft").defaulted() or "")


def test_stages_that_continue_one_another_get_one_kind(made: Made) -> None:
    """DPO needs twice the activations of sft: where that is too much for lora, both are qlora."""
    alone = made("8B", small.train("sft", strategy=AUTO, max_length=1024))
    both = made("8B", small.train("sft", strategy=AUTO), small.train("dpo", "dpo", "sft", strategy=AUTO,
                                                                     max_length=2048))
    cards = parse_cards("a6000")
    assert strategy(resolved(alone, None, lambda stage: cards)[0]).kind == "lora"
    run, _ = resolved(both, None, lambda stage: cards)
    assert (strategy(run).kind, strategy(run, "dpo").kind) == ("qlora", "qlora")


def test_what_is_chosen_is_what_the_key_would_be_if_it_had_been_said(made: Made, tmp_path: Path) -> None:
    for kind, gpus in (("qlora", "4090"), ("lora", "a6000")):
        run = made("7B")
        auto, _ = resolved(run, None, lambda stage, gpus=gpus: parse_cards(gpus))  # type: ignore[misc]
        said = made("7B", small.train("sft", strategy={"kind": kind}, batch_size=24))
        assert keys(auto)["sft"] == keys(said)["sft"]


def test_a_profile_names_the_card_and_client_operator_and_pod_make_one_key(made: Made) -> None:
    profile = Profile.model_validate_json(json.dumps({
        "name": "p", "compute": {"dtype": "bfloat16", "gpu": "4090"},
        "cluster": {"storage": {"url": "/a/runs", "claim": "c", "mount": "/a"}, "worker": {"gpus": 1}}}))
    run, place = resolved(made("7B"), profile)
    assert place is not None
    sent = place.applied(run)
    travelled = parse_run(yaml.safe_dump(json.loads(sent.model_dump_json(exclude_none=True))))
    assert not undecided(travelled)
    assert isinstance(strategy(travelled), QLora)
    assert keys(travelled)["sft"] == keys(sent)["sft"] == keys(place.applied(travelled))["sft"]


def test_sharding_is_the_profiles_and_in_no_key(made: Made) -> None:
    profile = Profile.model_validate_json(json.dumps({
        "name": "p", "compute": {"dtype": "bfloat16", "gpu": "h100", "workers": 8, "gpus_per_worker": 1},
        "cluster": {"storage": {"url": "/a/runs", "claim": "c", "mount": "/a"},
                    "worker": {"gpus": 8, "workers": 8}}}))
    run, place = resolved(made("8B"), profile)
    assert place is not None
    assert (strategy(run).kind, place.compute.sharding) == ("full", "zero2")
    assert isinstance(strategy(run), Full)
    assert keys(place.applied(run))["sft"] == keys(profile.applied(run))["sft"]


def test_without_auto_nothing_is_asked_and_the_run_is_the_same(made: Made) -> None:
    def ask(stage: Any) -> Cards:
        raise AssertionError

    run = made("7B", small.train("sft"))
    assert resolved(run, None, ask) == (run, None)
    assert isinstance(strategy(run), Lora)


def test_this_machines_cpu_trains_an_adapter(made: Made) -> None:
    run, _ = resolved(made("7B", device="cpu"))
    assert strategy(run).kind == "lora"
    assert "no GPU" in (strategy(run).why or "")


@pytest.mark.parametrize(("stage", "gpu", "problem"), [
    (small.train("sft", strategy=AUTO), None, "does not know the GPU"),
    (small.train("sft", strategy=AUTO), "h100", "does not know how large"),
])
def test_what_auto_cannot_know_is_said(stage: dict[str, Any], gpu: str | None, problem: str, tmp_path: Path) -> None:
    hub = {"name": "base", "kind": "import", "model": {"source": "hub", "repo": "none/such"}}
    run = parse_run(yaml.safe_dump({"name": "n", "stages": [hub, small.data(tmp_path), stage]}))
    profile = Profile.model_validate_json(json.dumps({
        "name": "p", "compute": {"gpu": gpu},
        "cluster": {"storage": {"url": "/a/runs", "claim": "c", "mount": "/a"}, "worker": {"gpus": 1}}}))
    with pytest.raises(ConfigError, match=problem) as caught:
        resolved(run, profile)
    assert caught.value.hint


def test_a_model_that_fits_no_way_is_refused(made: Made) -> None:
    with pytest.raises(KubeAlignError, match="no strategy fits 4090"):
        chosen(made("70B"), "4090")


@pytest.mark.parametrize(("size", "said", "gpus", "nearest"), [
    ("8B", {"kind": "full"}, "h100", "strategy: {kind: lora}"),
    ("8B", {"kind": "full"}, "8xh100", "sharding: zero2"),
    ("70B", {"kind": "lora"}, "h100", "strategy: {kind: qlora}"),
    ("70B", {"kind": "lora"}, "4090", "nothing fits"),
])
def test_a_named_strategy_that_cannot_fit_is_refused_with_the_nearest_that_does(
    made: Made, size: str, said: dict[str, Any], gpus: str, nearest: str
) -> None:
    run = made(size, small.train("sft", strategy=said, dtype="bfloat16"))
    stage, cards = run.stage("sft"), parse_cards(gpus)
    assert isinstance(stage, TrainBase)
    assert cards.card is not None
    error = misfit(run, stage, size_of_stage(run, stage), cards)
    assert error is not None
    assert nearest in str(error.hint)
    assert "weights" in str(error.found)
    assert float(str(error.found).split()[0]) > cards.card.memory / GIB


def test_what_fits_is_not_refused(made: Made) -> None:
    run = made("7B", small.train("sft", strategy={"kind": "qlora"}, dtype="bfloat16"))
    stage = run.stage("sft")
    assert isinstance(stage, TrainBase)
    size = size_of_stage(run, stage)
    assert misfit(run, stage, size, parse_cards("4090")) is None
    assert misfit(run, stage, None, parse_cards("4090")) is None
    assert misfit(run, stage, size, parse_cards("none")) is None
