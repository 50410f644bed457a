"""Where a model comes from, and where a row went: `back` and `forward` over the manifests and rows of one store.

Rows are followed by their ids: kept by select and imports of artifacts, with an ending where sample, contrastive and
multihop make others of them, named in `meta.origin` where a teacher was shown them. Row files are read line by line.
What cannot be followed (a damaged manifest, a kind of a newer version, inputs that are gone) is said, never guessed.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from alignment.artifacts import Artifact, Manifest, Store
from alignment.config import AnyStage
from alignment.data.lineage import stage_of
from alignment.data.read import source_names
from alignment.errors import ArtifactError, ConfigError, KubeAlignError
from alignment.inference.draws import choose_of
from alignment.pipeline.served_by import Served, served
from alignment.records.files import each_line

_MADE_OF = re.compile(r"-(best|pair|contrast|answered|negative|(newest|previous)-\d+)$")
"""Endings that stages add to the id of the row which theirs is made of."""
_SHOWN_IN = ("seeds", "row", "passage", "machine")
"""Keys of meta.origin that hold ids of rows which a teacher was shown."""
_KEPT = 200
"""Ids of dropped rows that a train stage's manifest has, at most."""


# --- back ----------------------------------------------------------------------------------------------------


def back(artifact: Artifact) -> dict[str, Any]:
    """Everything that an artifact was made from.

    Returns:
        {"of": key, "artifacts": {key: entry}, "served": [who served it, as `Served` has it, the newest first],
        "unknown": [what could not be followed]}; an entry has stage, kind,
        title, inputs (name -> key), rows, sources (path, sha256), prompts (step -> sha256), teachers, documents (file
        -> passages), shown (what of origins -> how many rows or passages). Files of row sets are read.
    """
    found: dict[str, Any] = {"of": artifact.key, "artifacts": {}, "served": [], "unknown": []}
    found["served"] = [asdict(one) for one in served(artifact, found["unknown"])]
    waiting = [artifact]
    while waiting:
        one = waiting.pop(0)
        if one.key in found["artifacts"]:
            continue
        found["artifacts"][one.key] = _entry(one)
        for name, key in _inputs(one.manifest).items():
            try:
                above = one.store.find(key)
            except ArtifactError as error:
                above = None
                found["unknown"].append(f"{key}: {error.problem}")
            else:
                if above is None:
                    found["unknown"].append(f"{key}: what {one.key} read as {name} is not in {one.store.url}")
            if above is not None:
                waiting.append(above)
    return found


def _entry(artifact: Artifact) -> dict[str, Any]:
    manifest, stage = artifact.manifest, stage_of(artifact.manifest)
    made: dict[str, Any] = {
        "stage": manifest.stage, "kind": artifact.key[:-13], "title": None if stage is None else stage.title(),
        "finished": manifest.finished, "inputs": _inputs(manifest),
        "rows": manifest.rows.model_dump(exclude_defaults=True),
    }
    content = manifest.parts.get("sources")
    if isinstance(content, list) and stage is not None:
        made["sources"] = [{"path": source.path or str(source.source), "sha256": digest}
                           for source, digest in zip(stage.sources(), content, strict=False)]
    elif isinstance(content, dict):
        made["prompts"] = {name.removeprefix("prompt "): digest for name, digest in content.items()
                           if name.startswith("prompt ")}
        made["source"] = {name: value for name, value in content.items() if not name.startswith("prompt ")}
    if stage is not None and stage.kind == "generate":
        made["teachers"] = {ref.stage: manifest.inputs.get(ref.stage) for ref in stage.model_refs()}
    documents, shown = Counter[str](), dict[str, set[str]]()
    for _, row in _rows(artifact):
        meta = row.get("meta") or {}
        if "document" in meta:
            documents[str(meta["document"].get("file"))] += 1
        for what in _SHOWN_IN:
            shown.setdefault(what, set()).update(_texts((meta.get("origin") or {}).get(what)))
    made |= {"documents": dict(documents), "shown": {what: len(ids) for what, ids in shown.items() if ids}}
    return {key: value for key, value in made.items() if value not in (None, {}, [])}


# --- forward -------------------------------------------------------------------------------------------------


@dataclass
class Met:
    """What an artifact has to do with the row.

    Attributes:
        how: `holds` rows that are it or were made of it; `left out` of it; `learned` from such rows; `measured` on
            them; `answered` them, for nobody to learn from; `stands on` a model that learned; `asks` such a model.
        rows: ids of such rows, by split.
        why: in words: which reason, which model.
    """

    key: str
    stage: str
    how: str
    rows: dict[str, list[str]] = field(default_factory=dict)
    why: str = ""


@dataclass
class Trail:
    """Where a row went.

    Attributes:
        learned: key -> stage of models that learned from it, or stand on one that has.
        served: key -> who served such a model, the newest first; of those that nobody served nothing.
        unknown: what could not be followed.
    """

    row: str
    met: list[Met] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    held: dict[str, dict[str, set[str]]] = field(default_factory=dict)
    learned: dict[str, str] = field(default_factory=dict)
    served: dict[str, list[Served]] = field(default_factory=dict)


def forward(store: Store, row: str) -> Trail:
    """Every artifact of a store that has to do with a row, in the order in which they were made.

    Args:
        row: a row's id, or FILE:LINE of a file that an import of the store has read.

    Raises:
        ConfigError: no row set of the store has it.
        ArtifactError: the store cannot be read.
    """
    trail = Trail(row)
    file, _, line = row.rpartition(":")
    at = (Path(file), int(line)) if file and line.isdecimal() and Path(file).is_file() else None
    for artifact in _in_order(store, trail):
        try:
            _follow(artifact, trail, at)
            if artifact.key in trail.learned and (by := served(artifact, trail.unknown)):
                trail.served[artifact.key] = by
        except KubeAlignError as error:
            trail.unknown.append(f"{artifact.key}: {error.problem}")
    if not any(met.how in ("holds", "left out") for met in trail.met):
        raise ConfigError("no row set of the store has this row", where="--of", found=row,
                          expected="a row's id (as rows/*.jsonl have it), or FILE:LINE of an imported file",
                          hint="; ".join(trail.unknown) or None)
    return trail


def _follow(artifact: Artifact, trail: Trail, at: tuple[Path, int] | None) -> None:
    manifest, stage = artifact.manifest, stage_of(artifact.manifest)
    inputs = _inputs(manifest)
    if stage is None:
        if any(key in trail.held or key in trail.learned for key in inputs.values()):
            trail.unknown.append(f"{artifact.key}: a kind that this version does not know, which read what is followed")
        return
    apart = {ref.place for ref in stage.kept_apart()}
    refs = [(ref.place, inputs.get(ref.stage, ""), ref.split) for ref in stage.row_refs() if ref.place not in apart]
    if stage.makes == "rows":
        _through(artifact, stage, refs, trail, at)
        return
    ids = {place: trail.held.get(key, {}).get(split, set()) for place, key, split in refs}
    models = {name: key for name, key in inputs.items() if key in trail.learned}
    if stage.makes in ("table", "files"):  # nothing learns from what infer writes either
        how = "measured" if stage.makes == "table" else "answered"
        if asked := {str(one["id"]) for one in _lines(artifact, "answers.jsonl")} & set[str]().union(*ids.values()):
            trail.met.append(Met(artifact.key, manifest.stage, how, {"answers": sorted(asked)}))
        elif models:
            trail.met.append(Met(artifact.key, manifest.stage, "asks", why=_of(models)))
        return
    read = set[str]().union(*(some for place, some in ids.items() if place[0] != "eval_rows"))
    learned = _taken(artifact, stage, refs, read, trail) if read else set()
    if learned:
        trail.learned[artifact.key] = manifest.stage
        trail.met.append(Met(artifact.key, manifest.stage, "learned", {"train": sorted(learned)}))
    elif models:
        trail.learned[artifact.key] = manifest.stage
        trail.met.append(Met(artifact.key, manifest.stage, "stands on", why=_of(models)))
    elif read:
        untaken = "not taken" if manifest.rows.dropped.get("not taken") else ""
        trail.met.append(Met(artifact.key, manifest.stage, "left out", why=_why(artifact, read) or untaken))
    elif held := ids.get(("eval_rows",)):
        trail.met.append(Met(artifact.key, manifest.stage, "measured", {"eval": sorted(held)}))


def _through(artifact: Artifact, stage: AnyStage, refs: list[tuple[Any, str, str]], trail: Trail,
             at: tuple[Path, int] | None) -> None:
    """What of a row set's rows is the row, or was made of it."""
    root = not refs and not _inputs(artifact.manifest)
    wanted = {trail.row} if root and at is None else set[str]()
    if root and at is not None:
        wanted = set(_ids_of(stage, artifact.manifest, at))
    for _, key, split in refs:
        wanted |= trail.held.get(key, {}).get(split, set())
    if not refs:
        wanted = wanted.union(*(some for key in _inputs(artifact.manifest).values()
                                for some in trail.held.get(key, {}).values()))
    models = {name: key for name, key in _inputs(artifact.manifest).items() if key in trail.learned}
    makes_others = stage.kind in ("generate", "sample")
    if not wanted and at is None and makes_others and _matching(artifact, {trail.row}, makes_others=False):
        wanted = {trail.row}  # it was made here
    found = _matching(artifact, wanted, makes_others=makes_others) if wanted else {}
    if found:
        trail.held[artifact.key] = {split: set(ids) for split, ids in found.items()}
        trail.met.append(Met(artifact.key, artifact.manifest.stage, "holds", found))
    elif wanted and (why := _why(artifact, wanted, at)):
        trail.met.append(Met(artifact.key, artifact.manifest.stage, "left out", why=why))
    elif wanted and not root:
        trail.met.append(Met(artifact.key, artifact.manifest.stage, "left out", why="not among its rows"))
    if models:
        trail.met.append(Met(artifact.key, artifact.manifest.stage, "asks", why=_of(models)))


def _matching(artifact: Artifact, wanted: set[str], *, makes_others: bool) -> dict[str, list[str]]:
    """Split -> ids of rows that are wanted or were made of those; through rows that others of the same set were made
    of, until nothing is added."""
    known, found, before = set(wanted), dict[str, list[str]](), -1
    while before != len(known):
        before, found = len(known), {}
        for split, row in _rows(artifact):
            id_ = str(row["id"])
            origin = (row.get("meta") or {}).get("origin") or {}
            shown = {one for what in _SHOWN_IN for one in _texts(origin.get(what))}
            if id_ in known or (makes_others and (_MADE_OF.sub("", id_) in known or shown & known)):
                found.setdefault(split, []).append(id_)
                if makes_others and shown & known:  # a teacher's task stands in later origins without its number
                    known |= {id_, re.sub(r"-\d+$", "", id_)}
        if not makes_others:
            break
    return found


def _taken(artifact: Artifact, stage: AnyStage, refs: list[tuple[Any, str, str]], read: set[str],
           trail: Trail) -> set[str]:
    """Which of the rows a training was given it learned from: those of its `take`, without those that it dropped."""
    manifest = artifact.manifest
    take, seed = manifest.parts.get("config", {}).get("take"), manifest.parts.get("seed", 0)
    if take is not None:
        def each() -> Iterator[_Id]:
            for place, key, split in refs:
                source = artifact.store.find(key) if place[0] != "eval_rows" else None
                if source is not None:
                    yield from (_Id(str(row["id"])) for row in _lines(source, f"rows/{split}.jsonl"))

        chosen, _ = choose_of(each, int(take), int(seed))
        read = read & {one.id for one in chosen}
    named = {str(id_) for id_, _ in manifest.facts.get("dropped_rows", [])}
    dropped = sum(count for reason, count in manifest.rows.dropped.items() if reason != "not taken")
    if dropped > _KEPT and read - named:
        trail.unknown.append(f"{artifact.key}: dropped {dropped} rows, of which its manifest names {_KEPT}; this one "
                             "may be among the others")
    return read - named


@dataclass(frozen=True)
class _Id:
    id: str


def _why(artifact: Artifact, wanted: set[str], at: tuple[Path, int] | None = None) -> str:
    """The reason by which rows were left out, as far as the artifact has it."""
    said = {str(id_): str(reason) for id_, reason in artifact.manifest.facts.get("dropped_rows", [])}
    reasons = [reason for id_, reason in said.items() if id_ in wanted]
    for name in ("left.jsonl", "bad.jsonl"):
        for row in _lines(artifact, name):
            if row.get("id") in wanted or (at is not None and row.get("row") == at[1] and f"{row.get('source')}-{at[1]}"
                                           in wanted):
                reasons.append(str(row.get("reason")))
    return reasons[0] if reasons else ""


def _ids_of(stage: AnyStage, manifest: Manifest, at: tuple[Path, int]) -> Iterator[str]:
    """Ids that an import gives to the row on a line of a file, where it reads that file."""
    from alignment.artifacts import sha256_of
    from alignment.records.importers.rows import RowError, row_id

    sources, content = stage.sources(), manifest.parts.get("sources")
    own = [source.source for source in sources]
    if not own or not isinstance(content, list) or not hasattr(own[0], "format"):
        return
    with at[0].open("rb") as lines:
        text = next((line for number, line in enumerate(lines, 1) if number == at[1]), b"{}")
    try:
        row = json.loads(text)
        given = row_id(row) if isinstance(row, dict) else ""
    except (ValueError, RowError):
        given = ""
    digest = sha256_of(at[0])
    for name, known in zip(source_names(tuple(own)), content, strict=False):  # type: ignore[arg-type]
        if known == digest:
            yield from ((f"{name}-{given}",) if given else ()) + (f"{name}-{at[1]}",)


# --- what both read ------------------------------------------------------------------------------------------


def _inputs(manifest: Manifest) -> dict[str, str]:
    """Name -> key of what it was made from; an artifact that was brought from another run counts."""
    brought = manifest.facts.get("artifact")
    own = {brought.get("stage", "artifact"): brought["key"]} if (
        isinstance(brought, dict) and manifest.kind == "import" and not manifest.inputs) else {}
    return {**manifest.inputs, **own}


def _in_order(store: Store, trail: Trail) -> Iterator[Artifact]:
    """All artifacts, each after those that it was made from."""
    found: dict[str, Artifact] = {}
    for key in store.listed():
        try:
            artifact = store.find(key)
        except ArtifactError as error:
            trail.unknown.append(f"{key}: {error.problem}")
            continue
        if artifact is not None:
            found[key] = artifact
    done = set[str]()
    while left := [one for key, one in found.items() if key not in done]:
        ready = [one for one in left if all(key in done or key not in found for key in _inputs(one.manifest).values())]
        for one in sorted(ready or left, key=lambda one: one.manifest.finished):
            done.add(one.key)
            if gone := [key for key in _inputs(one.manifest).values() if key not in found]:
                trail.unknown.append(f"{one.key}: it was made from {', '.join(gone)}, which cannot be read here")
            yield one


def _rows(artifact: Artifact) -> Iterator[tuple[str, dict[str, Any]]]:
    """(split, row) of all row sets."""
    for name in artifact.manifest.files:
        if name.startswith("rows/") and name.endswith(".jsonl"):
            yield from ((Path(name).stem, row) for row in _lines(artifact, name))


def _lines(artifact: Artifact, name: str) -> Iterator[dict[str, Any]]:
    if name in artifact.manifest.files:
        path = artifact.path() / name
        for number, line in each_line(path):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ArtifactError(f"{name}, line {number}, is no JSON: {error}", where=artifact.url) from error
            yield row


def _texts(value: Any) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list) else [] if value is None else [str(value)]


def _of(models: dict[str, str]) -> str:
    return ", ".join(f"{name} ({key})" for name, key in models.items())
