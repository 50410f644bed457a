"""Seconds in which a request's headers have to come: counted while they are waited for, and never while an answer is
made. The limit is made short here, so that answers outlast it."""

from __future__ import annotations

import asyncio
import itertools
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from uvicorn import Server

from alignment.serving import wire
from alignment.serving.asgi import Receive, Scope, Send
from tests.waiting import until

HEAD_S = 0.4
LONG = 3 * HEAD_S
"""Seconds that an answer to /long takes."""


async def _app(scope: Scope, receive: Receive, send: Send) -> None:
    """Tells its path in two pieces, for /long with a pause before each."""
    while (await receive()).get("more_body"):
        pass
    path = scope["path"].encode()
    pause = LONG / 2 if path == b"/long" else 0
    await asyncio.sleep(pause)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(path))]})
    await send({"type": "http.response.body", "body": path[:2], "more_body": True})
    await asyncio.sleep(pause)
    await send({"type": "http.response.body", "body": path[2:], "more_body": False})


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "HEAD_S", HEAD_S)
        with socket.create_server(("127.0.0.1", 0)) as listening:
            server: Server = wire.server_of(_app, lifespan="off", timeout_keep_alive=60)
            thread = threading.Thread(target=lambda: server.run([listening]), daemon=True)
            thread.start()
            until(lambda: server.started, 60)
            yield int(listening.getsockname()[1])
            server.should_exit = True
            thread.join(60)


def _request(path: str, body: bytes = b"") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nhost: here\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _told(client: socket.socket, end: bytes) -> bytes:
    """What is told up to `end`, or all of it where the connection is closed before."""
    told = b""
    while not told.endswith(end) and (piece := client.recv(65536)):
        told += piece
    return told


def test_an_answer_may_take_longer_than_headers_may(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        for body in (b"", b"in one piece"):
            client.sendall(_request("/long", body))
            told = _told(client, b"/long")
            assert told.startswith(b"HTTP/1.1 200 "), told
            assert told.endswith(b"/long"), told
        client.sendall(_request("/long", b"piece")[:-2])
        time.sleep(HEAD_S / 4)
        client.sendall(b"ce")
        assert _told(client, b"/long").startswith(b"HTTP/1.1 200 ")


def test_a_client_that_asks_nothing_more_for_a_while_is_answered_again(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        for _ in range(2):
            client.sendall(_request("/short"))
            assert _told(client, b"/short").startswith(b"HTTP/1.1 200 ")
            time.sleep(LONG)


@pytest.mark.parametrize(("before", "begun", "apart"), [
    *((before, begun, apart) for before in (b"", _request("/short"), _request("/short", b"with a body"))
      for begun in (b"P", _request("/never")[:-2]) for apart in (False, True)),
    (b"", b"\r\n", False), (_request("/short"), b"\r\n", True),
])
def test_headers_that_do_not_end_are_refused(port: int, before: bytes, begun: bytes, apart: bool) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        if apart and before:
            client.sendall(before)
            _told(client, b"/short")
        client.sendall(begun if apart else before + begun)
        told = _told(client, b"never closed by us")
        assert told.count(b"HTTP/1.1 200 ") == (bool(before) and not apart)
        assert b"HTTP/1.1 408 " in told
        assert b"the headers did not come within 0.4 s" in told


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(1, 150), max_size=4), pause=st.booleans())
def test_requests_are_answered_however_their_bytes_are_cut(port: int, cuts: list[int], pause: bool) -> None:
    whole = _request("/one", b"first") + _request("/two") + _request("/three", b"third")
    places = [0, *sorted(cuts), len(whole)]
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start, end in itertools.pairwise(places):
            client.sendall(whole[start:end])
            if pause:
                time.sleep(0.005)
        told = _told(client, b"/three")
    assert told.count(b"HTTP/1.1 200 ") == 3, told
    assert told.endswith(b"/three"), told
