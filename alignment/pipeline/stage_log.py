"""A stage's own output, kept in the store while it runs: pods and their logs go, STORE/runs/RUN/logs stays.

Copies what this process prints through Python (its workers' lines among them, which Ray prints here), a few seconds
late. Values of the environment that look like secrets are written as their names, here and on the terminal. Does not
see what native code writes past Python, nor the last seconds of a process that is killed.
"""

from __future__ import annotations

import io
import itertools
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Any, TextIO

from alignment.artifacts import Store
from alignment.errors import ArtifactError
from alignment.interrupt import before_end
from alignment.pipeline.echo import Echo

_SECRET = re.compile(r"SECRET|TOKEN|PASSW|CREDENTIAL|KEY", re.IGNORECASE)
_SHORTEST = 8
"""Shorter values are words such as `token` or `false` that occur everywhere."""
_DRAWN = re.compile(r"[^\n]*\x1b\[2K|\x1b\[[0-9;?]*[A-Za-z]|\r")
"""What a terminal has drawn over (a bar's earlier states), and the codes for it."""
_PIECES = 200_000
"""Writes that are kept, about half as many lines; a longer log loses its beginning."""


def attempt() -> str:
    """This attempt's part of a log's name: whoever started this process says it, else the time."""
    return os.environ.get("KUBEALIGN_ATTEMPT") or time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())


class StageLog:
    """Context manager around a stage; `name` is the log's file name without .log, or NAME.2 where there is one already.

    A store that cannot be written is said once, at the end, and never stops the stage.
    """

    def __init__(self, store: Store, run: str, name: str, *, every: float = 15.0) -> None:
        self.store, self.run, self.name, self.every = store, run, _free(store, run, name), every
        self._hidden = secrets(os.environ)
        self._echo = Echo(self.hide)
        self._pieces: deque[str] = deque(maxlen=_PIECES)
        self._written = self._pushed = 0
        self._stop = threading.Event()
        self._interrupted = ExitStack()
        self._thread = threading.Thread(target=self._keep, name="log", daemon=True)

    def __enter__(self) -> StageLog:
        self._interrupted.enter_context(before_end(self._push))
        self._streams = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = _Tee(sys.stdout, self), _Tee(sys.stderr, self)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if error is not None and not isinstance(error, Exception):
            print(f"ended by {type(error).__name__}: {error}", file=sys.stderr)
        sys.stdout, sys.stderr = self._streams
        self._echo.close()
        self._stop.set()
        self._thread.join()
        self._interrupted.close()
        try:
            self._push()
        except ArtifactError as failed:
            print(f"the log of this stage was not kept\n{self.hide(str(failed))}", file=sys.stderr)

    def hide(self, text: str) -> str:
        """`text` with the values of secrets replaced by their names."""
        for value, name in self._hidden:
            text = text.replace(value, f"<{name}>")
        return text

    @property
    def url(self) -> str:
        """Where it lies."""
        return self.store.url_of(f"runs/{self.run}/logs/{self.name}.log")

    def write(self, text: str) -> None:
        """Put something into the log and the container's output, not on the terminal."""
        self._echo.write(text)
        if "\x1b[2K" in text and self._pieces and "\n" not in self._pieces[-1]:
            self._pieces.pop()  # a bar that is drawn anew ten times a second
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
        text = self.hide(_DRAWN.sub("", "".join(pieces)))  # once more: a secret may have come in two pieces
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


def _free(store: Store, run: str, name: str) -> str:
    """The name, numbered where an earlier log has it: attempts begin at 1 again when a run is deleted and sent anew."""
    with suppress(ArtifactError):
        for number in itertools.count(1):
            free = name if number == 1 else f"{name}.{number}"
            if not store.has_run_file(run, f"logs/{free}.log"):
                return free
    return name


def secrets(environment: Mapping[str, str]) -> list[tuple[str, str]]:
    """(value, name) of the variables that look like secrets, longest value first."""
    found = [(value, name) for name, value in environment.items() if _SECRET.search(name) and len(value) >= _SHORTEST]
    return sorted(found, key=lambda item: (-len(item[0]), item[1]))
