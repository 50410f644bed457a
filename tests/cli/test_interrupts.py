"""Ctrl-C and SIGTERM at any moment, from another process: the end comes at once, with one line and the right code."""

from __future__ import annotations

import json
import os
import pty
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from alignment import interrupt
from alignment.artifacts import Store
from tests import small

ROOT = Path(__file__).parents[2]
LIMIT = 2.0
"""Seconds from the signal to the end."""


class Command:
    """`kubealign ARGUMENTS` in a process group of its own, as a shell starts it."""

    def __init__(self, *arguments: str, before: str = "pass", **streams: int) -> None:
        # Before the guard stands, Ctrl-C is Python's own.
        code = ("import alignment.cli.main as cli\nfrom alignment import interrupt\n"
                f"{before}\ninterrupt.guard()\nprint('up', flush=True)\ncli.main()")
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments], text=True, start_new_session=True,
            stdout=subprocess.PIPE, **{"stderr": subprocess.PIPE, **streams},
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            # A shell starts background jobs with SIGINT ignored, and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "up\n"

    def ended_by(self, number: int) -> tuple[int, str, float]:
        """(exit code, stderr, seconds) after a signal to the whole group, as a terminal sends it."""
        began = time.monotonic()
        os.killpg(self.process.pid, number)
        _, err = self.process.communicate(timeout=30)
        return self.process.returncode, err, time.monotonic() - began


def is_one_line(err: str, verb: str) -> bool:
    """Whether the command's own lines are followed by one that says how it ended, and nothing else."""
    *others, last = err.splitlines()
    return last.startswith(verb) and not any("Traceback" in line or line.startswith(verb) for line in others)


@pytest.fixture
def run_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    run = small.run(tmp_path, small.train("sft", epochs=200))
    Path("run.yaml").write_text(yaml.safe_dump(run.model_dump(mode="json", exclude_none=True)), encoding="utf-8")
    return "run.yaml"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code", "verb"), [
    (signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")])
def test_a_run_ends_at_once_at_any_moment_and_goes_on_later(run_file: str, number: int, code: int, verb: str) -> None:
    moments = random.Random(number)
    for _ in range(6):
        command = Command("run", run_file)
        time.sleep(moments.uniform(0.01, 9.0))
        ended, err, seconds = command.ended_by(number)
        assert (ended, is_one_line(err, verb)) == (code, True), err
        assert seconds < LIMIT
        assert not list(Path("store/work").glob("*/lease.json")), "given back"


@pytest.mark.parametrize("arguments", [["check", "run.yaml"], ["plan", "run.yaml"], ["status", "run.yaml"],
                                       ["report", "run.yaml"], ["explain"]], ids=lambda arguments: arguments[0])
def test_every_command_ends_at_once(arguments: list[str], run_file: str) -> None:
    moments = random.Random(arguments[0])
    for _ in range(3):
        command = Command(*arguments)
        time.sleep(moments.uniform(0.0, 0.4))
        ended, err, seconds = command.ended_by(signal.SIGINT)
        assert seconds < LIMIT
        assert ended == 0 or (ended == 130 and is_one_line(err, "interrupted")), (ended, err)


def test_a_signal_that_comes_while_the_guard_is_set_up_is_heard() -> None:
    early = ("import os, signal, threading\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
             "start = threading.Thread.start\n"
             "def first(self): os.kill(os.getpid(), signal.SIGINT); start(self)\nthreading.Thread.start = first")
    code = f"{early}\nfrom alignment import interrupt\ninterrupt.guard()\nimport time; time.sleep(60)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert (ended.returncode, ended.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_has_succeeded_is_not_killed_while_python_takes_itself_apart(run_file: str, number: int) -> None:
    late = ("import os\nclass Late:\n    def __del__(self, kill=os.kill, own=os.getpid(), write=os.write):\n"
            f"        write(2, b'late')\n        kill(own, {number:d})\nlate = Late()")
    command = Command("explain", before=late)
    _, err = command.process.communicate(timeout=30)
    assert (command.process.returncode, err) == (0, "late")


def test_code_that_never_comes_back_to_python_is_no_hindrance(run_file: str) -> None:
    native = ("import ctypes, alignment.pipeline as p\n"
              "p.status = lambda run: ctypes.CDLL(None).sleep(60)")  # without Python's lock, as a forward pass
    command = Command("status", run_file, before=native)
    time.sleep(1.0)
    ended, err, seconds = command.ended_by(signal.SIGINT)
    assert (ended, err) == (130, "interrupted\n")
    assert seconds < LIMIT


def test_what_is_done_before_the_end_cannot_hold_it_up(run_file: str) -> None:
    stuck = ("import time, alignment.pipeline as p\nfrom alignment.interrupt import before_end\n"
             "def status(run):\n    with before_end(lambda: time.sleep(60)): time.sleep(60)\np.status = status")
    command = Command("status", run_file, before=stuck)
    time.sleep(1.0)
    ended, err, seconds = command.ended_by(signal.SIGINT)
    assert (ended, err) == (130, "interrupted\n")
    assert interrupt.PATIENCE <= seconds < LIMIT


@pytest.mark.parametrize("takes", [0.0, 60.0])
def test_commands_that_tidy_up_do_so_and_are_ended_all_the_same(run_file: str, takes: float) -> None:
    tidy = (f"import sys, time, alignment.pipeline as p\nfrom alignment.cli.remote import unwound\n@unwound('left')\n"
            f"def status(run):\n    try: time.sleep(60)\n    finally:\n        time.sleep({takes})\n"
            "        print('tidy', file=sys.stderr)\n"
            "p.status = status")
    command = Command("status", run_file, before=tidy)
    time.sleep(1.0)
    ended, err, seconds = command.ended_by(signal.SIGINT)
    assert (ended, err) == (130, ("" if takes else "tidy\n") + "interrupted; left\n")
    assert seconds < LIMIT


def test_a_forked_child_is_not_the_command(run_file: str) -> None:
    forks = ("import os, signal, time, alignment.pipeline as p\n"
             "def status(run):\n    child = os.fork()\n    time.sleep(60 if not child else 0.5)\n"
             "    os.kill(child, signal.SIGTERM)\n"
             "    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)\n"
             "    time.sleep(0.5); os._exit(7)\np.status = status")
    command = Command("status", run_file, before=forks)
    out, err = command.process.communicate(timeout=30)
    assert (command.process.returncode, out, err) == (7, "-15\n", "")


def test_a_signal_that_is_ignored_stays_ignored(run_file: str) -> None:
    waits = "import signal, time, alignment.pipeline as p\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n" \
            "def status(run):\n    time.sleep(1.5)\n    raise SystemExit(5)\np.status = status"
    command = Command("status", run_file, before=waits)
    time.sleep(0.7)
    assert command.ended_by(signal.SIGINT)[0] == 5


def test_a_terminal_gets_its_cursor_back(run_file: str) -> None:
    ours, its = pty.openpty()
    command = Command("status", run_file, before="import time, alignment.pipeline as p\n"
                      "p.status = lambda run: time.sleep(60)", stderr=its)
    os.close(its)
    time.sleep(1.0)
    os.killpg(command.process.pid, signal.SIGINT)
    assert command.process.wait(10) == 130
    assert os.read(ours, 1000).decode().endswith("\x1b[2K\x1b[?25hinterrupted\r\n")


@pytest.mark.slow
def test_status_tells_a_live_run_from_a_dead_one(run_file: str) -> None:
    def state() -> dict[str, object] | None:
        done = subprocess.run([sys.executable, "-m", "alignment.cli.main", "status", run_file, "--json"], text=True,
                              capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
        found: dict[str, object] | None = json.loads(done.stdout)["stages"][2]["work"]
        return found

    assert state() is None
    command = Command("run", run_file)
    until = time.monotonic() + 120
    while not ((seen := state()) and seen["progress"] and seen["progress"]["done"] > 3):  # type: ignore[index]
        assert time.monotonic() < until
        assert command.process.poll() is None
    assert seen["state"] == "running"
    assert seen["progress"]["total"] == 600  # type: ignore[index]
    assert seen["progress"]["rate"] > 0  # type: ignore[index]
    command.process.kill()
    command.process.wait()
    assert (dead := state()) is not None
    assert dead["state"] == "stopped"
    assert Store("store").is_local
    again = Command("run", run_file, stderr=subprocess.STDOUT)
    time.sleep(0.2)
    assert again.process.stdout is not None
    for line in again.process.stdout:
        if "goes on from step" in line:
            break
    else:
        pytest.fail("a resumed stage says from which step")
    assert again.ended_by(signal.SIGKILL)[0] == -9


def test_a_ctrl_c_that_did_not_end_what_the_main_thread_waits_for_is_said_again() -> None:
    """One that comes just before a wait begins is such; here another thread takes it, which does the same each time."""
    code = """
import signal, threading, time
from alignment import interrupt
interrupt.guard()
heard = []
with interrupt.spared(lambda: True):
    for number in range(3):
        press = threading.Timer(0.2, lambda: signal.pthread_kill(threading.get_ident(), signal.SIGINT))
        press.start()
        began = time.monotonic()
        try:
            time.sleep(20)
        except KeyboardInterrupt:
            heard.append(time.monotonic() - began < 5)
        time.sleep(1)  # no second one comes
print(heard)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=90,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stdout) == (0, "[True, True, True]\n"), done.stderr


def test_a_ctrl_c_that_the_main_thread_heard_first_is_spared_though_the_block_ends() -> None:
    code = """
import signal, time
from alignment import interrupt
interrupt.guard()

def late():
    time.sleep(0.5)
    return True

with interrupt.spared(late):
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        pass
time.sleep(1)
print("went on")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=90,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stdout) == (0, "went on\n"), done.stderr
