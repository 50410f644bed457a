"""Model folders that transformers 5 and 4.57 read alike."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from alignment.artifacts import Store
from alignment.errors import ModelError
from alignment.export.folder import check_tokenizer, old_positions, write_model
from alignment.inference.loading import load_tokenizer
from tests.training.families import family

LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_PROBE = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, __version__
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).float().eval()
chat = [{"role": "user", "content": "How many boats?"}, {"role": "assistant", "content": "3"}]
ids = tokenizer(tokenizer.apply_chat_template(chat, tokenize=False), add_special_tokens=False).input_ids
with torch.inference_mode():
    logits = model(torch.tensor([ids * 4])).logits[0, -1].tolist()
print(json.dumps([__version__, ids, tokenizer.eos_token_id, sorted(tokenizer.all_special_tokens), logits]))
"""


def written(tmp_path: Path, name: str, **changes: Any) -> Path:
    """A folder of a tiny model of this family, as an export writes it."""
    from transformers import AutoModelForCausalLM

    source = family(name, Store(str(tmp_path / "store")), tmp_path, **changes).path() / "model"
    folder = tmp_path / "written"
    write_model(AutoModelForCausalLM.from_pretrained(source), load_tokenizer(source, side="right"), folder, 10**9)
    return folder


@pytest.mark.parametrize(("name", "changes", "expected"), [
    ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
     {"rope_theta": 1e6, "rope_scaling": None}),
    ("llama", {"rope_parameters": LLAMA3}, {
        "rope_theta": 500000.0, "rope_scaling": {key: LLAMA3[key] for key in LLAMA3 if key != "rope_theta"}}),
    ("gemma3_text", {}, {"rope_theta": 1e6, "rope_local_base_freq": 10000.0, "rope_scaling": None}),
    ("gpt2", {}, {}),
])
def test_positions_have_both_spellings_and_transformers_5_reads_its_own(
    tmp_path: Path, name: str, changes: dict[str, Any], expected: dict[str, Any]
) -> None:
    from transformers import AutoConfig

    folder = written(tmp_path, name, **changes)
    config = json.loads((folder / "config.json").read_text())
    assert {key: config.get(key) for key in expected} == expected
    read = AutoConfig.from_pretrained(folder)
    assert getattr(read, "rope_parameters", None) == config.get("rope_parameters")


def test_positions_that_4_57_has_no_keys_for_are_refused() -> None:
    with pytest.raises(ModelError, match=r"no keys for"):
        old_positions({"rope_parameters": {"one": {"rope_theta": 1.0}, "other": {"rope_theta": 2.0}}}, "config.json")


def test_the_tokenizer_is_named_by_what_both_know_and_its_template_stands_in_both_places(tmp_path: Path) -> None:
    folder = written(tmp_path, "llama")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["additional_special_tokens"] == ["<|im_start|>"]
    assert "extra_special_tokens" not in config
    assert config["chat_template"] == (folder / "chat_template.jinja").read_text()
    tokenizer = load_tokenizer(folder, side="right")
    assert "<|im_start|>" in tokenizer.all_special_tokens
    check_tokenizer(tokenizer, folder, ["Two <|im_end|> words\n"])


def test_a_tokenizer_that_makes_other_ids_is_found(tmp_path: Path) -> None:
    folder = written(tmp_path, "llama")
    tokenizer = load_tokenizer(folder, side="right")
    tree = json.loads((folder / "tokenizer.json").read_text())
    tree["model"]["merges"] = tree["model"]["merges"][:5]
    (folder / "tokenizer.json").write_text(json.dumps(tree))
    with pytest.raises(ModelError, match="other ids"):
        check_tokenizer(tokenizer, folder, ["How many people live in the village?"])


@pytest.mark.slow
@pytest.mark.skipif("KUBEALIGN_TEST_TRANSFORMERS_4" not in os.environ,
                    reason="KUBEALIGN_TEST_TRANSFORMERS_4 names no Python with transformers 4.57")
@pytest.mark.parametrize(("name", "changes"), [
    ("llama", {"rope_parameters": LLAMA3}), ("qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    ("mistral", {"sliding_window": None}), ("gemma3_text-mixed", {"sliding_window": 8}),
])
def test_transformers_4_57_says_the_same(tmp_path: Path, name: str, changes: dict[str, Any]) -> None:
    import sys

    folder = written(tmp_path, name, **changes)
    said = []
    for python in (os.environ["KUBEALIGN_TEST_TRANSFORMERS_4"], sys.executable):
        done = subprocess.run([python, "-c", _PROBE, str(folder)], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        said.append(json.loads(done.stdout.splitlines()[-1]))
    (old, *one), (new, *two) = said
    assert (old[0], new[0]) == ("4", "5")
    assert one[:3] == two[:3]
    assert max(abs(a - b) for a, b in zip(one[3], two[3], strict=True)) < 1e-5
