"""docs/reference/ is what the code makes of it, the same everywhere, and has a place for everything that exists."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from alignment.config import KINDS, METHODS
from alignment.reference.__main__ import main
from alignment.reference.pages import COMMAND, pages

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "reference"
PAGES = pages()


def test_the_committed_pages_are_those_of_the_code() -> None:
    committed = {path.name: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*"))}
    stale = [name for name in sorted({*committed, *PAGES}) if committed.get(name) != PAGES.get(name)]
    assert not stale, f"docs/reference/ has fallen behind the code in {', '.join(stale)}: run `{COMMAND}` and commit it"


def test_the_command_is_one_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^reference:.*\n\t\$\(PYTHON\) -m alignment.reference docs/reference$", makefile, re.MULTILINE)


def test_the_command_writes_them_and_removes_what_is_no_more(tmp_path: Path) -> None:
    (tmp_path / "old.md").write_text("gone")
    (tmp_path / "kept.txt").write_text("not ours")
    assert main([str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {*PAGES, "kept.txt"}
    assert {name: (tmp_path / name).read_text(encoding="utf-8") for name in PAGES} == PAGES


def test_another_process_makes_the_same_pages(tmp_path: Path) -> None:
    # Sets of text come in another order in each process; and no page may name the folder that it was made in.
    done = subprocess.run([sys.executable, "-m", "alignment.reference", str(tmp_path)], cwd=ROOT, check=False,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()} == PAGES
    assert not [name for name, text in PAGES.items() if str(ROOT) in text or "/tmp/" in text]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.tag)
def test_every_kind_has_its_keys_metrics_and_events(kind) -> None:
    for name in ("run.md", "metrics.md", "events.md"):
        assert re.search(rf"^##+ {kind.tag}$", PAGES[name], re.MULTILINE), name
    section = PAGES["run.md"].partition(f"### {kind.tag}\n")[2].partition("\n### ")[0]
    shared = PAGES["run.md"].partition("### train\n")[2].partition("\n### ")[0] if kind in METHODS else ""
    for key in kind.model_fields:
        assert f"| `{key}` |" in section + shared, key


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere_and_tables_are_whole(name: str) -> None:
    text = PAGES[name]
    for target in re.findall(r"\]\(([^)]+)\)", text):
        file, _, anchor = target.partition("#")
        assert not file or (FOLDER / file).exists(), target
        assert not anchor or re.search(rf"^##+ {anchor}$", text, re.MULTILINE), target
    width = 0
    for line in re.sub(r"```.*?```", "", text, flags=re.DOTALL).split("\n"):
        cells = len(re.findall(r"(?<!\\)\|", line))
        assert not width or not cells or cells == width, line
        width = cells if line.startswith("|") else 0


def test_no_prose_is_taken_for_html() -> None:
    for name, text in PAGES.items():
        prose = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
        assert not re.search(r"<[A-Za-z|/<]", prose), name
