"""Where a store lies, and how work in progress travels to it and back.

On a folder, work is simply there. On an object store it is done in a folder of this machine; what has to outlive the
machine is pushed: files first, then a marker with their digests, so that a reader takes a folder whole or not at all.
Several machines may push their parts of one folder (the ranks of a training write a checkpoint together).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import fsspec
from fsspec.core import url_to_fs

from alignment.artifacts.faults import explained
from alignment.artifacts.manifest import FileEntry
from alignment.errors import ArtifactError
from alignment.progress import waiting

_MARKER = re.compile(r"(?P<name>.+)\.pushed-(?P<part>\d+)-of-(?P<parts>\d+)")
_AT_ONCE = 8
"""Folders that are fetched at once: parts of sampling are small and many."""

_S3FS_ASKS = 2
"""Times that s3fs asks, each of them botocore's five with 15 s to an answer. Its own five kept a training for over six
minutes on a store that takes connections and says nothing; so it is under three. Who refuses is not asked again."""


class Workspace:
    """The part of a `Store` that knows its place and its work. Cheap to make and to pickle; holds no connection.

    Raises:
        ArtifactError: nothing here can read such a URL.
    """

    def __init__(self, url: str, cache: Path | None = None) -> None:
        try:
            fs, root = url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ArtifactError(f"no client for this kind of store: {error}", where=url,
                                expected="a folder, or a URL that fsspec knows, as s3://bucket/prefix",
                                hint="for S3: pip install 'kubealign[s3]'") from error
        self.is_local = "file" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)
        self.url = str(Path(root).absolute()) if self.is_local else url.rstrip("/")
        self.root = self.url if self.is_local else root.rstrip("/")
        self._cache = cache

    @property
    def fs(self) -> fsspec.AbstractFileSystem:
        fs = url_to_fs(self.url)[0]
        if hasattr(fs, "retries"):
            fs.retries = _S3FS_ASKS
        return fs

    @property
    def cache(self) -> Path:
        """This machine's folder for copies and work; asked for each time, since a store travels to other machines."""
        if self._cache is not None:
            return self._cache
        return cache_folder() / hashlib.sha256(self.url.encode()).hexdigest()[:12]

    def url_of(self, path: str) -> str:
        return f"{self.url}/{path}"

    @contextmanager
    def guard(self, path: str, verb: str) -> Iterator[None]:
        """Around anything that touches the store: see `faults.explained`. What takes long, elsewhere, is said."""
        url = self.url_of(path)
        with explained(url, verb), nullcontext() if self.is_local else waiting(lambda: f"{url} is being {verb}"):
            yield

    def workdir(self, key: str) -> Path:
        """Local folder for work in progress. On a local store it survives a kill; see push_work for the others."""
        base = Path(self.root) / "work" if self.is_local else self.cache / "work"
        path = base / key
        with explained(str(path), "written"):
            path.mkdir(parents=True, exist_ok=True)
        return path

    def begin_work(self, key: str, name: str) -> bool:
        """Leave a mark that work was begun under `name`; False when it was there. It goes with the rest of the work."""
        path = f"work/{key}/begun-{name}"
        with self.guard(path, "written"):
            fs = self.fs
            fs.invalidate_cache()
            if fs.exists(f"{self.root}/{path}"):
                return False
            if self.is_local:
                self.workdir(key)
            fs.pipe_file(f"{self.root}/{path}", b"")
        return True

    def push_work(self, key: str, name: str, *, source: Path | None = None, part: int = 0, parts: int = 1) -> None:
        """Copy a folder of the workdir to a remote store, its marker last. No-op on a local one.

        Args:
            source: where the folder lies, if not in the workdir under its name.
            part, parts: this machine's number among those that push files of this folder; it counts as pushed when
                all have.
        """
        if self.is_local:
            return
        source = source or self.workdir(key) / name
        target, files = f"{self.root}/work/{key}/{name}", entries(source)
        with self.guard(f"work/{key}/{name}", "written"):
            fs = self.fs
            for file in files:
                fs.put_file(str(source / file), f"{target}/{file}")
            body = {file: entry.model_dump() for file, entry in files.items()}
            fs.pipe_file(f"{target}.pushed-{part}-of-{parts}", json.dumps(body).encode())

    def pushed_work(self, key: str, prefix: str = "") -> list[str]:
        """Names of the folders that were pushed to the end; `prefix` as in pull_work. Empty for a local store."""
        return [] if self.is_local else sorted(self._pushed(key, prefix))

    def pull_work(self, key: str, prefix: str = "") -> list[str]:
        """Bring folders that were pushed to the end into the workdir, unless they are there and whole.

        Args:
            prefix: `parts/` for those below, or a folder's own name; all, if empty.

        Returns:
            Names of the folders that are whole here afterwards.
        """
        if self.is_local:
            return []
        found = self._pushed(key, prefix)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            whole = pool.map(lambda item: self._pull(key, *item), found.items())
        return sorted(name for name, here in zip(found, whole, strict=True) if here)

    def fetch_work(self, key: str, name: str, file: str) -> None:
        """Bring one file of a pushed folder into the workdir. Raises FileNotFoundError when it was not pushed."""
        local = self.workdir(key) / name / file
        local.parent.mkdir(parents=True, exist_ok=True)
        with self.guard(f"work/{key}/{name}/{file}", "read"):
            self.fs.get_file(f"{self.root}/work/{key}/{name}/{file}", str(local))

    def drop_work(self, key: str, name: str) -> None:
        """Take a pushed folder, or what was pushed of it, back from a remote store, its markers first."""
        if self.is_local:
            return
        base = f"{self.root}/work/{key}/{name}"
        with self.guard(f"work/{key}/{name}", "written"):
            paths = [path for path in self._listed(key) if path.startswith((f"{base}/", f"{base}.pushed-"))]
            for path in sorted(paths, key=lambda path: path.startswith(f"{base}/")):
                with suppress(FileNotFoundError):
                    self.fs.rm_file(path)

    def started_work(self, key: str, prefix: str = "") -> set[str]:
        """Names directly below `prefix` of which anything was pushed, whole or not. Empty for a local store."""
        if self.is_local:
            return set()
        base = f"{self.root}/work/{key}/{prefix}"
        rest = [path.removeprefix(base) for path in self._listed(key) if path.startswith(base)]
        return {prefix + re.sub(r"\.pushed-.*", "", path.split("/")[0]) for path in rest}

    def clear_work(self, key: str) -> None:
        """Remove what is left of the work in progress, lease included."""
        shutil.rmtree(self.workdir(key), ignore_errors=True)
        if not self.is_local:
            with self.guard(f"work/{key}", "written"), suppress(FileNotFoundError):
                self.fs.rm(f"{self.root}/work/{key}", recursive=True)

    def sweep_work(self, key: str) -> None:
        """Remove work that a killed process left after publishing; a finished artifact needs none."""
        here = Path(self.root if self.is_local else self.cache) / "work" / key
        if here.exists() or self._listed(key):
            self.clear_work(key)

    def pushed_files(self, key: str, name: str) -> dict[str, FileEntry]:
        """Files of a folder that was pushed to the end, by their names in it; empty where there is none."""
        markers = {} if self.is_local else self._pushed(key, name)
        return self._entries(markers[name]) if name in markers else {}

    def _listed(self, key: str) -> list[str]:
        """Every object of the work on a remote store; empty on a local one."""
        if self.is_local:
            return []
        try:
            with self.guard(f"work/{key}", "read"):
                fs = self.fs
                fs.invalidate_cache()
                return [str(path) for path in fs.find(f"{self.root}/work/{key}")]
        except FileNotFoundError:
            return []

    def _pushed(self, key: str, prefix: str) -> dict[str, list[str]]:
        """Folder -> its markers, for folders of which every part was pushed."""
        parts: dict[tuple[str, int], list[str]] = {}
        for path in self._listed(key):
            match = _MARKER.fullmatch(path.removeprefix(f"{self.root}/work/{key}/"))
            if match and _within(match["name"], prefix):
                parts.setdefault((match["name"], int(match["parts"])), []).append(path)
        return {name: markers for (name, count), markers in parts.items() if len(markers) == count}

    def _entries(self, markers: list[str]) -> dict[str, FileEntry]:
        files: dict[str, FileEntry] = {}
        for marker in markers:
            with self.guard(marker.removeprefix(f"{self.root}/"), "read"):
                body = json.loads(self.fs.cat_file(marker))
            files |= {file: FileEntry.model_validate(entry) for file, entry in body.items()}
        return files

    def _pull(self, key: str, name: str, markers: list[str]) -> bool:
        """Whether the folder is whole here, after fetching it where need be."""
        files, local = self._entries(markers), self.workdir(key) / name
        if _whole(local, files):
            return True
        local.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{local.name}.", dir=local.parent))
        try:
            with self.guard(f"work/{key}/{name}", "read"), suppress(FileNotFoundError):
                for file in files:
                    (temporary / file).parent.mkdir(parents=True, exist_ok=True)
                    self.fs.get_file(f"{self.root}/work/{key}/{name}/{file}", str(temporary / file))
            if not _whole(temporary, files):  # pushed once more by a process that was killed meanwhile
                return False
            shutil.rmtree(local, ignore_errors=True)
            with suppress(OSError):  # a neighbour that shares this folder was faster
                temporary.rename(local)
            return _whole(local, files)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def cache_folder() -> Path:
    """This machine's folder for copies: KUBEALIGN_CACHE, or ~/.cache/kubealign. Raises ArtifactError without a home."""
    given = os.environ.get("KUBEALIGN_CACHE")
    try:  # a container's user may have no home at all
        return Path(given) if given else Path.home() / ".cache" / "kubealign"
    except RuntimeError as error:
        raise ArtifactError("this user has no home folder, so there is no place for copies", where="HOME",
                            hint="set KUBEALIGN_CACHE to a folder that can be written") from error


def entries(folder: Path) -> dict[str, FileEntry]:
    """Digest and size of every file below a folder, by its path in it, sorted."""
    return {
        path.relative_to(folder).as_posix(): FileEntry(sha256=sha256_of(path), size=path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def sizes_below(folder: Path) -> dict[str, int]:
    """Size of every file below a folder, by its path in it; empty where there is none."""
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file, waiting(lambda: f"{path} is read for its digest"):
        return hashlib.file_digest(file, "sha256").hexdigest()


def _within(name: str, prefix: str) -> bool:
    return name == prefix or (name.startswith(prefix) if not prefix or prefix.endswith("/") else False)


def _whole(folder: Path, files: dict[str, FileEntry]) -> bool:
    """Sizes are compared first, so that what is missing is known without reading."""
    paths = {folder / file: entry for file, entry in files.items()}
    return all(path.is_file() and path.stat().st_size == entry.size for path, entry in paths.items()) and all(
        sha256_of(path) == entry.sha256 for path, entry in paths.items())
