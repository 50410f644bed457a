"""A stage's own output, kept in the store while it runs: pods and their logs go, STORE/runs/RUN/logs stays.

Copies what this process prints through Python (its workers' lines among them, which Ray prints here), a few seconds
late. Values of the environment that look like secrets are written as their names, here and on the terminal. Does not
see what native code writes past Python, nor the last seconds of a process that is killed.
"""

from __future__ import annotations

import io
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Any, TextIO

from alignment.artifacts import Store
from alignment.errors import ArtifactError
from alignment.pipeline.echo import Echo

_SECRET = re.compile(r"SECRET|TOKEN|PASSW|CREDENTIAL|KEY", re.IGNORECASE)
_SHORTEST = 8
"""Shorter values are words such as `token` or `false` that occur everywhere."""
_PIECES = 200_000
"""Writes that are kept, about half as many lines; a longer log loses its beginning."""


class StageLog:
    """Context manager around a stage; `name` is the log's file name without .log.

    A store that cannot be written is said once, at the end, and never stops the stage.
    """

    def __init__(self, store: Store, run: str, name: str, *, every: float = 15.0) -> None:
        self.store, self.run, self.name, self.every = store, run, name, every
        self._hidden = secrets(os.environ)
        self._echo = Echo(self.hide)
        self._pieces: deque[str] = deque(maxlen=_PIECES)
        self._written = self._pushed = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="log", daemon=True)

    def __enter__(self) -> StageLog:
        self._streams = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = _Tee(sys.stdout, self), _Tee(sys.stderr, self)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if error is not None:
            print(f"ended by {type(error).__name__}: {error}", file=sys.stderr)
        sys.stdout, sys.stderr = self._streams
        self._echo.close()
        self._stop.set()
        self._thread.join()
        try:
            self._push()
        except ArtifactError as failed:
            print(f"the log of this stage was not kept\n{self.hide(str(failed))}", file=sys.stderr)

    def hide(self, text: str) -> str:
        """`text` with the values of secrets replaced by their names."""
        for value, name in self._hidden:
            text = text.replace(value, f"<{name}>")
        return text

    def write(self, text: str) -> None:
        self._echo.write(text)
        self._pieces.append(text)
        self._written += 1

    def _keep(self) -> None:
        while not self._stop.wait(self.every):
            try:
                self._push()
            except ArtifactError:
                continue  # the next push has it all

    def _push(self) -> None:
        written = self._written
        if written == self._pushed:
            return
        for _ in range(100):  # a deque cannot be read while it is written
            try:
                pieces = list(self._pieces)
                break
            except RuntimeError:
                time.sleep(0.001)
        else:
            return
        text = self.hide("".join(pieces))  # once more: a secret may have come in two pieces
        if written > len(pieces):
            text = f"(earlier output left out)\n{text}"
        self.store.write_run_file(self.run, f"logs/{self.name}.log", text)
        self._pushed = written


class _Tee(io.TextIOBase):
    """A stream whose text also goes to the log."""

    def __init__(self, stream: TextIO, log: StageLog) -> None:
        self.stream, self.log = stream, log

    def write(self, text: str) -> int:
        hidden = self.log.hide(text)
        self.stream.write(hidden)
        self.log.write(hidden)
        return len(text)

    def flush(self) -> None:
        self.stream.flush()

    def isatty(self) -> bool:
        return self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()

    def writable(self) -> bool:
        return True

    @property
    def closed(self) -> bool:
        return self.stream.closed

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def secrets(environment: Mapping[str, str]) -> list[tuple[str, str]]:
    """(value, name) of the variables that look like secrets, longest value first."""
    found = [(value, name) for name, value in environment.items() if _SECRET.search(name) and len(value) >= _SHORTEST]
    return sorted(found, key=lambda item: (-len(item[0]), item[1]))
