"""Keys `compute.sharding` and `compute.deepspeed`: what passes, and what is said already by a key of ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignment.config import Compute, load_profile, load_run, parse_run
from alignment.config.sharding import offloads, zero_stage
from alignment.errors import ConfigError, ConfigErrors

ROOT = Path(__file__).parents[2]
RUN = "name: a\ncompute: {{workers: 2, sharding: {}, deepspeed: {}}}\nstages:\n" \
      "- {{name: base, kind: import, model: {{source: tiny}}}}\n"


@pytest.mark.parametrize(("sharding", "options", "said"), [
    ("zero2", "{train_batch_size: 8}", "batch_size of the train stage"),
    ("zero2", "{bf16: {enabled: true}}", "said by dtype"),
    ("zero2", "{zero_optimization: {stage: 3}}", "compute.sharding, which is zero2: stage 2"),
    ("zero3", "{zero_optimization: {stage3_gather_16bit_weights_on_model_save: false}}", "the model is saved whole"),
    ("zero2", "{zero_optimization: {zero_quantized_gradients: true}}", "would change what is learned"),
    ("zero1", "{zero_optimization: {offload_param: {device: cpu}}}", "offloaded by ZeRO-3 alone"),
    ("zero2", "{zero_optimisation: {}}", "not an option that is handed on"),
    ("zero2", "{zero_optimization: 3}", "not a mapping"),
    ("none", "{zero_optimization: {}}", "options without a ZeRO stage"),
    ("auto", "{zero_optimization: {}}", "options without a ZeRO stage"),
    ("zero2", "[1]", "not a mapping"),
    ("zero2", "some/file.json", "not a mapping"),
])
def test_an_option_that_another_key_says_is_refused_by_name(sharding: str, options: str, said: str) -> None:
    """The last: a path in a run that came from elsewhere is never opened."""
    with pytest.raises(ConfigErrors) as caught:
        parse_run(RUN.format(sharding, options))
    assert said in str(caught.value)
    assert "deepspeed" in str(caught.value)


def test_options_on_memory_and_speed_pass_and_auto_is_no_value() -> None:
    run = parse_run(RUN.format("zero2", "{train_batch_size: auto, steps_per_print: 9, zero_optimization: {stage: 2}}"))
    assert run.compute.deepspeed == {
        "train_batch_size": "auto", "steps_per_print": 9, "zero_optimization": {"stage": 2}}


def test_a_file_of_options_is_read_where_the_run_is_loaded(tmp_path: Path) -> None:
    options = {"zero_optimization": {"reduce_bucket_size": 5e8, "overlap_comm": True}}
    (tmp_path / "zero.json").write_text(json.dumps(options, indent="\t"))
    (tmp_path / "run.yaml").write_text(RUN.format("zero2", tmp_path / "zero.json"))
    (tmp_path / "profile.yaml").write_text(
        f"name: p\ncompute: {{workers: 2, sharding: zero2, deepspeed: {tmp_path / 'zero.json'}}}\n")
    assert load_run(tmp_path / "run.yaml").compute.deepspeed == options
    assert load_profile(tmp_path / "profile.yaml").compute.deepspeed == options
    (tmp_path / "zero.json").write_text("[]")
    with pytest.raises(ConfigError, match="holds a mapping"):
        load_run(tmp_path / "run.yaml")
    (tmp_path / "zero.json").unlink()
    with pytest.raises(ConfigError, match="DeepSpeed options file cannot be read"):
        load_run(tmp_path / "run.yaml")


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "configs" / "deepspeed").iterdir()))
def test_each_shipped_file_of_options_fits_the_sharding_that_it_is_named_by(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run.yaml").write_text(RUN.format(name, f"configs/deepspeed/{name}.yaml"))
    monkeypatch.chdir(tmp_path)  # found beside the code from any folder
    assert load_run(tmp_path / "run.yaml").compute.deepspeed


@pytest.mark.parametrize(("sharding", "options", "stage", "offloaded"), [
    ("auto", None, 0, False), ("none", None, 0, False), ("zero1", None, 1, False), ("zero2", None, 2, False),
    ("zero3", None, 3, False), ("zero3-offload", None, 3, True),
    ("zero2", {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, 2, True),
])
def test_a_value_is_a_stage_and_offloads_or_not(
    sharding: str, options: dict[str, object] | None, stage: int, offloaded: bool
) -> None:
    compute = Compute.model_validate({"workers": 2, "sharding": sharding, "deepspeed": options})
    assert (zero_stage(sharding), offloads(sharding, compute.deepspeed)) == (stage, offloaded)
