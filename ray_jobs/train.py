"""Train one stage (sft, reward or dpo), as a Ray job.

    ray job submit --working-dir . -- python ray_jobs/train.py RUN.yaml STAGE [key=value ...]

Also runs as plain `python ray_jobs/train.py RUN.yaml STAGE`. See alignment/pipeline/job.py.
"""

from alignment.config import Dpo, Reward, Sft
from alignment.pipeline.job import main

if __name__ == "__main__":
    raise SystemExit(main(Dpo, Reward, Sft))
