"""Ctrl-C and SIGTERM: the process ends within two seconds, whatever it is doing, with one line.

Python's own way, an exception in the main thread, waits until native code returns (a forward pass, an import of torch),
comes out as the traceback of whatever library it hits, and leaves the interpreter's end to C++ threads that abort. All
that is made here may be killed at any moment and is resumed, so an interrupt is a kill with manners: a thread of its
own hears of the signal, does what was asked for `before_end`, writes the line and ends the process. Commands that have
something of others to tidy up ask for the exception instead (`unwinding`), and are ended when that takes too long.
SIGTERM, which announces the end of a pod or a machine, lets a training save first (`saving`), as long as GRACE lasts;
a second signal, and Ctrl-C, do not wait for it.

Does not end other processes: those of a private Ray cluster die with this one.
"""

from __future__ import annotations

import atexit
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

PATIENCE = 1.2
"""Seconds for what is done before the end, or for an exception to unwind; the process then ends all the same."""
_NUDGE = 0.3
"""Seconds in which the main thread hears of a Ctrl-C that spares the program, if it does; then it is woken."""
_WAKES = signal.SIGURG
"""Does nothing but end what the main thread waits for; what it has not heard of yet it then hears."""
GRACE = float(os.environ.get("KUBEALIGN_GRACE_S", "25"))
"""Seconds for a training to save after SIGTERM; a pod has 30 unless it says otherwise."""
SAVE_FILE = "KUBEALIGN_SAVE_FILE"
"""Variable with the place of the file by which a pod's hook asks workers in it to save; unset outside of pods."""
_SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
_heard: list[int] = []
_actions: list[Callable[[], None]] = []
_save: Callable[[float], str | None] | None = None
_spares: Callable[[], bool] | None = None
_unsettled = False
"""Whether the main thread heard of a Ctrl-C that is spared, and the watcher has not seen that it did."""
_left = ""
_guarding = _raises = _raised = False
_ending = threading.Lock()


def guard() -> None:
    """From here to its end this process ends as the module says. For the main thread, first of all; once is enough.

    A signal that whoever started this process ignores stays ignored.
    """
    global _guarding
    if _guarding:
        return
    _guarding = True
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # one that comes now is heard once all stands
    try:
        hears, tells = os.pipe()
        os.set_blocking(tells, False)
        signal.set_wakeup_fd(tells, warn_on_full_buffer=False)
        threading.Thread(target=_watch, args=(hears,), name="interrupts", daemon=True).start()
        atexit.register(_too_late)  # the first that is registered is the last that is called
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _in_main)
        signal.signal(_WAKES, lambda number, frame: None)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def before_end(action: Callable[[], None]) -> Iterator[None]:
    """Have `action` done, from another thread and as long as PATIENCE lasts, when the block is interrupted."""
    _actions.append(action)
    try:
        yield
    finally:
        _actions.remove(action)


def saving(save: Callable[[float], str | None] | None) -> None:
    """Have `save` called after SIGTERM, before anything else is done, while the main thread works on; None: no longer.

    Args:
        save: from another thread, with the seconds that it may take; what the end then says of what it leaves behind.
    """
    global _save
    _save = save


def save_then(action: Callable[[], None]) -> bool:
    """For a process without `guard`, from its handler of SIGTERM: save in another thread, and call `action` there at
    last. False, and nothing is done, where nothing can save."""
    if _save is None:
        return False

    def both() -> None:
        _save_now(_save)
        action()

    threading.Thread(target=both, name="saves before the end", daemon=True).start()
    return True


def leaves(sentence: str) -> None:
    """Say from now on, after `interrupted; `, what the end leaves behind."""
    global _left
    _left = sentence


def last_line(number: int) -> str:
    """The last line of a process that a signal ends."""
    return _SIGNALS[signal.Signals(number)] + (f"; {_left}" if _left else "")


@contextmanager
def unwinding() -> Iterator[None]:
    """Raise KeyboardInterrupt in the block, so that its `finally` clauses run; whoever catches it calls `end`."""
    global _raises
    _raises = True
    try:
        yield
    finally:
        _raises = False


@contextmanager
def spared(spares: Callable[[], bool]) -> Iterator[None]:
    """Within the block Ctrl-C raises KeyboardInterrupt and the program goes on, as long as `spares` says so: for who
    talks with a model, to whom one is the end of an answer. SIGTERM ends all the same.

    The end of the block waits for that thread where the main one heard first; what it hears later is not spared.

    Args:
        spares: asked at each, from another thread; False ends the process as if this were not there.
    """
    global _spares
    _spares = spares
    try:
        yield
    finally:
        until = time.monotonic() + PATIENCE
        while _unsettled and time.monotonic() < until:
            time.sleep(0.005)
        _spares = None


def settle() -> None:
    """Wait for the end, where a signal was heard: a library's own handler may have raised an exception here first."""
    if _heard:
        time.sleep(2 * PATIENCE)


def end() -> NoReturn:
    """Write the line and end the process with 128 and the signal's number; without a word of anything else."""
    _ending.acquire()  # never given back: of two threads that come here, one has the last word
    number = (_heard or [signal.SIGINT])[0]
    if threading.current_thread() is threading.main_thread():
        with suppress(Exception):
            sys.stdout.flush()
    with suppress(OSError):
        codes = os.isatty(2) and os.environ.get("TERM") != "dumb"
        clear = "\r\x1b[2K\x1b[?25h" if codes else ""  # a bar that is being drawn, and the cursor that it hides
        os.write(2, f"{clear}{last_line(number)}\n".encode("ascii", "replace"))
    os._exit(128 + number)


def _in_main(number: int, frame: FrameType | None) -> None:
    global _raised, _unsettled
    if _raised or (_save is not None and number == signal.SIGTERM and not _heard):
        return  # it is unwinding; or works on until it has saved
    if _spares is not None and number == signal.SIGINT:
        _unsettled = True
        raise KeyboardInterrupt
    if _raises:
        _raised = True
        _heard.append(number)
        raise KeyboardInterrupt
    while True:  # nothing more is begun in this thread; the watcher ends the process
        time.sleep(PATIENCE)


def _watch(hears: int) -> None:
    """Wait for a signal; C code writes its number into the pipe, even while the main thread is in native code."""
    number = 0
    # Others may have handlers of their own.
    while number not in _SIGNALS or (number == signal.SIGINT and _spares is not None and _spared()):
        number = os.read(hears, 1)[0]
    try:
        if number == signal.SIGTERM and (save := _save) is not None:
            saves = threading.Thread(target=_save_now, args=(save,), name="saves before the end", daemon=True)
            saves.start()
            while saves.is_alive() and not select.select([hears], [], [], 0.05)[0]:
                pass
        _heard.append(number)
        if _raises:
            time.sleep(PATIENCE)  # whoever catches the exception ends the process before
        else:
            done = threading.Thread(target=_do_actions, name="before the end", daemon=True)
            done.start()
            done.join(PATIENCE)
    finally:
        end()


def _spared() -> bool:
    """Whether this Ctrl-C ends no more than what the main thread is at, which then hears of it for sure: one that comes
    just before that thread begins to wait for a line, or that another thread takes, does not end its waiting."""
    global _unsettled
    if _spares is None or not _spares():
        return False
    end = time.monotonic() + PATIENCE  # two that come together are heard as one
    while not _heard_by_main() and time.monotonic() < end:
        signal.pthread_kill(threading.main_thread().ident or 0, _WAKES)
    _unsettled = False
    return True


def _heard_by_main() -> bool:
    end = time.monotonic() + _NUDGE
    while not _unsettled and time.monotonic() < end:
        time.sleep(0.005)
    return _unsettled


def _save_now(save: Callable[[float], str | None]) -> None:
    with suppress(Exception):
        said = save(GRACE)
        if said:
            leaves(said)


def _do_actions() -> None:
    for action in reversed(_actions.copy()):
        with suppress(Exception):  # each has its chance, and the end comes all the same
            action()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()


def _too_late() -> None:
    """All is done, and Python takes itself apart without its handlers: a signal would kill, unsaid, what succeeded."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _in_child() -> None:
    """A forked process (a loader of batches) ends quietly by the signal, and does not end its parent."""
    global _guarding
    if _guarding:
        _guarding = False
        signal.set_wakeup_fd(-1)
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)


os.register_at_fork(after_in_child=_in_child)
