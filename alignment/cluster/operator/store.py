"""The artifact store as the operator sees it: is this stage finished, and what does its manifest say."""

from __future__ import annotations

from alignment.artifacts import Store
from alignment.cluster.operator.world import Finished, finished_of


def look_up(url: str, key: str) -> Finished | None:
    """The finished artifact of a key; None where there is none. Raises ArtifactError when the store cannot be read."""
    found = Store(url).find(key)
    return None if found is None else finished_of(found)
