"""What of TRL's configs the methods do not read: keys that do nothing here, and losses of DPO that pass over a key.

TRL 1.16 takes every key with every loss and reads few of them: `label_smoothing` beside `sigmoid`, which smoothed in
earlier releases, does nothing. What would do nothing is refused here, and what TRL refuses once the model is loaded.
From trl/trainer/dpo_trainer.py, `__init__` and `_compute_loss`; a test compares the names with it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

Found = Iterator[tuple[str, str, object, str]]
"""(key, problem, found, expected)."""
WITHOUT_SYNC = dict.fromkeys(
    ("sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps"),
    "nothing: the reference is frozen; reference_model names another, and a group of rounds moves it")
"""Key of a TRL config that would do nothing here, or cannot be honoured -> what to do instead. As all of these."""
UNUSED_BY_DPO = {**WITHOUT_SYNC, "padding_free": "nothing: TRL's DPO pads, whatever it says"}
UNUSED_BY_ORPO = {
    **dict.fromkeys(("padding_value", "max_completion_length"),
                    "nothing: rows come tokenized, and are padded with the model's own pad token"),
    "is_encoder_decoder": "nothing: policies are decoders",
    "generate_during_eval": "an evaluate or sample stage after it",
}
UNUSED_BY_DISTILL = {
    **dict.fromkeys(
        ("top_p", "top_k", "min_p", "repetition_penalty", "generation_kwargs", "cache_implementation", "use_vllm",
         "vllm_mode", "vllm_model_impl", "vllm_enable_sleep_mode", "vllm_structured_outputs_regex",
         "vllm_server_base_url", "vllm_server_host", "vllm_server_port", "vllm_server_timeout", "vllm_group_port",
         "vllm_gpu_memory_utilization", "vllm_max_model_length", "vllm_tensor_parallel_size", "max_completion_length",
         "max_tool_calling_iterations", "chat_template_kwargs", "log_completions", "num_completions_to_print",
         "log_unique_prompts", "ds3_gather_for_generation"),
        "a sample stage before it: distill generates nothing, it learns from the answers of its rows"),
    **dict.fromkeys(("teacher_model_name_or_path", "teacher_model_revision", "teacher_model_init_kwargs"),
                    "teacher: STAGE"),
    "shuffle_dataset": "train_sampling_strategy", "pad_to_multiple_of": "nothing: rows are padded to the longest",
}
LOSSES = ("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
          "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm")
"""Values of `loss_type`."""
SORTED = ("aot", "aot_unpaired")
"""Losses that sort the rows of one forward pass, so that it needs several."""
DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")
"""Values of `f_divergence_type`."""
DIFFERENCES = frozenset({"sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft"})
"""Losses of the difference of two rewards, for which another divergence has a meaning."""
READ_BY = {"label_smoothing": ("exo_pair", "robust", *SORTED), "discopop_tau": ("discopop",)}
"""Key -> the losses that read it."""


def dpo_losses(given: Mapping[str, Any]) -> tuple[str, ...]:
    """The losses that `trl: {loss_type: ...}` names; TRL's default where it names none."""
    types = given.get("loss_type", "sigmoid")
    return (types,) if isinstance(types, str) else tuple(types) if isinstance(types, list) else ()


def rows_of_a_pass_count(given: Mapping[str, Any]) -> Literal["sorted", "mean"] | None:
    """How the loss of a row depends on which others share its forward pass: they are sorted together, or tokens are
    averaged over all (the sft term); None where it does not."""
    losses = dpo_losses(given)
    return "sorted" if set(losses) & set(SORTED) else "mean" if "sft" in losses else None


def dpo_findings(given: Mapping[str, Any]) -> Found:
    """Combinations that fail, or in which a key does nothing."""
    losses = dpo_losses(given)
    if not losses and isinstance(given.get("loss_type"), list):
        yield "loss_type", "names no loss", [], "one or more of " + ", ".join(LOSSES)
        return
    if len(set(losses)) < len(losses):
        yield "loss_type", "names a loss twice", list(losses), "each once; loss_weights weighs them"
    yield from _weights(given)
    for key, readers in READ_BY.items():
        if given.get(key) and not set(losses) & set(readers):
            yield key, f"no loss of this stage reads it ({', '.join(losses)})", given[key], (
                f"loss_type {', '.join(readers)}; or without this key")
    smoothing = given.get("label_smoothing", 0.0)
    if isinstance(smoothing, int | float):
        if "exo_pair" in losses and smoothing == 0:
            yield "loss_type", "exo_pair needs a label_smoothing over 0", "exo_pair", (
                "label_smoothing: 1e-3, which its paper recommends")
        if "robust" in losses and smoothing >= 0.5:
            yield "label_smoothing", "robust divides by 1 - 2 * label_smoothing", smoothing, "under 0.5"
    if given.get("use_weighting") and set(losses) & set(SORTED):
        yield "use_weighting", "weights belong to pairs, and aot sorts them apart", True, "another loss, or false"
    yield from _divergence(given, losses)


def _weights(given: Mapping[str, Any]) -> Found:
    weights = given.get("loss_weights")
    if not isinstance(weights, list):
        return
    numbers = [weight for weight in weights if isinstance(weight, int | float) and not isinstance(weight, bool)]
    if len(numbers) < len(weights) or any(weight < 0 for weight in numbers):
        yield "loss_weights", "not weights", weights, "numbers, 0 or more"
    elif not any(numbers):
        yield "loss_weights", "leave nothing to learn", weights, "a weight over 0"


def _divergence(given: Mapping[str, Any], losses: tuple[str, ...]) -> Found:
    kind = given.get("f_divergence_type", "reverse_kl")
    if kind not in DIVERGENCES:
        yield "f_divergence_type", "TRL has no such divergence", kind, "one of " + ", ".join(DIVERGENCES)
    elif kind != "reverse_kl" and (other := sorted(set(losses) & set(LOSSES) - DIFFERENCES)):
        yield "f_divergence_type", f"has no meaning for the loss {', '.join(other)}", kind, (
            f"reverse_kl, or losses of {', '.join(name for name in LOSSES if name in DIFFERENCES)}")
    if "f_alpha_divergence_coef" in given and kind != "alpha_divergence":
        yield ("f_alpha_divergence_coef", f"is not read for f_divergence_type {kind}",
               given["f_alpha_divergence_coef"], "f_divergence_type: alpha_divergence; or without this key")
