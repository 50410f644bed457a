"""Stage body: a base model from the hub, a folder, a GGUF file or thin air, or an adapter -> one model folder.

Settles once what everything after relies on: safetensors in one dtype, one chat template with generation markers
where there is an equivalent one, an end token that generation stops on, a pad token that is no end token. Does not
change weights (but for dtype) or add tokens. Launched by the pipeline for stages of kind import with `model`.
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
from alignment.planner.context_length import SOURCES, context_length

PAD_CANDIDATES = ("<|endoftext|>", "<pad>", "[PAD]", "<|finetune_right_pad_id|>")
"""Tokens that makers reserve for padding or that end no chat turn; tried in order, then the unknown token."""


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
    if stage.model.source == "tiny" and stage.template is None:
        tokenizer.chat_template = templates.source("chatml")
    else:
        _set_template(tokenizer, stage, where)
    _set_convention(tokenizer, stage, model)
    _set_end(tokenizer)
    _set_pad(tokenizer, stage.pad_token, where)
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
        },
    )


def _context_length(stage: ImportModel, model: PreTrainedModel) -> int | None:
    """As the source says it, where that is less than what was made of it: a GGUF file's rotary scaling is lost."""
    found = (SOURCES[type(stage.model)](stage.name, stage.model), context_length(model.config.to_dict()))
    return min((length for length in found if length is not None), default=None)


def _set_template(tokenizer: PreTrainedTokenizerBase, stage: ImportModel, where: str) -> None:
    """The template the stage names, or the model's own; the own one with markers where an equal one has them."""
    if stage.template is not None:
        tokenizer.chat_template = templates.fitted(stage.template, tokenizer)
        return
    try:
        own = str(tokenizer.get_chat_template()).replace("\r\n", "\n")
    except ValueError as error:
        raise ModelError("the model has no chat template of its own", where=where, expected="`template: NAME`",
                         hint=f"set template on this stage, one of {', '.join(templates.names())}") from error
    if "strftime_now" in own:
        raise ModelError("the model's chat template writes today's date, so the same messages would have other ids "
                         "tomorrow", where=where, expected="a template that depends on the messages only",
                         hint="set `template`, for example llama3")
    tokenizer.chat_template = own
    if not templates.has_generation_markers(own):
        tokenizer.chat_template = _marked(tokenizer, own) or own


def _marked(tokenizer: PreTrainedTokenizerBase, own: str) -> str | None:
    """A template with generation markers that renders exactly as `own` does: ours, else TRL's, else None."""
    for name in templates.names():
        if templates.same_rendering(tokenizer, own, templates.source(name)):
            return templates.source(name)
    # Slow to import, and needed only for templates that are not ours.
    from trl.chat_template_utils import get_training_chat_template

    try:
        found = get_training_chat_template(tokenizer)
    except ValueError:
        return None
    return found if found is not None and templates.same_rendering(tokenizer, own, found) else None


def _set_convention(tokenizer: PreTrainedTokenizerBase, stage: ImportModel, model: PreTrainedModel) -> None:
    """What the stage says of special tokens in texts, and where the model's maker lets generation stop. An adapter has
    its base's tokenizer, and with it what was said there."""
    before = templates.Convention.of(tokenizer)
    stops = set(before.stop_ids)
    for config in (model.config.get_text_config(), model.config, model.generation_config):
        said = getattr(config, "eos_token_id", None)
        stops |= set(said if isinstance(said, list | tuple) else () if said is None else (said,))
    known = tuple(sorted(index for index in stops if 0 <= index < len(tokenizer)))
    templates.Convention(stage.special_tokens_in_text or before.special_tokens_in_text, known).put_on(tokenizer)


def _set_end(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make the token that ends a turn the tokenizer's end token (base models often end documents with another).

    Left alone where the template itself writes `eos_token`: there it is the one that ends a turn already.
    """
    end = templates.end_id(tokenizer)
    if end != tokenizer.eos_token_id and "eos_token" not in str(tokenizer.chat_template):
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)


def _set_pad(tokenizer: PreTrainedTokenizerBase, asked: str | None, where: str) -> None:
    """Settle on a pad token that the vocabulary has and that ends neither a turn nor a text."""
    vocabulary = tokenizer.get_vocab()
    ends = {templates.end_id(tokenizer), tokenizer.eos_token_id}
    if asked is not None and (asked not in vocabulary or vocabulary[asked] in ends):
        raise ModelError("pad_token is the end token" if asked in vocabulary else "the tokenizer has no such token",
                         where=f"{where}, pad_token", found=asked,
                         expected=f"a token of the vocabulary other than {tokenizer.eos_token}")
    for token in (asked, tokenizer.pad_token, *PAD_CANDIDATES, tokenizer.unk_token):
        if token is not None and token in vocabulary and vocabulary[token] not in ends:
            tokenizer.pad_token = token
            return
    raise ModelError("no token can serve for padding: with the end token as padding a model never learns to stop",
                     where=where, found=f"pad {tokenizer.pad_token!r}, end {tokenizer.eos_token!r}",
                     expected=f"a token such as {', '.join(PAD_CANDIDATES)}",
                     hint="name an unused token of the vocabulary in `pad_token`")


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
