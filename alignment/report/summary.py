"""What a run came to, in a sentence and in a few numbers; and each stage in the few words of its box.

Every statement is computed from manifests and results; one that the data does not carry is not made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignment.artifacts import Artifact
from alignment.config import Run, Verdict
from alignment.config.stages.base import plural
from alignment.report.chain import StageText
from alignment.report.format import duration, interval, is_number, metric, number, side
from alignment.report.reading import Artifacts, measured_by, unneeded_of
from alignment.report.results import METRICS, change, columns_of, is_free_text, models_of

Values = Mapping[str, Any]
Results = Mapping[str, Mapping[str, Any]]
"""Content of results.json by evaluate stage."""
LEADING = ("exact_match", "f1", "style", "reward")
"""The headline is about the first of these that both ends of the chain have; where metrics are named, of those."""
LEADING_FREE_TEXT = ("f1", "rouge_l", "style", "reward")
NOT_TAKEN = ("not taken", "not-taken")
"""Reasons of rows that were left out because no more were asked for."""


@dataclass(frozen=True)
class Tile:
    """One number of the page's head. `tone`: good, bad or plain."""

    label: str
    value: str
    note: str
    tone: str = "plain"


def rows_text(artifact: Artifact) -> str:
    """`600 → 480 train, 91 test`; of a model without rows its parameters."""
    rows = artifact.manifest.rows
    parameters = artifact.manifest.facts.get("parameters", artifact.manifest.metrics.get("parameters"))
    if not rows.read and not rows.written:
        return f"{count(parameters)} parameters" if is_number(parameters) else ""
    # Every sampled answer is in `samples`; what goes on down the chain are the other two.
    written = ", ".join(f"{many:,} {name}" for name, many in rows.written.items() if name != "samples")
    return f"{rows.read:,} → {written}" if written else f"{rows.read:,} rows read"


def not_taken(dropped: Mapping[str, int]) -> int:
    """How many rows `take` left out."""
    return sum(dropped.get(reason, 0) for reason in NOT_TAKEN)


def left_out(dropped: Mapping[str, int]) -> str:
    """{"prompt over max_prompt_tokens": 57, "not taken": 9} -> `57 left out (prompt over max_prompt_tokens)`; of
    several reasons the two that most rows have, each with its count. Nothing where no row is."""
    reasons = Counter({reason: count for reason, count in dropped.items() if count and reason not in NOT_TAKEN})
    if not reasons:
        return ""
    most = [reason if len(reasons) == 1 else f"{count} {reason}" for reason, count in reasons.most_common(2)]
    return f"{reasons.total()} left out ({', '.join([*most, '...'] if len(reasons) > 2 else most)})"


def count(value: float) -> str:
    """1234567 -> `1.23 M`."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return number(value)


def stage_text(title: str, artifact: Artifact | None, *, needed: bool = True) -> StageText:
    if artifact is None:
        return StageText(title, "not finished" if needed else "not needed", "", "", done=False)
    manifest = artifact.manifest
    return StageText(title, rows_text(artifact), manifest.digest[:8], duration(manifest.seconds), done=True)


def total_seconds(artifacts: Artifacts) -> float:
    """Time spent in all finished stages, whenever they were made."""
    return sum(artifact.manifest.seconds for artifact in artifacts.values() if artifact is not None)


def aims_sentence(verdicts: Sequence[Verdict]) -> str:
    """`3 of 4 aims met, 1 missed.`; nothing for a run without aims."""
    if not verdicts:
        return ""
    met, missed, unknown = (sum(v.met is state for v in verdicts) for state in (True, False, None))
    parts = [f"{met} of {plural(len(verdicts), 'aim')} met"]
    parts += [f"{missed} missed"] if missed else []
    parts += [f"{unknown} not known yet"] if unknown else []
    return ", ".join(parts) + "."


def headline(run: Run, artifacts: Artifacts, results: Results, verdicts: Sequence[Verdict]) -> str:
    """One or two sentences: what changed from the first model to the last, on how many rows, and the aims."""
    finished = sum(artifacts.get(stage.name) is not None for stage in run.stages)
    spared = len(unneeded_of(run, artifacts))
    sentences = []
    if results:
        name, result = _last(results)
        artifact = artifacts.get(name)
        left = not_taken(artifact.manifest.rows.dropped) if artifact is not None else 0
        sentences.append(_judges(result) if "judges" in result else _tasks(result) if "tasks" in result else
                         _change(result, measured_by(run.stage(name)), left))
    elif finished + spared == len(run.stages):
        sentences.append(f"All {plural(finished, 'stage')} finished; this run evaluates no model.")
    if finished + spared < len(run.stages):
        sentences.append(f"{finished} of {plural(len(run.stages), 'stage')} finished.")
    if spared:
        sentences.append(f"{plural(spared, 'stage')} of further rounds not needed.")
    return " ".join(part for part in [*sentences, aims_sentence(verdicts)] if part)


def _last(results: Results) -> tuple[str, Values]:
    """The last stage that measures models by rows; else by tasks; else the last that measures judges."""
    tasks = [item for item in results.items() if "judges" not in item[1]]
    return ([item for item in tasks if "tasks" not in item[1]] or tasks or list(results.items()))[-1]


def _tasks(result: Values) -> str:
    """`boolq: acc from 0.52 to 0.61 on 200 documents.`, by each task's first metric."""
    models = list(result["measured"])
    first, last, told = models[0], models[-1], []
    for task, facts in result["tasks"].items():
        name = next(iter(facts["better"]), "")
        values = [(result["measured"][model][task].get(name) or {}).get("value") for model in (first, last)]
        if all(map(is_number, values)):
            change = f"from {number(values[0], 3)} to {number(values[1], 3)}" if first != last else number(values[0], 3)
            told.append(f"{task}: {name} {change} on {plural(int(facts['documents']), 'document')}")
    return f"{'; '.join(told)}." if told else ""


def _judges(result: Values) -> str:
    """`rm is right on 0.71 [0.60, 0.80], brevity on 0.52 [0.40, 0.63] of 80 held-out pairs.`"""
    told = [f"{name} {'is right ' if at == 0 else ''}on {metric('accuracy', line['accuracy']['value'])} "
            f"{interval('accuracy', line['accuracy']['low'], line['accuracy']['high'])}".rstrip()
            for at, (name, line) in enumerate(result["judges"].items()) if is_number(line["accuracy"]["value"])]
    return f"{', '.join(told)} of {plural(int(result['preferences']), 'held-out pair')}." if told else ""


def leading(result: Values, models: Sequence[str]) -> tuple[str, Values, Values] | None:
    """(metric, values of the first model, of the last) of the first leading metric that both have; one in which both
    have nothing only where there is no other."""
    nothing: tuple[str, Values, Values] | None = None
    measured = models_of(result, models)
    usual = LEADING_FREE_TEXT if is_free_text(result) else LEADING
    named = [name for name in columns_of(result) if METRICS[name][1]] if result.get("columns") else usual
    for name in named if measured else ():
        first, last = (result["models"][model].get(name) or {} for model in (measured[0], measured[-1]))
        if is_number(first.get("value")) and is_number(last.get("value")):
            if first["value"] or last["value"]:
                return name, first, last
            nothing = nothing or (name, first, last)
    return nothing


def _difference(result: Values, challenger: str, baseline: str, name: str) -> Values | None:
    wanted = {"challenger": challenger, "baseline": baseline, "metric": name}
    return next((entry for entry in result.get("differences") or [] if wanted.items() <= entry.items()), None)


def _change(result: Values, models: Sequence[str], left: int) -> str:
    measured, found = models_of(result, models), leading(result, models)
    rows = f" on {plural(int(result['rows']), 'held-out row')}" if is_number(result.get("rows")) else ""
    rows += f" ({left:,} more not taken)" if left and rows else ""
    if found is None:
        return f"{', '.join(measured)} evaluated{rows}." if measured else ""
    name, first, last = found
    title, (before, after) = METRICS[name][0], (_value(name, values) for values in (first, last))
    if len(measured) == 1:
        return f"{title} of {measured[0]} is {after}{rows}."
    difference = _difference(result, measured[-1], measured[0], name)
    if difference is None and before == after:
        return f"{title} is {after} with {measured[0]} and with {measured[-1]}{rows}."
    verdict = change(difference, METRICS[name][1]) if difference else None
    verbs = {"better": "rose", "worse": "fell", "no clear difference": "shows no clear change:"}
    verb = verbs.get(verdict or "", "went")
    return f"{title} {verb} from {before} with {measured[0]} to {after} with {measured[-1]}{rows}."


def _value(name: str, values: Values) -> str:
    between = interval(name, values.get("low"), values.get("high"))
    return f"{metric(name, values['value'])} {between}".rstrip()


def tiles(run: Run, artifacts: Artifacts, results: Results, verdicts: Sequence[Verdict]) -> list[Tile]:
    """The few numbers of the head: the leading metric, the last model's win rate, aims, stages and time."""
    made = []
    if results:
        name, result = _last(results)
        models = measured_by(run.stage(name))
        made += _metric_tiles(result, models) + _win_tiles(result, models)
    if verdicts:
        met = sum(verdict.met is True for verdict in verdicts)
        missed = sum(verdict.met is False for verdict in verdicts)
        unknown = len(verdicts) - met - missed
        note = f"{missed} missed" if missed else f"{unknown} not known" if unknown else "all met"
        tone = "bad" if missed else "good" if met == len(verdicts) else "plain"
        made.append(Tile("Aims met", f"{met} of {len(verdicts)}", note, tone))
    finished = sum(artifacts.get(stage.name) is not None for stage in run.stages)
    spared = len(unneeded_of(run, artifacts))
    time = f"{duration(total_seconds(artifacts))} of work" + (f", {spared} not needed" if spared else "")
    return [*made, Tile("Stages finished", f"{finished} of {len(run.stages)}", time)]


def _metric_tiles(result: Values, models: Sequence[str]) -> list[Tile]:
    found, measured = leading(result, models), models_of(result, models)
    if found is None:
        return []
    name, first, last = found
    title = METRICS[name][0]
    if len(measured) == 1:
        return [Tile(title, metric(name, last["value"]), measured[0])]
    difference = _difference(result, measured[-1], measured[0], name)
    verdict = change(difference, METRICS[name][1]) if difference else ""
    note = f"{measured[0]} → {measured[-1]}" + (f", {verdict}" if verdict == "no clear difference" else "")
    tone = {"better": "good", "worse": "bad"}.get(verdict, "plain")
    return [Tile(title, f"{metric(name, first['value'])} → {metric(name, last['value'])}", note, tone)]


def _win_tiles(result: Values, models: Sequence[str]) -> list[Tile]:
    measured = models_of(result, models)
    entries = [entry for entry in result.get("compare") or []
               if [entry.get("challenger")] == measured[-1:] and is_number(entry.get("rate"))]
    if not entries:
        return []
    entry = next((e for e in entries if e.get("baseline") == measured[0]), entries[0])
    low, high = entry.get("low"), entry.get("high")
    tone = {1: "good", 0: "plain", -1: "bad"}[side(low, high, 0.5)]
    note = f"{entry['challenger']} against {entry['baseline']}, by {entry.get('by')} {interval('rate', low, high)}"
    return [Tile("Win rate", metric("rate", entry["rate"]), note.rstrip(), tone)]
