"""An exported model is the trained one, in every form, and what is not is refused with numbers."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import alignment.training  # noqa: F401 - before trl: see there
from alignment.artifacts import Artifact
from alignment.errors import ModelError, StageError
from alignment.inference.loading import load_policy, load_tokenizer
from alignment.pipeline import execute
from tests import small
from tests.export.made import WIDE, export, exported, run

IDS = torch.tensor([[1, 87, 85, 269, 201, 35, 268, 286, 2, 201]])


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=IDS).logits.float()
        return found


def trained(store: Artifact, name: str = "sft") -> torch.Tensor:
    """What the adapter beside its base says."""
    key = store.manifest.facts["exported"]
    artifact = store.store.find(key)
    assert artifact is not None
    return logits(load_policy(artifact, dtype=torch.float32, device="cpu", merge=False))


def loaded(folder: Path) -> Any:
    """As anybody loads a model."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).float().eval()


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Each form at once, with an evaluation in the card and a push that is only listed."""
    return exported(run(
        tmp_path_factory.mktemp("every"),
        {"name": "eval", "kind": "evaluate", "models": ["base", "sft"], "rows": "data/test", "take": 4,
         "bootstrap": 100, "sampling": {"temperature": 0.0, "max_new_tokens": 4}},
        export(form=["safetensors", "adapter", "gguf", "nf4", "fp8"], gguf=["f32", "q8_0"], evaluations=["eval"],
               licence="apache-2.0", datasets={"data": {"licence": "cc-by-4.0", "hub": "me/rows"}},
               limits="Knows colours alone.", push_to_hub={"repo": "me/colours", "dry_run": True})))


def test_merged_weights_are_the_trained_model(every: Artifact) -> None:
    assert float((logits(loaded(every.path() / "model")) - trained(every)).abs().max()) < 1e-5
    metrics = every.manifest.metrics
    assert metrics["safetensors.kl"] < 1e-6
    assert metrics["safetensors.top1"] == metrics["safetensors.greedy"] == 1.0
    assert every.manifest.facts["merged_into"] == "original"


def test_each_form_is_measured_and_the_coarser_is_further_off(every: Artifact) -> None:
    metrics = every.manifest.metrics
    assert metrics["adapter.kl"] == 0.0
    assert metrics["gguf_f32.kl"] < 1e-6
    assert metrics["gguf_f32.kl"] < metrics["gguf_q8_0.kl"] < metrics["fp8.kl"] < metrics["nf4.kl"] < 0.01


def test_peft_transformers_and_trl_load_the_adapter_from_another_place(every: Artifact, tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM, PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    root = Path(every.store.root, "artifacts")
    base = every.manifest.facts["base"]
    for key in (base, every.key):
        shutil.copytree(root / key, tmp_path / key)
    folder, expected = tmp_path / every.key / "adapter", trained(every)
    named = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == f"../../{base}/model"
    by_hand = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / base / "model"), folder)
    assert torch.equal(logits(by_hand.eval()), expected)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # where the relative name holds
        assert torch.equal(logits(AutoPeftModelForCausalLM.from_pretrained(str(folder)).eval()), expected)
        assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(folder).eval()), expected)
    trainer = SFTTrainer(
        str(tmp_path / every.key / "model"), SFTConfig(output_dir=str(tmp_path / "trl"), bf16=False, use_cpu=True,
                                                       report_to=[]),
        train_dataset=_messages(), processing_class=AutoTokenizer.from_pretrained(folder))
    assert float((logits(trainer.model.eval()) - expected).abs().max()) < 1e-5


def _messages() -> Any:
    from datasets import Dataset

    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
    return Dataset.from_list([{"messages": turns}])


def test_nf4_loads_by_its_own_config(every: Artifact) -> None:
    config = json.loads((every.path() / "nf4" / "config.json").read_text())
    assert config["quantization_config"]["bnb_4bit_quant_type"] == "nf4"
    assert sum(file.stat().st_size for file in (every.path() / "nf4").glob("*.safetensors")) < sum(
        file.stat().st_size for file in (every.path() / "model").glob("*.safetensors"))


def test_a_dry_run_lists_files_sizes_and_the_commit(every: Artifact) -> None:
    push = every.manifest.facts["push"]
    listed = {item["path"]: item["bytes"] for item in push["files"]}
    assert {"README.md", "config.json", "model.safetensors", "colours-Q8_0.gguf", "adapter/adapter_config.json",
            "nf4/config.json", "fp8/config.json"} <= set(listed)
    assert listed["model.safetensors"] == (every.path() / "model" / "model.safetensors").stat().st_size
    assert push["commit"].startswith(f"KubeAlign {every.key}")
    assert "pushed_revision" not in push
    assert push["bytes"] == sum(listed.values()) == every.manifest.metrics["bytes"]


def test_the_card_says_where_it_comes_from_and_what_was_measured(every: Artifact) -> None:
    from huggingface_hub import ModelCard

    text = (every.path() / "model" / "README.md").read_text(encoding="utf-8")
    card = ModelCard(text)
    assert card.data.license == "apache-2.0"
    assert card.data.datasets == ["me/rows"]
    assert card.data.library_name == "transformers"
    assert {"kubealign", "sft"} <= set(card.data.tags)
    data = next(artifact for key in _below(every) if key.startswith("import-data")
                and (artifact := every.store.find(key)) is not None)
    for part in ("| data | me/rows | 24 train, 8 dev, 8 test |", data.manifest.parts["sources"][0][:16], "cc-by-4.0",
                 "**sft**", "perplexity", "learning_rate 0.005", "Knows colours alone.", "transformers 5",
                 f"{every.manifest.metrics['nf4.kl']:.2e}"):
        assert part in text, part
    assert str(Path(every.store.root)) not in text, "nothing of this machine"
    assert re.search(r"^- sft: lora r 4, .*; learning_rate 0\.005, ", text, re.MULTILINE), text
    assert "{'" not in text, "a mapping is written out"
    adapter = ModelCard((every.path() / "adapter" / "README.md").read_text(encoding="utf-8"))
    assert adapter.data.library_name == "peft"


def test_the_report_has_every_form_with_its_numbers(every: Artifact) -> None:
    page = Path(every.store.root, "runs", "small", "report.html").read_text(encoding="utf-8")
    part = page.partition('<section id="exports">')[2].partition("</section>")[0]
    forms = ("safetensors", "adapter", "gguf_f32", "gguf_q8_0", "nf4", "fp8")
    assert [form for form in forms if f">{form}<" not in part] == []
    assert "Dry run" in part
    assert "me/colours" in part


def _below(artifact: Artifact) -> set[str]:
    found, waiting = set[str](), [artifact.key]
    while waiting:
        key = waiting.pop()
        below = artifact.store.find(key)
        if key not in found and below is not None:
            found.add(key)
            waiting += below.manifest.inputs.values()
    return found


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with an adapter that was trained over four bits."""
    folder = tmp_path_factory.mktemp("quantised")
    execute(run(folder, base=WIDE, strategy={"kind": "qlora", "r": 4, "alpha": 8}))
    return folder


def test_an_adapter_of_four_bits_is_merged_into_what_they_stand_for(quantised: Path) -> None:
    made = exported(run(quantised, export(form=["safetensors", "adapter"]), base=WIDE,
                        strategy={"kind": "qlora", "r": 4, "alpha": 8}))
    assert made.manifest.facts["merged_into"] == "dequantised"
    assert made.manifest.metrics["safetensors.kl"] < 1e-6
    assert float((logits(loaded(made.path() / "model")) - trained(made)).abs().max()) < 1e-5
    assert "quantization_config" not in json.loads((made.path() / "model" / "config.json").read_text())


def test_merged_into_the_wrong_base_it_fails_with_numbers(quantised: Path) -> None:
    with pytest.raises(StageError, match="not the model that was trained") as caught:
        exported(run(quantised, export(merge_into="original", max_kl=1e-6), base=WIDE,
                     strategy={"kind": "qlora", "r": 4, "alpha": 8}))
    assert "KL" in str(caught.value.found)
    assert "at most 1e-06" in str(caught.value.expected)


def test_tied_embeddings_that_an_adapter_trains_come_through(tmp_path: Path) -> None:
    from alignment.artifacts import Store
    from tests.training.families import family

    base = family("llama-tied", Store(str(tmp_path / "made")), tmp_path)
    source = {**small.BASE, "model": {"source": "folder", "path": str(base.path() / "model")}}
    made = exported(run(tmp_path, export(form=["safetensors", "gguf"], gguf=["f32"]), base=source,
                        strategy={"kind": "lora", "r": 4, "alpha": 8, "modules_to_save": ["embed_tokens"]}))
    merged = loaded(made.path() / "model")
    assert float((logits(merged) - trained(made)).abs().max()) < 1e-4
    assert made.manifest.metrics["gguf_f32.kl"] < 1e-6
    config = json.loads((made.path() / "model" / "config.json").read_text())
    tied = merged.get_input_embeddings().weight is merged.get_output_embeddings().weight
    assert config["tie_word_embeddings"] is tied


def test_tokens_that_were_added_are_in_the_merged_model(tmp_path: Path) -> None:
    base = {**small.BASE, "new_tokens": ["<|eot|>"]}
    made = exported(run(tmp_path, export(form=["safetensors", "gguf"], gguf=["f16"]), base=base,
                        strategy={"kind": "lora", "r": 4, "alpha": 8, "modules_to_save": ["embed_tokens", "lm_head"]}))
    tokenizer = load_tokenizer(made.path() / "model", side="right")
    rows = loaded(made.path() / "model").get_input_embeddings().weight.shape[0]
    assert tokenizer.convert_tokens_to_ids("<|eot|>") == len(tokenizer) - 1 == rows - 1
    assert made.manifest.metrics["gguf_f16.kl"] < 1e-4


def test_an_adapter_alone_is_a_model_that_later_stages_read(tmp_path: Path) -> None:
    evaluate = {"name": "eval", "kind": "evaluate", "models": ["sft", "export"], "rows": "data/test", "take": 2,
                "bootstrap": 100, "sampling": {"temperature": 0.0, "max_new_tokens": 4}}
    made = execute(run(tmp_path, export(form=["adapter"], base_model="me/base"), evaluate)).artifacts
    out, measured = made["export"], made["eval"]
    assert out is not None
    assert measured is not None
    assert json.loads((out.path() / "model/adapter_config.json").read_text())["base_model_name_or_path"] == "me/base"
    metrics = measured.manifest.metrics
    assert metrics["sft.perplexity"] == metrics["export.perplexity"]
    assert measured.manifest.facts["held_out"]["seen"] == {"data/train": 24}, "rows to compare on are not learned from"


def test_a_model_without_an_adapter_has_none_to_export(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no adapter"):
        exported(run(tmp_path, export(form=["adapter"], model="base"), base=small.BASE))


def test_without_rows_built_in_prompts_are_compared_and_the_weights_are_stored_as_asked(tmp_path: Path) -> None:
    stage = {**export(form=["safetensors", "gguf"], gguf=["f32"], weights="bfloat16", shard_gb=0.0001),
             "rows": None, "take": None}
    made = exported(run(tmp_path, stage))
    assert made.manifest.facts["compared_on"] == "built-in prompts"
    assert made.manifest.facts["weights"] == "bfloat16"
    assert len(list((made.path() / "model").glob("model-*.safetensors"))) > 1
    assert 0 < made.manifest.metrics["safetensors.kl"] < 1e-2
    events = [json.loads(line) for line in (made.path() / "events.jsonl").read_text().splitlines()]
    assert {event["form"]: event["max_kl"] for event in events if event["event"] == "compared"} == {
        "safetensors": 1e-2, "gguf_f32": 1e-2}, "a file of rounded weights is as far off as they are"
