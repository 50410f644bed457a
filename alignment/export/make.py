"""An export stage: a model of the run -> folders and files that others load, each held against what was trained.

    model/      merged safetensors (where the adapter alone is asked for: that), what later stages of the run read
    adapter/    the adapter alone, beside merged weights
    gguf/       NAME-TYPE.gguf
    nf4/        four bits
    fp8/        eight bits

README.md, the model card, lies in each folder. Launched by the pipeline or by ray_jobs/export.py; needs no Ray.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from alignment.artifacts import Artifact
from alignment.config import Export
from alignment.config.stages.export import GgufType
from alignment.context import Outcome, StageContext
from alignment.data.adapter_config import CONFIG
from alignment.errors import ConfigError, ModelError
from alignment.export import hub
from alignment.export.adapter import write_adapter
from alignment.export.card import Card
from alignment.export.compare import measured, texts_of
from alignment.export.folder import check_tokenizer, write_model
from alignment.export.gguf_file import family_of, write_gguf
from alignment.export.history import History, history_of
from alignment.export.making import Making, free, named
from alignment.export.merge import merged_model, trained_over
from alignment.export.quantised import load_fp8, load_nf4, write_fp8, write_nf4
from alignment.export.read_back import load_gguf, same_ids
from alignment.inference import nf4
from alignment.inference.adapters import with_adapter
from alignment.inference.info import base_artifact, base_folder, model_info, template_of, write_info
from alignment.inference.loading import (
    in_dtype,
    load_policy,
    load_tokenizer,
    resolve_device,
    resolve_dtype,
    weights_of,
)

_DEFAULT_GGUF: tuple[GgufType, ...] = ("q8_0",)


def export_stage(context: StageContext) -> Outcome:
    """Body of the stages of kind export.

    Returns:
        metrics: `FORM.kl`, `FORM.top1`, `FORM.greedy`, `bytes`; facts: forms, merged_into, weights, base, compared_on,
        files, push (with `pushed_revision` where it was pushed), and what later stages read.

    Raises:
        ModelError: the model cannot be merged or converted. ConfigError: no token in the environment.
        StageError: a form is not the model that was trained, or the hub refuses.
    """
    stage = context.stage_as(Export)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    artifact = context.inputs[stage.model]
    token = None if stage.push_to_hub is None else hub.check_token(stage.push_to_hub, stage.name)
    _check_forms(stage, artifact)
    names = {key: name for name, key in context.keys.items()}
    history = history_of(artifact, names)
    _check_datasets(stage, [data.name for data in history.data])
    making = _begun(context, stage, artifact)
    making.stored = _make_model(making)
    _make_others(making)
    card = _card(making, history)
    for folder in sorted(path for path in context.out.iterdir() if path.is_dir()):
        text = card.text(whole=not (folder / CONFIG).exists())
        (folder / "README.md").write_text(text, encoding="utf-8")
    _lay_out(making)
    push = None
    if stage.push_to_hub is not None:
        push = hub.planned(stage.push_to_hub, making.files, context.key, stage.form)
        if token is not None:
            push = hub.pushed(context, stage.push_to_hub, push, making.files, token)
        context.event("pushed", repo=push["repo"], dry_run=push["dry_run"], files=len(push["files"]),
                      bytes=push["bytes"], revision=push.get("pushed_revision"))
    facts = artifact.manifest.facts
    return Outcome(
        metrics={**{f"{form}.{name}": float(getattr(compare, name)) for form, (compare, _) in making.found.items()
                    for name in ("kl", "top1", "greedy")},
                 "bytes": float(sum(file.stat().st_size for file in making.files.values()))},
        facts={
            "forms": list(stage.form), "weights": making.stored, "template": template_of(artifact),
            "merged_into": (stage.merge_into or trained_over(artifact)) if stage.whole and
            model_info(artifact)["form"] == "adapter" else None,
            "base": base_artifact(artifact).key, "exported": artifact.key,
            "compared_on": making.trained.texts.source, "left_out": making.trained.texts.left_out,
            "context_length": facts.get("context_length"), "pad_token": making.tokenizer.pad_token,
            "eos_token": making.tokenizer.eos_token, "push": push,
            "files": {name: file.relative_to(context.out).as_posix() for name, file in sorted(making.files.items())},
        })


def _check_forms(stage: Export, artifact: Artifact) -> None:
    """What cannot be made of this model, before anything is loaded."""
    if "adapter" in stage.form and model_info(artifact)["form"] != "adapter":
        raise ModelError("the model has whole weights and no adapter", where=f"stage {stage.name}, form",
                         found="adapter", expected="safetensors, gguf, nf4 or fp8")
    if "gguf" in stage.form:
        file = base_folder(artifact) / "config.json"
        family_of(json.loads(file.read_text(encoding="utf-8")), str(file))


def _check_datasets(stage: Export, known: list[str]) -> None:
    if unknown := sorted(set(stage.datasets or ()) - set(known)):
        raise ConfigError("names data that has no part in the model", where=f"stage {stage.name}, datasets",
                          found=", ".join(unknown), expected=f"one of {', '.join(known) or 'none'}")


def _begun(context: StageContext, stage: Export, artifact: Artifact) -> Making:
    """The trained model has been asked."""
    device = resolve_device(context.run.compute)
    dtype = resolve_dtype(context.run.compute, device)
    tokenizer = load_tokenizer(artifact.path() / "model", side="right")
    texts = texts_of(context, stage, tokenizer)
    model = load_policy(artifact, dtype=dtype, device=device, merge=False)
    trained = measured(model, texts, tokenizer)
    del model
    free()
    context.event("asked", rows=len(texts.rows), source=texts.source, left_out=texts.left_out)
    return Making(context, stage, artifact, tokenizer, device, dtype, trained)


def _make_model(making: Making) -> str | None:
    """Fill model/; returns what its weights are stored as, None for an adapter."""
    stage, artifact = making.stage, making.artifact
    if not stage.whole:
        _make_adapter(making, making.model)
        info = model_info(artifact)
        write_info(making.model, role="policy", form="adapter", base=info["base"], tokenizer=making.tokenizer,
                   template_name=template_of(artifact)["name"], quantisation=info.get("quantisation"))
        return None
    asked = None if stage.weights is None else getattr(torch, stage.weights)
    model, stored = merged_model(artifact, stage.merge_into or trained_over(artifact), asked, making.device,
                                 making.tokenizer)
    write_model(model, making.tokenizer, making.model, stage.shard_bytes)
    del model
    free()
    write_info(making.model, role="policy", form="full", base=None, tokenizer=making.tokenizer,
               template_name=template_of(artifact)["name"])
    _check_ids(making, making.model)
    making.hold("safetensors", (named(stored),), lambda: weights_of(AutoModelForCausalLM, making.model, making.dtype))
    return named(stored)


def _make_others(making: Making) -> None:
    """The forms beside model/."""
    stage, out = making.stage, making.context.out
    if stage.whole and "adapter" in stage.form:
        _make_adapter(making, out / "adapter")
    if "gguf" in stage.form:
        for kind in stage.gguf or _DEFAULT_GGUF:
            _make_gguf(making, kind)
    if "nf4" in stage.form:
        write_nf4(making.model, out / "nf4", making.tokenizer, making.device, stage.shard_bytes)
        _check_ids(making, out / "nf4")
        free()
        making.hold("nf4", ("nf4",), lambda: load_nf4(out / "nf4", making.dtype, making.device))
    if "fp8" in stage.form:
        write_fp8(making.model, out / "fp8", making.tokenizer, stage.shard_bytes)
        _check_ids(making, out / "fp8")
        free()
        making.hold("fp8", ("fp8",), lambda: load_fp8(out / "fp8", making.dtype, making.device))


def _make_adapter(making: Making, folder: Path) -> None:
    """Write it, and load it by PEFT over the base that it was trained over."""
    artifact = making.artifact
    published = Path(making.context.store.root, "artifacts", making.context.key, folder.name)
    write_adapter(artifact, folder, making.tokenizer, making.stage.base_model, published)
    _check_ids(making, folder)

    def load() -> Any:
        base = weights_of(AutoModelForCausalLM, base_folder(artifact), "auto")
        if trained_over(artifact) == "dequantised":
            nf4.round_weights(nf4.quantised_layers(base), making.dtype, making.device)
        return with_adapter(in_dtype(base, making.dtype), folder)

    making.hold("adapter", ("float32",), load)


def _make_gguf(making: Making, kind: GgufType) -> None:
    """Write a file, and compare it as transformers reads it back."""
    stage, folder = making.stage, making.context.out / "gguf"
    folder.mkdir(exist_ok=True)
    title = _title(making)
    file = folder / f"{title}-{kind.upper()}.gguf"
    write_gguf(making.model, making.tokenizer, file, kind, title, stage.licence)
    texts = [making.tokenizer.decode(row, skip_special_tokens=True) for row in making.trained.texts.rows]
    making.context.event("read_back", form=f"gguf_{kind}", texts=len(texts),
                         same_ids=same_ids(file, making.tokenizer, texts))
    stored = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "q8_0": "q8_0"}[kind]
    rounded = (stored, making.stored or "float32")  # it is made of the merged weights as they are stored
    making.hold(f"gguf_{kind}", rounded, lambda: load_gguf(file, making.model, making.dtype))


def _check_ids(making: Making, folder: Path) -> None:
    texts = [making.tokenizer.decode(row) for row in making.trained.texts.rows]
    check_tokenizer(making.tokenizer, folder, texts)


def _card(making: Making, history: History) -> Card:
    stage = making.stage
    base = history.base
    source = {} if base is None else base.config["model"]
    named = stage.base_model or (source.get("repo") if source.get("source") == "hub" else None)
    files = sorted(path.name for path in (making.context.out / "gguf").glob("*.gguf"))
    evaluations = {name: making.context.inputs[name] for name in stage.evaluations or ()}
    return Card(stage, _title(making), making.context.run.description, history, making.found, evaluations, named,
                making.trained.texts.source, trained_over(making.artifact), files)


def _lay_out(making: Making) -> None:
    """Where files stand in a repository: what is loaded by its name alone at the top, the rest beside it."""
    stage, out = making.stage, making.context.out
    top = "safetensors" in stage.form or not stage.whole
    if top:
        making.deliver(making.model, "")
    if stage.whole and "adapter" in stage.form:
        making.deliver(out / "adapter", "adapter/" if top else "")
        top = True
    for form in (form for form in ("nf4", "fp8") if form in stage.form):
        making.deliver(out / form, f"{form}/" if top else "")
        top = True
    for file in sorted((out / "gguf").glob("*.gguf")):
        making.files[file.name] = file
    making.files.setdefault("README.md", making.model / "README.md")


def _title(making: Making) -> str:
    push = making.stage.push_to_hub
    return push.repo.split("/")[1] if push is not None else f"{making.context.run.name}-{making.stage.model}"
