"""`check` keeps its promise: what would fail hours into a run is found before it begins, at its key."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.config import METHODS, row_of
from alignment.data.projections import PROJECTIONS
from alignment.rewards import BUILT_IN, lacking
from tests.cli.conftest import Call, Said

Change = Callable[[dict[str, Any]], None]
RUN: dict[str, Any] = {
    "name": "known", "compute": {"dtype": "float32", "device": "cpu"},
    "stages": [
        {"name": "base", "kind": "import", "model": {"source": "tiny"}},
        {"name": "seed", "kind": "import", "data": [{"path": "rows.jsonl", "format": "alpaca"}],
         "split": {"by": "ratio", "ratios": {"train": 0.5, "dev": 0.1, "prompts": 0.2, "test": 0.2}}},
        {"name": "sft", "kind": "train", "method": "sft", "model": "base", "rows": ["seed/train"],
         "learning_rate": 1e-3},
        {"name": "rs", "kind": "sample", "model": "sft", "prompts": ["seed/prompts"], "n": 2,
         "score": {"function": "brevity"}},
        {"name": "eval", "kind": "evaluate", "models": ["base", "sft"], "rows": "seed/test"},
    ],
}
ROWS = [{"instruction": f"Say number {n}.", "input": "", "output": f"number {n * 7}"} for n in range(40)]


@pytest.fixture
def checked(call: Call) -> Callable[..., Said]:
    """Check the run above with one change."""
    def check(change: Change = lambda run: None, command: str = "check") -> Said:
        run = copy.deepcopy(RUN)
        change(run)
        Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        Path("run.yaml").write_text(yaml.safe_dump(run, sort_keys=False))
        return call(command, "run.yaml")

    return check


def _stage(run: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(stage for stage in run["stages"] if stage["name"] == name)
    return found


def of(name: str, **keys: Any) -> Change:
    """Set keys of a stage."""
    return lambda run: _stage(run, name).update(keys)


def more(**stage: Any) -> Change:
    """One more stage, before the last."""
    return lambda run: run["stages"].insert(-1, stage)


def top(**keys: Any) -> Change:
    return lambda run: run.update(keys)


def test_the_run_itself_passes(checked: Callable[..., Said]) -> None:
    said = checked()
    assert (said.code, said.err) == (0, "")
    assert "!" not in said.out


# --- rows ---


@pytest.mark.parametrize(("change", "key", "problem"), [
    (of("eval", rows="seed/train"), "stages[4].rows", "read by stage sft, so they are not held out"),
    (of("eval", rows="seed/train", overlap="drop"), "stages[4].rows", "not held out"),
    (of("sft", eval_rows="seed/test"), "stages[4].rows", "read by stage sft"),
    (of("eval", models=["sft"], rows="rs/best"), "", ""),
    (of("sft", eval_rows="seed/train"), "stages[2].eval_rows", "reads already"),
    (of("sft", rows=["seed/train", "seed/train"]), "stages[2].rows[1]", "reads already"),
    (of("rs", prompts=["seed/prompts", "seed/prompts"]), "stages[3].prompts[1]", "reads already"),
    *((more(name="more", kind="train", method=method, model="sft", rows=["seed/train"]), "stages[4].rows",
       f"no row can be used for method {method}") for method in ("dpo", "kto", "reward")),
    (more(name="more", kind="train", method="reward", model="sft", rows=["rs/best"]), "stages[4].rows",
     "no row can be used for method reward"),
    (more(name="more", kind="train", method="dpo", model="sft", rows=["rs/pairs"], eval_rows="seed/dev"),
     "stages[4].eval_rows", "no row can be used"),
    (more(name="more", kind="train", method="dpo", model="sft", rows=["rs/pairs"]), "", ""),
    (of("rs", score={"function": "evidence_style"}), "stages[3].score.function", "cannot score 8 of 8 rows"),
    (of("eval", score={"function": "evidence_answer"}), "stages[4].score.function", "cannot score 8 of 8 rows"),
    (of("eval", score={"function": "token_f1"}), "", ""),
    (of("sft", max_length=4), "stages[2].max_length", "longer than max_length, whatever the tokenizer"),
    (of("rs", max_prompt_tokens=2), "stages[3].max_prompt_tokens", "every prompt is longer"),
    (of("eval", max_prompt_tokens=2), "stages[4].max_prompt_tokens", "every prompt is longer"),
    (lambda run: (of("sft", take=2)(run), run["compute"].update(workers=4)), "stages[2].rows",
     "fewer rows than workers"),
])
def test_rows_that_cannot_serve(change: Change, key: str, problem: str, checked: Callable[..., Said]) -> None:
    said = checked(change)
    assert said.code == (2 if problem else 0), said.err
    assert f"({key})" in said.err or not problem
    assert problem in said.err


def test_rows_made_from_rows_that_were_read_are_not_held_out_either(checked: Callable[..., Said]) -> None:
    def change(run: dict[str, Any]) -> None:
        of("sft", rows=["seed/train", "seed/prompts"])(run)
        of("eval", rows="rs/samples")(run)

    said = checked(change)
    assert said.code == 2
    assert "made from seed/prompts, which is read by stage sft" in said.err
    assert "one of seed/dev, seed/test" in said.err


def test_a_text_that_stands_in_two_files_is_found_where_it_is_asked(checked: Callable[..., Said]) -> None:
    def change(run: dict[str, Any]) -> None:
        Path("again.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:30]))
        run["stages"].insert(2, {"name": "again", "kind": "import", "split": {"by": "ratio", "ratios": {"test": 1.0}},
                                 "data": [{"path": "again.jsonl", "format": "alpaca"}]})
        of("eval", rows="again/test")(run)

    said = checked(change)
    assert said.code == 2
    assert "test rows are rows that earlier stages read" in said.err
    assert "same-prompt" in said.err


def test_a_row_set_of_which_nothing_serves_is_named_beside_one_that_does(checked: Callable[..., Said]) -> None:
    said = checked(more(name="more", kind="train", method="dpo", model="sft", rows=["rs/pairs", "seed/train"]))
    assert said.code == 0
    assert "! more: none of the 20 rows of seed/train can be used: prompt-completion is no preference (20)" in said.out


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.tag)
def test_every_method_says_which_rows_serve_it(method: type) -> None:
    assert callable(row_of(PROJECTIONS, method))


@pytest.mark.parametrize("name", BUILT_IN)
def test_what_a_function_lacks_is_what_it_raises_for(name: str) -> None:
    from alignment.errors import DataError
    from alignment.records import Record

    for completion in (None, "", "Yes"):
        for meta in ({}, {"passage": "It says yes."}, {"passage": 3}):
            record = Record(id="r", type="prompt-completion", completion=completion, meta=meta)
            if lacking(name, record):
                with pytest.raises(DataError):
                    BUILT_IN[name](record, 'Yes ["It says yes"]')
            else:
                assert BUILT_IN[name](record, 'Yes ["It says yes"]') >= 0


# --- aims ---


@pytest.mark.parametrize(("aim", "said"), [
    ("eval.sft.f2 > 0.3", "perhaps eval.sft.f1"), ("eval.rs.f1 > 0", "does not make"),
    ("eval.sft_vs_base.win_rate > 0.5", "only when score is given"), ("eval.base_vs_sft.win_rate > 0.5", "not make"),
    ("sft.eval_loss < 3", "only when eval_rows is given"), ("sft.best_step > 1", "only when final: best"),
    ("rs.previous_mean_score > 0", "only when previous is given"), ("seed.rows_trian > 3", "perhaps seed.rows_train"),
    ("rs.mean_model > 0", "only when score has several parts"), ("base.parametres > 1", "base.parameters"),
    ("eval.sft.f1 > eval.base.f11", "perhaps eval.base.f1"),
])
def test_an_aim_that_nothing_makes(aim: str, said: str, checked: Callable[..., Said]) -> None:
    found = checked(top(aims=["rs.best_score > 0", aim]))
    assert found.code == 2
    assert "(aims[1])" in found.err
    assert said in found.err


def test_aims_that_stages_make_pass(checked: Callable[..., Said]) -> None:
    def change(run: dict[str, Any]) -> None:
        of("eval", score={"function": "brevity"})(run)
        run["aims"] = ["eval.sft.f1 > eval.base.f1", "eval.sft_vs_base.style_win_rate > 0.5", "sft.train_loss < 9",
                       "eval.reference.style > 0", "seed.rows_dev > 1", "base.parameters > 1", "rs.rows_best > 0",
                       "eval.sft.perplexity < 99"]

    assert checked(change).code == 0


# --- models, machine, options ---


def _model(folder: Path, tensors: dict[str, list[int]], **config: Any) -> None:
    folder.mkdir()
    header = json.dumps({name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}
                         for name, shape in tensors.items()}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    (folder / "config.json").write_text(json.dumps({"model_type": "odd", **config}))
    (folder / "tokenizer.json").write_text("{}")


@pytest.mark.parametrize(("targets", "refused"), [
    (["q_proj", "v_prj"], "v_prj"), (["self_attn.q_proj"], None), (["embed_tokens"], "embed_tokens"),
    (["query"], "query"), ("all-linear", None),
])
def test_targets_of_a_model_made_on_the_spot(
    targets: object, refused: str | None, checked: Callable[..., Said]
) -> None:
    said = checked(of("sft", strategy={"kind": "lora", "targets": targets}))
    assert said.code == (0 if refused is None else 2)
    assert refused is None or f"no linear layer of the model has this name\n  found:    {refused!r}" in said.err


def test_targets_of_a_folder_are_those_of_its_weights(checked: Callable[..., Said]) -> None:
    _model(Path("folder"), {"h.0.attn.Wqkv.weight": [6, 2], "h.0.ln.weight": [2], "wte.weight": [9, 2]})
    _model(Path("experts"), {"h.0.attn.Wqkv.weight": [6, 2]}, num_local_experts=4)

    def with_model(path: str, target: str) -> Change:
        def change(run: dict[str, Any]) -> None:
            of("base", model={"source": "folder", "path": path})(run)
            of("sft", strategy={"kind": "lora", "targets": [target]})(run)
        return change

    assert checked(with_model("folder", "Wqkv")).code == 0
    for wrong in ("ln", "wte", "q_proj"):
        assert "one of Wqkv, or all-linear" in checked(with_model("folder", wrong)).err
    assert checked(with_model("experts", "gate_up_proj")).code == 0, "experts may be joined when they are loaded"


@pytest.mark.parametrize(("width", "flags", "address", "code"), [
    (32, "avx2 avx512f", None, 2), (96, "avx512f", None, 2), (64, "avx512f", None, 0), (32, "avx2", None, 0),
    (32, "avx512f", "auto", 0),
])
@pytest.mark.parametrize("command", ["check", "run"])
def test_a_width_that_four_bits_cannot_be_computed_over_on_this_cpu(
    width: int, flags: str, address: str | None, code: int, command: str, checked: Callable[..., Said],
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(f"flags\t: fpu {flags}\n")
    monkeypatch.setattr("alignment.config.hardware._CPUINFO", info)

    def change(run: dict[str, Any]) -> None:
        of("base", model={"source": "tiny", "hidden_size": width, "heads": 2})(run)
        of("sft", strategy={"kind": "qlora"})(run)
        if address is not None:
            run["compute"] |= {"workers": 1, "address": address}

    if command == "run" and code == 0:
        return  # which would train
    said = checked(change, command)
    assert said.code == code, said.err
    inputs = f"layers with {width} inputs"
    if code:
        assert "cannot compute over this model in four bits on this machine's CPU" in said.err
        assert "(stages[2].strategy.kind)" in said.err
        assert inputs in said.err
    else:
        assert (inputs in " ".join(said.out.split())) == (address is not None), "a warning where it is not seen"


@pytest.mark.parametrize(("compute", "key", "problem"), [
    ({"device": "cuda"}, "compute.device", "there is no GPU to compute on"),
    ({"workers": 1, "gpus_per_worker": 1}, "compute.gpus_per_worker", "there is no GPU for a worker"),
    ({"gpus_per_worker": 1}, "compute.gpus_per_worker", "there is no GPU for a worker"),
    ({"gpus_per_worker": 1, "address": "auto"}, "compute.gpus_per_worker", "there is no GPU for a worker"),
    ({"workers": 2, "device": "cuda"}, "compute", "a worker that asks for none sees none"),
    ({"workers": 1, "gpus_per_worker": 1.5}, "compute", "whole numbers"),
    ({"workers": 1, "gpus_per_worker": 1, "device": "cpu"}, "compute", "sets GPUs aside for nothing"),
])
@pytest.mark.parametrize("command", ["check", "run"])
def test_gpus_that_this_machine_has_not(
    compute: dict[str, Any], key: str, problem: str, command: str, checked: Callable[..., Said],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("alignment.checks.machine._DRIVERS", ("/no/such/driver",))
    said = checked(top(compute=compute), command)
    assert said.code == 2
    assert f"({key})" in said.err
    assert problem in said.err
    assert not Path("runs/artifacts").exists()


@pytest.mark.parametrize(("compute", "trl", "key", "said"), [
    ({"workers": 0, "sharding": "zero3"}, {}, "stages[2]", "workers: 1 (which is how one GPU offloads)"),
    ({"sharding": "zero2"}, {"optim": "galore_adamw"}, "stages[2].trl.optim", "needs whole matrices"),
    ({"sharding": "zero3-offload"}, {"optim": "adagrad"}, "stages[2].trl.optim", "CPU Adam alone"),
    ({"sharding": "zero2", "deepspeed": {"zero_optimization": {"reduce_bucket_sise": 1}}}, {}, "compute.deepspeed",
     "perhaps reduce_bucket_size"),
])
def test_what_cannot_be_shared_out_so(
    compute: dict[str, Any], trl: dict[str, Any], key: str, said: str, checked: Callable[..., Said]
) -> None:
    def change(run: dict[str, Any]) -> None:
        run["compute"] |= {"workers": 2, **compute}
        _stage(run, "sft")["trl"] = trl

    found = checked(change)
    assert found.code == 2
    assert f"({key})" in found.err
    assert said in found.err


def test_sharding_without_a_compiler_passes_but_for_offload(
    checked: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    for sharding, code in (("zero1", 0), ("zero2", 0), ("zero3", 0), ("zero3-offload", 2)):
        found = checked(lambda run, sharding=sharding: run["compute"].update(workers=2, sharding=sharding))
        assert found.code == code, found.err
    assert "there is no no-such-compiler" in found.err
    assert "g++ installed" in found.err


def test_a_gpu_that_is_there_is_believed(checked: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignment.checks.machine._DRIVERS", ("/dev/null",))
    monkeypatch.setattr("alignment.checks.machine.metadata.version", lambda name: "2.9.0")
    assert checked(top(compute={"device": "cuda"})).code == 0
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES hides them" in checked(top(compute={"device": "cuda"})).err


@pytest.mark.parametrize(("trl", "said"), [
    ({"deepspeed": "x.json"}, "set elsewhere, not under trl"), ({"fsdp": "full_shard"}, "set elsewhere"),
    ({"push_to_hub": True}, "set elsewhere"), ({"auto_find_batch_size": True}, "micro_batch_size"),
    ({"lr_scheduler_type": "cosin"}, "perhaps cosine"), ({"warmup_steps": -1}, "0 or more"), ({"max_steps": 0}, "1 or"),
    ({"adam_beta2": 1.0}, "0 to under 1"), ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "eval_rows: STAGE/SPLIT"),
    ({"lr_scheduler_type": "cosine_with_min_lr"}, "min_lr_rate: 0.1"),
    ({"lr_scheduler_type": "warmup_stable_decay"}, "needs num_decay_steps"),
    ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"cycles": 2}}, "perhaps num_cycles"),
    ({"lr_scheduler_kwargs": {"num_cycles": 2}}, "this schedule has no arguments"),
])
def test_options_that_training_would_refuse(trl: dict[str, Any], said: str, checked: Callable[..., Said]) -> None:
    found = checked(of("sft", trl=trl))
    assert found.code == 2
    assert "(stages[2].trl." in found.err
    assert said in found.err


@pytest.mark.parametrize(("trl", "said"), [
    ({"loss_type": "sigmod"}, "perhaps sigmoid"), ({"beta": -0.1}, "more than 0"),
    ({"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0]}, "2 numbers"),
])
def test_losses_that_the_trainer_does_not_have(trl: dict[str, Any], said: str, checked: Callable[..., Said]) -> None:
    dpo = {"name": "dpo", "kind": "train", "method": "dpo", "model": "sft", "rows": ["rs/pairs"]}
    assert said in checked(more(**dpo, trl=trl)).err
    assert checked(more(**dpo, trl={"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.3]})).code == 0


def test_a_package_that_an_optimizer_needs(checked: Callable[..., Said]) -> None:
    assert "galore_torch is not installed" in checked(of("sft", trl={"optim": "galore_adamw"})).err
    assert "liger_kernel is not installed" in checked(of("sft", trl={"use_liger_kernel": True})).err


@pytest.mark.parametrize(("change", "key", "said"), [
    (of("sft", learning_rate=1e10), "stages[2].learning_rate", "too large"),
    (of("sft", learning_rate=float("inf")), "stages[2].learning_rate", "finite"),
    (of("sft", learning_rate=float("nan")), "stages[2].learning_rate", "finite"),
    (top(store=""), "store", "a folder or URL"), (top(store=" "), "store", "a folder or URL"),
    (of("rs", sampling={"temperature": 0.0}), "stages[3].sampling", "all 2 answers to a prompt are the same"),
    (of("rs", sampling={"top_k": 1}), "stages[3].sampling", "are the same"),
    (of("eval", compare=[["sft", "sft"]]), "stages[4].compare[0]", "with itself"),
    (of("sft", strategy={"kind": "lora", "targets": []}), "stages[2].strategy.targets", "names no layer"),
    (of("rs", score={"function": "json:dump_s"}), "stages[3].score.function", "perhaps dumps"),
    (of("rs", score={"function": "brevity", "function_weight": 0.0}), "stages[3].score", "every score is 0"),
])
def test_values_that_nobody_means(change: Change, key: str, said: str, checked: Callable[..., Said]) -> None:
    found = checked(change)
    assert found.code == 2
    assert f"({key})" in found.err
    assert said in found.err


def test_what_is_hardly_meant_is_said(checked: Callable[..., Said]) -> None:
    said = checked(of("sft", batch_size=64, trl={"warmup_steps": 100}))
    assert said.code == 0
    assert "! sft: the warm-up of 100 steps is as long as the training (1 steps or fewer)" in said.out
    assert "! sft: a batch of 64 is more than the 20 rows" in said.out


def test_a_default_learning_rate_is_announced(checked: Callable[..., Said]) -> None:
    def change(run: dict[str, Any]) -> None:
        del _stage(run, "sft")["learning_rate"]
        of("sft", strategy={"kind": "full"})(run)

    assert "(learning rate 2e-05, the default of sft with full, float32)" in checked(change).out


@pytest.mark.parametrize(("prompt", "said"), [
    ("{passage} {question} {Topic}", "has {Topic}, which nothing fills"), ("{pasage} {question}", "lacks {passage}"),
])
def test_slots_of_a_passage_prompt(prompt: str, said: str, checked: Callable[..., Said]) -> None:
    def change(run: dict[str, Any]) -> None:
        Path("passages.jsonl").write_text("".join(json.dumps(
            {"passage": f"It is {n}.", "question": f"Is it {n}?", "answer": "Yes."}) + "\n" for n in range(40)))
        of("seed", data=[{"path": "passages.jsonl", "format": "passage-qa"}], passage_prompt=prompt)(run)

    found = checked(change)
    assert found.code == 2
    assert "(stages[1].passage_prompt)" in found.err
    assert said in found.err


def test_what_refers_in_a_circle_is_told_and_not_followed_for_ever(checked: Callable[..., Said]) -> None:
    def change(run: dict[str, Any]) -> None:
        of("rs", prompts=["rs2/best"])(run)
        more(name="rs2", kind="sample", model="sft", prompts=["rs/best"], score={"function": "brevity"})(run)
        of("eval", rows="rs2/best")(run)

    said = checked(change)
    assert said.code == 2
    assert "it comes later" in said.err


def test_a_finished_stage_is_not_asked_again_before_a_run(checked: Callable[..., Said], call: Call) -> None:
    """A laptop may render the report of what a machine with a GPU has made."""
    def change(run: dict[str, Any]) -> None:
        run["stages"] = run["stages"][:2]

    assert checked(change, "run").code == 0
    text = Path("run.yaml").read_text()
    Path("run.yaml").write_text(text.replace("device: cpu", "device: cuda"))
    assert call("check", "run.yaml").code == 2
    assert call("run", "run.yaml").code == 0


# --- files and stores elsewhere ---


@pytest.mark.parametrize("url", ["s3://my bucket/x", "s3:///x", "s3://", "gs:// lab/x", "https:///rows.jsonl"])
def test_a_bucket_or_host_that_no_name_can_be(url: str, checked: Callable[..., Said]) -> None:
    said = checked(of("seed", data=[{"path": url, "format": "alpaca", "name": "rows"}]))
    assert said.code == 2
    assert "(stages[1].data[0]): the URL names no bucket or host that there can be" in said.err
    said = checked(top(store=url))
    assert said.code == 2
    assert "(store): the URL names no bucket or host that there can be" in said.err


@pytest.mark.parametrize("url", ["s3://lab/x y/z", "s3://lab_1.a-b/x", "https://user:word@host:80/a?b=c d",
                                 "memory://x", "file:///tmp/x"])
def test_other_urls_are_left_to_those_who_open_them(url: str, checked: Callable[..., Said]) -> None:
    assert checked(of("seed", data=[{"path": url, "format": "alpaca", "name": "rows"}])).code == 0


# --- chat templates ---

TOOLS = [{"type": "function", "function": {"name": "tide", "parameters": {"type": "object", "properties": {}}}}]
CALL = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {
    "name": "tide", "arguments": {}}}]}
PLAIN = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def _conversation(number: int, **kept: Any) -> dict[str, Any]:
    answer = {"role": "assistant", "content": f"metres {number * 7}", **kept.pop("answer", {})}
    return {"messages": [{"role": "user", "content": f"How high is lock {number}?"}, *kept.pop("between", []), answer],
            **kept}


def _learning(rows: list[dict[str, Any]], **base: Any) -> Change:
    """Have sft learn from conversations of a file."""
    def change(run: dict[str, Any]) -> None:
        Path("turns.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        run["stages"].insert(1, {"name": "turns", "kind": "import", "data": [{"path": "turns.jsonl",
                                 "format": "messages"}], "split": {"by": "ratio", "ratios": {"all": 1.0}}})
        of("sft", rows=["turns/all"])(run)
        of("base", **base)(run)
    return change


@pytest.mark.parametrize(("kept", "lost"), [
    ({"tools": TOOLS}, "tools (6)"),
    ({"tools": TOOLS, "between": [CALL, {"role": "tool", "content": "4"}]}, "tools, tool_calls (6)"),
    ({"answer": {"reasoning_content": "It was high."}}, "reasoning_content (6)"),
])
def test_what_a_template_never_names_is_not_learned(
    kept: dict[str, Any], lost: str, checked: Callable[..., Said],
) -> None:
    rows = [_conversation(number, **copy.deepcopy(kept)) for number in range(6)]
    said = checked(_learning(rows))
    assert said.code == 2
    assert "(stages[3].rows): the chat template of base ignores what every row has" in said.err
    assert lost in said.err
    some = checked(_learning([*rows, *(_conversation(number) for number in range(6, 20))]))
    assert some.code == 0
    assert "! sft: 6 of 20 rows will be left out" in some.out
    assert lost in some.out


@pytest.mark.parametrize(("template", "told"), [
    (PLAIN, False),
    (PLAIN + "{% if tools %}{{ tools | tojson }}{% endif %}{{ messages[0].tool_calls }}", True),
    ("{% for m in messages %}{{ m | tojson }}{% endfor %}{{ tools }}", True),
])
@pytest.mark.parametrize("where", ["chat_template.jinja", "tokenizer_config.json"])
def test_the_own_template_of_a_folder_is_read(
    template: str, told: bool, where: str, checked: Callable[..., Said],
) -> None:
    _model(Path("own"), {"model.layers.0.self_attn.q_proj.weight": [8, 8]}, model_type="llama")
    Path("own", where).write_text(template if where.endswith("jinja") else json.dumps({"chat_template": template}))
    rows = [_conversation(number, tools=TOOLS, between=[CALL, {"role": "tool", "content": "4"}]) for number in range(6)]
    said = checked(_learning(rows, model={"source": "folder", "path": "own"}))
    assert said.code == (0 if told else 2), said.err


def test_a_loss_over_turns_that_a_finished_model_does_not_mark(
    checked: Callable[..., Said], call: Call,
) -> None:
    assert checked(of("sft", loss="assistant")).code == 0
    assert call("run", "run.yaml", "--stage", "base").code == 0
    (made,) = Path("runs/artifacts").glob("import-model-*")
    template = made / "model" / "chat_template.jinja"
    template.write_text(PLAIN.ljust(template.stat().st_size))
    said = call("run", "run.yaml")
    assert said.code == 2
    assert "(stages[2].loss): the chat template of base does not mark what the assistant says" in said.err
    assert not list(Path("runs/artifacts").glob("import-data-*"))
