"""The probe of the storage that a pod runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignment.cluster.storage.probe import main as probe_main
from alignment.cluster.storage.probe import probe
from alignment.errors import ArtifactError


def test_the_probe_leaves_nothing_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for store in (str(tmp_path / "new" / "store"), "memory://probe"):
        assert set(probe(store)["seconds"]) == {"write", "list", "read", "delete"}
    assert list((tmp_path / "new" / "store").iterdir()) == []
    assert probe_main([str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["url"] == str(tmp_path)
    assert probe_main([]) == 2


def test_the_probe_names_the_step_that_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="refuses to write"):
        probe(str(tmp_path / "file" / "store"))
    assert probe_main([str(tmp_path / "file" / "store")]) == 1
    assert "refuses to write" in capsys.readouterr().err
