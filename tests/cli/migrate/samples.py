"""Training files as users of other tools have them, and where in a run a key of ours stands."""

from __future__ import annotations

import re
from typing import Any

LLAMA_FACTORY = {
    "model_name_or_path": "Qwen/Qwen2.5-0.5B-Instruct", "trust_remote_code": False, "stage": "sft", "do_train": True,
    "finetuning_type": "lora", "lora_rank": 8, "lora_alpha": 32, "lora_dropout": 0.05, "lora_target": "q_proj,v_proj",
    "quantization_bit": 4, "dataset": "harbour_chat,harbour_tasks", "dataset_dir": "data", "template": "qwen",
    "cutoff_len": 1536, "max_samples": 500, "overwrite_cache": True, "preprocessing_num_workers": 4,
    "output_dir": "saves/harbour", "logging_steps": 10, "save_steps": 100, "save_total_limit": 3, "plot_loss": True,
    "report_to": "tensorboard", "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4,
    "learning_rate": 1e-4, "num_train_epochs": 2.5, "lr_scheduler_type": "cosine", "warmup_ratio": 0.1, "bf16": True,
    "weight_decay": 0.01, "max_grad_norm": 0.5, "seed": 7, "val_size": 0.05, "per_device_eval_batch_size": 1,
    "eval_strategy": "steps", "eval_steps": 100, "load_best_model_at_end": True, "ddp_timeout": 180000000,
    "packing": False, "train_on_prompt": False, "flash_attn": "auto", "deepspeed": "ds_z3_config.json",
}
INFOS = {
    "harbour_chat": {"file_name": "chat.json", "formatting": "sharegpt", "columns": {"messages": "conversations"}},
    "harbour_tasks": {"file_name": "tasks.jsonl"},
    "harbour_openai": {"file_name": "openai.json", "formatting": "sharegpt", "columns": {"messages": "messages"},
                       "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user",
                                "assistant_tag": "assistant", "system_tag": "system"}},
    "harbour_pairs": {"file_name": "pairs.json", "formatting": "sharegpt", "ranking": True,
                      "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}},
    "alpaca_pairs": {"file_name": "pairs.jsonl", "ranking": True,
                     "columns": {"prompt": "ask", "chosen": "good", "rejected": "poor"}},
    "harbour_kto": {"file_name": "kto.json", "columns": {"prompt": "ask", "response": "said", "kto_tag": "wanted"}},
    "harbour_hub": {"hf_hub_url": "some/harbour", "subset": "en", "columns": {"prompt": "ask", "response": "said"}},
    "harbour_script": {"script_url": "script"}, "harbour_ms": {"ms_hub_url": "some/where"},
    "harbour_seen": {"file_name": "seen.json", "columns": {"prompt": "ask", "images": "images"}},
    "harbour_turns": {"file_name": "turns.json", "formatting": "sharegpt", "tags": {"role_tag": "who"}},
}
AXOLOTL = {
    "base_model": "HuggingFaceTB/SmolLM2-135M", "load_in_8bit": False, "load_in_4bit": True, "strict": False,
    "chat_template": "chatml", "datasets": [
        {"path": "some/chats", "type": "chat_template", "split": "train[:10%]", "field_messages": "conversations",
         "message_property_mappings": {"role": "from", "content": "value"}, "roles_to_train": ["assistant"],
         "train_on_eos": "turn"},
        {"path": "data/more.jsonl", "ds_type": "json", "type": "chat_template"},
        {"path": "data/odd.jsonl", "type": "input_output"}],
    "val_set_size": 0.05, "output_dir": "./out", "adapter": "qlora", "lora_r": 16, "lora_alpha": 32,
    "lora_dropout": 0.05, "lora_target_linear": True, "sequence_len": 2048, "sample_packing": True,
    "pad_to_sequence_len": True, "wandb_project": None, "gradient_accumulation_steps": 4, "micro_batch_size": 2,
    "num_epochs": 3, "optimizer": "adamw_torch", "lr_scheduler": "cosine", "learning_rate": 2e-4, "bf16": "auto",
    "tf32": False, "gradient_checkpointing": True, "logging_steps": 1, "flash_attention": True, "warmup_steps": 10,
    "evals_per_epoch": 4, "saves_per_epoch": 1, "weight_decay": 0.0, "train_on_inputs": False,
    "special_tokens": {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"}, "deepspeed": "deepspeed/zero2.json",
}
TRL = {
    "model_name_or_path": "Qwen/Qwen2.5-0.5B", "model_revision": "v1", "dtype": "bfloat16", "use_peft": True,
    "lora_r": 32, "lora_alpha": 16, "lora_target_modules": ["q_proj", "k_proj"], "dataset_name": "some/pairs",
    "dataset_config": "en", "dataset_train_split": "train_prefs", "dataset_test_split": "test_prefs",
    "dataset_streaming": False, "beta": 0.05, "loss_type": "ipo", "max_length": 900, "learning_rate": 5e-6,
    "num_train_epochs": 1, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "logging_steps": 5,
    "eval_strategy": "steps", "eval_steps": 50, "save_steps": 100, "warmup_ratio": 0.1, "bf16": True,
    "gradient_checkpointing": True, "report_to": "none", "output_dir": "out", "push_to_hub": False, "no_such_key": 1,
}


def stands(run: dict[str, Any], place: str) -> bool:
    """Whether a run has a value where a report says that a key was carried to: STAGE.KEY..., or KEY..."""
    first, *rest = re.split(r"\.", place)
    stages = {stage["name"]: stage for stage in run["stages"]}
    nodes: list[Any] = [stages[first]] if first in stages else [run.get(first)]
    for part in rest:
        found = [item for node in nodes for item in (node if isinstance(node, list) else [node])]
        nodes = [item[part] for item in found if isinstance(item, dict) and part in item]
    return any(node is not None for node in nodes)
