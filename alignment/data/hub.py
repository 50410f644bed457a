"""Data sets of the Hugging Face hub by their name: one split, at one commit, as raw rows.

The commit is asked for first and everything is read at it, so that what the manifest records is what was read. Nothing
falls back to a copy in the library's cache: that may be of another commit, and the library does not say. Scripts of a
data set are not run (the library has no way to any more). Reads nothing before a stage is made: `check` and `plan` say
that its rows are not known.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from alignment.config import Source
from alignment.data.unreadable import DataUnreachable
from alignment.errors import DataError
from alignment.progress import waiting
from alignment.records.importers import BadRow, Row


@dataclass(frozen=True)
class HubRows:
    """What a data set of the hub holds.

    Attributes:
        commit: of its repository.
        columns: names of its columns, in their order.
        rows: one for each of its rows, numbered from 1; read as they are asked for.
    """

    commit: str
    columns: list[str]
    rows: Iterator[Row | BadRow]


def hub_rows(source: Source, where: str) -> HubRows:
    """One split of a data set.

    Args:
        where: the stage, for errors.

    Raises:
        DataUnreachable: the hub does not answer.
        DataError: offline mode is on, or there is no such data set, revision, configuration or split for this user.
    """
    where = f"{where}, {source.place}"
    try:
        from datasets import load_dataset
        from huggingface_hub import HfApi
    except ImportError as error:
        raise DataError("the datasets package is not installed", where=where, hint="pip install 'kubealign[train]'"
                        ) from error
    try:
        with waiting(lambda: f"the hub is asked for {source.place}"), _quiet():
            commit = str(HfApi(endpoint=os.environ.get("HF_ENDPOINT")).dataset_info(
                str(source.hub), revision=source.revision, timeout=60).sha)
            rows = load_dataset(str(source.hub), source.config, split=source.split, revision=commit,
                                streaming=bool(source.streaming))
    except Exception as error:
        raise _refused(error, source, where) from error
    first = None if rows.column_names is not None else next(iter(rows), None)
    columns = list(rows.column_names or first or ())
    if not columns:
        raise DataError("the data set holds no rows", where=where, expected="at least one row")
    return HubRows(commit, columns, _numbered(rows, source, where))


def _numbered(rows: Any, source: Source, where: str) -> Iterator[Row | BadRow]:
    number = 0
    try:
        for number, value in enumerate(rows, start=1):
            yield Row(number, value)
    except Exception as error:  # while they arrive: the network, or a file of the data set that is broken
        raise _refused(error, source, f"{where}, after row {number}") from error
    if not number:
        raise DataError("the data set holds no rows", where=where, expected="at least one row")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's own progress bars, which know nothing of ours."""
    from datasets.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

    shown = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            enable_progress_bar()


def _refused(error: Exception, source: Source, where: str) -> DataError:
    """The library's error in our words; what a server sent is not repeated."""
    if isinstance(error, DataError):
        return error
    names = {kind.__name__ for one in _chain(error) for kind in type(one).__mro__}
    # The library wraps what a file's reader says into a sentence that says nothing.
    said = " ".join(str(error.__cause__ or error).split())[:300]
    status = next((code for one in _chain(error) if (code := getattr(
        getattr(one, "response", None), "status_code", None))), None)
    if "OfflineModeIsEnabled" in names:
        return DataError("the hub is not asked: offline mode is on", where=where, found=source.hub,
                         hint="unset HF_HUB_OFFLINE; or `hf download --repo-type dataset` once where there is a "
                              "network, and name its file as `path`")
    if names & {"GatedRepoError", "RepositoryNotFoundError", "DatasetNotFoundError"}:
        return DataError("the hub does not give this data set out", where=where, found=source.hub,
                         expected="a data set that exists and that this user may read",
                         hint="check the name; for a private or gated one set HF_TOKEN")
    if "RevisionNotFoundError" in names:
        return DataError("the data set has no such revision", where=where, found=source.revision,
                         expected="a branch, tag or commit of it")
    if (isinstance(status, int) and status >= 500) or status == 429:
        return DataUnreachable(f"the hub cannot answer now (HTTP {status})", where=where, found=source.hub,
                               hint="try again later")
    if names & {"ConnectError", "ConnectTimeout", "ReadTimeout", "ConnectionError", "TimeoutException",
                "TransportError", "LocalEntryNotFoundError"}:
        return DataUnreachable("the hub cannot be reached", where=where, found=source.hub,
                               hint="look at the network (a proxy, HF_ENDPOINT); a file that lies here is `path`")
    if "Config name is missing" in said or "BuilderConfig" in said:
        return DataError("the data set has several configurations, or not this one", where=where, found=source.config,
                         expected=said, hint="config: NAME")
    if "Unknown split" in said or "Bad split" in said:
        return DataError("the data set has no such split", where=where, found=source.split, expected=said)
    if "script" in said.lower() and ("no longer supported" in said or "trust_remote_code" in said):
        return DataError("the data set is a script, and scripts of a data set are not run", where=where,
                         found=source.hub, expected="a data set of files (Parquet, JSON lines, CSV)",
                         hint="revision: refs/convert/parquet is the hub's own conversion, where it has one")
    return DataError(f"the data set cannot be read: {said}", where=where, found=source.hub,
                     expected="a data set of files (Parquet, JSON lines, CSV)")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
