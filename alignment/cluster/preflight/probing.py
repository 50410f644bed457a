"""The part of `kubealign preflight` that only a pod can see: one Job like a stage's pods, and what its answers mean.

The Job's first container is the control image, its second the train image with the storage, /dev/shm and the bundle of
the run (`inside`). When it has looked at all, it is denied its egress, to see whether NetworkPolicies do anything.
Everything that is made here is deleted again.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any

from alignment.cluster.client.client import Client, Object
from alignment.cluster.client.refusals import ClusterError
from alignment.cluster.manifests.bundle import RUN_FILE, bundle
from alignment.cluster.manifests.labels import COMPONENT_LABEL, RUN_LABEL, labels
from alignment.cluster.manifests.pods import RUN_FOLDER, ray_pod
from alignment.cluster.preflight.capacity import amount, pretty
from alignment.cluster.preflight.finding import Finding, fail, ok, warn
from alignment.cluster.preflight.inside import versions
from alignment.cluster.storage.truth import lent
from alignment.cluster.watch.wait import job_pod, wait_job
from alignment.config import Cluster, Pod, Profile, Run
from alignment.pipeline.keys import keys

PROBE_LABEL = "kubealign.dev/probe"
_LIMIT = 900.0
"""Seconds for the whole probe; a first pull of the train image takes minutes."""


def probe_job(run: Run, profile: Profile, *, name: str, namespace: str, files: str) -> Object:
    """The Job. Like a stage's pod in security, volumes and environment, but small and without GPUs.

    Args:
        files: name of the ConfigMap with the bundle.
    """
    cluster = _cluster(profile)
    like = largest_shm(run, profile)
    # What is in /dev/shm counts as memory, so its size is only given where the limit allows it.
    memory = f"{int(amount(like.shm) // 2**20) + 1024}Mi"
    pod = like.model_copy(update={"cpu": "500m", "memory": memory, "gpus": 0, "extra_resources": {}, "scratch": "1Gi"})
    # As a pod that looks into the storage, so that the chart's policies let it do that.
    mark = {**labels(run.name, component="store"), PROBE_LABEL: name}
    template = ray_pod(pod, cluster, run, container="probe", labels=mark, config_map=files, attempt="0")
    main = template["spec"]["containers"][0]
    for key in ("readinessProbe", "livenessProbe", "lifecycle", "ports"):
        main.pop(key, None)
    main["command"] = ["python", "-m", "alignment.cluster.preflight.inside", cluster.storage.url,
                       f"{RUN_FOLDER}/{RUN_FILE}"]
    main["resources"]["requests"] = {**main["resources"]["requests"], "memory": "1Gi"}
    control = {**main, "name": "control", "image": cluster.images.control, "command": ["kubealign", "--version"]}
    template["spec"].update(initContainers=[control], restartPolicy="Never")
    return {
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name, "namespace": namespace, "labels": mark},
        "spec": {"backoffLimit": 0, "activeDeadlineSeconds": int(_LIMIT), "ttlSecondsAfterFinished": 600,
                 "template": template},
    }


def deny_egress(name: str, namespace: str) -> Object:
    """A NetworkPolicy under which the probe's pod may connect to nothing."""
    return {
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace, "labels": labels(component="store")},
        "spec": {"podSelector": {"matchLabels": {PROBE_LABEL: name}}, "policyTypes": ["Egress"], "egress": []},
    }


def largest_shm(run: Run, profile: Profile) -> Pod:
    """The pod of the run's stages that asks for most /dev/shm."""
    return max((profile.pod_of(stage) for stage in run.stages), key=lambda pod: amount(pod.shm))


def look_inside(run: Run, profile: Profile, client: Client, say: Callable[[str], None]) -> list[Finding]:
    """Run the probe and say what it saw.

    Raises:
        ClusterError: its pod does not start; that is a finding too, and the caller's to word.
    """
    name, space = f"kubealign-probe-{secrets.token_hex(3)}", client.namespace
    denies = all(
        client.may(verb, kind, group) for verb, kind, group in (
            ("create", "networkpolicies", "networking.k8s.io"), ("delete", "networkpolicies", "networking.k8s.io"),
            ("patch", "pods", "")))
    with lent(client, bundle(run, profile), run) as files:
        try:
            client.apply(probe_job(run, profile, name=name, namespace=space, files=files))
            say("a pod of the train image looks at the storage, DNS and policies; a first pull of it may take minutes")
            wait_job(client, name, limit=_LIMIT, on_change=say, started=True)
            seen = _answers(client, name, denies)
        finally:
            client.delete("Job", name)
            if denies:  # only then was one made, and only then may it be deleted
                client.delete("NetworkPolicy", name)
    return list(judged(seen, run, profile, denies=denies))


def _answers(client: Client, job: str, denies: bool) -> dict[str, Any]:
    """The probe's answers by name, `error NAME` for those that failed, and `skew`, its clock minus this machine's."""
    pod, seen = job_pod(client, job), dict[str, Any]()
    assert pod is not None
    for line in client.log_lines(pod, "probe", follow=True):
        answer = _parsed(line)
        for name, value in answer.items():
            seen[name] = value
        if "error" in answer:
            seen[f"error {next(iter(answer))}"] = seen.pop("error")
        if answer.get("time"):
            seen["skew"] = answer["time"] - time.time()
        if answer.get("ready") and denies:
            client.apply(deny_egress(job, client.namespace))
            # Policies add up: what lets a pod of ours reach the storage must select it no longer.
            client.patch("Pod", pod, {"metadata": {"labels": {
                COMPONENT_LABEL: None, RUN_LABEL: None, "app.kubernetes.io/part-of": None}}})
    if "ready" not in seen:
        seen["printed"] = "\n".join(line.partition(" ")[2] for line in client.log_lines(pod, "probe"))[-800:]
    return seen


def judged(seen: dict[str, Any], run: Run, profile: Profile, *, denies: bool) -> Iterator[Finding]:
    """What the probe's answers mean.

    Args:
        seen: see `_answers`.
        denies: whether the pod was denied its egress at the end.
    """
    if "ready" not in seen:
        yield fail("pod", f"the probe's pod ended too early: {seen.get('printed', '')}",
                   "look at images.train: is it built from docker/Dockerfile of this version?")
    else:
        yield ok("images", "both were pulled and start")
    yield from _versions(seen, profile.applied(run))
    if "skew" in seen:
        skew = abs(seen["skew"])
        make, much = (ok, "") if skew < 5 else (warn if skew < 60 else fail, "run an NTP client on nodes and here")
        yield make("clock", f"nodes and this machine differ by {skew:.1f} s", much)
    if seen.get("shm") is not None:
        asked = amount(largest_shm(run, profile).shm)
        text = f"/dev/shm has {pretty('memory', seen['shm'])}, the profile says {pretty('memory', asked)}"
        yield ok("shm", text) if seen["shm"] >= 0.95 * asked else fail(
            "shm", text, "raise the pod's memory, which bounds it, or lower shm in the profile")
    if "dns" in seen:
        yield ok("dns", f"kubernetes.default.svc is {seen['dns']}") if seen["dns"] else fail(
            "dns", seen.get("error dns", ""), "look at the cluster's DNS, and at policies that deny port 53")
    if "storage" in seen:
        url = _cluster(profile).storage.url
        steps = ", ".join(f"{step} {seconds:.2f} s" for step, seconds in (seen["storage"] or {}).items())
        yield ok("storage", f"{url}: {steps}") if seen["storage"] else fail(
            "storage", seen.get("error storage", ""), "see docs/kubernetes.md, Storage")
    yield from _policies(seen, denies)


def _versions(seen: dict[str, Any], run: Run) -> Iterator[Finding]:
    here, there = versions(), seen.get("versions") or {}
    for name, mine in here.items():
        theirs = there.get(name)
        if theirs is None or _alike(name, theirs, mine):
            continue
        text = f"{name} {theirs} in the image, {mine} here"
        yield warn("versions", text, "ray job submit wants the same Ray and Python" if name != "kubealign" else
                   "build the images from this checkout, or install the image's version here")
    if there and all(name not in there or _alike(name, there[name], mine) for name, mine in here.items()):
        yield ok("versions", ", ".join(f"{name} {value}" for name, value in there.items())
                 + ("" if "ray" in here else "; no Ray here to compare with"))
    if "keys" in seen:
        known = {name: key.key for name, key in keys(run).items()}
        other = [name for name, key in known.items() if (seen["keys"] or {}).get(name) != key]
        if other:
            yield fail("digests", seen.get("error keys") or f"the image computes other digests for {', '.join(other)}",
                       "the image's code differs from this one's: build it anew, or finished stages will not be found")
        else:
            yield ok("digests", f"the same in the image and here, for {len(known)} stages")


def _alike(name: str, theirs: str, mine: str) -> bool:
    """Python's third number does not matter to Ray."""
    return theirs.split(".")[:2] == mine.split(".")[:2] if name == "python" else theirs == mine


def _policies(seen: dict[str, Any], denies: bool) -> Iterator[Finding]:
    if seen.get("open") is False:
        yield ok("policies", "NetworkPolicies are enforced: this namespace's pods cannot even reach the API server")
    elif not denies:
        yield warn("policies", "not tried whether NetworkPolicies are enforced", "this needs the verbs create "
                   "networkpolicies and patch pods")
    elif seen.get("denied") is not None:
        yield ok("policies", f"NetworkPolicies are enforced, after {seen['denied']:.0f} s")
    elif "denied" in seen:
        yield warn("policies", "NetworkPolicies are NOT enforced: they are accepted and do nothing, so every pod of "
                   "the cluster can speak to Ray's ports; only the token keeps it out",
                   "use a network plugin that enforces them (Calico, Cilium)")


def _parsed(line: str) -> dict[str, Any]:
    try:
        answer = json.loads(line.partition(" ")[2])
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _cluster(profile: Profile) -> Cluster:
    assert profile.cluster is not None
    return profile.cluster


def pod_failed(error: ClusterError) -> Finding:
    """The finding for a probe whose pod did not start."""
    text = error.problem + (f" ({error.found})" if error.found else "")
    if "no node has enough free" in text:
        return warn("pod", f"there is no room now for one that looks at storage, images, DNS and policies: {text}",
                    "look again when there is")
    if "cannot be had" in text:
        return fail("images", text, "make images, load or push them, and name them in the profile")
    return fail("pod", text, error.hint or "mend it and look again: no stage would start either")
