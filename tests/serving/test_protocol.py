"""What a server says it takes is what it takes: its OpenAPI document run by schemathesis against a real process, and
bytes over a socket that are hardly HTTP, each with one clear answer and nothing left behind."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from alignment.artifacts import Artifact
from tests.waiting import until

ROOT = Path(__file__).parents[2]
KEY = "a-key-of-protocol-tests"
CHECKS = ("not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
          "negative_data_rejection,ignored_auth")
"""Not positive_data_acceptance: what a schema can say is not all (the last turn is the user's, a model has a name)."""


class Process(NamedTuple):
    """`kubealign serve` of three tiny models."""

    port: int
    pid: int

    @property
    def memory(self) -> int:
        """Bytes in memory."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(scope="module")
def process(models: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("protocol")
    log = folder / "log"
    with log.open("wb") as out:
        made = subprocess.Popen(
            [sys.executable, "-m", "alignment.cli.main", "serve",
             *(f"{name}={artifact.path()}" for name, artifact in models.items()), "--port", "0", "--max-tokens", "4",
             "--timeout", "20", "--votes", str(folder / "votes.jsonl")],
            cwd=folder, stdout=out, stderr=out,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "KUBEALIGN_API_KEY": KEY})
    try:
        until(lambda: "ready:" in log.read_text() or made.poll() is not None, 240)
        port = re.search(r"127\.0\.0\.1:(\d+)", log.read_text())
        assert port is not None, log.read_text()
        yield Process(int(port[1]), made.pid)
        assert made.poll() is None, log.read_text()
        assert "Traceback" not in log.read_text()
    finally:
        made.kill()
        made.wait()


@pytest.mark.slow
def test_the_document_that_a_server_gives_of_itself_is_kept(process: Process, tmp_path: Path) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("schemathesis"), "run", f"http://127.0.0.1:{process.port}/openapi.json",
         "--checks", CHECKS, "--phases", "fuzzing", "--max-examples", "4", "--generation-deterministic", "--no-shrink",
         "--suppress-health-check", "all", "-H", f"Authorization: Bearer {KEY}", "--request-timeout", "60",
         "--no-color"],
        cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert re.search(r"Tested: +10\b", done.stdout), done.stdout[-3000:]


# --- bytes ---------------------------------------------------------------------------------------------------

HI = {"model": "sft", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2, "temperature": 0}


def asking(body: bytes | dict[str, Any] = HI, *more: str, length: int | None = None, version: str = "1.1",
           path: str = "/v1/chat/completions") -> bytes:
    """A request, as bytes; `length` is what it says of its body."""
    raw = json.dumps(body).encode() if isinstance(body, dict) else body
    lines = [f"POST {path} HTTP/{version}", "host: localhost", f"authorization: Bearer {KEY}",
             "content-type: application/json", *more]
    if length is None or length >= 0:
        lines.append(f"content-length: {len(raw) if length is None else length}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + raw


CHUNKED = ("transfer-encoding: chunked",)


def sent(process: Process, raw: bytes, *, seconds: float = 20, end: bool = False) -> bytes:
    """All that comes back until the server closes, or has told a whole answer."""
    with socket.create_connection(("127.0.0.1", process.port), timeout=seconds) as connection:
        heard = b""
        try:
            connection.sendall(raw)
            if end:
                connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(65536):
                heard += piece
                head, _, body = heard.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n").partition(b"\r\n\r\n")
                told = re.search(rb"content-length: (\d+)", head)
                if told and len(body) >= int(told[1]):
                    break
        except (ConnectionError, TimeoutError):
            pass
        return heard


def error_of(heard: bytes) -> tuple[int, str]:
    """Status and words of a refusal in OpenAI's shape."""
    head, _, body = heard.partition(b"\r\n\r\n")
    return int(head.split()[1]), str(json.loads(body)["error"]["message"])


def text(body: str) -> bytes:
    """The body of HI, with something else in it."""
    return json.dumps(HI)[:-1].encode() + b", " + body.encode() + b"}"


DEEP = b"[" * 100_000
CHUNK = b"20000\r\n" + b" " * 0x20000 + b"\r\n"
NASTY: dict[str, tuple[bytes, int, str]] = {
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 200 + b"\r\n\r\n", 400, "no request of HTTP"),
    "a length that is no number": (asking(HI, "content-length: many", length=-1), 400, "no request of HTTP"),
    "two lengths": (asking(HI, "content-length: 5"), 400, "no request of HTTP"),
    "length and chunks": (asking(HI, *CHUNKED), 400, "no request of HTTP"),
    "garbage for chunks": (asking(b"zz\r\nnot a chunk", *CHUNKED, length=-1), 400, "no request of HTTP"),
    "a length below the body's": (asking(HI, length=20), 400, "no request of HTTP"),
    "a header of ten megabytes": (asking(HI, "x-long: " + "a" * 10_000_000), 431, "headers are over"),
    "many headers": (asking(HI, *(f"x-{number}: {'b' * 90}" for number in range(900))), 431, "headers are over"),
    "a body that is said to be huge": (asking(HI, length=10**12), 413, "over 1,048,576 bytes"),
    "a body that is huge": (asking(CHUNK * 10 + b"0\r\n\r\n", *CHUNKED, length=-1), 413, "over 1,048,576 bytes"),
    "no UTF-8": (asking(b'{"model": "sft\xff"}'), 400, "not UTF-8: byte 14"),
    "UTF-16": (asking(json.dumps(HI).encode("utf-16")), 400, "not UTF-8"),
    "half a letter": (asking(text('"user": "\\ud800"')), 400, "hex escape"),
    "deep lists": (asking(DEEP), 400, "nested too deeply"),
    "deep objects": (asking(b'{"a":' * 100_000), 400, "nested too deeply"),
    "deep tools": (asking(text('"tools": [{"a": ' + "[" * 300 + "]" * 300 + "}]")), 400, "recursion"),
    "a huge number": (asking(text(f'"seed": {10**40}')), 400, "seed"),
    "an endless number": (asking(text('"seed": ' + "9" * 9000)), 400, "digits"),
    "a number over floats": (asking(text('"top_p": 1e999')), 400, "1e999 is no number"),
    "NaN": (asking(text('"top_p": NaN')), 400, "NaN is no number"),
    "NaN in a tool": (asking(text('"tools": [{"x": -Infinity}]')), 400, "-Infinity is no number"),
    "a key twice": (asking(text('"model": "base"')), 400, "model: stands twice"),
    "a key twice, deep": (asking(text('"tools": [{"x": 1, "x": 2}]')), 400, "x: stands twice"),
    "nothing": (asking(b""), 400, "not JSON"),
    "a stream over HTTP/1.0": (asking({**HI, "stream": True}, version="1.0"), 400, "HTTP/1.1"),
}


@pytest.mark.parametrize("name", NASTY)
def test_each_nasty_request_has_one_clear_answer(process: Process, name: str) -> None:
    raw, status, words = NASTY[name]
    found, said = error_of(sent(process, raw))
    assert (found, words in said) == (status, True), said


def test_what_is_unusual_and_right_is_answered(process: Process) -> None:
    old = sent(process, asking(version="1.0"))
    assert old.startswith(b"HTTP/1.1 200")
    assert b"connection: close" in old
    waits = sent(process, asking(HI, "expect: 100-continue"))
    assert waits.startswith(b"HTTP/1.1 100")
    assert b"HTTP/1.1 200" in waits
    raw = json.dumps(HI).encode()
    chunks = b"".join(b"%x\r\n%s\r\n" % (1, raw[place: place + 1]) for place in range(len(raw))) + b"0\r\n\r\n"
    assert sent(process, asking(chunks, *CHUNKED, length=-1)).startswith(b"HTTP/1.1 200")


def test_requests_in_one_piece_are_answered_in_their_order(process: Process) -> None:
    wrong = asking({**HI, "model": "nobody"})
    with socket.create_connection(("127.0.0.1", process.port), timeout=30) as connection:
        connection.sendall(asking() + wrong + asking())
        heard = b""
        while heard.count(b"HTTP/1.1 ") < 3 or not heard.rstrip().endswith(b"}"):
            heard += connection.recv(65536)
    assert re.findall(rb"HTTP/1\.1 (\d+)", heard) == [b"200", b"404", b"200"]


def test_what_never_ends_takes_no_room_and_no_turn(process: Process) -> None:
    """Half a head, half a body, heads by the letter: others are answered beside them, and memory is what it was."""
    for _ in range(3):
        for raw, _, _ in NASTY.values():
            sent(process, raw)
    before = process.memory
    slow = [socket.create_connection(("127.0.0.1", process.port)) for _ in range(60)]
    try:
        for number, connection in enumerate(slow):
            connection.sendall(asking()[:-30] if number % 2 else b"POST /v1/chat/completions HTTP/1.1\r\nhost: loc")
        assert sent(process, asking()).startswith(b"HTTP/1.1 200")
    finally:
        for connection in slow:
            connection.close()
    for _ in range(3):
        for raw, _, _ in NASTY.values():
            sent(process, raw)
    assert sent(process, asking()).startswith(b"HTTP/1.1 200")
    assert process.memory - before < 40 << 20


@pytest.mark.slow
def test_heads_and_bodies_that_do_not_come_are_waited_for_half_a_minute(process: Process) -> None:
    began = time.monotonic()
    assert error_of(sent(process, b"GET /v1/models HTTP/1.1\r\nhost: loc", seconds=60)) == (
        408, "the headers did not come within 30 s")
    assert 25 < time.monotonic() - began < 50
