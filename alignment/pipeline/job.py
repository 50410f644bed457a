"""What every file in ray_jobs/ does: make one stage of a run, inside a Ray job.

    ray job submit --working-dir . -- python ray_jobs/train.py RUN.yaml STAGE [key=value ...]

The stages it reads must be finished. Ends with exit code 0 only when the stage's artifact exists.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from alignment.artifacts import Store
from alignment.config import load_run
from alignment.errors import ConfigError, KubeAlignError
from alignment.pipeline.keys import keys
from alignment.pipeline.run import make_stage


def main(*kinds: type, argv: Sequence[str] | None = None) -> int:
    """Parse the command line, check that the stage is of one of `kinds`, and make it.

    Returns:
        Exit code: 0 made or found, 2 the user's error, printed.
    """
    parser = argparse.ArgumentParser(description="Make one stage of a run.")
    parser.add_argument("run", help="the run file")
    parser.add_argument("stage", help="name of the stage")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as kubealign's --set")
    arguments = parser.parse_args(argv)
    try:
        run = load_run(arguments.run, arguments.overrides)
        fitting = [stage for stage in run.stages if isinstance(stage, kinds)]
        stage = next((stage for stage in fitting if stage.name == arguments.stage), None)
        if stage is None:
            raise ConfigError("this entrypoint makes no such stage of the run", where=arguments.run,
                              found=arguments.stage,
                              expected="one of " + (", ".join(s.name for s in fitting) or "none in this run"))
        make_stage(run, stage, Store(run.store), keys(run))
    except KubeAlignError as error:
        print(error, file=sys.stderr)
        return 2
    return 0
