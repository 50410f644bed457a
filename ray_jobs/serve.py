"""Serve a run's models on the Ray cluster at hand, until the job is stopped.

    ray job submit --working-dir . -- python ray_jobs/serve.py RUN.yaml [--port 8000] [key=value ...]

Also runs as plain `python ray_jobs/serve.py RUN.yaml`. Which models, and to how many: the run's `serve`; all of them
are finished in its store. Replicas ask for the API key that KUBEALIGN_API_KEY holds where Ray's nodes were started, or
for none with --no-api-key. Exit codes are `alignment.exits`', and 143 after SIGTERM, which takes the application away.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from types import FrameType

from alignment.config import load_run
from alignment.config.serve import Serving
from alignment.errors import KubeAlignError
from alignment.exits import Exit
from alignment.pipeline.served import serving
from alignment.serving.hosts import NO_KEY


def main() -> int:
    """What went wrong is printed; one of `Exit`."""
    parser = argparse.ArgumentParser(description="Serve a run's models on the Ray cluster at hand.")
    parser.add_argument("run", help="the run file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as kubealign's --set")
    parser.add_argument("--host", default="0.0.0.0", help="address of each node to listen on")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--no-api-key", action="store_true", help="whoever reaches the replicas may ask them")
    given = parser.parse_intermixed_args()
    signal.signal(signal.SIGTERM, _terminate)
    if given.no_api_key:
        os.environ[NO_KEY] = "1"
    try:
        return _serve(serving(load_run(given.run, given.overrides)), given.host, given.port)
    except KubeAlignError as error:
        print(error, file=sys.stderr)
        return Exit.INFRASTRUCTURE if error.transient else Exit.USER
    except Exception:
        traceback.print_exc()
        return Exit.BUG


def _serve(what: Serving, host: str, port: int) -> int:
    from alignment.distributed.deploy import deployed, watched

    with deployed(what, host, port) as (endpoint, proofs):
        for name, proof in proofs.items():
            how = f"proved, {proof['rows']} rows" if proof["proved"] else "unproved, as asked"
            print(f"= {name} ({proof['artifact']}): {how}", flush=True)
        print(f"{endpoint} serves {', '.join(proofs)}", flush=True)
        for said in watched():
            print(said, flush=True)
    print("the application was taken away by somebody else", file=sys.stderr)
    return Exit.INFRASTRUCTURE


def _terminate(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("terminated; the application is taken away", flush=True)
    raise SystemExit(128 + number)


if __name__ == "__main__":
    raise SystemExit(main())
