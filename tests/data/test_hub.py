"""Data sets of the hub by name, from a hub on loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from alignment.config import Source, parse_run
from alignment.pipeline.keys import keys
from tests.hub_server import COMMIT, hub

ROWS = "".join(json.dumps({"question": f"What is {i}?", "answer": f"It is {i}.", "seen": i}) + "\n" for i in range(20))
SETS = {"some/one": {"README.md": "---\nlicense: mit\n---\n", "train.jsonl": ROWS,
                     "test.jsonl": "".join(ROWS.splitlines(True)[:4])},
        "some/none": {"README.md": "nothing"}, "some/broken": {"train.jsonl": ROWS + '{"question": "Wh\n'}}
SOURCE = {"hub": "some/one", "split": "train", "format": "columns",
          "columns": {"prompt": "question", "completion": "answer"}}
ASK = """
import json, sys
from alignment.config import Source, parse_run
from alignment.data.hub import hub_rows
from alignment.errors import DataError
for keys in json.load(sys.stdin):
    try:
        found = hub_rows(Source.model_validate(keys), "stage data")
        rows = [row.value for row in found.rows]
        print(json.dumps({"commit": found.commit, "columns": found.columns, "rows": rows}))
    except DataError as error:
        print(json.dumps({"problem": error.problem, "where": error.where, "again": error.transient}))
"""


def environment(folder: Path, url: str, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE_"))}
    return {**kept, "HF_ENDPOINT": url, "HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1", **more}


def asked(folder: Path, url: str, *sources: dict[str, Any], **more: str) -> list[dict[str, Any]]:
    """What `hub_rows` says of each, in a process of its own: the library reads its address once."""
    done = subprocess.run([sys.executable, "-c", ASK], input=json.dumps(sources), capture_output=True, text=True,
                          env=environment(folder, url, **more), timeout=200)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_rows_come_at_the_commit_that_is_recorded_streamed_or_not(tmp_path: Path) -> None:
    with hub(SETS) as (url, paths):
        whole, streamed, part, pinned = asked(
            tmp_path, url, SOURCE, {**SOURCE, "streaming": True}, {**SOURCE, "split": "train[:3]"},
            {**SOURCE, "revision": COMMIT, "split": "test"})
    assert whole["commit"] == COMMIT
    assert whole["columns"] == ["question", "answer", "seen"]
    assert whole["rows"] == [json.loads(line) for line in ROWS.splitlines()]
    assert streamed == whole
    assert part["rows"] == whole["rows"][:3]
    assert pinned["rows"] == whole["rows"][:4]
    read = [path for path in paths if "train.jsonl" in path]
    assert read
    assert all(COMMIT in path for path in read)


def test_each_thing_that_is_not_there_is_named(tmp_path: Path) -> None:
    with hub(SETS) as (url, _):
        found = asked(tmp_path, url, {**SOURCE, "hub": "some/other"}, {**SOURCE, "revision": "v9"},
                      {**SOURCE, "split": "dev"}, {**SOURCE, "config": "french"}, {**SOURCE, "hub": "some/none"},
                      {**SOURCE, "hub": "some/broken"})
    problems = [one["problem"] for one in found]
    assert problems[0] == "the hub does not give this data set out"
    assert problems[1] == "the data set has no such revision"
    assert problems[2] == "the data set has no such split"
    assert problems[3] == "the data set has several configurations, or not this one"
    assert problems[4].startswith("the data set cannot be read")
    assert "JSON parse error" in problems[5]
    assert not any(one["again"] for one in found)
    assert found[2]["where"] == "stage data, hub:some/one/dev@main"


def test_offline_and_a_hub_that_does_not_answer_are_two_things(tmp_path: Path) -> None:
    with hub(SETS) as (url, _):
        pass  # its port is closed again
    [offline] = asked(tmp_path, url, SOURCE, HF_HUB_OFFLINE="1")
    [silent] = asked(tmp_path, url, SOURCE)
    assert (offline["problem"], offline["again"]) == ("the hub is not asked: offline mode is on", False)
    assert (silent["problem"], silent["again"]) == ("the hub cannot be reached", True)


def test_a_run_imports_it_and_check_and_plan_ask_nobody(tmp_path: Path) -> None:
    run = tmp_path / "run.yaml"
    source = json.dumps({**SOURCE, "take": 10})
    run.write_text(f"name: t\nstore: {tmp_path}/store\nstages:\n- name: data\n  kind: import\n  data: [{source}]\n"
                   "  split: {by: ratio, ratios: {train: 0.8, dev: 0.2}}\n")

    def cli(*args: str, url: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "alignment.cli.main", *args], capture_output=True, text=True,
                              env=environment(tmp_path, url), timeout=200)

    with hub(SETS) as (url, paths):
        known, planned = cli("check", str(run), url=url), cli("plan", str(run), url=url)
        assert (known.returncode, paths) == (0, [])
        assert "not read now: hub:some/one/train@main" in known.stdout
        assert planned.returncode != 0
        assert "not known before their stage is made" in planned.stderr + planned.stdout
        made = cli("run", str(run), url=url)
    assert made.returncode == 0, made.stderr
    [manifest] = (json.loads(path.read_text()) for path in (tmp_path / "store").rglob("manifest.json"))
    assert manifest["rows"]["written"] == {"train": 8, "dev": 2}
    facts = manifest["facts"]["sources"]["one"]
    assert facts["commit"] == COMMIT
    assert (facts["read"], facts["taken"], facts["unread"]) == (20, 10, {"seen": 20})


def test_what_is_read_is_in_the_digest_and_how_is_not() -> None:
    def key(**source: Any) -> str:
        stage = {"name": "data", "kind": "import", "data": [{**SOURCE, **source}],
                 "split": {"by": "ratio", "ratios": {"all": 1.0}}}
        return keys(parse_run(json.dumps({"name": "t", "stages": [stage]})))["data"].key

    same = key()
    assert key(streaming=True) == same
    assert len({same, key(revision="v2"), key(config="fr"), key(split="test"), key(hub="some/other")}) == 5


@pytest.mark.parametrize(("source", "problem"), [
    ({"format": "messages"}, "either a file"),
    ({"format": "messages", "path": "a.jsonl", "hub": "a/b", "split": "train"}, "either a file"),
    ({"format": "messages", "path": "a.jsonl", "revision": "main"}, "revision of a file"),
    ({"format": "messages", "hub": "a/b"}, "which of the data set's splits"),
    ({"format": "messages", "hub": "https://huggingface.co/datasets/a/b", "split": "train"}, "no name of a data set"),
])
def test_a_source_is_one_thing(source: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        Source.model_validate(source)
