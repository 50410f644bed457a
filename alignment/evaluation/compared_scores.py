"""Two evaluations by numbers that rows already have, compared row by row: tasks of lm-evaluation-harness (lines of
samples.jsonl) and judges of pairs (lines of pairs.jsonl).

Of the harness's metrics those that are means over documents; of a judge whether it is right, and whether it says what
the row says, ties among it. Pure, no files; `compared.py` is the same for answers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from alignment.config.harness import flat
from alignment.evaluation.compared import Compared, Comparison, common, same_rows
from alignment.evaluation.harness_table import is_mean
from alignment.evaluation.metrics import difference_ci, finite_mean

_RIGHT = {"completion": 1.0, "tie": 0.5, "rejected": 0.0}


@dataclass(frozen=True)
class Scores:
    """One model, or one judge, of one evaluation.

    Attributes:
        of: tasks or judges.
        label: how messages call it.
        lines: row id -> what has to be the same on both sides, by name.
        values: metric -> row id -> number.
        ways: metric -> higher, lower or neither: which is better.
        rules: metric -> what it was measured by, by name; metrics of unlike rules are not compared.
        unfit: metric -> why it cannot be compared at all.
        texts: row id -> what a person reads of a row: what was asked, what would be right.
        answers: row id -> what this side said.
    """

    of: Literal["tasks", "judges"]
    label: str
    model: str
    lines: Mapping[str, Mapping[str, Any]]
    values: Mapping[str, Mapping[str, float]]
    ways: Mapping[str, str]
    rules: Mapping[str, Mapping[str, Any]]
    unfit: Mapping[str, str]
    texts: Mapping[str, dict[str, Any]]
    answers: Mapping[str, Any]

    def told(self, row: str) -> dict[str, Any]:
        """What a person reads of a row, whoever answered."""
        return self.texts[row]

    def said(self, row: str) -> Any:
        """What this side said of it."""
        return self.answers[row]


def compare_scores(first: Scores, second: Scores, *, resamples: int = 2000, seed: int = 0) -> Comparison:
    """The second side against the first.

    Raises:
        DataError: no row in common; a row that has one id and is another.
    """
    rows, alone = common(first, second)
    same_rows(first, second, rows, tuple(first.lines[rows[0]]))
    made, left_out = [], dict[str, str]()
    for name, way in first.ways.items():
        if name not in second.ways:
            continue
        unlike = [f"{rule} is {said} and {second.rules[name].get(rule)}" for rule, said in first.rules[name].items()
                  if second.rules[name].get(rule) != said]
        values = {row: pair for row in rows if all(map(math.isfinite, pair := (
            first.values[name].get(row, math.nan), second.values[name].get(row, math.nan))))}
        if why := first.unfit.get(name) or second.unfit.get(name) or "; ".join(unlike):
            left_out[name] = why
        elif values:
            one, other = ([pair[side] for pair in values.values()] for side in (0, 1))
            difference = difference_ci(other, one, share=all(0 <= number <= 1 for number in (*one, *other)),
                                       resamples=resamples, seed=seed)
            made.append(Compared.counted(name, way, (finite_mean(one), finite_mean(other)), difference, values))
    return Comparison(rows, alone, tuple(made), left_out)


def of_tasks(label: str, model: str, lines: Sequence[Mapping[str, Any]], results: Mapping[str, Any],
             asked: Mapping[str, Any]) -> Scores:
    """One model of an evaluation by tasks of the harness; its metrics are `TASK.METRIC`.

    Args:
        lines: of samples.jsonl, of all models.
        results: results.json.
        asked: `harness` of the stage's config.
    """
    own = [line for line in lines if line["model"] == model]
    values, ways, rules, unfit = (dict[str, Any]() for _ in range(4))
    for line in own:
        for said, number in line["metrics"].items():
            if isinstance(number, int | float):
                values.setdefault(f"{line['task']}.{flat(said, line['filter'])}", {})[line["id"]] = float(number)
    for task, known in results["tasks"].items():
        shots = {"fewshot_seed": asked.get("fewshot_seed")} if known["num_fewshot"] else {}
        for metric, way in known["better"].items():
            name = f"{task}.{metric}"
            ways[name] = way
            rules[name] = {"task version": known["version"], "task config": known["config"][:12],
                           "num_fewshot": known["num_fewshot"], **shots, "lm_eval": results["lm_eval"],
                           **{key: asked.get(key) for key in ("apply_chat_template", "system_instruction")}}
            told = results["measured"][model][task].get(metric) or {}
            if not is_mean(values.setdefault(name, {}).values(), told.get("value")):
                unfit[name] = "it is no mean over documents"
    return Scores(
        of="tasks", label=label, model=model, lines={line["id"]: {"document": line["document"]} for line in own},
        values=values, ways=ways, rules=rules, unfit=unfit,
        texts={line["id"]: {"asked": line["requests"][0][0], "reference": line["target"]} for line in own},
        answers={line["id"]: line["filtered"] for line in own})


def of_judge(label: str, judge: str, lines: Sequence[Mapping[str, Any]]) -> Scores:
    """One judge of an evaluation of judges, by lines of pairs.jsonl."""
    said = {line["id"]: line["judges"][judge]["verdict"] for line in lines}
    labels = {line["id"]: line["label"] for line in lines}
    values = {
        "accuracy": {id_: _RIGHT[said[id_]] for id_, label in labels.items() if label != "tie" and said[id_]},
        "label_agreement": {id_: float(said[id_] == label) for id_, label in labels.items() if said[id_]},
    }
    if "tie" not in labels.values():
        del values["label_agreement"]  # the same once more, but for ties
    parts = ("prompt", "completion", "rejected", "label")
    return Scores(
        of="judges", label=label, model=judge,
        lines={line["id"]: {part: line[part] for part in parts} for line in lines}, values=values,
        ways=dict.fromkeys(values, "higher"), rules={name: {} for name in values}, unfit={},
        texts={line["id"]: {"asked": line["prompt"][-1]["content"], "completion": line["completion"],
                            "rejected": line["rejected"], "label": line["label"]} for line in lines}, answers=said)
