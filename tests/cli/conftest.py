"""Calling the command line in this process: exit code, stdout, stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from alignment.cli.main import main


@dataclass
class Said:
    code: int
    out: str
    err: str


Call = Callable[..., Said]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """Run `kubealign ARGUMENTS` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("alignment.interrupt.guard", lambda: None)  # Ctrl-C is for the tests' own process here

    def run(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["kubealign", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        code = ended.value.code
        assert isinstance(code, int)
        return Said(code, out, err)

    return run
