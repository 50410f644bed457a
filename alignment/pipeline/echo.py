"""A stage's lines in its pod's own log. Ray keeps what a job prints in a file inside the pod; `kubectl logs`, those who
collect logs and our own `--follow` read what the pod's first process prints.

Where $KUBEALIGN_ECHO names that process's output (/proc/1/fd/1), whole lines go there at once, without colours, each
with `MARK` before it. Without the variable nothing happens.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Callable
from typing import TextIO

ECHO = "KUBEALIGN_ECHO"
MARK = "stage | "
"""Tells a stage's lines from Ray's."""
_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


class Echo:
    """The way there; may be written from any thread. A reader that has gone ends it, and never the stage."""

    def __init__(self, hide: Callable[[str], str]) -> None:
        """
        Args:
            hide: replaces secrets in a line.
        """
        self._hide, self._lock, self._rest = hide, threading.Lock(), ""
        self._file: TextIO | None = None
        path = os.environ.get(ECHO)
        try:
            if path:
                self._file = os.fdopen(os.open(path, os.O_WRONLY), "w", encoding="utf-8", errors="replace")
        except OSError as error:
            print(f"this output is not in the pod's own log: {error}", file=sys.stderr)

    def write(self, text: str) -> None:
        """Take what was printed; a line goes out when it is whole."""
        with self._lock:
            if self._file is not None:
                *lines, self._rest = (self._rest + text).split("\n")
                self._put(lines)

    def close(self) -> None:
        """Write what is left of a last line."""
        with self._lock:
            self._put([self._rest] if self._rest else [])
            file, self._file = self._file, None
            if file is not None:
                file.close()

    def _put(self, lines: list[str]) -> None:
        if self._file is None or not lines:
            return
        try:
            self._file.write("".join(f"{MARK}{self._hide(_CODES.sub('', line))}\n" for line in lines))
            self._file.flush()
        except OSError:
            self._file = None
