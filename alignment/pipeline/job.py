"""What every file in ray_jobs/ does: make one stage of a run, inside a Ray job.

    ray job submit --working-dir . -- python ray_jobs/train.py RUN.yaml STAGE [key=value ...]

The stages it reads must be finished. Refreshes the run's report in the store and keeps its own output there, as
STORE/runs/RUN/logs/STAGE-ATTEMPT.log (attempt from $KUBEALIGN_ATTEMPT, else the time). Exit codes are
`alignment.exits`'; by a signal, the signal's.

SIGTERM has a training saved and gives the lease back; a second one does not wait. A pod's own SIGTERM never comes here:
it goes to `ray start`, which drains for 30 s and then kills. So a pod needs a preStop hook that sends it to the process
that $TMPDIR/kubealign-stage.pid names, and waits until that has ended.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from alignment import interrupt
from alignment.artifacts import MadeElsewhere, Store
from alignment.config import AnyStage, Run, load_run
from alignment.config.arithmetic import settled_here
from alignment.errors import ConfigError, KubeAlignError, Unforeseen
from alignment.exits import Exit
from alignment.pipeline.keys import keys
from alignment.pipeline.run import make_stage, write_report
from alignment.pipeline.stage_log import StageLog, attempt
from alignment.planner.auto import resolved

OWN_CLUSTER = "KUBEALIGN_OWN_CLUSTER"
"""Set where the Ray cluster was made for this one attempt."""


def main(script: str, argv: Sequence[str] | None = None) -> int:
    """Parse the command line, check that the stage is one that this script makes, and make it.

    Args:
        script: the caller's own name, as stage classes have it in `script`.

    Returns:
        One of `Exit`; what went wrong is printed.
    """
    parser = argparse.ArgumentParser(description="Make one stage of a run.")
    parser.add_argument("run", help="the run file")
    parser.add_argument("stage", help="name of the stage")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as kubealign's --set")
    arguments = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, _terminate)  # an exception gives the lease back; Ray's own handler raises one too
    try:
        run = settled_here(resolved(load_run(arguments.run, arguments.overrides))[0])
        fitting = [stage for stage in run.stages if stage.script == script]
        stage = next((stage for stage in fitting if stage.name == arguments.stage), None)
        if stage is None:
            raise ConfigError("this entrypoint makes no such stage of the run", where=arguments.run,
                              found=arguments.stage,
                              expected="one of " + (", ".join(s.name for s in fitting) or "none in this run"))
        store = Store(run.store)
    except KubeAlignError as error:
        print(error, file=sys.stderr)
        return Exit.USER
    with _found_by_hook(), StageLog(store, run.name, f"{stage.name}-{attempt()}") as log:
        try:
            return _make(run, stage, store, arguments.run, log)
        except SystemExit:
            if signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:
                raise
            print(interrupt.last_line(signal.SIGTERM), file=sys.stderr)
            # Raised within a call into Ray, it comes out as Ray's own, with code 1.
            raise SystemExit(128 + signal.SIGTERM) from None


def _make(run: Run, stage: AnyStage, store: Store, run_file: str, log: StageLog) -> int:
    try:
        known, own = keys(run), _own_cluster()
        if own is not None and _submitted_again(store, known[stage.name].key, own):
            print(f"stage {stage.name} was at work on this Ray cluster before, and its head was lost: an attempt on a "
                  "fresh cluster goes on from the newest checkpoint", file=sys.stderr)
            return Exit.INFRASTRUCTURE
        make_stage(run, stage, store, known, log, own)
        if store.find(known[stage.name].key) is None:
            print(f"stage {stage.name} ended, but its artifact is not at {store.url_of('artifacts')}", file=sys.stderr)
            return Exit.INFRASTRUCTURE
    except MadeElsewhere as error:
        print(error, file=sys.stderr)
        return Exit.ELSEWHERE
    except KubeAlignError as error:
        print(error, file=sys.stderr)
        if isinstance(error, Unforeseen):
            return Exit.BUG
        return Exit.INFRASTRUCTURE if error.transient else Exit.USER
    except Exception:
        traceback.print_exc()
        return Exit.BUG
    try:
        # In a pod the file has another name than the user's.
        write_report(run, None if "KUBEALIGN_ATTEMPT" in os.environ else f"run {shlex.quote(run_file)}")
    except KubeAlignError as error:  # the stage is made; the next one writes the report again
        print(f"the report was not refreshed\n{error}", file=sys.stderr)
    return Exit.DONE


def _own_cluster() -> str | None:
    """Name of the Ray cluster that was made for this one attempt; None on one that stays, or on none."""
    return os.environ.get("RAY_CLUSTER_NAME") if os.environ.get(OWN_CLUSTER) else None  # the name is KubeRay's variable


def _submitted_again(store: Store, key: str, own: str) -> bool:
    """Whether this job is one that KubeRay has submitted anew, to a head that was lost and started again.

    KubeRay would do so without end, and nobody would count it.
    """
    return store.find(key) is None and not store.begin_work(key, own)


@contextmanager
def _found_by_hook() -> Iterator[None]:
    file = Path(tempfile.gettempdir(), "kubealign-stage.pid")
    file.write_text(str(os.getpid()), encoding="ascii")
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def _terminate(number: int, frame: FrameType | None) -> None:
    # A training saves first, while this thread works on.
    if interrupt.save_then(lambda: os.kill(os.getpid(), signal.SIGTERM)):
        signal.signal(signal.SIGTERM, _end)
        return
    _end(number, frame)


def _end(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: what is given back must not be cut short
    raise SystemExit(128 + number)
