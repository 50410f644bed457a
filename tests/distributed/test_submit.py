"""`ray job submit` of a stage, to a server that speaks Ray's job API: what is sent, what is shown, what it comes to."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from alignment.distributed.submit import JobApi
from alignment.errors import ConfigError, StageError

TOKEN = "a-token-that-nobody-may-see"


@dataclass
class Ray:
    """State of the server."""

    address: str = ""
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    logs: list[str] = field(default_factory=list)
    """The whole log at each look; the last one stays."""
    ends: dict[str, Any] = field(default_factory=dict)
    """What a job's info becomes when the log is whole."""
    refuse_next: int = 0
    stubborn: set[str] = field(default_factory=set)
    """Jobs that do not stop."""
    uploaded: int = 0
    sent: dict[str, Any] = field(default_factory=dict)


class _Handler(BaseHTTPRequestHandler):
    ray: Ray

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def _on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._send(401, "Unauthorized: Missing authentication token")
        elif self.ray.refuse_next:
            self.ray.refuse_next -= 1
            self.connection.close()
        elif self.path == "/api/version":
            self._send(200, {"version": "4", "ray_version": "2.60.0", "ray_commit": "x", "session_name": "s"})
        elif self.path.startswith("/api/packages/"):
            self.ray.uploaded += len(body)
            self._send(200 if self.command == "PUT" else 404, {})
        elif self.path.endswith("/logs"):
            self._send(200, {"logs": self.ray.logs.pop(0) if len(self.ray.logs) > 1 else self.ray.logs[0]})
        elif self.path.endswith("/stop"):
            name = self.path.split("/")[-2]
            if name not in self.ray.stubborn:
                threading.Timer(0.3, self.ray.jobs[name].update, kwargs={"status": "STOPPED"}).start()
            self._send(200, {"stopped": True})
        elif self.command == "POST":
            self.ray.sent = json.loads(body)
            name = self.ray.sent["submission_id"]
            self.ray.jobs[name] = self._job(name, "RUNNING")
            self._send(200, {"submission_id": name, "job_id": name})
        elif self.path == "/api/jobs/":
            self._send(200, list(self.ray.jobs.values()))
        else:
            job = self.ray.jobs[self.path.rsplit("/", 1)[-1]]
            self._send(200, {**job, **(self.ray.ends if len(self.ray.logs) == 1 else {})})

    do_GET = do_POST = do_PUT = _on

    @staticmethod
    def _job(name: str, status: str) -> dict[str, Any]:
        return {"type": "SUBMISSION", "submission_id": name, "job_id": None, "status": status, "entrypoint": "x"}

    def _send(self, code: int, body: Any) -> None:
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def ray() -> Iterator[Ray]:
    made = Ray()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"ray": made}))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    made.address = f"http://127.0.0.1:{server.server_port}"
    yield made
    server.shutdown()
    server.server_close()


def test_a_stage_is_sent_with_its_bundle_and_followed(ray: Ray, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("name: mine\n")
    noise = "2026-01-01 00:00:00,000\tINFO job_manager.py:581 -- Runtime env is setting up."
    ray.logs = ["one\ntw", f"one\ntwo\n{noise}\nthr", f"one\ntwo\n{noise}\nthree"]
    ray.ends = {"status": "SUCCEEDED", "driver_exit_code": 0}
    api = JobApi(ray.address, TOKEN)
    api.submit("mine-one-1", "python x.py run.yaml one", tmp_path, {"KUBEALIGN_ATTEMPT": "1"}, {"run": "mine"})
    assert ray.uploaded > 0
    assert ray.sent["entrypoint"] == "python x.py run.yaml one"
    assert ray.sent["runtime_env"]["env_vars"] == {"KUBEALIGN_ATTEMPT": "1"}
    assert ray.sent["runtime_env"]["working_dir"].startswith("gcs://")
    assert ray.sent["metadata"] == {"run": "mine"}
    lines: list[str] = []
    assert api.wait("mine-one-1", lines.append, poll=0.05) == 0
    assert lines == ["one", "two", "three"]


@pytest.mark.parametrize(("ends", "code"), [
    ({"status": "FAILED", "driver_exit_code": 2}, 2), ({"status": "FAILED", "driver_exit_code": 1}, 1),
    ({"status": "FAILED"}, 3),  # its node was lost
])
def test_exit_codes(ends: dict[str, Any], code: int, ray: Ray) -> None:
    ray.jobs["j-1"], ray.logs, ray.ends = _Handler._job("j-1", "RUNNING"), ["x\n"], ends
    assert JobApi(ray.address, TOKEN).wait("j-1", lambda line: None, poll=0.05) == code


def test_a_stopped_job(ray: Ray) -> None:
    ray.jobs["j-1"], ray.logs, ray.ends = _Handler._job("j-1", "RUNNING"), ["x\n"], {"status": "STOPPED"}
    with pytest.raises(StageError, match="was stopped"):
        JobApi(ray.address, TOKEN).wait("j-1", lambda line: None, poll=0.05)


def test_an_outage_is_waited_for_but_not_for_ever(ray: Ray) -> None:
    ray.jobs["j-1"], ray.logs = _Handler._job("j-1", "RUNNING"), ["x\n"]
    ray.ends = {"status": "SUCCEEDED", "driver_exit_code": 0}
    api = JobApi(ray.address, TOKEN)
    ray.refuse_next = 3
    assert api.wait("j-1", lambda line: None, poll=0.05) == 0
    ray.refuse_next = 1000
    with pytest.raises(StageError, match="is away"):
        api.wait("j-1", lambda line: None, poll=0.05, patience=0.3)


def test_attempts_of_one_stage_only(ray: Ray) -> None:
    for name, status in (("r-sft-1", "FAILED"), ("r-sft-2", "RUNNING"), ("r-sft-x-1", "RUNNING"), ("other", "RUNNING")):
        ray.jobs[name] = _Handler._job(name, status)
    assert JobApi(ray.address, TOKEN).attempts("r-sft-") == {1: "FAILED", 2: "RUNNING"}


def test_only_the_runs_own_jobs_are_stopped(ray: Ray) -> None:
    for name, run, status in (("a-1", "a", "SUCCEEDED"), ("a-2", "a", "RUNNING"), ("a-b-1", "a-b", "RUNNING"),
                              ("a-3", "a", "PENDING")):
        ray.jobs[name] = {**_Handler._job(name, status), "metadata": {"run": run}}
    ray.jobs["unmarked"] = _Handler._job("unmarked", "RUNNING")
    api = JobApi(ray.address, TOKEN)
    assert api.stop({"run": "a"}, poll=0.05) == ["a-2", "a-3"]
    assert [name for name, job in ray.jobs.items() if job["status"] == "STOPPED"] == ["a-2", "a-3"]
    assert api.stop({"run": "a"}) == []
    ray.stubborn = {"a-b-1"}
    with pytest.raises(StageError, match="a-b-1"):
        api.stop({"run": "a-b"}, poll=0.05, patience=0.3)


def test_a_missing_token_and_a_wrong_address(ray: Ray) -> None:
    with pytest.raises(ConfigError, match="cannot be used") as refused:
        JobApi(ray.address)
    assert "RAY_AUTH_TOKEN" in (refused.value.hint or "")
    with pytest.raises(ConfigError, match="cannot be used") as absent:
        JobApi("http://127.0.0.1:1", TOKEN)
    assert TOKEN not in str(absent.value)
