"""GGUF files: what is read back is what was written, for each family; what llama.cpp would misread is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from alignment.artifacts import Store
from alignment.errors import ModelError
from alignment.export.gguf_file import family_of, write_gguf
from alignment.export.gguf_tokenizer import for_llama_cpp
from alignment.export.read_back import load_gguf
from alignment.inference.loading import load_tokenizer
from tests.export.test_folder import LLAMA3
from tests.training.families import family

IDS = torch.tensor([[1, 87, 85, 269, 201, 35, 268, 286, 2, 201]])


def converted(tmp_path: Path, name: str, kind: Any = "f32", **changes: Any) -> tuple[Path, Path]:
    """(model folder, GGUF file) of a tiny model."""
    folder = family(name, Store(str(tmp_path / "store")), tmp_path, **changes).path() / "model"
    file = tmp_path / "gguf" / "model.gguf"
    file.parent.mkdir()
    write_gguf(folder, load_tokenizer(folder, side="right"), file, kind, "model", "mit")
    return folder, file


def logits(folder: Path, **given: Any) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    with torch.inference_mode():
        found: torch.Tensor = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **given)(IDS).logits
        return found


@pytest.mark.parametrize(("name", "changes"), [
    ("llama", {}), ("llama-tied", {}), ("llama", {"attention_bias": True}), ("mistral", {"sliding_window": None}),
    ("qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}), ("qwen3", {}),
])
def test_weights_come_back_as_they_were(tmp_path: Path, name: str, changes: dict[str, Any]) -> None:
    folder, file = converted(tmp_path, name, **changes)
    with torch.inference_mode():
        read = load_gguf(file, folder, torch.float32)(IDS).logits
    assert float((read - logits(folder)).abs().max()) < 1e-5


@pytest.mark.parametrize(("kind", "most"), [("f16", 1e-2), ("bf16", 1e-1), ("q8_0", 1e-1)])
def test_coarser_types_are_close_and_what_q8_0_cannot_divide_is_float16(
    tmp_path: Path, kind: str, most: float, capsys: pytest.CaptureFixture[str]
) -> None:
    from gguf import GGUFReader

    folder, file = converted(tmp_path, "llama", kind)
    off = float((logits(file.parent, gguf_file=file.name) - logits(folder)).abs().max())
    assert 0 < off < most
    types = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(file).tensors}
    assert types["blk.0.attn_norm.weight"] == "F32"
    assert types["blk.0.attn_q.weight"] == kind.upper()
    # Rows of 48 numbers: no multiple of Q8_0's 32.
    assert types["blk.0.ffn_down.weight"] == ("F16" if kind == "q8_0" else kind.upper())


def test_vocabulary_special_tokens_and_template_stand_in_the_file(tmp_path: Path) -> None:
    from gguf import GGUFReader
    from transformers import AutoTokenizer

    from alignment.templates import has_generation_markers

    folder, file = converted(tmp_path, "llama")
    fields = {name: field.contents() for name, field in GGUFReader(file).fields.items()}
    tokenizer = load_tokenizer(folder, side="right")
    assert fields["tokenizer.ggml.pre"] == "gpt-2"
    assert fields["tokenizer.ggml.eos_token_id"] == fields["tokenizer.ggml.eot_token_id"] == tokenizer.eos_token_id
    assert fields["tokenizer.ggml.add_bos_token"] is False
    assert [fields["tokenizer.ggml.token_type"][index] for index in (0, 1, 2, 40)] == [3, 3, 3, 1]
    assert not has_generation_markers(fields["tokenizer.chat_template"])
    read = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    text = "How many <|im_end|> people?\n\n  Three, 12 of them."
    assert read(text).input_ids == tokenizer(text).input_ids


def test_the_template_renders_as_before_without_its_markers() -> None:
    from alignment.inference.model_sources import tiny_tokenizer
    from alignment.templates import has_generation_markers, names, same_rendering, source

    tokenizer, same = tiny_tokenizer(384), set()
    for name in names():
        text, bare = source(name), for_llama_cpp(source(name))
        assert not has_generation_markers(bare)
        assert same_rendering(tokenizer, text, bare) == same_rendering(tokenizer, text, text), name
        same |= {name} if same_rendering(tokenizer, text, bare) else set()
    assert {"chatml", "qwen"} <= same, "those that this tokenizer can render"


def test_llama_3s_scaling_is_written_as_factors_of_its_frequencies(tmp_path: Path) -> None:
    from gguf import GGUFReader
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    folder, file = converted(tmp_path, "llama", rope_parameters=LLAMA3, head_dim=32, num_attention_heads=1,
                             num_key_value_heads=1)
    factors = next(tensor.data for tensor in GGUFReader(file).tensors if tensor.name == "rope_freqs.weight")
    config = AutoConfig.from_pretrained(folder)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 1.0 / (LLAMA3["rope_theta"] ** (torch.arange(0, 32, 2).float() / 32))
    assert torch.allclose(plain / torch.tensor(factors), scaled, rtol=1e-4)
    assert max(factors) == 8.0


def _bpe(pre: Any, **more: Any) -> dict[str, Any]:
    return {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}, "added_tokens": [],
            "normalizer": None, "pre_tokenizer": pre, **more}


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


@pytest.mark.parametrize(("tree", "found"), [
    (_bpe({**BYTES, "use_regex": True}), "gpt-2"),
    (_bpe({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True},
                                                 {**BYTES, "use_regex": True}]}), "smollm"),
    (_bpe({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "x"}, "behavior": "Isolated", "invert": False},
        {**BYTES, "use_regex": False}]}), None),
    (_bpe({"type": "Whitespace"}), None),
    (_bpe({**BYTES, "use_regex": True}, normalizer={"type": "Lowercase"}), None),
])
def test_a_split_of_texts_is_known_by_llama_cpps_name_or_refused(tree: dict[str, Any], found: str | None) -> None:
    from alignment.export.gguf_tokenizer import _split

    if found is not None:
        assert _split(tree, "tokenizer.json") == found
        return
    with pytest.raises(ModelError, match=r"llama\.cpp would make other ids"):
        _split(tree, "tokenizer.json")


def test_the_splits_of_the_makers_own_tokenizers_are_known() -> None:
    from transformers import Qwen2Tokenizer
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    from alignment.export.gguf_tokenizer import _SPLITS, _split

    qwen = json.loads(Qwen2Tokenizer(vocab={"a": 0}, merges=[]).backend_tokenizer.to_str())
    assert _split(qwen, "tokenizer.json") == "qwen2"
    assert {name: GGUF_PRE_TOKENIZER_SPLITS[name] for name in _SPLITS.values()} == {
        name: pattern for pattern, name in _SPLITS.items()}


@pytest.mark.parametrize(("config", "problem"), [
    ({"model_type": "gemma2"}, "a model of this type"),
    ({"model_type": "llama", "rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}}, "rotary positions"),
    ({"model_type": "mistral", "sliding_window": 4096}, "sliding window"),
    ({"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 16}, "sliding window"),
    ({"model_type": "llama", "mlp_bias": True}, "feed-forward"),
])
def test_what_the_converter_does_not_know_is_one_error(config: dict[str, Any], problem: str) -> None:
    with pytest.raises(ModelError, match=problem) as caught:
        family_of(config, "config.json")
    assert "convert_hf_to_gguf.py" in str(caught.value.hint)


def _sentencepiece() -> Any:
    """A tokenizer as Llama 2's: BPE with bytes, blanks as marks."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                      decoders.Strip(" ", 1, 0)])
    made.train_from_iterator(
        ["How many people live in the village? About three hundred people live there, and many more in the town."] * 4,
        trainers.BpeTrainer(vocab_size=340, show_progress=False, special_tokens=[
            "<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]))
    tree = json.loads(made.to_str())
    tree["added_tokens"] = tree["added_tokens"][:3]  # bytes are no special tokens
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(tree)), unk_token="<unk>",
                                   bos_token="<s>", eos_token="</s>", pad_token="<unk>")


def test_a_sentencepiece_vocabulary_comes_back_with_the_same_ids(tmp_path: Path) -> None:
    from gguf import GGUFReader
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from alignment.templates import source

    tokenizer = _sentencepiece()
    tokenizer.chat_template = source("llama2")
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32,
                                         num_hidden_layers=1, num_attention_heads=2))
    model.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    write_gguf(tmp_path / "m", tokenizer, tmp_path / "m.gguf", "f16", "m", None)
    fields = {name: field.contents() for name, field in GGUFReader(tmp_path / "m.gguf").fields.items()}
    assert fields["tokenizer.ggml.model"] == "llama"
    assert fields["tokenizer.ggml.token_type"][:4] == [2, 3, 3, 6]
    assert fields["tokenizer.ggml.add_space_prefix"] is True
    read = AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    text = "Many people live there, é and more"
    assert read(text, add_special_tokens=False).input_ids == tokenizer(text, add_special_tokens=False).input_ids


WORDS = ["How", " many", " people", " live", " in", " the", " village", "?", "\n", " About", " 300", ","]


@pytest.mark.parametrize(("name", "changes"), [
    ("llama", {"rope_parameters": LLAMA3}), ("llama", {"attention_bias": True}), ("llama-tied", {}), ("qwen2", {}),
    ("qwen3", {}),
])
def test_llama_cpp_reads_the_same_ids_and_finds_the_same_tokens_likely(tmp_path: Path, name: str, changes: Any) -> None:
    llama_cpp = pytest.importorskip("xllamacpp")
    from transformers import AutoModelForCausalLM

    folder, file = converted(tmp_path, name, **changes)
    tokenizer = load_tokenizer(folder, side="right")
    params = llama_cpp.CommonParams()
    params.model.path, params.n_ctx, params.cpuparams.n_threads, params.verbosity = str(file), 256, 1, 0
    server = llama_cpp.Server(params)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    seen = 0
    for count in range(1, len(WORDS) + 1):
        text = "".join(WORDS[:count])
        made = server.handle_completions({"prompt": text, "max_tokens": 1, "temperature": 0, "logprobs": 5})
        ids = tokenizer(text, return_tensors="pt").input_ids
        assert made["usage"]["prompt_tokens"] == ids.shape[1]
        if made["choices"][0]["logprobs"] is None:  # an end, or a piece of a letter
            continue
        said = made["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        with torch.inference_mode():
            best = torch.log_softmax(model(ids).logits[0, -1], -1).topk(5)
        assert said[0]["id"] == int(best.indices[0])
        assert [token["logprob"] for token in said] == pytest.approx(best.values.tolist(), abs=0.01)
        seen += 1
    assert seen >= 3
    chat = [{"role": "user", "content": "How many?"}]
    reply = server.handle_chat_completions({"messages": chat, "max_tokens": 1, "temperature": 0})
    asked = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert reply["usage"]["prompt_tokens"] == len(asked)
