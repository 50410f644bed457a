"""What an API server's answer means for the user: HTTP status and Status body -> one `ClusterError`.

Pure; sends nothing. Used by client.py for every answer that is not 2xx.
"""

from __future__ import annotations

import json
import re
from typing import Any

from alignment.errors import KubeAlignError

KUBERAY = "helm install kuberay-operator kuberay-operator --repo https://ray-project.github.io/kuberay-helm " \
    "--version 1.6.1 -n kuberay-system --create-namespace"
"""The one command that installs KubeRay."""
_INSTALL = {
    "ray.io": ("KubeRay", KUBERAY),
    "kubealign.dev": ("KubeAlign's operator", "helm install kubealign charts/kubealign -n NAMESPACE"),
    "kueue.x-k8s.io": ("Kueue", "helm install kueue oci://registry.k8s.io/kueue/charts/kueue -n kueue-system "
                       "--create-namespace"),
}
_OLD = {
    "ray.io": ("KubeRay 1.6 or later",
               f"{KUBERAY.replace('install', 'upgrade --install', 1)}; Helm leaves its definitions as they are: "
               "kubectl replace -k 'github.com/ray-project/kuberay/ray-operator/config/crd?ref=v1.6.1'"),
    "kubealign.dev": ("this version's chart", "helm upgrade kubealign charts/kubealign -n NAMESPACE"),
}
_RBAC = re.compile(r'User "(?P<user>[^"]+)" cannot (?P<verb>\w+) resource "(?P<resource>[^"]+)" in API group '
                   r'"(?P<group>[^"]*)"(?: in the namespace "(?P<namespace>[^"]+)")?')


class ClusterError(KubeAlignError):
    """The cluster refused, lacks something, or does not answer.

    Attributes:
        status: the HTTP status; 0 where there was no answer.
    """

    status: int = 0


def cluster_error(problem: str, status: int = 0, **parts: Any) -> ClusterError:
    """A ClusterError with its status; the other arguments are KubeAlignError's."""
    error = ClusterError(problem, **parts)
    error.status = status
    return error


def refusal(status: int, body: str, *, verb: str, path: str) -> ClusterError:
    """The error for one refused request.

    Args:
        body: the answer's body: a Status object, or plain text where the path itself is unknown.
        verb, path: what was asked, for `where`.
    """
    said = _status_of(body)
    message = str(said.get("message") or body.strip()[:500] or "no reason given")
    where = f"{verb} {path}"
    if status == 404 and not said.get("details", {}).get("kind"):
        return _unknown_path(path, where)
    if status == 404 and said["details"]["kind"] == "namespaces":
        name = said["details"].get("name", "")
        return cluster_error("the namespace does not exist", status, where=where, found=name,
                             hint=f"kubectl create namespace {name}, or name another with -n")
    if status == 401:
        return cluster_error("the API server does not know who asks", status, where=where, found=message,
                             hint="the kubeconfig's token or certificate is wrong or has expired: log in again")
    rbac = _RBAC.search(message)
    if status == 403 and rbac:
        resource = rbac["resource"] + (f".{rbac['group']}" if rbac["group"] else "")
        place = f"in namespace {rbac['namespace']}" if rbac["namespace"] else "in the whole cluster"
        return cluster_error(f"{rbac['user']} may not {rbac['verb']} {resource} {place}", status, where=where,
                             hint=f"ask an administrator for the verb {rbac['verb']} on {resource}")
    if status == 403:
        return cluster_error(f"refused on admission: {message}", status, where=where)
    if status == 409:
        return cluster_error(f"someone else holds it: {message}", status, where=where)
    if "field not declared in schema" in message or "unknown field" in message:
        name, command = _OLD.get(_group(path), (f"a newer version of {_group(path)}", None))
        return cluster_error("the cluster's resource definition does not know a field", status, where=where,
                             found=message, expected=name, hint=command)
    return cluster_error(f"the API server answered {status}: {message}", status, where=where)


def _group(path: str) -> str:
    return path.split("/")[2] if path.startswith("/apis/") else "v1"


def _unknown_path(path: str, where: str) -> ClusterError:
    group = _group(path)
    name, command = _INSTALL.get(group, (f"the API group {group}", None))
    return cluster_error(f"the cluster does not have {name}", 404, where=where, expected=f"resources of {group}",
                         hint=f"install it: {command}" if command else None)


def is_missing_api(error: ClusterError) -> bool:
    """Whether the refusal means that a whole resource definition is absent, rather than one object."""
    return error.status == 404 and error.problem.startswith("the cluster does not have")


def _status_of(body: str) -> dict[str, Any]:
    try:
        said = json.loads(body)
    except ValueError:
        return {}
    if not isinstance(said, dict) or said.get("kind") != "Status":
        return {}
    if not isinstance(said.get("details"), dict):
        said["details"] = {}
    return said
