"""A data file that cannot be read: one clear error for each reason, never a client's traceback."""

from __future__ import annotations

import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from alignment.data.fingerprint import file_digest
from alignment.data.unreadable import DataUnreachable
from alignment.errors import DataError


class _Server(http.server.BaseHTTPRequestHandler):
    """Answers with the status that its path begins with."""

    def do_GET(self) -> None:
        self.send_response(int(self.path.split("/")[1]))
        self.send_header("Content-Length", "7")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(b"private")

    do_HEAD = do_GET

    def log_message(self, *arguments: object) -> None:
        """Quiet."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{made.server_port}"
    made.shutdown()
    made.server_close()


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("AWS_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)


def _said(url: str) -> DataError:
    with pytest.raises(DataError) as caught:
        file_digest(url)
    text = str(caught.value)
    assert len(text.splitlines()) <= 4, text
    assert "private" not in text
    assert "Traceback" not in text
    assert caught.value.found == url
    return caught.value


@pytest.mark.parametrize(("status", "problem", "again"), [
    (400, "does not give this file (HTTP 400 Bad Request)", False), (401, "refuses this file (HTTP 401", False),
    (403, "refuses this file (HTTP 403 Forbidden)", False), (404, "does not exist (HTTP 404", False),
    (410, "does not exist (HTTP 410", False), (429, "cannot give this file now (HTTP 429", True),
    (500, "cannot give this file now (HTTP 500", True), (503, "cannot give this file now (HTTP 503", True),
    (599, "cannot give this file now (HTTP 599)", True), (451, "does not give this file (HTTP 451", False),
])
def test_what_a_server_answers(status: int, problem: str, again: bool, server: str) -> None:
    error = _said(f"http://{server}/{status}/rows.jsonl")
    assert problem in error.problem
    assert error.transient is again
    assert ("does not exist" in error.problem) == (status in (404, 410))


def test_a_file_that_is_there(server: str) -> None:
    assert len(file_digest(f"http://{server}/200/rows.jsonl")) == 64


@pytest.mark.parametrize(("url", "problem", "again"), [
    ("http://127.0.0.1:1/rows.jsonl", "refuses the connection", True),
    ("https://{server}/200/rows.jsonl", "no secure connection", False),
    ("http:///rows.jsonl", "no URL that can be opened", False), ("http://127.0.0.1:99999/x", "no URL", False),
    ("nope://x", "no URL that can be opened: Protocol not known", False),
    ("memory://nowhere.jsonl", "does not exist", False),
])
def test_servers_that_are_none(url: str, problem: str, again: bool, server: str) -> None:
    error = _said(url.format(server=server))
    assert problem in error.problem
    assert isinstance(error, DataUnreachable) is again


def test_object_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    s3fs = pytest.importorskip("s3fs")
    for name in [name for name in os.environ if name.startswith("AWS_")]:  # of other tests' stores, too
        monkeypatch.delenv(name)
    s3fs.S3FileSystem.clear_instance_cache()
    assert "no credentials" in _said("s3://bucket/rows.jsonl").problem
    assert 'Invalid bucket name "my bucket"' in _said("s3://my bucket/rows.jsonl").problem


def test_the_hub_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfFileSystem, constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    HfFileSystem.clear_instance_cache()
    assert "offline mode is on" in _said("hf://datasets/some/one/rows.jsonl").problem


def test_files_of_this_machine(tmp_path: Path) -> None:
    assert "does not exist" in _said(str(tmp_path / "nowhere.jsonl")).problem
    assert "Is a directory" in _said(str(tmp_path)).problem


def test_a_file_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("alignment.data.fingerprint.local_digest", refused)
    assert "by this user" in _said(str(tmp_path)).problem
