"""Sends a run to a cluster and stops it again: stages as RayJobs, as jobs on a Ray cluster that is there, or the
whole as an AlignmentRun.
"""
