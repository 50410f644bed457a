"""A hub on loopback: data sets of files at one commit, answered as huggingface_hub and datasets ask for them."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlparse

COMMIT = hashlib.sha1(b"the one commit").hexdigest()


@contextmanager
def hub(sets: dict[str, dict[str, str]]) -> Iterator[tuple[str, list[str]]]:
    """(address, paths that were asked for) of a server of `sets`: OWNER/NAME -> file -> its text."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_POST(self) -> None:
            sent = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
            parts = urlparse(unquote(self.path)).path.strip("/").split("/")
            asked.append(f"POST {self.path}")
            files = sets.get("/".join(parts[2:4]), {})
            if "paths-info" in parts:
                self._send([_entry(name, files[name]) for name in sent.get("paths", []) if name in files])
            else:
                self._send({"error": "no such call"}, 404)

        def _answer(self, body: bool) -> None:
            path = urlparse(unquote(self.path)).path.strip("/")
            asked.append(f"{self.command} {self.path}")
            parts = path.split("/")
            name = "/".join(parts[2:4]) if parts[0] == "api" else "/".join(parts[1:3])
            if name not in sets:
                self._send({"error": "Repository Not Found"}, 404, body, {"X-Error-Code": "RepoNotFound"})
                return
            files = sets[name]
            revision = parts[5] if parts[0] == "api" and len(parts) > 5 else parts[4] if len(parts) > 4 else "main"
            if revision not in ("main", COMMIT):
                self._send({"error": "Revision Not Found"}, 404, body, {"X-Error-Code": "RevisionNotFound"})
            elif parts[0] == "api" and "tree" in parts:
                below = "/".join(parts[6:])
                self._send([_entry(file, text) for file, text in files.items()
                            if not below or file.startswith(below + "/")], body=body)
            elif parts[0] == "api":
                self._send({"id": name, "sha": COMMIT, "private": False, "gated": False, "disabled": False, "tags": [],
                            "downloads": 0, "likes": 0, "siblings": [{"rfilename": file} for file in files]}, body=body)
            elif (file := "/".join(parts[5:])) in files:
                headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{_oid(files[file])}"', "Accept-Ranges": "bytes"}
                self._bytes(files[file].encode(), 200, body, headers)
            else:
                self._send({"error": "Entry not found"}, 404, body, {"X-Error-Code": "EntryNotFound",
                                                                      "X-Repo-Commit": COMMIT})

        def _send(self, value: Any, status: int = 200, body: bool = True,
                  headers: dict[str, str] | None = None) -> None:
            self._bytes(json.dumps(value).encode(), status, body, {"Content-Type": "application/json",
                                                                   **(headers or {})})

        def _bytes(self, data: bytes, status: int, body: bool, headers: dict[str, str]) -> None:
            wanted = self.headers.get("Range")
            if wanted and status == 200:
                low, _, high = wanted.removeprefix("bytes=").partition("-")
                whole = len(data)
                data, status = data[int(low):int(high or whole - 1) + 1], 206
                headers["Content-Range"] = f"bytes {low}-{int(low) + len(data) - 1}/{whole}"
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def _oid(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()


def _entry(name: str, text: str) -> dict[str, Any]:
    return {"type": "file", "path": name, "size": len(text.encode()), "oid": _oid(text)}
