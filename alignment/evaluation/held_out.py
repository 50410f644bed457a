"""Is the test split held out? Finds everything the evaluated models could have seen and compares it with the split.

Seen is: every row set that a training stage learned from or chose its checkpoint by, and every prompt that a
sample stage answered, anywhere upstream of the evaluated models and of the reward model that scores them. A model of
another run brings the rows along that it was made from. What a base model read before cannot be known here. Reads
manifests and row files only, no models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from alignment.artifacts import Artifact
from alignment.config import Evaluate, EvaluatePairs
from alignment.context import StageContext
from alignment.data.lineage import brought_rows
from alignment.data.overlap import find_overlap
from alignment.errors import ArtifactError, DataError
from alignment.records import Record, each_record


@dataclass(frozen=True)
class HeldOut:
    """The checked split.

    Attributes:
        kept: test rows that no stage has seen.
        dropped: (test row, id of the seen row, reason), in the split's order; empty unless overlap is `drop`.
        seen: rows compared with, by STAGE/SPLIT.
    """

    kept: list[Record]
    dropped: list[tuple[Record, str, str]]
    seen: dict[str, int]


def check_held_out(context: StageContext, stage: Evaluate | EvaluatePairs, test: list[Record]) -> HeldOut:
    """Compare `test` with everything seen, by id and by text.

    Raises DataError when a row was seen and the stage's overlap is `error`, or when no row is left.
    """
    rows = seen_rows(context, stage)
    where = f"stage {stage.name}, rows {stage.rows}"
    counts: Counter[str] = Counter()

    def seen() -> Iterator[Record]:
        for ref, path in rows.items():
            counts[ref] = 0
            for record in tracker.counted(each_record(path)):
                counts[ref] += 1
                yield record

    with context.track(f"{stage.name}: compare with rows that were read", None, "rows") as tracker:
        overlap = find_overlap(test, seen(), context.work if context.work.exists() else None)
    if overlap and stage.overlap == "error":
        named = {seen_id for seen_id, _ in list(overlap.values())[:3]}
        origin = {record.id: ref for ref, path in rows.items() for record in each_record(path) if record.id in named}
        examples = [(test_id, f"{seen_id} of {origin.get(seen_id, 'this run')}", reason)
                    for test_id, (seen_id, reason) in list(overlap.items())[:3]]
        raise DataError(
            f"{len(overlap)} of {len(test)} test rows were seen before", where=where,
            found=examples, expected="test rows that no earlier stage read, by id and by text",
            hint="give these rows another split, or set overlap: drop to leave them out of the evaluation",
        )
    kept = [record for record in test if record.id not in overlap]
    if not kept:
        raise DataError("every test row was seen before, so nothing is left to evaluate", where=where,
                        found=f"{len(overlap)} rows, seen in {', '.join(rows)}",
                        expected="at least one row that no earlier stage read",
                        hint="choose another split for rows; splits by ratio keep rows of one text together")
    dropped = [(record, *overlap[record.id]) for record in test if record.id in overlap]
    return HeldOut(kept, dropped, dict(counts))


def seen_rows(context: StageContext, stage: Evaluate | EvaluatePairs) -> dict[str, Path]:
    """Files of rows read upstream of the evaluated models and the reward model, by STAGE/SPLIT; of those that another
    run read to make a model of its own, by KEY/SPLIT."""
    seen: dict[str, Path] = {}
    for ref, artifact, name in _seen_files(context, stage):
        path = artifact.path() / name
        if ref not in seen and path.exists():  # a split that got no rows has no file
            seen[ref] = path
    return seen


def _seen_files(context: StageContext, stage: Evaluate | EvaluatePairs) -> Iterator[tuple[str, Artifact, str]]:
    """(STAGE/SPLIT, artifact that holds it, its file there) for every row set that a stage upstream reads; may
    repeat."""
    waiting = [(name, context.inputs[name]) for name in dict.fromkeys(ref.stage for ref in stage.model_refs())]
    visited: set[str] = set()
    while waiting:
        name, artifact = waiting.pop()
        if name in visited:
            continue
        visited.add(name)
        upstream = context.run.stage(name)
        quoted = {other for _, other in upstream.quotes()}
        made_from = tuple(source for source in upstream.inputs() if source not in quoted)
        if upstream.stands_for:  # rounds after the chosen one may never have been made
            read = set(artifact.manifest.inputs.values())
            made_from = tuple(source for source in made_from if context.keys[source] in read)
        inputs = {source: _input(artifact, name, source, context.keys[source]) for source in made_from}
        apart = {rows.place for rows in upstream.kept_apart()}
        for rows in upstream.row_refs():
            if rows.place not in apart:
                yield rows.ref, inputs[rows.stage], f"rows/{rows.split}.jsonl"
        yield from ((ref, artifact, file) for ref, file in brought_rows(artifact))
        waiting.extend(inputs.items())


def _input(artifact: Artifact, of: str, name: str, key: str) -> Artifact:
    """The finished artifact of stage `name`, which stage `of` made `artifact` from; raises ArtifactError when the store
    lost it."""
    found = artifact.store.find(key)
    if found is None:
        raise ArtifactError(
            f"what stage {of} was made from is gone, so the split cannot be checked",
            where=artifact.url, found=key, expected=f"the artifact of stage {name}",
            hint="run the whole run again; finished stages that are still there are not made anew",
        )
    return found
