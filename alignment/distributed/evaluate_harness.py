"""An evaluate stage with `harness`: tasks of lm-evaluation-harness over files -> each model's answers -> a table.

Writes results.json (see `evaluation.harness_table`) and samples.jsonl (what each model was asked of each document, what
it said, and what that is worth). Models are asked one after the other, each in fixed batches (batches.py: here or on
workers, resumable). Launched by the pipeline or by ray_jobs/evaluate.py. Does not build prompts or measure: the harness
does, in `evaluation.harness`.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import metadata
from typing import Any

from alignment.artifacts import RowCounts
from alignment.config import EvaluateHarness
from alignment.context import Outcome, StageContext
from alignment.distributed.batches import make_parts, plan
from alignment.distributed.evaluate import write_lines
from alignment.errors import ConfigError
from alignment.evaluation.harness_asked import Asked, Conversation, HarnessAnswers, HarnessBatch
from alignment.evaluation.harness_table import flat_metrics, lines, table
from alignment.inference.plain import open_plain
from alignment.inference.usage import engine_facts


def evaluate_harness_stage(context: StageContext) -> Outcome:
    """Body of the stages of kind evaluate with `harness`; fills results.json and samples.jsonl in `context.out`.

    Returns:
        metrics: `MODEL.TASK.METRIC` with `_low` and `_high`, and `CHALLENGER_vs_BASELINE.TASK.METRIC_gain`;
        facts: lm_eval, tasks, timing, cut, undefined_metrics, who answered.

    Raises:
        ConfigError: the harness is not installed, or a task there is not or is not asked here, and why.
        DataError: a task's documents cannot be read, or it cannot be measured.
        WorkersLost: workers died too often.
    """
    stage = context.stage_as(EvaluateHarness)
    try:
        from alignment.evaluation import harness
    except ModuleNotFoundError as error:
        raise ConfigError(f"lm-evaluation-harness is not installed: {error}", where=f"stage {stage.name}, harness",
                          expected="the extra harness", hint="pip install 'kubealign[harness]'") from error
    folder = context.work / "tasks"
    shutil.rmtree(folder, ignore_errors=True)  # of an attempt that was killed
    tasks = harness.load(stage.harness, folder, f"stage {stage.name}, harness.tasks")
    limit = context.run.scaled(stage.harness.limit)
    made, asked = {}, {}
    for name in stage.models:
        asked[name] = _Model(context, stage, name)
        made[name] = harness.asked_of(stage, tasks, harness.Asking(
            name, asked[name].answered, asked[name].conversation, context.run.seed), limit)
        context.event("answers", model=name, **asked[name].told())
    told = {name: {"output_type": task.OUTPUT_TYPE, "config": harness.config_hash(task)}
            for name, task in tasks.items()}
    results = {"lm_eval": metadata.version("lm_eval"), **table(stage, made, told, context.run.seed)}
    (context.out / "results.json").write_text(
        json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    written = write_lines(context.out / "samples.jsonl", (line for name, own in made.items()
                                                          for line in lines(name, own)))
    shutil.rmtree(folder, ignore_errors=True)
    metrics, undefined = flat_metrics(results)
    documents = sum(one["documents"] for one in results["tasks"].values())
    return Outcome(RowCounts(read=documents, written={"samples": written}), metrics, {
        "lm_eval": results["lm_eval"],
        "tasks": {name: {key: one[key] for key in ("version", "config", "documents", "of", "num_fewshot")}
                  for name, one in results["tasks"].items()},
        "timing": {name: {"seconds": own.seconds} for name, own in asked.items()},
        "cut": {name: dict(own.cut) for name, own in asked.items() if own.cut},
        "undefined_metrics": undefined,
        **engine_facts({name: own.engines for name, own in asked.items()}),
    })


class _Model:
    """A model of the stage, asked in batches; keeps what that took.

    Attributes:
        cut: task -> requests of which tokens at the left were left out.
    """

    def __init__(self, context: StageContext, stage: EvaluateHarness, name: str) -> None:
        self.context, self.stage, self.name = context, stage, name
        self.plain = open_plain(context, name)  # its tokenizer alone: weights are loaded where batches are made
        self.seconds, self.requests, self.reused = 0.0, 0, 0
        self.cut: Counter[str] = Counter()
        self.engines: list[dict[str, Any]] = []

    def conversation(self, messages: list[Any]) -> Conversation:
        """A prompt in the model's template."""
        return Conversation(self.plain.shown(self.plain.prompt(messages)), messages)

    def answered(self, asked: list[Asked]) -> Mapping[str, Any]:
        """Answers to requests of one kind, by id."""
        kind = asked[0].kind
        parts = make_parts(self.context, plan(self.context, batches(asked, self.stage.batch_size)),
                           partial(HarnessBatch, name=self.name), HarnessAnswers, folder=f"{kind}s-{self.name}",
                           label=f"{self.stage.name}: {kind}s by {self.name}", unit="requests")
        answers: dict[str, Any] = {}
        for part in parts:
            answers |= part.answers
            self.cut.update(id_.rsplit("/", 3)[0] for id_ in part.cut)
            self.seconds = round(self.seconds + part.seconds, 3)
            self.engines += [part.made_by] if part.made_by not in self.engines else []
        self.requests, self.reused = self.requests + len(asked), self.reused + parts.reused
        return answers

    def told(self) -> dict[str, Any]:
        """For the event."""
        return {"requests": self.requests, "reused": self.reused, "seconds": self.seconds, "cut": dict(self.cut)}


def batches(asked: Sequence[Asked], size: int) -> list[list[Asked]]:
    """Batches of requests of similar length, the longest first; those with one context stand together, since it is read
    once."""
    ordered = sorted(asked, key=lambda one: (-len(one.context) or -len(one.text), one.context, one.id))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]
