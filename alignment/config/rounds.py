"""Groups of a run file: rounds over a few stages, written out as plain stages when the file is loaded.

    - group: improve
      rounds: 3
      first: {dpo: sft}                        # what previous.dpo is in round 1
      stages:
        - {name: rs, kind: sample, model: previous.dpo, ...}
        - {name: dpo, kind: train, method: dpo, model: previous.dpo, rows: [rs/pairs], ...}

becomes rs-1, dpo-1, rs-2, dpo-2, rs-3, dpo-3. Within a round a stage of the group goes by its own name, `previous.NAME`
is that of the round before, and after the group NAME is that of the last round, in stages and aims alike. Everything
from here on sees the plain stages; where a finding stands, it says the line of the group.

With `gate: dev.dpo_vs_previous.dpo.exact_match_gain > 0` rounds end after the first that does not meet it (`stops`),
and a stage of kind `choose`, called dpo, follows the group: the model of the last round that did, or of `first`.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from functools import cache, partial
from typing import Annotated, Any

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from alignment.config.aims import parse_aim
from alignment.config.stages import KINDS, AnyStage, stage_tag
from alignment.config.stages.fields import Name, Place, Strict
from alignment.config.stops import stages_of
from alignment.config.yaml_file import frozen, validated
from alignment.config.yaml_nodes import child, place, written
from alignment.config.yaml_text import value_of
from alignment.errors import ConfigError, ConfigErrors

_PREVIOUS = re.compile(r"previous\.(?P<name>[^/]*)(?P<split>/.*)?")
_PREVIOUS_IN = re.compile(r"(?<![a-z0-9-])previous\.(?P<name>[a-z][a-z0-9-]*)")
_METRIC = re.compile(r"[a-z][a-z0-9-]*\.[A-Za-z0-9_./-]+")
_ROUND = re.compile(r", round \d+\)")
MOST = 50
"""Rounds of a group: a slip of the finger should not make a thousand stages."""


class Group(Strict):
    """Stages that are made several times over, each round from what the one before has made; written out as NAME-1,
    NAME-2, ... when the file is loaded. In a round, NAME is its own stage and previous.NAME that of the round before;
    after the group NAME is the last round's."""

    group: Name
    """The group's name, for --set GROUP.rounds=2 and for the report."""
    rounds: Annotated[int, Field(ge=1, le=MOST)]
    """How many rounds, written out in order."""
    first: dict[Name, Name] = Field(default_factory=dict)
    """What `previous.NAME` is in round 1: NAME of a stage of the group -> a stage before the group. With a gate, also
    what NAME is after the group where not even round 1 meets it."""
    gate: str | None = None
    """What a round has to reach, as in the run's `aims`, by the round's own names: dev.dpo_vs_previous.dpo.f1_gain > 0.
    After one that does not, no round is made, and each NAME of `first` is the model of the round before it."""
    stages: tuple[dict[str, Any], ...] = Field(min_length=1)
    """The stages of one round, in order, as `stages` of the run has them; `previous.NAME` and `previous.NAME/SPLIT` may
    stand wherever a stage is named."""


@cache
def _adapter() -> TypeAdapter[Any]:
    return TypeAdapter(AnyStage)


def groups_of(tree: yaml.Node) -> list[tuple[int, yaml.MappingNode]]:
    """The groups among `stages`, each with its place in the list."""
    stages = child(tree, "stages")
    return [(index, node) for index, node in enumerate(stages.value if isinstance(stages, yaml.SequenceNode) else ())
            if isinstance(node, yaml.MappingNode) and child(node, "group") is not None]


def names_in(group: yaml.MappingNode) -> dict[str, yaml.Node]:
    """What an override may call: the group itself, and its stages as they stand in every round."""
    stages, own = child(group, "stages"), child(group, "group")
    nodes = [node for node in stages.value if isinstance(node, yaml.MappingNode)] if isinstance(
        stages, yaml.SequenceNode) else []
    named = {name.value: node for node in nodes if isinstance(name := child(node, "name"), yaml.ScalarNode)}
    return named | ({own.value: group} if isinstance(own, yaml.ScalarNode) else {})


def expand(tree: yaml.MappingNode) -> None:
    """Write the groups out, in place; a file without one stays as it is.

    Raises:
        ConfigErrors: a group has an unknown key, a name that means two things, or refers to no round.
    """
    groups = dict(groups_of(tree))
    if not groups:
        return
    if child(tree, "groups") is not None:
        raise ConfigErrors([ConfigError("is written when a group is expanded, and stands beside one",
                                        where=place(tree, ("groups",)), expected="the groups among `stages` alone")])
    stages = child(tree, "stages")
    assert isinstance(stages, yaml.SequenceNode)
    made: list[yaml.Node] = []
    last: dict[str, str] = {}
    """Name of a group's stage -> what its last round's is called."""
    records: list[yaml.Node] = []
    for index, node in enumerate(stages.value):
        if index not in groups:
            made.append(_renamed(_copied(node, ("stages", index)), last))
            continue
        group = _Group(node, index, last)
        rounds, results = group.rounds(), group.results()
        made += [*(stage for one in rounds for stage in one), *results]
        record: dict[str, Any] = {"name": group.name, "rounds": [[_name(stage) for stage in one] for one in rounds]}
        records.append(_node(record | ({"results": list(map(_name, results))} if results else {}), node))
        last |= dict(zip(group.names, map(_name, rounds[-1]), strict=True))
        for result in map(_name, results):
            del last[result]
    stages.value = made
    tree.value = [(key, _aims(value, last) if key.value == "aims" else value) for key, value in tree.value]
    groups_node = yaml.SequenceNode("tag:yaml.org,2002:seq", records, stages.start_mark, stages.end_mark)
    tree.value.append((yaml.ScalarNode("tag:yaml.org,2002:str", "groups", stages.start_mark, stages.end_mark),
                       groups_node))


def once(findings: list[ConfigError]) -> list[ConfigError]:
    """What is wrong alike in several rounds is said once, without naming a round; all else stays as it is."""
    made: dict[object, tuple[str, ConfigError]] = {}
    """What a finding is apart from its round -> the first round that has it, and what is said."""
    for index, one in enumerate(findings):
        match = _ROUND.search(one.where or "")
        if match is None:
            made[index] = "", one
            continue
        where = _ROUND.sub(")", one.where or "")
        same = (where, one.problem, re.sub(r"-\d+\b", "", str(one.found)))
        if same not in made:
            made[same] = match[0], one
        elif made[same][0] == match[0]:
            made[index] = match[0], one
        else:
            first = made[same][1]
            made[same] = made[same][0], ConfigError(first.problem, where=where, found=first.found,
                                                    expected=first.expected, hint=first.hint)
    return [one for _, one in made.values()]


class _Group:
    """One group, checked, and its stages as nodes."""

    def __init__(self, node: yaml.MappingNode, index: int, last: Mapping[str, str]) -> None:
        node.origin = ("stages", index)  # type: ignore[attr-defined]
        config = validated(Group, node)
        listed = child(node, "stages")
        assert isinstance(listed, yaml.SequenceNode)
        self.node, self.index, self.last = node, index, last
        self.name, self.count, self.stages = config.group, config.rounds, listed.value
        self.names = [str(stage.get("name", "")) for stage in config.stages]
        self.first = {name: last.get(stage, stage) for name, stage in config.first.items()}
        self.gate = config.gate
        self.policies = [name for name, stage in zip(self.names, config.stages, strict=True)
                         if name in self.first and _makes(stage) == "policy"] if config.gate is not None else []
        """Stages whose model is chosen after the group."""
        self.asked: set[str] = set()
        """Names that some stage asks the round before for."""
        if findings := list(self._findings(config)):
            raise ConfigErrors(findings)

    def _findings(self, config: Group) -> Iterator[ConfigError]:
        written_out = {f"{name}-{number}": name for name in self.names for number in range(1, self.count + 1)}
        for index, stage in enumerate(config.stages):
            where = place(self.node, ("stages", index, "name"))
            if not isinstance(stage.get("name"), str):
                yield ConfigError("a key is missing" if "name" not in stage else "not text", where=where,
                                  found=stage.get("name"), expected="name: ...")
            elif "group" in stage:
                yield ConfigError("a group stands in a group", where=where, found=stage["group"],
                                  expected="stages; rounds of rounds are not offered")
            elif self.names.index(stage["name"]) != index:
                yield ConfigError("two stages have the same name", where=where, found=stage["name"],
                                  expected="a name of its own")
            elif stage["name"] in written_out:
                yield ConfigError(f"is what a round of {written_out[stage['name']]} is called", where=where,
                                  found=stage["name"], expected="a name of its own")
        if self.name in self.names or self.name in self.last:
            yield ConfigError("a stage has the name of the group", where=place(self.node, ("group",)), found=self.name,
                              expected="a name of its own")
        for name, stage_name in config.first.items():
            where = place(self.node, ("first", name))
            if name not in self.names:
                yield ConfigError("the group has no such stage", where=where, found=name,
                                  expected="one of " + ", ".join(self.names))
            elif stage_name in self.names:
                yield ConfigError("is a stage of the group itself", where=where, found=stage_name,
                                  expected="a stage before the group")

        if config.gate is not None:
            yield from self._gate_findings(config.gate)

    def _gate_findings(self, gate: str) -> Iterator[ConfigError]:
        where = place(self.node, ("gate",))
        try:
            stages = {name.split(".")[-1] for name in stages_of(parse_aim(_PREVIOUS_IN.sub(r"\g<name>", gate)))}
        except ValueError as error:
            yield ConfigError("not a bound", where=where, found=gate, expected=str(error))
            return
        if not stages & set(self.names):
            yield ConfigError("asks for nothing that a round measures, so it is the same in each", where=where,
                              found=gate, expected="a metric of one of " + ", ".join(self.names))
        if not self.policies:
            yield ConfigError("there is no model to go on with where round 1 does not meet the gate", where=where,
                              found=gate, expected="first: {NAME: STAGE}, NAME being a stage of the group that makes a "
                                                   "language model")

    def results(self) -> list[yaml.Node]:
        """With a gate, a stage of kind choose for each model that later stages may name."""
        if self.gate is None:
            return []
        at, origin = child(self.node, "gate"), ("stages", self.index, "gate")
        assert at is not None
        bounds = []
        for number in range(1, self.count + 1):
            text, wrong = self._bound(self.gate, number)
            if wrong:
                raise ConfigErrors(wrong)
            bounds.append(text)
        return [_all_of(origin, _node({
            "name": name, "kind": "choose", "models": [self.first[name], *self._each(name)], "bounds": bounds}, at))
            for name in self.policies]

    def _each(self, name: str) -> list[str]:
        return [f"{name}-{number}" for number in range(1, self.count + 1)]

    def _bound(self, gate: str, number: int) -> tuple[str, list[ConfigError]]:
        """The gate by the names of one round."""
        findings = []

        def before(match: re.Match[str]) -> str:
            name = match["name"]
            if name not in self.names or (number == 1 and name not in self.first):
                findings.append(ConfigError(
                    "no stage of the group has this name" if name not in self.names
                    else "round 1 has no round before it", where=place(self.node, ("gate",)), found=match[0],
                    expected="one of " + ", ".join(f"previous.{each}" for each in self.names)
                    if name not in self.names else f"first: {{{name}: STAGE}} in the group, a stage before it"))
                return name
            return self.first[name] if number == 1 else f"{name}-{number - 1}"

        kept = _PREVIOUS_IN.sub(before, gate)
        return _METRIC.sub(partial(_called, {**self.last, **{each: f"{each}-{number}" for each in self.names}}),
                           kept), findings

    def rounds(self) -> list[list[yaml.Node]]:
        """The stages of each round."""
        made, findings = [], []
        for number in range(1, self.count + 1):
            stages = []
            for index, template in enumerate(self.stages):
                stage = _copied(template, ("stages", self.index, "stages", index))
                stage.round = f", round {number}"  # type: ignore[attr-defined]
                kept: set[int] = set()
                findings += list(self._with_previous(stage, stage, (), number, kept))
                name = child(stage, "name")
                assert name is not None
                name.value = f"{name.value}-{number}"
                own = {each: f"{each}-{number}" for each in self.names}
                stages.append(_renamed(stage, {**self.last, **own}, kept))
            made.append(stages)
        findings += [ConfigError("no stage of the group asks for it", where=place(self.node, ("first", name)),
                                 found=name, expected=f"previous.{name} in a stage of the group; or without this key")
                     for name in self.first if name not in self.asked and name not in self.policies]
        if findings:
            raise ConfigErrors(once(findings))
        return made

    def _with_previous(
        self, stage: yaml.Node, node: yaml.Node, loc: Place, number: int, kept: set[int],
    ) -> Iterator[ConfigError]:
        """Put the round before in place of `previous.NAME`, anywhere in a stage; `kept` gets what was put."""
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                yield from self._with_previous(stage, value, (*loc, key.value), number, kept)
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                yield from self._with_previous(stage, value, (*loc, index), number, kept)
        elif match := _PREVIOUS.fullmatch(node.value):
            name, split = match["name"], match["split"] or ""
            self.asked.add(name)
            if name not in self.names:
                yield ConfigError("no stage of the group has this name", where=place(stage, loc), found=written(node),
                                  expected="one of " + ", ".join(f"previous.{each}" for each in self.names))
            elif number == 1 and name not in self.first:
                yield ConfigError("round 1 has no round before it", where=place(stage, loc), found=written(node),
                                  expected=f"first: {{{name}: STAGE}} in the group, a stage before it")
            else:
                kept.add(id(node))
                node.value = (self.first[name] if number == 1 else f"{name}-{number - 1}") + split


def _renamed(stage: yaml.Node, names: Mapping[str, str], kept: set[int] | None = None) -> yaml.Node:
    """The stage with the stages that it names called as `names` says, in place; one that is wrong in itself stays as it
    is, and is told of as it is.

    Args:
        kept: ids of nodes to leave alone.
    """
    try:
        found = list(_adapter().validate_python(frozen(value_of(stage))).names()) if names else []
    except ValidationError:
        return stage
    for loc in found:
        node: yaml.Node | None = stage
        for part in loc:
            node = child(node, part)
        if isinstance(node, yaml.ScalarNode) and id(node) not in (kept or ()):
            name, slash, split = node.value.partition("/")
            node.value = names.get(name, name) + slash + split
    return stage


def _aims(node: yaml.Node, last: Mapping[str, str]) -> yaml.Node:
    """Aims that name a stage of a group mean its last round: as the stage of a metric, and as a model in it."""
    if isinstance(node, yaml.SequenceNode):
        for aim in node.value:
            if isinstance(aim, yaml.ScalarNode):
                aim.value = _METRIC.sub(partial(_called, last), aim.value)
    return node


def _called(names: Mapping[str, str], match: re.Match[str]) -> str:
    """A metric with its stage, and the models in it, called as `names` says."""
    stage, *rest = match[0].split(".")
    if len(rest) > 1:
        rest[0] = "_vs_".join(names.get(name, name) for name in rest[0].split("_vs_"))
    return ".".join([names.get(stage, stage), *rest])


def _makes(stage: Mapping[str, Any]) -> str | None:
    """What a stage makes, by its class; None for one that is of none, which is told of elsewhere."""
    tag = stage_tag(stage)
    return next((kind.makes for kind in KINDS if kind.tag == tag), None)


def _all_of(origin: Place, node: yaml.Node) -> yaml.Node:
    """The node with all that it holds as made of one place of the file."""
    node.origin = origin  # type: ignore[attr-defined]
    if isinstance(node, yaml.MappingNode):
        for _, value in node.value:
            _all_of(origin, value)
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value, start=1):
            item.round = f", round {number}"
            _all_of(origin, item)
    return node


def _copied(node: yaml.Node, origin: Place | None = None) -> yaml.Node:
    """A node of its own, with the marks of the one that it is a copy of; an alias becomes another copy."""
    made = copy.copy(node)
    if isinstance(node, yaml.MappingNode):
        made.value = [(key, _copied(value)) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        made.value = [_copied(value) for value in node.value]
    if origin is not None:
        made.origin = origin  # type: ignore[attr-defined]
    return made


def _name(stage: yaml.Node) -> str:
    name = child(stage, "name")
    assert isinstance(name, yaml.ScalarNode)
    return str(name.value)


def _node(value: Any, at: yaml.Node) -> yaml.Node:
    """A value as nodes that stand where another one stands."""
    if isinstance(value, dict):
        return yaml.MappingNode("tag:yaml.org,2002:map", [(_node(key, at), _node(item, at))
                                                          for key, item in value.items()], at.start_mark, at.end_mark)
    if isinstance(value, list):
        return yaml.SequenceNode("tag:yaml.org,2002:seq", [_node(item, at) for item in value], at.start_mark,
                                 at.end_mark)
    return yaml.ScalarNode("tag:yaml.org,2002:str", value, at.start_mark, at.end_mark)
