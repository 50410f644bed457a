"""What a pod of a stage sees, for `kubealign preflight`: storage, DNS, /dev/shm, versions, clock, keys, policies.

    python -m alignment.cluster.preflight.inside URL RUN.yaml

Prints one line of JSON for each finding as it is made, then {"ready": true}; from then on preflight denies the pod its
egress, and whether that has an effect is the last line. Always ends with 0: what a failure means is preflight's to say.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import sys
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

from alignment import __version__
from alignment.cluster.storage.probe import probe
from alignment.config import load_run
from alignment.pipeline.keys import keys

POLICY_WITHIN = 10.0
"""Seconds that an enforced NetworkPolicy may take to bite."""


def versions() -> dict[str, str]:
    """Of this package, Python and Ray; Ray's is missing where it is not installed."""
    found = {"kubealign": __version__, "python": platform.python_version()}
    try:
        return {**found, "ray": metadata.version("ray")}
    except metadata.PackageNotFoundError:
        return found


def shm_bytes() -> int:
    """Size of /dev/shm."""
    seen = os.statvfs("/dev/shm")
    return seen.f_frsize * seen.f_blocks


def resolved() -> str:
    """Address of the API server's service by its name."""
    return socket.gethostbyname("kubernetes.default.svc")


def api_server() -> tuple[str, int]:
    """Address that every pod has, whether or not it may speak to it."""
    return os.environ["KUBERNETES_SERVICE_HOST"], int(os.environ.get("KUBERNETES_SERVICE_PORT", "443"))


def connects(address: tuple[str, int]) -> bool:
    """Whether a new TCP connection is taken."""
    try:
        socket.create_connection(address, timeout=1.5).close()
    except OSError:
        return False
    return True


def denied_within(seconds: float, address: tuple[str, int]) -> float | None:
    """Seconds until new connections are refused, or None while they are not."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        if not connects(address):
            return round(time.monotonic() - began, 1)
        time.sleep(0.5)
    return None


def main(arguments: list[str]) -> int:
    """Make every look, each on its own, and print it. Returns 0."""
    url, run_file = arguments
    address = api_server()
    looks: dict[str, Callable[[], Any]] = {
        "versions": versions, "time": time.time, "shm": shm_bytes, "dns": resolved,
        "storage": lambda: probe(url)["seconds"],
        "keys": lambda: {name: key.key for name, key in keys(load_run(run_file)).items()},
        "open": lambda: connects(address),
    }
    for name, look in looks.items():
        try:
            _print({name: look()})
        except Exception as error:  # one look that fails must not hide the others
            _print({name: None, "error": f"{type(error).__name__}: {error}"})
    _print({"ready": True})
    _print({"denied": denied_within(POLICY_WITHIN, address)})
    return 0


def _print(finding: dict[str, Any]) -> None:
    print(json.dumps(finding), flush=True)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
