"""The artifact store: finished stage folders on any fsspec URL, addressed by what they were made from.

    STORE/artifacts/KIND-DIGEST/...   finished, never changed; manifest.json is written last
    STORE/work/KIND-DIGEST/...        in progress: lease, checkpoints, the folder to be published
    STORE/runs/RUN/...                resolved config, report and logs of each run
    STORE/served/KIND-DIGEST/...      what servers of a model proved of it

A reader sees an artifact whole or not at all: on a file system the finished folder is renamed into place, on
object stores the manifest goes up after every other file. Knows nothing of stages, rows or models.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import shlex
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from alignment.artifacts.at_work import Work, teller, work_of
from alignment.artifacts.faults import StoreUnreachable
from alignment.artifacts.lease import Lease
from alignment.artifacts.manifest import FORMAT, FileEntry, Manifest
from alignment.artifacts.work import Workspace, entries, sha256_of, sizes_below
from alignment.errors import ArtifactError, Written
from alignment.progress import State, waiting


@dataclass(frozen=True)
class Artifact:
    """A finished artifact, readable as a local folder through `path()`."""

    store: Store
    manifest: Manifest

    @property
    def key(self) -> str:
        return self.manifest.key

    @property
    def metrics(self) -> dict[str, float]:
        return self.manifest.metrics

    @property
    def url(self) -> str:
        return self.store.url_of(f"artifacts/{self.key}")

    def path(self) -> Path:
        """Local folder with the artifact's files: the store's own, or a cached copy checked by sha256.

        Raises:
            ArtifactError: files are gone or damaged, as far as sizes tell.
        """
        return self.store.local_copy(self.manifest)

    def verify(self, *, deep: bool = False) -> None:
        """Hold the files in the store against the manifest: their sizes, with `deep` their digests.

        Raises:
            ArtifactError: naming the files that are gone or damaged, and how to mend it.
        """
        if damage := self.store.damage(self.manifest, deep=deep):
            words = "; ".join(damage[:3]) + (f" and {len(damage) - 3} more" if len(damage) > 3 else "")
            raise ArtifactError(
                "files of a finished artifact are gone or damaged", where=self.url,
                found=Written(words, words), expected="the files that its manifest lists",
                hint=self.store.mending(self.key))


class Store(Workspace):
    """Finished artifacts and run files below one URL; work in progress is `Workspace`'s. Every method raises
    ArtifactError for a store that is not there, refuses or does not answer."""

    # --- reading ---

    def find(self, key: str) -> Artifact | None:
        """The finished artifact, or None. Raises ArtifactError when its manifest cannot be understood."""
        path = f"artifacts/{key}/manifest.json"
        where = self.url_of(path)
        try:
            with self.guard(path, "read"):
                fs = self.fs
                fs.invalidate_cache()
                text = fs.cat_file(f"{self.root}/{path}")
        except FileNotFoundError:
            return None
        try:
            manifest = Manifest.model_validate_json(text)
        except ValidationError as error:
            raise ArtifactError(
                f"the manifest is damaged: {error.errors()[0]['msg']}", where=where, hint=self.mending(key),
            ) from error
        if manifest.format != FORMAT:
            raise ArtifactError("the artifact was made by another version", where=where, found=manifest.format,
                                expected=f"format {FORMAT}", hint=self.mending(key))
        return Artifact(self, manifest)

    def listed(self) -> list[str]:
        """Keys of the finished artifacts, sorted: all that have a manifest. Empty where nothing was made yet."""
        return self._below("artifacts", "manifest.json")

    def damage(self, manifest: Manifest, *, deep: bool = False) -> list[str]:
        """What is wrong with an artifact's files, a few words each; empty where they are as they were made.

        Args:
            deep: compare digests as well, which reads every byte.
        """
        path = f"artifacts/{manifest.key}"
        with self.guard(path, "read"):
            found = sizes_below(Path(self.root, path)) if self.is_local else self._sizes(path)
        wrong = [_unlike(name, entry, found.get(name)) for name, entry in manifest.files.items()]
        if deep:
            wrong += [self._other(path, name, entry) for name, entry in manifest.files.items()
                      if found.get(name) == entry.size]
        return [words for words in wrong if words]

    def mending(self, key: str) -> str:
        """What to do about an artifact whose files are damaged."""
        where = self.url_of(f"artifacts/{key}")
        remove = f"rm -r {shlex.quote(where)}" if self.is_local else f"remove everything below {where}"
        return f"{remove}, then run again: it is made anew"

    def _below(self, path: str, file: str) -> list[str]:
        """Names of the folders at `path` that have this file."""
        if self.is_local:
            with self.guard(path, "read"):
                return sorted(found.parent.name for found in Path(self.root, path).glob(f"*/{file}"))
        try:
            with self.guard(path, "read"):
                fs = self.fs
                fs.invalidate_cache()
                found = [str(name).rstrip("/").rpartition("/")[2]
                         for name in fs.ls(f"{self.root}/{path}", detail=False)]
                return sorted(name for name in found if fs.exists(f"{self.root}/{path}/{name}/{file}"))
        except FileNotFoundError:
            return []

    def _sizes(self, path: str) -> dict[str, int]:
        fs, base = self.fs, f"{self.root}/{path}/"
        fs.invalidate_cache()
        return {str(name).removeprefix(base): item["size"]
                for name, item in fs.find(base.rstrip("/"), detail=True).items()}

    def _other(self, path: str, name: str, entry: FileEntry) -> str:
        """What is wrong with the content of a file of the right size; nothing, where it is what it was."""
        try:
            with self.guard(f"{path}/{name}", "read"), self.fs.open(f"{self.root}/{path}/{name}", "rb") as file:
                same = hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256
        except StoreUnreachable:
            raise
        except ArtifactError as error:  # S3 knows a sum of its own, and gives nothing out that has another
            return f"{name}: {error.problem}"
        return "" if same else f"{name} differs from its digest"

    def local_copy(self, manifest: Manifest) -> Path:
        """The artifact's folder on this machine; of several processes that want it, one fetches it."""
        if self.is_local:
            Artifact(self, manifest).verify()
            return Path(self.root) / "artifacts" / manifest.key
        target = self.cache / manifest.key
        if not _is(target, manifest):
            with _alone(self.cache / "locks" / manifest.key):
                if not _is(target, manifest):
                    self._fetch(manifest, target)
        return target

    def _fetch(self, manifest: Manifest, target: Path) -> None:
        mine = f".{manifest.key}.{socket.gethostname()}."
        for left in self.cache.glob(f"{mine}*"):  # of a process of this machine that was killed
            shutil.rmtree(left, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(prefix=mine, dir=self.cache))
        try:
            for name, entry in manifest.files.items():
                local, path = temporary / name, f"artifacts/{manifest.key}/{name}"
                local.parent.mkdir(parents=True, exist_ok=True)
                try:
                    with self.guard(path, "read"):
                        self.fs.get_file(f"{self.root}/{path}", str(local))
                    intact = sha256_of(local) == entry.sha256
                except FileNotFoundError:
                    intact = False
                if not intact:
                    raise ArtifactError("a file is gone or differs from its digest in the manifest",
                                        where=self.url_of(path), hint=self.mending(manifest.key))
            (temporary / "manifest.json").write_text(manifest.model_dump_json(indent=2), encoding="utf-8")
            _same_rights(temporary)
            shutil.rmtree(target, ignore_errors=True)  # of one that was removed from the store and made anew
            try:
                temporary.rename(target)
            except OSError:
                if not _is(target, manifest):  # else another machine that shares this cache was faster
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def work(self, key: str) -> Work | None:
        """What is known of an artifact that is not finished; None where it was not begun."""
        return work_of(self, key, self.lease(key).holder())

    # --- writing ---

    def teller(self, key: str) -> Callable[[State], None]:
        """Tells the store how far the work on `key` is; see `at_work`."""
        return teller(self, key)

    def lease(
        self, key: str, *, by: str = "", gives_way: bool = False, ttl: float = 60.0, poll: float = 0.5,
        waiting: Callable[[str], None] = lambda sentence: None,
    ) -> Lease:
        """The right to make `key`; ends its wait without being held when somebody else finished it. See Lease."""
        path = f"work/{key}/lease.json"
        return Lease(self.fs, f"{self.root}/{path}", lambda: self.find(key) is not None, url=self.url_of(path),
                     by=by, gives_way=gives_way, ttl=ttl, poll=poll, waiting=waiting)

    def publish(self, manifest: Manifest, folder: Path, lease: Lease) -> Artifact:
        """Make `folder` the finished artifact `manifest.key`; fills in the manifest's files.

        The folder is used up. What another machine pushed of it (`push_work` under the same name) is published with
        it: copied inside the store, never through this machine. Whoever published the same key first wins.
        """
        files = entries(folder)
        pushed = self.pushed_files(manifest.key, folder.name)
        manifest = manifest.model_copy(update={"files": dict(sorted({**pushed, **files}.items()))})
        text = manifest.model_dump_json(indent=2)
        lease.check()
        first = self.find(manifest.key)
        if first is not None:
            return first
        path = f"artifacts/{manifest.key}"
        target = f"{self.root}/{path}"
        with self.guard(path, "written"):
            if self.is_local:
                (folder / "manifest.json").write_text(text, encoding="utf-8")
                _same_rights(folder)
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
                fs, source = self.fs, f"{self.root}/work/{manifest.key}/{folder.name}"
                for name in manifest.files:
                    if name in files:
                        fs.put_file(str(folder / name), f"{target}/{name}")
                    else:
                        fs.cp_file(f"{source}/{name}", f"{target}/{name}")
                fs.pipe_file(f"{target}/manifest.json", text.encode())
        return Artifact(self, manifest)

    # --- runs ---

    def runs(self) -> list[str]:
        """Names of the runs that were executed in this store, sorted."""
        return self._below("runs", "run.yaml")

    def has_run_file(self, run: str, name: str) -> bool:
        """Whether a run has a file of this name."""
        path = f"runs/{run}/{name}"
        with self.guard(path, "read"):
            fs = self.fs
            fs.invalidate_cache()
            return bool(fs.exists(f"{self.root}/{path}"))

    def read_run_file(self, run: str, name: str) -> str | None:
        """A small file of a run; None where there is none."""
        path = f"runs/{run}/{name}"
        try:
            with self.guard(path, "read"):
                fs = self.fs
                fs.invalidate_cache()
                return str(fs.cat_file(f"{self.root}/{path}"), "utf-8")
        except FileNotFoundError:
            return None

    def write_run_file(self, run: str, name: str, text: str) -> str:
        """Write a small file of a run (resolved config, report, log), replacing an older one whole; returns its URL."""
        return self._write(f"runs/{run}/{name}", text)

    def write_served_file(self, key: str, name: str, text: str) -> str:
        """Write what a server found out about an artifact, which itself is never changed; returns its URL."""
        return self._write(f"served/{key}/{name}", text)

    def write_proof(self, key: str, at: str, text: str, by: str = "") -> str:
        """Write what came of a server's proof of an artifact; returns its URL. Replicas that start together, and prove
        within one second, write a file each.

        Args:
            at: when, in a form that sorts.
            by: who proved it, for `proof_files`.
        """
        return self.write_served_file(key, f"proof-{at}-{secrets.token_hex(2)}{by and f'.{by}'}.json", text)

    def proof_files(self, key: str, by: str = "") -> list[str]:
        """Names of the proofs of an artifact, oldest first: everybody's, or those that `by` wrote."""
        end = f"{by and f'.{by}'}.json"
        path = f"served/{key}"
        try:
            with self.guard(path, "read"):
                fs = self.fs
                fs.invalidate_cache()
                names = sorted(str(name).rstrip("/").rpartition("/")[2]
                               for name in fs.ls(f"{self.root}/{path}", detail=False))
                return [name for name in names if name.startswith("proof-") and name.endswith(end)]
        except FileNotFoundError:
            return []

    def read_served_file(self, key: str, name: str, most: int | None = None) -> str | None:
        """What servers found out about an artifact, or its first `most` bytes; None where it is gone."""
        path = f"served/{key}/{name}"
        try:
            with self.guard(path, "read"):
                return str(self.fs.cat_file(f"{self.root}/{path}", end=most), "utf-8", "replace")
        except FileNotFoundError:
            return None

    def _write(self, path: str, text: str) -> str:
        with self.guard(path, "written"):
            if self.is_local:
                local = Path(self.root) / path
                local.parent.mkdir(parents=True, exist_ok=True)
                temporary = local.with_name(f"{local.name}.{secrets.token_hex(4)}.part")
                temporary.write_text(text, encoding="utf-8")
                temporary.replace(local)
            else:
                self.fs.pipe_file(f"{self.root}/{path}", text.encode())
        return self.url_of(path)


def _is(copy: Path, manifest: Manifest) -> bool:
    """Whether a copy, which was whole when it was renamed into place, is of this artifact, and has lost nothing."""
    try:
        same = (copy / "manifest.json").read_text(encoding="utf-8") == manifest.model_dump_json(indent=2)
    except FileNotFoundError:
        return False
    sizes = sizes_below(copy) if same else {}
    return same and all(sizes.get(name) == entry.size for name, entry in manifest.files.items())


def _unlike(name: str, entry: FileEntry, size: int | None) -> str:
    if size is None:
        return f"{name} is gone"
    return "" if size == entry.size else f"{name} has {size:,} bytes, not {entry.size:,}"


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """One process of this machine at a time; over when its holder dies."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as handle:
        with waiting(lambda: f"waits for another process of this machine, which fetches {file.name}"):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _same_rights(folder: Path) -> None:
    """Give all of a folder the rights that a new file has here, which its manifest was just made with: some libraries
    write theirs for this user alone, and a shared volume is read by others."""
    mode = (folder / "manifest.json").stat().st_mode & 0o666
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            with suppress(PermissionError):  # written by another user, who decides
                path.chmod(mode | (mode & 0o444) >> 2 if path.is_dir() else mode)


def _sync(folder: Path) -> None:
    """Flush a folder's files to the disk before the rename that makes them visible."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
