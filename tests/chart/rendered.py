"""The chart as Helm renders it. Shared by the tests beside it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.tools import tool

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "kubealign"
NAMESPACE = "align"
FILES = sorted(path.name for path in CHART.glob("values*.yaml"))
APIS = ("ray.io/v1", "monitoring.coreos.com/v1")
EVERYTHING: dict[str, Any] = {
    "images": {"pullSecrets": ["registry"]},
    "rayCluster": {"enabled": True, "podDefaults": {"env": {"NCCL_DEBUG": "INFO"}, "envFrom": ["hub"]}},
    "cache": {"enabled": True}, "kueue": {"queueName": "queue"}, "quota": {"enabled": True},
    "limitRange": {"enabled": True, "max": {"cpu": "64"}},
    "monitoring": {"podMonitor": {"enabled": True}, "grafanaDashboard": {"enabled": True}},
    "operator": {"nodeSelector": {"pool": "system"}, "tolerations": [{"key": "system", "operator": "Exists"}]},
    "serviceAccounts": {"annotations": {"cloud": "role"}},
}
NOTHING: dict[str, Any] = {
    "crd": {"install": False}, "operator": {"enabled": False}, "networkPolicy": {"enabled": False},
    "podDisruptionBudget": {"enabled": False}, "storage": {"existingClaim": "mine"},
}
S3: dict[str, Any] = {"storage": {"s3": {"url": "s3://bucket/prefix"}}}
# What is rendered and checked: every values file, and sets of values that reach what no file does.
SETS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in FILES},
    "everything": ("values.yaml", EVERYTHING), "nothing": ("values.yaml", NOTHING), "s3": ("values.yaml", S3),
    "dev on s3": ("values-dev.yaml", S3), "dev without token": ("values-dev.yaml", {"auth": {"token": False}}),
    "cloud identity": ("values-dev.yaml", {"storage": {"s3": {"url": "s3://bucket/prefix", "existingSecret": ""}}}),
    "own claims": ("values-dev.yaml", {"storage": {"existingClaim": "mine"},
                                       "cache": {"enabled": True, "existingClaim": "copies"}}),
    "gateway": ("values.yaml", {"networkPolicy": {"serve": {"from": [
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "elsewhere"}}}]}}}),
    "nobody asks": ("values.yaml", {"networkPolicy": {"serve": {"from": []}}}),
    "no workers": ("values-dev.yaml", {"rayCluster": {"workerGroups": []}}),
}


def helm(*arguments: str | Path, values: Mapping[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
    """Run Helm to its end; `values` go in as a file on standard input."""
    given = ["--values", "-"] if values else []
    return subprocess.run([tool("helm"), *arguments, *given], input=json.dumps(values or {}), capture_output=True,
                          text=True, timeout=60)


def template(chart: Path, file: str, values: Mapping[str, Any] | None = None,
             apis: tuple[str, ...] = APIS) -> subprocess.CompletedProcess[str]:
    versions = [part for api in apis for part in ("--api-versions", api)]
    return helm("template", "kubealign", chart, "--namespace", NAMESPACE, "--values", chart / file, *versions,
                values=values)


@cache
def rendered(name: str) -> str:
    """The YAML of one of SETS; fails the test with Helm's words where it does not render."""
    done = template(CHART, *SETS[name])
    assert done.returncode == 0, done.stderr
    return done.stdout


def objects(text: str) -> list[dict[str, Any]]:
    return [found for found in yaml.load_all(text, Loader=yaml.CSafeLoader) if found]


def of_set(name: str) -> list[dict[str, Any]]:
    return objects(rendered(name))


def one(found: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    """The only object of that kind and name."""
    (match,) = [each for each in found if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return match


def pods(found: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod that the objects will make: where it stands, and its {metadata, spec}. KubeRay labels its own."""
    for each in found:
        kind, spec = each["kind"], each.get("spec", {})
        where = f"{kind}/{each['metadata']['name']}"
        if kind == "Pod":
            yield where, each
        elif kind in ("Deployment", "Job"):
            yield where, spec["template"]
        elif kind == "RayCluster":
            yield f"{where}/head", _labelled(spec["headGroupSpec"]["template"], "head")
            for group in spec["workerGroupSpecs"]:
                yield f"{where}/{group['groupName']}", _labelled(group["template"], "worker")


def _labelled(pod: dict[str, Any], node_type: str) -> dict[str, Any]:
    labels = {**pod["metadata"]["labels"], "ray.io/node-type": node_type}
    return {**pod, "metadata": {**pod["metadata"], "labels": labels}}
