"""A migrated run as a file and as a table: what became of each key stands in both."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from alignment.cli.migrate import Migrated, axolotl, llama_factory, migrate, tool_of
from alignment.cli.migrate.carried import Carried
from alignment.config.yaml_file import parse_tree, read_text
from alignment.config.yaml_text import Dumper
from alignment.errors import ConfigError, ConfigErrors

_WIDTH = 110


def from_file(file: Path, name: str, processes: int, method: str | None) -> Migrated:
    """What `migrate` makes of a file, with what lies beside it: dataset_info.json, a DeepSpeed file.

    Raises:
        ConfigError: as `migrate`, or the file or one beside it cannot be read.
    """
    expected = f"a training file of {llama_factory.TOOL}, {axolotl.TOOL} or TRL"
    given, _ = parse_tree(read_text(file, "training"), str(file), "training", expected)
    tool = tool_of(given, str(file))
    infos, folder = (None, None) if tool != llama_factory.TOOL else _infos(given, file)
    named = given.get("deepspeed")
    beside = None if not isinstance(named, str) else _beside(named, file)
    return migrate(given, str(file), name, processes=processes, method=method, infos=infos, folder=folder,
                   deepspeed=None if beside is None else _json(beside))


def _infos(given: Mapping[str, Any], file: Path) -> tuple[Mapping[str, Any] | None, str | None]:
    named = given.get("dataset_dir")
    found = _beside(f"{named if isinstance(named, str) else 'data'}/dataset_info.json", file)
    return (None, None) if found is None else (_json(found), str(found.parent))


def _beside(named: str, file: Path) -> Path | None:
    """A file by its path from the working directory, else from another file's folder."""
    return next((path for path in (Path(named), file.parent / named) if path.is_file()), None)


def _json(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"cannot be read: {error}", where=str(path), expected="a JSON object") from error
    if not isinstance(value, dict):
        raise ConfigError("is no JSON object", where=str(path), found=type(value).__name__, expected="a JSON object")
    return value


def text_of(made: Migrated, file: str) -> str:
    """The run file: the run, and above it as comments what was not carried, or is treated otherwise."""
    lines = [f"From {made.tool}'s {Path(file).name}, by `kubealign init --from`."]
    for title, rows in (("Not carried", [one for one in made.carried if one.to is None]),
                        ("Carried, and treated otherwise", [one for one in made.carried if one.to and one.note])):
        if rows:
            lines += ["", f"{title}:", *(f"  {_row(one)}" for one in rows)]
    if made.said:
        lines += ["", f"Left out there, and decided as {made.tool} decides it:", *(f"  {said}" for said in made.said)]
    wrapped = [part for line in lines for part in (textwrap.wrap(line, _WIDTH, subsequent_indent="      ") or [""])]
    text = yaml.dump(made.run, Dumper=Dumper, sort_keys=False, allow_unicode=False, width=_WIDTH,
                     default_flow_style=None)
    return "".join(f"# {line}".rstrip() + "\n" for line in wrapped) + "\n" + text


def rows_of(made: Migrated) -> Iterator[tuple[str, str, str]]:
    """(key, where it stands now, how it differs or why it is not carried) of every key, in the file's order."""
    yield from ((one.key, one.to or "not carried", one.note) for one in made.carried)


def _row(one: Carried) -> str:
    return f"{one.key}{'' if one.to is None else f' -> {one.to}'}: {one.note}"


def checked(text: str, name: str) -> None:
    """Whether a written run loads. Raises ConfigError naming what of the other tool's values no stage takes."""
    from alignment.config import parse_run

    try:
        parse_run(text)
    except ConfigErrors as errors:
        said = "; ".join(f"{one.problem} (found {one.found!r}, expected {one.expected})" for one in errors.findings[:3])
        raise ConfigError("has values that no stage here takes", where=name, found=said,
                          expected="values within a stage's bounds: kubealign explain KEY") from errors
