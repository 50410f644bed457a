"""The client against a server that speaks Kubernetes' paths: refusals in words, an API server that goes away."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment.cluster.client import client as client_module
from alignment.cluster.client.client import Client
from alignment.cluster.client.refusals import ClusterError, is_missing_api, refusal
from tests.cluster.api_server import Api, Json
from tests.cluster.objects import later, rayjob


def test_objects_come_and_go(client: Client) -> None:
    assert client.namespace == "align"
    made = client.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "labels": {"x": "1"}},
                         "data": {"k": "v"}})
    assert made["data"] == {"k": "v"}
    assert client.find("ConfigMap", "a") == client.get("ConfigMap", "a")
    assert [item["metadata"]["name"] for item in client.list("ConfigMap", {"x": "1"})] == ["a"]
    assert client.list("ConfigMap", {"x": "2"}) == []
    assert client.delete("ConfigMap", "a")
    assert not client.delete("ConfigMap", "a")
    assert client.find("ConfigMap", "a") is None


def test_apply_names_its_manager_and_is_strict(client: Client, api: Api) -> None:
    client.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}})
    assert api.requests[-1].startswith("PATCH /api/v1/namespaces/align/configmaps/a?")
    for part in ("fieldManager=kubealign", "fieldValidation=Strict", "force=true"):
        assert part in api.requests[-1]


def test_refusals_name_what_is_missing(client: Client, api: Api) -> None:
    api.denied = {("create", "rayjobs"), ("patch", "rayjobs")}
    with pytest.raises(ClusterError, match=r"dev may not patch rayjobs\.ray\.io in namespace align") as refused:
        client.apply(rayjob())
    assert refused.value.status == 403
    elsewhere = Client("nowhere")
    with pytest.raises(ClusterError, match="the namespace does not exist") as absent:
        elsewhere.apply({"kind": "ConfigMap", "metadata": {"name": "a"}})
    assert absent.value.found == "nowhere"
    api.absent = {"ray.io"}
    asks: list[Callable[[], Any]] = [lambda: client.find("RayJob", "x"), lambda: client.list("RayJob"),
                                     lambda: client.delete("RayJob", "x")]
    for ask in asks:
        with pytest.raises(ClusterError, match="does not have KubeRay") as missing:
            ask()
        assert is_missing_api(missing.value)
        assert "helm install kuberay-operator" in str(missing.value)
    assert not client.has("RayJob")
    assert client.has("ConfigMap")


def test_wrong_context_and_no_kubeconfig(api: Api, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="no such context") as wrong:
        Client(context="there")
    assert "here" in (wrong.value.expected or "")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(ClusterError, match="there is no kubeconfig"):
        Client()
    broken = tmp_path / "broken"
    broken.write_text("contexts: 3")
    monkeypatch.setenv("KUBECONFIG", str(broken))
    with pytest.raises(ClusterError, match="the kubeconfig cannot be used"):
        Client()


def test_a_server_that_never_answered_is_an_error_at_once(client: Client, api: Api) -> None:
    api.down = True
    began = time.monotonic()
    with pytest.raises(ClusterError, match="does not answer") as gone:
        client.get("ConfigMap", "a")
    assert time.monotonic() - began < 2
    assert "get-contexts" in (gone.value.hint or "")


def test_a_server_that_goes_away_is_waited_for(client: Client, api: Api, said: list[str]) -> None:
    client.apply({"kind": "ConfigMap", "metadata": {"name": "a"}})
    api.down = True
    later(2.5, lambda: setattr(api, "down", False))
    assert client.get("ConfigMap", "a")["metadata"]["name"] == "a"
    assert any("the API server is away" in sentence for sentence in said)
    assert said[-1] == "the API server is back"


def test_patience_ends(client: Client, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "PATIENCE", 1.0)
    client.list("ConfigMap")
    api.down = True
    with pytest.raises(ClusterError, match="does not answer"):
        client.list("ConfigMap")


@pytest.mark.parametrize(("status", "body", "expected"), [
    (403, {"message": 'pods "x" is forbidden: exceeded quota: q, requested: cpu=2, used: cpu=1, limited: cpu=2'},
     "refused on admission: .*exceeded quota"),
    (500, {"message": "failed to create typed patch object (align/x; ray.io/v1, Kind=RayJob): "
                      ".spec.preRunningDeadlineSeconds: field not declared in schema"}, "does not know a field"),
    (400, {"message": 'strict decoding error: unknown field "spec.typo"'}, "does not know a field"),
    (401, {"message": "Unauthorized"}, "does not know who asks"),
    (422, {"message": "spec.entrypoint: Required value"}, "422: spec.entrypoint"),
])
def test_refusals_in_words(status: int, body: Json, expected: str) -> None:
    import json

    error = refusal(status, json.dumps({"kind": "Status", **body}), verb="PATCH", path="/apis/ray.io/v1/x")
    assert error.status == status
    with pytest.raises(ClusterError, match=expected):
        raise error


@pytest.mark.parametrize(("group", "command"), [
    ("ray.io", "helm upgrade --install kuberay-operator"), ("kubealign.dev", "helm upgrade kubealign charts/kubealign"),
])
def test_an_old_definition_is_upgraded_by_its_own_chart(group: str, command: str) -> None:
    body = '{"kind": "Status", "message": ".spec.new: field not declared in schema"}'
    error = refusal(500, body, verb="PATCH", path=f"/apis/{group}/v1/namespaces/align/x/y")
    assert command in (error.hint or "")
    other = refusal(500, body, verb="PATCH", path="/apis/apps/v1/namespaces/align/deployments/y")
    assert other.expected == "a newer version of apps"
    assert other.hint is None
