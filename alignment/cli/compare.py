"""`compare`: two finished evaluations of the same rows, row by row: answers, tasks of lm-evaluation-harness, or judges.
Reads stores; runs nothing."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from alignment.cli.options import Here, KnownProfile, Overrides, load
from alignment.cli.show import prose, say, table
from alignment.config.stages.artifact import KEY
from alignment.errors import ConfigError, DataError

if TYPE_CHECKING:
    from alignment.artifacts import Artifact, Manifest
    from alignment.evaluation.compared import Compared, Comparison, Side
    from alignment.evaluation.compared_scores import Scores

_TEXT = 240
"""Letters of an answer that --rows shows."""
Which = Annotated[str, typer.Argument(
    metavar="RUN.yaml[:STAGE[:MODEL]]|ARTIFACT[:MODEL]",
    help="An evaluation: of a run file (its only one, or STAGE), or an artifact by key or folder; of judges MODEL is a "
         "judge. Default: its last.")]


def compare(
    first: Which,
    second: Which,
    rows: Annotated[int, typer.Option("--rows", min=0, help="Show so many rows that changed most.")] = 0,
    by: Annotated[str | None, typer.Option("--by", metavar="METRIC", help="The metric of --rows. Default: the first.")]
    = None,
    store: Annotated[str | None, typer.Option(help="The store of artifacts named by key. Default: that of the run "
                                                   "beside it, else runs.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, with every row's numbers.")] = False,
    profile: KnownProfile = None,
    here: Here = False,
    overrides: Overrides = None,
) -> None:
    """Compare two evaluations of the same rows: paired differences with intervals, rows won, tied and lost."""
    stores = {store} if store is not None else set[str]()
    runs = {text: _of_run(text, overrides, profile, here, stores) for text in (first, second) if not _by_key(text)}
    artifacts = {text: runs[text] if text in runs else _of_key(text, sorted(stores) or ["runs"])
                 for text in (first, second)}
    sides = [_side(text, *artifacts[text]) for text in (first, second)]
    if artifacts[first][0].key == artifacts[second][0].key and sides[0].model == sides[1].model:
        raise ConfigError("compares a model of an evaluation with itself", found=f"{first}, {second}",
                          hint=f"name another model: {first.partition(':')[0]}:STAGE:MODEL")
    found = _compared(*sides)
    chosen = _metric(found, by)
    if as_json:
        print(json.dumps(_as_json(sides, found), ensure_ascii=False))
        return
    _show(sides, found)
    if rows and chosen is not None:
        _show_rows(sides, chosen, rows)


def _by_key(text: str) -> bool:
    head = text.partition(":")[0]
    return not Path(head).is_file() and (KEY.fullmatch(head) is not None or Path(head, "manifest.json").is_file())


def _of_run(
    text: str, overrides: Iterable[str] | None, profile: str | None, here: bool, stores: set[str]
) -> tuple[Artifact, str | None]:
    """The evaluation of a run, and the model named; remembers its store."""
    from alignment import pipeline

    file, _, rest = text.partition(":")
    stage, _, model = rest.partition(":")
    run, place = load(file, overrides, profile, here=here)
    if place is not None and place.cluster is not None:
        raise ConfigError("the store of a profile's cluster is not read from here", found=f"profile {place.name}",
                          hint="--here compares what this machine's store has")
    run = run if place is None else place.applied(run)
    stores.add(run.store)
    tables = [item.name for item in run.stages if item.makes == "table"]
    finished = pipeline.status(run)
    if stage and stage not in tables:
        raise ConfigError("the run has no evaluation of this name", where=file, found=stage,
                          expected=f"one of {', '.join(tables)}" if tables else "a run with an evaluate stage")
    wanted = [stage] if stage else [name for name in tables if finished[name] is not None]
    if len(wanted) != 1 or finished[wanted[0]] is None:
        raise ConfigError("no evaluation of the run is finished" if not wanted or stage else
                          "the run has several finished evaluations", where=file,
                          found=", ".join(wanted or tables) or "no evaluate stage",
                          expected=f"{file}:STAGE" if len(wanted) > 1 else "a finished one",
                          hint=None if len(wanted) > 1 else f"kubealign run {file}")
    artifact = finished[wanted[0]]
    assert artifact is not None
    return artifact, model or None


def _of_key(text: str, stores: list[str]) -> tuple[Artifact, str | None]:
    from alignment.artifacts import Store

    head, _, model = text.partition(":")
    if Path(head, "manifest.json").is_file():
        folder = Path(head).resolve()
        stores, head = [str(folder.parent.parent)], folder.name
    for root in stores:
        artifact = Store(root).find(head)
        if artifact is not None:
            return artifact, model or None
    raise ConfigError("no such artifact is finished", found=head, expected=f"a key of {', '.join(stores)}",
                      hint="--store names another store")


def _compared(first: Side | Scores, second: Side | Scores) -> Comparison:
    from alignment.evaluation.compared import Side, compare
    from alignment.evaluation.compared_scores import Scores, compare_scores

    if isinstance(first, Side) and isinstance(second, Side):
        return compare(first, second)
    if isinstance(first, Scores) and isinstance(second, Scores) and first.of == second.of:
        return compare_scores(first, second)
    raise ConfigError("the two evaluations are of different kinds", found=f"{first.of} ({first.label}) and {second.of} "
                      f"({second.label})", expected="both of answers, of tasks or of judges")


def _side(text: str, artifact: Artifact, model: str | None) -> Side | Scores:
    from alignment.evaluation.compared_scores import of_judge, of_tasks
    from alignment.report.reading import read_answers, read_pairs, read_results, read_samples

    manifest, results = artifact.manifest, read_results(artifact)
    config = manifest.config
    read, told = ((read_samples, "models") if "harness" in config else (read_pairs, "judges") if "judges" in config
                  else (read_answers, "answers"))
    lines = read(artifact)
    if manifest.kind != "evaluate" or results is None or not lines:
        raise ConfigError("holds no rows of an evaluation", found=f"{text}: {artifact.key}",
                          expected="an evaluate stage's artifact")
    models = list(lines[0].get("answers", {}) if told == "answers" else config[told])
    if model is not None and model not in models:
        raise ConfigError(f"the evaluation has no {'judge' if told == 'judges' else 'model'} of this name", where=text,
                          found=model, expected=f"one of {', '.join(models)}")
    seen = Counter((str(line["id"]), line.get("model"), line.get("filter")) for line in lines)
    if twice := [id_ for (id_, _, _), count in seen.items() if count > 1]:
        raise DataError("an id stands on more than one row", where=artifact.url, found=twice[0],
                        expected="one id per row")
    chosen = model or models[-1]
    label = f"{chosen} of {text.partition(':')[0]}, stage {manifest.stage} ({artifact.key})"
    if told == "models":
        return of_tasks(label, chosen, lines, results, config["harness"])
    if told == "judges":
        return of_judge(label, chosen, lines)
    return _of_answers(label, chosen, lines, manifest, results)


def _of_answers(label: str, model: str, lines: list[dict[str, Any]], manifest: Manifest,
                results: dict[str, Any]) -> Side:
    from alignment.evaluation.compared import Side

    score = manifest.config.get("score") or {}
    scorers = {"reward": manifest.inputs.get(score.get("model") or "", ""), "style": score.get("function") or ""}
    revisions = manifest.parts.get("revisions") or {}
    return Side(label, model, {str(line["id"]): line for line in lines},
                {**manifest.config, "revision": revisions.get(manifest.kind, 1)},
                {name: said for name, said in scorers.items() if said},
                {name: re.sub(r"nrefs:[^|]*\|", "", said) for name, said in (results.get("signatures") or {}).items()})


def _metric(found: Comparison, by: str | None) -> Compared | None:
    names = [one.metric for one in found.metrics]
    if by is not None and by not in names:
        raise ConfigError("the two evaluations do not both have this metric", where="--by",
                          found=f"{by} ({found.left_out[by]})" if by in found.left_out else by,
                          expected=f"one of {', '.join(names)}")
    return next((one for one in found.metrics if by in (None, one.metric)), None)


def _show(sides: list[Side | Scores], found: Comparison) -> None:
    from alignment.report.format import metric
    from alignment.report.results import METRICS, change

    say(f"A  {sides[0].label}")
    say(f"B  {sides[1].label}")
    ways = {"higher": "up", "lower": "down", "neither": ""}
    lines = []
    for one in found.metrics:
        low, high = one.difference.low, one.difference.high
        reading = change({"low": low, "high": high}, ways[one.way])
        title = METRICS[one.metric][0] if one.metric in METRICS else one.metric
        lines.append((title, metric(one.metric, one.first), metric(one.metric, one.second),
                      _signed(one.metric, one.difference.value),
                      f"[{_signed(one.metric, low)}, {_signed(one.metric, high)}]", reading,
                      *map(str, (len(one.values), one.better, one.same, one.worse))))
    table(("metric", "A", "B", "B - A", "95 % interval", "B is", "rows", "won", "tied", "lost"), lines,
          right=("A", "B", "B - A", "95 % interval", "rows", "won", "tied", "lost"), spare=("rows", "tied"))
    for name, why in found.left_out.items():
        say(f"! {name} is left out: {why}")
    for label, count in zip("AB", found.alone, strict=True):
        if count:
            say(f"! {count} rows only {label} has are left out")


def _signed(name: str, value: float) -> str:
    from alignment.report.format import metric

    text = metric(name, value)
    if not text.strip("-0."):
        return text.lstrip("-")  # what rounds to nothing has no sign
    return f"+{text}" if value > 0 else text


def _show_rows(sides: list[Side | Scores], chosen: Compared, count: int) -> None:
    from alignment.evaluation.compared import most_changed
    from alignment.report.format import clip, metric

    changed = most_changed(chosen, count)
    say()
    say(f"{len(changed)} of {chosen.better + chosen.worse} rows whose {chosen.metric} changed, the widest first")
    for row in changed:
        values = chosen.values[row]
        say()
        say(f"{row}  {metric(chosen.metric, values[0])} -> {metric(chosen.metric, values[1])}")
        for name, text in (*sides[0].told(row).items(), *zip("AB", (side.said(row) for side in sides), strict=True)):
            if text is not None:
                prose(f"  {name}: {clip(' '.join(str(text).split()), _TEXT)}")


def _as_json(sides: list[Side | Scores], found: Comparison) -> dict[str, Any]:
    from alignment.evaluation.results import without_nan

    made: dict[str, Any] = without_nan({
        "first": sides[0].label, "second": sides[1].label, "rows": len(found.rows),
        "only_first": found.alone[0], "only_second": found.alone[1], "left_out": dict(found.left_out),
        "metrics": {one.metric: {
            "better": one.way, "first": one.first, "second": one.second, "difference": one.difference._asdict(),
            "won": one.better, "tied": one.same, "lost": one.worse,
            "values": {row: list(pair) for row, pair in one.values.items()},
        } for one in found.metrics},
    })
    return made
