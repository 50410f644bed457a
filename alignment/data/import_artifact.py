"""Stage body: what another run made, a model or row sets, as an artifact of this store. Nothing is computed.

Files are links where both lie on one file system, else copies. An adapter's base comes along under its own key, where
the store has it not. Beside the model lie the rows that were read to make it, so that a later evaluation knows them
though the other store is gone. Launched by the pipeline for stages of kind import with `artifact`.
"""

from __future__ import annotations

import json
from typing import Any

from alignment.artifacts import Artifact, RowCounts
from alignment.artifacts.bring import brought, taken_over
from alignment.config import FromArtifact
from alignment.config.stages.base import serving_as
from alignment.context import Outcome, StageContext
from alignment.data.artifact_source import artifact_meant
from alignment.data.lineage import SEEN, rows_learned
from alignment.errors import ArtifactError

INFO = "model/kubealign.json"
_MODELS = {"policy": "a language model", "reward": "a reward model (a stage of method reward, or role: reward)",
           "embedder": "an embedder (an import with role: embedder)"}


def import_artifact(context: StageContext) -> Outcome:
    """Fill `context.out` with the model, or with `rows/`, and with `seen/`.

    Returns:
        facts: those of the artifact, and `artifact`: its key, digest, store, the stage that made it.

    Raises:
        ArtifactError: there is no such artifact, it is damaged, or of another kind; what it was made from is gone.
    """
    stage = context.stage_as(FromArtifact)
    where = f"stage {stage.name}, {stage.place[0]}.artifact"
    artifact = artifact_meant(where, stage.reference.within(context.store.url), deep=True)
    fits(where, stage, artifact)
    folder = artifact.path()
    context.event("found", key=artifact.key, store=artifact.store.url, stage=artifact.manifest.stage)
    written = {}
    if stage.makes == "rows":
        for split in stage.splits():
            name = f"rows/{split}.jsonl"
            taken_over(folder / name, context.out / name)
            written[split] = artifact.manifest.rows.written.get(split, 0)
    else:
        taken_over(folder / "model", context.out / "model")
        base = json.loads((folder / INFO).read_text(encoding="utf-8")).get("base")
        if base is not None and artifact.store.url != context.store.url:
            _bring_base(context, artifact, str(base))
    seen = rows_learned(artifact)
    for ref, file in seen.items():
        taken_over(file, context.out / SEEN / f"{ref}.jsonl")
    context.event("seen", row_sets=sorted(seen))
    return Outcome(RowCounts(read=sum(written.values()), written=written), facts={
        **artifact.manifest.facts,
        "artifact": {"key": artifact.key, "digest": artifact.manifest.digest, "store": artifact.store.url,
                     "stage": artifact.manifest.stage, "kind": artifact.manifest.kind}})


def fits(where: str, stage: FromArtifact, artifact: Artifact) -> None:
    """Raise ArtifactError where an artifact is not what a stage shall bring: without its row sets, of another role."""
    files, kind = artifact.manifest.files, artifact.key.rpartition("-")[0]
    if stage.makes == "rows":
        has = sorted(name.removeprefix("rows/").removesuffix(".jsonl") for name in files if name.startswith("rows/"))
        if missing := [split for split in stage.splits() if split not in has]:
            raise ArtifactError(f"the artifact has no row set {', '.join(missing)}", where=where,
                                found=f"{artifact.key}: {', '.join(has) or f'none, as a {kind}'}",
                                expected=f"one of {', '.join(has)}" if has else "what an import, generate, select or "
                                                                                 "sample stage made")
        return
    info: dict[str, Any] = {}
    if INFO in files:
        store = artifact.store
        with store.guard(f"artifacts/{artifact.key}/{INFO}", "read"):
            info = json.loads(store.fs.cat_file(f"{store.root}/artifacts/{artifact.key}/{INFO}"))
    serves = serving_as(stage.makes)
    if (role := info.get("role")) not in serves:
        raise ArtifactError("the artifact is another kind of thing", where=where,
                            found=f"{artifact.key}: {_MODELS.get(str(role), role) or f'no model, but a {kind}'}",
                            expected=" or ".join(_MODELS[one] for one in serves),
                            hint=f"role: {role} beside `model`" if role in _MODELS and stage.makes == "policy"
                            else None)


def _bring_base(context: StageContext, artifact: Artifact, key: str) -> None:
    """The full weights that an adapter stands on, into this store, where they are looked for by their key."""
    base = artifact.store.find(key)
    if base is None:
        raise ArtifactError("the full weights that the adapter stands on are not in its store", where=artifact.url,
                            found=key, expected=f"an artifact at {artifact.store.url_of(f'artifacts/{key}')}",
                            hint="run the stage that makes it again")
    context.event("base", key=key, brought=context.store.find(key) is None)
    brought(base, context.store)
