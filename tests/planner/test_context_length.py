"""How many tokens a model takes, from what its maker wrote; and that no stage gives it more."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import transformers
import yaml
from transformers import AutoConfig, LlamaConfig

from alignment.config import GgufModel, Run, parse_run
from alignment.planner.context_length import context_length, fitted, of_gguf, of_stage, shortened, too_long
from tests import small

LLAMA: dict[str, Any] = {"model_type": "llama", "max_position_embeddings": 4096}


@pytest.mark.parametrize(("config", "expected"), [
    (LLAMA, 4096),
    (LLAMA | {"sliding_window": 1024}, 4096),  # each token sees so many, of as many as there are
    (LLAMA | {"rope_scaling": {"type": "linear", "factor": 4.0}}, 16384),
    (LLAMA | {"rope_scaling": {"type": "dynamic", "factor": 2}}, 8192),
    (LLAMA | {"rope_scaling": {"type": "linear", "factor": 4.0, "original_max_position_embeddings": 1024}}, 4096),
    # Qwen2.5's recipe keeps the length before scaling, and DeepSeek's config has the one after it
    (LLAMA | {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}}, 16384),
    (LLAMA | {"rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096},
              "max_position_embeddings": 163840}, 163840),
    (LLAMA | {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, 16384),
    (LLAMA | {"rope_scaling": {"type": "yarn", "factor": None, "original_max_position_embeddings": 512}}, 4096),
    # Llama 3.1 and Phi-3 write the length after scaling
    (LLAMA | {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 512}}, 4096),
    (LLAMA | {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0], "factor": 32.0},
              "original_max_position_embeddings": 128}, 4096),
    (LLAMA | {"rope_scaling": {"type": "mrope", "mrope_section": [1, 2]}}, 4096),
    (LLAMA | {"rope_scaling": None}, 4096),
    ({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "max_position_embeddings": 131072,
                                              "rope_scaling": {"rope_type": "linear", "factor": 8.0}}}, 131072),
    (LLAMA | {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0},
                                  "sliding_attention": {"rope_type": "default"}}}, 4096),
    ({"model_type": "gpt2", "n_positions": 1024, "n_ctx": 1024}, 1024),
    ({"model_type": "opt", "max_position_embeddings": 2048}, 2048),
    ({"model_type": "bloom", "seq_length": 2048}, None),
    ({"model_type": "mpt", "max_seq_len": 2048}, None),
    ({"model_type": "mpt", "max_seq_len": 2048, "attn_config": {"alibi": False}}, 2048),
    ({"model_type": "falcon", "alibi": True, "max_position_embeddings": 2048}, None),
    ({"model_type": "falcon", "alibi": False, "max_position_embeddings": 2048}, 2048),
    ({"model_type": "mamba", "state_size": 16}, None),
    ({}, None),
])
def test_of_a_config(config: dict[str, Any], expected: int | None) -> None:
    assert context_length(config) == expected


@pytest.mark.parametrize("kind", [
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi3", "gpt2", "gpt_neo", "opt", "gpt_bigcode", "gptj",
    "gpt_neox", "codegen", "stablelm", "olmo2", "granite", "falcon",
])
def test_what_transformers_writes_for_a_family_is_read(kind: str, tmp_path: Path) -> None:
    config = AutoConfig.for_model(kind)
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert context_length(written) == config.max_position_embeddings > 0


def test_a_scaling_survives_transformers_own_rewriting_of_it() -> None:
    old = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    made = LlamaConfig(max_position_embeddings=512, rope_scaling=old).to_dict()
    assert context_length(made) == 2048, transformers.__version__


# --- GGUF, the hub's cache ----------------------------------------------------------------------------------------


def gguf(file: Path, **fields: Any) -> Path:
    """A header with these fields, then a list as tokenizers have."""
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    made = b""
    for key, value in fields.items():
        name = key.replace("__", ".")
        made += text(name) + (struct.pack("<I", 8) + text(value) if isinstance(value, str)
                              else struct.pack("<II", 4, value) if isinstance(value, int)
                              else struct.pack("<If", 6, value))
    made += text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 1) + text("a")
    file.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 0, len(fields) + 1) + made)
    return file


@pytest.mark.parametrize(("fields", "expected"), [
    ({"llama__context_length": 8192}, 8192),
    ({"llama__rope__freq_base": 1e4, "llama__context_length": 8192, "general__name": "a b"}, 8192),
    # what stretched 2048 to 8192 is not unpacked
    ({"llama__context_length": 8192, "llama__rope__scaling__type": "yarn", "llama__rope__scaling__factor": 4.0,
      "llama__rope__scaling__original_context_length": 2048}, 2048),
    ({"llama__block_count": 2}, None),
])
def test_of_a_gguf_header(tmp_path: Path, fields: dict[str, Any], expected: int | None) -> None:
    assert of_gguf(gguf(tmp_path / "m.gguf", general__architecture="llama", **fields)) == expected


def test_a_broken_header_says_nothing(tmp_path: Path) -> None:
    file = gguf(tmp_path / "m.gguf", general__architecture="llama", llama__context_length=64)
    whole = file.read_bytes()
    for cut in range(0, len(whole), 7):
        file.write_bytes(whole[:cut])
        assert of_gguf(file) in (None, 64)
    file.write_bytes(b"GGUF" + b"\xff" * 200)
    assert of_gguf(file) is None
    assert of_gguf(tmp_path / "none.gguf") is None


# --- stages ---------------------------------------------------------------------------------------------------


def run_of(folder: Path, *stages: dict[str, Any]) -> Run:
    (folder / "model").mkdir()
    config = {"model_type": "gpt2", "n_positions": 64}
    (folder / "model" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    base = {"name": "base", "kind": "import", "model": {"source": "folder", "path": str(folder / "model")}}
    tiny = {"name": "tiny", "kind": "import", "model": {"source": "tiny"}}
    return parse_run(yaml.safe_dump({"name": "n", "stages": [base, tiny, small.data(folder), *stages]}))


FITS = {"max_length": 64}
SHORT = {"max_new_tokens": 24}
SCORE = {"function": "brevity"}


@pytest.mark.parametrize(("stages", "found"), [
    ([small.train("s", max_length=65)], ["s: max_length 65"]),
    ([small.train("s", **FITS)], []),
    ([small.train("s", model="tiny", max_length=2048)], []),
    ([small.train("s", model="tiny", max_length=2049)], ["s: max_length 2049"]),
    *[([small.train("s", **FITS), small.train("t", method, "s", max_length=100)], ["t: max_length 100"])
      for method in ("reward", "dpo", "kto")],
    ([small.train("s", **FITS), {"name": "r", "kind": "sample", "model": "s", "prompts": ["data/dev"], "score": SCORE,
                                 "max_prompt_tokens": 40, "sampling": SHORT}], []),
    ([{"name": "r", "kind": "sample", "model": "base", "prompts": ["data/dev"], "score": SCORE, "max_prompt_tokens": 40,
       "sampling": SHORT, "first": {"max_new_tokens": 25}}], ["r: max_prompt_tokens 40 + max_new_tokens 25"]),
    ([{"name": "r", "kind": "sample", "model": "tiny", "previous": "base", "prompts": ["data/dev"], "score": SCORE,
       "max_prompt_tokens": 64, "sampling": SHORT}], ["r: max_prompt_tokens 64 + max_new_tokens 24"]),
    ([small.train("rm", "reward", **FITS),
      {"name": "r", "kind": "sample", "model": "tiny", "prompts": ["data/dev"], "score": {"model": "rm"}}],
     ["r: max_prompt_tokens 1024 + max_new_tokens 128"]),
    ([{"name": "e", "kind": "evaluate", "models": ["tiny", "base"], "rows": "data/test"}],
     ["e: max_prompt_tokens 1024 + max_new_tokens 128"]),
])
def test_no_stage_may_give_a_model_more_than_it_takes(
    tmp_path: Path, stages: list[dict[str, Any]], found: list[str]
) -> None:
    run = run_of(tmp_path, *stages)
    said = [f"{stage.name}: {error.found}" for stage in run.stages
            for _, error in too_long(stage, lambda name: of_stage(run, name))]
    assert said == found


@pytest.mark.parametrize(("stage", "hint"), [
    (small.train("s"), "max_length: 64; "),
    ({"name": "e", "kind": "evaluate", "models": ["base"], "rows": "data/test", "sampling": {"max_new_tokens": 24}},
     "max_prompt_tokens: 40; "),
    ({"name": "e", "kind": "evaluate", "models": ["base"], "rows": "data/test", "sampling": {"max_new_tokens": 64}},
     "lower max_new_tokens; "),
])
def test_the_hint_is_a_value_that_fits(tmp_path: Path, stage: dict[str, Any], hint: str) -> None:
    run = run_of(tmp_path, stage)
    [(place, error)] = too_long(run.stages[-1], lambda name: of_stage(run, name))
    assert (error.hint or "").startswith(hint)
    if ":" in hint:
        key, _, value = hint.rstrip("; ").partition(": ")
        assert place == (key,)
        (tmp_path / "fits").mkdir()
        fits = run_of(tmp_path / "fits", {**stage, key: int(value)})
        assert not list(too_long(fits.stages[-1], lambda name: of_stage(fits, name)))


@pytest.mark.parametrize(("stage", "said"), [
    (small.train("s"), "max_length 64, as its model takes no more"),
    (small.train("s", model="tiny"), None),
    (small.train("s", max_length=1024), None),
    ({"name": "e", "kind": "evaluate", "models": ["tiny", "base"], "rows": "data/test", "sampling": SHORT},
     "max_prompt_tokens 40 + max_new_tokens 24, as its model takes no more"),
    ({"name": "e", "kind": "evaluate", "models": ["base"], "rows": "data/test", "sampling": {"max_new_tokens": 64}},
     None),
    ({"name": "r", "kind": "sample", "model": "base", "prompts": ["data/dev"], "score": SCORE, "sampling": SHORT,
      "first": {"max_new_tokens": 30}}, "max_prompt_tokens 34 + max_new_tokens 30, as its model takes no more"),
])
def test_a_length_that_is_left_open_gives_way_to_the_model(
    tmp_path: Path, stage: dict[str, Any], said: str | None
) -> None:
    run = run_of(tmp_path, stage)
    last = run.stages[-1]

    def limit(name: str) -> int | None:
        return of_stage(run, name)

    obeyed = fitted(last, limit)
    assert shortened(last, obeyed) == said
    assert fitted(obeyed, limit) == obeyed
    if said is not None:
        assert not list(too_long(obeyed, limit))


def test_a_stage_without_a_length_learns_within_a_short_models_context(tmp_path: Path) -> None:
    """The longest rows are dropped, and the others are learned."""
    from alignment.pipeline import execute

    (tmp_path / "long").mkdir()
    longest = execute(small.run(tmp_path / "long", small.train("sft"))).artifacts["sft"].manifest.facts["max_length"]
    run = small.run(tmp_path, small.train("sft"))
    base = execute(run, only="base").artifacts["base"]
    facts = base.manifest.facts | {"context_length": longest - 1}
    manifest = base.manifest.model_copy(update={"facts": facts})
    (base.path() / "manifest.json").write_text(manifest.model_dump_json(indent=2), encoding="utf-8")
    made = execute(run).artifacts["sft"].manifest
    assert made.config["max_length"] == longest - 1
    assert made.facts["max_length"] < longest
    assert made.rows.dropped["longer than max_length"] > 0


def test_a_model_in_a_package_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "carrier"
    package.mkdir()
    (package / "__init__.py").touch()
    gguf(package / "m.gguf", general__architecture="qwen2", qwen2__context_length=96)
    monkeypatch.syspath_prepend(str(tmp_path))
    model = GgufModel(source="gguf", package="carrier", file="m.gguf").model_dump()
    run = parse_run(yaml.safe_dump({"name": "n", "stages": [{"name": "base", "kind": "import", "model": model}]}))
    assert of_stage(run, "base") == 96
