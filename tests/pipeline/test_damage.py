"""A run and damaged artifacts: it stops before it uses them, and says what mends them. An error names its log."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from alignment.artifacts import Artifact
from alignment.errors import ArtifactError, StageError, Unforeseen
from alignment.pipeline import damaged, execute
from tests import small


def test_a_run_stops_before_it_uses_them_and_goes_on_when_they_are_removed(tmp_path: Path) -> None:
    run = small.run(tmp_path, small.train("sft"))
    made = execute(run, only="base").artifacts["base"]
    assert isinstance(made, Artifact)
    execute(run, only="data")
    (made.path() / "model" / "model.safetensors").unlink()
    assert [error.where for error in damaged(run)] == [made.url]
    with pytest.raises(ArtifactError, match="gone or damaged") as caught:
        execute(run)
    command, _, rest = str(caught.value.hint).partition(",")
    assert rest == " then run again: it is made anew"
    program, option, folder = command.split()
    assert (program, option) == ("rm", "-r")
    shutil.rmtree(folder)
    assert execute(run).finished
    assert damaged(run, deep=True) == []


def test_a_finished_run_that_needs_them_no_more_is_only_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = small.run(tmp_path)
    made = execute(run).artifacts["base"]
    assert isinstance(made, Artifact)
    (made.path() / "model" / "model.safetensors").unlink()
    capsys.readouterr()
    assert execute(run).finished
    assert "model/model.safetensors is gone" in capsys.readouterr().err


def test_an_error_names_the_log_that_has_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = small.run(tmp_path, small.train("sft", trl={"optim": "sgd", "optim_args": "momentum=-1"}))
    with pytest.raises(StageError) as caught:
        execute(run)
    log = Path(str(caught.value.log))
    assert log.parent == tmp_path / "store" / "runs" / "small" / "logs"
    text = log.read_text()
    assert text.startswith("> sft ")
    assert "Traceback (most recent call last)" in text
    assert "Invalid momentum value" in text
    assert str(log) in str(caught.value)
    assert "optim_args" in str(caught.value.hint)


def test_an_error_that_nobody_foresaw_is_in_the_log_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(context: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("alignment.pipeline.run.body_of", lambda stage: broken)
    with pytest.raises(Unforeseen, match="ZeroDivisionError: a bug") as caught:
        execute(small.run(tmp_path), only="data")
    assert caught.value.where == "stage data"
    assert "in broken" in Path(str(caught.value.log)).read_text()
