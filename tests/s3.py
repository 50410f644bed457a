"""A real S3 server for tests: versitygw (Apache-2.0) over a temporary folder, on a free port of this machine.

The program comes from $KUBEALIGN_TOOLS, PATH or, packed, from the cluster folder beside the repository; without it
the tests that ask for a server are skipped and say so. A conftest that wants them imports `s3_server` and `s3`.
"""

from __future__ import annotations

import lzma
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

ACCESS, SECRET = "test-access-key", "test-secret-that-nobody-may-see"
BUCKET = "bucket"
_PACKED = Path(__file__).parents[2] / "shared" / "cluster" / "bin" / "versitygw.xz"


@dataclass(frozen=True)
class Server:
    """A running server with one bucket; `root` is where its objects lie as plain files."""

    endpoint: str
    root: Path
    prefix: str = ""

    def url(self, name: str = "store") -> str:
        return f"s3://{BUCKET}/{self.prefix}/{name}"

    def folder(self, url: str) -> Path:
        """Where the objects below an URL lie."""
        return self.root / url.removeprefix("s3://")

    @property
    def environment(self) -> dict[str, str]:
        """What a secret puts into a pod's environment."""
        return {"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_ENDPOINT_URL": self.endpoint,
                "AWS_EC2_METADATA_DISABLED": "true"}


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3(s3_server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Server:
    """The server, with its address and keys in the environment; `server.url(name)` is a store of this test's own."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    forget_clients()
    return replace(s3_server, prefix=f"{tmp_path.parent.name}-{tmp_path.name}")


def forget_clients() -> None:
    """s3fs keeps a client per process, with the endpoint and keys that the environment had at its first use."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()


def program(folder: Path) -> Path:
    """The server's program, unpacked into `folder` where need be; skips the test where there is none."""
    for found in (shutil.which("versitygw", path=os.environ.get("KUBEALIGN_TOOLS", "")), shutil.which("versitygw")):
        if found:
            return Path(found)
    if not _PACKED.exists():
        pytest.skip("no S3 server: versitygw is neither in $KUBEALIGN_TOOLS nor on PATH "
                    "(go install github.com/versity/versitygw/cmd/versitygw@v1.8.0)")
    made = folder / "versitygw"
    with lzma.open(_PACKED) as packed, made.open("wb") as file:
        shutil.copyfileobj(packed, file)
    made.chmod(0o755)
    return made


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def started(folder: Path, endpoint: str) -> subprocess.Popen[str]:
    """A server over `folder`, once it answers."""
    root, meta = folder / "objects", folder / "meta"
    for path in (root / BUCKET, meta):
        path.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        [str(program(folder)), "--port", endpoint.removeprefix("http://"), "--health", "/health", "--quiet",
         "posix", "--sidecar", str(meta), str(root)],
        env={**os.environ, "ROOT_ACCESS_KEY": ACCESS, "ROOT_SECRET_KEY": SECRET},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )
    until = time.monotonic() + 20
    while True:
        try:
            urllib.request.urlopen(f"{endpoint}/health", timeout=1).close()
            return process
        except (urllib.error.URLError, OSError):
            if process.poll() is not None or time.monotonic() > until:
                process.kill()
                raise AssertionError(f"versitygw did not start: {process.communicate()[1]}") from None
            time.sleep(0.05)


class Restarted:
    """A server that a test stops and starts again, at the same address over the same objects."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server = Server(f"http://127.0.0.1:{free_port()}", folder / "objects", "own")
        self.process = started(folder, self.server.endpoint)

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()

    def start(self) -> None:
        self.process = started(self.folder, self.server.endpoint)


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """Start a server over `folder`, wait until it answers, stop it at the end."""
    endpoint = f"http://127.0.0.1:{free_port()}"
    process = started(folder, endpoint)
    try:
        yield Server(endpoint, folder / "objects")
    finally:
        process.terminate()
        process.communicate(timeout=10)


@pytest.fixture
def s3_restarted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Restarted]:
    """A server of this test's own, to stop and start, with its address and keys in the environment."""
    made = Restarted(tmp_path / "s3")
    for name, value in made.server.environment.items():
        monkeypatch.setenv(name, value)
    forget_clients()
    yield made
    made.stop()
