"""Runs from other tools' files: what each key becomes, and that every key is said of once."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from alignment.cli.migrate import Migrated, arguments, axolotl, llama_factory, migrate, tool_of, trl
from alignment.cli.migrate.carried import Reading, leaves
from alignment.cli.migrate.written import text_of
from alignment.config import Run, parse_run
from alignment.errors import ConfigError
from tests.cli.migrate.samples import AXOLOTL, INFOS, LLAMA_FACTORY, TRL, stands


def made(given: dict[str, Any], **keys: Any) -> tuple[Migrated, Run]:
    found = migrate(given, "theirs.yaml", "mine", **keys)
    return found, parse_run(text_of(found, "theirs.yaml"))


def became(found: Migrated) -> dict[str, str | None]:
    return {one.key: one.to for one in found.carried}


def note(found: Migrated, key: str) -> str:
    return next(one.note for one in found.carried if one.key == key)


def stage(found: Migrated, name: str) -> dict[str, Any]:
    return next(one for one in found.run["stages"] if one["name"] == name)


def test_llama_factory() -> None:
    found, run = made(LLAMA_FACTORY, infos=INFOS, processes=2)
    assert found.tool == "LLaMA-Factory"
    assert stage(found, "base") == {
        "name": "base", "kind": "import", "model": {"source": "hub", "repo": "Qwen/Qwen2.5-0.5B-Instruct"},
        "template": "qwen"}
    assert stage(found, "data")["data"] == [
        {"path": "data/chat.json", "format": "sharegpt", "name": "harbour-chat", "take": 500},
        {"path": "data/tasks.jsonl", "format": "alpaca", "name": "harbour-tasks", "take": 500}]
    assert stage(found, "data")["split"]["ratios"] == {"train": 0.95, "dev": 0.05}
    sft = stage(found, "sft")
    assert sft["strategy"] == {"kind": "qlora", "r": 8, "alpha": 32, "dropout": 0.05, "targets": ["q_proj", "v_proj"]}
    assert (sft["batch_size"], sft["micro_batch_size"], sft["epochs"], sft["learning_rate"]) == (16, 2, 2.5, 1e-4)
    assert (sft["max_length"], sft["loss"], sft["dtype"]) == (1536, "assistant", "bfloat16")
    assert sft["eval_rows"] == "data/dev"
    assert sft["checkpoints"] == {"every": 100, "keep": 3, "final": "best"}
    assert sft["trl"] == {"warmup_steps": 0.1, "lr_scheduler_type": "cosine", "weight_decay": 0.01,
                          "max_grad_norm": 0.5, "optim": "adamw_torch"}
    assert found.run["compute"] == {"workers": 2, "gpus_per_worker": 1.0, "sharding": "zero3"}
    assert (run.seed, run.stages[2].tag) == (7, "sft")
    assert became(found)["flash_attn"] is None
    assert "by its name" in note(found, "deepspeed")
    assert any("optim: adamw_torch" in said for said in found.said)


@pytest.mark.parametrize(("name", "source", "loss"), [
    ("harbour_openai", {"path": "data/openai.json", "format": "messages"}, "assistant"),
    ("harbour_tasks", {"path": "data/tasks.jsonl", "format": "alpaca"}, "completion"),
    ("harbour_hub", {"hub": "some/harbour", "config": "en", "split": "train", "format": "columns",
                     "columns": {"instruction": "ask", "output": "said"}}, "completion"),
])
def test_llama_factorys_formats(name: str, source: dict[str, Any], loss: str) -> None:
    found, _ = made({**LLAMA_FACTORY, "dataset": name, "max_samples": None}, infos=INFOS)
    assert stage(found, "data")["data"] == [{**source, "name": name.replace("_", "-")}]
    assert stage(found, "sft")["loss"] == loss


@pytest.mark.parametrize(("name", "why"), [
    ("harbour_script", "a script"), ("harbour_ms", "Hugging Face's"), ("harbour_seen", "only text is read"),
    ("harbour_turns", "role_tag who"),
])
def test_data_sets_that_cannot_be_carried_are_said_and_leave_a_placeholder(name: str, why: str) -> None:
    found, _ = made({**LLAMA_FACTORY, "dataset": name}, infos=INFOS)
    assert became(found)["dataset"] is None
    assert why in note(found, "dataset")
    assert any("placeholder" in said for said in found.said)


def test_without_dataset_info_paths_are_guesses_and_said_so() -> None:
    found, _ = made({**LLAMA_FACTORY, "dataset": "harbour_chat"})
    assert stage(found, "data")["data"][0]["path"] == "data/harbour_chat.json"
    assert "guesses" in note(found, "dataset")


@pytest.mark.parametrize(("keys", "method", "trl_keys"), [
    ({"stage": "rm", "dataset": "harbour_pairs"}, "reward", {}),
    ({"stage": "dpo", "dataset": "harbour_pairs", "pref_beta": 0.2, "pref_loss": "ipo"}, "dpo",
     {"beta": 0.2, "loss_type": "ipo"}),
    ({"stage": "dpo", "dataset": "alpaca_pairs", "pref_ftx": 0.5}, "dpo",
     {"beta": 0.1, "loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}),
    ({"stage": "dpo", "dataset": "harbour_pairs", "pref_loss": "orpo"}, "orpo", {"beta": 0.1}),
    ({"stage": "kto", "dataset": "harbour_kto", "kto_chosen_weight": 1.5}, "kto",
     {"beta": 0.1, "desirable_weight": 1.5}),
])
def test_llama_factorys_stages(keys: dict[str, Any], method: str, trl_keys: dict[str, Any]) -> None:
    found, run = made({**LLAMA_FACTORY, **keys, "packing": None, "train_on_prompt": None}, infos=INFOS)
    assert run.stages[-1].tag == method
    assert {key: stage(found, method)["trl"].get(key) for key in trl_keys} == trl_keys


def test_ppo_gets_a_reward_model_of_its_own_run() -> None:
    found, run = made({**LLAMA_FACTORY, "stage": "ppo", "reward_model": "saves/rm", "max_new_tokens": 64, "top_p": 0.9,
                       "lora_dropout": 0.0, "packing": None, "train_on_prompt": None}, infos=INFOS)
    assert [one.name for one in run.stages] == ["base", "data", "pairs", "rm", "ppo"]
    assert became(found)["reward_model"] is None
    assert "preferences.jsonl" in note(found, "reward_model")
    assert stage(found, "ppo")["max_new_tokens"] == 64


def test_axolotl() -> None:
    found, run = made(AXOLOTL)
    assert found.tool == "Axolotl"
    assert stage(found, "data")["data"] == [
        {"hub": "some/chats", "split": "train[:10%]", "format": "sharegpt"},
        {"path": "data/more.jsonl", "format": "messages"}]
    assert "no format here reads rows of type input_output" in note(found, "datasets[2].type")
    assert stage(found, "base")["pad_token"] == "<|endoftext|>"
    assert stage(found, "base")["template"] == "chatml"
    sft = stage(found, "sft")
    assert sft["strategy"] == {"kind": "qlora", "r": 16, "alpha": 32, "dropout": 0.05, "targets": "all-linear"}
    assert (sft["batch_size"], sft["micro_batch_size"], sft["packing"], sft["loss"]) == (8, 2, True, "assistant")
    assert sft["trl"] == {"lr_scheduler_type": "cosine", "optim": "adamw_torch", "warmup_steps": 10,
                          "weight_decay": 0.0}
    assert found.run["compute"]["sharding"] == "zero2"
    assert became(found)["special_tokens.eos_token"] is None
    assert run.seed == 42


def test_axolotls_alpaca_is_text_and_so_is_ours() -> None:
    found, _ = made({**AXOLOTL, "chat_template": None, "datasets": [{"path": "some/alpaca", "type": "alpaca"}]})
    assert stage(found, "base")["template"] == "alpaca"
    assert any("### Input:" in said for said in found.said)
    assert stage(found, "sft")["loss"] == "completion"
    everything, _ = made({**AXOLOTL, "train_on_inputs": True})
    assert stage(everything, "sft")["loss"] == "all"


@pytest.mark.parametrize(("rl", "kind", "source"), [
    ("dpo", "chatml.intel", {"format": "columns", "columns": {"system": "system", "prompt": "question",
                                                               "chosen": "chosen", "rejected": "rejected"}}),
    ("ipo", "llama3.ultra", {"format": "preference"}),
    ("kto", {"field_prompt": "ask", "field_completion": "said", "field_label": "wanted"},
     {"format": "columns", "columns": {"prompt": "ask", "completion": "said", "label": "wanted"}}),
    ("orpo", "chatml.argilla", {"format": "columns", "columns": {
        "prompt": "instruction", "chosen": "chosen_response", "rejected": "rejected_response"}}),
])
def test_axolotls_preferences(rl: str, kind: Any, source: dict[str, Any]) -> None:
    found, run = made({**AXOLOTL, "rl": rl, "datasets": [{"path": "some/pairs", "type": kind}]})
    assert stage(found, "data")["data"] == [{"hub": "some/pairs", "split": "train", **source}]
    assert run.stages[-1].tag == axolotl.METHODS[rl]
    assert stage(found, axolotl.METHODS[rl])["trl"].get("loss_type") == ("ipo" if rl == "ipo" else None)
    assert became(found)["train_on_inputs"] is None


def test_trl() -> None:
    found, run = made(TRL, method="dpo")
    source = {"hub": "some/pairs", "config": "en", "streaming": False, "format": "preference"}
    assert stage(found, "data")["data"] == [{**source, "split": "train_prefs"}]
    assert stage(found, "held")["data"] == [{**source, "split": "test_prefs"}]
    dpo = stage(found, "dpo")
    assert dpo["strategy"] == {"kind": "lora", "r": 32, "alpha": 16, "dropout": 0.05, "targets": ["q_proj", "k_proj"]}
    assert dpo["trl"] == {"warmup_steps": 0.1, "beta": 0.05, "loss_type": "ipo"}
    assert (dpo["eval_rows"], dpo["batch_size"], dpo["log_every"], dpo["log_to"]) == ("held/dev", 8, 5, [])
    assert "not known to this table" in note(found, "no_such_key")
    assert became(found)["eval_steps"] is None
    assert run.stages[0].model.revision == "v1"


def test_trl_learns_whole_conversations_and_at_its_own_rate() -> None:
    base = {"model_name_or_path": "./model", "dataset_name": "some/chats", "packing": True}
    found, run = made(base)
    sft = stage(found, "sft")
    assert (sft["loss"], sft["learning_rate"], sft["epochs"], sft["strategy"]) == ("all", 2e-5, 3.0, {"kind": "full"})
    assert run.stages[0].model.path == "./model"
    for keys, loss in (({"assistant_only_loss": True}, "assistant"), ({"completion_only_loss": True}, "completion")):
        found, _ = made({**base, **keys, "use_peft": True})
        assert (stage(found, "sft")["loss"], stage(found, "sft")["learning_rate"]) == (loss, 2e-5)


def test_trls_mixture_is_a_source_each() -> None:
    found, _ = made({"model_name_or_path": "a/b", "use_peft": True, "packing": False, "test_split_size": 0.1,
                     "dataset_streaming": None, "streaming": True, "datasets": [
                         {"path": "some/chats", "name": "en", "split": "train"},
                         {"path": "json", "data_files": "more.jsonl", "split": "train"},
                         {"path": "some/part", "data_dir": "sub", "fraction": 0.5}, {"path": "local-folder"}]})
    assert stage(found, "data")["data"] == [
        {"hub": "some/chats", "config": "en", "split": "train", "streaming": True, "format": "messages"},
        {"path": "more.jsonl", "format": "messages"}]
    assert stage(found, "data")["split"]["ratios"] == {"train": 0.9, "dev": 0.1}
    assert (became(found)["datasets[2].data_dir"], became(found)["datasets[2].path"]) == (None, None)
    assert became(found)["datasets[3].path"] is None


def test_axolotls_file_and_what_is_held_out_of_it() -> None:
    found, run = made({**AXOLOTL, "val_set_size": 0, "test_datasets": [
        {"path": "data/held.jsonl", "type": "chat_template", "split": "train"}], "ray_num_workers": 4})
    assert stage(found, "held")["data"] == [{"path": "data/held.jsonl", "format": "messages"}]
    assert stage(found, "sft")["eval_rows"] == "held/dev"
    assert run.compute.workers == 4
    assert stage(found, "sft")["batch_size"] == 32
    assert became(found)["test_datasets[0].split"] is None


def test_a_value_that_the_method_refuses_is_said_with_its_reason() -> None:
    found, _ = made({**AXOLOTL, "lr_scheduler": "one_cycle", "optimizer": "came_pytorch"})
    assert became(found)["lr_scheduler"] is None
    assert "lr_scheduler_type" in note(found, "lr_scheduler")
    assert became(found)["optimizer"] is None


def test_checkpoints_lie_on_log_lines() -> None:
    found, run = made({**LLAMA_FACTORY, "save_steps": 25, "logging_steps": 10})
    assert run.stages[-1].log_every == 5
    assert any("log_every: 5" in said for said in found.said)


@pytest.mark.parametrize(("given", "problem"), [
    ({}, "no training file that is known"), ({"model_name_or_path": "a/b"}, "no training file that is known"),
    ({"stages": [], "name": "x"}, "a run file already"),
    ({**LLAMA_FACTORY, "base_model": "a/b", "sequence_len": 1}, "several tools"),
    ({**LLAMA_FACTORY, "stage": "pt"}, "no pretraining"),
    ({**LLAMA_FACTORY, "finetuning_type": "freeze"}, "no such strategy"),
    ({**LLAMA_FACTORY, "stage": "dpo", "pref_loss": "simpo"}, "nothing here that does what"),
    ({**LLAMA_FACTORY, "quantization_bit": 8}, "four bits"), ({**LLAMA_FACTORY, "lora_rank": "many"}, "not a value"),
    ({**LLAMA_FACTORY, "lora_rank": 1.5}, "not a value"),
    ({**LLAMA_FACTORY, "model_name_or_path": None}, "names no model"),
    ({**AXOLOTL, "rl": "grpo"}, "nothing here that does what"),
    ({**AXOLOTL, "learning_rate": None}, "no learning rate"),
    ({**AXOLOTL, "sample_packing": "perhaps"}, "not a value"), (TRL | {"num_generations": 4, "beta": None}, "rewards"),
    (TRL, "does not say what it is for"),
])
def test_what_cannot_become_a_run_is_one_clear_error(given: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as error:
        migrate(given, "theirs.yaml", "mine", infos=INFOS)
    assert str(error.value.where).startswith(("theirs.yaml", "--method"))


TABLES = {"LLaMA-Factory": (LLAMA_FACTORY, llama_factory), "Axolotl": (AXOLOTL, axolotl), "TRL": (TRL, trl)}
MORE = sorted({*arguments._LEFT, *llama_factory._LEFT, *axolotl._LEFT, *trl._LEFT, "a.b", "a", "beta", "rl_beta",
               "dpo_beta", "warmup_steps", "warmup_ratio", "save_strategy", "mask_history", "pref_ftx", "batch_size",
               "max_steps", "load_in_8bit", "fp16", "lora_modules_to_save", "test_split_size", "optim_args",
               "adapter_name_or_path", "additional_target", "lora_model_dir", "chat_template", "template", "dtype",
               *LLAMA_FACTORY, *AXOLOTL, *TRL})
VALUES = st.one_of(st.none(), st.booleans(), st.integers(-2, 9), st.floats(0, 2, width=16), st.sampled_from(
    ["auto", "no", "steps", "qwen", "x", "1e-4", "a/b", ""]), st.lists(st.sampled_from(["a", "b"]), max_size=2),
    st.dictionaries(st.sampled_from(["a", "b.c", "role"]), st.integers(0, 1), max_size=2),
    st.lists(st.dictionaries(st.sampled_from(["path", "type", "split"]), st.sampled_from(["a/b", "alpaca", ""]),
                             max_size=3), min_size=1, max_size=2))


@pytest.mark.parametrize("tool", TABLES)
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example(taken=[], added={})
@example(taken=[], added={"a.b": 1, "a": {"b": 2, "c": []}})
@given(taken=st.lists(st.integers(0, 60), max_size=20),
       added=st.dictionaries(st.sampled_from(MORE), VALUES, max_size=6))
def test_every_key_is_said_of_exactly_once_and_stands_where_it_is_said(
    tool: str, taken: list[int], added: dict[str, Any]
) -> None:
    sample = TABLES[tool][0]
    needed = {"model_name_or_path", "base_model", "stage", "learning_rate", "sequence_len", "dataset_name"}
    given = {key: value for index, (key, value) in enumerate(sample.items()) if index not in taken or key in needed}
    given |= added
    try:
        found = migrate(given, "theirs.yaml", "mine", infos=INFOS, method="dpo" if tool == "TRL" else None)
    except ConfigError:
        return
    assert [one.key for one in found.carried] == [key for key, _ in leaves(given)]
    assert len({one.key for one in found.carried}) == len(found.carried)
    for one in found.carried:
        assert one.to is not None or one.note, one
        assert one.to is None or stands(found.run, one.to), (one, found.run)


@pytest.mark.parametrize("tool", TABLES)
def test_what_a_sample_becomes_loads_and_says_most_of_it(tool: str) -> None:
    sample, _ = TABLES[tool]
    found, run = made(sample, infos=INFOS, **({"method": "dpo"} if tool == "TRL" else {}))
    assert run.name == "mine"
    assert sum(one.to is not None for one in found.carried) > len(found.carried) / 2
    assert all(stands(found.run, one.to) for one in found.carried if one.to is not None)
    assert json.loads(json.dumps(found.run)) == found.run


def test_a_key_may_not_be_said_of_twice() -> None:
    read = Reading({"a": 1, "b": None})
    assert read.take("a", "x") == 1
    with pytest.raises(AssertionError, match="said twice"):
        read.leave("a", "why")
    assert read.take("b", "x") is None
    assert [(one.key, one.to) for one in read.told()] == [("a", "x"), ("b", None)]
    assert tool_of({"base_model": "a", "num_epochs": 1}, "f") == "Axolotl"
