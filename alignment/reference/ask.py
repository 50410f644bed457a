"""Paths: what can be asked, and the topic of each. `sft.strategy`, `format.alpaca`, `profile.cluster.worker`, ...

A path begins with a group: `run`, `profile`, a stage kind or method, or one of format, reward, metric, aim, template,
event and manifest. The topics of a group are made when one of them is asked for. A key may also be asked for as it
stands in a file, without its group (`model.source`): then it is looked for in all of them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from functools import cache

from alignment.config import KINDS, METHODS, Stage
from alignment.errors import ConfigError
from alignment.reference import of_keys, of_lists
from alignment.reference.of_keys import Topics
from alignment.reference.topics import Part, Rows, Topic, doc, first_sentence


def find(path: str) -> Topic:
    """The topic of a path; where it has NAME, any name will do. Of a key that several stages have the first, or, where
    it does not mean the same in all, a list of them.

    Raises:
        ConfigError: with the nearest paths, when nothing is called so.
    """
    wanted = re.sub(r"\[\d+\]", "", path).strip(".").removeprefix("stages.")  # as findings name a place
    group = wanted.split(".")[0]
    if group == "metric":  # as an aim names it: metric.MODEL.exact_match
        wanted = ".".join(dict.fromkeys(("metric", wanted.rpartition(".")[2])))
    for of in (group, "run"):  # a top-level key of a run file may stand without `run.`
        topics = _topics(of) if of in GROUPS else {}
        if (topic := _named(topics, wanted if of == group else f"run.{wanted}")) is not None:
            return topic
    same = [topic for of in KEYED if (topic := _named(_topics(of), f"{of}.{wanted}")) is not None]
    if same:
        return _together(wanted, same)
    known = paths()
    raise ConfigError("nothing of this name can be explained", where="explain", found=path,
                      expected="one of " + ", ".join(_nearest(wanted, known)),
                      hint="kubealign explain, without a name, lists what can be asked")


def _named(topics: Topics, asked: str) -> Topic | None:
    return topics.get(asked) or next((topic for name, topic in topics.items()
                                      if "NAME" in name and _pattern(name).fullmatch(asked)), None)


def _together(wanted: str, same: list[Topic]) -> Topic:
    """One topic of a key that stands in several mappings."""
    first = same[0]
    if all((topic.text, topic.facts, topic.parts) == (first.text, first.facts, first.parts) for topic in same):
        groups = [topic.path.partition(".")[0] for topic in same[1:]]
        also = (("the same in", ", ".join(groups)),) if groups else ()
        return Topic(first.path, first.text, (*first.facts, *also), first.parts, first.examples)
    rows = tuple((topic.path, first_sentence(topic.text)) for topic in same)
    return Topic(wanted, "A key of several mappings; explain each by its whole path.", parts=(Part("keys", rows),))


def paths() -> list[str]:
    """Every path, by group."""
    return [path for group in GROUPS for path in
            ([*_keyed(group), *(f"{group}.{name}" for name in NAMES[group]())] if group in NAMES else _topics(group))]


def groups() -> list[tuple[str, Rows]]:
    """What can be asked, for a list: (title, (path, line) ...)."""
    stages: list[tuple[str, str]] = []
    for kind in KINDS:
        if kind is METHODS[0]:
            stages.append(("train", "Keys that every training method has."))
        stages.append((kind.tag, first_sentence(doc(kind))))
    return [
        ("Keys of files", (("run", "A run file, from the top."), ("group", "Rounds over a few stages of a run."),
                           ("profile", "A profile: where a run is computed."))),
        ("Stages of a run", tuple(stages)),
        ("What they read and give", (
            ("format.NAME", ", ".join(NAMES["format"]())), ("reward.NAME", ", ".join(NAMES["reward"]())),
            ("template.NAME", ", ".join(NAMES["template"]())),
            ("metric.NAME", "A number of a manifest, which an aim may name."), ("aim", "How aims are written."),
            ("event.NAME", ", ".join(NAMES["event"]())), ("manifest", "What is recorded of a finished stage."),
        )),
        ("For example", tuple((path, "") for path in (
            "sft.strategy", "sample.sampling.top_p", "profile.cluster.worker", "metric.exact_match"))),
    ]


def _keyed(group: str) -> Iterable[str]:
    """Paths of a group with names that are no names of its list."""
    return of_keys.stage(_kind(group)) if group in [kind.tag for kind in KINDS] else (group,)


def _kind(tag: str) -> type[Stage]:
    return next(kind for kind in KINDS if kind.tag == tag)


def _nearest(wanted: str, known: list[str]) -> list[str]:
    """At most eight paths: those that end with what was asked for, one of each stage before another, else the most
    alike."""
    last = wanted.rsplit(".", 1)[-1]
    ending = [path for path in known if path.rsplit(".", 1)[-1] == last]
    groups = [path.partition(".")[0] for path in ending]
    exact = [ending[place] for place in sorted(
        range(len(ending)), key=lambda place: groups[:place].count(groups[place]))]
    close = difflib.get_close_matches(wanted, known, 5, 0.6)
    by_last = {path.rsplit(".", 1)[-1] for path in known}
    alike = difflib.get_close_matches(last, sorted(by_last), 2, 0.75)
    more = [path for name in alike for path in known if path.rsplit(".", 1)[-1] == name]
    inside = [path for path in known if path.startswith(wanted.rpartition(".")[0] + ".") and path.count(".") == 1]
    return list(dict.fromkeys([*exact, *close, *more]))[:8] or inside or list(GROUPS)


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace("NAME", r"[^.]+"))


def _reward_group() -> Topics:
    """The method `reward` and the reward functions share a name."""
    made, functions = of_keys.stage(_kind("reward")), of_lists.rewards()
    listed = Part("reward functions, as reward.NAME",
                  tuple((path.partition(".")[2], first_sentence(topic.text)) for path, topic in functions.items()))
    top = made["reward"]
    return {**made, "reward": Topic("reward", top.text, top.facts, (*top.parts, listed)), **functions}


def _maker(kind: type[Stage]) -> Callable[[], Topics]:
    return lambda: of_keys.stage(kind)


NAMES: dict[str, Callable[[], list[str]]] = {
    "format": of_lists.format_names, "reward": of_lists.reward_names, "metric": of_lists.metric_names,
    "template": of_lists.template_names, "event": of_lists.event_names,
}
"""Groups that are a list -> its names, which are had sooner than the topics."""
GROUPS: dict[str, Callable[[], Topics]] = {
    "run": of_keys.run, "group": of_keys.group, "profile": of_keys.profile, "train": of_keys.train,
    **{kind.tag: _maker(kind) for kind in KINDS},
    "format": of_lists.formats, "metric": of_lists.metrics, "aim": of_lists.aims,
    "template": of_lists.chat_templates, "event": of_lists.events,
    "manifest": of_keys.manifest, "reward": _reward_group,
}
"""First part of a path -> its topics."""
KEYED = ("train", *(kind.tag for kind in KINDS), "group", "profile", "manifest")
"""Groups whose topics are keys, which may be asked for without their group; `run` is looked in before them."""


@cache
def _topics(group: str) -> Topics:
    return GROUPS[group]()
