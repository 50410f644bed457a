"""YAML nodes as errors speak of them: where they stand and how they were written."""

from __future__ import annotations

import yaml

from alignment.errors import Written

Loc = tuple[str | int, ...]
"""Keys and list positions that lead to a value."""


def spot(mark: yaml.Mark) -> str:
    """`FILE:LINE`, 1-based, or the override that it stands in."""
    return mark.name if mark.name.startswith("--set ") else f"{mark.name}:{mark.line + 1}"


def dotted(loc: Loc) -> str:
    """`stages[2].trl.beta`"""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")


def written(node: yaml.Node) -> Written:
    """A node as it stands in the file: `010`, `'1e-4'`, `a list of 3`."""
    if isinstance(node, yaml.MappingNode):
        return Written("", f"a mapping with {', '.join(key.value for key, _ in node.value) or 'nothing in it'}")
    if isinstance(node, yaml.SequenceNode):
        return Written("", f"a list of {len(node.value)}")
    assert isinstance(node, yaml.ScalarNode)
    said = getattr(node, "said", None)
    if isinstance(said, Written):
        return said
    if node.style in ("'", '"') and node.value.isprintable():
        shown = f"{node.style}{node.value}{node.style}"
    elif node.style is None and node.value.isprintable():
        shown = node.value or "nothing"
    else:
        shown = repr(node.value)
    return Written(node.value, shown)


def place(node: yaml.Node, loc: Loc) -> str:
    """`FILE:LINE (dotted.key)`, the line being that of the deepest part of `loc` that the file has.

    A node that was made of another (a round's stage of its group's) has that one's place as `origin`, and `round`.
    """
    mark, here = node.start_mark, node
    shown, of_round = getattr(node, "origin", ()), getattr(node, "round", "")
    for index, part in enumerate(loc):
        inner = child(here, part)
        if inner is None:
            shown = (*shown, *loc[index:])
            break
        shown, of_round = getattr(inner, "origin", (*shown, part)), getattr(inner, "round", of_round)
        mark = inner.start_mark
        if isinstance(here, yaml.MappingNode):
            mark = next(key.start_mark for key, _ in here.value if key.value == part)
        here = inner
    return f"{spot(mark)} ({dotted(shown)}{of_round})" if loc else spot(mark)


def child(node: yaml.Node | None, part: str | int) -> yaml.Node | None:
    """What a mapping holds under a key, or a list at a place."""
    if isinstance(node, yaml.MappingNode):
        return next((value for key, value in node.value if key.value == part), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        found: yaml.Node = node.value[part]
        return found
    return None
