"""Evaluation results as tables with intervals: models by metrics, win rates, differences, kinds of questions.

Reads the shape of results.json; a metric or part that is absent makes no column or no table. Computes no
statistics: intervals are those of the evaluate stage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from alignment.evaluation.measures import NAMES, measure_of
from alignment.report.charts import SHARE, Counts, histogram, whisker
from alignment.report.format import NONE, interval, is_number, metric, number, side

_WAYS = {"higher": "up", "lower": "down", "neither": ""}
_NAMED = {name: (one.title, _WAYS[one.better]) for name in NAMES for one in [measure_of(name)]}
_LAST = ("perplexity", "words", "finished")
METRICS = {
    **{name: told for name, told in _NAMED.items() if name not in _LAST}, "style": ("Style", "up"),
    "reward": ("Reward", "up"), "judge": ("Judge", "up"), **{name: _NAMED[name] for name in _LAST},
}
"""Metric -> (title, which way is better), in the order of a table whose metrics were not named."""
FREE_TEXT_WORDS = 12
"""References whose median is longer are free text: a good answer has other words, and exact match says nothing."""
DRAWN = ("exact_match", "f1", "style")
"""Metrics whose interval is drawn beside the number, where none were named."""
_MOST_DRAWN = 3
OTHER = "s7"
"""Colour of lines that are no model."""


@dataclass(frozen=True)
class Cell:
    text: str
    interval: str = ""
    best: bool = False
    drawing: str = ""
    note: str = ""
    tone: str = ""
    """Of the note: good, bad or nothing."""


def models_of(results: Mapping[str, Any], models: Sequence[str]) -> list[str]:
    """Those of the stage's models that were measured, in the stage's order (other lines are no models)."""
    return [model for model in models if model in results.get("models", {})]


def is_free_text(results: Mapping[str, Any]) -> bool:
    """Whether the references are long, so that no answer can be called right; not so where what they come to is
    compared. Results made before this was measured do not say so."""
    length = results.get("reference_words")
    compared = {"final_number", "yes_no", "question_type"} & set(results.get("columns") or ())
    return is_number(length) and length > FREE_TEXT_WORDS and not compared


def columns_of(results: Mapping[str, Any]) -> list[str]:
    """Columns of the table in order: as the run file names them, and then what no run file names; else the usual."""
    named = [name for name in results.get("columns") or [] if name in METRICS]
    return [*named, *(name for name in METRICS if name not in (*NAMES, *named))] if named else list(METRICS)


def drawn_of(results: Mapping[str, Any]) -> tuple[str, ...]:
    """Metrics whose intervals are drawn: the first that were named, where any were."""
    if not results.get("columns"):
        return DRAWN
    return tuple(name for name in columns_of(results) if METRICS[name][1])[:_MOST_DRAWN]


def colours_of(models: Sequence[str]) -> dict[str, str]:
    """The start model grey, the last one in the accent colour, those between in colours of their own."""
    between = (f"s{2 + index % 6}" for index in range(len(models)))
    last = len(models) - 1
    return {name: "s1" if index == last else "s0" if index == 0 else next(between) for index, name in enumerate(models)}


def metric_table(
    results: Mapping[str, Any], models: Sequence[str]
) -> tuple[list[tuple[str, str]], list[tuple[str, str, list[Cell]]]]:
    """(title, way) columns that any line has, and (name, colour, cells) rows.

    Lines that are no model of the stage (the reference answers scored themselves) come last and are never best.
    """
    lines: Mapping[str, Mapping[str, Any]] = results.get("models", {})
    measured = models_of(results, models)
    names = [*measured, *(name for name in lines if name not in measured)]
    columns = [column for column in columns_of(results)
               if any(is_number(_value(lines[name], column)) for name in names)]
    colours = colours_of(measured)
    domains = {column: _domain(lines, column) for column in columns}
    drawn = drawn_of(results)
    bests = {column: _best({name: lines[name] for name in measured}, column) for column in columns}
    rows = []
    for name in names:
        colour = colours.get(name, OTHER)
        best = bests if name in measured else {}
        cells = [_cell(name, column, lines[name], best.get(column), domains[column], colour, column in drawn)
                 for column in columns]
        rows.append((name, colour, cells))
    return [METRICS[column] for column in columns], rows


def _value(values: Mapping[str, Any], name: str, part: str = "value") -> Any:
    entry = values.get(name)
    return entry.get(part) if isinstance(entry, Mapping) else entry if part == "value" else None


def _best(models: Mapping[str, Mapping[str, Any]], name: str) -> float | None:
    """The best value as it is shown (ties are all marked); None where no way is better or all are the same."""
    shown = [metric(name, _value(values, name)) for values in models.values() if is_number(_value(values, name))]
    way = METRICS[name][1]
    if not way or len(set(shown)) < 2:
        return None
    values = [_value(values, name) for values in models.values() if is_number(_value(values, name))]
    return float(max(values) if way == "up" else min(values))


def _domain(models: Mapping[str, Mapping[str, Any]], name: str) -> tuple[float, float]:
    """Common scale of a column's drawings: its intervals with a little room."""
    numbers = [_value(values, name, part) for values in models.values() for part in ("value", "low", "high")]
    known = [value for value in numbers if is_number(value)]
    low, high = min(known), max(known)
    room = (high - low) * 0.06 or 0.05
    return low - room, high + room


def _cell(
    model: str, name: str, values: Mapping[str, Any], best: float | None, domain: tuple[float, float], colour: str,
    drawn: bool,
) -> Cell:
    value, low, high = (_value(values, name, part) for part in ("value", "low", "high"))
    text, between = metric(name, value), interval(name, low, high)
    drawing = ""
    if drawn and is_number(value):
        drawing = whisker(f"{model}, {METRICS[name][0]}: {text} {between}".rstrip(), value, low, high, domain, colour)
    return Cell(text, between, best is not None and text == metric(name, best), drawing)


@dataclass(frozen=True)
class PairTable:
    """Pairs of models by metrics: `rows` are (challenger, baseline, colour, one cell or None for each column)."""

    columns: list[str]
    rows: list[tuple[str, str, str, list[Cell | None]]]


def comparisons(results: Mapping[str, Any], models: Sequence[str]) -> PairTable:
    """Win rates by what they are counted by, drawn from 0 to 1 with a line at a half, where neither is better."""
    def cell(entry: Mapping[str, Any], colour: str) -> Cell:
        words = {"wins": "won", "ties": "tied", "losses": "lost"}
        counts = [f"{number(entry.get(key))} {word}" for key, word in words.items()]
        counts += [f"{entry['dropped']} left out"] if entry.get("dropped") else []
        if is_number(same := (entry.get("length_controlled") or {}).get("value")):
            bounds = interval("rate", *(entry["length_controlled"].get(end) for end in ("low", "high")))
            counts += [f"length-controlled {metric('rate', same)} {bounds}"]
        tone = {1: "good", 0: "", -1: "bad"}[side(entry.get("low"), entry.get("high"), 0.5)]
        return _drawn(entry, "rate", "win rate", (0.0, 1.0), 0.5, colour, note=", ".join(counts), tone=tone)

    return _pairs(results, models, "compare", "rate", "by", cell)


def differences(results: Mapping[str, Any], models: Sequence[str]) -> PairTable:
    """Challenger minus baseline by metric; the note says whether the interval leaves out zero."""
    sizes: dict[str, float] = {}
    for entry in results.get("differences") or []:
        numbers = [abs(entry[part]) for part in ("value", "low", "high") if is_number(entry.get(part))]
        sizes[entry.get("metric", "")] = max([sizes.get(entry.get("metric", ""), 0.0), *numbers])

    def cell(entry: Mapping[str, Any], colour: str) -> Cell:
        limit = 1.08 * (sizes[entry.get("metric", "")] or 1.0)
        reading = change(entry, METRICS.get(str(entry.get("metric")), ("", ""))[1])
        tone = {"better": "good", "worse": "bad"}.get(reading, "")
        return _drawn(entry, "value", "difference", (-limit, limit), 0.0, colour, note=reading, tone=tone, sign=True)

    return _pairs(results, models, "differences", "value", "metric", cell)


def _pairs(
    results: Mapping[str, Any], models: Sequence[str], part: str, key: str, by: str,
    cell: Callable[[Mapping[str, Any], str], Cell],
) -> PairTable:
    """Entries of a part of the results, one line a pair, one column for every value of `by`."""
    colours = colours_of(models_of(results, models))
    entries = [entry for entry in results.get(part) or [] if is_number(entry.get(key))]
    columns = list(dict.fromkeys(str(entry.get(by)) for entry in entries))
    lines: dict[tuple[str, str], dict[str, Cell]] = {}
    for entry in entries:
        pair = str(entry.get("challenger")), str(entry.get("baseline"))
        lines.setdefault(pair, {})[str(entry.get(by))] = cell(entry, colours.get(pair[0], OTHER))
    return PairTable(
        [METRICS[name][0] if name in METRICS else name.capitalize() for name in columns],
        [(*pair, colours.get(pair[0], OTHER), [cells.get(name) for name in columns]) for pair, cells in lines.items()],
    )


def change(entry: Mapping[str, Any], way: str) -> str:
    """`better`, `worse`, `higher`, `lower`, or `no clear difference` where the interval holds zero."""
    where = side(entry.get("low"), entry.get("high"), 0.0)
    if where == 0:
        return "no clear difference"
    if not way:
        return "higher" if where > 0 else "lower"
    return "better" if (where > 0) == (way == "up") else "worse"


def _drawn(
    entry: Mapping[str, Any], key: str, what: str, domain: tuple[float, float], reference: float, colour: str, *,
    note: str, tone: str, sign: bool = False,
) -> Cell:
    name = str(entry.get("metric", ""))
    value, low, high = entry[key], entry.get("low"), entry.get("high")
    text, between = metric(name, value), interval(name, low, high)
    text = f"+{text}" if sign and value > 0 else text
    title = f"{entry.get('challenger')} against {entry.get('baseline')}, {what}: {text} {between}".rstrip()
    drawing = whisker(title, value, low, high, domain, colour, reference=reference, width=190.0)
    return Cell(text, between, drawing=drawing, note=note, tone=tone)


def kinds(
    results: Mapping[str, Any], models: Sequence[str]
) -> list[tuple[str, int, list[list[tuple[str, str]]]]]:
    """(kind, rows, for each model [(metric title, text)]) of every kind of question."""
    rows, drawn = [], drawn_of(results)
    for kind, by_model in (results.get("by_kind") or {}).items():
        lines = [by_model.get(model) or {} for model in models_of(results, models)]
        cells = [[(METRICS[name][0], metric(name, line[name])) for name in drawn if is_number(line.get(name))]
                 for line in lines]
        rows.append((str(kind), max((int(line.get("n") or 0) for line in lines), default=0), cells))
    return rows


def per_answer(facts: Mapping[str, Any], models: Sequence[str]) -> list[tuple[str, str, str]]:
    """(model, seconds, tokens) of one answer: the mean, and between which values nine of ten lie. Of a manifest that
    does not say so: nothing.

    Args:
        facts: of the stage's manifest; seconds differ from machine to machine, so results.json has none.
    """
    rows = []
    for model in models:
        told = each_answer(facts, model)
        texts = [f"{number(one.get('mean'))} [{number(one.get('low'))}, {number(one.get('high'))}]"
                 if is_number((one := told.get(part) or {}).get("mean")) else NONE for part in ("seconds", "tokens")]
        rows.append((model, texts[0], texts[1]))
    return rows if any(row[1:] != (NONE, NONE) for row in rows) else []


def each_answer(facts: Mapping[str, Any], model: str) -> Mapping[str, Any]:
    """Seconds and tokens of one answer of a model, each as mean, low and high."""
    told: Mapping[str, Any] = ((facts.get("timing") or {}).get(model) or {}).get("per_item") or {}
    return told


def reward_chart(stage: str, results: Mapping[str, Any], models: Sequence[str]) -> Markup | None:
    """Rewards of the answers of all models over each other; None where nothing was scored."""
    measured = models_of(results, models)
    colours, ends = colours_of(measured), {*measured[:1], *measured[-1:]}
    counts = [
        Counts(name, data.get("edges", []), data.get("counts", []), colours.get(name, OTHER), name in ends)
        for name, data in (results.get("reward_histogram") or {}).items()
    ]
    if not any(item.usable for item in counts):
        return None
    return histogram(f"{stage}: reward of the answers of each model", counts, x_label=f"reward; {SHARE}")
