"""A data file's bytes, unpacked, and the ending that says what kind of file it is. Reads through fsspec.

What is packed is told by the name's ending and must be what the ending says; a .zip must hold one file. Does not look
at the content otherwise.
"""

from __future__ import annotations

import io
import lzma
import zipfile
import zlib

from fsspec.compression import compr
from fsspec.core import url_to_fs

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


def load(path: str) -> tuple[bytes, str]:
    """(content, name in lower case without the endings of packing) of a file or URL.

    A name ending in .gz, .bz2, .xz, .zst or .zip is unpacked. Raises DataError when the file cannot be read, is empty,
    is packed though its name does not say so, is a .zip of more files than one, or a tar, an Arrow file, or in UTF-16.
    """
    name = _name(path)
    ending = next((ending for ending in _PACKED if name.endswith(ending)), None)
    if ending is not None and _PACKED[ending] not in compr:
        raise DataError(f"reading {ending} needs a library that is not installed", where=path,
                        hint="pip install zstandard" if ending == ".zst" else None)
    try:
        # Opened as it is named: fsspec.open takes ?, * and [ in a name for patterns, which a URL's query has.
        files, plain = url_to_fs(path)
        with files.open(plain, "rb") as file:
            data: bytes = file.read() if ending is None else compr[_PACKED[ending]](file, mode="rb").read()
        if name.endswith(".zip"):
            data, name = _unzipped(data, path)
    except (OSError, EOFError, ValueError, ImportError, RuntimeError, zlib.error, lzma.LZMAError,
            zipfile.BadZipFile) as error:
        raise DataError(f"the file cannot be read: {error}", where=path,
                        expected="a file, or a URL that fsspec can open") from error
    data = data.removeprefix(b"\xef\xbb\xbf")
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
    return data, name.removesuffix(ending or "")


def _name(path: str) -> str:
    """What the ending of a path or URL is read from, in lower case: of a URL, its path without query."""
    named = next((part for part in path.split("::") if "://" in part), path)
    if "://" in named and not named.startswith(("file://", "local://", "memory://")):
        named = named.partition("?")[0].partition("#")[0]
    return named.lower()


def _unzipped(data: bytes, path: str) -> tuple[bytes, str]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = [name for name in archive.namelist() if not (name.endswith("/") or name.startswith("__MACOSX/"))]
        if len(names) != 1:
            raise DataError(f"the zip holds {len(names)} files", where=path, found=", ".join(names[:8]) or "nothing",
                            expected="one file", hint="unpack it, and give each file an entry of `data`")
        return archive.read(names[0]), names[0].lower()
