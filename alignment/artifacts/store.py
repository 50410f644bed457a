"""The artifact store: finished stage folders on any fsspec URL, addressed by what they were made from.

    STORE/artifacts/NAME-DIGEST/...   finished, never changed; manifest.json is written last
    STORE/work/NAME-DIGEST/...        in progress: lease, checkpoints, the folder to be published
    STORE/runs/RUN/...                resolved config and report of each run

A reader sees an artifact whole or not at all: on a file system the finished folder is renamed into place, on
object stores the manifest goes up after every other file. Knows nothing of stages, rows or models.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import fsspec
from fsspec.core import url_to_fs
from pydantic import ValidationError

from alignment.artifacts.lease import Lease
from alignment.artifacts.manifest import FORMAT, FileEntry, Manifest
from alignment.errors import ArtifactError


@dataclass(frozen=True)
class Artifact:
    """A finished artifact, readable as a local folder through `path()`."""

    store: Store
    manifest: Manifest

    @property
    def key(self) -> str:
        return self.manifest.key

    @property
    def url(self) -> str:
        return self.store.url_of(f"artifacts/{self.key}")

    def path(self) -> Path:
        """Local folder with the artifact's files: the store's own, or a cached copy checked by sha256."""
        return self.store.local_copy(self.manifest)


class Store:
    """See the module. Cheap to make and to pickle; holds no connection of its own."""

    def __init__(self, url: str, cache: Path | None = None) -> None:
        fs, root = url_to_fs(url)
        self.is_local = "file" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)
        self.url = str(Path(root).absolute()) if self.is_local else url.rstrip("/")
        self.root = self.url if self.is_local else root.rstrip("/")
        home = Path(os.environ.get("KUBEALIGN_CACHE", Path.home() / ".cache" / "kubealign"))
        self.cache = cache or home / hashlib.sha256(self.url.encode()).hexdigest()[:12]

    @property
    def fs(self) -> fsspec.AbstractFileSystem:
        return url_to_fs(self.url)[0]

    def url_of(self, path: str) -> str:
        return f"{self.url}/{path}"

    # --- reading ---

    def find(self, key: str) -> Artifact | None:
        """The finished artifact, or None. Raises ArtifactError when its manifest cannot be understood."""
        where = f"{self.root}/artifacts/{key}/manifest.json"
        fs = self.fs
        fs.invalidate_cache()
        try:
            text = fs.cat_file(where)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ArtifactError(f"the store cannot be read: {error}", where=where) from error
        try:
            manifest = Manifest.model_validate_json(text)
        except ValidationError as error:
            raise ArtifactError(
                f"the manifest is damaged: {error.errors()[0]['msg']}", where=where,
                hint="remove this artifact's folder and run again to make it anew",
            ) from error
        if manifest.format != FORMAT:
            raise ArtifactError("the artifact was made by another version", where=where, found=manifest.format,
                                expected=f"format {FORMAT}", hint="remove the folder and run again")
        return Artifact(self, manifest)

    def local_copy(self, manifest: Manifest) -> Path:
        if self.is_local:
            return Path(self.root) / "artifacts" / manifest.key
        target = self.cache / manifest.key
        if target.exists():
            return target
        self.cache.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{manifest.key}.", dir=self.cache))
        try:
            for name, entry in manifest.files.items():
                local = temporary / name
                local.parent.mkdir(parents=True, exist_ok=True)
                self.fs.get_file(f"{self.root}/artifacts/{manifest.key}/{name}", str(local))
                if sha256_of(local) != entry.sha256:
                    raise ArtifactError("a file differs from its digest in the manifest",
                                        where=self.url_of(f"artifacts/{manifest.key}/{name}"),
                                        hint="the store lost or changed data; remove the folder and run again")
            (temporary / "manifest.json").write_text(manifest.model_dump_json(indent=2), encoding="utf-8")
            try:
                temporary.rename(target)
            except OSError:
                if not target.exists():  # else another process fetched the same copy
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return target

    # --- writing ---

    def lease(
        self, key: str, *, ttl: float = 60.0, poll: float = 0.5, waiting: Callable[[str], None] = lambda sentence: None
    ) -> Lease:
        """The right to make `key`; ends its wait without being held when somebody else finished it."""
        return Lease(self.fs, f"{self.root}/work/{key}/lease.json", lambda: self.find(key) is not None,
                     ttl=ttl, poll=poll, waiting=waiting)

    def workdir(self, key: str) -> Path:
        """Local folder for work in progress. On a local store it survives a kill; see push_work for the others."""
        base = Path(self.root) / "work" if self.is_local else self.cache / "work"
        path = base / key
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ArtifactError(f"the store cannot be written: {error}", where=str(path),
                                expected="a folder that this user may write") from error
        return path

    def push_work(self, key: str, name: str) -> None:
        """Copy a folder of the workdir (a checkpoint) to a remote store, its marker last. No-op on a local one."""
        if self.is_local:
            return
        source, target = self.workdir(key) / name, f"{self.root}/work/{key}/{name}"
        fs = self.fs
        for file in sorted(p for p in source.rglob("*") if p.is_file()):
            fs.put_file(str(file), f"{target}/{file.relative_to(source).as_posix()}")
        fs.pipe_file(f"{target}.pushed", b"")

    def pull_work(self, key: str, prefix: str = "") -> list[str]:
        """Bring folders that push_work finished and this machine lacks into the workdir; returns their names.

        Args:
            prefix: only folders whose name starts so.
        """
        if self.is_local:
            return []
        fs, base = self.fs, f"{self.root}/work/{key}"
        fs.invalidate_cache()
        if not fs.exists(base):
            return []
        pulled = []
        for marker in (str(file) for file in fs.find(base) if str(file).endswith(".pushed")):
            name = marker.removesuffix(".pushed").split(f"work/{key}/", 1)[1]
            local = self.workdir(key) / name
            if local.exists() or not name.startswith(prefix):
                continue
            local.parent.mkdir(parents=True, exist_ok=True)
            temporary = local.with_name(f".{local.name}.part")
            shutil.rmtree(temporary, ignore_errors=True)
            for file in fs.find(f"{base}/{name}"):
                goal = temporary / str(file).split(f"work/{key}/{name}/", 1)[1]
                goal.parent.mkdir(parents=True, exist_ok=True)
                fs.get_file(file, str(goal))
            temporary.rename(local)
            pulled.append(name)
        return pulled

    def publish(self, manifest: Manifest, folder: Path, lease: Lease) -> Artifact:
        """Make `folder` the finished artifact `manifest.key`; fills in the manifest's files.

        The folder is used up. Whoever published the same key first wins.
        """
        files = {
            path.relative_to(folder).as_posix(): FileEntry(sha256=sha256_of(path), size=path.stat().st_size)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        manifest = manifest.model_copy(update={"files": files})
        text = manifest.model_dump_json(indent=2)
        lease.check()
        target = f"{self.root}/artifacts/{manifest.key}"
        try:
            if self.is_local:
                (folder / "manifest.json").write_text(text, encoding="utf-8")
                _sync(folder)
                Path(target).parent.mkdir(parents=True, exist_ok=True)
                try:
                    folder.rename(target)
                except OSError:
                    first = self.find(manifest.key)
                    if first is None:
                        raise
                    return first
            else:
                fs = self.fs
                for name in files:
                    fs.put_file(str(folder / name), f"{target}/{name}")
                fs.pipe_file(f"{target}/manifest.json", text.encode())
        except OSError as error:
            raise ArtifactError(f"the artifact could not be written: {error}", where=target) from error
        return Artifact(self, manifest)

    def clear_work(self, key: str) -> None:
        """Remove what is left of the work in progress, lease included."""
        shutil.rmtree(self.workdir(key), ignore_errors=True)
        if not self.is_local:
            base = f"{self.root}/work/{key}"
            if self.fs.exists(base):
                self.fs.rm(base, recursive=True)

    def sweep_work(self, key: str) -> None:
        """Remove work that a killed process left after publishing; a finished artifact needs none."""
        if self.is_local and (Path(self.root) / "work" / key).exists():
            self.clear_work(key)

    # --- runs ---

    def write_run_file(self, run: str, name: str, text: str) -> str:
        """Write a small file of a run (resolved config, report), replacing an older one whole; returns its URL."""
        path = f"{self.root}/runs/{run}/{name}"
        try:
            if self.is_local:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                temporary = Path(f"{path}.{os.getpid()}.part")
                temporary.write_text(text, encoding="utf-8")
                temporary.replace(path)
            else:
                self.fs.pipe_file(path, text.encode())
        except OSError as error:
            raise ArtifactError(f"the store cannot be written: {error}", where=path,
                                expected="a folder or bucket that this user may write") from error
        return self.url_of(f"runs/{run}/{name}")


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(folder: Path) -> None:
    """Flush a folder's files to the disk before the rename that makes them visible."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


