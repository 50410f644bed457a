"""Files of finished artifacts that are gone or damaged: found before anybody uses them, with what mends it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from alignment.artifacts import Artifact, Store
from alignment.errors import ArtifactError
from tests.artifacts.built import fill, manifest
from tests.s3 import Server, s3, s3_server

__all__ = ["s3", "s3_server"]


def published(store: Store, files: dict[str, str]) -> Artifact:
    key = "x-0123456789ab"
    with store.lease(key) as lease:
        return store.publish(manifest(key), fill(store.workdir(key) / "out", files), lease)


def flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


HARM: dict[str, Callable[[Path], None]] = {
    "gone": Path.unlink,
    "cut short": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "emptied": lambda file: file.write_bytes(b""),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"x"),
    "a bit is another": flipped,
}


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("where", ["here", "s3"])
def test_harm_is_found_by_size_or_by_digest(
    where: str, harm: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    server: Server | None = request.getfixturevalue("s3") if where == "s3" else None
    store = Store(server.url() if server else str(tmp_path / "store"), cache=tmp_path / "cache")
    made = published(store, {"model/weights": "w" * 100, "rows.jsonl": "{}\n"})
    made.verify(deep=True)
    files = server.folder(made.url) if server else Path(made.url)
    HARM[harm](files / "model" / "weights")
    if harm == "a bit is another":
        made.verify()
    with pytest.raises(ArtifactError, match="gone or damaged") as caught:
        made.verify(deep=harm == "a bit is another")
    assert "model/weights" in str(caught.value.found)
    assert "rows.jsonl" not in str(caught.value.found)
    assert made.url in str(caught.value.hint)
    if where == "here" and harm != "a bit is another":
        with pytest.raises(ArtifactError, match="gone or damaged"):
            made.path()


def test_a_damaged_copy_is_fetched_anew(s3: Server, tmp_path: Path) -> None:
    store = Store(s3.url(), cache=tmp_path / "cache")
    made = published(store, {"a": "content"})
    (made.path() / "a").unlink()
    assert (made.path() / "a").read_text() == "content"
