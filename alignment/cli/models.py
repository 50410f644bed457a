"""`models`: what a store has that another run, or a command, can name: models and row sets, with their names.

Reads manifests and what models say of themselves; no weights.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from alignment.cli.show import memory, say, table

if TYPE_CHECKING:
    from alignment.artifacts import Artifact, Store

_INFO = "model/kubealign.json"


def models(
    store: Annotated[str, typer.Option("--store", metavar="DIR|URL", help="The store to look into.")] = "runs",
) -> None:
    """The models and row sets of a store, by the names that eval, infer and `source: artifact` take."""
    from alignment.artifacts import Store
    from alignment.config.stages.fields import on_this_machine
    from alignment.errors import ArtifactError

    there = Store(store if "://" in store else str(on_this_machine(store)))
    found: list[Artifact] = []
    damaged: list[str] = []
    for key in there.listed():
        try:
            found += filter(None, [there.find(key)])
        except ArtifactError as error:
            damaged.append(f"! {key}: {error.problem}")
    found = [one for one in found if not _is_link(one, there)]
    found.sort(key=lambda one: one.manifest.finished, reverse=True)
    names = _names(there)
    made = [(one.key, ", ".join(names.get(one.key, ())), _what(one), _size(one), one.manifest.finished)
            for one in found if _INFO in one.manifest.files]
    rows = [(one.key, ", ".join(names.get(one.key, ())),
             ", ".join(f"{split} ({count:,})" for split, count in one.manifest.rows.written.items()),
             one.manifest.finished) for one in found if any(name.startswith("rows/") for name in one.manifest.files)]
    for line in damaged:
        say(line)
    if not made and not rows:
        say(f"no finished model and no rows in {there.url}")
        return
    if made:
        table(("model", "made as", "what", "size", "finished"), made, right=("size",), spare=("finished", "size"))
    if made and rows:
        say()
    if rows:
        table(("rows", "made as", "row sets", "finished"), rows, spare=("finished",))


def _is_link(artifact: Artifact, store: Store) -> bool:
    """Whether it is another artifact of the same store, brought into a later run."""
    said = artifact.manifest.facts.get("artifact")
    return isinstance(said, dict) and not artifact.manifest.inputs and said.get("store") == store.url


def _names(store: Store) -> dict[str, list[str]]:
    """Key -> RUN:STAGE that mean it now."""
    from alignment.data.artifact_source import STAGES

    found: dict[str, list[str]] = {}
    for run in store.runs():
        for stage, key in json.loads(store.read_run_file(run, STAGES) or "{}").items():
            found.setdefault(str(key), []).append(f"{run}:{stage}")
    return found


def _what(artifact: Artifact) -> str:
    """`policy, adapter on import-model-...`, `reward, whole`."""
    store, path = artifact.store, f"artifacts/{artifact.key}/{_INFO}"
    try:
        with store.guard(path, "read"):
            info = json.loads(store.fs.cat_file(f"{store.root}/{path}"))
        role, base = str(info["role"]), info["base"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return f"damaged: no usable {_INFO}"
    return f"{role}, {'whole' if base is None else f'adapter on {base}'}"


def _size(artifact: Artifact) -> str:
    return memory(sum(entry.size for name, entry in artifact.manifest.files.items() if name.startswith("model/")))
