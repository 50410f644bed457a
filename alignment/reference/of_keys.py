"""Topics of what a user may write or finds written key by key: a run, a profile, each stage kind, a manifest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from pydantic import BaseModel

from alignment.config import KINDS, METHODS, Profile, Run, Stage, TrainBase
from alignment.config.rounds import Group
from alignment.reference import emitted
from alignment.reference.keys import Key, keys_of, one_line, told_by
from alignment.reference.topics import Part, Rows, Topic, doc, first_sentence, paragraphs

Topics = dict[str, Topic]
"""By path."""
MAKES = {"rows": "row sets", "policy": "a language model", "reward": "a reward model",
         "embedder": "a model that makes vectors of texts", "table": "a table of results",
         "files": "files", "endpoint": "a model to ask"}


def run() -> Topics:
    stages = tuple((kind.tag, told_of(kind)) for kind in KINDS)
    return _of_model("run", Run, doc(Run), parts=(Part("stages, told apart by", stages),))


def group() -> Topics:
    return _of_model("group", Group, doc(Group))


def profile() -> Topics:
    return _of_model("profile", Profile, doc(Profile))


def stage(kind: type[Stage]) -> Topics:
    facts = [("told by", told_of(kind)), ("makes", MAKES[kind.makes])]
    facts += [("learns from", method.reads) for method in METHODS if method is kind]
    facts += [("computed", "on compute.workers, or in one process with 0" if kind.on_workers else "in one process"),
              ("entrypoint", f"ray_jobs/{kind.script}.py")]
    parts = (Part("metrics", tuple((metric.name, first_sentence(metric.text)) for metric in emitted.metrics(kind))),
             Part("events", tuple((event.name, first_sentence(event.text)) for event in emitted.events(kind))))
    return _of_model(kind.tag, kind, paragraphs(doc(kind)), tuple(facts), tuple(part for part in parts if part.rows))


def told_of(kind: type[Stage]) -> str:
    """How a stage of a run file is known to be of this class."""
    told = str(told_by(kind))
    same = [other for other in KINDS if told_by(other) == told]
    if len(same) == 1:
        return told
    if kind.known_by is not None:
        return f"{told}, with {kind.known_by}"
    others = {name for other in same if other is not kind for name in other.model_fields}
    required = [name for name, field in kind.model_fields.items() if field.is_required() and name != "name"]
    own = next((name for name in required if name not in others), " and ".join(required))
    return f"{told}, with {own}"


def train() -> Topics:
    methods = tuple((f"method: {method.tag}", one_line(doc(method))) for method in METHODS)
    return _of_model("train", TrainBase, doc(TrainBase), parts=(Part("methods", methods),))


def manifest() -> Topics:
    from alignment.artifacts import Manifest

    return _of_model("manifest", Manifest, "manifest.json of an artifact: " + doc(Manifest), written=False)


def _of_model(
    root: str, model: type[BaseModel], text: str, facts: Rows = (), parts: tuple[Part, ...] = (), written: bool = True,
) -> Topics:
    """A mapping and every key below it.

    Args:
        written: by users, to whom it matters what a key is when they leave it out.
    """
    keys = keys_of(model)
    keys = keys if written else [replace(key, default="not set") for key in keys]
    made = {root: Topic(root, text, facts, (Part("keys", _rows(key for key in keys if "." not in key.path)), *parts))}
    by_path: dict[str, list[Key]] = {}
    below: dict[str, list[Key]] = {}
    for key in keys:
        by_path.setdefault(key.path, []).append(key)
        below.setdefault(key.path.rpartition(".")[0].removesuffix(".NAME"), []).append(key)
    for path, same in by_path.items():
        made[f"{root}.{path}"] = _of_key(f"{root}.{path}", same, below.get(path, []), written)
    return made


def _of_key(path: str, same: list[Key], below: list[Key], written: bool) -> Topic:
    """One key; `same` has several where forms of a mapping share its name, `below` are the keys of its mapping."""
    first = same[0]
    facts = [("type", " | ".join(dict.fromkeys(key.takes for key in same)))]
    if len(same) == 1:
        facts += [("default", "required" if first.default is None else first.default)] if written else []
        facts += [("only with", first.within)] if first.within else []
        text = [first.text]
    else:
        text = [f"{key.within}. {key.text}" for key in same]
    if len(first.holds) == 1:
        text.append(one_line(doc(first.holds[0])))
    parts = []
    if len(first.holds) > 1:
        parts.append(Part("forms", tuple((str(told_by(form)), one_line(doc(form))) for form in first.holds)))
    for form in dict.fromkeys(key.within for key in below):
        parts.append(Part("keys" if form is None else f"keys with {form}",
                          _rows(key for key in below if key.within == form)))
    return Topic(path, "\n\n".join(text), tuple(facts), tuple(parts))


def _rows(keys: Iterable[Key]) -> Rows:
    said = {None: " [required]", "not set": "", "{}": "", "[]": ""}
    return tuple((key.name, first_sentence(key.text) + said.get(key.default, f" [{key.default}]")) for key in keys)
