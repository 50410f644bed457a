"""Imports of documents through the pipeline: folders, patterns, duplicates, draws, and what travels to a cluster."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.artifacts import Artifact
from alignment.cluster.manifests.bundle import bundle, config_map, located, unpack
from alignment.config import Run, load_profile, load_run, parse_run
from alignment.errors import ConfigErrors, DataError
from alignment.pipeline import execute, keys
from alignment.records import Record, read_records
from tests.data.document_files import pdf

TALE = "The {thing} of {place} is old. It was built by the {maker} long ago. Nobody in {place} knows why it leans."


def tale(number: int) -> str:
    return TALE.format(thing=f"tower{number}", place=f"town{number}", maker=f"mason{number}")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with docs/: four documents, a copy, and what is no document."""
    monkeypatch.chdir(tmp_path)
    docs = tmp_path / "docs"
    (docs / "deep").mkdir(parents=True)
    (docs / "b.txt").write_text(tale(1))
    (docs / "a.md").write_text(f"# Towers\n\n{tale(2)}")
    (docs / "deep" / "b.txt").write_text(tale(3))
    (docs / "copy [1].txt").write_text(tale(1))
    (docs / "c.pdf").write_bytes(pdf([[tale(4)[:60], tale(4)[60:]], ["A second page that says enough of it."]]))
    (docs / "x.png").write_bytes(b"\x89PNG")
    (docs / ".hidden.txt").write_text(tale(9))
    return tmp_path


def run_of(*entries: dict[str, Any], seed: int = 3, scale: float = 1.0, **keys: Any) -> Run:
    stage = {"name": "docs", "kind": "import", "documents": list(entries), **keys}
    return parse_run(yaml.safe_dump({"name": "d", "seed": seed, "scale": scale, "store": "store", "stages": [stage]}))


def made(run: Run) -> Artifact:
    artifact = execute(run).artifacts["docs"]
    assert artifact is not None
    return artifact


def rows(artifact: Artifact, split: str = "train") -> list[Record]:
    return read_records(artifact.path() / "rows" / f"{split}.jsonl")


def test_a_folder_becomes_passages_that_know_where_they_stand(folder: Path) -> None:
    artifact = made(run_of({"path": "docs"}, chunk_words=20, overlap_words=8))
    found = rows(artifact)
    assert {row.type for row in found} == {"passage"}
    assert [row.id for row in found] == [
        *(f"{name}#{number}" for name, many in (("a.md", 2), ("b.txt", 2), ("c.pdf", 3), ("deep/b.txt", 2))
          for number in range(1, many + 1))]
    by_id = {row.id: row for row in found}
    assert by_id["c.pdf#1"].meta["document"]["pages"][0] == 1
    assert by_id["b.txt#1"].meta["group"] == "b.txt"
    whole = tale(1)
    for row in found:
        if row.meta["group"] == "b.txt":
            start, end = row.meta["document"]["span"]
            assert row.meta["passage"] == whole[start:end]
    assert any(row.meta["passage"].startswith("Towers\n\n") for row in found if row.meta["group"] == "a.md")
    manifest = artifact.manifest
    assert manifest.facts["files"] == {"markdown": 1, "text": 3, "pdf": 1}
    assert manifest.facts["skipped"] == {"ending .png": 1, "hidden": 1}
    assert manifest.rows.dropped["duplicate"] == len([row for row in found if row.meta["group"] == "b.txt"])
    bad = [json.loads(line) for line in (artifact.path() / "bad.jsonl").read_text().splitlines()]
    assert {line["source"] for line in bad if "duplicate" in line["reason"]} == {"copy [1].txt"}
    assert manifest.rows.read == len(found) + len(bad)
    assert manifest.metrics["documents"] == 5
    assert manifest.metrics["rows_train"] == len(found)


def test_a_pattern_a_file_and_equal_names_are_told_apart(folder: Path) -> None:
    run = run_of({"path": "docs/**/*.txt"}, {"path": "docs/b.txt"}, {"path": "docs/copy [1].txt", "name": "copied"})
    names = [file.name for file in run.stage("docs").listed().files]  # type: ignore[attr-defined]
    assert names == ["b.txt", "copy [1].txt", "deep/b.txt", "b.txt~2", "copied"]


def test_linked_folders_and_links_in_a_circle_end(folder: Path) -> None:
    os.symlink("..", folder / "docs" / "deep" / "up")
    os.symlink("loop.txt", folder / "docs" / "loop.txt")
    run = run_of({"path": "docs"})
    listed = run.stage("docs").listed()  # type: ignore[attr-defined]
    assert listed.skipped["linked folder"] == 1
    assert sum(file.name.endswith(".txt") for file in listed.files) == 4
    with pytest.raises(DataError, match="loop"):
        execute(run)


def test_what_lies_elsewhere_is_the_same_artifact_and_another_name_is_not(folder: Path) -> None:
    before = keys(run_of({"path": "docs"}))["docs"].digest
    (folder / "docs").rename(folder / "papers")
    assert keys(run_of({"path": "papers"}))["docs"].digest == before
    (folder / "papers" / "y.gif").write_bytes(b"no document")
    assert keys(run_of({"path": "papers"}))["docs"].digest == before
    (folder / "papers" / "b.txt").rename(folder / "papers" / "bb.txt")
    assert keys(run_of({"path": "papers"}))["docs"].digest != before


def test_a_folder_travels_and_keeps_its_key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, profile = run_of({"path": "docs"}), load_profile("dev-cpu")
    expected = keys(profile.applied(run))["docs"].digest
    packed = config_map(bundle(run, profile), name="d", namespace="n")
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    inside = load_run(unpack(packed, folder / "pod"))
    assert keys(located(inside, folder / "pod"))["docs"].digest == expected
    monkeypatch.chdir(folder / "pod")
    artifact = made(inside)
    assert {row.meta["source"] for row in rows(artifact)} == {"a.md", "b.txt", "c.pdf", "deep/b.txt"}


def table(path: Path, count: int) -> None:
    path.write_text("id,text\n" + "".join(f"{number},{tale(number)}\n" for number in range(count)))


def test_so_many_passages_are_drawn_and_fewer_are_part_of_them(folder: Path) -> None:
    table(folder / "t.csv", 300)
    entry = {"path": "t.csv", "text": "{text}"}
    many, few = (made(run_of(entry, take=take)) for take in (40, 10))
    assert many.manifest.rows.dropped == {"not-taken": 260}
    ids = [row.id for row in rows(many)]
    assert len(ids) == 40
    assert {row.id for row in rows(few)} < {*ids}
    assert ids == sorted(ids, key=lambda one: int(one.partition("#")[2]))
    assert {row.id for row in rows(made(run_of(entry, take=40, seed=4)))} != {*ids}
    assert len(rows(made(run_of(entry, take=40, scale=0.5)))) == 20
    assert rows(many)[0].meta["document"]["row"] == int(ids[0].partition("#")[2])


def test_a_document_stays_in_one_split_and_rows_of_a_table_are_documents(folder: Path) -> None:
    table(folder / "t.csv", 40)
    artifact = made(run_of({"path": "t.csv", "text": "{text}"}, {"path": "docs"}, chunk_words=12, overlap_words=4,
                           split={"by": "ratio", "ratios": {"train": 0.7, "test": 0.3}}))
    groups = [{row.meta["group"] for row in rows(artifact, split)} for split in ("train", "test")]
    assert groups[0]
    assert groups[1]
    assert not groups[0] & groups[1]


@pytest.mark.parametrize(("documents", "keys_", "problem"), [
    ([{"path": "empty"}], {}, "there is no document to read"),
    ([{"path": "docs/*.rst"}], {}, "does not exist"),
    ([{"path": "none.txt"}], {}, "does not exist"),
    ([{"path": "scan.pdf"}], {}, "1 of 1 documents"),
    ([{"path": "scan.pdf"}, {"path": "docs"}], {}, "1 of 6 documents"),
    ([{"path": "docs/b.txt"}], {"min_words": 100}, "give no passage"),
    ([{"path": "docs/b.txt"}], {"split": {"by": "ratio", "ratios": {"train": 0.5, "test": 0.5}}}, "has no passages"),
])
def test_what_gives_no_passage_is_one_clear_error(
    folder: Path, documents: list[dict[str, Any]], keys_: dict[str, Any], problem: str
) -> None:
    (folder / "empty").mkdir()
    (folder / "scan.pdf").write_bytes(pdf([[]]))
    with pytest.raises(DataError, match=problem):
        execute(run_of(*documents, **keys_))


def test_documents_without_text_are_counted_where_that_is_allowed(folder: Path) -> None:
    (folder / "docs" / "scan.pdf").write_bytes(pdf([[], []]))
    artifact = made(run_of({"path": "docs"}, max_bad=None))
    assert artifact.manifest.rows.dropped["no-text"] == 1
    assert artifact.manifest.facts["refused"] == [
        {"file": "scan.pdf", "reason": "no-text: 2 pages, no text; it needs OCR, as a scanned document does"}]


@pytest.mark.parametrize("keys_", [{"overlap_words": 101}, {"min_words": 300}, {"chunk_words": 0}, {"documents": []},
                                   {"data": [{"path": "x", "format": "squad"}]}])
def test_a_config_that_makes_no_sense_is_refused(keys_: dict[str, Any]) -> None:
    with pytest.raises(ConfigErrors):
        run_of(**{"documents": [{"path": "docs"}], **keys_})  # type: ignore[arg-type]
