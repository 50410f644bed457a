"""An adapter alone: PEFT's two files with the tokenizer, its base named so that another machine finds it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from alignment.artifacts import Artifact
from alignment.data.adapter_config import CONFIG, WEIGHTS
from alignment.export.folder import rewrite, write_tokenizer
from alignment.inference.info import base_artifact
from alignment.progress import console


def write_adapter(artifact: Artifact, folder: Path, tokenizer: Any, named: str | None, published: Path) -> str:
    """Write the folder; returns what adapter_config.json calls the base.

    Args:
        named: what the user calls it; None: its name on the hub, else its place in the same store.
        published: where the folder will lie in the store.
    """
    folder.mkdir(parents=True, exist_ok=True)
    source = artifact.path() / "model"
    shutil.copyfile(source / WEIGHTS, folder / WEIGHTS)
    shutil.copyfile(source / CONFIG, folder / CONFIG)
    name, revision = base_name(artifact, named, published)

    def renamed(config: dict[str, Any]) -> None:
        config["base_model_name_or_path"], config["revision"] = name, revision

    rewrite(folder / CONFIG, renamed)
    write_tokenizer(tokenizer, folder)
    return name


def base_name(artifact: Artifact, named: str | None, published: Path) -> tuple[str, str | None]:
    """What others call the base, and its revision on the hub.

    A base of the hub goes by its name there, also where it was rounded when it was imported: loaded in that dtype it
    has the same weights. Any other has no name that holds elsewhere, so it is where it lies from the folder.
    """
    if named is not None:
        return named, None
    base = base_artifact(artifact)
    source = base.manifest.facts.get("source", {})
    if source.get("source") == "hub":
        return str(source["repo"]), base.manifest.facts["revision"]
    relative = os.path.relpath(published.parent.parent / base.key / "model", published)
    console.print(f"! export: the base is from no hub, so the adapter names it {relative}, which holds in a copy of "
                  "the store alone; `base_model: NAME` says what others are to load", markup=False)
    return relative, None
