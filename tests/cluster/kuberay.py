"""KubeRay and the Job controller in small, over tests' API server: they run entrypoints and commands on this machine.

A pod's folders are temporary ones: the bundle is unpacked where a test's pods would have it mounted, the claim's mount
is a folder of the test. So what a stage or a look into the storage does is really done; only pods are missing.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from alignment.cluster.manifests.bundle import unpack
from alignment.cluster.manifests.labels import log_attempt
from alignment.cluster.manifests.pods import RUN_FOLDER
from tests.cluster.api_server import Api, Json

ROOT = Path(__file__).parents[2]


@dataclass
class Controllers:
    """Set `api.reacts = Controllers(api, folder).react`."""

    api: Api
    folder: Path
    mishaps: list[str] = field(default_factory=list)
    """What befalls the next RayJobs, one each: lost (its head goes), lie (success without work), hang (it never
    ends), "" (nothing)."""
    entrypoints: list[str] = field(default_factory=list)

    def react(self, thing: Json) -> None:
        act = {"RayJob": self._ray_job, "Job": self._job}.get(thing["kind"])
        if act is not None and not thing.get("status"):
            threading.Thread(target=act, args=(thing,), daemon=True).start()

    def _ray_job(self, job: Json) -> None:
        name, mishap = job["metadata"]["name"], self.mishaps.pop(0) if self.mishaps else ""
        self.entrypoints.append(job["spec"]["entrypoint"])
        self.api.status("RayJob", name, jobDeploymentStatus="Initializing", rayClusterName=f"{name}-c")
        if mishap == "lost":
            self._end(name, "FAILED", "AppFailed", "Ray head pod not found.")
            return
        if mishap == "lie":
            self._end(name, "SUCCEEDED", "", "")
            return
        self.api.status("RayJob", name, jobDeploymentStatus="Running", jobStatus="RUNNING")
        if mishap == "hang":
            return
        volume = next(item for item in job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["volumes"]
                      if item["name"] == "run")
        command = shlex.split(job["spec"]["entrypoint"].replace("/opt/kubealign", str(ROOT)))
        with tempfile.NamedTemporaryFile("r", dir=self.folder, encoding="utf-8") as log:
            done = self._execute([sys.executable, *command[1:]], volume["configMap"]["name"],
                                 {"KUBEALIGN_ATTEMPT": log_attempt(name), "KUBEALIGN_ECHO": log.name,
                                  "KUBEALIGN_OWN_CLUSTER": "1", "RAY_CLUSTER_NAME": f"{name}-c"})
            # What `ray start` says there as well.
            self._pod(name, f"Ray runtime started.\n{log.read()}", {
                **job["metadata"]["labels"], "ray.io/cluster": f"{name}-c", "ray.io/node-type": "head"})
        time.sleep(0.3)
        message = (f"Job entrypoint command failed with exit code {done.returncode}, last available logs (truncated to "
                   f"20,000 chars):\n{done.stdout}")
        if done.returncode:
            self._end(name, "FAILED", "AppFailed", message)
        else:
            self._end(name, "SUCCEEDED", "", "")

    def _end(self, name: str, state: str, reason: str, message: str) -> None:
        self.api.status("RayJob", name, jobStatus=state, reason=reason, message=message,
                        jobDeploymentStatus="Complete" if state == "SUCCEEDED" else "Failed",
                        endTime=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))

    def _job(self, job: Json) -> None:
        spec = job["spec"]["template"]["spec"]
        volume = next((item for item in spec["volumes"] if item["name"] == "run"), None)
        command = spec["containers"][0]["command"]
        done = self._execute([sys.executable, "-m", "alignment.cli.main", *command[1:]],
                             volume["configMap"]["name"] if volume else None, {})
        self._pod(job["metadata"]["name"], done.stdout, {"batch.kubernetes.io/job-name": job["metadata"]["name"]})
        kind = "Complete" if done.returncode == 0 else "Failed"
        self.api.status("Job", job["metadata"]["name"], conditions=[{"type": kind, "status": "True"}])

    def _execute(self, command: list[str], files: str | None, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        mounted = self.folder / "mounted"
        if files is not None:
            unpack(self.api.objects["ConfigMap", "align", files], mounted)
        mounted.mkdir(exist_ok=True)
        return subprocess.run(
            [part.replace(RUN_FOLDER, str(mounted)) for part in command], cwd=mounted, text=True, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(self.folder), **env},
        )

    def _pod(self, job: str, printed: str, labels: dict[str, str]) -> None:
        self.api.logs[f"{job}-pod"] = [f"2026-01-01T00:00:{number // 1000:02}.{number % 1000:09}Z {line}"
                                       for number, line in enumerate(printed.splitlines())]
        self.api.put({"kind": "Pod", "status": {"phase": "Succeeded"}, "spec": {}, "metadata": {
            "name": f"{job}-pod", "namespace": "align", "labels": labels}})
