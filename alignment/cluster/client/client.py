"""`Client`: the few Kubernetes requests that KubeAlign makes, over the `kubernetes` package.

Objects are plain dicts as in their manifests. Writes are server-side applies under the field manager "kubealign". Every
refusal is a ClusterError with the cluster's own reason. An API server that answered once and then goes away is waited
for, and that is said; one that never answered is an error at once. Decides nothing about runs or stages.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

import urllib3
from kubernetes.client.exceptions import ApiException

from alignment.cluster.client.kinds import path_of
from alignment.cluster.client.kubeconfig import connected
from alignment.cluster.client.refusals import ClusterError, cluster_error, is_missing_api, refusal

Object = dict[str, Any]
Objects = list[Object]

FIELD_MANAGER = "kubealign"
PATIENCE = 600.0
"""Seconds for which an API server that has answered before may be away."""
_METADATA_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
_AWAY = (urllib3.exceptions.HTTPError, OSError, ApiException)
_BUSY = (429, 502, 503, 504)


class Client:
    """Requests to one API server, for one namespace. One per command; not shared between threads that write."""

    def __init__(
        self, namespace: str | None = None, context: str | None = None, *,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Read the kubeconfig ($KUBECONFIG, ~/.kube/config), or the pod's own account where there is none.

        Args:
            namespace: default: the context's, else `default`.
            context: default: the kubeconfig's current one.
            say: gets one sentence when the API server is away, and one when it is back.

        Raises:
            ClusterError: no kubeconfig, or no such context.
        """
        self.api, own_namespace, self.context = connected(context)
        self.namespace = namespace or own_namespace
        self.say = say
        self._answered = False
        self.server_time: datetime | None = None
        """The API server's clock in its last answer."""

    # --- objects ---

    def get(self, kind: str, name: str) -> Object:
        """One object. Raises ClusterError (status 404) when there is none."""
        return self.request("GET", self.path(kind, name))

    def find(self, kind: str, name: str) -> Object | None:
        """One object, or None."""
        try:
            return self.get(kind, name)
        except ClusterError as error:
            if error.status == 404 and not is_missing_api(error):
                return None
            raise

    def exists(self, kind: str, name: str) -> bool:
        """Whether the object is there; only its metadata travels, so a Secret's content stays where it is."""
        try:
            self.request("GET", self.path(kind, name), accept=_METADATA_ONLY)
        except ClusterError as error:
            if error.status == 404 and not is_missing_api(error):
                return False
            raise
        return True

    def has(self, kind: str) -> bool:
        """Whether the cluster serves this kind; without the right to list it, it is taken as served."""
        try:
            self.request("GET", self.path(kind), {"limit": "1"})
        except ClusterError as error:
            if error.status == 403:
                return True
            if is_missing_api(error):
                return False
            raise
        return True

    def list(
        self, kind: str, labels: Mapping[str, str] | None = None, fields: str | None = None, *, everywhere: bool = False
    ) -> Objects:
        """Objects of a kind with these labels.

        Args:
            fields: a field selector.
            everywhere: in all namespaces.
        """
        query = {"labelSelector": selector(labels), "fieldSelector": fields or "", "limit": "500"}
        path = path_of(kind, None) if everywhere else self.path(kind)
        found: Objects = []
        while True:
            page = self.request("GET", path, query)
            for item in page["items"]:
                item.setdefault("kind", kind)  # items of a list leave it out
            found += page["items"]
            query["continue"] = page["metadata"].get("continue") or ""
            if not query["continue"]:
                return found

    def apply(self, manifest: Object, *, dry_run: bool = False) -> Object:
        """Create or update by server-side apply; fields that the cluster does not know are refused."""
        query = {"fieldManager": FIELD_MANAGER, "force": "true", "fieldValidation": "Strict"}
        if dry_run:
            query["dryRun"] = "All"
        path = self.path(manifest["kind"], manifest["metadata"]["name"])
        return self.request("PATCH", path, query, manifest, content_type="application/apply-patch+yaml")

    def create(self, manifest: Object, *, dry_run: bool = False) -> Object:
        """Create; for what has no name yet, and for asking what admission would say (`dry_run`)."""
        return self.request("POST", self.path(manifest["kind"]), {"dryRun": "All"} if dry_run else {}, manifest)

    def patch(self, kind: str, name: str, change: Object) -> Object:
        """JSON merge patch of one object."""
        return self.request("PATCH", self.path(kind, name), {"fieldManager": FIELD_MANAGER}, change,
                            content_type="application/merge-patch+json")

    def delete(self, kind: str, name: str) -> bool:
        """Delete with all that it owns, in the background; False when it was not there."""
        try:
            self.request("DELETE", self.path(kind, name), {"propagationPolicy": "Background"})
        except ClusterError as error:
            if error.status == 404 and not is_missing_api(error):
                return False
            raise
        return True

    def changed(self, kind: str, name: str, version: str, seconds: float) -> None:
        """Return when the object differs from resource version `version`, or after `seconds`; either way look again."""
        query = {"watch": "true", "fieldSelector": f"metadata.name={name}", "resourceVersion": version,
                 "timeoutSeconds": str(max(1, round(seconds)))}
        try:
            response = self._send("GET", self.path(kind), query, read=seconds + 10, stream=True)
        except ClusterError as error:
            if error.status == 410:  # the version is too old to watch from: the caller looks again anyway
                return
            raise
        try:
            next(iter(response.stream(1)), None)
        except _AWAY:
            return
        finally:
            response.close()

    def events(self, kind: str, name: str) -> Objects:
        """Events about one object, oldest first."""
        found = self.list("Event", fields=f"involvedObject.kind={kind},involvedObject.name={name}")
        return sorted(found, key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime") or ""))

    def log_lines(
        self, pod: str, container: str | None = None, *, follow: bool = False, since: str | None = None
    ) -> Iterator[str]:
        """A container's log lines, each with its timestamp in front. Ends with the container, or with the connection.

        Args:
            since: RFC 3339 time of the first line wanted.
        """
        query = {"timestamps": "true", "container": container or "", "sinceTime": since or "",
                 "follow": "true" if follow else ""}
        response = self._send("GET", self.path("Pod", pod) + "/log", query, accept="*/*", stream=True)
        pending = b""
        try:
            for piece in response.stream(65536):
                *lines, pending = (pending + piece).split(b"\n")
                yield from (line.decode("utf-8", "replace") for line in lines)
        except _AWAY:
            return  # an unfinished last line comes again with the next call
        finally:
            response.close()
        if pending:
            yield pending.decode("utf-8", "replace")

    def may(self, verb: str, resource: str, group: str = "", *, cluster_wide: bool = False) -> bool:
        """Whether this user may do `verb` to `resource` (SelfSubjectAccessReview); `pods/log` names a sub-resource."""
        name, _, sub = resource.partition("/")
        attributes = {"verb": verb, "resource": name, "group": group, **({"subresource": sub} if sub else {}),
                      **({} if cluster_wide else {"namespace": self.namespace})}
        answer = self.create({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
                              "metadata": {}, "spec": {"resourceAttributes": attributes}})
        return bool(answer["status"]["allowed"])

    # --- requests ---

    def path(self, kind: str, name: str | None = None) -> str:
        """The URL path of a kind in this client's namespace, or of one object."""
        return path_of(kind, self.namespace, name)

    def request(
        self, method: str, path: str, query: Mapping[str, str] | None = None, body: Object | None = None, *,
        content_type: str = "application/json", accept: str = "application/json",
    ) -> Object:
        """One request and its JSON answer, repeated while the API server is away.

        Raises:
            ClusterError: it refused, or stayed away.
        """
        response = self._send(method, path, query or {}, body, content_type=content_type, accept=accept)
        made: Object = json.loads(response.data)
        return made

    def _send(
        self, method: str, path: str, query: Mapping[str, str], body: Object | None = None, *,
        content_type: str = "application/json", accept: str = "application/json", read: float = 30.0,
        stream: bool = False,
    ) -> Any:
        """The raw answer, its body read unless `stream`; `read` is how long a silence may last, in seconds."""
        began, pause = time.monotonic(), 0.5
        while True:
            try:
                status, response = self._once(method, path, query, body, content_type, accept, read)
                text = b"" if stream and status < 300 else response.data
                busy = status in _BUSY or (status == 500 and b"etcdserver" in text)
                trouble = f"it answers {status}" if busy else None
            except _AWAY as error:
                status, response, trouble = 0, None, _in_words(error)
            if trouble is None:
                break
            waited = time.monotonic() - began
            if not self._answered or waited > PATIENCE:
                raise cluster_error(
                    f"the API server does not answer: {trouble}", where=self.api.configuration.host,
                    found=f"context {self.context}",
                    hint="is the cluster up, and is this the right context? kubectl config get-contexts")
            if pause >= 1:
                self.say(f"the API server is away ({trouble}); trying again, {waited:.0f} s so far")
            time.sleep(pause)
            pause = min(pause * 2, 15.0)
        if pause > 1:
            self.say("the API server is back")
        self._answered = True
        if status < 300:
            return response
        raise refusal(status, response.data.decode("utf-8", "replace"), verb=method, path=path)

    def _once(
        self, method: str, path: str, query: Mapping[str, str], body: Object | None, content_type: str, accept: str,
        read: float,
    ) -> tuple[int, Any]:
        headers = {"Accept": accept, **({"Content-Type": content_type} if body is not None else {})}
        asked = [(name, value) for name, value in query.items() if value]
        request = self.api.param_serialize(method, path, query_params=asked, header_params=headers, body=body,
                                           auth_settings=["BearerToken"])
        response = self.api.call_api(*request, _request_timeout=(5.0, read)).response
        date = response.headers.get("Date")
        self.server_time = parsedate_to_datetime(date) if date else None
        return int(response.status), response


def needs_namespace(client: Client) -> None:
    """Raises ClusterError where the client's namespace does not exist: a list in it would just be empty."""
    try:
        there = client.exists("Namespace", client.namespace)
    except ClusterError as error:
        if error.status != 403:
            raise
        there = True
    if not there:
        raise cluster_error("the namespace does not exist", where="--namespace", found=client.namespace,
                            hint=f"kubectl create namespace {client.namespace}, or name another with -n")


def selector(labels: Mapping[str, str] | None) -> str:
    """Labels as a label selector."""
    return ",".join(f"{name}={value}" for name, value in (labels or {}).items())


def _in_words(error: Exception) -> str:
    """The innermost reason: `[Errno 111] Connection refused` rather than three wrappings of it."""
    reason = getattr(error, "reason", None)
    return _in_words(reason) if isinstance(reason, Exception) else str(error)[:200]
