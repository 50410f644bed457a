"""A tokenizer.json as the vocabulary of a GGUF file: tokens, kinds, merges or scores, and how llama.cpp cuts texts.

llama.cpp knows splits of texts by a name alone, so a tokenizer with another split is refused: it would be read without
an error and make other ids. Two kinds are known: byte-level BPE (`gpt2`) and sentencepiece's BPE with bytes (`llama`).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, TokenType

from alignment import templates
from alignment.errors import ModelError
from alignment.progress import console

_LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
           r"|\s*[\r\n]+|\s+(?!\S)|\s+")
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_SPLITS = {_LLAMA3: "llama-bpe", _QWEN2: "qwen2"}
"""Regular expression of a split -> what llama.cpp calls it (llama-vocab.cpp)."""
_MARKER = re.compile(r"\{%(-?)\s*(end)?generation\s*(-?)%\}")
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def write_tokenizer(writer: GGUFWriter, tokenizer: Any, folder: Path, rows: int) -> None:
    """Vocabulary, special tokens and chat template of a model folder.

    Args:
        rows: of the embedding; what the tokenizer does not fill is named and unused.

    Raises:
        ModelError: a tokenizer that llama.cpp would read another way.
    """
    where = str(folder / "tokenizer.json")
    try:
        tree = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError("the tokenizer has no tokenizer.json, from which a GGUF file is made", where=where,
                         hint="llama.cpp's own convert_hf_to_gguf.py knows other forms") from error
    model = tree["model"]
    if model.get("type") != "BPE":
        raise _unknown("a tokenizer of this type", model.get("type"), "BPE", where)
    tokens, kinds = _tokens(tree, rows, where)
    if model.get("byte_fallback"):
        _write_sentencepiece(writer, tree, tokens, kinds, where)
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_split(tree, where))
        writer.add_token_list(tokens)
        writer.add_token_merges(_merges(model))
    writer.add_token_types(kinds)
    _write_special(writer, tokenizer)


def for_llama_cpp(template: str) -> str:
    """A chat template without transformers' generation markers, which only transformers knows; the blanks that they
    trim stay trimmed."""
    return _MARKER.sub(lambda found: f"{{%{found[1]} {'endif' if found[2] else 'if true'} {found[3]}%}}", template)


def _tokens(tree: dict[str, Any], rows: int, where: str) -> tuple[list[str], list[int]]:
    by_id = {index: token for token, index in tree["model"]["vocab"].items()}
    kinds = dict.fromkeys(by_id, TokenType.NORMAL)
    for added in tree["added_tokens"]:
        by_id[added["id"]] = added["content"]
        kinds[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    if max(by_id) >= rows:
        raise ModelError("the tokenizer has more tokens than the model has embeddings", where=where,
                         found=f"{max(by_id) + 1} tokens, {rows} embeddings")
    if tree["model"].get("byte_fallback"):
        unknown = tree["model"].get("unk_token")
        for index, token in by_id.items():
            if _BYTE.fullmatch(token):
                kinds[index] = TokenType.BYTE
            elif token == unknown:
                kinds[index] = TokenType.UNKNOWN
    tokens = [by_id.get(index, f"[PAD{index}]") for index in range(rows)]
    return tokens, [int(kinds.get(index, TokenType.UNUSED)) for index in range(rows)]


def _split(tree: dict[str, Any], where: str) -> str:
    """What llama.cpp calls the way a byte-level tokenizer cuts texts into words."""
    normaliser = tree.get("normalizer")
    if normaliser is not None and normaliser != {"type": "NFC"}:
        raise _unknown("a byte-level tokenizer with this normaliser", normaliser, "none, or NFC", where)
    before = tree.get("pre_tokenizer") or {}
    steps = before["pretokenizers"] if before.get("type") == "Sequence" else [before]
    last = steps[-1]
    whole = last.get("type") == "ByteLevel" and not last.get("add_prefix_space")
    if whole and len(steps) == 1 and last.get("use_regex", True):
        return "gpt-2"
    if whole and len(steps) == 2 and last.get("use_regex", True) and steps[0] == {
            "type": "Digits", "individual_digits": True}:
        return "smollm"
    if whole and len(steps) == 2 and not last.get("use_regex", True) and steps[0].get("type") == "Split":
        pattern = steps[0]["pattern"].get("Regex")
        if pattern in _SPLITS and steps[0]["behavior"] == "Isolated" and not steps[0]["invert"]:
            return _SPLITS[pattern]
    raise _unknown("this way to cut texts into words", before,
                   "that of GPT-2, SmolLM, Llama 3 or Qwen2", where)


def _write_sentencepiece(
    writer: GGUFWriter, tree: dict[str, Any], tokens: list[str], kinds: list[int], where: str
) -> None:
    """Scores in the order of the merges: llama.cpp joins the pair whose result has the highest."""
    normaliser, before = tree.get("normalizer"), tree.get("pre_tokenizer")
    prepended = '"Prepend"' in json.dumps(normaliser)
    first = False
    if before is not None:
        if before.get("type") != "Metaspace":
            raise _unknown("a sentencepiece tokenizer that cuts texts first", before, "Metaspace, or nothing", where)
        scheme = before.get("prepend_scheme", "always")
        prepended, first = prepended or scheme != "never", scheme == "first"
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(_merges(tree["model"])):
        ranks.setdefault(merge.replace(" ", ""), rank)
    last = len(ranks)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([
        0.0 if kind != TokenType.NORMAL else -float(ranks.get(token, last + index))
        for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True))])
    writer.add_add_space_prefix(prepended)
    if first:
        console.print("! GGUF: llama.cpp puts a blank before the text after each special token, this tokenizer only "
                      "before the first; ids within a chat may differ by that blank")


def _merges(model: dict[str, Any]) -> list[str]:
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]


def _write_special(writer: GGUFWriter, tokenizer: Any) -> None:
    begins = tokenizer.bos_token_id is not None and tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]
    for index, add in (
        (tokenizer.bos_token_id, writer.add_bos_token_id), (tokenizer.eos_token_id, writer.add_eos_token_id),
        (tokenizer.unk_token_id, writer.add_unk_token_id), (tokenizer.pad_token_id, writer.add_pad_token_id),
    ):
        if index is not None:
            add(index)
    writer.add_add_bos_token(begins)
    writer.add_add_eos_token(False)
    end = templates.end_id(tokenizer)
    writer.add_eot_token_id(end)
    more = [index for index in templates.stop_ids(tokenizer) if index not in (end, tokenizer.eos_token_id)]
    if more:  # the file has one more place; llama.cpp finds ChatML's and Llama 3's ends by their texts itself
        writer.add_eom_token_id(more[0])
    writer.add_chat_template(for_llama_cpp(str(tokenizer.get_chat_template())))


def _unknown(what: str, found: object, expected: str, where: str) -> ModelError:
    return ModelError(f"GGUF: {what} is not known here, and llama.cpp would make other ids without a word", where=where,
                      found=found, expected=expected,
                      hint="export safetensors, and convert that folder with llama.cpp's convert_hf_to_gguf.py")
