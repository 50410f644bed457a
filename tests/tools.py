"""Where tests find command-line tools (helm, kubectl, kubeconform): $KUBEALIGN_TOOLS, PATH, then the test cluster's.

Not for the program: it needs none of them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

_INSTALL = Path(__file__).parents[2] / "shared" / "cluster" / "install"


def tool(name: str) -> Path:
    """Path of the tool; skips the test that asked, saying how to get it, where there is none."""
    found = _found(name)
    if found is None:
        pytest.skip(f"{name} is not on PATH; install it or name its folder in $KUBEALIGN_TOOLS")
    return found


@cache
def _found(name: str) -> Path | None:
    for folder in (os.environ.get("KUBEALIGN_TOOLS"), None, _unpacked()):
        path = shutil.which(name, path=folder)
        if path is not None:
            return Path(path)
    return None


@cache
def _unpacked() -> str | None:
    """The folder into which the test cluster's tools are unpacked, where that cluster is at hand."""
    if not _INSTALL.exists():
        return None
    done = subprocess.run([_INSTALL, "tools"], capture_output=True, text=True, timeout=120)
    return next((line for line in done.stdout.splitlines() if Path(line).is_dir()), None)
