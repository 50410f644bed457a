"""A data file's bytes, unpacked, whole or as they come, and the ending that says what kind it is. Reads through fsspec.

What is packed is told by the name's ending and must be what the ending says; a .zip must hold one file. Does not look
at the content otherwise.
"""

from __future__ import annotations

import io
import itertools
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from fsspec.compression import compr
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from alignment.errors import DataError

_PACKED = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".lzma": "lzma", ".zst": "zstd"}
"""Ending -> fsspec's name of what packs it."""
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh91AY&SY": "bz2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd",
          b"PK\x03\x04": "zip"}
_OTHERS = {b"ARROW1": "an Arrow file", b"\xff\xff\xff\xff": "an Arrow stream", b"\xff\xfe": "text in UTF-16",
           b"\xfe\xff": "text in UTF-16", b"\xd0\xcf\x11\xe0": "an Excel workbook"}
"""First bytes of what is neither Parquet nor UTF-8; line by line, some of its rows could be taken for good ones."""
_TAR = 257, b"ustar"
"""Where a tar archive says that it is one."""


_FAILURES = (OSError, EOFError, ValueError, ImportError, RuntimeError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)
_BOM = b"\xef\xbb\xbf"
_PIECE = 1 << 20
"""Bytes that are read at once."""
_HEAD = 512
"""Bytes by which a kind of file is told."""


def load(path: str) -> tuple[bytes, str]:
    """(content, name in lower case without the endings of packing) of a file or URL.

    A name ending in .gz, .bz2, .xz, .zst or .zip is unpacked. Raises DataError when the file cannot be read, is empty,
    is packed though its name does not say so, is a .zip of more files than one, or a tar, an Arrow file, or in UTF-16.
    """
    with unpacked(path) as file:
        return b"".join([file.head, *file.rest()]), file.name


@dataclass
class Unpacked:
    """A file that is being read.

    Attributes:
        name: in lower case, without the endings of packing.
        head: its first bytes, at least up to the first that is not blank; a mebibyte, where they come at once.
        whole: `head` is all of it.
    """

    path: str
    name: str
    file: Any
    head: bytes = b""
    whole: bool = False

    def rest(self) -> Iterator[bytes]:
        """What follows the head, piece by piece. Raises DataError where it cannot be read."""
        while not self.whole and (piece := self.read(_PIECE)):
            yield piece

    def read(self, size: int) -> bytes:
        try:
            piece: bytes = self.file.read(size)
        except _FAILURES as error:
            raise _unreadable(self.path, error) from error
        return piece

    def lines(self) -> Iterator[bytes]:
        """All lines, which end with "\\n" only, without their ends."""
        begun: list[bytes] = []
        for piece in itertools.chain([self.head], self.rest()):
            first, *others = piece.split(b"\n")
            begun.append(first)
            if others:
                yield b"".join(begun)
                yield from others[:-1]
                begun = [others[-1]]
        yield b"".join(begun)


@contextmanager
def unpacked(path: str) -> Iterator[Unpacked]:
    """A file or URL to be read from its start, without a byte order mark. Raises as `load` does, for what its first
    bytes show."""
    name = _name(path)
    ending = next((ending for ending in _PACKED if name.endswith(ending)), None)
    if ending is not None and _PACKED[ending] not in compr:
        raise DataError(f"reading {ending} needs a library that is not installed", where=path,
                        hint="pip install zstandard" if ending == ".zst" else None)
    with ExitStack() as stack:
        try:
            # Opened as it is named: fsspec.open takes ?, * and [ in a name for patterns, which a URL's query has.
            files, plain = url_to_fs(path)
            file = stack.enter_context(files.open(plain, "rb"))
            if ending is not None:
                file = stack.enter_context(compr[_PACKED[ending]](file, mode="rb"))
            elif name.endswith(".zip"):
                file, name = _unzipped(file.read(), path, stack)
        except _FAILURES as error:
            raise _unreadable(path, error) from error
        made = Unpacked(path, name.removesuffix(ending or ""), file)
        while not made.whole and (len(made.head) < _HEAD or not made.head.strip()):
            piece = made.read(_PIECE)
            made.head, made.whole = made.head + piece, not piece
        made.head = made.head.removeprefix(_BOM)
        _check_kind(made.head, path)
        yield made


def on_disk(file: Unpacked) -> str | None:
    """Where a file lies that is not packed and is on a disk of this machine; None for others."""
    files, plain = url_to_fs(file.path)
    packed = file.path.lower().endswith((*_PACKED, ".zip"))
    return plain if isinstance(files, LocalFileSystem) and not packed else None


def _unreadable(path: str, error: BaseException) -> DataError:
    return DataError(f"the file cannot be read: {error}", where=path,
                     expected="a file, or a URL that fsspec can open")


def _check_kind(data: bytes, path: str) -> None:
    if not data.strip():
        raise DataError("the file is empty", where=path, expected="at least one row")
    packed = next((kind for magic, kind in _MAGIC.items() if data.startswith(magic)), None)
    if packed is not None:
        raise DataError(f"the file is packed ({packed}), and its name does not say so", where=path,
                        expected=f"a name that ends in {', '.join((*_PACKED, '.zip'))}, or the file unpacked")
    kind = next((kind for magic, kind in _OTHERS.items() if data.startswith(magic)), None)
    if kind is not None or data.startswith(_TAR[1], _TAR[0]):
        raise DataError(f"the file is {kind or 'a tar archive'}", where=path,
                        expected="JSON lines, JSON, CSV or Parquet, in UTF-8",
                        hint="unpack it, and give each file an entry of `data`" if kind is None else
                        "datasets.Dataset.from_file(PATH).to_parquet(...) makes Parquet of it" if "Arrow" in kind else
                        "save it as UTF-8 text: CSV or JSON")


def _name(path: str) -> str:
    """What the ending of a path or URL is read from, in lower case: of a URL, its path without query."""
    named = next((part for part in path.split("::") if "://" in part), path)
    if "://" in named and not named.startswith(("file://", "local://", "memory://")):
        named = named.partition("?")[0].partition("#")[0]
    return named.lower()


def _unzipped(data: bytes, path: str, stack: ExitStack) -> tuple[Any, str]:
    archive = stack.enter_context(zipfile.ZipFile(io.BytesIO(data)))
    names = [name for name in archive.namelist() if not (name.endswith("/") or name.startswith("__MACOSX/"))]
    if len(names) != 1:
        raise DataError(f"the zip holds {len(names)} files", where=path, found=", ".join(names[:8]) or "nothing",
                        expected="one file", hint="unpack it, and give each file an entry of `data`")
    return stack.enter_context(archive.open(names[0])), names[0].lower()
