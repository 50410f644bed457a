"""One side of a comparison, alone in its process: a train stage of ours, or TRL's trainer by itself.

    python -m benchmarks.gpu.side OPTIONS     # JSON, as __main__ gives it

Prints one line of JSON: seconds of each step, tokens of a step, peak memory in bytes.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch


def peak() -> dict[str, int]:
    """Bytes at the peak: of the device, as PyTorch's allocator took them from it; without one, of the process."""
    if torch.cuda.is_available():
        return {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
    return {"resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def prepare(options: dict[str, Any]) -> dict[str, Any]:
    """What the stage reads, imported."""
    from alignment.config import load_run
    from alignment.pipeline import execute

    run = load_run(Path(options["file"]))
    artifacts = [execute(run, only=name).artifacts[name] for name in ("base", "data")]
    assert artifacts[0] is not None
    return {"model": str(artifacts[0].path() / "model")}


def ours(options: dict[str, Any]) -> dict[str, Any]:
    """The stage as `kubealign run` makes it; its inputs are finished."""
    from alignment.config import load_run
    from alignment.pipeline import execute, status
    from alignment.planner import Rates, plan

    run, name = load_run(Path(options["file"])), str(options["stage"])
    if status(run)[name] is not None:
        raise SystemExit(f"{name} is finished already, so nothing would be measured")
    memory = next(item.memory for item in plan(run, status(run), Rates(1.0, 1.0)) if item.name == name)
    artifact = execute(run, only=name).artifacts[name]
    assert artifact is not None
    lines = (artifact.path() / "events.jsonl").read_text(encoding="utf-8").splitlines()
    times = [entry["time"] for entry in map(json.loads, lines) if entry["event"] == "train"]
    facts = artifact.manifest.facts
    return {"seconds": [later - earlier for earlier, later in pairwise(times)],
            "row_tokens": facts["mean_length"], "planned": None if memory is None else memory.total,
            "parameters": facts["parameters"]}


def trl(options: dict[str, Any]) -> dict[str, Any]:
    """TRL's trainer on the same model and rows, as its documentation shows it."""
    import trl as library
    from datasets import Dataset
    from peft import LoraConfig, prepare_model_for_kbit_training
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        BitsAndBytesConfig,
        TrainerCallback,
    )

    method, on_gpu = options["method"], torch.cuda.is_available()
    tokenizer = AutoTokenizer.from_pretrained(options["model"])
    auto = AutoModelForSequenceClassification if method == "reward" else AutoModelForCausalLM
    given: dict[str, Any] = {"num_labels": 1} if method == "reward" else {}
    if options["quantised"]:
        given["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16)
    model = auto.from_pretrained(options["model"], dtype=torch.bfloat16, **given,
                                 **({"device_map": {"": 0}} if on_gpu else {}))
    model.config.pad_token_id = tokenizer.pad_token_id
    if options["quantised"]:
        model = prepare_model_for_kbit_training(model)
    names = {"sft": "SFT", "dpo": "DPO", "reward": "Reward"}
    config, trainer_class = getattr(library, f"{names[method]}Config"), getattr(library, f"{names[method]}Trainer")
    arguments = config(
        output_dir=options["out"], per_device_train_batch_size=options["rows"], max_steps=options["steps"],
        learning_rate=1e-4, bf16=on_gpu, use_cpu=not on_gpu, report_to="none", disable_tqdm=True, logging_steps=1,
        save_strategy="no", max_length=options["length"], **options["extra"])
    rows = [json.loads(line) for line in Path(options["data"]).read_text(encoding="utf-8").splitlines()]
    times: list[float] = []

    class Times(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            if on_gpu:
                torch.cuda.synchronize()
            times.append(time.time())

    task = "SEQ_CLS" if method == "reward" else "CAUSAL_LM"
    trainer = trainer_class(
        model=model, args=arguments, processing_class=tokenizer, train_dataset=Dataset.from_list(rows),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type=task,
                               modules_to_save=["score"] if method == "reward" else None),
        callbacks=[Times()])
    trainer.train()
    return {"seconds": [later - earlier for earlier, later in pairwise(times)]}


def main() -> int:
    options = json.loads(sys.argv[1])
    if options.get("cap") and torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, options["cap"] * 2**30 / total))
    result = {"prepare": prepare, "ours": ours, "trl": trl}[options["side"]](options)
    print(json.dumps(result | {"peak": peak()}), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
