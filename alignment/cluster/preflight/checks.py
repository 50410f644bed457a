"""What can be known to fail on a cluster before a run is sent there: every check is made, none stops the next.

Asks the API server (definitions, permissions, what admission says to the run's own manifests, quota, nodes, secrets,
volumes, queue), then one pod (`probing`). Changes nothing that lasts. Needs no rights of an administrator: what may not
be looked at is said as a warning.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from alignment.cluster.client.client import Client, Object
from alignment.cluster.client.refusals import KUBERAY, ClusterError, is_missing_api
from alignment.cluster.manifests.labels import STAGE_LABEL
from alignment.cluster.manifests.ray_service import ray_service
from alignment.cluster.manifests.submission import dry_run
from alignment.cluster.preflight.capacity import Ask, ask_of, never_fits, over_quota, pretty, rooms, unplaced
from alignment.cluster.preflight.finding import Finding, fail, ok, warn
from alignment.cluster.preflight.needs import queue, secrets, volumes
from alignment.cluster.preflight.permissions import permissions
from alignment.cluster.preflight.probing import look_inside, pod_failed
from alignment.config import Profile, Run, Serving, served
from alignment.errors import KubeAlignError

OPERATOR = "kubealign-operator"
"""The chart's Deployment."""
_EXCEEDED = re.compile(r"exceeded quota: [^,]+")
_BEFORE_A_POD = ("permissions", "admission", "quota", "secrets", "volumes")
"""Where one of these fails, a pod would not start either, and waiting for it would say less."""


def preflight(
    run: Run, profile: Profile, client: Client, *, target: str = "kubernetes",
    say: Callable[[str], None] = lambda text: None,
) -> list[Finding]:
    """Look at everything that `run` will need on the cluster.

    Args:
        target: rayjob, run or job, as in submit; kubernetes: rayjob, with warnings for what the others lack.
        say: gets a sentence where something takes time.

    Raises:
        KubeAlignError: the run itself cannot go to a cluster, or the API server does not answer.
    """
    cluster = profile.cluster
    assert cluster is not None
    manifests = dry_run(run, profile, namespace=client.namespace, target="rayjob")[1:]
    serving = [] if run.serve is None else [_serving(run, profile, client.namespace)]
    found = list(_server(client))
    if any(item.state == "fail" for item in found):
        return found
    checks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("permissions", lambda: permissions(client, target)),
        ("kuberay", lambda: _kuberay(client, run)),
        ("operator", lambda: _operator(client, target)),
        ("manifests", lambda: _manifests(client, manifests)),
        ("alignmentrun", lambda: _alignment_run(client, run, profile, target)),
        ("admission", lambda: _admission(client, [*manifests, *serving])),
        ("quota", lambda: _quota(client, [*manifests, *serving])),
        ("capacity", lambda: _capacity(client, [*manifests, *serving])),
        ("secrets", lambda: secrets(client, run, cluster)),
        ("volumes", lambda: volumes(client, run, profile, cluster)),
        ("queue", lambda: queue(client, cluster)),
    ]
    for topic, check in checks:
        try:
            found += check()
        except ClusterError as error:
            make = warn if error.status == 403 else fail
            text = f"not looked at: {error.problem}" if make is warn else error.problem
            found.append(make(topic, text, error.hint or ""))
        except KubeAlignError as error:
            found.append(fail(topic, error.problem, error.hint or ""))
    hopeless = [item.topic for item in found if item.state == "fail" and item.topic in _BEFORE_A_POD]
    if hopeless:
        return [*found, warn("pod", "none was started to look at storage, images, DNS, versions and policies",
                             f"mend {', '.join(dict.fromkeys(hopeless))} first")]
    try:
        return found + look_inside(run, profile, client, say)
    except ClusterError as error:
        return [*found, pod_failed(error)]


def stage_asks(manifest: Object) -> list[Ask]:
    """The pods of one stage, or those that serve: the head and its workers."""
    ray = _ray_of(manifest)
    return [ask_of("head", ray["headGroupSpec"]["template"], 1),
            *(ask_of("worker", group["template"], group["replicas"]) for group in ray.get("workerGroupSpecs", []))]


def _ray_of(manifest: Object) -> Object:
    ray: Object = manifest["spec"]["rayClusterConfig" if manifest["kind"] == "RayService" else "rayClusterSpec"]
    return ray


def _called(manifest: Object) -> str:
    stage = manifest["metadata"]["labels"].get(STAGE_LABEL)
    return "serve" if stage is None else f"stage {stage}"


def _serving(run: Run, profile: Profile, namespace: str) -> Object:
    """The RayService, of models that are not made yet."""
    assert run.serve is not None
    serving = Serving(store=profile.applied(run).store, models=served(run), compute=profile.compute, serve=run.serve)
    return ray_service(serving, profile, run=run.name, revision=1, namespace=namespace)


def _server(client: Client) -> Iterator[Finding]:
    version = client.request("GET", "/version")["gitVersion"]
    yield ok("api server", f"Kubernetes {version}, context {client.context}")
    if client.server_time is not None:
        apart = abs((datetime.now(UTC) - client.server_time).total_seconds())
        if apart > 30:
            yield warn("clock", f"the API server and this machine differ by {apart:.0f} s", "set the clock (NTP)")
    try:
        space = client.get("Namespace", client.namespace)
    except ClusterError as error:
        if error.status == 404:
            yield fail("namespace", f"{client.namespace} does not exist",
                       f"kubectl create namespace {client.namespace}, or name another with -n")
        else:
            yield warn("namespace", f"{client.namespace}, not looked at: {error.problem}")
        return
    level = (space["metadata"].get("labels") or {}).get("pod-security.kubernetes.io/enforce")
    yield ok("namespace", f"{client.namespace}, Pod Security {level or 'not enforced'}")


def _kuberay(client: Client, run: Run) -> Iterator[Finding]:
    if not client.has("RayJob"):
        yield fail("kuberay", "the cluster has no RayJobs: KubeRay is not installed", KUBERAY)
        return
    if run.serve is not None and not client.has("RayService"):
        yield fail("kuberay", "the cluster has no RayServices, which serve a run's models", KUBERAY)
    found = client.list("Deployment", fields="metadata.name=kuberay-operator", everywhere=True)
    images = [item["spec"]["template"]["spec"]["containers"][0]["image"] for item in found]
    if any(item.get("status", {}).get("readyReplicas") for item in found):
        yield ok("kuberay", f"its operator runs ({', '.join(images)})")
        yield from _let_in(client, {item["metadata"]["namespace"] for item in found})
    elif found:
        yield fail("kuberay", f"its operator is not ready ({', '.join(images)})",
                   f"kubectl describe deployment kuberay-operator -n {found[0]['metadata']['namespace']}")
    else:
        yield warn("kuberay", "no Deployment is called kuberay-operator", f"where it has no other name: {KUBERAY}")


def _let_in(client: Client, spaces: set[str]) -> Iterator[Finding]:
    """Whether the chart's policy lets KubeRay's operator hand a head its job."""
    policy = client.find("NetworkPolicy", "kubealign-head")
    peers = [peer for rule in (policy or {}).get("spec", {}).get("ingress", []) for peer in rule.get("from", [])]
    named = {peer.get("namespaceSelector", {}).get("matchLabels", {}).get("kubernetes.io/metadata.name")
             for peer in peers}
    if policy is not None and not spaces & named:
        yield fail("kuberay", f"its operator is in namespace {', '.join(sorted(spaces))}, and NetworkPolicy kubealign-"
                   "head does not let that reach port 8265 of Ray's heads: no stage would start",
                   f"helm upgrade with --set networkPolicy.kuberayNamespace={min(spaces)}")


def _operator(client: Client, target: str) -> Iterator[Finding]:
    if target not in ("run", "kubernetes"):
        return
    make = fail if target == "run" else warn
    install = f"helm install kubealign charts/kubealign -n {client.namespace}"
    if not client.has("AlignmentRun"):
        yield make("operator", "the cluster has no AlignmentRuns, so --target run does not work", install)
        return
    found = client.find("Deployment", OPERATOR)
    if found is not None and found.get("status", {}).get("readyReplicas"):
        yield ok("operator", "KubeAlign's operator runs in this namespace")
    else:
        yield make("operator", f"KubeAlign's operator does not run in namespace {client.namespace}",
                   f"kubectl describe deployment {OPERATOR} -n {client.namespace}" if found else install)


def _manifests(client: Client, manifests: list[Object]) -> Iterator[Finding]:
    for job in manifests:
        try:
            client.apply(job, dry_run=True)
        except ClusterError as error:
            if error.status == 403 or is_missing_api(error):
                raise
            yield fail("manifests", f"RayJob {job['metadata']['name']}: {error.problem}"
                       + (f": {error.found}" if error.found else ""), error.hint or "")
            return
    yield ok("manifests", f"the API server takes all {len(manifests)} RayJobs")


def _alignment_run(client: Client, run: Run, profile: Profile, target: str) -> Iterator[Finding]:
    if target not in ("run", "kubernetes") or not client.has("AlignmentRun"):
        return
    body = dry_run(run, profile, namespace=client.namespace, target="run")[1]
    try:
        client.apply(body, dry_run=True)
    except ClusterError as error:
        if error.status == 403:
            raise
        make = fail if target == "run" else warn
        yield make("alignmentrun", error.problem + (f": {error.found}" if error.found else ""), error.hint or "")
        return
    yield ok("alignmentrun", "the API server takes it")


def _admission(client: Client, manifests: list[Object]) -> Iterator[Finding]:
    """What would be said to the pods themselves: Pod Security, limit ranges, quota, webhooks."""
    if not client.may("create", "pods"):
        yield warn("admission", "not tried: this user may not create pods, KubeRay may")
        return
    refused: dict[str, tuple[str, str]] = {}
    for job in manifests:
        ray = _ray_of(job)
        templates = [ray["headGroupSpec"]["template"], *(group["template"] for group in ray["workerGroupSpecs"])]
        for template in templates:
            pod = {"apiVersion": "v1", "kind": "Pod", **template,
                   "metadata": {**template["metadata"], "generateName": "kubealign-preflight-"}}
            try:
                client.create(pod, dry_run=True)
            except ClusterError as error:
                quota = _EXCEEDED.search(error.problem)  # amounts differ from stage to stage, and a pod's name always
                refused.setdefault(quota[0] if quota else error.problem, (error.problem, job["metadata"]["name"]))
    for problem, name in refused.values():
        yield fail("admission", f"a pod of {name}: {problem}", "raise the quota or limit range, or ask for less in the "
                   "profile" if "quota" in problem or "LimitRange" in problem or "usage per" in problem else "")
    if not refused:
        yield ok("admission", "the namespace takes the pods")


def _quota(client: Client, manifests: list[Object]) -> Iterator[Finding]:
    quotas = client.list("ResourceQuota")
    fine = True
    for quota in quotas:
        worst: dict[str, tuple[float, float, str]] = {}
        for job in manifests:
            for name, (needs, left) in over_quota(stage_asks(job), quota).items():
                if needs > worst.get(name, (0.0, 0.0, ""))[0]:
                    worst[name] = (needs, left, _called(job))
        for name, (needs, left, called) in worst.items():
            fine = False
            yield fail("quota", f"{quota['metadata']['name']} has {pretty(name, max(left, 0))} {name} left, and "
                       f"{called} needs {pretty(name, needs)}",
                       "raise the ResourceQuota, or ask for less in the profile")
    if fine:
        yield ok("quota", "every stage fits" if quotas else "the namespace has none")


def _capacity(client: Client, manifests: list[Object]) -> Iterator[Finding]:
    where = rooms(client.list("Node"), client.list("Pod", everywhere=True))
    grows = client.exists("CustomResourceDefinition", "nodepools.karpenter.sh") or any(
        client.list("ConfigMap", fields="metadata.name=cluster-autoscaler-status", everywhere=True))
    make = warn if grows else fail
    note = "; an autoscaler is there, which may bring such a node" if grows else ""
    worst: dict[str, tuple[Callable[..., Finding], str]] = {}
    for job in manifests:
        called, asks = _called(job), stage_asks(job)
        never = next((why for ask in asks if (why := never_fits(ask, where))), None)
        if never:
            worst.setdefault(f"{never}{note}", (make, called))
        elif missed := unplaced(asks, where, empty=True):
            worst.setdefault(f"of its {sum(ask.count for ask in asks)} pods {len(missed)} find no place even on an "
                             f"empty cluster ({', '.join(dict.fromkeys(missed))}){note}", (make, called))
        elif missed := unplaced(asks, where, empty=False):
            worst.setdefault(f"{len(missed)} of its pods have to wait for what runs now "
                             f"({', '.join(dict.fromkeys(missed))})", (warn, called))
        elif job["kind"] == "RayService" and (missed := unplaced([*asks, *asks], where, empty=True)):
            worst.setdefault(f"while other models take over there are its pods twice, and {len(missed)} of these find "
                             f"no place even on an empty cluster{note}", (warn, called))
    for text, (state, called) in worst.items():
        closed = "takes new pods now" in text
        yield state("capacity", f"{called}: {text}", "kubectl uncordon NODE, or see why it is not ready" if closed
                    else "take another profile, or ask for less in this one" if state is not warn else "")
    if not worst:
        yield ok("capacity", f"every stage fits what is free on {sum(not room.closed for room in where)} nodes")
