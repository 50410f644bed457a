"""A small API server for tests: speaks Kubernetes' paths over HTTP, holds objects in memory, can go away and come back.

Refusals are worded as the real one words them. It has no controllers: a test registers a function that gets every
object that was applied or created (`reacts`) and plays their part. No validation: that is what real clusters are for.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import yaml

Json = dict[str, Any]
KINDS = {
    "configmaps": "ConfigMap", "secrets": "Secret", "pods": "Pod", "events": "Event", "services": "Service",
    "persistentvolumeclaims": "PersistentVolumeClaim", "resourcequotas": "ResourceQuota", "jobs": "Job",
    "deployments": "Deployment", "networkpolicies": "NetworkPolicy", "rayjobs": "RayJob", "rayservices": "RayService",
    "rayclusters": "RayCluster", "alignmentruns": "AlignmentRun", "localqueues": "LocalQueue", "nodes": "Node",
    "namespaces": "Namespace", "customresourcedefinitions": "CustomResourceDefinition",
    "selfsubjectaccessreviews": "SelfSubjectAccessReview",
}
_PATH = re.compile(r"/(?:api|apis/(?P<group>[^/]+))/[^/]+(?:/namespaces/(?P<space>[^/]+))?/(?P<plural>[a-z]+)"
                   r"(?:/(?P<name>[^/]+))?(?:/(?P<sub>[a-z]+))?$")


class Api:
    """State and switches of the server."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], Json] = {}
        """By kind, namespace ("" for none) and name."""
        self.logs: dict[str, list[str]] = {}
        """Lines of each pod, with timestamps."""
        self.absent: set[str] = set()
        """API groups that are not installed, or versions that are not served (GROUP/VERSION)."""
        self.quota: tuple[str, str] | None = None
        """Name and limit of a quota that no pod fits, as admission says it."""
        self.denied: set[tuple[str, str]] = set()
        """(verb, resource) that this user may not."""
        self.down = False
        """Connections are cut without an answer."""
        self.cut_logs_after: int | None = None
        """A followed log breaks off after so many lines."""
        self.reacts: Callable[[Json], None] = lambda thing: None
        self.requests: list[str] = []
        self.changed = threading.Condition()
        self.version = 0
        for name in ("default", "align"):
            self.put({"kind": "Namespace", "metadata": {"name": name}})

    def put(self, thing: Json) -> Json:
        """Store an object as a controller would, waking those who watch."""
        key = (thing["kind"], thing["metadata"].get("namespace", ""), thing["metadata"]["name"])
        with self.changed:
            self.version += 1
            made, before = deepcopy(thing), self.objects.get(key)
            generation = 1 if before is None else before["metadata"]["generation"] + (
                before.get("spec") != made.get("spec"))
            made["metadata"].update(resourceVersion=str(self.version), generation=generation, uid=f"uid-{self.version}")
            made["metadata"].setdefault("creationTimestamp", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
            self.objects[key] = made
            self.changed.notify_all()
        return made

    def status(self, kind: str, name: str, namespace: str = "align", **status: Any) -> None:
        """Change an object's status, as its controller."""
        thing = deepcopy(self.objects[kind, namespace, name])
        thing["status"] = {**thing.get("status", {}), **status}
        self.put(thing)

    def of_kind(self, kind: str) -> list[Json]:
        return [thing for (has, _, _), thing in self.objects.items() if has == kind]


class _Refused(Exception):
    def __init__(self, code: int, message: str, kind: str = "", name: str = "") -> None:
        super().__init__(message)
        self.code, self.kind, self.name = code, kind, name

    @property
    def body(self) -> Json:
        details = {"details": {"kind": self.kind, "name": self.name}} if self.kind else {}
        return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": str(self), "code": self.code,
                **details}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes: the second would wait 40 ms for an ACK
    api: Api

    def log_message(self, *_: Any) -> None:
        """Quiet: a test looks at `requests`."""

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        sent = json.loads(self.rfile.read(length)) if length else {}
        self.api.requests.append(f"{self.command} {self.path}")
        if self.api.down:
            self.connection.close()
            self.close_connection = True
            return
        url = urlparse(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        try:
            if url.path == "/version":
                self._send(200, {"gitVersion": "v1.36.3"})
                return
            match = _PATH.match(url.path)
            group = match["group"] or "" if match else ""
            if match is None or {group, f"{group}/{url.path.split('/')[3]}"} & self.api.absent:
                self._text(404, "404 page not found\n")
                return
            self._on(match, query, sent)
        except _Refused as refused:
            self._send(refused.code, refused.body)

    do_GET = do_POST = do_PATCH = do_DELETE = _answer

    def _on(self, match: re.Match[str], query: dict[str, str], sent: Json) -> None:
        kind, space, name = KINDS[match["plural"]], match["space"] or "", match["name"]
        if kind == "Namespace":
            space, name = "", match["name"] or match["space"]
        verb = {"GET": "get" if name else "list", "POST": "create", "PATCH": "patch", "DELETE": "delete"}[self.command]
        if (verb, match["plural"]) in self.api.denied:
            place = f' in the namespace "{space}"' if space else " at the cluster scope"
            raise _Refused(403, f'{match["plural"]} is forbidden: User "dev" cannot {verb} resource '
                                f'"{match["plural"]}" in API group "{match["group"] or ""}"{place}')
        if match["sub"] == "log":
            self._log(name or "", query)
        elif self.command == "GET":
            self._read(kind, space, name, match["plural"], query)
        elif self.command == "DELETE":
            self._found(kind, space, name or "", match["plural"])
            with self.api.changed:
                self.api.version += 1
                del self.api.objects[kind, space, name or ""]
                self.api.changed.notify_all()
            self._send(200, {"kind": "Status", "status": "Success"})
        else:
            self._write(kind, space, name, match["plural"], query, sent)

    def _read(self, kind: str, space: str, name: str | None, plural: str, query: dict[str, str]) -> None:
        if name is not None:
            self._send(200, self._found(kind, space, name, plural))
        elif query.get("watch"):
            self._watch(kind, space, query)
        else:
            items = [thing for (has, where, _), thing in list(self.api.objects.items())
                     if has == kind and (not space or where == space) and _selected(thing, query)]
            self._send(200, {"kind": f"{kind}List", "metadata": {"resourceVersion": str(self.api.version)},
                             "items": items})

    def _watch(self, kind: str, space: str, query: dict[str, str]) -> None:
        name = query["fieldSelector"].removeprefix("metadata.name=")
        until = time.monotonic() + float(query["timeoutSeconds"])
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with self.api.changed:
            while time.monotonic() < until and not self.api.down:
                thing = self.api.objects.get((kind, space, name))
                if thing is None or thing["metadata"]["resourceVersion"] != query["resourceVersion"]:
                    line = json.dumps({"type": "MODIFIED", "object": thing or {}}).encode() + b"\n"
                    self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
                    break
                self.api.changed.wait(0.1)
        self.wfile.write(b"0\r\n\r\n")
        self.close_connection = True

    def _log(self, pod: str, query: dict[str, str]) -> None:
        self._found("Pod", "align", pod, "pods")
        lines = [line for line in self.api.logs.get(pod, []) if line[:19] >= query.get("sinceTime", "")[:19]]
        if query.get("follow") and self.api.cut_logs_after is not None:
            lines = lines[: self.api.cut_logs_after]
        self._text(200, "".join(f"{line}\n" for line in lines))

    def _write(
        self, kind: str, space: str, name: str | None, plural: str, query: dict[str, str], sent: Json
    ) -> None:
        if kind == "SelfSubjectAccessReview":
            asked = sent["spec"]["resourceAttributes"]
            resource = asked["resource"] + (f"/{asked['subresource']}" if "subresource" in asked else "")
            self._send(201, {**sent, "status": {"allowed": (asked["verb"], resource) not in self.api.denied}})
            return
        if kind == "Pod" and self.api.quota is not None:
            name, limit = f"{sent['metadata']['generateName']}{self.api.version}", self.api.quota
            memory = sent["spec"]["containers"][0]["resources"]["limits"]["memory"]
            self.api.version += 1
            raise _Refused(403, f'pods "{name}" is forbidden: exceeded quota: {limit[0]}, requested: '
                                f"limits.memory={memory}, used: limits.memory=0, limited: {limit[1]}")
        if space and ("Namespace", "", space) not in self.api.objects:
            raise _Refused(404, f'namespaces "{space}" not found', "namespaces", space)
        with self.api.changed:  # from what is read to what is written, nobody else writes
            if self.headers["Content-Type"] == "application/merge-patch+json":
                made = _merged(self._found(kind, space, name or "", plural), sent)
            else:
                made = {**sent, "kind": kind}
                made["metadata"].setdefault("namespace", space)
                before = self.api.objects.get((kind, space, name or ""))
                if before is not None and "status" in before:
                    made["status"] = before["status"]
            stored = None if query.get("dryRun") == "All" else self.api.put(made)
        self._send(200, made if stored is None else stored)
        if stored is not None:
            self.api.reacts(stored)

    def _found(self, kind: str, space: str, name: str, plural: str) -> Json:
        try:
            return self.api.objects[kind, space, name]
        except KeyError:
            raise _Refused(404, f'{plural} "{name}" not found', plural, name) from None

    def _send(self, code: int, body: Json) -> None:
        self._text(code, json.dumps(body), "application/json")

    def _text(self, code: int, text: str, kind: str = "text/plain") -> None:
        data = text.encode()
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _selected(thing: Json, query: dict[str, str]) -> bool:
    labels = thing["metadata"].get("labels", {})
    for pair in filter(None, query.get("labelSelector", "").split(",")):
        name, _, value = pair.partition("=")
        if labels.get(name) != value:
            return False
    for pair in filter(None, query.get("fieldSelector", "").split(",")):
        path, _, value = pair.partition("=")
        at: Any = thing
        for part in path.split("."):
            at = at.get(part, {})
        if at != value:
            return False
    return True


def _merged(thing: Json, change: Json) -> Json:
    made = deepcopy(thing)
    for key, value in change.items():
        if isinstance(value, dict):
            made[key] = _merged(made.get(key) or {}, value)
        elif value is None:
            made.pop(key, None)
        else:
            made[key] = value
    return made


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[tuple[Api, Path]]:
    """A running server and a kubeconfig for it whose namespace is `align`."""
    api = Api()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"api": api}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "here",
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u", "namespace": "align"}}],
    }
    file = folder / "kubeconfig"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    try:
        yield api, file
    finally:
        server.shutdown()
        server.server_close()
