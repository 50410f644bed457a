"""`schema` and `templates`: what the package itself knows, for editors and for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from alignment.cli.show import say, table
from alignment.config import Run
from alignment.errors import ConfigError


def run_schema() -> dict[str, Any]:
    """JSON schema (2020-12) of a run file, with the docstrings as descriptions."""
    schema = Run.model_json_schema()
    for definition in schema["$defs"].values():
        properties = definition.get("properties", {})
        # Our models default `kind` to their own, but a stage of a run file is told apart by it.
        if "const" in properties.get("kind", {}) and "kind" not in definition.get("required", []):
            definition["required"] = ["kind", *definition.get("required", [])]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "KubeAlign run"}


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
