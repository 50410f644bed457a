"""The proof: what was measured is served, and every planted fault keeps a model from it, with the row and how it
differs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from alignment.artifacts import Artifact, Store
from alignment.inference import nf4
from alignment.inference.info import INFO, base_artifact, write_info
from alignment.inference.loading import load_tokenizer
from alignment.inference.proof_rows import ROWS, ProofRow, ScoreRow
from alignment.pipeline.served_by import served
from alignment.serving import records
from alignment.serving.proving import request_of
from alignment.serving.service import Model, Service
from alignment.serving.shapes import ChatRequest, read
from alignment.templates import source, template_hash
from tests.models import as_it_lies
from tests.serving.built import ANSWER, CPU, copied, proved, published, service_of

WEIGHTS = "model/adapter_model.safetensors"


def file_of(artifact: Artifact, name: str) -> Path:
    return Path(artifact.store.root, "artifacts", artifact.key, name)


def test_an_evaluation_records_what_each_model_answered(models: dict[str, Artifact]) -> None:
    for name, artifact in models.items():
        record = records.find(artifact)
        assert record is not None
        assert record.source.startswith("evaluate-")
        assert len(record.rows) == ROWS
        assert {row.model for row in record.rows} == {artifact.key}
        if name == "rm":
            assert all(isinstance(row, ScoreRow) for row in record.rows)
            continue
        for row in record.rows:
            assert isinstance(row, ProofRow)
            assert len(row.answer) == len(row.log_probs) == len(row.gaps) <= ANSWER + 1
            assert all(gap >= 0 for gap in row.gaps)
            assert (row.stop is not None) == (row.answer[-1] in row.stops)


def test_what_was_measured_is_served_and_the_proof_lies_beside_the_artifact(
    models: dict[str, Artifact], tmp_path: Path
) -> None:
    own = {name: copied(artifact, tmp_path / name) for name, artifact in models.items()}
    service = proved(service_of(own))
    for name, model in service.models.items():
        assert (model.state, model.trouble) == ("ready", None)
        [written] = Path(own[name].store.root, "served", model.artifact.key).glob("proof-*.json")
        kept = json.loads(written.read_text())
        assert kept["proved"]
        assert kept["artifact"] == model.artifact.key
        assert kept["rows"] == ROWS
        [told] = served(model.artifact, [])
        assert (told.name, told.proved, told.problem, told.service) == (name, True, None, None)
        assert told.at.replace("-", "").replace(":", "") == kept["at"]
        model.artifact.verify(deep=True)
    assert service.models["sft"].proof["compared"] > 40
    assert service.models["sft"].proof["most_off"] < 1e-4


# --- planted faults ------------------------------------------------------------------------------------------


def served_as(
    artifact: Artifact, record_of: Artifact, plant: Callable[[Service], None] = lambda service: None
) -> Model:
    """An artifact, held to what another one answered."""
    model = Model("own", artifact, records.find(record_of))
    return proved(Service([model], CPU, service_of({}).limits), plant).models["own"]


def test_the_base_under_the_adapters_name(models: dict[str, Artifact], tmp_path: Path) -> None:
    def passed_over(service: Service) -> None:
        """As vllm#55193: the adapter's name is not found, and the base answers."""
        model = service.models["own"]
        assert model.live is not None
        model.live = replace(model.live, adapter=None)

    model = served_as(models["sft"], models["sft"], passed_over)
    assert model.state == "failed"
    assert "row rows-r" in str(model.trouble)
    assert "recorded" in str(model.trouble)


def test_an_adapter_that_lost_its_weights(models: dict[str, Artifact], tmp_path: Path) -> None:
    own = copied(models["sft"], tmp_path / "store")
    tensors = load_file(file_of(own, WEIGHTS))
    save_file({name: torch.zeros_like(one) if "lora_B" in name else one for name, one in tensors.items()},
              file_of(own, WEIGHTS))
    model = served_as(as_it_lies(own), models["sft"])
    assert model.state == "failed"
    assert "row rows-r" in str(model.trouble)


def test_an_adapter_that_never_was_one_is_said_and_served(models: dict[str, Artifact], tmp_path: Path) -> None:
    """A fresh adapter says what its base says, and its record does too."""
    own = copied(models["sft"], tmp_path / "store")
    tensors = load_file(file_of(own, WEIGHTS))
    save_file({name: torch.zeros_like(one) if "lora_B" in name else one for name, one in tensors.items()},
              file_of(own, WEIGHTS))
    fresh = as_it_lies(own)
    made = Model("fresh", fresh, records.make(fresh, CPU))
    model = proved(Service([made], CPU, service_of({}).limits)).models["fresh"]
    assert model.state == "ready"
    assert "says what its base says" in model.proof["note"]


def test_an_adapter_that_cannot_be_told_from_its_base(models: dict[str, Artifact], tmp_path: Path) -> None:
    own = copied(models["sft"], tmp_path / "store")
    tensors = load_file(file_of(own, WEIGHTS))
    save_file({name: one * 0 if "lora_A" in name else one for name, one in tensors.items()}, file_of(own, WEIGHTS))
    idle = as_it_lies(own)
    made = Model("idle", idle, records.make(idle, CPU))
    model = proved(Service([made], CPU, service_of({}).limits)).models["idle"]
    assert model.state == "failed"
    assert "cannot be told from its base" in str(model.trouble)


def test_another_template(models: dict[str, Artifact], tmp_path: Path) -> None:
    own = copied(models["sft"], tmp_path / "store")
    text = source("alpaca")
    file_of(own, "model/chat_template.jinja").write_text(text)
    changed = as_it_lies(own)
    assert "the chat template is not the one" in str(served_as(changed, models["sft"]).trouble)
    # and where somebody wrote its hash too
    info = json.loads(file_of(own, f"model/{INFO}").read_text())
    file_of(own, f"model/{INFO}").write_text(json.dumps(
        info | {"template": {"name": "alpaca", "hash": template_hash(text)}}))
    model = served_as(as_it_lies(own), models["sft"])
    assert model.state == "failed"
    assert "the prompt has other ids: at place 0" in str(model.trouble)


def test_a_lost_stop_token(models: dict[str, Artifact], tmp_path: Path) -> None:
    own = copied(models["sft"], tmp_path / "store")
    info = json.loads(file_of(own, f"model/{INFO}").read_text())
    file_of(own, f"model/{INFO}").write_text(json.dumps(info | {"stop_ids": [11]}))
    record = records.make(as_it_lies(own), CPU)
    model = Model("own", models["sft"], record)
    assert proved(Service([model], CPU, service_of({}).limits)).models["own"].state == "failed"
    assert "other tokens end an answer: [0, 1, 2], recorded [0, 1, 2, 11]" in str(model.trouble)


def test_an_adapter_trained_on_another_base(models: dict[str, Artifact], tmp_path: Path) -> None:
    own = copied(models["sft"], tmp_path / "store")
    base = base_artifact(own)
    folder = tmp_path / "other"
    shutil.copytree(base.path() / "model", folder / "model")
    file = folder / "model" / "model.safetensors"
    torch.manual_seed(5)
    save_file({name: one + 0.02 * torch.randn_like(one) for name, one in load_file(file).items()}, file,
              metadata={"format": "pt"})
    published(own.store, "import-model-000000000000", "import", folder, {}, **base.manifest.facts)
    info = json.loads(file_of(own, f"model/{INFO}").read_text())
    file_of(own, f"model/{INFO}").write_text(json.dumps(info | {"base": "import-model-000000000000"}))
    model = served_as(as_it_lies(own), models["sft"])
    assert model.state == "failed"
    assert "row rows-r" in str(model.trouble)


def merged(models: dict[str, Artifact], store: Store, folder: Path, *, four_bits: bool) -> Artifact:
    """The adapter folded into its base, as it is or rounded to four bits, as an export makes it."""
    weights = AutoModelForCausalLM.from_pretrained(models["base"].path() / "model", dtype=torch.float32)
    if four_bits:
        nf4.round_weights(nf4.quantised_layers(weights), torch.float32, "cpu")
    whole = PeftModel.from_pretrained(weights, models["sft"].path() / "model").merge_and_unload()
    whole.save_pretrained(folder / "model")
    tokenizer = load_tokenizer(models["base"].path() / "model", side="right")
    tokenizer.save_pretrained(folder / "model")
    write_info(folder / "model", role="policy", form="full", base=None, tokenizer=tokenizer)
    key = f"export-{'4' * 12 if four_bits else '0' * 12}"
    return published(store, key, "export", folder, {"sft": models["sft"].key}, exported=models["sft"].key,
                     context_length=256, weights="float32")


def test_a_merged_model_is_held_to_what_its_adapter_answered(models: dict[str, Artifact], tmp_path: Path) -> None:
    store = copied(models["sft"], tmp_path / "store").store
    good = proved(service_of({"own": merged(models, store, tmp_path / "a", four_bits=False)})).models["own"]
    assert (good.state, good.trouble) == ("ready", None)
    bad = proved(service_of({"own": merged(models, store, tmp_path / "b", four_bits=True)})).models["own"]
    assert bad.state == "failed"
    assert "row rows-r" in str(bad.trouble) or "in the mean of" in str(bad.trouble)


@pytest.mark.parametrize("name", ["base", "sft"])
def test_a_truncated_tensor(models: dict[str, Artifact], tmp_path: Path, name: str) -> None:
    own = copied(models[name], tmp_path / "store")
    file = file_of(own, "model/model.safetensors" if name == "base" else WEIGHTS)
    tensors = load_file(file)
    cut = next(key for key in tensors if ("lm_head" if name == "base" else "down_proj.lora_B") in key)
    tensors[cut][len(tensors[cut]) // 2:] = 0
    save_file(tensors, file, metadata={"format": "pt"})
    model = served_as(as_it_lies(own), models[name])
    assert model.state == "failed"
    assert "row rows-r" in str(model.trouble)


def test_a_file_that_ends_too_soon_keeps_its_model_alone_from_being_served(
    models: dict[str, Artifact], tmp_path: Path
) -> None:
    own = copied(models["sft"], tmp_path / "store")
    file = file_of(own, WEIGHTS)
    file.write_bytes(file.read_bytes()[:-100])
    service = proved(service_of({"base": models["base"], "own": as_it_lies(own)}))
    assert service.models["base"].state == "ready"
    assert service.models["own"].state == "failed"
    assert not service.ready


def test_a_reward_model_with_another_head(models: dict[str, Artifact], tmp_path: Path) -> None:
    own = copied(models["rm"], tmp_path / "store")
    tensors = load_file(file_of(own, WEIGHTS))
    head = next(key for key in tensors if key.endswith("score.weight"))
    tensors[head] = -tensors[head]
    save_file(tensors, file_of(own, WEIGHTS))
    model = served_as(as_it_lies(own), models["rm"])
    assert model.state == "failed"
    assert "the score is" in str(model.trouble)


def test_without_proof_is_said(models: dict[str, Artifact], capsys: pytest.CaptureFixture[str]) -> None:
    model = proved(Service([Model("own", models["sft"], None)], CPU, service_of({}).limits)).models["own"]
    assert model.state == "ready"
    assert model.proof["proved"] is False
    assert "is served unproved, as asked" in capsys.readouterr().err


def test_what_is_asked_is_the_row_whatever_its_turns_hold() -> None:
    """Tools, calls and what a tool said go through JSON and come out as the row had them."""
    tool = {"type": "function", "function": {"name": "retrieve", "parameters": {"type": "object", "properties": {}}}}
    call = {"type": "function", "function": {"name": "retrieve", "arguments": {"query": "boat", "n": 2}}, "id": "c1"}
    messages = [
        {"role": "system", "content": "Be brief.", "tools": [tool]}, {"role": "user", "content": "Which boat? 红"},
        {"role": "assistant", "content": "", "tool_calls": [call], "reasoning_content": "I look.", "learn": False},
        {"role": "tool", "content": "The red one.", "name": "retrieve", "tool_call_id": "c1"},
    ]
    row = ProofRow("r", "sft-0", messages, [], [], [], [], [], None, [], 4, {})
    asked = read(ChatRequest, json.dumps(request_of("sft", row)).encode()).conversation()
    assert asked == [{key: value for key, value in turn.items() if key != "learn"} for turn in messages]


def test_rows_that_are_made_from_the_artifact_are_kept_and_say_so(
    models: dict[str, Artifact], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = copied(models["sft"], tmp_path / "store")
    record = records.make(own, CPU)
    assert "no evaluation of its store recorded" in capsys.readouterr().err
    assert len(Path(own.store.root, "served", own.key, "proof.jsonl").read_text().splitlines()) == len(record.rows)
    model = proved(Service([Model("own", own, record)], CPU, service_of({}).limits)).models["own"]
    assert (model.state, model.trouble) == ("ready", None)
