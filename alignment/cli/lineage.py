"""`lineage`: what a model was made from, back to its documents, and who served it; or where a row went, forward to
every model and endpoint.

    kubealign lineage qa.yaml:dpo
    kubealign lineage --of harbour-17
    kubealign lineage --of data/harbour.jsonl:17 --json
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text
from rich.tree import Tree

from alignment.cli.show import out, say, table
from alignment.errors import ConfigError
from alignment.progress import console

if TYPE_CHECKING:
    from alignment.artifacts import Artifact

_SHOWN = 3
"""Ids of rows in a table's cell."""


def lineage(
    model: Annotated[str | None, typer.Argument(
        metavar="[MODEL]", help="An artifact's key (rows and evaluations too), RUN.yaml:STAGE, RUN:STAGE.")] = None,
    of: Annotated[str | None, typer.Option("--of", metavar="ROW", help="A row's id, or FILE:LINE of an imported file: "
                                                                       "where it went.")] = None,
    store: Annotated[str | None, typer.Option(help="Where artifacts are. Default: runs, or the run file's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All of it, as JSON.")] = False,
) -> None:
    """What a model was made from and who served it; with --of, everything that learned from a row or was measured on
    it, and what of that was served."""
    if (model is None) == (of is None):
        raise ConfigError("lineage is of a model or of a row", where="lineage", found="both" if model else "neither",
                          expected="MODEL, or --of ROW")
    from alignment.artifacts import Store
    from alignment.pipeline.lineage import back, forward
    from alignment.pipeline.named import STORE
    from alignment.pipeline.served_by import Served

    if model is not None:
        artifact = _artifact(model, store)
        made = back(artifact)
        if as_json:
            print(json.dumps(made, ensure_ascii=False))
        else:
            out().print(_tree(made, made["of"], set()), soft_wrap=True)
            for one in made["served"]:
                say(f"served {Served(**one)}")
            if not made["served"] and "model/kubealign.json" in artifact.manifest.files:
                say("served by nobody, as far as proofs in the store tell")
            _not_followed(made["unknown"])
        return
    trail = forward(Store(store or STORE), str(of))
    if as_json:
        served = {key: [asdict(one) for one in by] for key, by in trail.served.items()}
        print(json.dumps({"of": trail.row, "met": [asdict(met) for met in trail.met], "served": served,
                          "unknown": trail.unknown}, ensure_ascii=False))
        return
    table(("artifact", "stage", "", "rows"), [
        (met.key, met.stage, met.how + (f": {met.why}" if met.why else ""), _ids(met.rows)) for met in trail.met])
    say(f"{len(trail.learned)} models have learned from it, or stand on one that has"
        if trail.learned else "no model has learned from it")
    for key, by in trail.served.items():
        for one in by:
            say(f"{key} ({trail.learned[key]}) was served {one}")
    if trail.learned and not trail.served:
        say("none of them has been served, as far as proofs in the store tell")
    _not_followed(trail.unknown)


def _artifact(text: str, store: str | None) -> Artifact:
    from alignment.artifacts import Artifact, Store
    from alignment.pipeline.named import STORE, named

    own = Store(store or STORE).find(text) if "/" not in text and ":" not in text else None
    found = own or named(text, store, makes=("policy", "reward", "embedder"))
    if not isinstance(found, Artifact):
        raise ConfigError("only what a run made has a lineage", where="MODEL", found=text,
                          expected="an artifact's key, RUN.yaml:STAGE or RUN:STAGE")
    return found


def _tree(made: dict[str, Any], key: str, above: set[str], name: str | None = None) -> Tree:
    """One artifact and what it was made from; one that stands in the tree already is named alone."""
    entry = made["artifacts"].get(key)
    label = Text.assemble((f"{name}: " if name else ""), (key, "bold"))
    if entry is None:
        return Tree(label.append(" not there", style="red"))
    if key in above:
        return Tree(label.append(" (above)", style="dim"))
    above.add(key)
    label.append(f"  {entry.get('title') or entry['kind']}, stage {entry['stage']}", style="dim")
    tree = Tree(label)
    for line in _facts(entry):
        tree.add(Text(line))
    for other, input_ in entry.get("inputs", {}).items():
        tree.children.append(_tree(made, input_, above, other))
    return tree


def _facts(entry: dict[str, Any]) -> list[str]:
    rows = entry.get("rows", {})
    lines = []
    if rows:
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in rows.get("dropped", {}).items())
        written = ", ".join(f"{count:,} {split}" for split, count in rows.get("written", {}).items())
        lines.append(f"rows: {rows.get('read', 0):,} read; {written or 'none written'}"
                     + (f"; left out: {dropped}" if dropped else ""))
    lines += [f"file {one['path']}  {_digest(one['sha256'])}" for one in entry.get("sources", [])]
    if entry.get("source"):
        lines.append("from " + ", ".join(_digest(value) if name == "source" else f"{name} {_digest(value)}"
                                         for name, value in entry["source"].items()))
    lines += [f"document {file}: {count:,} passages" for file, count in entry.get("documents", {}).items()]
    lines += [f"prompt {step}  {_digest(digest)}" for step, digest in entry.get("prompts", {}).items()]
    if entry.get("shown"):
        lines.append("made of " + ", ".join(f"{count:,} different {what}" for what, count in entry["shown"].items()))
    return lines


def _digest(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"sha256 {text[:12]}" if len(text) == 64 and set(text) <= set("0123456789abcdef") else text[:100]


def _ids(rows: dict[str, list[str]]) -> str:
    said = []
    for split, ids in rows.items():
        more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
        said.append(f"{split}: {', '.join(ids[:_SHOWN])}{more}")
    return "; ".join(said)


def _not_followed(unknown: list[str]) -> None:
    for words in unknown:
        console.print(f"! not followed: {words}", markup=False)
