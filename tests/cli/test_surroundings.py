"""What surrounds the command: a home or none, ~ in paths, and terminals that lack letters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from alignment.artifacts import cache_folder
from alignment.errors import ArtifactError

ROOT = Path(__file__).parents[2]
RUN = """\
name: here
store: store
stages:
  - name: rows
    kind: import
    data: [{path: "~/rows.jsonl", format: alpaca}]
    split: {by: ratio, ratios: {train: 0.5, test: 0.5}}
"""


def _call(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    kept = {name: value for name, value in os.environ.items()
            if name not in ("HOME", "KUBEALIGN_CACHE", "PYTHONUTF8", "PYTHONIOENCODING", "LC_ALL", "LANG")}
    return subprocess.run([sys.executable, "-m", "alignment.cli.main", *arguments], cwd=folder, capture_output=True,
                          env={**kept, "PYTHONPATH": str(ROOT), **environment}, check=False)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    rows = [{"instruction": f"Say {index}.", "input": "", "output": f"{index}"} for index in range(8)]
    (tmp_path / "home" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "run.yaml").write_text(RUN)
    return tmp_path / "home"


def test_check_plan_and_run_read_one_and_the_same_file(home: Path) -> None:
    for command in ("check", "plan", "run", "status"):
        done = _call(home.parent, command, "run.yaml", HOME=str(home))
        assert done.returncode == 0, done.stderr
    assert (home.parent / "store" / "artifacts").is_dir()


def test_every_path_of_a_user_may_begin_with_a_tilde(home: Path) -> None:
    (home / "model").mkdir()
    (home / "m.gguf").write_bytes(b"PK..")
    (home.parent / "run.yaml").write_text(RUN.replace("store: store", "store: ~/kept") + """\
  - {name: a, kind: import, model: {source: folder, path: ~/model}}
  - {name: b, kind: import, model: {source: gguf, file: ~/m.gguf}}
""")
    done = _call(home.parent, "check", "run.yaml", HOME=str(home))
    assert done.returncode == 2
    assert b"lacks config.json" in done.stderr
    assert b"not a GGUF file" in done.stderr
    assert b"does not exist" not in done.stderr


def test_what_lies_at_home_is_sent_to_a_cluster(home: Path) -> None:
    (home.parent / "lab.yaml").write_text("name: lab\ncluster: {storage: {url: /artifacts/x, claim: c}}\n")
    done = _call(home.parent, "submit", "run.yaml", "--profile", "./lab.yaml", "--dry-run", "--namespace", "lab",
                 HOME=str(home))
    assert done.returncode == 0, done.stderr
    assert b"files/0/rows.jsonl" in done.stdout


def test_without_a_home(home: Path) -> None:
    (home.parent / "run.yaml").write_text(RUN.replace("~/rows.jsonl", "home/rows.jsonl"))
    cache = str(home.parent / "cache")
    done = subprocess.run([sys.executable, "-c", f"""
import os, pathlib, sys
os.environ.pop("HOME", None)
os.environ["KUBEALIGN_CACHE"] = {cache!r}
import pwd
def none(uid): raise KeyError(uid)
pwd.getpwuid = none
import alignment.cli.main as cli
for command in ("check", "run", "status"):
    sys.argv = ["kubealign", command, "run.yaml"]
    try:
        cli.main()
    except SystemExit as ended:
        assert not ended.code, (command, ended.code)
"""], cwd=home.parent, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr


def test_the_cache_is_the_one_that_is_named_or_says_that_it_needs_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", none)
    monkeypatch.setenv("KUBEALIGN_CACHE", "/somewhere")
    assert cache_folder() == Path("/somewhere")
    monkeypatch.setenv("KUBEALIGN_CACHE", "")
    with pytest.raises(ArtifactError, match="no home folder"):
        cache_folder()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_that_lacks_letters(encoding: str, home: Path) -> None:
    (home.parent / "run.yaml").write_text(RUN.replace("rows.jsonl", "na\u00efve \u20ac \u4e2d.jsonl"), encoding="utf-8")
    done = _call(home.parent, "check", "run.yaml", HOME=str(home), PYTHONIOENCODING=encoding)
    assert done.returncode == 2
    assert b"does not exist" in done.stderr
    assert b"Traceback" not in done.stderr
    done = _call(home.parent, "status", "run.yaml", HOME=str(home), PYTHONIOENCODING=encoding)
    assert b"Traceback" not in done.stderr
    (home.parent / "run.yaml").write_text(RUN.replace("store: store", "store: \u4ed3"), encoding="utf-8")
    done = _call(home.parent, "status", "run.yaml", HOME=str(home), PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    done = _call(home.parent, "status", "run.yaml", "--json", HOME=str(home), PYTHONIOENCODING=encoding)
    assert json.loads(done.stdout)["store"] == "\u4ed3"
