"""Answer prompts, as a Ray job.

    ray job submit --working-dir . -- python ray_jobs/infer.py RUN.yaml STAGE [key=value ...]

Also runs as plain `python ray_jobs/infer.py RUN.yaml STAGE`. See alignment/pipeline/job.py.
"""

from alignment.pipeline.job import main

if __name__ == "__main__":
    raise SystemExit(main("infer"))
