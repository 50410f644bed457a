"""Small tasks of lm-evaluation-harness over documents that a test writes: one of each output type."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from tests import small

TASKS: dict[str, dict[str, Any]] = {
    "choose": {"output_type": "multiple_choice", "doc_to_text": "Q: {{question}}\nA:", "doc_to_target": "gold",
               "doc_to_choice": "{{choices}}", "metadata": {"version": 1.5}},
    "say": {"output_type": "generate_until", "doc_to_text": "Q: {{question}}\nA: ",
            "doc_to_target": "{{choices[gold]}}",
            "generation_kwargs": {"until": ["e", "\n\n"], "max_gen_toks": 12, "do_sample": False},
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
            "filter_list": [{"name": "first-word", "filter": [{"function": "regex", "regex_pattern": "(\\w+)"},
                                                              {"function": "take_first"}]}]},
    "text": {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{passage}}"},
    "next": {"output_type": "loglikelihood", "doc_to_text": "{{question}}", "doc_to_target": " {{choices[0]}}"},
}


def write(folder: Path, count: int = 12, **more: dict[str, Any]) -> dict[str, Any]:
    """Task files and documents below `folder`; what a stage's `harness` says of them. Keys of `more` are put over a
    task's own, None takes one away."""
    tasks = folder / "tasks"
    tasks.mkdir(parents=True, exist_ok=True)
    documents = folder / "documents.jsonl"
    documents.write_text("".join(json.dumps({
        "question": row["question"], "passage": f"{row['passage']} " * (1 + index % 5),
        "choices": [row["answer"], f"{row['rejected']} or so"], "gold": index % 2,
    }) + "\n" for index, row in enumerate(small.rows(count))), encoding="utf-8")
    for name, config in {**TASKS, **{one: {} for one in more if one not in TASKS}}.items():
        whole = {"task": name, "dataset_path": "json", "test_split": "test", "num_fewshot": None, **config,
                 "dataset_kwargs": {"data_files": {"test": str(documents)}}, **more.get(name, {})}
        (tasks / f"{name}.yaml").write_text(
            yaml.safe_dump({key: value for key, value in whole.items() if value is not None}), encoding="utf-8")
    return {"tasks": list(TASKS), "include": str(tasks)}


def stage(harness: dict[str, Any], *models: str, **more: Any) -> dict[str, Any]:
    """An evaluate stage over them."""
    return {"name": "bench", "kind": "evaluate", "models": list(models or ["base"]), "bootstrap": 100,
            "batch_size": 5, "harness": harness, **more}
