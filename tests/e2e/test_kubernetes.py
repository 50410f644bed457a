"""A run on a real cluster as a user would send it: chart, operator, KubeRay, our images, artifacts in S3.

What has to be there: tests/e2e/cluster_helpers.py. The tests share one namespace and one finished run and stand in the
order in which a user would go; `make test-e2e` runs them. Two cores and 12 GiB are enough.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import yaml

from alignment.cluster.client.client import Object
from alignment.cluster.client.refusals import ClusterError
from alignment.cluster.manifests.alignment_run import status_of
from alignment.cluster.manifests.labels import COMPONENT_LABEL, labels
from alignment.cluster.watch.wait import head_pod
from alignment.config import load_run
from alignment.pipeline.keys import keys
from tests.e2e.cluster_helpers import CANARY, CHART, CRD, ROOT, World, world
from tests.waiting import until

pytestmark = [pytest.mark.k8s, pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1800)]
TINY = "configs/runs/tiny.yaml"
EPOCHS = "sft.epochs=40"
"""Long enough to be disturbed in the middle."""
LONG = ("--set", EPOCHS)
STAGES = ["base", "seed", "sft", "rm", "rs", "sft2", "dpo", "eval"]
STEPS = re.compile(r"sft: (\d+) of \d+ steps")
GPU = "nvidia.com/gpu"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("e2e")) as made:
        yield made


@pytest.fixture(scope="module")
def finished(place: World) -> dict[str, Any]:
    """The whole run, made by the operator; stage -> manifest."""
    done = place.kubealign("submit", TINY, "--target", "run", "--wait", *LONG, seconds=1700)
    assert done.code == 0, f"{done}\n{place.pods()}"
    assert "sft: " in done.out
    assert "Reporting training result" not in done.out, "Ray's own notes are not for the user"
    return place.manifests(TINY, *LONG)


def short(place: World, name: str, epochs: int | None = None) -> str:
    """A run file with the stages up to sft; gives its path. The same epochs, the same keys."""
    tree = yaml.safe_load((ROOT / TINY).read_text(encoding="utf-8"))
    tree = {**tree, "name": name, "stages": tree["stages"][:3], "aims": []}
    tree["stages"][2]["epochs"] = epochs or int(EPOCHS.partition("=")[2])
    file = f"run-{name}.yaml"
    (place.folder / file).write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return file


def remember(place: World) -> None:
    """Keep what the pods that live now have printed, for the search for the canary."""
    for pod in place.client.list("Pod"):
        for status in pod["status"].get("containerStatuses", []):
            if status.get("started") or status.get("state", {}).get("terminated"):
                with contextlib.suppress(ClusterError):  # a pod that goes just now
                    place.said += place.client.log_lines(pod["metadata"]["name"], status["name"])


def ray_pods(place: World, kind: str, run: str = "short") -> list[Object]:
    """Live Ray pods (head or worker) of a run."""
    found = place.client.list("Pod", {"kubealign.dev/run": run, "ray.io/node-type": kind})
    return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]
            and pod["status"].get("phase") in ("Pending", "Running")]


# --- a run ---


def test_preflight_finds_nothing_in_the_way(place: World) -> None:
    done = place.kubealign("preflight", TINY, *LONG)
    assert done.code == 0, done
    assert re.search(r"\b0 fail", done.out), done
    assert "KubeAlign's operator runs in this namespace" in " ".join(done.out.split()), done
    remember(place)


def test_every_stage_of_the_run_has_its_artifact_and_there_is_a_report(
    place: World, finished: dict[str, Any]
) -> None:
    assert list(finished) == STAGES
    assert all(finished.values()), finished
    body = place.client.get("AlignmentRun", "tiny")
    status = status_of(body)
    assert (status.phase, status.finished) == ("Succeeded", "8/8")
    assert {row.name: row.digest for row in status.stages} == {
        name: manifest["digest"] for name, manifest in finished.items()}
    there = place.objects("runs")
    for manifest in finished.values():
        assert f"artifacts/{manifest['key']}/manifest.json" in there
        assert {f"artifacts/{manifest['key']}/{name}" for name in manifest["files"]} <= set(there)
    assert "runs/tiny/report.html" in there
    remember(place)


def test_the_digests_are_those_of_this_machine(
    place: World, finished: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place.folder)
    known = keys(load_run(TINY, [EPOCHS]))
    assert {name: manifest["key"] for name, manifest in finished.items()} == {
        name: key.key for name, key in known.items()}


def test_two_workers_in_two_pods_trained_sft(place: World, finished: dict[str, Any]) -> None:
    groups = [job["spec"]["rayClusterSpec"]["workerGroupSpecs"] for job in place.client.list("RayJob", labels("tiny"))
              if job["metadata"]["labels"]["kubealign.dev/stage"] == "sft"]
    if groups:  # gone where `keep_finished` has passed
        assert [group["replicas"] for group in groups[0]] == [2]
    (row,) = [row for row in status_of(place.client.get("AlignmentRun", "tiny")).stages if row.name == "sft"]
    assert row.tries == 1
    assert finished["sft"]["metrics"]["train_loss"] > 0


def test_status_report_and_logs_work_when_the_pods_are_gone(place: World, finished: dict[str, Any]) -> None:
    until(lambda: not place.client.list("Pod", {COMPONENT_LABEL: "ray"}), 120, "the pods of the stages go")
    status = place.kubealign("status", TINY, *LONG)
    assert status.code == 0, status
    assert "8 of 8 stages finished" in status.out
    report = place.kubealign("report", TINY, *LONG)
    assert report.code == 0, report
    page = (place.folder / report.out.strip().splitlines()[-1]).read_text(encoding="utf-8")
    assert page.lower().startswith("<!doctype html")
    assert all(name in page for name in STAGES)
    place.said.append(page)


def test_the_same_submit_again_changes_nothing(place: World, finished: dict[str, Any]) -> None:
    def seen() -> list[tuple[str, int]]:
        return [(row.name, row.tries) for row in status_of(place.client.get("AlignmentRun", "tiny")).stages]

    before = seen()
    done = place.kubealign("submit", TINY, "--target", "run", "--wait", *LONG, seconds=120)
    assert done.code == 0, done
    assert seen() == before
    assert place.manifests(TINY, *LONG) == finished


def test_one_stage_as_a_rayjob_driven_from_here_while_the_chart_changes(
    place: World, finished: dict[str, Any]
) -> None:
    change = (*LONG, "--set", "eval.take=4")
    process = place.start("submit", TINY, "--profile", "e2e.yaml", "-n", place.space, "--target", "rayjob", "--stage",
                          "eval", "--wait", *change)
    try:
        until(lambda: ray_pods(place, "head", "tiny"), 120, "the stage's pod is there")
        place.helm("upgrade", "kubealign", str(CHART), "--values", str(CHART / "values-dev.yaml"), "--set",
                   "operator.resources.requests.cpu=110m", "--wait", "--timeout", "120s", values=place.values())
        place.helm("rollback", "kubealign", "--wait", "--timeout", "120s")
    except BaseException:
        process.kill()
        raise
    done = place.finish(process)
    assert done.code == 0, done
    assert "attempt failed" not in done.err
    made = place.manifests(TINY, *change)["eval"]
    assert made is not None
    assert made["key"] != finished["eval"]["key"]
    remember(place)
    logs = place.kubealign("logs", TINY, "--stage", "eval", *change)
    assert logs.code == 0, logs
    assert "eval" in logs.out


# --- GPUs ---


def test_a_stage_for_a_gpu_waits_for_one_and_says_so(place: World, finished: dict[str, Any]) -> None:
    client = place.client
    nodes = client.list("Node")
    if any(GPU in node["status"]["allocatable"] for node in nodes):
        pytest.skip("a node of this cluster has GPUs")
    file = short(place, "gpu", epochs=1)
    done = place.kubealign("submit", file, "--target", "rayjob", "--stage", "sft", profile="gpu")
    assert done.code == 0, done

    def pod() -> Object | None:
        return next(iter(client.list("Pod", {"kubealign.dev/run": "gpu", COMPONENT_LABEL: "ray"})), None)

    def refused() -> bool:
        return any(GPU in str(condition.get("message")) for condition in (pod() or {}).get(
            "status", {}).get("conditions", []))

    until(refused, 90, "the scheduler says what the pod lacks")
    status = place.kubealign("status", file, profile="gpu")
    assert f"no node has enough free {GPU} (the pod asks for 1)" in " ".join(status.out.split()), status
    node = nodes[0]["metadata"]["name"]
    _advertise(place, node, "add")
    try:
        until(lambda: (pod() or {}).get("status", {}).get("phase") != "Pending", 120, "the pod leaves Pending")
        assert (pod() or {})["spec"]["nodeName"] == node
    finally:
        _advertise(place, node, "remove")
    assert place.kubealign("cancel", file).code == 0
    until(lambda: pod() is None, 90, "the pods go with the RayJob")


def _advertise(place: World, node: str, verb: str) -> None:
    """Let a node's status claim one GPU, or no more."""
    client = place.client
    change = [{"op": verb, "path": f"/status/{where}/nvidia.com~1gpu", **({"value": "1"} if verb == "add" else {})}
              for where in ("capacity", "allocatable")]
    client.request("PATCH", client.path("Node", node) + "/status", {}, change,  # type: ignore[arg-type]
                   content_type="application/json-patch+json")


# --- disturbances ---


def test_lost_pods_change_nothing_about_what_is_learned(place: World, finished: dict[str, Any]) -> None:
    client = place.client
    copy = ("import s3fs,sys; f=s3fs.S3FileSystem(); a,b=sys.argv[1:3]\n"
            "for key in sys.argv[3:]:\n"
            "  for path in f.find(f'{a}/artifacts/{key}'): f.copy(path, b + path.removeprefix(a))\n"
            "print('copied')")
    place.in_pod("python", "-c", copy, place.url().removeprefix("s3://"),
                 place.url("disturbed").removeprefix("s3://"), finished["base"]["key"], finished["seed"]["key"])
    process = place.start("submit", short(place, "short"), "--profile", "disturbed.yaml", "-n", place.space,
                          "--target", "run", "--retries", "4", "--wait")
    try:
        began = datetime.now(UTC)
        job = _steps(place, began)
        remember(place)
        worker = ray_pods(place, "worker")[0]["metadata"]["name"]
        client.delete("Pod", worker)
        assert _steps(place, datetime.now(UTC) + timedelta(seconds=15)) == job, "a lost worker ends the attempt"
        head = ray_pods(place, "head")[0]["metadata"]["name"]
        client.delete("Pod", head)
        (operator,) = client.list("Pod", {COMPONENT_LABEL: "operator"})
        place.said += client.log_lines(operator["metadata"]["name"])
        client.delete("Pod", operator["metadata"]["name"])
    except BaseException:
        process.kill()
        raise
    done = place.finish(process)
    assert done.code == 0, done
    (row,) = [row for row in status_of(client.get("AlignmentRun", "short")).stages if row.name == "sft"]
    assert row.tries >= 2, "a lost head is an attempt on a fresh cluster"
    made = place.manifests("run-short.yaml", profile="disturbed")["sft"]
    assert made["key"] == finished["sft"]["key"]
    assert _curve(place, "disturbed", made) == _curve(place, "runs", finished["sft"])
    assert made["metrics"] == pytest.approx(finished["sft"]["metrics"])


def _steps(place: World, after: datetime) -> str:
    """Wait for a line of progress that the stage printed after a moment; gives its RayJob."""
    since = after.strftime("%Y-%m-%dT%H:%M:%SZ")

    def printed() -> str | None:
        for job in place.client.list("RayJob", {**labels("short"), "kubealign.dev/stage": "sft"}):
            name = str(job["metadata"]["name"])
            pod = head_pod(place.client, name)
            if pod is None or job.get("status", {}).get("jobDeploymentStatus") != "Running":
                continue
            if client_lines(place, pod, since):
                return name
        state = status_of(place.client.find("AlignmentRun", "short") or {})
        assert state.phase not in ("Succeeded", "Failed"), f"it ended before it was disturbed enough: {state}"
        return None

    return str(until(printed, 420, f"steps of sft after {since}", pause=2.0))


def client_lines(place: World, pod: str, since: str) -> list[str]:
    """Lines of progress since a time; none while the container has not started."""
    status = place.client.get("Pod", pod)["status"]
    if not any(item.get("started") for item in status.get("containerStatuses", [])):
        return []
    return [line for line in place.client.log_lines(pod, since=since) if STEPS.search(line)]


def _curve(place: World, prefix: str, manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Losses by step, as the artifact has them."""
    code = ("import json,sys,s3fs; f=s3fs.S3FileSystem();"
            "print(json.dumps(f.cat_file(sys.argv[1]).decode()))")
    path = f"{place.url(prefix).removeprefix('s3://')}/artifacts/{manifest['key']}/events.jsonl"
    events = [json.loads(line) for line in place.python(code, path).splitlines()]
    found = [{key: value for key, value in event.items() if key != "time"}
             for event in events if event["event"] in ("train", "eval")]
    assert len(found) > 10
    return found


# --- the chart's RayCluster ---


@pytest.fixture(scope="module")
def ray_cluster(place: World, finished: dict[str, Any]) -> str:
    """The chart with its RayCluster; gives the address of the head."""
    place.helm("upgrade", "kubealign", str(CHART), "--values", str(CHART / "values-dev.yaml"), "--wait",
               "--timeout", "300s", values=place.values(rayCluster={"enabled": True}))
    until(lambda: len([pod for pod in place.client.list("Pod", {"ray.io/cluster": "kubealign"})
                       if all(item["ready"] for item in pod["status"].get("containerStatuses", [{"ready": False}]))
                       ]) == 3, 300, "head and two workers are ready")
    return "http://kubealign-head-svc:8265"


_ASK = """
import json, sys, time, urllib.request, urllib.error
address, wanted, found = sys.argv[1], sys.argv[2], {}
# `/` is a page without data; DELETE is what Ray up to 2.53 let a web page do (CVE-2026-27482).
for asked in ("GET /api/jobs/", "GET /api/version", "GET /nodes", "DELETE /api/jobs/none", "POST /api/jobs/"):
    method, path = asked.split()
    data = b'{"entrypoint": "true"}' if method == "POST" else None
    request = urllib.request.Request(address + path, data, {"Content-Type": "application/json"}, method=method)
    until = time.monotonic() + 20
    while True:
        try:
            found[asked] = urllib.request.urlopen(request, timeout=4).status
        except urllib.error.HTTPError as error:
            found[asked] = error.code
        except OSError:
            found[asked] = 0
        # Policies take a moment to reach a new pod.
        if str(found[asked]) == wanted or time.monotonic() > until:
            break
        time.sleep(0.5)
print(json.dumps(found))
"""


def test_the_head_answers_nobody_without_the_token(place: World, ray_cluster: str) -> None:
    printed = place.in_pod("python", "-c", _ASK, ray_cluster, "401", labels=labels(component="test"), secret=False)
    assert set(json.loads(printed.splitlines()[-1]).values()) == {401}, printed


def test_a_pod_without_labels_does_not_reach_the_head(place: World, ray_cluster: str) -> None:
    done = place.kubealign("preflight", TINY, *LONG)
    if "NetworkPolicies are NOT enforced" in " ".join(done.out.split()):
        pytest.skip("NetworkPolicies are not enforced in this cluster")
    printed = place.in_pod("python", "-c", _ASK, ray_cluster, "0", labels={}, secret=False)
    assert set(json.loads(printed.splitlines()[-1]).values()) == {0}, printed


def test_one_stage_as_a_job_on_the_raycluster(place: World, ray_cluster: str, finished: dict[str, Any]) -> None:
    change = (*LONG, "--set", "eval.take=5")
    done = place.kubealign("submit", TINY, "--target", "job", "--stage", "eval", "--wait", *change)
    assert done.code == 0, done
    made = place.manifests(TINY, *change)["eval"]
    assert made is not None
    assert made["key"] != finished["eval"]["key"]


def test_cancel_stops_a_job_on_the_raycluster(place: World, ray_cluster: str, finished: dict[str, Any]) -> None:
    file = short(place, "stopped", epochs=39)
    done = place.kubealign("submit", file, "--target", "job", "--stage", "sft")
    assert done.code == 0, done
    (name,) = re.findall(r"as job (\S+)", done.err)
    assert f"job {name} is stopped" in place.kubealign("cancel", file).out
    assert "has nothing of run stopped" in place.kubealign("cancel", file).out
    assert place.manifests(file)["sft"] is None


def test_helm_test_passes(place: World, ray_cluster: str) -> None:
    """A storage write, and an all-reduce of two workers."""
    place.helm("test", "kubealign", "--timeout", "300s")
    remember(place)


# --- the end ---


def test_the_canary_is_nowhere(place: World, finished: dict[str, Any]) -> None:
    remember(place)
    code = ("import json,os,sys,s3fs; f=s3fs.S3FileSystem(); names=sys.argv[2:]\n"
            "values=[os.environ[name].encode() for name in names]; paths=f.find(sys.argv[1])\n"
            "print(json.dumps([len(paths), [p for p in paths if any(v in f.cat_file(p) for v in values)]]))")
    looked, found = place.python(code, f"{place.url('').removeprefix('s3://')}", CANARY, "AWS_SECRET_ACCESS_KEY")
    assert looked > 50
    assert found == []
    kinds = ("Event", "RayJob", "RayCluster", "Job", "ConfigMap", "AlignmentRun", "Pod", "Deployment")
    texts = {kind: json.dumps(place.client.list(kind)) for kind in kinds} | {"what was printed": "\n".join(place.said)}
    assert len(texts["Event"]) > 1000
    assert len(texts["what was printed"]) > 10_000
    for value in (place.canary, place.keys[1]):
        assert [where for where, text in texts.items() if value in text] == []


def test_uninstall_leaves_the_artifacts(place: World, finished: dict[str, Any]) -> None:
    before = place.objects("runs/artifacts")
    assert {path.partition("/")[0] for path in before} >= {manifest["key"] for manifest in finished.values()}
    place.helm("uninstall", "kubealign", "--wait", "--timeout", "120s")
    assert place.objects("runs/artifacts") == before
    assert place.client.exists("CustomResourceDefinition", CRD)
    assert {run["metadata"]["name"] for run in place.client.list("AlignmentRun")} >= {"tiny", "short"}
