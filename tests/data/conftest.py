"""Real data and hand-made stage contexts for the tests of `alignment.data`."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.artifacts import Store
from alignment.config import parse_run
from alignment.context import StageContext

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def real_data() -> Path:
    folder = Path(os.environ.get("KUBEALIGN_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "README.md").exists():
        pytest.skip(f"no real data in {folder}; set KUBEALIGN_TEST_DATA to a folder with the files of its README")
    return folder


@pytest.fixture(scope="session")
def readme_rows(real_data: Path) -> dict[str, int]:
    """File name -> rows, as the data's own README says."""
    counts: dict[str, int] = {}
    for line in (real_data / "README.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) > 3 and (rows := re.match(r"\d+", cells[2])):
            counts |= {name.strip().rsplit("/", 1)[-1]: int(rows[0]) for name in cells[1].split(",")}
    return counts


@pytest.fixture
def context_of(tmp_path: Path) -> Callable[..., StageContext]:
    """StageContext of one import stage, made as the pipeline makes it; keyword arguments go to the run."""

    def make(stage: dict[str, Any], **run_keys: Any) -> StageContext:
        stage = {"kind": "import", "name": "seed", **stage}
        keys = {"name": "test", "store": str(tmp_path / "store"), **run_keys, "stages": [stage]}
        run = parse_run(yaml.safe_dump(keys, sort_keys=False))  # the order of ratios is the order of splits
        store = Store(run.store)
        return StageContext(run, run.stages[0], store, "seed-0", "0" * 64, {}, store.workdir("seed-0"))

    return make


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., str]:
    """Writes objects as JSON lines (text as it is); gives the path."""

    def write(rows: list[Any], name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return str(path)

    return write
