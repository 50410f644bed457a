"""Exit codes that commands and stages end with, once: a stage's is read again by whoever started it.

Says what they mean; which error becomes which code is `pipeline.job`'s and `cli.main`'s to decide. `run --strict-aims`
has a code of its own, and a process that a signal ended has 128 and the signal's number.
"""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """How a command or a stage ended."""

    DONE = 0
    """Done; of a stage: its artifact exists."""
    BUG = 1
    """A bug of ours, with its traceback."""
    USER = 2
    """Something to mend in the run, its data, the profile or the command line; another attempt would meet it again."""
    INFRASTRUCTURE = 3
    """Of a stage: the store did not answer, workers were lost, no artifact; worth another attempt."""
    ELSEWHERE = 4
    """Of a stage with a Ray cluster of its own: another process makes the same, so its pods were given back. No
    failure."""
    INTERRUPTED = 130
    """Ctrl-C: 128 and SIGINT."""
