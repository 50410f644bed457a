"""docs/reference/: every page as Markdown, from the same tables as the answers in the terminal.

The text depends on the code alone: no dates, no paths of a machine, no order of a set.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence

from pydantic import BaseModel

from alignment.artifacts import Manifest
from alignment.config import KINDS, METHODS, Profile, Run, TrainBase
from alignment.config.rounds import Group
from alignment.records import Record
from alignment.reference import emitted
from alignment.reference.chat_templates import templates
from alignment.reference.formats import COMMON, FORMATS, made, text_of
from alignment.reference.keys import Key, keys_of, one_line, own_keys, told_by
from alignment.reference.of_keys import MAKES, told_of
from alignment.reference.of_lists import AIM, AIMS, ends_with, example, rewards
from alignment.reference.topics import doc, paragraphs

COMMAND = "make reference"
_WIDTH = 100
"""Columns of an example."""


def pages() -> dict[str, str]:
    """File name -> its text."""
    bodies = {name: (title, summary, body()) for name, (title, summary, body) in _PAGES.items()}
    index = [f"- [{title}]({name}): {summary}" for name, (title, summary, _) in bodies.items()]
    found = {"README.md": _page("Reference", [
        f"Made from the code by `{COMMAND}` and held to it by a test; change the code, not these pages. In a terminal "
        "`kubealign explain PATH` says the same: `kubealign explain sft.strategy`, `kubealign explain "
        "format.alpaca`; without a path it lists what can be asked.", "\n".join(index)])}
    for name, (title, _, body) in bodies.items():
        found[name] = _page(title, body)
    return found


# --- keys ---


def _run() -> list[str]:
    return [
        "A run file is one YAML mapping with the keys of the first table; each of its stages is a mapping with the "
        "keys of its kind. Unknown keys and wrong types are errors. A dotted key is written nested: `sampling.top_p` "
        "is `sampling: {top_p: 0.9}`; below a list it is a key of each item. `required` keys have no default. Where a "
        "default is a mapping, a mapping of yours takes its place whole.",
        *_mapping(Run, seen={}),
        "## Stages\nEach stage is told by its `kind`, train stages by their `method` as well:",
        _table(("stage", "told by", "makes", "runs"), (
            (f"[{kind.tag}](#{kind.tag})", f"`{told_of(kind)}`", MAKES[kind.makes],
             "on `compute.workers`" if kind.on_workers else "in one process") for kind in KINDS)),
        *_stages(),
        f"## Groups\n{paragraphs(doc(Group))} A group stands among `stages` and has these keys:",
        *_mapping(Group, seen={}),
    ]


def _stages() -> Iterator[str]:
    seen: dict[type[BaseModel], str] = {}
    shared = set(TrainBase.model_fields) - {"method"}
    for kind in KINDS:
        if kind is METHODS[0]:
            yield f"### train\n{paragraphs(doc(TrainBase))} Keys of every method:"
            yield from _mapping(TrainBase, seen, "train")
        yield f"### {kind.tag}\n{paragraphs(doc(kind))} Told by `{told_of(kind)}`."
        method = next((method for method in METHODS if method is kind), None)
        if method is not None:
            yield f"Learns from {method.reads}. Its own keys, beside [those of every method](#train):"
            yield _keys_table([key for key in own_keys(kind) if key.name not in shared])
        else:
            yield from _mapping(kind, seen, kind.tag)


def _profile() -> list[str]:
    return [
        "A profile says where a run is computed and where its artifacts lie; of what is learned only the dtype. The "
        "shipped ones "
        "are in [configs/profiles](../../configs/profiles/). NAME stands for a name of yours.",
        *_mapping(Profile, seen={}),
    ]


def _manifest() -> list[str]:
    return ["`manifest.json` of every artifact: what a finished stage was made from and holds. Its existence means "
            "done; `kubealign status RUN.yaml --json` prints those of a run.", *_mapping(Manifest, seen={}, of=False)]


def _mapping(
    model: type[BaseModel], seen: dict[type[BaseModel], str], root: str = "", of: bool = True
) -> Iterator[str]:
    """The table of a mapping with the keys below it, and what is said of those mappings as a whole.

    Args:
        seen: mappings that the page has listed -> where; a second time only the place is named.
        of: whether the keys are written by users, and so have defaults.
    """
    shown: list[Key] = []
    notes: list[str] = []
    skipped: list[str] = []
    for key in keys_of(model):
        if any(key.path.startswith(f"{path}.") for path in skipped):
            continue
        shown.append(key)
        known = next((seen[below] for below in key.holds if below in seen), None)
        if known is not None:
            skipped.append(key.path)
            notes.append(f"`{key.path}` has the keys of `{known}`.")
            continue
        for below in key.holds:
            seen[below] = f"{root}.{key.path}" if root else key.path
            form = f" with `{told_by(below)}`" if len(key.holds) > 1 else ""
            notes.append(f"`{key.path}`{form}: {one_line(doc(below))}")
    yield _keys_table(shown, of)
    if notes:
        yield _prose("\n".join(f"- {note}" for note in notes))


def _keys_table(keys: Iterable[Key], of: bool = True) -> str:
    head = ("key", "type", "default", "what it does") if of else ("key", "type", "what it holds")
    return _table(head, (
        (f"`{key.path}`" + (f" ({key.within})" if key.within else ""), key.takes,
         *([f"`{key.default}`" if key.default else "required"] if of else []), key.text) for key in keys))


# --- lists ---


def _formats() -> list[str]:
    parts = [
        "`format` of a source says how its rows are read. JSON lines, a JSON list and Parquet are told apart by their "
        "content; SQuAD and DROP are whole JSON documents; `columns` reads CSV too. A row that cannot be used goes to "
        "bad.jsonl with its reason. Fields that a row of any format may have:",
        _table(("field", "what it does"), ((f"`{field.name}`", field.text) for field in COMMON)),
        "A field that is null, blank or NaN is not there. A field that is not named for its format is not read: "
        "`check` and the manifest name it with its number of rows. A row is bad (unsupported-field) where what is "
        "asked for is not learned here: tools and calls of them, reasoning_content, images, audio and video, a margin, "
        "a history outside alpaca, and a weight, loss_mask, train or loss of a turn that says anything but that the "
        "assistant's turns are learned, all alike.",
        "What comes out is a record: `type` (messages, prompt-completion, preference, unpaired or prompt-only), "
        "`prompt`, `completion`, `rejected`, `messages`, `label` and `meta`. The records below are what the importer "
        "made of the examples.",
    ]
    for name, form in FORMATS.items():
        record = made(name)
        assert isinstance(record, Record), record
        row = text_of(name, form.row).rstrip("\n")
        file = ("csv", row) if form.columns is not None else ("json", example(json.loads(row), _WIDTH))
        mapping = [] if form.columns is None else [
            "A stage that reads such a file (texts in double quotes, where \\n is a new line):",
            _code("yaml", _stage_of_columns(form.columns))]
        parts += [
            f"## {name}\n{_prose(form.text)}",
            _table(("field", "needed", "what it is"), (
                (f"`{field.name}`", "yes" if field.needed else "", field.text) for field in form.fields)),
            *mapping, "This file becomes the record below.",
            _code(*file), _code("json", example(json.loads(record.to_json()), _WIDTH)),
        ]
    return parts


def _stage_of_columns(columns: dict[str, str]) -> str:
    fields = "\n".join(f"        {field}: {json.dumps(value)}" for field, value in columns.items())
    return ("- name: seed\n  kind: import\n  data:\n    - path: seed.csv\n      format: columns\n      columns:\n"
            f"{fields}\n  split: {{by: ratio, ratios: {{train: 0.9, test: 0.1}}}}")


def _rewards() -> list[str]:
    parts = ["`score.function` of a sample or evaluate stage names one of these, or `package.module:function` of your "
             "own: `(record, answer) -> float`, importable here and on every worker; NaN for an answer that it cannot "
             "judge."]
    for path, topic in rewards().items():
        parts.append(f"## {path.partition('.')[2]}\n" + " · ".join(f"{name}: `{fact}`" for name, fact in topic.facts))
        parts.append(_prose(topic.text))
    return parts


def _metrics() -> list[str]:
    parts = ["Numbers of a finished stage, in its manifest and in the report. An aim writes STAGE.METRIC with the "
             "stage's own name; MODEL, CHALLENGER, BASELINE and SPLIT stand for names of yours.",
             f"## Aims\n{_prose(AIM)}", _code("yaml", "aims:\n" + "\n".join(f"  - {aim}" for aim in AIMS))]
    for kind in KINDS:
        parts += [f"## {kind.tag}", _table(("metric", "what it is", "range", "better", "there when"), (
            (f"`{m.name}`", m.text, m.span, m.better, m.when or "always") for m in emitted.metrics(kind)))
            if emitted.metrics(kind) else "None."]
    return parts


def _templates() -> list[str]:
    parts = ["`template` of an import stage names one of these; without it the model's own is kept. BOS and EOS stand "
             "for the model's own tokens. Generation stops at what an answer ends with."]
    for item in templates():
        parts += [f"## {item.name}\n{_prose(item.text)} An answer ends with `{ends_with(item.ends_with)}`.",
                  _code("text", item.example.rstrip("\n"))]
    return parts


def _events() -> list[str]:
    parts = ["Lines of a stage's `events.jsonl`, written as work goes on: one JSON object each, with `time` (seconds "
             "since 1970), `event` (the name) and these fields."]
    for kind in KINDS:
        parts.append(f"## {kind.tag}")
        for event in emitted.events(kind):
            when = f" There when {event.when}." if event.when else ""
            parts += [f"**{event.name}**: {event.text}{when}", _fields(event.fields.items())]
    return parts


def _fields(rows: Iterable[tuple[str, str]]) -> str:
    return _table(("field", "what it holds"), ((f"`{name}`", text) for name, text in rows))


# --- Markdown ---

_PAGES = {
    "run.md": ("Keys of a run", "the YAML file of a run, each stage kind and method.", _run),
    "profile.md": ("Keys of a profile", "where a run is computed.", _profile),
    "formats.md": ("Data formats", "which files import data reads, with an example of each.", _formats),
    "rewards.md": ("Reward functions", "what can judge an answer without a model.", _rewards),
    "metrics.md": ("Metrics and aims", "the numbers of a stage, and how aims name them.", _metrics),
    "templates.md": ("Chat templates", "the shipped ones, and what they write.", _templates),
    "events.md": ("Events", "the lines of events.jsonl.", _events),
    "manifest.md": ("Manifest", "the fields of manifest.json.", _manifest),
}


def _page(title: str, parts: Sequence[str]) -> str:
    note = "" if title == "Reference" else f"\nMade by `{COMMAND}`; do not edit. [All pages](README.md).\n"
    return f"# {title}\n{note}\n" + "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_prose(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _prose(text: str) -> str:
    """Text that holds tags such as <s>, which Markdown would take for HTML; what is in backticks stays."""
    return "`".join(part if index % 2 else part.replace("<", "&lt;") for index, part in enumerate(text.split("`")))


def _code(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```"
