"""Numbers of the operator for Prometheus, served on a port of their own. Knows nothing of runs."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, start_http_server


class Metrics:
    """One set of numbers; a registry of its own, so that several can live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.calls = Counter("kubealign_api_calls", "Requests to the API server, by verb, kind and outcome",
                             ["verb", "kind", "outcome"], registry=self.registry)
        self.looks = Counter("kubealign_reconciles", "Looks at an AlignmentRun: idle, acted, overdue or error",
                             ["outcome"], registry=self.registry)
        self.seconds = Histogram("kubealign_reconcile_seconds", "Seconds of one look", registry=self.registry)
        self.children = Counter("kubealign_rayjobs", "RayJobs created, deleted or refused", ["action"],
                                registry=self.registry)
        self.services = Counter("kubealign_rayservices", "RayServices applied (of a revision), noted (one that is "
                                "not served), deleted or refused", ["action"], registry=self.registry)
        self.resyncs = Counter("kubealign_resyncs", "Full lists read: ok or error", ["outcome"], registry=self.registry)
        self.runs = Gauge("kubealign_alignmentruns", "AlignmentRuns by phase", ["phase"], registry=self.registry)
        self.stages = Gauge("kubealign_stages", "Stages of AlignmentRuns by state", ["state"], registry=self.registry)
        self.serving = Gauge("kubealign_served", "AlignmentRuns that are served, by the state of it", ["state"],
                             registry=self.registry)
        self.waiting = Gauge("kubealign_queue_length", "AlignmentRuns waiting for a look, by lane", ["lane"],
                             registry=self.registry)

    def count(self, phases: Iterable[str], states: Iterable[str], serving: Iterable[str]) -> None:
        """Set the gauges of what there is now."""
        for gauge, found in ((self.runs, Tally(phases)), (self.stages, Tally(states)), (self.serving, Tally(serving))):
            gauge.clear()
            for label, number in found.items():
                gauge.labels(label).set(number)

    def serve(self, port: int) -> None:
        """Answer /metrics on all addresses, from a thread, until the process ends."""
        start_http_server(port, registry=self.registry)
