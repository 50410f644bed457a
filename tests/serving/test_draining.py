"""The end of a pod, over real sockets: clients are answered and sent elsewhere, and the hook sees when nobody waits.
A server without models says as much as one with them."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest

from alignment.config.serve import Limits
from alignment.serving.draining import DRAIN_FILE, IN_FLIGHT
from alignment.serving.service import Service
from tests.serving.built import CPU
from tests.serving.test_server import KEY, Running
from tests.waiting import until


@pytest.fixture
def drain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(DRAIN_FILE, str(tmp_path / "drain"))
    return tmp_path / "drain"


@pytest.fixture
def running(drain: Path) -> Iterator[Running]:
    made = Running(Service([], CPU, Limits(), key=KEY))
    until(lambda: made.server.started)
    yield made
    made.close()


def ask(connection: HTTPConnection, path: str) -> tuple[int, str | None, bytes]:
    """Status, the header `connection`, the body."""
    connection.request("GET", path, headers={"authorization": f"Bearer {KEY}"})
    answer = connection.getresponse()
    return answer.status, answer.getheader("connection"), answer.read()


def test_a_kept_connection_is_closed_with_its_next_answer(running: Running, drain: Path) -> None:
    connection = HTTPConnection("127.0.0.1", running.port)
    for _ in range(2):
        assert ask(connection, "/v1/models")[:2] == (200, None)
    assert connection.sock is not None, "one connection, as long as nobody drains"
    assert ask(connection, "/ready")[0] == 200
    drain.touch()
    assert ask(connection, "/v1/models")[:2] == (200, "close")
    assert connection.sock is None
    # whoever comes anew is answered too, but is told that another server is to be asked
    status, closed, body = ask(connection, "/ready")
    assert (status, closed) == (503, "close")
    assert b'"draining":true' in body
    assert ask(connection, "/nowhere")[:2] == (404, "close")


def test_the_hook_ends_when_nobody_waits(running: Running, drain: Path) -> None:
    file = drain.with_name(drain.name + IN_FLIGHT)
    with running.service.admitted(proving=False):
        assert not file.exists(), "nothing is written before somebody drains"
        drain.touch()
        until(lambda: file.exists() and file.read_text() == "1\n", 10, "one is in flight")
        hook = subprocess.Popen(["sh", "-c", f"until [ \"$(cat '{file}')\" = 0 ]; do sleep 0.1; done"])
        with pytest.raises(subprocess.TimeoutExpired):
            hook.wait(1.5)
    assert hook.wait(10) == 0


def test_the_server_itself_ends_the_connection(running: Running, drain: Path) -> None:
    """Held open by a client that takes no notice of headers."""
    drain.touch()
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as raw:
        raw.sendall(f"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode())
        said = b""
        while piece := raw.recv(4096):  # returns nothing only because the server has ended the connection
            said += piece
    assert b"200 OK" in said
    assert b"connection: close" in said.lower()
