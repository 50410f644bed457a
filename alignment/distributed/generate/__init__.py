"""Bodies of the generate stages, a file for each recipe; what they share is shared.py. Launched by the pipeline or by
ray_jobs/generate.py."""
