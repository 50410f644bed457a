"""Plain vLLM loads an export and says what transformers says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.export.made import WIDE, export, exported, run

_VLLM = """
import json, sys
from vllm import LLM, SamplingParams
if __name__ == "__main__":
    engine = LLM(model=sys.argv[1], dtype="float32", enforce_eager=True, max_model_len=128)
    prompts = [{"prompt_token_ids": ids} for ids in json.loads(sys.argv[2])]
    made = engine.generate(prompts, SamplingParams(temperature=0.0, max_tokens=6, logprobs=1))
    tokenizer = engine.get_tokenizer()
    print("said", json.dumps([[one.outputs[0].token_ids for one in made], tokenizer("A boat").input_ids]))
"""


@pytest.mark.vllm
@pytest.mark.slow
def test_vllm_answers_as_transformers_does(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = exported(run(tmp_path, export(), base=WIDE)).path() / "model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompts = [tokenizer(text).input_ids for text in ("How many people", "The sail was")]
    script = tmp_path / "ask.py"
    script.write_text(_VLLM, encoding="utf-8")
    done = subprocess.run([sys.executable, str(script), str(folder), json.dumps(prompts)], capture_output=True,
                          text=True, timeout=500, env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    said, ids = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("said "))[5:])
    assert ids == tokenizer("A boat").input_ids
    for prompt, answer in zip(prompts, said, strict=True):
        made = model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                              max_new_tokens=6, do_sample=False)[0, len(prompt):].tolist()
        assert answer == made[:len(answer)]
        assert answer
