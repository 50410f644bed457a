"""Where the operator may read: below its prefixes, plain files alone, and what others said of a failure stays out."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.cluster.operator.reads import LARGEST, Reads, readable, said
from alignment.cluster.operator.store import look_up
from alignment.errors import ArtifactError, DataError

PARTS = st.sampled_from(["..", ".", "%2e%2e", "%2E.", "a", "artifacts", "runs", "", "::", "..a", "a..", "\\..", "\x00",
                         "?", "#", "@evil", "*"])


@given(st.sampled_from(["/artifacts", "s3://bucket/prefix", "https://host/p"]), st.lists(PARTS, max_size=6),
       st.sampled_from(["/", "", "x", "%2f"]))
def test_no_path_gets_out_of_its_prefix(prefix: str, parts: list[str], glue: str) -> None:
    path = prefix + glue + "/".join(parts)
    if Reads((prefix,)).refusal(path) is None:
        assert path == prefix or path.startswith(prefix + "/")
        assert "::" not in path
        scheme, _, rest = unquote(path).rpartition("://")
        settled = (f"{scheme}://" if scheme else "") + os.path.normpath(rest)
        assert settled == prefix or settled.startswith(prefix + "/")


@pytest.mark.parametrize("path", [
    "http://169.254.169.254/latest/meta-data", "https://10.96.0.1/api", "s3://bucket/prefixed", "s3://bucket", "S3://bucket/prefix/x",
    "/artifactsx", "/", "/etc/passwd", "/proc/self/environ", "file:///artifacts/x", "memory://x", "simplecache::s3://bucket/prefix/x",
])
def test_what_is_not_below_a_prefix_is_left_alone(path: str) -> None:
    assert Reads(("/artifacts", "s3://bucket/prefix")).refusal(path)


def test_a_plain_file_below_is_read_and_nothing_else(tmp_path: Path) -> None:
    below, outside = tmp_path / "volume", tmp_path / "outside"
    for folder in (below, outside):
        folder.mkdir()
    reads = readable([f"{below}/"])
    (below / "rows.jsonl").write_text("{}")
    (outside / "rows.jsonl").write_text("{}")
    os.mkfifo(below / "pipe")
    (below / "link").symlink_to(outside / "rows.jsonl")
    (below / "folder").symlink_to(outside)
    (below / "inner").symlink_to(below / "rows.jsonl")
    (below / "zero").symlink_to("/dev/zero")
    with (below / "large").open("wb") as file:
        file.truncate(LARGEST + 1)
    assert {name: reads.refusal(str(below / name)) is None
            for name in ("rows.jsonl", "inner", "absent", "pipe", "link", "folder/rows.jsonl", "zero", "large")} == {
        "rows.jsonl": True, "inner": True, "absent": True, "pipe": False, "link": False, "folder/rows.jsonl": False,
        "zero": False, "large": False}


@pytest.mark.parametrize("prefix", ["", "artifacts", "s3://", "/a/../b", "::", "bucket/prefix"])
def test_a_prefix_that_says_nothing_is_refused(prefix: str) -> None:
    with pytest.raises(ValueError, match="no absolute folder"):
        readable([prefix])


def test_what_a_server_said_stays_out_of_the_status() -> None:
    error = ArtifactError("the store cannot be read: <html>token=abc</html>", where="s3://b/x", found="secret")
    assert said(error, "s3://b/x") == "s3://b/x: the store cannot be read"
    assert "hint" in said(DataError("no", hint="a hint"), "x")


def test_a_damaged_manifest_is_told_without_its_content() -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "artifacts" / "a-1"
        place.mkdir(parents=True)
        (place / "manifest.json").write_text("root:x:0:0:secret")
        with pytest.raises(ArtifactError) as found:
            look_up(readable([folder]), folder, ["a-1"])
    assert "the manifest is damaged" in str(found.value)
    assert "secret" not in str(found.value)
