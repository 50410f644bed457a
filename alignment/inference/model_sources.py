"""The four places a base model comes from: the hub, a folder, a GGUF file, or made on the spot for tests.

Each gives a model and a tokenizer in memory, with weights that were really there. Reads safetensors and GGUF only:
pickled weights run code. Does not choose template or pad token and writes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import safe_open
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from alignment.artifacts import Artifact
from alignment.config import FolderModel, GgufModel, HubModel, TinyModel
from alignment.data.adapter_config import read_adapter_config
from alignment.data.fingerprint import MODEL_FILES, folder_path, gguf_path
from alignment.data.model_files import unclear
from alignment.errors import ModelError
from alignment.inference.adapters import with_adapter
from alignment.inference.bare_tokenizer import as_sentencepiece
from alignment.inference.info import model_info
from alignment.inference.loading import load_tokenizer, weights_of
from alignment.progress import console, waiting

_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "spm.model", "vocab.json", "vocab.txt", "*.tiktoken", "tekken.json")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_TEXT = """A small boat lay in the harbour while the wind came in from the north. The old man asked the child what
colour the sail was, and the child said that it was red, because the net and the rope beside it were brown.
How many people live in the village? About three hundred, the teacher answered, and most of them work at sea.
Read the following passage and answer the question in a few words. If the passage does not say, answer unknown.
Question: when was the bridge over the river built? Answer: in 1874, two years after the great flood.
You are a helpful assistant. Yes, that is correct. No, that is not what the text says. The first one is larger than
the second; the third was never finished. Write a short list: bread, milk, apples, 12 eggs, 3 lemons and salt.
What is the capital of this country, and which city is the largest? Who wrote the book, where, and for whom?
There are many reasons for this, but the most important is that it was cheap. It would have been better to wait."""


@dataclass
class Loaded:
    """A model and its tokenizer as their maker made them.

    Attributes:
        revision: that they are of; None: not versioned.
        rounded: whether the maker's weights are finer than what they are stored as here; None: not told apart.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    revision: str | None = None
    rounded: bool | None = None


def load(stage: str, source: HubModel | FolderModel | GgufModel | TinyModel, seed: int, dtype: torch.dtype) -> Loaded:
    """Bring the source into memory, weights in `dtype`.

    Raises:
        ModelError: anything about the source that is missing, damaged, unsafe or not a causal language model.
    """
    if isinstance(source, HubModel):
        return _hub(stage, source, dtype)
    if isinstance(source, FolderModel):
        return _folder(folder_path(stage, source), f"stage {stage}, model.path", dtype, trust=False)
    if isinstance(source, GgufModel):
        return _gguf(gguf_path(stage, source), dtype)
    return tiny(stage, source, seed, dtype)


def load_reader(
    stage: str, source: HubModel | FolderModel, dtype: torch.dtype, auto: Any, may_miss: set[str],
    check: Callable[[Path, str], None] | None = None,
) -> Loaded:
    """Bring a model that is no language model into memory, weights in `dtype`.

    Args:
        auto: transformers' class to load it by.
        may_miss: weights that may be absent.
        check: of the folder, before anything is loaded: (folder, where it was said).

    Raises:
        ModelError: anything about the source that is missing, damaged or unsafe.
    """
    if isinstance(source, HubModel):
        folder, where = _fetched(stage, source), f"stage {stage}, model.repo"
        loaded = _folder(folder, where, dtype, trust=source.trust_remote_code, auto=auto, may_miss=may_miss,
                         check=check)
        loaded.revision = folder.name
        return loaded
    return _folder(folder_path(stage, source), f"stage {stage}, model.path", dtype, trust=False, auto=auto,
                   may_miss=may_miss, check=check)


def _hub(stage: str, source: HubModel, dtype: torch.dtype) -> Loaded:
    snapshot = _fetched(stage, source)
    loaded = _folder(snapshot, f"stage {stage}, model.repo", dtype, trust=source.trust_remote_code)
    loaded.revision, loaded.rounded = snapshot.name, _rounds(snapshot, dtype)
    return loaded


def _fetched(stage: str, source: HubModel) -> Path:
    """The folder of the hub's local cache with the model's files."""
    where, found = f"stage {stage}, model.repo", f"{source.repo} at {source.revision}"
    code = ["*.py"] if source.trust_remote_code else []
    try:
        with waiting(lambda: f"stage {stage}: the hub is asked for {source.repo}"):
            return Path(snapshot_download(
                source.repo, revision=source.revision, allow_patterns=[*MODEL_FILES, *code],
                # Copies of the weights for other programs, in folders or in their maker's own format.
                ignore_patterns=["*/*.safetensors", "consolidated*"],
            ))
    except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ModelError(f"the hub does not give this model out: {str(error).splitlines()[0]}", where=where,
                         found=found, expected="a model and revision that exist and that this user may read",
                         hint="check the name; for a private or gated model set HF_TOKEN") from error
    except LocalEntryNotFoundError as error:
        raise ModelError("the hub cannot be reached and the model is not in the local cache", where=where, found=found,
                         hint="connect to the network once, or use source folder with a copy of the model") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"the model cannot be fetched from the hub: {error}", where=where, found=found) from error


def _rounds(folder: Path, dtype: torch.dtype) -> bool:
    """Whether weights of a folder lose anything when they are stored in `dtype`."""
    exact = {torch.float32: {"F32", "F16", "BF16"}, torch.float16: {"F16"}, torch.bfloat16: {"BF16"}}[dtype]
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            if any(tensors.get_slice(name).get_dtype() not in exact for name in tensors.keys()):  # noqa: SIM118
                return True
    return False


def load_adapter(stage: str, source: FolderModel, base: Artifact) -> Loaded:
    """Bring somebody else's adapter into memory on its base's weights, with the tokenizer that it was trained with.

    Raises:
        ModelError: it is damaged, of another kind, or of another base.
    """
    folder, where = folder_path(stage, source), f"stage {stage}, model.path"
    config = read_adapter_config(folder, where)
    if model_info(base)["form"] != "full":
        raise ModelError("an adapter stands on full weights, and this stage makes an adapter",
                         where=f"stage {stage}, model.base", found=source.base,
                         expected="a stage that imports a whole model")
    own = load_tokenizer(base.path() / "model", side="right")
    tokenizer: Any = own
    if any(path for pattern in _TOKENIZER_FILES for path in folder.glob(pattern)):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        if tokenizer.get_vocab() != own.get_vocab():
            new = sorted(set(tokenizer.get_vocab()) - set(own.get_vocab()))[:5]
            raise ModelError("the adapter's tokenizer is not its base's", where=f"{where}: {folder.absolute()}",
                             found=f"tokens that the base has not: {', '.join(new)}" if new else "other ids",
                             expected=f"the vocabulary of stage {source.base}",
                             hint="another base? an adapter that brings tokens is merged first, then imported whole")
        if not tokenizer.chat_template:
            tokenizer.chat_template = own.chat_template
    named, known = config.get("base_model_name_or_path"), base.manifest.facts.get("source", {}).get("repo")
    if known is not None and named is not None and "/" in named and not Path(named).exists() and named != known:
        console.print(f"! stage {stage}: the adapter says that it was trained on {named}, and stands on {known} now; "
                      "their weights have the same shapes", markup=False)
    weights = weights_of(AutoModelForCausalLM, base.path() / "model", torch.float32)
    adapted: Any = with_adapter(weights, folder, is_trainable=True)
    adapted.peft_config["default"].task_type = "CAUSAL_LM"
    return Loaded(adapted, tokenizer)


def _folder(
    folder: Path, where: str, dtype: torch.dtype, *, trust: bool, auto: Any = AutoModelForCausalLM,
    may_miss: set[str] | None = None, check: Callable[[Path, str], None] | None = None,
) -> Loaded:
    _check_folder(folder, where)
    if check is not None:
        check(folder, where)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(f"configuration or tokenizer cannot be read: {error}", where=where, found=str(folder),
                         hint="code from a repository runs only from the hub, with trust_remote_code and a commit hash"
                         if "trust_remote_code" in str(error) else None) from error
    bare = folder / "tokenizer.model"
    if bare.exists() and not (folder / "tokenizer.json").exists() and tokenizer.is_fast:
        as_sentencepiece(tokenizer, bare, where)
    model = weights_of(auto, folder, dtype, may_miss, config=config, trust_remote_code=trust)
    return Loaded(model, tokenizer)


def _check_folder(folder: Path, where: str) -> None:
    """Say in one sentence what a model folder lacks, before transformers says it in twenty."""

    def refuse(problem: str, expected: str, hint: str | None = None) -> ModelError:
        files = sorted(path.name for path in folder.iterdir())[:12] if folder.is_dir() else None
        return ModelError(problem, where=f"{where}: {folder.absolute()}", found=files, expected=expected, hint=hint)

    if not folder.is_dir():
        raise refuse("the model folder does not exist", "a folder with config.json, safetensors and a tokenizer")
    if (other := unclear(folder, adapter=False)) is not None:
        raise refuse(*other)
    if not (folder / "config.json").is_file():
        raise refuse("the model folder has no config.json", "config.json beside the weights")
    weights = {path.name for path in folder.glob("*.safetensors")}
    if not weights:
        pickled = [path.name for pattern in _PICKLES for path in folder.glob(pattern)]
        if pickled:
            raise refuse("the weights are pickled, and reading a pickle can run any code", "*.safetensors",
                         "convert them with safetensors in a place you trust")
        raise refuse("the model folder has no weights", "model.safetensors, or shards with an index")
    index = folder / "model.safetensors.index.json"
    if "model.safetensors" not in weights and index.is_file():
        lacking = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()) - weights
        if lacking:
            raise refuse(f"shards of the weights are missing: {', '.join(sorted(lacking)[:5])}",
                         "every shard that the index names")
    if not any(path for pattern in _TOKENIZER_FILES for path in folder.glob(pattern)):
        raise refuse("the model folder has no tokenizer", "one of " + ", ".join(_TOKENIZER_FILES),
                     "copy the tokenizer files of the model's maker into it")


def _gguf(path: Path, dtype: torch.dtype) -> Loaded:
    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        # Unpacked into ordinary weights: packed ones can neither be saved nor trained.
        model, found = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=dtype, output_loading_info=True,
            quantization_config=GgufConfig(gguf_file=path.name, dequantize=True),
        )
    except Exception as error:  # a foreign format read by foreign code: damage shows as any exception
        raise ModelError(f"the GGUF file cannot be read: {type(error).__name__}: {error}", where=str(path),
                         expected="a whole GGUF file of an architecture that transformers knows",
                         hint="a download that broke off? compare size and checksum with its maker's") from error
    if found["missing_keys"] or found["mismatched_keys"]:
        raise ModelError("the GGUF file lacks weights that the architecture needs", where=str(path),
                         found=sorted(map(str, found["missing_keys"]))[:5])
    return Loaded(model, tokenizer)


def tiny(
    stage: str, source: TinyModel, seed: int, dtype: torch.dtype, made_as: Any = LlamaForCausalLM, **more: Any
) -> Loaded:
    """A model of random weights.

    Args:
        made_as: the class of Llama that it is; more: of its config.
    """
    if source.hidden_size % (2 * source.heads):
        raise ModelError("hidden_size is no multiple of twice the heads", where=f"stage {stage}, model",
                         found=f"hidden_size {source.hidden_size}, heads {source.heads}",
                         expected="an even number of values per head")
    tokenizer = tiny_tokenizer(source.vocab_size)
    # A Llama config: with some others transformers rebuilds the tokenizer's pre-tokenizer when it loads it.
    config = LlamaConfig(
        vocab_size=source.vocab_size, hidden_size=source.hidden_size, intermediate_size=4 * source.hidden_size,
        num_hidden_layers=source.layers, num_attention_heads=source.heads, num_key_value_heads=source.heads,
        max_position_embeddings=TinyModel.context, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, tie_word_embeddings=False, **more,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = made_as(config)
    return Loaded(model.to(dtype), tokenizer)


def tiny_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer learned from a few sentences, with the special tokens of ChatML.

    Has at most `vocab_size` tokens: few sentences hold few pairs worth merging.
    """
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator([_TEXT], trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    ))
    made: Any = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>"], model_max_length=TinyModel.context,
    )
    return made
