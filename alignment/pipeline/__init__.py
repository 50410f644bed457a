"""Drives a run: keys, leases, stage bodies in order, manifests, the report. Knows no method, model or row."""

from alignment.pipeline.keys import Key, keys
from alignment.pipeline.run import RunResult, at_work, damaged, execute, make_stage, status, write_report

__all__ = ["Key", "RunResult", "at_work", "damaged", "execute", "keys", "make_stage", "status", "write_report"]
