"""LLaMA-Factory's training files (github.com/hiyouga/LLaMA-Factory, its hparams and data/README.md, read in 2026)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alignment.cli.migrate.arguments import arguments, passed
from alignment.cli.migrate.carried import Reading
from alignment.cli.migrate.llama_factory_data import datasets
from alignment.cli.migrate.target import Target, base_model, base_template, left, one_of
from alignment.config.stages.fields import LENGTH
from alignment.errors import ConfigError

TOOL = "LLaMA-Factory"
METHODS = {"sft": "sft", "rm": "reward", "dpo": "dpo", "kto": "kto", "ppo": "ppo"}
"""Its `stage` -> our method."""
LOSSES = {"sigmoid": "dpo", "hinge": "dpo", "ipo": "dpo", "orpo": "orpo"}
"""Its `pref_loss` -> our method."""
_CUTOFF = 2048
_DEFAULTS = {"learning_rate": 5e-5, "num_train_epochs": 3.0, "per_device_train_batch_size": 8}
_LEFT = {
    **dict.fromkeys(("flash_attn", "enable_liger_kernel", "use_unsloth", "use_unsloth_gc", "low_cpu_mem_usage",
                     "upcast_layernorm", "upcast_lmhead_output", "disable_gradient_checkpointing", "cache_dir",
                     "offload_folder", "streaming", "buffer_size", "print_param_status", "use_fast_tokenizer",
                     "split_special_tokens", "ray_run_name", "ray_storage_path", "ray_storage_filesystem",
                     "resources_per_worker", "placement_strategy", "ray_init_kwargs"),
                    "says how it is computed, not what"),
    **dict.fromkeys(("use_dora", "use_rslora", "pissa_init", "pissa_iter", "pissa_convert", "loraplus_lr_ratio",
                     "loraplus_lr_embedding", "lora_bf16_mode"),
                    "adapters here are plain LoRA: others learn otherwise"),
    **dict.fromkeys(("use_galore", "use_apollo", "use_badam", "use_adam_mini", "use_muon"),
                    "`trl: {optim: ...}` takes transformers' optimizers alone"),
    **dict.fromkeys(("double_quantization", "quantization_type", "quantization_device_map"),
                    "qlora rounds to NF4 with double quantisation"),
    **dict.fromkeys(("neat_packing",), "packed rows never attend to each other here, whatever it says"),
    **dict.fromkeys(("image_max_pixels", "image_min_pixels", "video_max_pixels", "freeze_vision_tower",
                     "freeze_multi_modal_projector", "media_dir"), "only text is read"),
    **dict.fromkeys(("top_k", "top_p", "do_sample", "num_beams"), "what is learned from is drawn from the whole "
                                                                  "distribution"),
    "interleave_probs": "data sets are put together whole; `take` of a source draws of each",
    "mix_strategy": "data sets are put together whole; `take` of a source draws of each",
    "rope_scaling": "a model keeps the context that it comes with",
    "resize_vocab": "vocabularies keep their size", "new_special_tokens": "vocabularies keep their size",
    "add_tokens": "vocabularies keep their size",
    "ignore_pad_token_for_loss": "padding is never learned",
    "default_system": "`system` of the import: write it there",
    "enable_thinking": "the chat template decides; compare with `kubealign data show`",
    "create_new_adapter": "an adapter is continued", "ref_model": "`reference_model: STAGE` of dpo and kto",
    "ref_model_adapters": "`reference_model: STAGE` of dpo and kto", "eval_dataset": "held-out rows come from val_size",
    "compute_accuracy": "a stage of kind evaluate measures", "predict_with_generate": "a stage of kind evaluate asks",
    "eval_num_beams": "a stage of kind evaluate asks", "eval_on_each_dataset": "held-out rows are measured together",
    "ppo_score_norm": "rewards are taken as they are; `whiten_rewards` scales them",
    "ppo_target": "the weight of the KL stays as it is", "ppo_buffer_size": "each step has answers of its own",
    "use_ref_model": "dpo is held to the start model",
}
"""Keys that are not carried -> why."""


def migrate(read: Reading, into: Target, *, processes: int, infos: Mapping[str, Any] | None,
            folder: str | None, deepspeed: Mapping[str, Any] | None) -> None:
    """Fill in a run from the keys of a file.

    Args:
        infos, folder: what dataset_info.json holds and where it was found, None where it is not there.

    Raises:
        ConfigError: it does what nothing here does, or a value has the wrong type.
    """
    workers = read.whole("ray_num_workers", "compute.workers", "and batch_size is over all of them")
    processes = workers or processes
    _method(read, into)
    _model(read, into)
    _strategy(read, into)
    several_turns = datasets(read, into, infos, folder)
    _rows(read, into, several_turns)
    arguments(read, into, TOOL, _DEFAULTS, processes=processes, deepspeed=deepspeed)
    _particular(read, into)
    left(read, _LEFT)
    passed(read, into)


def _method(read: Reading, into: Target) -> None:
    stage = read.word("stage", "method") or "sft"
    if stage == "pt":
        raise ConfigError("there is no pretraining here: rows are conversations, not plain text", where="stage",
                          found=stage, expected="sft, rm, dpo, kto or ppo")
    into.method = one_of(stage, METHODS, "stage", TOOL)
    if into.method == "dpo":
        loss = read.word("pref_loss", "dpo.trl.loss_type") or "sigmoid"
        into.method = one_of(loss, LOSSES, "pref_loss", TOOL)
        if into.method == "orpo":
            read.correct("pref_loss", "method", "orpo is a method of its own here")
        elif "pref_loss" in read:
            into.trl["loss_type"] = (loss, "pref_loss")
    if "finetuning_type" not in read:
        into.said.append("strategy: lora, the default of LLaMA-Factory's finetuning_type")


def _model(read: Reading, into: Target) -> None:
    base_model(read, into, "model_name_or_path", "model_revision")
    adapters = read.words("adapter_name_or_path", "start.model.path", "the adapter that training continues")
    if len(adapters) > 1:
        read.correct("adapter_name_or_path", "start.model.path", f"the last alone, {adapters[-1]}: import what came of "
                                                                 "merging the others as the base")
    into.start = adapters[-1] if adapters else None
    if "template" not in read:
        into.said.append("the chat template is the model's own")
    base_template(read, into, "template")


def _strategy(read: Reading, into: Target) -> None:
    kind = read.word("finetuning_type", "strategy.kind") or "lora"
    bits = read.whole("quantization_bit", "strategy.kind", "qlora: NF4, double quantisation")
    if kind == "full":
        into.strategy = {"kind": "full"}
        for path in ("lora_rank", "lora_alpha", "lora_dropout", "lora_target", "additional_target"):
            read.leave(path, "all weights are trained")
        return
    if kind != "lora":
        raise ConfigError("there is no such strategy here", where="finetuning_type", found=kind,
                          expected="lora or full")
    if bits not in (None, 4):
        raise ConfigError("a base is quantised to four bits or not at all", where="quantization_bit", found=bits,
                          expected="4, or to be left out")
    read.leave("quantization_method", "bitsandbytes is the one")
    rank = read.whole("lora_rank", "strategy.r")
    alpha = read.whole("lora_alpha", "strategy.alpha")
    if rank is None:
        into.said.append("strategy.r: 8, the default of LLaMA-Factory")
    if alpha is None:
        into.said.append("strategy.alpha: twice r, the default of LLaMA-Factory")
    rank = rank or 8
    into.strategy = {"kind": "lora" if bits is None else "qlora", "r": rank, "alpha": alpha or 2 * rank,
                     "dropout": read.number("lora_dropout", "strategy.dropout") or 0.0}
    targets = read.words("lora_target", "strategy.targets")
    into.strategy["targets"] = "all-linear" if targets in ([], ["all"]) else targets
    if saved := read.words("additional_target", "strategy.modules_to_save"):
        into.strategy["modules_to_save"] = saved


def _rows(read: Reading, into: Target, several_turns: bool) -> None:
    note = "a longer row is dropped and counted (`too_long`); LLaMA-Factory cuts it"
    length = read.whole("cutoff_len", f"{into.method}.max_length", note)
    into.train["max_length"] = length or _CUTOFF
    if length is None:
        into.said.append(f"max_length: {_CUTOFF}, the default of LLaMA-Factory's cutoff_len (ours: {LENGTH}); {note}")
    held = read.number("val_size", "data.split.ratios.dev")
    if held is not None and held >= 1:
        read.correct("val_size", None, "a number of rows: splits are shares here (data.split.ratios)")
    elif held:
        into.held = held
    elif held is not None:
        read.correct("val_size", None, "no rows are held out")
    packing = read.flag("packing", "sft.packing")
    if into.method != "sft":
        for path in ("train_on_prompt", "mask_history"):
            read.leave(path, "is for sft alone")
        if packing is not None:
            read.correct("packing", None, "is for sft alone")
        return
    if packing is not None:
        into.train["packing"] = packing
    everything = read.flag("train_on_prompt", "sft.loss", "all: everything is learned")
    last = read.flag("mask_history", "sft.loss", "completion: the last answer alone is learned")
    into.train["loss"] = "all" if everything else "assistant" if several_turns and not last else "completion"
    if last and everything:
        read.correct("mask_history", None, "train_on_prompt learns everything")
    if into.train["loss"] == "assistant":
        into.said.append("loss: assistant, as LLaMA-Factory learns every turn of the assistant")


def _particular(read: Reading, into: Target) -> None:
    """Keys of one method."""
    method = into.method
    if method in ("dpo", "orpo", "kto"):
        beta = read.number("pref_beta", f"{method}.trl.beta")
        if beta is None:
            into.said.append("beta: 0.1, the default of LLaMA-Factory's pref_beta")
        into.trl["beta"] = (beta or 0.1, "pref_beta")
        sft = read.number("pref_ftx", f"{method}.trl.loss_weights", "the share of an SFT loss on chosen answers")
        if sft and method == "dpo":
            loss = into.trl.get("loss_type", ("sigmoid", ""))[0]
            into.trl |= {"loss_type": ([loss, "sft"], "pref_ftx"), "loss_weights": ([1.0, sft], "pref_ftx")}
        elif sft is not None:
            read.correct("pref_ftx", None, "an SFT loss beside another is dpo's alone" if sft else "is 0: no SFT loss")
        smoothing = read.number("dpo_label_smoothing", f"{method}.trl.label_smoothing")
        if smoothing is not None:
            into.trl["label_smoothing"] = (smoothing, "dpo_label_smoothing")
    if method == "kto":
        for theirs, ours in (("kto_chosen_weight", "desirable_weight"), ("kto_rejected_weight", "undesirable_weight")):
            if (weight := read.number(theirs, f"kto.trl.{ours}")) is not None:
                into.trl[ours] = (weight, theirs)
    if method == "ppo":
        into.reward_rows = True
        read.leave("reward_model", "a reward model is trained by a stage of the same run (rm), from preferences: give "
                                   "the rows that it was trained on in place of preferences.jsonl")
        read.leave("reward_model_type", "a part of `reward` is a stage, a function or an endpoint (docs/online.md)")
        into.train["reward"] = {"parts": {"rm": {"model": "rm"}}}
        for theirs, ours in (("max_new_tokens", "max_new_tokens"), ("ppo_epochs", "ppo_epochs")):
            if (value := read.whole(theirs, f"ppo.{ours}")) is not None:
                into.train[ours] = value
        if (whiten := read.flag("ppo_whiten_rewards", "ppo.whiten_rewards")) is not None:
            into.train["whiten_rewards"] = whiten
        if (heat := read.number("temperature", "ppo.temperature")) is not None:
            into.train["temperature"] = heat
