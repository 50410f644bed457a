"""docs/chart-values.md from values.yaml: every value with its default and the comment that stands above it.

    python charts/values_table.py > docs/chart-values.md
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

VALUES = Path(__file__).with_name("kubealign") / "values.yaml"
_HEAD = """# Values of the Helm chart
Made from charts/kubealign/values.yaml by `python charts/values_table.py > docs/chart-values.md`; change it there.
`values-dev.yaml` is for a first try on one node, `values-gpu.yaml` shows GPU worker groups, S3, Kueue and monitoring.
"""


@dataclass(frozen=True)
class Value:
    """One key of values.yaml.

    Attributes:
        path: dotted, as for `--set`.
        comment: the comment directly above the key; empty where there is none.
        default: the value; None for a section (a mapping in block style).
    """

    path: str
    comment: str
    default: str | None


def values(text: str) -> list[Value]:
    """Sections and values in the order of the file."""
    return list(_walk(yaml.compose(text), text.splitlines(), ""))


def page(found: list[Value]) -> str:
    """The whole Markdown page."""
    lines = [_HEAD]
    for value in found:
        if value.default is None and "." not in value.path:
            lines += [f"\n## {value.path}\n{value.comment}\n\n| value | default | what |\n|---|---|---|\n"]
        elif value.default is None:
            lines += [f"| `{value.path}` | | {value.comment} |\n"]
        else:
            lines += [f"| `{value.path}` | `{value.default}` | {value.comment} |\n"]
    return "".join(lines)


def _walk(node: yaml.Node | None, lines: list[str], above: str) -> Iterator[Value]:
    assert isinstance(node, yaml.MappingNode)
    for key, value in node.value:
        path = f"{above}.{key.value}" if above else key.value
        section = isinstance(value, yaml.MappingNode) and not value.flow_style
        yield Value(path, _comment(lines, key.start_mark.line), None if section else json.dumps(_plain(value)))
        if section:
            yield from _walk(value, lines, path)


def _comment(lines: list[str], line: int) -> str:
    """The comment block that ends right above `line` and is indented like it, as one sentence."""
    indent = re.match(r" *", lines[line])
    start = f"{indent[0] if indent else ''}# "
    first = line
    while first > 0 and lines[first - 1].startswith(start):
        first -= 1
    return " ".join(text.removeprefix(start).strip() for text in lines[first:line])


def _plain(node: yaml.Node) -> Any:
    return yaml.SafeLoader("").construct_object(node, deep=True)


if __name__ == "__main__":
    sys.stdout.write(page(values(VALUES.read_text(encoding="utf-8"))))
