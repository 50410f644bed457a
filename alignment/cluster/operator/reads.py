"""Where the operator may read: below prefixes that the chart's values name. Whatever else a spec names, it leaves.

It stands where users do not: the API server, a cloud's identity and the store's keys are within its reach. So what it
opens for a spec lies below a prefix that was allowed, and is a plain file there. What others say of a file or a store
is not repeated: the sentence stands in a status.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from alignment.cluster.manifests.bundle import sources
from alignment.config import AnyStage, GgufModel, Run, TaskFile
from alignment.config.profile import unclear
from alignment.config.stages.base import Outside
from alignment.config.yaml_nodes import dotted
from alignment.errors import KubeAlignError

LARGEST = 4 * 2**30
"""Bytes of a file whose digest the operator makes; a larger one takes too long beside other runs."""
ELSEWHERE = ("The operator sees what the run's ConfigMap and the storage hold; submit the changed run again from where "
             "its sources lie.")


@dataclass(frozen=True)
class Reads:
    """Prefixes of absolute folders and URLs, each whole parts of a path: s3://a/b allows s3://a/b/c and not s3://a/bc."""

    prefixes: tuple[str, ...]

    def refusal(self, path: str) -> str | None:
        """Why an absolute path or a URL is not opened; None: it may be."""
        if unclear(path):
            return f"{path} does not say where it leads"
        if not any(_below(path, prefix) for prefix in self.prefixes):
            return (f"{path} is not where this operator may read: below {' or '.join(self.prefixes) or 'nothing'} "
                    "(operator.reads of the chart)")
        if "://" in path:
            return None
        real, roots = os.path.realpath(path), [os.path.realpath(prefix) for prefix in self.prefixes
                                               if "://" not in prefix]
        if not any(_below(real, root) for root in roots):
            return f"{path} leads out of where this operator may read"
        try:
            found = os.stat(real)
        except OSError:
            return None  # whoever opens it says what is wrong
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
            return f"{path} is neither a plain file nor a folder"
        return None if found.st_size <= LARGEST else f"{path} is larger than the {LARGEST >> 30} GiB that are read here"

    def refused_sources(self, stages: Iterable[AnyStage], run: Run, folder: Path) -> Iterator[str]:
        """Why the operator cannot know what stages of a run read, one sentence for each source.

        Args:
            folder: where the files of the run's ConfigMap lie.
        """
        inside = sources(run)
        for stage in stages:
            for item in stage.sources():
                why = self._unknown(item, inside, folder)
                if why is not None:
                    yield f"stage {stage.name}, {dotted(item.place)}: {why}"

    def _unknown(self, item: Outside, inside: dict[str, str], folder: Path) -> str | None:
        path = item.path
        if path is None:
            carried = isinstance(item.source, GgufModel | TaskFile)
            return "a package of the pods' image, which the operator's image has not" if carried else None
        if item.travels and path in inside:
            return None if (folder / inside[path]).is_file() else (
                f"{path} is a file of another machine, and the ConfigMap of the run does not bring it")
        if not path.startswith("/") and "://" not in path:
            return f"{path} is a path on another machine"
        return self.refusal(path)


def said(error: KubeAlignError, path: str) -> str:
    """What is wrong, in our own words: what comes after a colon is a library's, or what a server sent."""
    problem = error.problem.partition(": ")[0]
    return f"{path}: {problem}" + (f"; {error.hint}" if error.hint else "")


def readable(prefixes: Iterable[str]) -> Reads:
    """Prefixes as they were given. Raises ValueError for one that says nothing or leads elsewhere."""
    found = tuple(dict.fromkeys(prefix.rstrip("/") or prefix for prefix in prefixes))
    for prefix in found:
        scheme, _, rest = prefix.partition("://")
        if unclear(prefix) or not (prefix.startswith("/") or (scheme.isalnum() and rest)):
            raise ValueError(f"{prefix!r} is no absolute folder and no URL with a bucket or host, as s3://bucket/prefix")
    return Reads(found)


def _below(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(prefix.rstrip("/") + "/")
