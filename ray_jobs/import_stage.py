"""Import a base model or data files, as a Ray job.

    ray job submit --working-dir . -- python ray_jobs/import_stage.py RUN.yaml STAGE [key=value ...]

Also runs as plain `python ray_jobs/import_stage.py RUN.yaml STAGE`. See alignment/distributed/job.py.
"""

from alignment.artifacts import Store
from alignment.config import ImportModel, ImportData
from alignment.distributed.job import main
from alignment.pipeline import keys, make_stage

if __name__ == "__main__":
    raise SystemExit(main((ImportModel, ImportData), lambda run, stage: make_stage(run, stage, Store(run.store), keys(run))))
