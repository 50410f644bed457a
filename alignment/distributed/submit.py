"""`ray job submit` of one stage to a Ray cluster that is there already, over Ray's job API.

The code is in the cluster's image; what travels is the bundle of the run as a small working directory. Joins a job of
the same id that is at work. Does not know Kubernetes: whoever calls gives an address and a token.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alignment.errors import ConfigError, StageError
from alignment.exits import Exit

_RAYS_OWN = re.compile(r"\tINFO job_manager\.py:\d+ -- ")
_ENDS = ("SUCCEEDED", "FAILED", "STOPPED")


class JobApi:
    """Ray's job API at one address."""

    def __init__(self, address: str, token: str | None = None) -> None:
        """
        Args:
            address: http://HOST:8265.
            token: of a cluster with token authentication.

        Raises:
            ConfigError: nothing answers there, it refuses the token, or Ray is not installed here.
        """
        try:
            from ray.job_submission import JobSubmissionClient
        except ImportError as error:
            raise ConfigError("Ray is not installed here", where="--target job", hint="pip install 'kubealign[train]', "
                              "or use --target rayjob or run, which need no Ray on this machine") from error
        logging.getLogger("ray").setLevel(logging.WARNING)
        # Ray lets these two overrule the address that it is given.
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
            os.environ.pop(name, None)
        headers = {"Authorization": f"Bearer {token}"} if token else None
        try:
            self.api: Any = JobSubmissionClient(address, headers=headers)
        except Exception as error:  # ConnectionError, Ray's AuthenticationError, HTTP errors of requests
            raise ConfigError(f"Ray's job API cannot be used: {_line(error)}", where="--address", found=address,
                              expected="http://HOST:8265 of a Ray head",
                              hint="RAY_AUTH_TOKEN holds the token of a cluster with token authentication") from error

    def attempts(self, prefix: str) -> dict[int, str]:
        """Status of the jobs whose id is `prefix` and a number, by that number."""
        found = {}
        for job in self.api.list_jobs():
            name = job.submission_id or ""
            if name.startswith(prefix) and name.removeprefix(prefix).isdecimal():
                found[int(name.removeprefix(prefix))] = str(job.status.value)
        return found

    def submit(self, name: str, entrypoint: str, folder: Path, env: dict[str, str],
               marks: dict[str, str]) -> None:
        """Submit a job of this id with `marks` as its metadata; `folder` becomes its working directory."""
        self.api.submit_job(entrypoint=entrypoint, submission_id=name, metadata=marks,
                            runtime_env={"working_dir": str(folder), "env_vars": env})

    def stop(self, marks: dict[str, str], *, poll: float = 1.0, patience: float = 60.0) -> list[str]:
        """Stop the jobs with these marks that have not ended, and see them end; returns their ids.

        Ray sends each driver a SIGTERM, and after a few seconds a SIGKILL.

        Raises:
            StageError: one goes on for longer than `patience` seconds.
        """
        def live() -> list[str]:
            return [str(job.submission_id) for job in self.api.list_jobs()
                    if marks.items() <= (job.metadata or {}).items() and str(job.status.value) not in _ENDS]

        found, end = live(), time.monotonic() + patience
        for name in found:
            self.api.stop_job(name)
        while left := set(found).intersection(live()):
            if time.monotonic() > end:
                raise StageError("Ray was asked to stop jobs, and they go on", found=", ".join(sorted(left)))
            time.sleep(poll)
        return found

    def wait(self, name: str, write: Callable[[str], None], *, poll: float = 2.0, patience: float = 120.0) -> int:
        """Follow a job to its end; returns the exit code of its driver.

        Args:
            write: gets each line of output.
            patience: seconds for which the job API may be away.

        Raises:
            StageError: it stayed away, or the job was stopped.
        """
        shown, away = 0, 0.0
        while True:
            try:
                job, text = self.api.get_job_info(name), self.api.get_job_logs(name)
            except Exception as error:  # a broken tunnel, a head that restarts
                away = away or time.monotonic()
                if time.monotonic() - away > patience:
                    raise StageError(f"Ray's job API is away: {_line(error)}", where=f"job {name}",
                                     hint="the job may still be running; submit again to join it") from error
                time.sleep(poll)
                continue
            away, ended = 0.0, str(job.status.value) in _ENDS
            # A line that is still being written waits for the next look.
            end = len(text) if ended else text.rfind("\n") + 1
            for line in text[shown:end].splitlines():
                if not _RAYS_OWN.search(line):
                    write(line)
            shown = max(shown, end)
            if ended:
                return self._code(name, job)
            time.sleep(poll)

    @staticmethod
    def _code(name: str, job: Any) -> int:
        if job.status.value == "STOPPED":
            raise StageError("the job was stopped", where=f"job {name}")
        if job.status.value == "SUCCEEDED":
            return Exit.DONE
        # Without a code the driver did not end by itself: its node went, or Ray refused to start it.
        return Exit.INFRASTRUCTURE if job.driver_exit_code is None else int(job.driver_exit_code)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
