"""Axolotl's training files (github.com/axolotl-ai-cloud/axolotl, its config reference, read in 2026)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alignment.cli.migrate.axolotl_data import datasets
from alignment.cli.migrate.carried import Reading
from alignment.cli.migrate.target import Target, base_model, base_template, batches, left, one_of, sharded
from alignment.errors import ConfigError

TOOL = "Axolotl"
METHODS = {"dpo": "dpo", "ipo": "dpo", "kto": "kto", "orpo": "orpo"}
"""Its `rl` -> our method; sft without one."""
_LEFT = {
    **dict.fromkeys(("strict", "model_type", "tokenizer_type", "is_llama_derived_model", "is_mistral_derived_model",
                     "is_falcon_derived_model", "is_qwen_derived_model", "tokenizer_use_fast", "tokenizer_legacy",
                     "base_model_config", "tokenizer_config", "processor_type"),
                    "a model's own files say which classes it needs"),
    **dict.fromkeys(("dataset_prepared_path", "output_dir", "dataset_processes", "push_dataset_to_hub", "hub_model_id",
                     "hub_strategy", "hf_use_auth_token", "shuffle_merged_datasets", "shuffle_before_merging_datasets",
                     "dataset_keep_in_memory", "skip_prepare_dataset", "dataloader_num_workers",
                     "dataloader_pin_memory", "dataloader_prefetch_factor", "resume_from_checkpoint",
                     "auto_resume_from_checkpoints", "debug", "profiler_steps", "save_only_model", "save_safetensors",
                     "save_first_step", "ddp_timeout", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "gpu_memory_limit",
                     "lora_on_cpu", "low_cpu_mem_usage", "experimental_skip_move_to_device",
                     "include_tokens_per_second",
                     "wandb_entity", "wandb_watch", "wandb_name", "wandb_run_id", "wandb_log_model", "wandb_mode",
                     "mlflow_tracking_uri", "mlflow_experiment_name", "mlflow_run_name", "comet_project_name",
                     "trackio_project_name", "use_tensorboard", "ray_run_name", "resources_per_worker"),
                    "says how it is computed, kept or shown, not what is learned"),
    **dict.fromkeys(("flash_attention", "sdp_attention", "xformers_attention", "eager_attention", "flex_attention",
                     "s2_attention", "sample_packing_attention", "attn_implementation", "flash_attn_cross_entropy",
                     "flash_attn_rms_norm", "flash_attn_fuse_qkv", "flash_attn_fuse_mlp", "lora_mlp_kernel",
                     "lora_qkv_kernel", "lora_o_kernel", "unsloth_lora_mlp", "unsloth_lora_qkv", "unsloth_lora_o",
                     "torch_compile", "liger_rope", "liger_rms_norm", "liger_glu_activation", "liger_layer_norm",
                     "liger_fused_linear_cross_entropy", "cut_cross_entropy", "plugins", "tf32", "fp16", "float16",
                     "bfloat16", "pad_to_sequence_len", "sample_packing_bin_size", "sample_packing_group_size",
                     "eval_sample_packing", "multipack_real_batches", "group_by_length", "eval_batch_size",
                     "gpu_type", "device_map", "max_memory"),
                    "which kernels compute it, and in what layout, is not part of a run file here"),
    **dict.fromkeys(("peft_use_dora", "peft_use_rslora", "peft_layers_to_transform", "peft_layer_replication",
                     "loraplus_lr_ratio", "loraplus_lr_embedding", "relora_steps", "relora", "peft_init_lora_weights",
                     "lora_fan_in_fan_out", "lora_target_parameters", "lora_layers_to_transform", "qalora"),
                    "adapters here are plain LoRA: others learn otherwise"),
    **dict.fromkeys(("fsdp", "fsdp_config", "fsdp_version", "tensor_parallel_size", "context_parallel_size",
                     "dp_shard_size", "dp_replicate_size", "sequence_parallel_degree", "expert_parallel_size"),
                    "workers share out by DeepSpeed: `compute.sharding`"),
    **dict.fromkeys(("early_stopping_patience", "loss_watchdog_threshold", "loss_watchdog_patience"),
                    "a loss that is no number stops a stage; nothing else ends it early"),
    **dict.fromkeys(("eval_table_size", "eval_max_new_tokens", "eval_causal_lm_metrics", "do_bench_eval",
                     "do_causal_lm_eval", "bench_dataset"), "a stage of kind evaluate measures"),
    **dict.fromkeys(("tokens", "added_tokens_overrides", "resize_token_embeddings_to_32x", "embeddings_skip_upcast",
                     "mean_resizing_embeddings"), "vocabularies keep their size"),
    **dict.fromkeys(("rope_scaling", "overrides_of_model_config", "overrides_of_model_kwargs"),
                    "a model keeps the shape that it comes with"),
    **dict.fromkeys(("unfrozen_parameters", "noisy_embedding_alpha", "curriculum_sampling"),
                    "there is no such thing here"),
    **dict.fromkeys(("eval_steps", "evals_per_epoch", "eval_strategy", "evaluation_strategy"),
                    "held-out rows are measured at every checkpoint: `checkpoints.every` counts optimizer steps"),
    **dict.fromkeys(("saves_per_epoch", "save_strategy"), "`checkpoints.every` counts optimizer steps"),
    "min_sample_len": "short rows are kept", "excess_length_strategy": "`too_long` says what becomes of long rows",
    "default_system_message": "`system` of the import: write it there",
    "chat_template_jinja": "a run names a shipped template; a model's own may be in its folder",
    "chat_template_kwargs": "every row is rendered alike",
    "gradient_checkpointing_kwargs": "gradient checkpointing follows from the hardware",
    "gradient_checkpointing": "gradient checkpointing follows from the hardware",
    "eot_tokens": "the chat template says where a turn ends",
    "dataset_exact_deduplication": "a row whose text an earlier one had is a bad row in any case",
    "streaming": "`streaming: true` of a source that is a data set of the hub",
    "pretraining_dataset": "rows are conversations, not plain text",
    "env": "the environment is the shell's",
}
"""Keys that are not carried -> why."""


def migrate(read: Reading, into: Target, *, given: Mapping[str, Any], processes: int,
            deepspeed: Mapping[str, Any] | None) -> None:
    """Fill in a run from the keys of a file. Raises ConfigError as llama_factory.migrate does."""
    processes = read.whole("ray_num_workers", "compute.workers", "and batch_size is over all of them") or processes
    read.leave("use_ray", "stages run on Ray where `compute.workers` is 1 or more")
    if (rl := read.word("rl", "method")) is not None:
        into.method = one_of(rl, METHODS, "rl", TOOL)
        if rl == "ipo":
            into.trl["loss_type"] = ("ipo", "rl")
    if read.flag("reward_model", "method", "reward"):
        into.method = "reward"
    elif "reward_model" in read:
        read.correct("reward_model", None, "is false: no reward model is trained")
    _model(read, into)
    _strategy(read, into)
    datasets(read, into, given)
    _amounts(read, into, processes)
    _rest(read, into)
    if isinstance(read.peek("deepspeed"), str):
        sharded(read, into, "deepspeed", deepspeed)
    left(read, _LEFT)


def _model(read: Reading, into: Target) -> None:
    base_model(read, into, "base_model", "revision_of_model")
    into.start = read.word("lora_model_dir", "start.model.path", "the adapter that training continues")
    if pad := read.word("special_tokens.pad_token", "base.pad_token"):
        into.base["pad_token"] = pad
    for path in read.left("special_tokens."):
        read.leave(path, "a tokenizer's special tokens are those that it comes with, but for pad_token")
    base_template(read, into, "chat_template", ("tokenizer_default",))


def _strategy(read: Reading, into: Target) -> None:
    kind = read.word("adapter", "strategy.kind") or "full"
    if kind not in ("lora", "qlora", "full"):
        raise ConfigError("there is no such strategy here", where="adapter", found=kind,
                          expected="lora, qlora, or none")
    if read.flag("load_in_8bit", "strategy.kind"):
        read.correct("load_in_8bit", None, "a base is quantised to four bits (qlora) or not at all: here it is "
                                           "bfloat16, of twice the size")
    elif "load_in_8bit" in read:
        read.correct("load_in_8bit", None, "a base is in eight bits nowhere here")
    four = read.flag("load_in_4bit", "strategy.kind", "qlora: NF4, double quantisation")
    if four and kind == "lora":
        kind = "qlora"
    elif four is False:
        read.correct("load_in_4bit", None, "`strategy.kind` alone says it")
    for path in read.left("bnb_config_kwargs"):
        read.leave(path, "qlora rounds to NF4 with double quantisation")
    if kind == "full":
        for path in read.left("lora_"):
            read.leave(path, "all weights are trained")
        into.strategy = {"kind": "full"}
        return
    into.strategy = {"kind": kind, "r": read.whole("lora_r", "strategy.r") or 8,
                     "alpha": read.whole("lora_alpha", "strategy.alpha") or 16,
                     "dropout": read.number("lora_dropout", "strategy.dropout") or 0.0}
    linear = read.flag("lora_target_linear", "strategy.targets", "all-linear")
    targets = read.words("lora_target_modules", "strategy.targets")
    into.strategy["targets"] = "all-linear" if linear or targets == ["all-linear"] or not targets else targets
    if linear and targets:
        read.correct("lora_target_modules", None, "lora_target_linear takes every linear layer already")
    if not linear and not targets:
        into.said.append("strategy.targets: all-linear; Axolotl leaves it to PEFT, which takes a few layers by the "
                         "model's family")
    if saved := read.words("lora_modules_to_save", "strategy.modules_to_save"):
        into.strategy["modules_to_save"] = saved


def _amounts(read: Reading, into: Target, processes: int) -> None:
    train, method = into.train, into.method
    note = "a longer row is dropped and counted (`too_long`), as there"
    length = read.whole("sequence_len", f"{method}.max_length", note)
    train["max_length"] = length or 512
    if length is None:
        into.said.append("max_length: 512, the default of Axolotl's sequence_len")
    epochs = read.number("num_epochs", f"{method}.epochs")
    train["epochs"] = 1.0 if epochs is None else epochs
    steps = read.whole("max_steps", f"{method}.trl.max_steps")
    if steps is not None and steps > 0:
        into.trl["max_steps"] = (steps, "max_steps")
    elif steps is not None:
        read.correct("max_steps", None, "below 1 it says that epochs count")
    rate = read.number("learning_rate", f"{method}.learning_rate")
    if rate is None:
        raise ConfigError("the file says no learning rate", where="learning_rate", expected="a number")
    train["learning_rate"] = rate
    rows = read.whole("micro_batch_size", f"{method}.micro_batch_size", "times the passes of a step and the processes "
                                                                        f"it is {method}.batch_size") or 1
    passes = read.whole("gradient_accumulation_steps", f"{method}.batch_size", "passes of a step follow from it")
    whole = read.whole("batch_size", f"{method}.batch_size", "over one process")
    batches(into, rows, passes or (whole // rows if whole else 1), processes)
    if processes == 1:
        into.said.append(f"batch_size: {train['batch_size']} is of one process; --processes N where it ran on N GPUs")
    seed = read.whole("seed", "seed")
    into.seed = 42 if seed is None else seed
    if seed is None:
        into.said.append("seed: 42, the default of Axolotl")
    if whole is not None and passes is not None:
        read.correct("batch_size", None, "gradient_accumulation_steps says it")
    packing = read.flag("sample_packing", f"{method}.packing")
    if packing is not None and method == "sft":
        train["packing"] = packing
    elif packing is not None:
        read.correct("sample_packing", None, "is for sft alone")
    if (read.peek("bf16") in ("auto", "full", "true", True)):
        read.take("bf16", f"{method}.dtype", "of the frozen weights and of mixed precision; what is trained is float32")
        train["dtype"] = "bfloat16"
    else:
        read.leave("bf16", "arithmetic is float32, or bfloat16 where the GPU has it (`compute.dtype`)")


def _rest(read: Reading, into: Target) -> None:
    method = into.method
    for theirs, ours in (("weight_decay", "weight_decay"), ("max_grad_norm", "max_grad_norm"),
                         ("adam_beta1", "adam_beta1"), ("adam_beta2", "adam_beta2"), ("adam_epsilon", "adam_epsilon"),
                         ("neftune_noise_alpha", "neftune_noise_alpha"), ("rl_beta", "beta"), ("dpo_beta", "beta"),
                         ("orpo_alpha", "beta"), ("dpo_label_smoothing", "label_smoothing"),
                         ("kto_desirable_weight", "desirable_weight"), ("kto_undesirable_weight", "undesirable_weight"),
                         ("rpo_alpha", "rpo_alpha")):
        if (value := read.number(theirs, f"{method}.trl.{ours}")) is not None:
            if ours in into.trl:
                read.correct(into.trl[ours][1], None, f"{theirs} says the same, and counts")
            into.trl[ours] = (value, theirs)
    schedule = read.word("lr_scheduler", f"{method}.trl.lr_scheduler_type")
    into.trl["lr_scheduler_type"] = (schedule or "cosine", "lr_scheduler")
    if schedule is None:
        into.said.append("lr_scheduler_type: cosine, the default of Axolotl")
    optimizer = read.word("optimizer", f"{method}.trl.optim")
    if optimizer is not None:
        into.trl["optim"] = ({"adamw_bnb_8bit": "adamw_8bit"}.get(optimizer, optimizer), "optimizer")
    ratio = read.number("warmup_ratio", f"{method}.trl.warmup_steps", "below 1 warmup_steps is a share of all steps")
    warm = read.number("warmup_steps", f"{method}.trl.warmup_steps")
    if warm is not None:
        into.trl["warmup_steps"] = (int(warm), "warmup_steps")
        if ratio is not None:
            read.correct("warmup_ratio", None, "warmup_steps counts where both are given")
    elif ratio is not None:
        into.trl["warmup_steps"] = (ratio, "warmup_ratio")
    else:
        into.trl["warmup_steps"] = (0.03, "warmup_steps")
        into.said.append("warmup_steps: 0.03 of all steps, the default of Axolotl, which takes 100 at most")
    for path in [path for path in read.left() if path.startswith(("optim_args", "lr_scheduler_kwargs", "cosine_"))]:
        read.leave(path, "write it under trl (optim_args, lr_scheduler_kwargs) as transformers has it")
    every = read.peek("save_steps")
    if isinstance(every, int | float) and every < 1:
        read.leave("save_steps", "checkpoints are counted in steps: `checkpoints.every`")
    elif every is not None:
        into.checkpoints["every"] = read.whole("save_steps", f"{method}.checkpoints.every")
    if (keep := read.whole("save_total_limit", f"{method}.checkpoints.keep")) is not None:
        into.checkpoints["keep"] = max(1, keep)
    best = read.flag("load_best_model_at_end", f"{method}.checkpoints.final", "by the loss on held-out rows")
    if best is not None:
        into.checkpoints["final"] = "best" if best else "last"
    if (log := read.whole("logging_steps", f"{method}.log_every")) is not None:
        into.train["log_every"] = max(1, log)
    trackers = [tool for tool, key in (("wandb", "wandb_project"), ("mlflow", "mlflow_experiment_name"))
                if read.peek(key)]
    if trackers:
        into.train["log_to"] = trackers
        for key in ("wandb_project", "mlflow_experiment_name"):
            read.take(key, f"{method}.log_to", "the tracker; its project is its own environment variable")
    if read.peek("use_wandb") is not None:
        read.leave("use_wandb", "`log_to` says it")
