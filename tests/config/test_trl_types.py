"""Values under `trl` are held against what the installed TRL says of its keys, before anything is launched."""

from __future__ import annotations

import subprocess
import sys

import pytest

from alignment.config import METHODS, parse_run
from alignment.config.trl_keys import OURS, known_keys, trl_findings
from alignment.errors import ConfigErrors

SFT = "trl/trainer/sft_config.py:SFTConfig"


@pytest.mark.parametrize(("value", "found", "said"), [
    ('{weight_decay: "0.01"}', '"0.01"', "a number, so without quotes: 0.01"),
    ('{warmup_steps: "3"}', '"3"', "without quotes: 3"), ("{max_steps: 1e2}", "1e2", "in digits: 100"),
    ("{lr_scheduler_type: cosin}", "cosin", "perhaps cosine; one of linear, cosine"),
    ("{optim: adamw_toch}", "adamw_toch", "perhaps adamw_torch"), ("{weight_decay: true}", "true", "a number"),
    ("{max_grad_norm: 1_000}", "1_000", "1000"), ("{gradient_checkpointing: yes}", "yes", "true or false"),
    ("{packing_strategy: wrap}", "wrap", "perhaps wrapped; one of bfd"), ("{weight_decay: [0.1]}", "[0.1]", "a number"),
    ("{adam_beta1: {a: 1}}", "{'a': 1}", "a number"), ("{optim_args: 3}", "3", 'text, so in quotes: "3"'),
    ("{lr_scheduler_kwargs: 3}", "3", "a mapping"), ("{lr_scheduler_type: 3}", "3", "one of linear"),
    ("{warmup_steps: ~}", "~", "a number"), ("{weight_decay: 1:30}", "1:30", "a number"),
])
def test_a_wrong_value_is_found_at_its_line(value: str, found: str, said: str, run_text: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        parse_run(run_text.replace("learning_rate: 1e-4", f"trl: {value}"), "my.yaml")
    [finding] = caught.value.findings
    assert "my.yaml:18 (stages[2].trl." in str(finding.where)
    assert repr(finding.found) == found
    assert said in str(finding.expected)


@pytest.mark.parametrize("value", [
    "{weight_decay: 0}", "{weight_decay: 0.01}",
    "{max_grad_norm: .inf}", "{lr_scheduler_type: cosine, warmup_steps: 0.1}",
    "{lr_scheduler_type: cosine, lr_scheduler_kwargs: {num_cycles: 1}}",
    "{dataloader_prefetch_factor: ~}", "{optim: adamw_torch}", "{debug: x}",
    "{pad_to_multiple_of: 8}", "{gradient_checkpointing: true}", "{include_num_input_tokens_seen: true}",
    "{include_for_metrics: [a]}", "{loss_type: nll}",
    "{lr_scheduler_type: cosine_with_restarts, lr_scheduler_kwargs: '{\"num_cycles\": 1}'}",
])
def test_a_right_value_passes(value: str, run_text: str) -> None:
    assert parse_run(run_text.replace("learning_rate: 1e-4", f"trl: {value}"))


def test_the_defaults_of_the_installed_classes_pass() -> None:
    """Asked of the libraries themselves, in a process that may import them."""
    asked = """
import dataclasses, enum, json, importlib, sys
found = {}
for config in sys.argv[1:]:
    file, _, name = config.partition(":")
    kind = getattr(importlib.import_module(file.removesuffix(".py").replace("/", ".")), name)
    values = {field.name: field.default if field.default is not dataclasses.MISSING else field.default_factory()
              for field in dataclasses.fields(kind) if field.init
              and (field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING)}
    found[config] = {key: value.value if isinstance(value, enum.Enum) else value for key, value in values.items()}
print("ANSWER" + json.dumps(found))
"""
    import json

    configs = [method.trl_config for method in METHODS]
    done = subprocess.run([sys.executable, "-c", asked, *configs], capture_output=True, text=True, check=True)
    for config, values in json.loads(done.stdout.partition("ANSWER")[2]).items():
        known = known_keys(config)
        assert known is not None
        assert set(values) <= known
        assert len(values) > 100
        assert not list(trl_findings({key: value for key, value in values.items() if key not in OURS}, config))


@pytest.mark.parametrize("value", ["text", 3, 2.5, True, [1], {"a": 1}, None])
def test_every_key_takes_or_refuses_any_value_with_a_sentence(value: object) -> None:
    known = known_keys(SFT)
    assert known is not None
    for key, problem, found, expected in trl_findings(dict.fromkeys(known - OURS.keys(), value), SFT):
        assert problem.startswith("TRL"), key
        assert found is value
        assert expected.strip(), (key, value)
