"""Documents and questions about them at the command line: what `check` knows before anything is read or asked, rows as
people see them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.config import load_run
from alignment.distributed.generate import shared
from alignment.pipeline import execute
from tests import small
from tests.cli.conftest import Call, Said
from tests.data.document_files import encrypted, pdf
from tests.distributed.test_document_qa import good
from tests.generation.scripted import Scripted

TEXT = ("# Port\n\nThe harbour is nine metres deep, and it freezes in most winters.\n\n## Ferry\n\nFerries stop then, "
        "and the pilot repairs the nets of his sister.\n")


@pytest.fixture
def checked(call: Call) -> Callable[..., Said]:
    def check(*command: str, docs: dict[str, Any] | None = None, gen: dict[str, Any] | None = None,
              more: tuple[dict[str, Any], ...] = ()) -> Said:
        run = {"name": "qa", "compute": {"dtype": "float32", "device": "cpu"}, "store": "store", "stages": [
            {"name": "base", "kind": "import", "model": {"source": "tiny"}},
            {"name": "docs", "kind": "import", "documents": [{"path": "docs"}], "chunk_words": 20, "overlap_words": 5,
             **(docs or {})},
            {"name": "gen", "kind": "generate", "recipe": "document_qa", "teacher": "base", "passages": ["docs/train"],
             "take": 4, **(gen or {})}, *more]}
        Path("docs").mkdir(exist_ok=True)
        Path("empty").mkdir(exist_ok=True)
        Path("docs/a.md").write_text(TEXT)
        Path("scan.pdf").write_bytes(pdf([[], []]))
        Path("secret.pdf").write_bytes(encrypted(pdf([["x"]]), "pw"))
        Path("a.rtf").write_text("x")
        Path("zh.txt").write_text("港口有九米深，大多数冬天都会结冰。渡轮那时停航，领航员修补他妹妹的渔网。")
        Path("run.yaml").write_text(yaml.safe_dump(run, sort_keys=False))
        return call(*(command or ("check",)), "run.yaml")

    return check


def test_the_run_itself_passes_and_says_what_it_saw(checked: Callable[..., Said]) -> None:
    said = checked()
    assert (said.code, said.err) == (0, "")
    assert "1 document, passages: 2 train" in said.out
    assert "2 passages" in said.out


@pytest.mark.parametrize(("docs", "gen", "place", "problem"), [
    ({"documents": [{"path": "none.txt"}]}, {}, "stages[1].documents[0].path", "the document does not exist"),
    ({"documents": [{"path": "empty"}]}, {}, "stages[1].documents[0].path", "there is no document to read"),
    ({"documents": [{"path": "docs/*.txt"}]}, {}, "stages[1].documents[0].path", "there is no document to read"),
    ({"documents": [{"path": "a.rtf"}]}, {}, "stages[1].documents[0].path", "nothing reads a file with this ending"),
    ({"documents": [{"path": "docs/a.md", "text": "{a}"}]}, {}, "stages[1].documents[0].path", "`text` is of tables"),
    ({"documents": [{"path": "scan.pdf"}]}, {}, "stages[1].documents", "2 pages, no text; it needs OCR"),
    ({"documents": [{"path": "secret.pdf"}]}, {}, "stages[1].documents", "the PDF has a password"),
    ({"overlap_words": 15}, {}, "stages[1].overlap_words", "over half of chunk_words"),
    ({"split": {"by": "ratio", "ratios": {"train": 0.5, "test": 0.5}}}, {}, "stages[1].split", "has no passages"),
    ({"documents": [{"path": "zh.txt"}]}, {}, "stages[2].language", "most passages are in another language"),
    ({}, {"passages": ["docs/dev"]}, "stages[2].passages[0]", "no stage makes"),
    ({}, {"demonstrations": 17}, "stages[2].prompts.judgmental_seeds", "too few judgmental seed questions"),
    ({}, {"seeds": ["docs/train"], "passages": ["docs/train"]}, "stages[2].seeds[0]", "reads already"),
    ({}, {"max_prompt_tokens": 5}, "stages[2].max_prompt_tokens", "every passage is longer"),
    ({}, {"prompts": {"open_answer": "docs/a.md"}}, "stages[2].prompts.open_answer", "lacks {passage} and {question}"),
])
def test_what_is_known_to_fail_is_said_before_launch(
    docs: dict[str, Any], gen: dict[str, Any], place: str, problem: str, checked: Callable[..., Said]
) -> None:
    said = checked(docs=docs, gen=gen)
    assert said.code == 2
    assert f"({place})" in said.err
    assert problem in said.err


def test_nothing_is_trained_on_passages_alone(checked: Callable[..., Said]) -> None:
    for method in ("sft", "dpo", "kto", "grpo"):
        said = checked(more=(small.train("t", method, rows=["docs/train"]),))
        assert said.code == 2
        assert "no row can be used for method" in said.err
        assert "passage" in said.err


def test_files_that_are_not_read_now_are_said(checked: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignment.planner.rows.READ_NOW", 10)
    said = checked()
    assert (said.code, said.err) == (0, "")
    assert "1 file, not read now" in said.out
    assert checked("plan").code == 0


def test_passages_and_rows_are_shown_with_where_they_come_from(
    checked: Callable[..., Said], call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked()
    monkeypatch.setattr(shared, "open_engine", lambda context, name: Scripted(good))
    execute(load_run(Path("run.yaml")))
    said = call("data", "show", "run.yaml", "--stage", "docs")
    assert said.code == 0, said.err
    assert "a.md#2  (passage)" in said.out
    assert "Ferries stop then" in said.out
    assert '"headings": ["Port"]' in said.out
    said = call("data", "show", "run.yaml", "--stage", "gen")
    assert said.code == 0, said.err
    assert "r1-1-1  (prompt-completion)" in said.out
    assert '"file": "a.md"' in said.out
    assert '"branch": "open"' in said.out
    page = Path("store/runs/qa/report.html").read_text(encoding="utf-8")
    assert 'id="generation"' in page
