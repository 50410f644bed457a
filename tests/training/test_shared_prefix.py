"""Rows in fewer tokens than TRL's layout has: the same losses, gradients and metrics, or TRL's layout, said why."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from alignment.artifacts import Artifact, Store
from tests.training.families import FAMILIES, family
from tests.training.made import FULL, LORA, context, preferred, published_rows, stage
from tests.training.test_methods import trainer_for

PAIRS = [
    preferred("long", "What colour is the boat of number seven, please say it in one word." * 2, "red", "It is blue."),
    preferred("one-sided", "Which?", "The second of all of them, as far as anybody here knows for sure.", "no"),
    preferred("alike", "Say a number.", "It is twenty two", "It is twenty three"),
    preferred("short", "Hm?", "a", "b"),
    preferred("begins", "How many?", "two", "two boats"),
]
NEAR = 5e-6
"""Of float32 numbers: of a loss or a metric relative to itself, of a gradient relative to the largest one. Beside that
2e-6: log-probabilities of whole answers are subtracted, and some losses multiply what is left of them by 20."""
QUICK = ("llama-tied", "qwen3", "gemma2", "gemma3_text-mixed", "mistral-window", "phi3", "gpt_neox")
"""No bias or a norm of queries, windows of 16 tokens in some layers or in all, caps, one layer for three, otherwise."""
WINDOWS = {"gemma2": (16, True), "gemma3_text": (16, False), "gemma3_text-mixed": (16, True),
           "mistral-window": (16, False), "qwen2-window": (16, True), "phi3-window": (16, False)}
NOT = {"bloom": "takes no mask", "opt": "dropout", "recurrent_gemma": "mix tokens otherwise",
       "mixtral": "over the experts", "qwen2_moe": "over the experts", "qwen3_moe": "over the experts"}
"""Families that keep TRL's layout in dpo, and why."""
INSTEAD = {("gpt2", "sft"): "dpo", ("granite", "reward"): "sft", ("cohere", "reward"): "sft"}
"""Of gpt2 SFT keeps dropout, which TRL turns off where there is a reference or a score; two have no reward model."""


@pytest.fixture(scope="module")
def bases(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Artifact]:
    return cache(lambda name: family(name, store, tmp_path_factory.mktemp(f"shared-{name}".replace("_", "-"))))


def trainer_of(start: Artifact, tokenizer: Any, folder: Path, method: str, **keys: Any) -> Any:
    """A trainer whose policy is no longer its start, so that it differs from its reference."""
    import torch

    trl = {"per_device_train_batch_size": 8, **keys.pop("trl", {})}
    trainer, _ = trainer_for(stage(method, **{"trl": trl, **keys}), start, tokenizer, folder / method, PAIRS)
    noise = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=noise) * 0.05)
    return trainer


def learned(trainer: Any, layout: bool) -> tuple[dict[str, float], dict[str, Any]]:
    """Loss and all that would be logged, of one batch of every row in training and in evaluation; and gradients."""
    trainer.data_collator.collator.on = layout
    (batch,) = trainer.get_train_dataloader()
    batch.pop("row")
    assert ("laid_ids" in batch) is layout
    trainer.model.eval()
    measured, _, _ = trainer.prediction_step(trainer.model, dict(batch), prediction_loss_only=True)
    trainer.model.train()
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, dict(batch))
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    logged = {f"{mode} {name}": sum(values) / len(values) for mode in ("train", "eval")
              for name, values in trainer._metrics[mode].items()}
    for mode in ("train", "eval"):
        trainer._metrics[mode].clear()
    trainer._total_train_tokens = 0
    return {"loss": loss.item(), "measured": measured.item(), **logged}, gradients


def same(trainer: Any) -> dict[str, float]:
    """That both layouts give the same; what they give."""
    logged, gradients = learned(trainer, False)
    others, their = learned(trainer, True)
    assert others == pytest.approx(logged, rel=NEAR, abs=NEAR)
    most = max(float(gradient.abs().max()) for gradient in gradients.values())
    assert most > 1e-3
    assert their.keys() == gradients.keys()
    assert max(float((their[name] - gradients[name]).abs().max()) for name in gradients) < NEAR * most + 2e-6
    return logged


@pytest.mark.parametrize("strategy", [LORA, FULL], ids=["lora", "full"])
@pytest.mark.parametrize("method", ["dpo", "reward", "sft"])
@pytest.mark.parametrize("name", [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FAMILIES
    if name not in NOT and not name.startswith("deepseek")])
def test_losses_gradients_and_metrics_are_those_of_trls_layout(
    name: str, method: str, strategy: dict[str, Any], bases: Callable[[str], Artifact], tokenizer: Any, tmp_path: Path
) -> None:
    trainer = trainer_of(bases(name), tokenizer, tmp_path, INSTEAD.get((name, method), method), strategy=strategy)
    trainer.settle_layout()
    assert trainer.why_not is None
    assert trainer.windows == WINDOWS.get(name, (None, False))
    same(trainer)


@pytest.mark.parametrize("name", ["qwen3_moe", pytest.param("mixtral", marks=pytest.mark.slow)])
def test_a_reward_model_with_experts_shares_prompts_as_its_loss_has_no_term_over_them(
    name: str, bases: Callable[[str], Artifact], tokenizer: Any, tmp_path: Path
) -> None:
    trainer = trainer_of(bases(name), tokenizer, tmp_path, "reward")
    trainer.settle_layout()
    assert trainer.why_not is None
    same(trainer)


LOSSES = ("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
          "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm")


@pytest.mark.parametrize("trl", [
    *({"loss_type": [kind], "label_smoothing": 0.1} for kind in LOSSES), {"ld_alpha": 0.5}, {"use_weighting": True},
    {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}, {"f_divergence_type": "js_divergence"},
    {"gradient_checkpointing": True},
], ids=str)
@pytest.mark.parametrize("reference", ["adapter", "precomputed"])
def test_every_loss_of_dpo_is_that_of_trls_layout(
    trl: dict[str, Any], reference: str, adapter: Artifact, tokenizer: Any, tmp_path: Path
) -> None:
    trainer = trainer_of(adapter, tokenizer, tmp_path, "dpo", reference=reference,
                         trl={"gradient_checkpointing": False, **trl})
    trainer.settle_layout()
    assert trainer.why_not is None
    same(trainer)


def test_a_reward_loss_with_a_term_of_its_own_is_that_of_trls_layout(
    base: Artifact, tokenizer: Any, tmp_path: Path
) -> None:
    trainer = trainer_of(base, tokenizer, tmp_path, "reward", trl={"center_rewards_coefficient": 0.5})
    trainer.settle_layout()
    same(trainer)


@pytest.mark.parametrize("window", [None, 8])
def test_a_reference_that_is_a_model_by_itself_is_asked_in_the_same_layout_if_it_is_shaped_alike(
    window: int | None, base: Artifact, tokenizer: Any, tmp_path: Path
) -> None:
    import torch
    from datasets import Dataset
    from trl import DPOConfig

    from alignment.inference.loading import load_policy
    from alignment.training.guards import Rows
    from alignment.training.methods.dpo import METHOD, columns
    from alignment.training.model import build
    from alignment.training.prepare import Prepared, prepare

    of = stage("dpo")
    reference = load_policy(base, dtype=torch.float32, device="cpu")
    reference.config.sliding_window = window
    with torch.no_grad():
        reference.lm_head.weight.add_(0.1)
    rows: Prepared = prepare(PAIRS, tokenizer, of, "", columns)
    trainer = METHOD.trainer(
        model=build(of, base, torch.float32, tokenizer.pad_token_id)[0], ref_model=reference,
        args=DPOConfig(output_dir=str(tmp_path / "made"), report_to="none", use_cpu=True, bf16=False, max_length=None,
                       dataloader_pin_memory=False, gradient_checkpointing=False),
        processing_class=tokenizer, train_dataset=Dataset.from_list(rows.rows))
    trainer.data_collator = Rows(trainer.data_collator)
    trainer.settle_layout()
    assert trainer.why_not == (None if window is None else "the reference is shaped otherwise: llama")
    if window is None:
        same(trainer)


@pytest.mark.parametrize("name", ["llama-tied", "gemma2"])
def test_eager_attention_takes_the_mask_as_numbers(
    name: str, bases: Callable[[str], Artifact], tokenizer: Any, tmp_path: Path
) -> None:
    trainer = trainer_of(bases(name), tokenizer, tmp_path, "dpo")
    trainer.model.get_base_model().set_attn_implementation("eager")
    trainer.settle_layout()
    assert trainer.why_not is None
    same(trainer)


@pytest.mark.parametrize("window", [None, 3])
def test_flex_attention_takes_the_mask_as_blocks(window: int | None) -> None:
    """Not compiled, as on a GPU it is: who sees whom is the same."""
    from types import SimpleNamespace

    import torch
    from torch.nn.attention.flex_attention import flex_attention

    from alignment.training.layout import lay_out
    from alignment.training.shared_prefix import mask

    layout = lay_out([[[1, 2, 3, 4, 5], [1, 2, 6]], [[7], [8, 9]]], [[0, 0], [0, 0]], 0, room=9)
    blocks, seen = (mask(layout, SimpleNamespace(_attn_implementation=kind), torch.float32, window, False)
                    for kind in ("flex_attention", "sdpa"))
    query, key, value = (torch.randn(1, 2, 9, 16, generator=torch.Generator().manual_seed(n)) for n in range(3))
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
    assert torch.allclose(flex_attention(query, key, value, block_mask=blocks), expected, atol=1e-6)


# --- where it may not be, or is not proved -------------------------------------------------------------------


@pytest.mark.parametrize("name", NOT)
def test_families_that_it_is_not_exact_for_keep_trls_layout(
    name: str, bases: Callable[[str], Artifact], tokenizer: Any, tmp_path: Path
) -> None:
    trainer = trainer_of(bases(name), tokenizer, tmp_path, "dpo")
    trainer.settle_layout()
    assert NOT[name] in trainer.why_not
    assert trainer.layout_facts() == {"shared_prefix": False, "shared_prefix_not": trainer.why_not}
    assert "laid_ids" not in next(iter(trainer.get_train_dataloader()))


@pytest.mark.parametrize(("method", "keys", "why"), [
    ("dpo", {"trl": {"pad_to_multiple_of": 8}}, "a way of its own"),
    ("sft", {"packing": True, "max_length": 256}, "a way of its own"),
    ("sft", {"trl": {"torch_compile": True}}, "compiled"),
    ("sft", {"trl": {"include_num_input_tokens_seen": "all"}}, "counted in a way of its own"),
    ("sft", {"trl": {"neftune_noise_alpha": 5.0}}, "noise falls otherwise on what is shared: neftune"),
])
def test_what_trl_does_with_the_batch_itself_keeps_its_layout(
    method: str, keys: dict[str, Any], why: str, base: Artifact, tokenizer: Any, tmp_path: Path
) -> None:
    trainer = trainer_of(base, tokenizer, tmp_path, method, **keys)
    trainer.settle_layout()
    assert why in trainer.why_not


@pytest.mark.parametrize(("key", "value", "why"), [
    ("attention_dropout", 0.1, "dropout"), ("router_jitter_noise", 0.1, "self_attn.router_jitter_noise"),
    ("rope_parameters", {"rope_type": "dynamic"}, "how long the batch is"),
    ("layer_types", ["full_attention", "linear_attention"], "mix tokens otherwise: linear_attention"),
    ("attention_chunk_size", 8, "mix tokens otherwise"), ("_attn_implementation", "flash_attention_2", "flash"),
])
def test_what_a_model_says_of_itself_can_forbid_it(
    key: str, value: Any, why: str, base: Artifact, tokenizer: Any, tmp_path: Path
) -> None:
    trainer = trainer_of(base, tokenizer, tmp_path, "sft")
    if key.endswith(("dropout", "noise")):
        setattr(trainer.model.get_base_model().model.layers[0].self_attn, key, value)
    else:
        object.__setattr__(trainer.model.config, "_attn_implementation_internal" if key.startswith("_") else key, value)
    trainer.settle_layout()
    assert why in trainer.why_not


@pytest.mark.parametrize("wrong", ["answers see each other", "rows see each other", "places go on"])
@pytest.mark.parametrize("method", ["dpo", "reward"])
def test_a_layout_that_leaks_is_found_before_the_first_step(
    wrong: str, method: str, base: Artifact, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from alignment.training import shared_prefix
    from alignment.training.layout import BRANCHES, Layout, lay_out

    def broken(*args: Any) -> Layout:
        made = lay_out(*args)
        segments, positions = made.segments, torch.arange(made.ids.shape[1]).expand_as(made.ids)
        if wrong == "answers see each other":
            return Layout(made.ids, made.positions, segments // BRANCHES * BRANCHES, made.place)
        if wrong == "rows see each other":
            return Layout(made.ids, made.positions, segments % BRANCHES, made.place)
        return Layout(made.ids, positions, segments, made.place)

    trainer = trainer_of(base, tokenizer, tmp_path, method)
    monkeypatch.setattr(shared_prefix, "lay_out", broken)
    trainer.settle_layout()
    assert "differ by" in trainer.why_not


def test_a_window_that_is_shorter_than_a_row_is_found_where_the_mask_has_none(
    bases: Callable[[str], Artifact], tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignment.training import shared_prefix

    whole = shared_prefix.mask
    monkeypatch.setattr(shared_prefix, "mask", lambda layout, config, dtype, window, mixed: whole(
        layout, config, dtype, None, False))
    trainer = trainer_of(bases("gemma2"), tokenizer, tmp_path, "dpo")
    trainer.settle_layout()
    assert "differ by" in trainer.why_not


# --- a stage -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["dpo", "reward", "sft"])
def test_a_stage_says_in_its_manifest_how_rows_were_laid_out_and_learns_the_same_either_way(
    method: str, base: Artifact, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from alignment.training import shared_prefix
    from alignment.training.fit import fit

    rows = published_rows(store, tmp_path / "rows", f"data-{method}0000000", train=PAIRS, dev=PAIRS[:3])
    fact = "shared_sequences" if method == "sft" else "shared_prefix"
    told = []
    for name in ("ours", "trls"):
        made = context(store, tmp_path / f"{method}-{name}", base, rows, method, batch_size=4, micro_batch_size=2,
                       eval_rows="data/dev", trl={"max_steps": 2})
        if name == "trls":
            monkeypatch.setattr(shared_prefix, "structural", lambda trainer: "for a test")
        fit(made)
        facts = json.loads((made.out / "training.json").read_text(encoding="utf-8"))["facts"]
        assert facts[fact] is (name == "ours")
        assert facts.get(f"{fact}_not") == (None if name == "ours" else "for a test")
        told.append([json.loads(line) for line in made.events.read_text(encoding="utf-8").splitlines()])
        said = "rows go through the model one sequence each (for a test)"
        assert (said in " ".join(capsys.readouterr().err.split())) is (name == "trls")
    for ours, trls in zip(*told, strict=True):
        numbers = {key: value for key, value in trls.items() if isinstance(value, float)}
        assert {key: ours[key] for key in numbers} == pytest.approx(numbers, rel=1e-4, abs=1e-5)


def test_a_stage_with_dropout_keeps_trls_layout_and_says_so(
    base: Artifact, rows: Artifact, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from alignment.training.fit import fit

    made = context(store, tmp_path / "dropped", base, rows, "dpo", batch_size=4, micro_batch_size=2,
                   strategy={**LORA, "dropout": 0.1}, reference="precomputed", trl={"max_steps": 1})
    fit(made)
    assert "(dropout or noise falls otherwise on what is shared" in " ".join(capsys.readouterr().err.split())
    assert json.loads((made.out / "training.json").read_text(encoding="utf-8"))["facts"]["shared_prefix"] is False


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_a_precomputed_reference_goes_by_length_and_comes_back_in_the_order_of_rows(
    method: str, base: Artifact, tokenizer: Any, tmp_path: Path
) -> None:
    keys = {"strategy": FULL, "trl": {"per_device_train_batch_size": 2}}
    whole, _ = trainer_for(stage(method, **keys), base, tokenizer, tmp_path / "whole", PAIRS)
    for index, record in enumerate(PAIRS):
        if method == "kto":
            break
        alone, _ = trainer_for(stage(method, **keys), base, tokenizer, tmp_path / record.id, [record])
        for column in whole.reference_columns:
            assert whole.train_dataset[index][column] == pytest.approx(alone.train_dataset[0][column], rel=1e-6)
    if method == "kto":
        inputs = [whole.compute_ref_log_probs(whole.model, whole.data_collator([row])) for row in whole.train_dataset]
        for column, values in zip(whole.reference_columns, zip(*inputs, strict=True), strict=True):
            assert whole.train_dataset[column][:] == pytest.approx([float(value) for value in values], rel=1e-6)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_rows_of_a_reference_are_cut_by_tokens(ranks: int) -> None:
    from alignment.training.reference import by_tokens, where_found

    lengths = [(10 + row * 7 % 90, 5 + row * 11 % 40, 3) for row in range(200)]
    batches = by_tokens(lengths, 4, ranks)
    came = [row for rows in batches for row in rows]
    assert sorted(set(came)) == list(range(200))
    assert len(came) == 200 + -200 % ranks, "what does not share out stands in twice, and no more"
    assert all(len(rows) % ranks == 0 for rows in batches)

    def padded(rows: list[int]) -> int:
        """Tokens of the rank that has most."""
        return max(len(own) * sum(max(lengths[row][column] for row in own) for column in range(3))
                   for own in (rows[rank::ranks] for rank in range(ranks)))

    longest = sorted(range(200), key=lambda row: (-sum(lengths[row]), row))[:4 * ranks]
    assert batches[0] == longest
    most = 4 * sum(max(lengths[row][column] for row in longest) for column in range(3))
    assert all(padded(rows) <= most for rows in batches)
    assert len(batches) < 0.85 * 200 / (4 * ranks), "shorter rows go in larger batches"
    said = [f"of {row}" for rows in batches for rank in range(ranks) for row in rows[rank::ranks]]  # as gathered
    assert [said[place] for place in where_found(batches, ranks)] == [f"of {row}" for row in range(200)]
    assert by_tokens(lengths[:1], 4, ranks) == [[0] * ranks], "fewer rows than ranks"
