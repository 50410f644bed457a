"""Records of several models of one store: what each alone would get, and every evaluation is read once."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from alignment.artifacts import Artifact, Store
from alignment.inference.proof_rows import FILE, ScoreRow, written
from alignment.serving import records
from tests.data.test_import_artifact import publish

MODELS, EVALUATIONS = 8, 200


def rows_of(*models: str) -> str:
    rows = [ScoreRow(f"r{number}", model, [], "text", 0.5, "float32") for model in models for number in range(2)]
    return "".join(json.dumps(row) + "\n" for row in written(rows))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Of eight models, each measured by many of 200 evaluations, the last by none."""
    store = Store(str(tmp_path / "store"))
    keys = [publish(store, f"sft-{number:012x}", {"model/kubealign.json": "{}"}).key for number in range(MODELS)]
    for number in range(EVALUATIONS):
        key = keys[number % (MODELS - 1)]
        publish(store, f"evaluate-{number:012x}", {FILE: rows_of(key)}, inputs={"model": key},
                finished=f"2026-01-01T00:{number // 60:02}:{number % 60:02}")
    return store


def test_several_models_cost_one_look_at_each_evaluation(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    models = [found for number in range(MODELS) if (found := store.find(f"sft-{number:012x}")) is not None]
    one_by_one = [records.find(model) for model in models]
    looked, opened = Counter[str](), Counter[str]()
    find, read = Store.find, records.read

    def counted(self: Store, key: str) -> Artifact | None:
        looked[key] += 1
        return find(self, key)

    monkeypatch.setattr(Store, "find", counted)
    monkeypatch.setattr(records, "read", lambda path: opened.update([str(path)]) or read(path))
    assert records.find_all(models) == one_by_one
    assert sum(looked.values()) == EVALUATIONS
    assert sorted(opened.values()) == [1] * (MODELS - 1)
    newest = [None if record is None else record.source for record in one_by_one]
    assert newest == [*(f"evaluate-{max(range(number, EVALUATIONS, MODELS - 1)):012x}" for number in range(MODELS - 1)),
                      None]
