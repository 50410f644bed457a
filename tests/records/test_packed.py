"""Packed files and URLs (`importers.packed`): one file in, its bytes and its ending out, or an error that says why."""

from __future__ import annotations

import bz2
import gzip
import http.server
import io
import lzma
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow
import pyarrow.ipc
import pytest
from fsspec.compression import compr

from alignment.errors import DataError
from alignment.records.importers.files import read_rows, read_table
from alignment.records.importers.packed import load

LINE, CSV = b'{"q": "x", "a": "y"}\n', b"q,a\nx,y\n"


def zipped(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__MACOSX", "__MACOSX/").replace("_dot_", "."), content)
    return buffer.getvalue()


def written(folder: Path, content: bytes, name: str) -> str:
    (folder / name).write_bytes(content)
    return str(folder / name)


@pytest.mark.parametrize(("name", "content"), [
    ("t.jsonl.gz", gzip.compress(LINE)), ("T.JSONL.GZ", gzip.compress(LINE)), ("t.jsonl.bz2", bz2.compress(LINE)),
    ("t.jsonl.xz", lzma.compress(LINE)), ("t.jsonl.lzma", lzma.compress(LINE, lzma.FORMAT_ALONE)),
    ("t.jsonl.zip", zipped(t_dot_jsonl=LINE)), ("any.zip", zipped(t_dot_csv=CSV)),
    ("t.csv.gz", gzip.compress(CSV)), ("t.csv.xz", lzma.compress(CSV)),
    ("any.zip", zipped(t_dot_csv=CSV, __MACOSX_dot__t_dot_csv=b"\x00\x05")),
    ("rows[1].csv", CSV), ("rows*.csv", CSV), ("what?.csv", CSV), ("a#b.csv", CSV), ("rows 2.csv", CSV),
], ids=range(15))  # fmt: skip
def test_the_same_row_comes_from_every_packing_and_name(name: str, content: bytes, tmp_path: Path) -> None:
    [row], names = read_table(written(tmp_path, content, name), "s")
    assert (row.value, names) == ({"q": "x", "a": "y"}, ["q", "a"])  # type: ignore[union-attr]


@pytest.mark.parametrize(("name", "content", "problem", "found"), [
    ("two.jsonl.zip", zipped(a_dot_jsonl=LINE, b_dot_jsonl=LINE), "the zip holds 2 files", "a.jsonl, b.jsonl"),
    ("two.zip", zipped(data_dot_csv=CSV, LICENSE=b"MIT"), "the zip holds 2 files", "data.csv, LICENSE"),
    ("none.zip", zipped(), "the zip holds 0 files", "nothing"),
    ("x.zip", b"garbage", "cannot be read", None), ("x.zip", zipped(a=LINE)[:-30], "cannot be read", None),
    ("x.jsonl.xz", b"garbage", "cannot be read", None), ("x.jsonl.lzma", b"garbage garbage", "cannot be read", None),
    ("x.jsonl.xz", lzma.compress(LINE * 99)[:-20], "cannot be read", None),
    ("x.jsonl.gz", LINE, "cannot be read", None), ("x.csv.bz2", CSV, "cannot be read", None),
    ("x.jsonl.gz", gzip.compress(LINE * 99)[:40] + b"\xff" * 40, "cannot be read", None),
    ("x.jsonl", gzip.compress(LINE), r"is packed \(gzip\), and its name does not say so", None),
    ("x.csv", zipped(a=CSV), r"is packed \(zip\)", None), ("x", lzma.compress(LINE), r"is packed \(xz\)", None),
    ("x.jsonl", bz2.compress(LINE), r"is packed \(bz2\)", None),
    ("x.jsonl", b"\x28\xb5\x2f\xfd\x00\x01", r"is packed \(zstd\)", None),
    ("x.jsonl.gz", gzip.compress(gzip.compress(LINE)), r"is packed \(gzip\)", None),
    ("x.zip", zipped(a=b""), "is empty", None),
], ids=range(18))  # fmt: skip
def test_what_cannot_be_unpacked_is_an_error_with_the_files_name(
    name: str, content: bytes, problem: str, found: str | None, tmp_path: Path
) -> None:
    path = written(tmp_path, content, name)
    with pytest.raises(DataError, match=problem) as caught:
        read_rows(path, "s")
    assert caught.value.where == path
    if found is not None:
        assert caught.value.found == found


def test_what_needs_a_library_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(compr, "zstd", raising=False)
    with pytest.raises(DataError, match=r"reading \.zst needs a library"):
        load(written(tmp_path, b"\x28\xb5\x2f\xfd", "x.jsonl.zst"))


def test_a_zip_with_a_password_is_an_error(tmp_path: Path) -> None:
    content = bytearray(zipped(a_dot_jsonl=LINE))
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + offset] |= 1
    with pytest.raises(DataError, match="cannot be read"):
        load(written(tmp_path, bytes(content), "x.zip"))


# URLs


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    files = {"/rows.csv": CSV, "/rows.csv.gz": gzip.compress(CSV), "/rows.jsonl": LINE,
             "/any.zip": zipped(t_dot_csv=CSV)}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = files.get(self.path.partition("?")[0])
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        def do_HEAD(self) -> None:
            self.send_response(405)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{made.server_port}"
        made.shutdown()


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz", "rows.jsonl", "any.zip"])
@pytest.mark.parametrize("query", ["", "?X-Signature=abc%2Fdef", "?a=1&b=*.json", "?sig=x.gz", "?v=[1]"])
def test_a_url_is_read_by_the_ending_of_its_path(name: str, query: str, server: str) -> None:
    pytest.importorskip("aiohttp")
    [row], names = read_table(f"{server}/{name}{query}", "s")
    assert (row.value, names) == ({"q": "x", "a": "y"}, ["q", "a"])  # type: ignore[union-attr]


def test_a_name_in_memory_or_behind_another_protocol_keeps_its_ending() -> None:
    with fsspec.open("memory://records/what?.csv", "wb") as file:
        file.write(CSV)
    assert read_table("memory://records/what?.csv", "s")[1] == ["q", "a"]


def _tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo("t.jsonl")
        member.size = len(LINE * 3)
        archive.addfile(member, io.BytesIO(LINE * 3))
    return buffer.getvalue()


def _arrow(stream: bool) -> bytes:
    table = pyarrow.table({"q": ["x"], "a": ["y"]})
    sink = pyarrow.BufferOutputStream()
    with (pyarrow.ipc.new_stream if stream else pyarrow.ipc.new_file)(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


@pytest.mark.parametrize(("name", "content", "kind"), [
    ("t.tar", _tar(), "a tar archive"), ("t.tar.gz", gzip.compress(_tar()), "a tar archive"),
    ("t.arrow", _arrow(stream=True), "an Arrow stream"), ("t.arrow", _arrow(stream=False), "an Arrow file"),
    ("t.csv", CSV.decode().encode("utf-16"), "text in UTF-16"),
    ("t.jsonl", b"\xfe\xff" + LINE.decode().encode("utf-16-be"), "text in UTF-16"),
])  # fmt: skip
def test_what_is_no_text_is_no_rows_either(name: str, content: bytes, kind: str, tmp_path: Path) -> None:
    """Of a tar archive, line by line, some rows would be good ones and the first would be lost."""
    with pytest.raises(DataError, match=f"the file is {kind}") as error:
        load(written(tmp_path, content, name))
    assert error.value.hint
