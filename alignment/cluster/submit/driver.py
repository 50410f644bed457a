"""Makes the unfinished stages of a run one after the other, by attempts that a `Transport` starts and follows.

A stage is finished when the storage has its manifest; an attempt that says so is not believed. One that failed for
want of machines is followed by another; the user's own error is not; one that gave way to another run, which makes the
same, is no failure. Names are deterministic: who submits the same run again joins what is at work. Prints nothing; does
not know what an attempt is (`ray_jobs`, `ray_cluster`).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from alignment.artifacts import Manifest
from alignment.cluster.manifests.labels import job_name
from alignment.cluster.manifests.submission import chosen
from alignment.cluster.status.reading import Ended
from alignment.cluster.storage.truth import Truth
from alignment.cluster.watch.voice import Voice
from alignment.config import AnyStage
from alignment.config.stops import Standing, standing_of
from alignment.errors import StageError

PAUSES = (60.0, 120.0, 240.0, 300.0)
"""Seconds between looks at a stage that another run makes; the last again and again."""


class Transport(Protocol):
    """How attempts at stages get to a cluster, and the sentences in which one way differs from the other."""

    noun: str
    """What an attempt is called: RayJob, job."""

    def opened(self) -> AbstractContextManager[None]:
        """What has to be there while stages are made; entered only when one is left to make."""

    def attempts(self, stage: AnyStage, named: Callable[[int], str]) -> Mapping[int, bool]:
        """Attempts at a stage that the cluster knows: number -> whether it is at work.

        Args:
            named: number -> the one name that this attempt may have.
        """

    def start(self, stage: AnyStage, number: int, name: str) -> None:
        """Begin an attempt; nothing of its name is there."""

    def follow(self, stage: AnyStage, name: str) -> Ended:
        """Show an attempt's progress and output until it has ended."""

    def left_alone(self, name: str) -> str:
        """The sentence for one that goes on without this command."""

    def next_one(self, stage: str, label: str, end: Ended) -> str:
        """The sentence between a failed attempt and the next."""

    def given_up(self, stage: str, name: str, end: Ended, tries: int) -> StageError:
        """The error of a stage that is not tried again, after `tries` attempts at most."""


class Driver:
    """Drives one run on one cluster."""

    def __init__(self, truth: Truth, transport: Transport, voice: Voice) -> None:
        self.truth, self.transport, self.voice = truth, transport, voice

    def submit(self, *, only: str | None = None, retries: int = 2, wait: bool = False) -> dict[str, Manifest | None]:
        """Make every unfinished stage.

        Args:
            only: this stage alone.
            retries: further attempts at a stage after failures that are not the user's.
            wait: also for the last stage; before, each one has to be waited for anyway.

        Returns:
            Stage name -> manifest of what the storage has at the end.

        Raises:
            StageError: the user's error in a stage, or one that failed in all its attempts.
            ClusterError: the cluster refuses, or its storage cannot be read.
        """
        stages = chosen(self.truth.run, only)
        found = self.truth.manifests()
        unneeded = self._rounds(found).unneeded
        left = [stage for stage in stages if found[stage.name] is None and stage.name not in unneeded]
        for stage in stages:
            if found[stage.name] is not None:
                self.voice.say(f"= {self._label(stage)} finished before")
            elif stage not in left:
                self.voice.say(f"- {stage.name} {unneeded[stage.name]}")
        if not left:
            return found
        with self.transport.opened():
            for stage in left:
                if found[stage.name] is not None:  # by a stage of the same key
                    self.voice.say(f"= {self._label(stage)} finished before")
                    continue
                rounds = self._rounds(found)
                if stage.name in rounds.unneeded:
                    self.voice.say(f"- {stage.name} {rounds.unneeded[stage.name]}")
                    continue
                if stage.name in rounds.waiting:
                    raise StageError(rounds.waiting[stage.name], where=f"stage {stage.name}")
                if len(left) == 1 and not wait:
                    self.voice.say(f"  {self.transport.left_alone(self._begin(stage))}")
                    return found
                found = self._make(stage, retries)
        return found

    def _rounds(self, found: Mapping[str, Manifest | None]) -> Standing:
        """Which rounds the gates ask for, by what the storage has."""
        return standing_of(self.truth.run.stops(), found)

    def _make(self, stage: AnyStage, retries: int) -> dict[str, Manifest | None]:
        label, left = self._label(stage), retries
        pauses = itertools.chain(PAUSES, itertools.repeat(PAUSES[-1]))
        while True:
            name = self._begin(stage)
            end = self.transport.follow(stage, name)
            # A job may die after its artifact was published, and Ray may report success without one.
            found = self.truth.manifests()
            if found[stage.name] is None and end.how == "elsewhere":
                self.voice.say(f"… {label} {end.message}; its pods are given back, and the storage is looked at now "
                               "and then")
                found = self._made_elsewhere(stage, pauses)
                if found[stage.name] is None:
                    continue
            manifest = found[stage.name]
            if manifest is not None:
                self.voice.say(f"+ {label} finished in {manifest.seconds:.1f} s")
                return found
            if end.how == "succeeded":
                end = Ended("failed", f"the {self.transport.noun} succeeded, but the storage has no artifact of it")
            if end.how in ("user", "gone") or not left:
                raise self.transport.given_up(stage.name, name, end, retries + 1)
            left -= 1
            self.voice.say(f"! {self.transport.next_one(stage.name, label, end)}")

    def _made_elsewhere(self, stage: AnyStage, pauses: Iterator[float]) -> dict[str, Manifest | None]:
        """What the storage has once a stage that another run makes is finished, or nobody is at it any more."""
        while True:
            time.sleep(next(pauses))
            found, works = self.truth.look()
            work = works.get(stage.name)
            if found[stage.name] is not None or work is None or work.state != "running":
                return found

    def _begin(self, stage: AnyStage) -> str:
        """Join the attempt that is at work, or start the next; returns its name."""
        run, digest = self.truth.run.name, self.truth.keys[stage.name].digest

        def named(number: int) -> str:
            return job_name(run, stage.name, digest, number)

        attempts = self.transport.attempts(stage, named)
        live = [number for number, at_work in attempts.items() if at_work]
        number = max(live) if live else max(attempts, default=0) + 1
        name = named(number)
        self.voice.say(f"> {self._label(stage)} {self.transport.noun} {name}"
                       + (", which is at work already" if live else ""))
        if not live:
            self.transport.start(stage, number, name)
        return name

    def _label(self, stage: AnyStage) -> str:
        return f"{stage.name} {self.truth.keys[stage.name].digest[:12]}"
