"""`schema` and `templates`: what the package itself knows, for editors and for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from alignment.cli.show import say, table
from alignment.config import Run
from alignment.config.rounds import Group
from alignment.config.stages.fields import NAME, ROWS
from alignment.errors import ConfigError

_PARAMETER = r"^\$\{\w+\}$"


def run_schema() -> dict[str, Any]:
    """JSON schema (2020-12) of a run file, with the docstrings as descriptions."""
    schema = Run.model_json_schema()
    for definition in schema["$defs"].values():
        properties = definition.get("properties", {})
        # Our models default `kind` to their own, but a stage of a run file is told apart by it.
        if "const" in properties.get("kind", {}) and "kind" not in definition.get("required", []):
            definition["required"] = ["kind", *definition.get("required", [])]
    _with_groups(schema)
    _with_parameters(schema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "KubeAlign run"}


def _with_groups(schema: dict[str, Any]) -> None:
    """Put groups beside the stages: with stages of their own, which may also name those of the round before."""
    definitions, items = schema["$defs"], schema["properties"]["stages"]["items"]
    within = {name: _in_group(definition) for name, definition in definitions.items()}
    group = Group.model_json_schema()
    group["properties"]["stages"]["items"] = _in_group(items)
    definitions |= {f"{name}InGroup": definition for name, definition in within.items()} | {"Group": group}
    items["oneOf"].append({"$ref": "#/$defs/Group"})


def _in_group(node: Any) -> Any:
    """A part of the schema as it is within a group: where a stage is named, `previous.` may stand before it."""
    if isinstance(node, list):
        return [_in_group(item) for item in node]
    if not isinstance(node, dict):
        return node
    made = {key: value if key == "name" else _in_group(value) for key, value in node.items()}
    if made.get("pattern") in (NAME, ROWS):
        made["pattern"] = r"^(previous\.)?" + made["pattern"].removeprefix("^")
    if "$ref" in made:
        made["$ref"] += "InGroup"
    return made


def _with_parameters(node: Any) -> None:
    """Let ${name} stand where a text has a pattern, or is one of a few; what it becomes, the loader looks at."""
    for part in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        _with_parameters(part)
    if not isinstance(node, dict) or node.get("type") != "string":
        return
    if isinstance(node.get("pattern"), str):
        node["pattern"] = f"(?:{node['pattern']})|(?:{_PARAMETER})"
    elif "enum" in node:
        node["anyOf"] = [{"enum": node.pop("enum")}, {"pattern": _PARAMETER}]


def schema(
    out: Annotated[str | None, typer.Option(metavar="FILE", help="Write to a file instead of stdout.")] = None,
) -> None:
    """The JSON schema of a run file, for completion in editors."""
    text = json.dumps(run_schema(), indent=2, ensure_ascii=False)
    if out is None:
        print(text)
        return
    try:
        Path(out).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot be written: {error}", where=out) from error
    say(f"wrote {out}; name it in a run file's first line:")
    say(f"  # yaml-language-server: $schema={out}")


def templates() -> None:
    """The chat templates that an import stage can name in `template`."""
    from alignment.templates import shipped

    table(("template", "what it is"), list(shipped().items()))
