"""Stage body: a base model from the hub, a folder, a GGUF file or thin air, or an adapter -> one model folder.

Settles once what everything after relies on: safetensors in one dtype, one chat template with generation markers
where there is an equivalent one, an end token that generation stops on, a pad token that is no end token. Does not
change weights, but for dtype and the rows of `new_tokens`. Launched by the pipeline for stages of kind import with
`model`.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from alignment import templates
from alignment.config import FolderModel, ImportModel
from alignment.context import Outcome, StageContext
from alignment.errors import ModelError
from alignment.inference.adapters import save_adapter
from alignment.inference.info import write_info
from alignment.inference.model_sources import load, load_adapter
from alignment.inference.new_tokens import add_to_model, add_to_tokenizer
from alignment.inference.settle import set_template, settle
from alignment.planner.context_length import SOURCES, context_length


def import_model(context: StageContext) -> Outcome:
    """Fill `context.out/"model"`.

    Returns:
        metrics: `parameters`; facts: source, revision, template, architecture, pad_token, eos_token, context_length.

    Raises:
        ModelError: the source cannot be used, or no template, end token or pad token can be settled on.
    """
    stage = context.stage_as(ImportModel)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    disable_progress_bar()
    where = f"stage {stage.name}"
    context.event("load", source=stage.model.source)
    base = None if stage.base is None else context.inputs[stage.base]
    if base is not None and isinstance(stage.model, FolderModel):
        loaded = load_adapter(stage.name, stage.model, base)
    else:
        loaded = load(stage.name, stage.model, context.run.seed, getattr(torch, stage.dtype))
    model, tokenizer = loaded.model, loaded.tokenizer
    if stage.new_tokens:
        add_to_tokenizer(tokenizer, stage.new_tokens, where)
        add_to_model(model, tokenizer, stage.new_tokens)
    if stage.model.source == "tiny" and stage.template is None:
        tokenizer.chat_template = templates.source("chatml")
    else:
        set_template(tokenizer, stage.template, where)
    settle(tokenizer, where, texts=stage.special_tokens_in_text, stops=_maker_stops(model), pad=stage.pad_token)
    folder = context.out / "model"
    folder.mkdir(parents=True, exist_ok=True)
    if base is not None:
        save_adapter(model, folder, base)
    else:
        _fit_model(model, tokenizer, where)
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    info = write_info(folder, role="policy", form="full" if base is None else "adapter",
                      base=None if base is None else base.key, tokenizer=tokenizer)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    context.event("saved", parameters=parameters)
    return Outcome(
        metrics={"parameters": float(parameters)},
        facts={
            "source": stage.model.model_dump(mode="json"), "revision": loaded.revision,
            "rounded": loaded.rounded, "base": info["base"], "template": info["template"],
            "generation_markers": templates.has_generation_markers(str(tokenizer.chat_template)),
            "architecture": type(model if base is None else model.get_base_model()).__name__,
            "dtype": stage.dtype, "pad_token": tokenizer.pad_token,
            "eos_token": tokenizer.eos_token,
            "special_tokens_in_text": info["special_tokens_in_text"],
            "stop_tokens": tokenizer.convert_ids_to_tokens(templates.stop_ids(tokenizer)),
            "context_length": _context_length(stage, model),
            **({"new_tokens": list(stage.new_tokens)} if stage.new_tokens else {}),
        },
    )


def _context_length(stage: ImportModel, model: PreTrainedModel) -> int | None:
    """As the source says it, where that is less than what was made of it: a GGUF file's rotary scaling is lost."""
    found = (SOURCES[type(stage.model)](stage.name, stage.model), context_length(model.config.to_dict()))
    return min((length for length in found if length is not None), default=None)


def _maker_stops(model: PreTrainedModel) -> set[int]:
    """Where the model's maker lets generation stop."""
    stops: set[int] = set()
    for config in (model.config.get_text_config(), model.config, model.generation_config):
        said = getattr(config, "eos_token_id", None)
        stops |= set(said if isinstance(said, list | tuple) else () if said is None else (said,))
    return stops


def _fit_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    """Make the model's configs say what the tokenizer says."""
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ModelError("the tokenizer has more tokens than the model has embeddings", where=where,
                         found=f"{len(tokenizer)} tokens, {rows} embeddings",
                         hint="tokenizer and weights of one model?")
    config: Any = model.config
    config.pad_token_id, config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    config.bos_token_id = tokenizer.bos_token_id
    # The maker's sampling defaults would silently apply where a run says nothing; a run file says everything.
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=templates.stop_ids(tokenizer),
    )
