"""Which finished artifact a stage means that names another run's: by key, by run and stage, or by the place of its
folder.

A key needs no look at any store. Reads manifests and what runs noted of their stages; no rows and no models.
"""

from __future__ import annotations

import json
from pathlib import Path

from alignment.artifacts import Artifact, Store
from alignment.config import ArtifactRef
from alignment.config.stages.fields import on_this_machine
from alignment.errors import ArtifactError

STAGES = "stages.json"
"""File of a run in its store: stage -> key of what it makes, as the run was last started."""


def key_meant(where: str, ref: ArtifactRef) -> str:
    """Key of the artifact that a reference, with its store, names. Asks the store only for RUN:STAGE.

    Raises:
        ArtifactError: the store has no such run, or the run no such stage.
    """
    named = ref.named
    if named.key is not None:
        return named.key
    store = store_of(ref)
    text = store.read_run_file(str(named.run), STAGES)
    if text is None:
        raise ArtifactError("the store has no list of what this run made", where=where, found=ref.artifact,
                            expected=f"a file {store.url_of(f'runs/{named.run}/{STAGES}')}",
                            hint="another store? `store:` beside it names one. A run of an earlier version writes the "
                                 "list when it is run again; or name the artifact by its key (kubealign status)")
    known = json.loads(text)
    if named.stage not in known:
        raise ArtifactError("the run has no such stage", where=where, found=ref.artifact,
                            expected="one of " + ", ".join(known))
    return str(known[named.stage])


def store_of(ref: ArtifactRef) -> Store:
    """The store that a reference names."""
    url = str(ref.named.store)
    return Store(url if "://" in url else str(on_this_machine(url)))


def artifact_meant(where: str, ref: ArtifactRef, *, deep: bool = False) -> Artifact:
    """The artifact that a reference, with its store, names.

    Args:
        deep: compare the digests of its files too, where they lie on this machine; of others that is done when they
            are fetched.

    Raises:
        ArtifactError: it is not there, is not finished, or its files are gone or damaged.
    """
    key, store = key_meant(where, ref), store_of(ref)
    found = store.find(key)
    if found is None:
        begun = store.is_local and Path(store.root, "work", key).is_dir()
        raise ArtifactError("the artifact is not finished" if begun else "the store has no such artifact", where=where,
                            found=ref.artifact if key == ref.artifact else f"{ref.artifact}, which is {key}",
                            expected=f"a finished artifact at {store.url_of(f'artifacts/{key}')}",
                            hint="run the stage that makes it to its end" if begun else
                            near(store, key) or "another store? `store:` beside it names one")
    found.verify(deep=deep and store.is_local)
    return found


def known_here(ref: ArtifactRef) -> Artifact | None:
    """The artifact that a reference, with its store, names, where it is finished and lies in a folder of this machine;
    for estimates, which are made without it where it is not."""
    try:
        return artifact_meant("", ref) if store_of(ref).is_local else None
    except ArtifactError:
        return None


def near(store: Store, key: str) -> str | None:
    """Artifacts of the same kind that a local store has, in words; None where there are none."""
    if not store.is_local:
        return None
    kind = key.rpartition("-")[0]
    found = sorted((path for path in Path(store.root, "artifacts").glob(f"{kind}-*") if
                    path.name.rpartition("-")[0] == kind), key=lambda path: -path.stat().st_mtime)
    return f"the store has {', '.join(path.name for path in found[:5])}" if found else None
