"""`export`: a model of any run, folder or hub as folders and files for other programs, without a run file.

Builds the run file that imports it and exports it, runs it, and links the files into a folder.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from alignment.cli import execute
from alignment.cli.eval import BaseOption, SaveOption, SetOption, StoreOption, TemplateOption
from alignment.cli.named import Named, Tree, stage_name
from alignment.cli.show import say
from alignment.cli.without_file import run_file
from alignment.errors import ConfigError

_WEIGHTS = (".safetensors", ".gguf")


def export(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="An artifact's key, RUN:STAGE, the folder of a model or adapter, a GGUF "
                                             "file, or OWNER/NAME of the hub."),
    ],
    to: Annotated[str, typer.Option("--to", metavar="DIR", help="Folder for the files; it must be empty or new.")],
    form: Annotated[
        str, typer.Option("--form", help="safetensors, adapter, gguf, nf4, fp8; several with commas.")
    ] = "safetensors",
    gguf: Annotated[
        str | None, typer.Option("--gguf", help="Types of GGUF files: f32, f16, bf16, q8_0; several with commas.")
    ] = None,
    rows: Annotated[
        str | None,
        typer.Option("--rows", metavar="KEY/SPLIT", help="Rows that compare it: KEY/SPLIT or RUN:STAGE/SPLIT of a run. "
                                                         "Default: built-in prompts."),
    ] = None,
    push: Annotated[
        str | None, typer.Option("--push", metavar="OWNER/NAME", help="Push to the hub, with HF_TOKEN.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --push: list what would be sent.")] = False,
    template: TemplateOption = None,
    base: BaseOption = None,
    store: StoreOption = "runs",
    save: SaveOption = None,
    overrides: SetOption = None,
) -> None:
    """Export a model: merged, converted, compared with what was trained, with a model card."""
    target = Path(to)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError("the folder is there already, and not empty", where="--to", found=to,
                          expected="a new folder, so that no older file stands among the new")
    if dry_run and push is None:
        raise ConfigError("lists what a push would send", where="--dry-run", expected="--push OWNER/NAME beside it")
    named = Named(store, template, base)
    name = named.model(model)
    stages = named.written()
    stage: Tree = {"name": "export", "kind": "export", "model": name, "form": form.split(",")}
    stage |= {} if gguf is None else {"gguf": gguf.split(",")}
    if rows is not None:
        brought, split = named.rows(rows, "data")
        stages.append(brought)
        stage["rows"] = f"data/{split}"
    stage |= {} if push is None else {"push_to_hub": {"repo": push, "dry_run": dry_run}}
    file = run_file("export", stage_name(Path(model).name), [*stages, stage], overrides, store=store, save=save)
    execute.run(file)
    say(f"{_linked(file, target)} files in {target}; run file: {file}")


def _linked(file: str, target: Path) -> int:
    """Put the exported files into a folder, weights as links where that goes; how many."""
    from alignment.artifacts.bring import taken_over
    from alignment.config import load_run
    from alignment.pipeline import status

    artifact = status(load_run(file))["export"]
    assert artifact is not None
    files: dict[str, str] = artifact.manifest.facts["files"]
    for name, within in files.items():
        source, other = artifact.path() / within, target / name
        if source.suffix in _WEIGHTS:
            taken_over(source, other)
        else:  # texts, which are edited: a link would change the artifact
            other.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, other)
    return len(files)
