"""A run that a command line describes, as a run file: written where it can be looked at and run again, then run as any.

Nothing here is made otherwise than by `kubealign run` of that file: finished stages are found, a killed one goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignment.cli.named import Named, Tree, stage_name
from alignment.config import Run, load_run, parse_run
from alignment.config.yaml_text import dump
from alignment.errors import ConfigError


def run_file(
    verb: str, called: str, stages: Sequence[Tree], overrides: Sequence[str] | None, *, store: str, save: str | None,
    engine: str | None = None,
) -> str:
    """Path of the run file of such a run; its name in the store is VERB-CALLED-DIGEST, so that the same command line
    is the same run.

    Args:
        overrides: `--set` of the command line, which stand in the file as values.
        save: where the user wants it; default: beside the run in its store, or in the cache for a store elsewhere.

    Raises:
        ConfigErrors: what it describes is no run.
        ConfigError: it would overwrite another file, or cannot be written.
    """
    from alignment.artifacts import cache_folder, digest_of

    tree = {"name": verb, "store": store, **({} if engine is None else {"compute": {"engine": engine}}),
            "stages": list(stages)}
    run = parse_run(dump(tree), f"kubealign {verb}", overrides or ())
    written: dict[str, Any] = run.model_dump(mode="json", exclude_unset=True)
    del written["name"]
    text = stage_name(f"{verb}-{called}")[:31].rstrip("-")
    name = f"{text}-{digest_of(written)[:8]}"
    content = dump({"name": name, **written})
    if save is not None:
        path = Path(save)
        if path.exists() and path.read_text(encoding="utf-8") != content:
            raise ConfigError("would overwrite another file", where="--save", found=save,
                              expected="a file that is not there")
    elif "://" in run.store:
        path = cache_folder() / "runs" / f"{name}.yaml"
    else:
        path = Path(run.store, "runs", name, f"{verb}.yaml")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"the run file cannot be written: {error}", where=str(path)) from error
    load_run(path)  # it says what the command line says, or this is a bug
    return str(path)


def importing(folder: Path, store: str) -> tuple[Run, str]:
    """The run that brings a folder's model into a store, and its stage that makes it: to be executed, and found
    finished from then on. Weights keep their dtype; an adapter stands on what its config names.

    Raises:
        ConfigError: an adapter whose base is not named, or not there.
    """
    named = Named(store)
    name = named.model(str(folder))
    return parse_run(dump({"name": "imported", "store": store, "stages": named.written()}), str(folder)), name
