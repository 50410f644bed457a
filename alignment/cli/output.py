"""What `status --json` and `report` print, the same for a store of this machine and for a cluster's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from alignment.config import Run
from alignment.config.stops import standing_of

if TYPE_CHECKING:
    from alignment.artifacts import Manifest, Work


def status_json(loaded: Run, manifests: Mapping[str, Manifest | None], works: Mapping[str, Work]) -> str:
    """One line: the run, its store, and every stage with its manifest (null: not finished) and what is known of its
    unfinished work (null: finished, or not begun), or why it is not needed. ASCII, so that any terminal keeps it
    whole."""
    spared = standing_of(loaded.stops(), manifests)
    stages = [{"name": stage.name, "kind": stage.kind,
               "manifest": None if (found := manifests[stage.name]) is None else found.model_dump(mode="json"),
               "work": works[stage.name].to_json() if stage.name in works else None,
               "unneeded": spared.unneeded.get(stage.name) if found is None else None}
              for stage in loaded.stages]
    return json.dumps({"run": loaded.name, "store": loaded.store, "stages": stages})


def page_of(loaded: Run, typed: str, *, printed: bool) -> str:
    """The report, written to the run's store anew: where it lies, or with `printed` the page itself.

    Args:
        typed: `run FILE OPTIONS` or `submit FILE OPTIONS` as the user typed it, for the commands on the page.
    """
    from alignment import pipeline
    from alignment.artifacts import Store

    where = pipeline.write_report(loaded, typed)
    if not printed:
        return where
    store = Store(loaded.store)
    page: bytes = store.fs.cat_file(f"{store.root}/runs/{loaded.name}/report.html")
    return page.decode("utf-8")
