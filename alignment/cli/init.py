"""`init`: a commented starting file and the small data file that it reads; or a run from another tool's file.

A recipe is a run file with two kinds of blanks: @NAME@ becomes the run's name, @FILE@ (for example @qa.jsonl@)
becomes the path of a copy of that example file, laid beside the run file.
"""

from __future__ import annotations

import json
import re
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated

import typer

from alignment.cli.show import say, table
from alignment.errors import ConfigError

_BLANK = re.compile(r"@([A-Za-z][\w.-]*)@")


def recipes() -> dict[str, str]:
    """Names of the shipped recipes, each with its first comment line."""
    files = sorted(_folder().iterdir(), key=lambda file: file.name)
    return {
        file.name.removesuffix(".yaml"): file.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ")
        for file in files if file.name.endswith(".yaml")
    }


def init(
    file: Annotated[str | None, typer.Argument(metavar="RUN.yaml", help="The file to write.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Which recipe to start from (default: qa); --list shows "
                                                        "them.")] = None,
    source: Annotated[Path | None, typer.Option(
        "--from", metavar="FILE", help="Instead of a recipe: a training YAML of LLaMA-Factory, Axolotl or TRL; says "
                                       "what became of each of its keys.")] = None,
    processes: Annotated[int, typer.Option("--processes", min=1, help="With --from: how many processes it was trained "
                                                                      "on, over which batches are counted.")] = 1,
    method: Annotated[str | None, typer.Option("--method", help="With --from, for TRL: what it was called with (sft, "
                                                                "reward, dpo, kto, orpo).")] = None,
    list_recipes: Annotated[bool, typer.Option("--list", help="List the recipes and end.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")] = False,
) -> None:
    """Write a starting run file, with example data beside it."""
    known = recipes()
    if list_recipes:
        table(("recipe", "what it does"), list(known.items()))
        return
    if file is None:
        raise typer.BadParameter("name the file to write, for example my-run.yaml", param_hint="RUN.yaml")
    if source is not None:
        if recipe is not None:
            raise ConfigError("a run starts from one of them", where="--recipe", found=f"{recipe}, and --from {source}",
                              expected="--recipe NAME or --from FILE")
        _migrated(source, Path(file), processes, method, force=force)
        return
    if method is not None or processes != 1:
        raise ConfigError("is for files of other tools", where="--method" if method else "--processes",
                          expected="--from FILE beside it")
    recipe = recipe or "qa"
    if recipe not in known:
        raise ConfigError("no recipe of this name", where="--recipe", found=recipe,
                          expected="one of " + ", ".join(known))
    written = write_recipe(recipe, Path(file), force=force)
    for path in written:
        say(f"wrote {path}")
    _next(file)


def _migrated(source: Path, target: Path, processes: int, method: str | None, *, force: bool) -> None:
    from alignment.cli.migrate.written import checked, from_file, rows_of, text_of

    made = from_file(source, _run_name(target.stem), processes, method)
    text = text_of(made, str(source))
    checked(text, str(source))
    _write({target: text}, force=force)
    table((f"{made.tool}'s key", "here", ""), list(rows_of(made)))
    say()
    for said in made.said:
        say(f"! {said}")
    lost = sum(one.to is None for one in made.carried)
    say(f"wrote {target}: {len(made.carried) - lost} of {len(made.carried)} keys carried; the others, and those that "
        "are treated otherwise, stand at its top with the reason")
    _next(str(target))


def _next(file: str) -> None:
    say("\nNext:")
    for verb, why in (("check", "finds every mistake in it"), ("plan", "rows, memory and time of each stage"),
                      ("run", "make it; run it again to resume")):
        say(f"  kubealign {verb} {file}".ljust(40) + f"  # {why}")


def write_recipe(recipe: str, target: Path, *, force: bool = False) -> list[Path]:
    """Write a recipe and its example files; returns the paths, the run file first.

    Raises:
        ConfigError: a file is there already and `force` is False, or a folder cannot be written.
    """
    text = (_folder() / f"{recipe}.yaml").read_text(encoding="utf-8")
    contents: dict[Path, str] = {}

    def fill(match: re.Match[str]) -> str:
        if match[1] == "NAME":
            return _run_name(target.stem)
        beside = target.with_name(f"{target.stem}-{match[1]}")
        contents[beside] = (_folder() / match[1]).read_text(encoding="utf-8")
        return json.dumps(str(beside), ensure_ascii=False)  # a JSON string is a YAML string, whatever the path holds

    contents = {target: _BLANK.sub(fill, text), **contents}
    _write(contents, force=force)
    return list(contents)


def _write(contents: dict[Path, str], *, force: bool) -> None:
    """Raises ConfigError as `write_recipe` does."""
    taken = [str(path) for path in contents if path.exists()]
    if taken and not force:
        raise ConfigError("would overwrite", where="init", found=", ".join(taken), expected="files that are not there",
                          hint="choose another name, or add --force")
    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot be written: {error}", where=str(next(iter(contents)))) from error


def _folder() -> Traversable:
    return resources.files("alignment.cli") / "recipes"


def _run_name(stem: str) -> str:
    """A name that the config accepts: lower-case letters, digits and hyphens, a letter first."""
    name = re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")
    return (name if name[:1].isalpha() else f"run-{name}".rstrip("-"))[:40]
