"""Files of TRL's command line, `trl sft --config FILE` and its kin (trl/scripts/utils.py, trainer/model_config.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alignment.cli.migrate.arguments import arguments, passed
from alignment.cli.migrate.carried import Reading
from alignment.cli.migrate.target import Target, base_model, left
from alignment.config.stages import METHODS
from alignment.errors import ConfigError

TOOL = "TRL"
OURS = ("sft", "reward", "dpo", "kto", "orpo")
"""Methods that a file can become."""
_OF_ONE = {
    "sft": ("packing", "packing_strategy", "completion_only_loss", "assistant_only_loss", "dataset_text_field",
            "eval_packing", "padding_free"),
    "dpo": ("loss_weights", "precompute_ref_log_probs", "f_divergence_type", "label_smoothing", "ld_alpha"),
    "kto": ("desirable_weight", "undesirable_weight"), "reward": ("center_rewards_coefficient",),
    "grpo": ("num_generations", "reward_funcs", "reward_model_name_or_path"),
}
"""Method -> keys that no other method's file has."""
_ROWS = {"sft": "messages", "reward": "preference", "dpo": "preference", "kto": "unpaired", "orpo": "preference"}
_LEFT = {
    **dict.fromkeys(("attn_implementation", "ignore_bias_buffers", "use_liger_kernel", "padding_free",
                     "pad_to_multiple_of", "eval_packing", "packing_strategy", "dataset_num_proc",
                     "activation_offloading", "gradient_checkpointing", "gradient_checkpointing_kwargs",
                     "torch_compile", "bnb_4bit_quant_storage"),
                    "says how it is computed, and follows from the hardware here"),
    **dict.fromkeys(("use_dora", "use_rslora", "lora_target_parameters"),
                    "adapters here are plain LoRA: others learn otherwise"),
    **dict.fromkeys(("bnb_4bit_quant_type", "use_bnb_nested_quant"), "qlora rounds to NF4 with double quantisation"),
    "lora_task_type": "follows from the method", "dataset_text_field": "rows are conversations, not plain text",
    "chat_template_path": "`template` of the base names a shipped one; a model's own may be in its folder",
    "eos_token": "the chat template says where a turn ends", "pad_token": "`pad_token` of the base",
    "env": "the environment is the shell's",
}
"""Keys that are not carried -> why."""


def migrate(read: Reading, into: Target, *, given: Mapping[str, Any], processes: int, method: str | None,
            deepspeed: Mapping[str, Any] | None) -> None:
    """Fill in a run from the keys of a file. Raises ConfigError as llama_factory.migrate does.

    Args:
        method: what `trl` was called with; a file does not say it.
    """
    into.method = _method(given, method)
    base_model(read, into, "model_name_or_path", "model_revision")
    _strategy(read, into)
    _datasets(read, into, given)
    _loss(read, into)
    kind = next(kind for kind in METHODS if kind.tag == into.method)
    note = "a longer row is dropped and counted (`too_long`); TRL cuts its end"
    if (length := read.whole("max_length", f"{into.method}.max_length", note)) is not None:
        into.train["max_length"] = length
    for key in ("dtype", "torch_dtype"):
        if read.peek(key) in ("float32", "bfloat16"):
            into.train["dtype"] = read.take(key, f"{into.method}.dtype")
        else:
            read.leave(key, "arithmetic is float32 or bfloat16 (`compute.dtype`)")
    if into.train.get("dtype") and "bf16" in read:
        read.leave("bf16", "dtype says it")
    arguments(read, into, TOOL, {"learning_rate": kind.rates[0], "num_train_epochs": 3.0,
                                 "per_device_train_batch_size": 8}, processes=processes, deepspeed=deepspeed)
    left(read, _LEFT)
    passed(read, into)


def _method(given: Mapping[str, Any], asked: str | None) -> str:
    found = [method for method, keys in _OF_ONE.items() if any(given.get(key) is not None for key in keys)]
    method = asked or (found[0] if len(found) == 1 else None)
    if method is None:
        raise ConfigError("a file of TRL does not say what it is for", where="--method",
                          found=f"keys of {', '.join(found)}" if found else "keys that every trainer has",
                          expected="one of " + ", ".join(OURS),
                          hint="what `trl` was called with: trl sft --config FILE")
    if method not in OURS:
        raise ConfigError("its rewards cannot be carried: functions here judge one row and one answer",
                          where="--method", found=method, expected="one of " + ", ".join(OURS),
                          hint="docs/online.md shows a stage of method grpo, rloo or ppo")
    return method


def _strategy(read: Reading, into: Target) -> None:
    peft = read.flag("use_peft", "strategy.kind")
    if not peft:
        if peft is None:
            into.said.append("strategy: full, since use_peft is false in TRL where it is left out")
        for path in [*read.left("lora_"), *read.left("load_in_")]:
            read.leave(path, "all weights are trained: use_peft is not set")
        into.strategy = {"kind": "full"}
        return
    four = read.flag("load_in_4bit", "strategy.kind", "qlora: NF4, double quantisation")
    read.leave("load_in_8bit", "a base is quantised to four bits (qlora) or not at all")
    dropout = read.number("lora_dropout", "strategy.dropout")
    if dropout is None:
        into.said.append("strategy.dropout: 0.05, the default of TRL")
    into.strategy = {"kind": "qlora" if four else "lora", "r": read.whole("lora_r", "strategy.r") or 16,
                     "alpha": read.whole("lora_alpha", "strategy.alpha") or 32,
                     "dropout": 0.05 if dropout is None else dropout}
    targets = read.words("lora_target_modules", "strategy.targets")
    into.strategy["targets"] = "all-linear" if targets in ([], ["all-linear"]) else targets
    if not targets:
        into.said.append("strategy.targets: all-linear; TRL leaves it to PEFT, which takes a few layers by the model's "
                         "family")
    if saved := read.words("lora_modules_to_save", "strategy.modules_to_save"):
        into.strategy["modules_to_save"] = saved


def _datasets(read: Reading, into: Target, given: Mapping[str, Any]) -> None:
    form = "prompt-completion" if read.peek("completion_only_loss") else _ROWS[into.method]
    streaming = read.flag("dataset_streaming", "data.data.streaming")
    named = read.word("dataset_name", "data.data.hub")
    measured = read.peek("eval_strategy") not in (None, "no", False)
    if named:
        place = _place(named)
        more: dict[str, Any] = {"config": read.word("dataset_config", "data.data.config")}
        split = read.word("dataset_train_split", "data.data.split") or "train"
        test = read.peek("dataset_test_split") or "test"
        if "path" in place:
            read.correct("dataset_name", "data.data.path", "a file: where it is a folder, name its file")
            into.sources.append({**place, "format": form})
        else:
            more = {key: value for key, value in more.items() if value} | (
                {} if streaming is None else {"streaming": streaming})
            into.sources.append({**place, **more, "split": split, "format": form})
            if measured:
                into.held_sources.append({**place, **more, "split": str(test), "format": form})
    if measured and into.held_sources:
        read.take("dataset_test_split", "held.data.split")
    else:
        read.leave("dataset_test_split", "nothing is measured while it trains: eval_strategy is not set")
    mixed = read.flag("streaming", "data.data.streaming")
    for index, entry in enumerate(given["datasets"] if isinstance(given.get("datasets"), list) else []):
        _mixed(read, into, f"datasets[{index}]", entry if isinstance(entry, Mapping) else {}, form, mixed)
    held = read.number("test_split_size", "data.split.ratios.dev")
    if held is not None and 0 < held < 1:
        into.held = held
    if into.sources:
        into.said.append(f"data.data.format: {form}, by the method; `kubealign data show FILE` finds what a file is")


def _place(named: str) -> dict[str, Any]:
    parts = named.strip("/").split("/")
    if named.startswith(("/", "./", "../", "~")) or "://" in named or len(parts) != 2:
        return {"path": named}
    return {"hub": named}


def _mixed(
    read: Reading, into: Target, at: str, entry: Mapping[str, Any], form: str, streaming: bool | None
) -> None:
    """One data set of a mixture."""
    path, files = str(entry.get("path") or ""), entry.get("data_files")
    if entry.get("data_dir") is not None:
        for each in read.left(f"{at}."):
            read.leave(each, "a folder of a data set is no source: name its file as path")
        return
    for key, why in (("fraction", "`take` of a source draws rows"), ("columns", "`columns` of a source maps them")):
        for each in read.left(f"{at}.{key}"):
            read.leave(each, why)
    if isinstance(files, str) and path:
        read.take(f"{at}.data_files", "data.data.path")
        read.take(f"{at}.path", "data.data.path", "data_files names the file")
        read.leave(f"{at}.split", "a file has no splits")
        into.sources.append({"path": files, "format": form})
    elif path and files is None and "hub" in (place := _place(path)):
        read.take(f"{at}.path", "data.data.hub")
        config = read.take(f"{at}.name", "data.data.config")
        split = read.take(f"{at}.split", "data.data.split") or "train"
        into.sources.append({**place, **({"config": str(config)} if config else {}), "split": str(split),
                             **({} if streaming is None else {"streaming": streaming}), "format": form})
    else:
        for each in read.left(f"{at}."):
            read.leave(each, "a source is one file (path), or a data set of the hub by its name")


def _loss(read: Reading, into: Target) -> None:
    if into.method != "sft":
        return
    assistant = read.flag("assistant_only_loss", "sft.loss", "assistant: every turn of the assistant")
    completion = read.flag("completion_only_loss", "sft.loss", "completion: the answer alone, ours by default")
    if (packing := read.flag("packing", "sft.packing")) is not None:
        into.train["packing"] = packing
    into.train["loss"] = "assistant" if assistant else "completion" if completion else "all"
    if into.train["loss"] == "all":
        into.said.append("loss: all, as TRL learns whole conversations; rows of prompt and completion it learns by "
                         "their completion: for such write format prompt-completion and loss completion")
