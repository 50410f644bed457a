"""Evaluate models on a held-out split, as a Ray job.

    ray job submit --working-dir . -- python ray_jobs/evaluate.py RUN.yaml STAGE [key=value ...]

Also runs as plain `python ray_jobs/evaluate.py RUN.yaml STAGE`. See alignment/distributed/job.py.
"""

from alignment.artifacts import Store
from alignment.config import Evaluate
from alignment.distributed.job import main
from alignment.pipeline import keys, make_stage

if __name__ == "__main__":
    raise SystemExit(main((Evaluate,), lambda run, stage: make_stage(run, stage, Store(run.store), keys(run))))
