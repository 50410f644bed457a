"""Following what runs: waits for RayJobs and Jobs, their output as it comes, an AlignmentRun to its end. Makes nothing
and decides nothing about another attempt.
"""
