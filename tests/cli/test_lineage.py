"""Lineage over a real chain: every row that was trained on is found forward, none that was left out before, and back to
the seeds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from alignment.artifacts import Artifact, Store
from alignment.errors import ConfigError
from alignment.inference.endpoint import generator
from alignment.pipeline import execute
from alignment.pipeline.lineage import Trail, back, forward
from tests import small
from tests.cli.conftest import Call
from tests.distributed.test_endpoint_teacher import run_of, said
from tests.endpoint_server import endpoint
from tests.inference.test_endpoint import Passing

Made = dict[str, Artifact]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """import -> generate (a teacher that is asked) -> select -> sft -> sample -> sft -> evaluate."""
    folder = tmp_path_factory.mktemp("lineage")
    with pytest.MonkeyPatch.context() as patch, endpoint(said) as server:
        patch.setattr(generator, "Clock", lambda: Passing().clock())
        run = run_of(
            folder, server.url,
            {"name": "few", "kind": "select", "by": "random", "rows": ["gen/train"], "take": 4},
            small.train("sft", rows=["few/train"], take=3, epochs=1, max_length=160),
            {"name": "rs", "kind": "sample", "model": "sft", "prompts": ["few/train"], "take": 2, "n": 2,
             "sampling": {"max_new_tokens": 8}, "score": {"function": "brevity"}, "max_prompt_tokens": 400},
            small.train("again", model="sft", rows=["rs/samples"], epochs=1, max_length=512),
            {"name": "inf", "kind": "infer", "model": "sft", "prompts": "few/train", "max_prompt_tokens": 400,
             "sampling": {"max_new_tokens": 4}},
            {"name": "eval", "kind": "evaluate", "models": ["again"], "rows": "seeds/test", "perplexity": False,
             "sampling": {"max_new_tokens": 4}, "max_prompt_tokens": 400})
        found = execute(run).artifacts
    return {name: one for name, one in found.items() if one is not None}


def ids(artifact: Artifact, split: str) -> list[str]:
    lines = (artifact.path() / "rows" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["id"] for line in lines]


def how(trail: Trail, artifact: Artifact) -> list[str]:
    return [met.how for met in trail.met if met.key == artifact.key]


def test_every_row_of_a_train_set_is_found_forward_and_none_that_was_left_out(made: Made) -> None:
    store, manifest = made["sft"].store, made["sft"].manifest
    kept, dropped = ids(made["few"], "train"), {id_ for id_, _ in manifest.facts["dropped_rows"]}
    learned = {id_ for id_ in ids(made["gen"], "train") if "learned" in how(forward(store, id_), made["sft"])}
    assert len(learned) == manifest.rows.written["train"]
    assert learned <= set(kept) - dropped
    for id_ in set(ids(made["gen"], "train")) - set(kept):
        trail = forward(store, id_)
        assert how(trail, made["few"]) == ["left out"]
        assert made["sft"].key not in trail.learned
        assert not how(trail, made["sft"])


def test_a_seed_is_followed_through_what_a_teacher_made_of_it_to_every_model(made: Made) -> None:
    store = made["gen"].store
    rows = [json.loads(line) for line in
            (made["gen"].path() / "rows" / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    shown = {seed for row in rows for seed in row["meta"]["origin"]["seeds"]}
    for seed in ids(made["seeds"], "train"):
        trail = forward(store, seed)
        assert ("holds" in how(trail, made["gen"])) is (seed in shown)
        held = trail.held.get(made["gen"].key, {}).get("train", set())
        assert {row["id"] for row in rows if seed in row["meta"]["origin"]["seeds"]} <= held
    test_row = ids(made["seeds"], "test")[0]
    trail = forward(store, test_row)
    assert how(trail, made["eval"]) == ["measured"]
    assert trail.learned == {}  # decontaminate reads it to keep it out


def test_what_answers_a_row_has_not_learned_from_it(made: Made) -> None:
    asked = {json.loads(line)["id"] for line in
             (made["inf"].path() / "answers.jsonl").read_text(encoding="utf-8").splitlines()}
    assert asked
    for id_ in asked:
        trail = forward(made["inf"].store, id_)
        assert how(trail, made["inf"]) == ["answered"]
        assert made["inf"].key not in trail.learned


def test_answers_to_a_row_and_what_learns_from_them_are_found(made: Made) -> None:
    for id_ in ids(made["few"], "train"):
        trail = forward(made["rs"].store, id_)
        asked = [one for one in ids(made["rs"], "samples") if one.startswith(f"{id_}-newest-")]
        assert trail.held.get(made["rs"].key, {}).get("samples", set()) == set(asked)
        if asked:
            assert "learned" in how(trail, made["again"])
        elif made["sft"].key in trail.learned:
            assert how(trail, made["again"]) == ["stands on"]
            assert how(trail, made["eval"]) == ["asks"]


def test_a_line_of_a_file_is_the_row_that_was_made_of_it(made: Made) -> None:
    store, file = made["seeds"].store, Path(made["seeds"].store.root).parent / "seeds.jsonl"
    row = json.loads(file.read_text(encoding="utf-8").splitlines()[4])
    trail, same = forward(store, f"{file}:5"), forward(store, f"seeds-{row['id']}")
    assert [(met.key, met.how, met.rows) for met in trail.met] == [(met.key, met.how, met.rows) for met in same.met]
    with pytest.raises(ConfigError, match="no row set of the store has this row"):
        forward(store, f"{file}:5000")


def test_back_leads_to_the_files_the_prompts_and_the_teacher(made: Made) -> None:
    found = back(made["again"])
    entries = found["artifacts"]
    assert found["unknown"] == []
    assert set(entries) == {made[name].key for name in ("again", "sft", "rs", "few", "gen", "seeds", "base", "teacher")}
    assert entries[made["seeds"].key]["sources"][0]["sha256"] == made["seeds"].manifest.parts["sources"][0]
    gen = entries[made["gen"].key]
    assert gen["teachers"] == {"teacher": made["teacher"].key}
    assert {"instructions", "classification"} <= set(gen["prompts"])
    assert gen["shown"]["seeds"] > 0
    assert entries[made["few"].key]["rows"]["written"] == {"train": 4}


def test_what_cannot_be_followed_is_said(made: Made, tmp_path: Path) -> None:
    shutil.copytree(made["gen"].store.root, tmp_path / "store")
    store = Store(str(tmp_path / "store"))
    shutil.rmtree(tmp_path / "store" / "artifacts" / made["seeds"].key)
    sft = store.find(made["sft"].key)
    assert sft is not None
    assert made["seeds"].key in "".join(back(sft)["unknown"])
    (tmp_path / "store" / "artifacts" / made["few"].key / "manifest.json").write_text("{", encoding="utf-8")
    trail = forward(store, ids(made["few"], "train")[0])
    for name in ("few", "sft"):
        assert any(words.startswith(made[name].key) for words in trail.unknown)


def test_the_command_shows_a_tree_a_table_and_json(made: Made, call: Call) -> None:
    store = made["again"].store.url
    tree = call("lineage", made["again"].key, "--store", store)
    assert tree.code == 0, tree.err
    for part in (made["gen"].key, "prompt instructions", "seeds.jsonl  sha256 ", "different seeds", "─ from tiny"):
        assert part in tree.out
    of = call("lineage", "--of", ids(made["few"], "train")[0], "--store", store)
    assert of.code == 0, of.err
    assert made["few"].key in of.out
    told: dict[str, Any] = json.loads(call("lineage", made["sft"].key, "--store", store, "--json").out)
    assert told["of"] == made["sft"].key
    assert call("lineage", "--store", store).code == 2
    assert call("lineage", made["few"].key, "--of", "x", "--store", store).code == 2


def proof(artifact: Artifact, at: str, proved: bool = True, **where: Any) -> None:
    """As a server leaves it (serving/proving.py)."""
    told = {"model": "boats", "artifact": artifact.key, "kubealign": "0", "at": at, "proved": proved,
            "problem": None if proved else "row r1: token 0", "each": [], **where}
    artifact.store.write_served_file(artifact.key, f"proof-{at}-{len(where)}.json", json.dumps(told))


def test_endpoints_that_serve_what_learned_from_a_row_are_found(made: Made, tmp_path: Path, call: Call) -> None:
    shutil.copytree(made["gen"].store.root, tmp_path / "store")
    store = Store(str(tmp_path / "store"))
    sft, again = store.find(made["sft"].key), store.find(made["again"].key)
    assert sft is not None
    assert again is not None
    proof(sft, "20261128T170000Z")
    proof(sft, "20261128T180000Z", proved=False)
    for at, revision in (("20261128T190000Z", "1"), ("20261128T193000Z", "1"), ("20261128T183000Z", "2")):
        proof(sft, at, service="qa-serve", cluster=f"qa-serve-{revision}", revision=revision)
    store.write_served_file(sft.key, "proof-later.json", "[")
    all_ = ids(made["few"], "train")
    learned = [id_ for id_ in all_ if "learned" in how(forward(store, id_), sft)]
    left = [id_ for id_ in all_ if id_ not in learned]
    trail = forward(store, learned[0])
    assert [(one.at, one.service, one.revision, one.proved) for one in trail.served.pop(sft.key)] == [
        ("2026-11-28T19:30:00Z", "qa-serve", "1", True), ("2026-11-28T18:30:00Z", "qa-serve", "2", True),
        ("2026-11-28T18:00:00Z", None, None, False)]
    assert trail.served == {}
    assert any("proof-later.json is no proof" in words for words in trail.unknown)
    for id_ in left:
        assert forward(store, id_).served == {}
    words = call("lineage", "--of", learned[0], "--store", store.url)
    assert f"{sft.key} (sft) was served by qa-serve, revision 2 as boats, proved (2026-11-28T18:30:00Z)" in words.out
    told = json.loads(call("lineage", "--of", learned[0], "--store", store.url, "--json").out)
    assert [one["cluster"] for one in told["served"][sft.key]] == ["qa-serve-1", "qa-serve-2", None]
    tree = call("lineage", sft.key, "--store", store.url)
    assert "served on a machine as boats, NOT served: row r1: token 0 (2026-11-28T18:00:00Z)" in tree.out
    assert "no proof" in tree.err
    assert "served by nobody" in call("lineage", again.key, "--store", store.url).out
    assert "served" not in call("lineage", made["few"].key, "--store", store.url).out
    assert json.loads(call("lineage", again.key, "--store", store.url, "--json").out)["served"] == []
