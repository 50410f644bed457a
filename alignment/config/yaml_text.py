"""YAML text -> nodes that know their lines and how they were written, by the core rules of YAML 1.2; and back to text.

One rule for run files, profiles and --set: only true and false are booleans, only what looks like a number to everyone
is one, the rest is text (`no`, `1:30`, `1_000`, `2026-01-01`). What readers of YAML disagree about (`010`) is refused.
Aliases and merge keys are spelled out here, within bounds, so that nobody after this meets a node twice.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import yaml

from alignment.config.yaml_nodes import Loc, dotted, spot, written
from alignment.errors import ConfigError, ConfigErrors

DEPTH = 64
"""Lists and mappings in each other; the deepest run has about ten."""
ALIASED = 20_000
"""What all aliases of a file may stand for, in values (of a hundred letters, where text is longer)."""
_HINTS = {"'\\t'": "indent with blanks, not with tabs",
          "got '{'": 'within { } or [ ] a parameter stands in quotes: "${name}"'}
_TAG = "tag:yaml.org,2002:"
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]+")


def _float(text: str) -> float:
    value = float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    if (math.isinf(value) and "inf" not in text.lower()) or (value == 0 and re.match(r"[^eE]*[1-9]", text)):
        raise ValueError("out of a number's range")
    return value


# Tag -> first letters, form, value. The order counts: a whole number is one before it is any number.
_CORE: dict[str, tuple[str, str, Callable[[str], Any]]] = {
    "null": ("~nN", r"~|null|Null|NULL|", lambda text: None),
    "bool": ("tTfF", r"true|True|TRUE|false|False|FALSE", lambda text: text.lower() == "true"),
    "int": ("-+0123456789", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", lambda text: int(text, 0)),
    "float": ("-+.0123456789", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
              r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", _float),
    "merge": ("<", r"<<", str),
    "str": ("", r"(?s:.*)", str),
}


class Loader(yaml.SafeLoader):
    """Finds the tags of YAML 1.2, within bounds; values are made by `value_of`. `made`: each node once."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own attribute

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.made: list[yaml.Node] = []
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        if self._depth > DEPTH:
            raise yaml.composer.ComposerError(None, None, f"nested more than {DEPTH} deep", self.get_mark())
        alias = self.check_event(yaml.AliasEvent)
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        if node is not None and not alias:
            self.made.append(node)
        return node


class Dumper(yaml.SafeDumper):
    """Quotes whatever YAML 1.1 or 1.2 would take for anything but text, so that every reader reads the same."""


for _name, (_first, _form, _) in _CORE.items():
    for _each in (Loader, Dumper):
        if _name != "str":
            _each.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_form})\Z"),
                                        [*_first, *([""] if _name == "null" else [])])


def dump(tree: Any) -> str:
    """YAML text from which `parse_tree` makes the same tree again; keys stay in order."""
    # Escaped: with allow_unicode PyYAML writes some line separators bare and reads them as blanks.
    return yaml.dump(tree, Dumper=Dumper, sort_keys=False, allow_unicode=False, width=120)


def compose(text: str, name: str) -> yaml.Node | None:
    """The nodes of one YAML document, None for an empty one.

    Args:
        name: of the file, for errors; the nodes' marks carry it.

    Raises:
        ConfigErrors: no valid YAML, a key that stands twice, a number that others read as another one.
    """
    try:
        loader = Loader(text)
        loader.name = name
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = ", ".join(part for part in (error.context, error.problem) if part)
        raise _invalid(said, name if mark is None else spot(mark),
                       next((hint for sign, hint in _HINTS.items() if sign in said), None)) from error
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise _invalid(f"a character that may not stand in it (U+{error.character:04X})", f"{name}:{line}") from error
    if node is None:
        return None
    whole, _ = _measure(node, {})
    if whole - sum(_own_size(each) for each in loader.made) > ALIASED:
        raise _invalid(f"its aliases stand for more than {ALIASED:,} values", name)
    found: dict[str, ConfigError] = {}
    spelled = _spelled_out(node, (), found)
    if found:
        raise ConfigErrors(list(found.values()))
    return spelled


def value_of(node: yaml.Node) -> Any:
    """What a node of `compose` stands for. Keys are text, as they are written."""
    if isinstance(node, yaml.MappingNode):
        return {key.value: value_of(value) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [value_of(value) for value in node.value]
    return _CORE[node.tag.removeprefix(_TAG)][2](node.value)


def _invalid(problem: str, where: str, hint: str | None = None) -> ConfigErrors:
    return ConfigErrors([ConfigError(f"not valid YAML: {problem}", where=where, hint=hint)])


def _measure(node: yaml.Node, seen: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """Values that a node stands for and how deep they go, aliases spelled out; each node is looked at once.

    Args:
        seen: what was measured, by the node's id; None for those that this one lies in.
    """
    if id(node) in seen:
        known = seen[id(node)]
        if known is None:
            raise _invalid("an alias lies within what it stands for", spot(node.start_mark))
        return known
    seen[id(node)] = None
    parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
    inner = [] if isinstance(node, yaml.ScalarNode) else [_measure(part, seen) for part in parts]
    size = sum(size for size, _ in inner) + _own_size(node)
    depth = 1 + max((depth for _, depth in inner), default=0)
    if depth > DEPTH:
        raise _invalid(f"nested more than {DEPTH} deep", spot(node.start_mark))
    seen[id(node)] = (size, depth)
    return size, depth


def _own_size(node: yaml.Node) -> int:
    return 1 + len(node.value) // 100 if isinstance(node, yaml.ScalarNode) else 1


def _spelled_out(node: yaml.Node, loc: Loc, found: dict[str, ConfigError]) -> yaml.Node:
    """A copy without aliases and merge keys; what is wrong goes into `found`, by its place."""
    def wrong(at: yaml.Node, problem: str, expected: str | None = None, place: Loc = loc) -> None:
        where = spot(at.start_mark) + (f" ({dotted(place)})" if place and isinstance(at, yaml.ScalarNode) else "")
        found.setdefault(where, ConfigError(problem, where=where, found=written(at), expected=expected))

    if isinstance(node, yaml.SequenceNode):
        _collection(node, "seq", wrong)
        return yaml.SequenceNode(node.tag, [_spelled_out(part, (*loc, index), found)
                                            for index, part in enumerate(node.value)],
                                 node.start_mark, node.end_mark, node.flow_style)
    if isinstance(node, yaml.MappingNode):
        _collection(node, "map", wrong)
        own: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        merged: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                wrong(key, "not valid YAML: a key is no text")
            elif key.value in own:
                where = spot(key.start_mark)
                found[where] = ConfigError("a key stands twice", where=where, found=key.value,
                                           expected="each key once")
            else:
                inner = _spelled_out(value, (*loc, key.value), found)
                own[key.value] = (key, inner)
                if key.tag == _TAG + "merge":
                    del own[key.value]
                    for pair in _merged(inner, wrong):
                        merged.setdefault(pair[0].value, pair)
        return yaml.MappingNode(node.tag, list({**merged, **own}.values()), node.start_mark, node.end_mark,
                                node.flow_style)
    assert isinstance(node, yaml.ScalarNode)
    form = _CORE.get(node.tag.removeprefix(_TAG)) if node.tag != "!" else None
    if node.tag == _TAG + "merge":  # it is one only as a key
        node = yaml.ScalarNode(_TAG + "str", node.value, node.start_mark, node.end_mark, node.style)
    elif form is None or not re.fullmatch(form[1], node.value):
        wrong(node, f"not valid YAML: {node.tag.replace(_TAG, '!!')} says what this value is, and it is not")
    elif node.tag == _TAG + "int" and _LEADING_ZERO.fullmatch(node.value):
        # YAML 1.2 reads 10 in 010, YAML 1.1 (kubectl, Helm, PyYAML) 8: whoever wrote it expects one of them.
        digits = node.value.lstrip("-+").lstrip("0") or "0"
        sign = "-" if node.value.startswith("-") else ""
        octal = f", 0o{digits} for the octal number" if set(digits) <= set("01234567") and digits != "0" else ""
        wrong(node, "a number that begins with 0, which some readers take for octal",
              f'{sign}{digits}{octal}, or for text in quotes: "{node.value}"')
    else:
        try:
            form[2](node.value)
        except ValueError:
            wrong(node, "a number that no computer holds", f'a smaller one, or for text in quotes: "{node.value}"')
    return node


def _collection(node: yaml.Node, name: str, wrong: Callable[[yaml.Node, str], None]) -> None:
    if node.tag != _TAG + name:
        wrong(node, f"not valid YAML: the tag {node.tag.replace(_TAG, '!!')} means nothing here")


def _merged(value: yaml.Node, wrong: Callable[[yaml.Node, str], None]) -> Iterator[tuple[yaml.Node, yaml.Node]]:
    """The keys that `<<: value` brings, those that win first."""
    for each in value.value if isinstance(value, yaml.SequenceNode) else [value]:
        if isinstance(each, yaml.MappingNode):
            yield from each.value
        else:
            wrong(each, "not valid YAML: << takes a mapping or a list of mappings")
