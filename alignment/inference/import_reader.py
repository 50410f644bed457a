"""Stage body: a sequence classifier as a reward model, or an encoder as an embedder -> one model folder.

Settles once what later stages rely on: safetensors in one dtype, one label, how a classifier reads its texts, a pad
token. Does not change weights (but for dtype). Launched by the pipeline for stages of kind import with `model` and
`role`.
"""

from __future__ import annotations

import json
import logging
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    LlamaForSequenceClassification,
    LlamaModel,
)
from transformers.utils.logging import disable_progress_bar

from alignment import templates
from alignment.config import FolderModel, HubModel, ImportReader, TinyModel
from alignment.context import Outcome, StageContext
from alignment.errors import ModelError
from alignment.inference.embedding import POOLER, plain_tokenizer
from alignment.inference.info import INFO, write_info
from alignment.inference.model_sources import Loaded, load_reader, tiny
from alignment.inference.settle import set_template, settle
from alignment.planner.context_length import context_length


def import_reader(context: StageContext) -> Outcome:
    """Fill `context.out/"model"`.

    Returns:
        metrics: `parameters`; facts: source, revision, architecture, dtype, context_length, hidden_size, and `reads`:
        texts of an embedder, of a reward model a pair or a conversation.

    Raises:
        ModelError: the source cannot be used, has more or fewer labels than one, or no pad token.
    """
    stage = context.stage_as(ImportReader)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    disable_progress_bar()
    context.event("load", source=stage.model.source)
    loaded = _load(stage, context.run.seed)
    model, tokenizer, where = loaded.model, loaded.tokenizer, f"stage {stage.name}"
    reads = "texts" if stage.makes == "embedder" else _reads(stage, loaded, where)
    config: Any = model.config
    folder = context.out / "model"
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer.pad_token_id is not None:
        config.pad_token_id = tokenizer.pad_token_id  # where a classifier of a decoder finds an answer's last token
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if reads == "conversation":
        write_info(folder, role="reward", form="full", base=None, tokenizer=tokenizer)
    else:
        plain_tokenizer(folder)
        info = {"role": stage.makes, "form": "full", "base": None, "reads": reads}
        (folder / INFO).write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    context.event("saved", parameters=parameters)
    text = config.get_text_config()
    return Outcome(metrics={"parameters": float(parameters)}, facts={
        "source": stage.model.model_dump(mode="json"), "revision": loaded.revision, "dtype": stage.dtype,
        "architecture": type(model).__name__, "context_length": _length(model, tokenizer),
        "hidden_size": getattr(text, "hidden_size", None), "reads": reads,
    })


def _load(stage: ImportReader, seed: int) -> Loaded:
    dtype, reward = getattr(torch, stage.dtype), stage.makes == "reward"
    if isinstance(stage.model, TinyModel):
        own = LlamaForSequenceClassification if reward else LlamaModel
        loaded = tiny(stage.name, stage.model, seed, dtype, own, **({"num_labels": 1} if reward else {}))
        if reward:
            loaded.tokenizer.chat_template = templates.source("chatml")
        return loaded
    source: HubModel | FolderModel = stage.model
    auto = AutoModelForSequenceClassification if reward else AutoModel
    return load_reader(stage.name, source, dtype, auto, set() if reward else POOLER, _one_label if reward else None)


def _one_label(folder: Any, where: str) -> None:
    """A classifier of several labels gives no score; one whose head would be made up is found when it is loaded."""
    labels = AutoConfig.from_pretrained(folder, local_files_only=True).num_labels
    if labels != 1:
        raise ModelError("not a reward model: a score is one number", where=where, found=f"{labels} labels",
                         expected="a sequence classifier with one label (config.json: num_labels or id2label)")


def _reads(stage: ImportReader, loaded: Loaded, where: str) -> str:
    tokenizer = loaded.tokenizer
    template = getattr(stage, "template", None)
    if template is None and not getattr(tokenizer, "chat_template", None):
        return "pair"
    set_template(tokenizer, template, where)
    settle(tokenizer, where)
    return "conversation"


def _length(model: Any, tokenizer: Any) -> int | None:
    """As the config has it; RoBERTa's places begin behind its pad token's."""
    found = context_length(model.config.to_dict())
    own = getattr(tokenizer, "model_max_length", None)
    roberta = found is not None and isinstance(own, int) and found - 2 <= own < found
    return own if roberta else found
