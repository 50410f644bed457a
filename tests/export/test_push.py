"""A push to a hub on loopback: one commit, never two, and each refusal as one error."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from alignment.artifacts import Store
from alignment.config import Export, Run
from alignment.context import StageContext
from alignment.errors import ConfigError, StageError
from alignment.export import hub
from tests import small

FORMS = ("safetensors",)


@contextmanager
def writable(status: int = 200) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(address, commits) of a hub that takes commits; with another status it refuses them."""
    commits: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Authorization") != "Bearer hf_secret":
                self._send({"error": "Invalid username or password."}, 401)
            elif self.path == "/api/validate-yaml":
                self._send({"errors": [], "warnings": []})
            elif self.path == "/api/repos/create":
                self._send({"url": f"http://{self.headers['Host']}/me/mine", "id": "me/mine"})
            elif "/preupload/" in self.path:
                files = json.loads(sent)["files"]
                self._send({"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                                      for file in files]})
            elif "/commit/" in self.path and status == 200:
                lines = [json.loads(line) for line in sent.splitlines()]
                commits.append({"id": f"{len(commits) + 1:040x}", "title": lines[0]["value"]["summary"],
                                "files": [line["value"]["path"] for line in lines[1:]]})
                self._send({"commitUrl": f"http://{self.headers['Host']}/me/mine/commit/{commits[-1]['id']}",
                            "commitOid": commits[-1]["id"], "success": True})
            else:
                self._send({"error": "You have no right to write here."}, status)

        def do_GET(self) -> None:
            self._send([{"id": commit["id"], "title": commit["title"], "message": "", "authors": [],
                         "date": "2026-01-01T00:00:00.000Z"} for commit in commits] if "/commits/" in self.path
                       else {"id": "me/mine", "sha": "0" * 40, "siblings": []})

        def _send(self, value: Any, code: int = 200) -> None:
            body = json.dumps(value).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", commits
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StageContext:
    """Of an export that pushes, with a token."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    run = Run.model_validate({
        "name": "r", "store": str(tmp_path / "store"), "stages": ({**small.BASE, "name": "sft"}, {
            "name": "export", "kind": "export", "model": "sft", "push_to_hub": {"repo": "me/mine"}})}, strict=False)
    (tmp_path / "work").mkdir()
    return StageContext(run, run.stages[1], Store(run.store), "export-0123", "d" * 64, {}, tmp_path / "work")


def push(context: StageContext, monkeypatch: pytest.MonkeyPatch, url: str) -> dict[str, Any]:
    stage = context.stage_as(Export)
    assert stage.push_to_hub is not None
    files = {"README.md": context.work / "a", "config.json": context.work / "b"}
    for name, file in files.items():
        file.write_text(f"{name}\n", encoding="utf-8")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    token = hub.check_token(stage.push_to_hub, stage.name)
    assert token is not None
    plan = hub.planned(stage.push_to_hub, files, context.key, FORMS)
    return hub.pushed(context, stage.push_to_hub, plan, files, token)


def test_one_commit_holds_every_file_and_its_revision_is_kept(
    context: StageContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    with writable() as (url, commits):
        done = push(context, monkeypatch, url)
    assert commits == [{"id": f"{1:040x}", "title": "KubeAlign export-0123: safetensors",
                        "files": ["README.md", "config.json"]}]
    assert done["pushed_revision"] == f"{1:040x}"
    assert done["url"] == f"{url}/me/mine/tree/{1:040x}"


def test_a_stage_that_is_called_again_pushes_nothing_twice(
    context: StageContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    with writable() as (url, commits):
        first = push(context, monkeypatch, url)
        assert push(context, monkeypatch, url) == first, "by what the work folder has"
        (context.work / hub.DONE).unlink()  # another machine, which has no such folder
        assert push(context, monkeypatch, url)["pushed_revision"] == first["pushed_revision"], "by what the hub has"
    assert len(commits) == 1


@pytest.mark.parametrize("token", [None, "", "two\nlines"])
def test_without_a_token_nothing_is_begun(
    context: StageContext, monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(ConfigError, match="hub's token is not in the environment"):
        push(context, monkeypatch, "http://127.0.0.1:9")


def test_a_wrong_token_and_one_without_rights_are_one_error_each(
    context: StageContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    with writable(403) as (url, commits), pytest.raises(StageError, match="refuses") as caught:
        push(context, monkeypatch, url)
    assert "403, You have no right to write here." in str(caught.value.found)
    assert "right to write" in str(caught.value.hint)
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with writable() as (url, commits), pytest.raises(StageError) as caught:
        push(context, monkeypatch, url)
    assert "401" in str(caught.value.found)
    assert "hf_other" not in str(caught.value)
    assert not commits


def test_a_hub_that_is_not_there_is_one_error(context: StageContext, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StageError, match="cannot be reached") as caught:
        push(context, monkeypatch, "http://127.0.0.1:9")
    assert "dry_run" in str(caught.value.hint)
