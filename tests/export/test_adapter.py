"""What an exported adapter calls its base, so that another machine finds it."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignment.artifacts import Artifact, Store
from alignment.export.adapter import base_name
from tests.training.families import family

HUB = {"source": {"source": "hub", "repo": "me/base"}, "revision": "a" * 40}


@pytest.mark.parametrize(("facts", "named", "expected"), [
    ({**HUB, "rounded": False}, None, ("me/base", "a" * 40)),
    ({**HUB, "rounded": True}, None, ("me/base", "a" * 40)),  # in the import's dtype it has the same weights
    ({**HUB, "rounded": False}, "other/base", ("other/base", None)),
    ({"source": {"source": "folder", "path": "/home/me/base"}}, None, ("../../KEY/model", None)),
    ({"source": {"source": "folder", "path": "/home/me/base"}}, "/models/base", ("/models/base", None)),
])
def test_a_base_goes_by_its_hub_name_else_by_its_place_in_the_store(
    tmp_path: Path, facts: dict[str, object], named: str | None, expected: tuple[str, str | None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = family("llama", Store(str(tmp_path / "store")), tmp_path)
    base = Artifact(made.store, made.manifest.model_copy(update={"facts": facts}))
    published = Path(made.store.root, "artifacts", "export-0123456789ab", "adapter")
    assert base_name(base, named, published) == (expected[0].replace("KEY", made.key), expected[1])
    assert ("base_model: NAME" in capsys.readouterr().err) is (expected[0].startswith(".."))
