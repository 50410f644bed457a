"""Adapters that PEFT saved come in on their base and compute as they did there; what is half understood is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alignment.artifacts import Artifact, Store
from alignment.config import ImportModel, Run
from alignment.context import StageContext
from alignment.data.adapter_config import read_adapter_config
from alignment.errors import KubeAlignError, ModelError
from alignment.inference.loading import load_policy
from tests.models import published
from tests.training.families import family

IDS = torch.arange(3, 40).unsqueeze(0)
Maker = Callable[..., tuple[Path, torch.Tensor]]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(str(tmp_path_factory.mktemp("adapters") / "store"))


@pytest.fixture(scope="module")
def base(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Embedding and head are one."""
    return family("llama-tied", store, tmp_path_factory.mktemp("tied"))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


@pytest.fixture
def theirs(base: Artifact, tmp_path: Path) -> Maker:
    """(keys of LoraConfig) -> a folder that PEFT alone made, and what its model says."""
    def make(auto_save: bool = True, **keys: Any) -> tuple[Path, torch.Tensor]:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(base.path() / "model", dtype=torch.float32)
        config = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **keys}
        adapted = get_peft_model(model, LoraConfig(**config))
        noise = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape, generator=noise) * 0.1)
        adapted.save_pretrained(tmp_path / "theirs", **({} if auto_save else {"save_embedding_layers": False}))
        return tmp_path / "theirs", logits(adapted)

    return make


def imported(store: Store, base: Artifact, folder: Path, work: Path, key: str) -> Artifact:
    from alignment.inference.import_model import import_model

    run = Run.model_validate({"name": "import", "store": store.url, "stages": (
        {"kind": "import", "name": "base", "model": {"source": "tiny"}},
        {"kind": "import", "name": "theirs", "model": {"source": "folder", "path": str(folder), "base": "base"}})})
    stage = run.stages[1]
    assert isinstance(stage, ImportModel)
    context = StageContext(run=run, stage=stage, store=store, key=key, digest="0" * 64, inputs={"base": base},
                           work=work / "work")
    import_model(context)
    return published(store, key, context.out)


@pytest.mark.parametrize(("name", "keys"), [
    ("plain", {}), ("regex", {"target_modules": r".*layers\.1.*(q|v)_proj"}), ("rslora", {"use_rslora": True}),
    ("ranks", {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}}),
    ("whole", {"modules_to_save": ["embed_tokens"]}),
    ("tied", {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
    ("head", {"target_modules": ["q_proj", "lm_head"], "auto_save": False}),
    ("both", {"target_modules": ["embed_tokens", "lm_head"], "auto_save": False}),
    ("embedding", {"target_modules": ["embed_tokens"], "auto_save": False}),
    ("tied-low", {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True, "auto_save": False}),
])
def test_it_computes_here_as_it_did_there(
    name: str, keys: dict[str, Any], base: Artifact, store: Store, theirs: Maker, tmp_path: Path
) -> None:
    folder, wanted = theirs(**keys)
    made = imported(store, base, folder, tmp_path, f"{name}-000000000000")
    assert (wanted - logits(load_policy(base, dtype=torch.float32, device="cpu"))).abs().max() > 0.1
    for merge in (True, False):
        said = logits(load_policy(made, dtype=torch.float32, device="cpu", merge=merge))
        torch.testing.assert_close(said, wanted, atol=1e-4, rtol=1e-4)
    info = json.loads((made.path() / "model" / "kubealign.json").read_text())
    assert (info["role"], info["form"], info["base"]) == ("policy", "adapter", base.key)
    assert (made.path() / "model" / "chat_template.jinja").exists()


def test_an_adapter_of_another_model_is_refused_by_its_shapes(
    store: Store, theirs: Maker, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, _ = theirs()
    other = family("qwen3", store, tmp_path_factory.mktemp("other"))
    with pytest.raises(ModelError, match="cannot be loaded"):
        imported(store, family("gpt2", store, tmp_path_factory.mktemp("gpt")), folder, tmp_path / "a", "x-000000000000")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "r": 8}))
    with pytest.raises(ModelError, match="size mismatch") as error:
        imported(store, other, folder, tmp_path / "b", "y-000000000000")
    assert str(error.value).count("size mismatch") == 1


def test_weights_without_a_place_are_refused(
    base: Artifact, store: Store, theirs: Maker, tmp_path: Path
) -> None:
    folder, _ = theirs()
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ["q_proj"]}))
    with pytest.raises(ModelError, match="that no part of the adapter takes") as error:
        imported(store, base, folder, tmp_path, "z-000000000000")
    assert "v_proj" in str(error.value.found)


def test_a_tokenizer_with_tokens_of_its_own_is_refused(
    base: Artifact, store: Store, theirs: Maker, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    folder, _ = theirs()
    tokenizer = AutoTokenizer.from_pretrained(base.path() / "model")
    tokenizer.add_tokens(["<tool>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match="tokenizer is not its base's") as error:
        imported(store, base, folder, tmp_path, "w-000000000000")
    assert "<tool>" in str(error.value.found)


@pytest.mark.parametrize(("changed", "said"), [
    ({"peft_type": "IA3"}, "IA3"), ({"task_type": "SEQ_CLS"}, "SEQ_CLS"), ({"task_type": "SEQ_2_SEQ_LM"}, "SEQ_2_SEQ"),
    ({"bias": "all"}, "bias: all"), ({"use_dora": True}, "use_dora"), ({"init_lora_weights": "pissa"}, "pissa"),
    ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"), ({"lora_bias": True}, "lora_bias"),
    ({"trainable_token_indices": [5]}, "trainable_token_indices"), ({"layer_replication": [[0, 2]]}, "layer_repl"),
    ({"of_a_later_peft": {"on": 1}}, "of_a_later_peft"), ({"r": None}, "TypeError"), ({"lora_alpha": "8"}, "TypeError"),
])
def test_what_is_not_understood_is_refused_by_name_without_peft(
    changed: dict[str, Any], said: str, theirs: Maker
) -> None:
    folder, _ = theirs()
    config = json.loads((folder / "adapter_config.json").read_text())
    assert read_adapter_config(folder, "here")["r"] == 4
    (folder / "adapter_config.json").write_text(json.dumps({**config, **changed}))
    with pytest.raises(ModelError, match=said):
        read_adapter_config(folder, "here")


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", "{\"peft_type\": 3}", "\x00"])
def test_a_damaged_config_is_refused(text: str, theirs: Maker) -> None:
    folder, _ = theirs()
    (folder / "adapter_config.json").write_text(text)
    with pytest.raises(ModelError, match=r"adapter_config\.json|not known here"):
        read_adapter_config(folder, "here")


def test_pickled_weights_are_refused(theirs: Maker) -> None:
    folder, _ = theirs()
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ModelError, match="pickled"):
        read_adapter_config(folder, "here")


# --- check ---------------------------------------------------------------------------------------------------


def found(folder: Path, strategy: dict[str, Any]) -> list[KubeAlignError]:
    from alignment.checks.seen import READ_LIMIT, Sight
    from alignment.checks.stages import wrong
    from tests import small

    theirs = {"name": "theirs", "kind": "import", "model": {"source": "folder", "path": str(folder), "base": "base"}}
    run = small.run(folder.parent / "run", theirs, small.train("sft", model="theirs", strategy=strategy))
    sight = Sight(READ_LIMIT)
    return [error for stage in run.stages for _, error in wrong(run, stage, sight)]


def test_check_knows_what_a_stage_cannot_continue(theirs: Maker) -> None:
    folder, _ = theirs()
    q_and_v = {"targets": ["q_proj", "v_proj"]}
    assert found(folder, {"kind": "lora", "r": 4, "alpha": 8, **q_and_v}) == []
    (error,) = found(folder, {"kind": "lora", "r": 16, "alpha": 8, **q_and_v})
    assert (error.found, error.expected) == (16, "4")
    (error,) = found(folder, {"kind": "lora", "r": 4, "alpha": 32, **q_and_v})
    assert (error.found, error.expected) == (32, "8")
    (error,) = found(folder, {"kind": "qlora", "r": 4, "alpha": 8, **q_and_v})
    assert (error.found, error.expected) == ("qlora", "lora, or full, which merges it")
    assert found(folder, {"kind": "full"}) == []


def test_check_refuses_an_adapter_without_a_base_and_one_on_another_adapter(theirs: Maker, tmp_path: Path) -> None:
    from alignment.checks.seen import READ_LIMIT, Sight
    from alignment.checks.stages import wrong
    from tests import small

    folder, _ = theirs()
    stages = [{"name": name, "kind": "import", "model": {"source": "folder", "path": str(folder), **more}}
              for name, more in (("alone", {}), ("one", {"base": "base"}), ("two", {"base": "one"}))]
    run = small.run(tmp_path / "run", *stages)
    sight = Sight(READ_LIMIT)
    errors = {stage.name: [str(error) for _, error in wrong(run, stage, sight)] for stage in run.stages}
    assert errors["one"] == []
    assert "is an adapter, not a model" in errors["alone"][0]
    assert "base: STAGE" in errors["alone"][0]
    assert "an adapter stands on full weights" in errors["two"][0]


# --- as other tools leave their folders ----------------------------------------------------------------------


def looked_at(folder: Path, **more: Any) -> list[KubeAlignError]:
    """What `check` says of an import of a folder."""
    from alignment.checks.seen import READ_LIMIT, Sight
    from alignment.checks.stages import wrong
    from tests import small

    it = {"name": "it", "kind": "import", "model": {"source": "folder", "path": str(folder), **more}}
    run = small.run(folder.parent / "run", it)
    return [error for _, error in wrong(run, run.stage("it"), Sight(READ_LIMIT))]


def test_an_adapter_with_its_bases_config_is_not_taken_for_a_model(base: Artifact, theirs: Maker) -> None:
    """As Axolotl writes it: transformers would load whatever base the adapter names."""
    from alignment.config import FolderModel
    from alignment.inference.model_sources import load

    folder, _ = theirs()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((base.path() / "model" / name).read_bytes())
    (error,) = looked_at(folder)
    assert error.problem == "the folder is an adapter, not a model"
    source = FolderModel(source="folder", path=str(folder))
    with pytest.raises(ModelError, match="is an adapter, not a model"):
        load("it", source, 0, torch.float32)
    assert looked_at(folder, base="base") == []
    (folder / "model.safetensors").write_bytes((base.path() / "model" / "model.safetensors").read_bytes())
    (error,) = looked_at(folder)
    assert error.problem == "the folder is a model and an adapter at once"
    with pytest.raises(ModelError, match="at once"):
        load("it", source, 0, torch.float32)


def test_an_adapter_as_llama_factory_leaves_it_comes_in_with_its_template(
    base: Artifact, store: Store, theirs: Maker, tmp_path: Path
) -> None:
    """Tokenizer, template, checkpoints and logs beside the adapter, and a pickle that nobody reads."""
    folder, wanted = theirs()
    for file in (base.path() / "model").glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    text = (base.path() / "model" / "chat_template.jinja").read_text() + "{# theirs #}"
    (folder / "chat_template.jinja").write_text(text)
    (folder / "training_args.bin").write_bytes(b"a pickle")
    (folder / "checkpoint-4").mkdir()
    (folder / "README.md").write_text("---")
    made = imported(store, base, folder, tmp_path, "factory-000000000000")
    torch.testing.assert_close(logits(load_policy(made, dtype=torch.float32, device="cpu")), wanted, atol=1e-4,
                               rtol=1e-4)
    assert "{# theirs #}" in (made.path() / "model" / "chat_template.jinja").read_text()


@pytest.mark.parametrize("more", [{}, {"base": "base"}], ids=["model", "adapter"])
def test_a_folder_of_checkpoints_alone_says_which_could_be_meant(
    more: dict[str, Any], base: Artifact, theirs: Maker, tmp_path: Path
) -> None:
    above = tmp_path / "output"
    for step in (8, 100, 20):
        (above / f"checkpoint-{step}").mkdir(parents=True)
    (error,) = looked_at(above, **more)
    assert "holds checkpoints, and no model" in error.problem
    assert f"the last is {above / 'checkpoint-100'}" in str(error.hint)
    (above / "checkpoint-100" / "global_step100").mkdir()
    (error,) = looked_at(above, **more)
    assert "zero_to_fp32.py" in str(error.hint)
    folder, _ = theirs()
    assert looked_at(folder, base="base") == []
