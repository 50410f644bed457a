"""Every shipped run under every shipped profile: valid for KubeRay and Kubernetes, and within our own policy."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.cluster.manifests.bundle import bundle, config_map, unpack
from alignment.cluster.manifests.labels import (
    ATTEMPT_LABEL,
    COMPONENT_LABEL,
    QUEUE_LABEL,
    RUN_LABEL,
    STAGE_LABEL,
    job_name,
)
from alignment.cluster.manifests.pods import RUN_FOLDER, SAVE_FIRST, STOP_STAGE
from alignment.cluster.manifests.ray_job import RAY_VERSION, ray_job
from alignment.config import AnyStage, Profile, Run, load_profile, load_run
from alignment.errors import ConfigError
from alignment.pipeline.echo import ECHO
from alignment.pipeline.job import OWN_CLUSTER
from alignment.pipeline.keys import keys
from tests.cluster.policy import templates, violations
from tests.schemas import problems

ROOT = Path(__file__).parents[3]
DIGEST = "0123456789abcdef" * 4
PROFILES = {path.stem: profile for path in sorted((ROOT / "configs/profiles").glob("*.yaml"))
            if (profile := load_profile(path)).cluster is not None}
RUNS = {path.stem: load_run(path) for path in sorted((ROOT / "configs/runs").glob("*.yaml"))}
STAGES = [(name, stage.name) for name, run in RUNS.items() for stage in run.stages]
Json = dict[str, Any]


def job(run: Run, stage: AnyStage, profile: Profile, **more: Any) -> Json:
    return ray_job(run, stage, profile, namespace="align", config_map=f"{run.name}-01234567",
                   **{"attempt": 1, "name": job_name(run.name, stage.name, DIGEST, 1), **more})


def of(where: str, run: str, stage: str, **more: Any) -> Json:
    return job(RUNS[run], RUNS[run].stage(stage), PROFILES[where], **more)


@pytest.mark.parametrize("where", PROFILES)
@pytest.mark.parametrize(("run", "stage"), STAGES)
def test_every_stage_under_every_profile(run: str, stage: str, where: str) -> None:
    profile, made = PROFILES[where], of(where, run, stage)
    assert problems(made) == []
    assert [f"{name}: {text}" for name, template in templates(made) for text in violations(template)] == []
    mark = {RUN_LABEL: run, STAGE_LABEL: stage, ATTEMPT_LABEL: "1", "app.kubernetes.io/part-of": "kubealign",
            "app.kubernetes.io/managed-by": "kubealign"}
    assert made["metadata"]["labels"].items() >= mark.items()
    for name, template in templates(made):
        assert template["metadata"]["labels"] == {**mark, COMPONENT_LABEL: "ray"}, name
    assert made == of(where, run, stage)
    assert "&id" not in yaml.safe_dump(made), "the same object twice would be an alias in --dry-run's YAML"
    assert json.loads(json.dumps(made)) == made
    spec, cluster = made["spec"], made["spec"]["rayClusterSpec"]
    # What KubeRay's own validation asks for (controllers/ray/utils/validation.go).
    assert re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", made["metadata"]["name"])
    assert len(made["metadata"]["name"]) <= 47
    assert spec["preRunningDeadlineSeconds"] > 0
    assert spec["activeDeadlineSeconds"] > 0
    assert all(isinstance(value, str) for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
               for value in group["rayStartParams"].values())
    # No pod is asked for once the others hold their resources.
    assert spec["submissionMode"] == "HTTPMode"
    assert "submitterPodTemplate" not in spec
    # What Kueue asks for, whether there is a queue or not.
    assert spec["shutdownAfterJobFinishes"] is True
    assert "clusterSelector" not in spec
    assert cluster["enableInTreeAutoscaling"] is False
    assert len(cluster["workerGroupSpecs"]) == bool(profile.pods_of(RUNS[run].stage(stage)))
    assert cluster["authOptions"] == {"mode": "token"}


@pytest.mark.parametrize("where", PROFILES)
@pytest.mark.parametrize("run", RUNS)
def test_workers_find_the_resources_that_ray_counts(run: str, where: str) -> None:
    """Ray waits without end for what no node of its cluster has."""
    profile = PROFILES[where]
    for stage in RUNS[run].stages:
        cluster = job(RUNS[run], stage, profile)["spec"]["rayClusterSpec"]
        workers = profile.workers_of(stage)
        cpus, gpus = (
            sum(float(group["rayStartParams"][key]) * group["replicas"] for group in cluster["workerGroupSpecs"])
            for key in ("num-cpus", "num-gpus"))
        assert cpus >= workers * profile.compute.cpus_per_worker
        assert gpus >= workers * profile.compute.gpus_per_worker
        for group in cluster["workerGroupSpecs"]:
            assert group["replicas"] == group["minReplicas"] == group["maxReplicas"]
        assert (cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0") == (workers > 0)
        for _, template in templates({"kind": "RayJob", "spec": {"rayClusterSpec": cluster}}):
            [shm] = [volume for volume in template["spec"]["volumes"] if volume["name"] == "shm"]
            assert shm["emptyDir"]["medium"] == "Memory"


def test_one_pod_for_what_one_process_does_and_a_group_for_the_rest() -> None:
    alone = of("dev-cpu", "tiny", "eval")["spec"]["rayClusterSpec"]
    assert alone["workerGroupSpecs"] == []
    assert alone["headGroupSpec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"] == "1200m"
    both = of("dev-cpu", "tiny", "sft")["spec"]["rayClusterSpec"]
    [group] = both["workerGroupSpecs"]
    assert group["replicas"] == 2
    assert group["rayStartParams"] == {"num-cpus": "1", "num-gpus": "0", "object-store-memory": str(2**28)}
    [spread] = group["template"]["spec"]["topologySpreadConstraints"]
    assert spread["labelSelector"]["matchLabels"].items() <= {
        **group["template"]["metadata"]["labels"], "ray.io/node-type": "worker"}.items()


def test_gpus_are_asked_for_tolerated_and_told_to_ray() -> None:
    [group] = of("multi-gpu", "quickstart", "dpo")["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    params = group["rayStartParams"]
    assert (group["replicas"], params["num-gpus"], params["num-cpus"]) == (1, "8", "64")
    spec = group["template"]["spec"]
    assert spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in spec["tolerations"]
    assert {"name": "NCCL_DEBUG", "value": "WARN"} in spec["containers"][0]["env"]
    [shm] = [volume["emptyDir"] for volume in spec["volumes"] if volume["name"] == "shm"]
    assert shm == {"medium": "Memory", "sizeLimit": "64Gi"}
    head = of("single-24gb", "quickstart", "dpo")["spec"]["rayClusterSpec"]["headGroupSpec"]
    assert head["rayStartParams"]["num-gpus"] == "1"
    seed = of("single-24gb", "quickstart", "seed")["spec"]["rayClusterSpec"]["headGroupSpec"]
    assert "nvidia.com/gpu" not in seed["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert "tolerations" not in seed["template"]["spec"]


def test_two_machines_are_two_pods() -> None:
    profile = load_profile("multi-gpu", ["compute.workers=16", "cluster.worker.extra_resources={rdma/hca: '1'}",
                                         "cluster.worker.node_selector={pool: h100}"])
    made = job(RUNS["tiny"], RUNS["tiny"].stage("sft"), profile)
    [group] = made["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["replicas"] == 2
    assert group["template"]["spec"]["nodeSelector"] == {"pool": "h100"}
    assert group["template"]["spec"]["containers"][0]["resources"]["requests"]["rdma/hca"] == "1"
    assert problems(made) == []


def test_storage_is_a_volume_or_a_secret() -> None:
    for where, mounted, secrets in (("dev-cpu", ["/artifacts"], []), ("s3", [], ["kubealign-s3"])):
        for name, template in templates(of(where, "tiny", "sft")):
            container = template["spec"]["containers"][0]
            paths = [mount["mountPath"] for mount in container["volumeMounts"]]
            assert [path for path in paths if path == "/artifacts"] == mounted, name
            assert [entry["secretRef"]["name"] for entry in container["envFrom"]] == secrets, name


def test_the_head_whose_output_is_the_stages_says_so() -> None:
    """The stage's lines go to the head's own output, and its job is not done twice on one Ray cluster."""
    for name, template in templates(of("dev-cpu", "tiny", "sft")):
        env = {entry["name"]: entry["value"] for entry in template["spec"]["containers"][0]["env"]}
        found = {key: env.get(key) for key in (ECHO, OWN_CLUSTER)}
        assert found == ({ECHO: "/proc/1/fd/1", OWN_CLUSTER: "1"} if name == "head" else dict.fromkeys(found)), name


def test_secrets_go_by_name_and_plain_settings_by_value() -> None:
    profile = load_profile("s3", ["cluster.env_from=[hub-token, kubealign-s3]", "cluster.env.OMP_NUM_THREADS='3'",
                                  "cluster.images.pull_secrets=[registry]",
                                  "cluster.cache_claim=cache"])
    made = job(RUNS["tiny"], RUNS["tiny"].stage("eval"), profile, attempt=7)
    spec = made["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    container = spec["containers"][0]
    assert [entry["secretRef"]["name"] for entry in container["envFrom"]] == ["kubealign-s3", "hub-token"]
    env = {entry["name"]: entry["value"] for entry in container["env"]}
    assert env["OMP_NUM_THREADS"] == "3"
    attempt = ".".join(made["metadata"]["name"].split("-")[-2:])
    assert (env["HOME"], env["KUBEALIGN_ATTEMPT"], env["KUBEALIGN_CACHE"]) == ("/home/kubealign", attempt, "/cache")
    assert env["RAY_AUTH_MODE"] == "token", "a Secret could say otherwise"
    assert {"name": "cache", "persistentVolumeClaim": {"claimName": "cache"}} in spec["volumes"]
    assert all(template["spec"]["imagePullSecrets"] == [{"name": "registry"}] for _, template in templates(made))
    assert problems(made) == []


def test_threads_follow_the_pods_cpu() -> None:
    def threads(where: str, stage: str, which: str) -> str:
        template = dict(templates(of(where, "tiny", stage)))[which]
        return next(entry["value"] for entry in template["spec"]["containers"][0]["env"]
                    if entry["name"] == "OMP_NUM_THREADS")

    assert threads("dev-cpu", "sft", "worker") == "1"         # 450m
    assert threads("single-24gb", "sft", "head") == "6"
    assert threads("multi-gpu", "sft", "worker") == "9"       # 72 cores, 8 workers


def test_a_queue_makes_it_wait_for_kueue() -> None:
    free = of("dev-cpu", "tiny", "sft")
    assert free["spec"]["suspend"] is False
    assert QUEUE_LABEL not in free["metadata"]["labels"]
    queued = job(RUNS["tiny"], RUNS["tiny"].stage("sft"), load_profile("dev-cpu", ["cluster.queue=lane"]))
    assert queued["spec"]["suspend"] is True
    assert queued["metadata"]["labels"][QUEUE_LABEL] == "lane"
    assert problems(queued) == []


def test_an_owner_takes_it_along() -> None:
    owner = {"apiVersion": "kubealign.dev/v1alpha1", "kind": "AlignmentRun", "name": "tiny", "uid": "1-2",
             "controller": True, "blockOwnerDeletion": True}
    made = of("dev-cpu", "tiny", "sft", owner=owner)
    assert made["metadata"]["ownerReferences"] == [owner]
    assert problems(made) == []
    assert "ownerReferences" not in of("dev-cpu", "tiny", "sft")["metadata"]


@pytest.mark.parametrize(("overrides", "problem", "found"), [
    (["compute.gpus_per_worker=1", "compute.device=auto"], "fewer GPUs than its workers ask for",
     "gpus: 0, workers: 1"),
    (["compute.gpus_per_worker=0.5", "compute.device=auto", "cluster.stages.train.worker.workers=3",
      "cluster.stages.train.worker.gpus=1"], "fewer GPUs", "gpus: 1, workers: 3"),
    (["cluster.stages.train.worker.shm=128Mi"], "too small for Ray's object store", "shm: 128Mi"),
    (["cluster.head.shm=64Mi"], "too small for Ray's object store", "shm: 64Mi"),
])
def test_pods_that_would_wait_without_end_are_refused(overrides: list[str], problem: str, found: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        job(RUNS["tiny"], RUNS["tiny"].stage("sft"), load_profile("dev-cpu", overrides))
    assert caught.value.found == found
    assert caught.value.where == "profile dev-cpu, pods of stage sft"


def test_of_two_that_wait_for_each_other_one_gives_up_first() -> None:
    """Deadlines differ by run, stage and attempt, are never below the profile's, and the same each time."""
    found = [job(run, stage, PROFILES["dev-cpu"], attempt=attempt, name=job_name(name, stage.name, DIGEST, attempt))
             ["spec"]["preRunningDeadlineSeconds"] for name, run in RUNS.items() for stage in run.stages
             for attempt in (1, 2, 3)]
    assert all(900 <= seconds < 1080 for seconds in found)
    assert len(set(found)) > 120, "of 180 seconds, most are some stage's"
    assert sum(one != next_one for one, next_one in pairwise(found)) > 0.95 * len(found)
    least = load_profile("dev-cpu", ["cluster.start_within=30"])
    assert 30 <= job(RUNS["tiny"], RUNS["tiny"].stages[0], least)["spec"]["preRunningDeadlineSeconds"] < 36


def test_a_profile_of_this_machine_makes_no_job() -> None:
    with pytest.raises(ConfigError, match="for this machine") as caught:
        job(RUNS["tiny"], RUNS["tiny"].stage("sft"), load_profile("local"))
    assert "dev-cpu" in str(caught.value.hint)


@pytest.mark.parametrize(("run", "stage"), STAGES)
def test_the_entrypoint_makes_stages_of_this_kind(run: str, stage: str) -> None:
    python, script, file, name, workers = shlex.split(of("dev-cpu", run, stage)["spec"]["entrypoint"])
    assert (python, file, name) == ("python", f"{RUN_FOLDER}/run.yaml", stage)
    text = (ROOT / script.removeprefix("/opt/kubealign/")).read_text(encoding="utf-8")
    assert re.findall(r"main\(\"(.+?)\"\)", text) == [RUNS[run].stage(stage).script]
    assert workers == f"compute.workers={PROFILES['dev-cpu'].workers_of(RUNS[run].stage(stage))}"


def test_the_entrypoint_runs_on_the_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a pod does, in a process of its own: the mounted bundle, its working directory, the artifact's key."""
    monkeypatch.chdir(ROOT)
    run, profile = RUNS["tiny"], PROFILES["dev-cpu"]
    expected = keys(run)["seed"].key
    unpack(config_map(bundle(run, profile), name="m", namespace="n"), tmp_path / "run")
    command = shlex.split(of("dev-cpu", "tiny", "seed")["spec"]["entrypoint"])
    command = [sys.executable, command[1].replace("/opt/kubealign", str(ROOT)),
               command[2].replace(RUN_FOLDER, str(tmp_path / "run")), *command[3:], f"store={tmp_path / 'store'}"]
    done = subprocess.run(command, cwd=tmp_path / "run", capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "store" / "artifacts" / expected / "manifest.json").is_file()
    wrong = subprocess.run([*command[:3], "sft", *command[4:]], cwd=tmp_path / "run", capture_output=True, text=True,
                           timeout=120)
    assert wrong.returncode == 2


def test_ray_is_the_locked_one() -> None:
    pinned = re.findall(r'"ray\[[a-z,]+\]==([0-9.]+)"', (ROOT / "pyproject.toml").read_text())
    assert set(pinned) == {RAY_VERSION}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc here")
@pytest.mark.parametrize("hook", [STOP_STAGE, SAVE_FIRST], ids=["head", "worker"])
def test_the_hook_waits_until_process_one_catches_sigterm(hook: str) -> None:
    code = ("import signal,sys; print('up', flush=True); sys.stdin.readline(); "
            "signal.signal(signal.SIGTERM, lambda *_: sys.exit()); print('caught', flush=True); sys.stdin.readline()")
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          text=True) as one:
        assert one.stdin is not None
        assert one.stdout is not None
        one.stdout.readline()
        hook = hook.replace("/proc/1/", f"/proc/{one.pid}/").replace("/tmp/kubealign-", "/nowhere/")
        with subprocess.Popen(["/bin/sh", "-c", hook]) as waits:
            with pytest.raises(subprocess.TimeoutExpired):
                waits.wait(1.5)
            print(file=one.stdin, flush=True)
            one.stdout.readline()
            assert waits.wait(5) == 0
        one.terminate()
    assert one.returncode == 0
