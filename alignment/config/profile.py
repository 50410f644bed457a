"""`Profile`: where a run is computed and where its artifacts lie, apart from what it learns.

The same run file goes to a laptop, one 24 GB card or a cluster; only the profile changes. Nothing in a profile changes
a digest but the dtype that it says, or that `auto` makes of its hardware (arithmetic.py). Does not talk to Kubernetes:
`cluster` turns a profile into manifests.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self
from urllib.parse import unquote

from pydantic import Field, model_validator

from alignment.config.arithmetic import settled
from alignment.config.compute import Compute
from alignment.config.environment import refused
from alignment.config.hardware import Native
from alignment.config.messages import close_to
from alignment.config.run import Run
from alignment.config.stages import KINDS, AnyStage
from alignment.config.stages.base import Finding, Findings
from alignment.config.stages.fields import FORMS, Name, OneCount, StoreUrl, Strict

_QUANTITY = r"^[1-9][0-9]*(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"
Quantity = Annotated[str, Field(pattern=_QUANTITY, max_length=20)]
"""A Kubernetes quantity: 500m, 2, 8Gi. No description here: pydantic takes an alias's before the field's docstring."""
_DNS = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
DnsName = Annotated[str, Field(pattern=_DNS, max_length=63)]
_ENV = r"^[A-Za-z_][A-Za-z0-9_]*$"
EnvName = Annotated[str, Field(pattern=_ENV, max_length=100)]
_URL, _MOUNT = r"^(/|[a-z][a-z0-9+.-]*://).+", r"^/[A-Za-z0-9/_.-]+$"
_LOCAL = re.compile(r"(file|local)://")
FORMS.update({
    _QUANTITY: "a Kubernetes quantity of more than 0: 500m, 2, 8Gi",
    _DNS: "small letters, digits and hyphens, 63 at most, as Kubernetes names things",
    _ENV: "a variable's name: letters, digits and _, no digit first",
    _URL: "an absolute folder or a URL: /artifacts/runs, s3://bucket/prefix",
    _MOUNT: "an absolute folder, in letters, digits and /_.-",
})

_UNITS = {"": 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12,
          "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}


def bytes_of(quantity: str) -> float:
    """A Kubernetes quantity as a number (bytes, or cores for a CPU quantity). Raises ValueError when it is none."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(m|k|M|G|T|Ki|Mi|Gi|Ti)?", quantity)
    if match is None:
        raise ValueError(f"{quantity!r} is no quantity such as 500m, 2 or 8Gi")
    return float(match[1]) * _UNITS[match[2] or ""]


def unclear(path: str) -> bool:
    """Whether a folder or URL may lead elsewhere than it seems to: `..` in any spelling, a chain of file systems, signs
    that nobody sees."""
    return "::" in path or not path.isprintable() or bool({".", ".."} & set(re.split(r"[/\\]", unquote(path))))


class Images(Strict):
    """The project's own images, made by `make images` or by you from docker/Dockerfile."""

    train: str = "docker.io/local/kubealign-train:0.1.0"
    """Everything a stage needs, with the code in it."""
    control: str = "docker.io/local/kubealign-control:0.1.0"
    """Command line and operator, without torch."""
    pull_policy: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"
    """When a node fetches an image anew. IfNotPresent suits pinned tags; Never wants the images loaded onto the
    nodes."""
    pull_secrets: tuple[DnsName, ...] = Field(default=(), max_length=8)
    """Secrets with the registry's credentials, in the run's namespace."""

    @model_validator(mode="after")
    def _pinned(self) -> Self:
        for image in (self.train, self.control):
            tag = image.rpartition("/")[2].partition(":")[2]
            if "@sha256:" not in image and tag in ("", "latest"):
                raise ValueError(f"{image}: an image needs a tag other than latest, or a digest")
        return self


class Toleration(Strict):
    """As in a pod's spec."""

    key: str | None = None
    """The taint's key; absent, with operator Exists, every taint is tolerated."""
    operator: Literal["Exists", "Equal"] = "Exists"
    """Exists: the key is enough. Equal: `value` must be the taint's as well."""
    value: str | None = None
    """The taint's value, for operator Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """The taint's effect; absent: each of them."""


class Pod(Strict):
    """One pod of a stage's Ray cluster: what it asks for is what it may use."""

    cpu: Quantity = "2"
    """Cores: 500m, 2. Requested and limited alike; each worker gets its share as threads."""
    memory: Quantity = "8Gi"
    """Memory: 8Gi. Above it the kernel kills the pod; /dev/shm (`shm`) counts. `kubealign plan` estimates what a
    stage needs."""
    shm: Quantity = "1Gi"
    """Memory-backed /dev/shm; it counts against `memory`. Ray's object store and NCCL live there."""
    workers: Annotated[int, Field(ge=1, le=16)] = 1
    """Ray workers (ranks) in one such pod; its GPUs are shared out among them."""
    scratch: Quantity = "20Gi"
    """Ephemeral storage: the copy of models and work in progress."""
    gpus: Annotated[int, Field(ge=0, le=16)] = 0
    """GPUs of one such pod; 0 for CPUs alone. With workers at least workers times compute.gpus_per_worker."""
    gpu_resource: str = "nvidia.com/gpu"
    """The GPU's name as the nodes offer it (amd.com/gpu, a MIG slice). A taint of that name is tolerated by
    itself."""
    extra_resources: dict[str, Quantity] = Field(default_factory=dict, max_length=8)
    """Further extended resources by name, for example an RDMA device."""
    node_selector: dict[str, str] = Field(default_factory=dict, max_length=16)
    """Labels that the node must have, for example {nvidia.com/gpu.product: NVIDIA-L4}."""
    tolerations: tuple[Toleration, ...] = Field(default=(), max_length=16)
    """Taints that the pod accepts; the GPU's own need not be named."""

    @model_validator(mode="after")
    def _shm_fits(self) -> Self:
        if bytes_of(self.shm) >= bytes_of(self.memory):
            raise ValueError(f"shm ({self.shm}) is part of memory ({self.memory}) and must be less")
        return self


class StageOverride(Strict):
    """What differs for one stage name, kind or method; the closest match wins (name, then method, then kind)."""

    workers: Annotated[int, Field(ge=0, le=512), OneCount] | None = None
    """Ray workers of this stage, instead of compute.workers. 0: its one pod computes alone. Only train and sample
    stages have any."""
    worker: Pod | None = None
    """The whole pod, instead of cluster.worker: keys that it leaves out have their own defaults, not
    cluster.worker's."""


class Storage(Strict):
    """Where artifacts lie as the pods see it: a mounted volume, or object storage with a secret."""

    url: Annotated[str, Field(pattern=_URL, max_length=500)]
    """An absolute folder below the mounted claim's path, or an fsspec URL (s3://bucket/prefix)."""
    claim: DnsName | None = None
    """PersistentVolumeClaim (ReadWriteMany, or one node) mounted at `mount`."""
    mount: Annotated[str, Field(pattern=_MOUNT, max_length=200)] = "/artifacts"
    """Where the claim is mounted in every pod; `url` lies below it. Without a claim it means nothing."""
    secret: DnsName | None = None
    """Secret whose keys become environment variables of the pods: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, and
    AWS_ENDPOINT_URL for anything but Amazon's own."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        local = self.url.startswith("/")
        for path in (self.url, self.mount):
            if unclear(path):
                raise ValueError(f"{path} does not say where it leads: no . or .. between slashes, no ::")
        if _LOCAL.match(self.url):
            raise ValueError(f"{self.url} is a folder of a pod, gone with it: write an absolute path below `mount`, or "
                             "object storage")
        if local and self.claim is None:
            raise ValueError(f"{self.url} is a folder, so `claim` must name the volume that holds it")
        if local and not (self.url + "/").startswith(self.mount.rstrip("/") + "/"):
            raise ValueError(f"{self.url} is not below the claim's mount {self.mount}")
        if not local and self.claim is not None:
            raise ValueError(f"{self.url} is object storage: it needs `secret`, not `claim`")
        return self


class ServePods(Strict):
    """The pods of a served run, which has a Ray cluster of its own."""

    worker: Pod | None = None
    """The pod of one replica. Default: cluster.worker."""
    head: Pod | None = None
    """The head, which answers nobody. Default: cluster.head."""
    api_key: DnsName | None = "kubealign-api-key"
    """Secret with KUBEALIGN_API_KEY, which requests have to bring. null: whoever reaches the pods may ask them."""
    start_within: Annotated[int, Field(ge=30)] = 1800
    """Seconds in which a replica has to have its models in memory, and proved."""
    keep_old: Annotated[int, Field(ge=10)] = 120
    """Seconds that the pods of the revision before stay after an upgrade: for answers that they are at."""

    @model_validator(mode="after")
    def _obeyed(self) -> Self:
        for name, pod in (("worker", self.worker), ("head", self.head)):
            if pod is not None and pod.workers != 1:
                raise ValueError(f"{name}.workers: {pod.workers}: one pod has one replica, and serve.replicas of the "
                                 "run says how many there are; remove it")
        if self.head is not None and self.head.gpus:
            raise ValueError(f"head.gpus: {self.head.gpus}: the head opens no model; remove it")
        return self


class Cluster(Strict):
    """The Kubernetes part of a profile: one fresh Ray cluster per stage, of these pods."""

    storage: Storage
    """Where artifacts lie as the pods see it: a volume, or object storage."""
    images: Images = Images()
    """The container images that the pods run."""
    head: Pod = Pod(cpu="1", memory="4Gi", shm="512Mi", scratch="10Gi")
    """Head of a stage with workers: it schedules, reads and publishes, and computes nothing (num-cpus 0). Given, the
    keys it leaves out have the defaults of any pod, not these."""
    worker: Pod = Pod()
    """A worker; a stage that runs in one process (import, evaluate, workers: 0) gets one such pod as its head."""
    stages: dict[Name, StageOverride] = Field(default_factory=dict, max_length=64)
    """What differs by stage: NAME is a stage's name, a method or a kind. The closest match wins."""
    serve: ServePods = ServePods()
    """The pods that serve a run's models, where the run has `serve`."""
    queue: DnsName | None = None
    """Kueue LocalQueue that admits the stages."""
    env: dict[EnvName, str] = Field(default_factory=dict, max_length=64)
    """Environment of every pod (NCCL_*, HF_HOME, ...). No secrets here: `env_from`. What undoes a protection
    (RAY_AUTH_MODE, LD_PRELOAD, PYTHONPATH, ...) is refused."""
    env_from: tuple[DnsName, ...] = Field(default=(), max_length=16)
    """Secrets whose keys become environment variables (tokens of a hub or tracker)."""
    cache_claim: DnsName | None = None
    """PersistentVolumeClaim for copies of artifacts and hub downloads, mounted at /cache; none: ephemeral."""
    spread: bool = True
    """Spread the workers of a stage over nodes where that is possible."""
    start_within: Annotated[int, Field(ge=30)] = 1800
    """Seconds a stage may wait for its pods before it fails with the reason; up to a fifth more, so that of two that
    wait for each other one gives up first."""
    run_within: Annotated[int, Field(ge=60)] = 86_400
    """Seconds a stage may take in all; then its RayJob is ended and counts as failed. The default is a day."""
    keep_finished: Annotated[int, Field(ge=0)] = 600
    """Seconds a finished stage's RayJob stays for a look; its logs and artifacts stay in the storage."""

    @model_validator(mode="after")
    def _protected(self) -> Self:
        findings = [Finding(("cluster", "env", name), f"this variable {does}", value, "no such variable here")
                    for name, value in self.env.items() if (does := refused(name))]
        if findings:
            raise Findings(findings)
        return self


class Profile(Strict):
    """One file of configs/profiles/."""

    name: Name
    """Names the profile in messages; --profile looks for the file's name, not for this."""
    description: str | None = None
    """One line for people."""
    compute: Compute = Compute()
    """Replaces the run's own `compute`."""
    store: StoreUrl | None = None
    """Replaces the run's `store`; with `cluster`, storage.url says it."""
    cluster: Cluster | None = None
    """Absent: the profile is for this machine, or for a Ray cluster at compute.address. `run` and `probe` compute on
    this machine, and obey `compute` alone."""

    @model_validator(mode="after")
    def _one_store(self) -> Self:
        if self.cluster is not None and self.store is not None:
            raise ValueError("with `cluster`, the store is cluster.storage.url; remove `store`")
        if self.cluster is not None and self.compute.address is not None:
            raise ValueError("with `cluster`, each stage makes its own Ray cluster; remove compute.address")
        return self

    def here(self) -> Profile:
        """The profile as this machine obeys it, without pods: `compute` alone, artifacts where the run file says."""
        return self if self.cluster is None else self.model_copy(update={"cluster": None})

    def applied(self, run: Run, stage: AnyStage | None = None) -> Run:
        """The run as it is executed under this profile; with a stage, as that stage's pods see it. On a cluster every
        stage's dtype is settled by its pod, since what looks at the run later may be another machine."""
        compute = self.compute
        if stage is not None and self.cluster is not None:
            compute = compute.model_copy(update={"workers": self.workers_of(stage)})
        store = self.cluster.storage.url if self.cluster is not None else self.store or run.store
        run = run.model_copy(update={"compute": compute, "store": store})
        return run if self.cluster is None else settled(run, self._native)

    def _native(self, stage: AnyStage) -> Native:
        """The hardware of a stage's pod that has bfloat16: GPUs have, and of its CPUs a profile does not say."""
        gpus = self.compute.gpus_per_worker if self.workers_of(stage) else self.pod_of(stage).gpus
        return "gpu" if gpus and self.compute.device != "cpu" else None

    def workers_of(self, stage: AnyStage) -> int:
        """Ray workers of a stage; 0 for the kinds that run in one process."""
        if not stage.on_workers:
            return 0
        for override in self._overrides(stage):
            if override.workers is not None:
                return override.workers
        return self.compute.workers

    def pod_of(self, stage: AnyStage) -> Pod:
        """The pod that computes a stage. The seam for a memory planner, which will answer where nothing is stated."""
        assert self.cluster is not None
        for override in self._overrides(stage):
            if override.worker is not None:
                return override.worker
        return self.cluster.worker

    def pods_of(self, stage: AnyStage) -> int:
        """Worker pods of a stage: its workers, shared out; 0 where the head does the work."""
        return -(-self.workers_of(stage) // self.pod_of(stage).workers)

    def _overrides(self, stage: AnyStage) -> list[StageOverride]:
        assert self.cluster is not None
        found = self.cluster.stages
        return [found[name] for name in stage.groups if name in found]

    def findings(self, run: Run) -> Iterator[Finding]:
        """What of the profile cannot be obeyed for this run: workers for stages that run in one process."""
        for name, kinds in self._meant(run).items():
            workers = self.cluster.stages[name].workers if self.cluster is not None else None
            if workers and kinds and not any(kind.on_workers for kind in kinds):
                yield Finding(("cluster", "stages", name, "workers"), "this stage runs in one process", workers,
                              "no `workers` here; `worker` says what pod it gets")

    def idle(self, run: Run) -> list[str]:
        """Overrides that nothing in this run obeys: of a stage of another run, or misspelt. Said, and not refused,
        since one profile serves several runs."""
        names = [*(stage.name for stage in run.stages), *_kinds()]
        return [f"profile {self.name}: cluster.stages.{name} is no stage, method or kind of this run, so nothing obeys "
                f"it ({close_to(name, names)})" for name, kinds in self._meant(run).items() if not kinds]

    def _meant(self, run: Run) -> dict[str, list[type[AnyStage]]]:
        """Name of each override -> the stage classes that it may be of; none where it names nothing."""
        stages = {stage.name: [type(stage)] for stage in run.stages}
        return {name: stages.get(name) or _kinds().get(name, [])
                for name in (self.cluster.stages if self.cluster is not None else ())}


def _kinds() -> dict[str, list[type[AnyStage]]]:
    """Every kind and method that an override may name -> its stage classes."""
    found: dict[str, list[type[AnyStage]]] = {}
    for kind in KINDS:
        for name in dict.fromkeys((str(kind.model_fields["kind"].default), kind.tag)):
            found.setdefault(name, []).append(kind)
    return found


def profile_json(profile: Profile) -> dict[str, Any]:
    """The profile as plain JSON without what was not set, for an AlignmentRun's spec."""
    return profile.model_dump(mode="json", exclude_none=True)
