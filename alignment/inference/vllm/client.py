"""The other side of server.py: starts vLLM's process, asks it, hands out answers, ends it.

Questions may be asked at any time and are answered in any order; `wait` gives those that are wanted. What the process
prints lies in a file of its own, whose last lines are shown where it fails. Knows no torch and no tokenizer.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from pathlib import Path
from typing import IO

from alignment.errors import ModelError
from alignment.inference.requests import Draw, EngineStopped
from alignment.inference.vllm.launch import Answered, Ask, Failed, Launch, Ready, Weigh, Weighed
from alignment.progress import waiting

MODULE = "alignment.inference.vllm.server"
HINT = "compute.engine: transformers computes without it"
LINES = 12
"""Of the process's output, shown where it fails."""
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one process to end; workers of a tensor-parallel engine end with it
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",  # the model's own length is held here
    "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn", "PYTHONUNBUFFERED": "1",
}
Answer = Answered | Weighed


class Client:
    """A running vLLM. Raises EngineStopped where it does not come up; `ready` says what it told of itself."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self._numbers = itertools.count(1)
        self._answers: dict[int, Answer | Failed] = {}
        self._open: set[int] = set()
        self.proved: set[str] = set()
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process
        self._pipe, theirs = Pipe()
        root = str(Path(__file__).resolve().parents[3])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", MODULE, str(theirs.fileno())], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
            stdout=self._log, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, **ENVIRONMENT, "PYTHONPATH": path, **launch.environment})
        theirs.close()
        try:
            self.send(launch)
            with waiting(lambda: "waiting for vLLM to start"):
                first = self.receive()
        except BaseException:
            self.close()
            raise
        if not isinstance(first, Ready):
            words = first.words if isinstance(first, Failed) else repr(first)
            raise self._failed(f"vLLM does not start: {words}")
        self.ready = first

    def ask(self, ids: Sequence[int], stops: Iterable[int], draw: Draw, adapter: str | None,
            top: int | None = None) -> int:
        """Ask for one answer, its tokens with log-probabilities where `top` is a number; returns its number."""
        return self._asked(Ask(next(self._numbers), tuple(ids), tuple(stops), draw, adapter, top))

    def weigh(self, ids: Sequence[int], start: int, adapter: str | None) -> int:
        """Ask how likely `ids` are from place `start` on; returns the question's number."""
        return self._asked(Weigh(next(self._numbers), tuple(ids), start, adapter))

    def wait(self, numbers: Iterable[int], on_answer: Callable[[int], None] | None = None) -> list[Answer]:
        """The answers to questions, in order, which are then forgotten.

        Args:
            on_answer: called with how many of these have just ended.

        Raises:
            ModelError: vLLM refused a question.
            EngineStopped: it is gone.
        """
        wanted = list(numbers)
        left = {number for number in wanted if number not in self._answers}
        if on_answer is not None and len(left) < len(wanted):
            on_answer(len(wanted) - len(left))
        while left:
            number = self._take()
            if number in left:
                left.remove(number)
                if on_answer is not None:
                    on_answer(1)
        found = [self._answers.pop(number) for number in wanted]
        refused = [one for one in found if isinstance(one, Failed)]
        if refused:
            raise ModelError(f"vLLM refused a question: {refused[0].words}", where=self.launch.model, hint=HINT)
        return [one for one in found if not isinstance(one, Failed)]

    def unanswered(self) -> int:
        """How many questions vLLM is at work on. Raises EngineStopped where it is gone."""
        while self._ready_to_read():
            self._take()
        return len(self._open)

    def close(self) -> None:
        """End the process and all that it started; their memory is free when this returns."""
        self._pipe.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(2)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._log.close()

    def _asked(self, question: Ask | Weigh) -> int:
        self.send(question)
        self._open.add(question.number)
        return question.number

    def send(self, what: object) -> None:
        """Put something into the pipe. Raises EngineStopped where the process is gone."""
        try:
            self._pipe.send(what)
        except OSError:
            raise self._failed("vLLM's process is gone") from None

    def _ready_to_read(self) -> bool:
        try:
            return self._pipe.poll(0)
        except OSError:
            raise self._failed("vLLM's process is gone") from None

    def _take(self) -> int:
        """Keep the next answer; returns its number."""
        said = self.receive()
        if not isinstance(said, (Answered, Weighed, Failed)) or said.number is None:
            raise self._failed(f"vLLM failed: {getattr(said, 'words', said)}")
        self._open.discard(said.number)
        self._answers[said.number] = said
        return said.number

    def receive(self) -> object:
        """What comes next through the pipe; waits for it. Raises EngineStopped where the process is gone."""
        try:
            return self._pipe.recv()
        except (EOFError, OSError):
            raise self._failed("vLLM's process is gone") from None

    def _failed(self, problem: str) -> EngineStopped:
        """The error of a process that failed, with its last words; it is ended."""
        self._pipe.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        code = self._process.poll()
        told = self._last_lines()
        self.close()
        return EngineStopped(problem, where=self.launch.model, found=None if code is None else f"exit code {code}",
                          hint=f"{HINT}; vLLM's last lines:\n{told}")

    def _last_lines(self) -> str:
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, self._log.tell() - 20_000))
        lines = self._log.read().decode(errors="replace").splitlines()
        short = [line[:300] for line in lines if line.strip() and not line.startswith("INFO")]
        return "\n".join(short[-LINES:])
