"""Topics of the lists: formats, reward functions, metrics, aims, templates, events; and their names alone, which are
had sooner."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from alignment.config import KINDS, Stage
from alignment.reference import emitted
from alignment.reference.of_keys import Topics
from alignment.reference.topics import Part, Rows, Topic, doc, first_sentence, paragraphs

AIM = """\
An aim is what a run is meant to reach: STAGE.METRIC OP NUMBER, or STAGE.METRIC OP STAGE.METRIC, where OP is one of \
>= <= > <. STAGE is the name of a stage in this run; METRIC is a name of that stage's manifest, which may hold dots \
and slashes. Aims are judged when the run ends and shown in the report; they stop nothing. \
`kubealign run --strict-aims` ends with code 3 when one is missed, or cannot be judged \
since its metric is missing or not a number.

On Kubernetes a gate of an AlignmentRun holds the run after a stage until such a bound is met."""
AIMS = ("rm.eval_accuracy >= 0.8", "rs.best_score > rs.mean_score", "eval.sft.exact_match > eval.base.exact_match",
        "eval.dpo_vs_sft.win_rate > 0.6", "dpo.eval_rewards/accuracies >= 0.7")
"""Examples; a test parses them."""


def formats() -> Topics:
    from alignment.records import Record
    from alignment.reference.formats import COMMON, FORMATS, made, text_of

    found = {"format": Topic(
        "format", "How the rows of a data file are read; `format` of a source says which.",
        parts=(Part("formats", tuple((name, first_sentence(form.text)) for name, form in FORMATS.items())),
               Part("fields of any format", tuple((field.name, field.text) for field in COMMON))))}
    for name, form in FORMATS.items():
        record = made(name)
        assert isinstance(record, Record), record
        fields = tuple((field.name + (" (needed)" if field.needed else ""), field.text) for field in form.fields)
        row = text_of(name, form.row).rstrip("\n")
        file = row if form.columns is not None else example(json.loads(row))
        mapping = (("columns of the source", example(form.columns)),) if form.columns is not None else ()
        found[f"format.{name}"] = Topic(
            f"format.{name}", form.text, (), (Part("fields", fields),),
            (*mapping, ("a file", file), ("becomes", example(json.loads(record.to_json())))))
    return found


def rewards() -> Topics:
    from alignment.rewards.functions import BUILT_IN, FACTS

    found = {}
    for name, function in BUILT_IN.items():
        summary = re.split(r"\n\n?(?=Returns:|Raises:)", doc(function))[0]
        facts = FACTS[name]
        found[f"reward.{name}"] = Topic(
            f"reward.{name}", paragraphs(summary),
            (("needs", ", ".join(facts.needs) or "nothing"), ("range", facts.span),
             ("written", f"score: {{function: {name}}}")))
    return found


def metrics() -> Topics:
    found: dict[str, list[tuple[type[Stage], emitted.Metric]]] = {}
    for kind in KINDS:
        for metric in emitted.metrics(kind):
            found.setdefault(metric.name.rsplit(".", 1)[-1], []).append((kind, metric))
    made = {"metric": Topic("metric", "Numbers of a finished stage, in its manifest and in the report. An aim names "
                                      "one as STAGE.NAME; capitals stand for a name of yours.",
                            parts=tuple(Part(kind.tag, tuple((m.name, first_sentence(m.text))
                                                             for m in emitted.metrics(kind))) for kind in KINDS))}
    for name, same in found.items():
        kinds: dict[emitted.Metric, list[str]] = {}
        for kind, metric in same:
            kinds.setdefault(metric, []).append(kind.tag)
        parts = _merged(Part(", ".join(tags), tuple(metric_facts(metric))) for metric, tags in kinds.items())
        texts = dict.fromkeys(metric.text for metric in kinds)
        text = next(iter(texts)) if len(texts) == 1 else "\n\n".join(
            f"{', '.join(tags)}: {metric.text}" for metric, tags in kinds.items())
        made[f"metric.{name}"] = Topic(f"metric.{name}", text, parts=parts)
    return made


def metric_facts(metric: emitted.Metric) -> Iterator[tuple[str, str]]:
    """Short answers about a metric, by name."""
    yield "in aims", f"STAGE.{metric.name}"
    yield "range", metric.span
    yield "better", metric.better
    if metric.when:
        yield "when", metric.when


def aims() -> Topics:
    return {"aim": Topic("aim", AIM, examples=(("for example", "\n".join(AIMS)),))}


def chat_templates() -> Topics:
    from alignment.reference.chat_templates import templates

    found = templates()
    top = Topic("template", "How a conversation becomes text. An import stage names one in `template`; without it the "
                            "model's own is kept.",
                parts=(Part("templates", tuple((item.name, item.text) for item in found)),))
    return {"template": top, **{f"template.{item.name}": Topic(
        f"template.{item.name}", item.text,
        (("an answer ends with", ends_with(item.ends_with)),
         ("written", f"template: {item.name}, on the import stage")),
        (), (("a conversation", item.example.rstrip("\n")),)) for item in found}}


def ends_with(token: str) -> str:
    """The token in words."""
    return "EOS, the model's own end token" if token == "EOS" else token


def events() -> Topics:
    found: dict[str, list[Part]] = {}
    texts: dict[str, tuple[str, str | None]] = {}
    for kind in KINDS:
        for event in emitted.events(kind):
            texts[event.name] = event.text, event.when
            found.setdefault(event.name, []).append(Part(kind.tag, tuple(event.fields.items())))
    made = {"event": Topic("event", "Lines of a stage's events.jsonl, written as work goes on. Every line has `time` "
                                    "(seconds since 1970) and `event`, the name.",
                           parts=(Part("events", tuple((name, text) for name, (text, _) in texts.items())),))}
    for name, parts in found.items():
        text, when = texts[name]
        made[f"event.{name}"] = Topic(f"event.{name}", text, (("there when", when),) if when else (), _merged(parts))
    return made


def format_names() -> list[str]:
    from alignment.reference.formats import FORMATS

    return list(FORMATS)


def reward_names() -> list[str]:
    from alignment.rewards.functions import BUILT_IN

    return list(BUILT_IN)


def template_names() -> list[str]:
    from alignment.templates import names

    return names()


def metric_names() -> list[str]:
    return list(dict.fromkeys(m.name.rsplit(".", 1)[-1] for kind in KINDS for m in emitted.metrics(kind)))


def event_names() -> list[str]:
    return list(dict.fromkeys(event.name for kind in KINDS for event in emitted.events(kind)))


def example(value: Any, width: int = 76, indent: int = 0) -> str:
    """JSON for people: on one line where it fits, else an item a line."""
    flat = json.dumps(value, ensure_ascii=False)
    if len(flat) + indent <= width or not isinstance(value, dict | list):
        return flat
    pad = " " * (indent + 1)
    if isinstance(value, dict):
        items = [f"{json.dumps(key, ensure_ascii=False)}: {example(item, width, indent + 1)}"
                 for key, item in value.items()]
        return "{" + f",\n{pad}".join(items) + "}"
    return "[" + f",\n{pad}".join(example(item, width, indent + 1) for item in value) + "]"


def _merged(parts: Iterable[Part]) -> tuple[Part, ...]:
    """Parts that say the same become one, named by both."""
    titles: dict[Rows, list[str]] = {}
    for part in parts:
        titles.setdefault(part.rows, []).append(part.title)
    return tuple(Part(", ".join(same), rows) for rows, same in titles.items())
