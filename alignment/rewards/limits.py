"""A call that is given up after so many seconds.

The thread that it runs in cannot be ended: it is left to itself and dies with the process, which has an error to report
by then. What never lets go of Python's lock (one regular expression that runs for hours) holds up the clock as well.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class TookTooLong(Exception):
    """The call did not end in time."""


def within(seconds: float, call: Callable[[], T]) -> T:
    """What `call` returns or raises. Raises TookTooLong when it has not ended after `seconds`."""
    made: dict[str, Any] = {}

    def run() -> None:
        try:
            made["value"] = call()
        except BaseException as error:
            made["error"] = error

    thread = threading.Thread(target=run, name="reward", daemon=True)
    thread.start()
    thread.join(seconds)
    if "error" in made:
        raise made["error"]
    if "value" not in made:
        raise TookTooLong
    value: T = made["value"]
    return value
