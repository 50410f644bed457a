"""What must hold for every training run, whatever the method."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from alignment.errors import ConfigError, DataError, StageError
from alignment.inference.loading import load_policy, load_reward, load_tokenizer
from alignment.pipeline import execute
from alignment.templates import template_hash
from tests import small
from tests.matrix import cases
from tests.models import as_it_lies

FULL = {"kind": "full"}


def weights(artifact):
    """All tensors of a published model folder by name."""
    files = sorted((artifact.path() / "model").glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def same(one, other, tolerance=0.0):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=tolerance)


@pytest.mark.parametrize("method", ["sft", "reward", "dpo"])
def test_one_by_eight_equals_eight_by_one(tmp_path: Path, method: str) -> None:
    whole = small.train("whole", method, micro_batch_size=8, trl={"lr_scheduler_type": "constant"})
    parts = small.train("parts", method, micro_batch_size=1, trl={"lr_scheduler_type": "constant"})
    made = execute(small.run(tmp_path, whole, parts)).artifacts
    assert len(small.losses(made["whole"])) == 3
    assert small.losses(made["parts"]) == pytest.approx(small.losses(made["whole"]), rel=2e-4)
    # Adam's first steps divide by tiny second moments, so single weights may differ by a rounding more than losses.
    same(weights(made["whole"]), weights(made["parts"]), tolerance=2e-3)


def test_packed_rows_have_the_same_loss_per_token(tmp_path: Path) -> None:
    """One step over all rows: the token-sum loss does not see how rows are laid out."""
    options = {"batch_size": 24, "micro_batch_size": 24, "max_length": 512, "strategy": FULL}
    unpacked = small.train("unpacked", **options)
    packed = small.train("packed", **{**options, "packing": True, "batch_size": 8, "micro_batch_size": 8})
    made = execute(small.run(tmp_path, unpacked, packed)).artifacts
    first = [small.losses(made[name])[0] for name in ("unpacked", "packed")]
    assert first[1] == pytest.approx(first[0], rel=1e-4)


@pytest.mark.parametrize("strategy", [small.train("x")["strategy"], FULL], ids=["lora", "full"])
def test_a_reloaded_policy_equals_the_one_in_memory(
    tmp_path: Path, strategy: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignment.training.methods.sft import GuardedSft

    kept = {}
    original = GuardedSft.train

    def train(self, *args, **kwargs):
        result = original(self, *args, **kwargs)
        ids = torch.arange(20, 60).unsqueeze(0)
        self.model.eval()
        with torch.no_grad():
            kept["logits"] = self.model(input_ids=ids).logits.clone()
        return result

    monkeypatch.setattr(GuardedSft, "train", train)
    made = execute(small.run(tmp_path, small.train("sft", strategy=strategy))).artifacts
    model = load_policy(made["sft"], dtype=torch.float32, device="cpu", merge=False)
    with torch.no_grad():
        again = model(input_ids=torch.arange(20, 60).unsqueeze(0)).logits
    assert torch.equal(again, kept["logits"])
    merged = load_policy(made["sft"], dtype=torch.float32, device="cpu", merge=True)
    with torch.no_grad():
        folded = merged(input_ids=torch.arange(20, 60).unsqueeze(0)).logits
    torch.testing.assert_close(folded, again, atol=1e-5, rtol=1e-5)


def test_zero_supervised_tokens_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no row can be used"):
        execute(small.run(tmp_path, small.train("sft", max_length=8)))


def test_rows_over_the_limit_are_dropped_cut_or_refused(tmp_path: Path) -> None:
    lengths = execute(small.run(tmp_path, small.train("all"))).artifacts["all"].manifest.facts
    limit = round(lengths["mean_length"])
    assert limit < lengths["max_length"]
    stages = [small.train("drop", max_length=limit), small.train("cut", max_length=limit, too_long="truncate-prompt")]
    made = execute(small.run(tmp_path, *stages)).artifacts
    dropped, cut = made["drop"].manifest.rows, made["cut"].manifest.rows
    assert dropped.dropped["longer than max_length"] == dropped.read - dropped.written["train"] > 0
    assert cut.changed["prompt truncated at the left"] == dropped.dropped["longer than max_length"]
    assert cut.written["train"] == cut.read
    assert made["cut"].manifest.facts["max_length"] == limit
    with pytest.raises(DataError) as error:
        execute(small.run(tmp_path, small.train("refuse", max_length=limit, too_long="error")))
    assert f"at most {limit} tokens" in str(error.value)
    assert "row " in str(error.value)


def test_take_draws_rows_of_all_sets_and_follows_the_scale(tmp_path: Path) -> None:
    run = small.run(tmp_path, small.train("few", take=8, rows=["data/train", "data/dev"]), scale=1.5)
    assert execute(run).artifacts["few"].manifest.rows.written["train"] == 12


def test_a_non_finite_loss_stops_with_the_rows(tmp_path: Path) -> None:
    run = small.run(tmp_path, small.train("sft", strategy=FULL, epochs=3, trl={"max_grad_norm": 0.0}))
    # More than a run file may ask for.
    damaging = run.stages[-1].model_copy(update={"learning_rate": 1e30})
    run = run.model_copy(update={"stages": (*run.stages[:-1], damaging)})
    with pytest.raises(StageError, match="not finite") as error:
        execute(run)
    assert "r" in str(error.value.where)
    assert "step" in str(error.value.where)


def test_best_is_the_step_with_the_lowest_eval_loss(tmp_path: Path) -> None:
    stage = small.train("sft", eval_rows="data/dev", epochs=4, learning_rate=0.2,
                        checkpoints={"every": 2, "keep": 1, "final": "best"})
    made = execute(small.run(tmp_path, stage)).artifacts["sft"]
    history = [json.loads(line) for line in (made.path() / "events.jsonl").read_text().splitlines()]
    evaluated = {e["step"]: e["eval_loss"] for e in history if e["event"] == "eval"}
    assert made.manifest.metrics["best_step"] == min(evaluated, key=evaluated.get)
    assert made.manifest.metrics["eval_loss"] == min(evaluated.values())
    assert (made.path() / "last" / "adapter_model.safetensors").exists()


def test_the_reward_head_survives_the_disk(tmp_path: Path) -> None:
    """The published folder holds the head, and two fresh loads score alike."""
    made = execute(small.run(tmp_path, small.train("sft"), small.train("rm", "reward", "sft"))).artifacts
    head = [name for name in weights(made["rm"]) if "score" in name]
    assert len(head) == 1
    tokenizer = load_tokenizer(made["rm"].path() / "model", side="right")
    ids = torch.arange(20, 60).unsqueeze(0)
    scores = []
    for _ in range(2):
        model = load_reward(made["rm"], dtype=torch.float32, device="cpu")
        with torch.no_grad():
            scores.append(model(input_ids=ids).logits)
    assert torch.equal(*scores)
    padded = torch.cat([ids, torch.full((1, 7), tokenizer.pad_token_id)], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(
            model(input_ids=padded, attention_mask=(padded != tokenizer.pad_token_id).long()).logits, scores[0],
            atol=1e-5, rtol=1e-5,
        )


FIRST_LOSS = {"dpo": math.log(2), "kto": 0.5}
"""Loss of a policy that is its own reference: -log sigmoid(0), and 1 - sigmoid(0)."""


@pytest.mark.parametrize(("method", "mode"), cases(
    [("dpo", "precomputed"), ("kto", "adapter")], [("dpo", "adapter"), ("kto", "precomputed")]))
def test_the_reference_is_the_sft_model(tmp_path: Path, method: str, mode: str) -> None:
    """At step one policy and reference are the same model; against the raw base they are not."""
    sft = small.train("sft", epochs=3, learning_rate=2e-2)
    held = small.train("held", method, "sft", reference=mode, epochs=1)
    made = execute(small.run(tmp_path, sft, held)).artifacts
    losses = small.losses(made["held"])
    assert losses[0] == pytest.approx(FIRST_LOSS[method], abs=1e-4)
    assert small.losses(made["held"], key="rewards/margins")[0] == pytest.approx(0, abs=1e-4)
    assert made["held"].manifest.facts["reference"]["artifact"] == made["sft"].key


@pytest.mark.parametrize(("method", "strategy"), [
    ("dpo", None), ("kto", None), ("dpo", FULL), ("kto", FULL)], ids=["dpo-lora", "kto-lora", "dpo-full", "kto-full"])
def test_what_is_preferred_gets_likelier_than_what_is_not(
    tmp_path: Path, method: str, strategy: dict[str, Any] | None
) -> None:
    """A preference that can be learned: the same answer is the better one everywhere."""
    stage = small.train("held", method, epochs=3, learning_rate=2e-3, **({} if strategy is None else {
        "strategy": strategy}))
    run = small.run(tmp_path, stage)
    file = tmp_path / "rows.jsonl"
    lines = [json.loads(line) | {"answer": "red", "rejected": "blue"} for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    made = execute(run).artifacts["held"]
    margins, losses = small.losses(made, key="rewards/margins"), small.losses(made)
    assert min(margins[-3:]) > 0.02
    assert max(losses[-3:]) < FIRST_LOSS[method]


@pytest.mark.parametrize("method", list(FIRST_LOSS))
def test_a_reference_of_all_weights_is_the_start_model(tmp_path: Path, method: str) -> None:
    made = execute(small.run(tmp_path, small.train("held", method, strategy=FULL))).artifacts["held"]
    assert small.losses(made)[0] == pytest.approx(FIRST_LOSS[method], abs=1e-4)


@pytest.mark.parametrize("method", ["sft", "dpo", "kto"])
def test_full_training_from_an_adapter_equals_that_from_its_merged_weights(
    tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same stage twice, once with the start's weights merged and published as full ones."""
    from alignment.inference.info import INFO
    from alignment.training import model as module

    start = small.train("start", epochs=2, learning_rate=2e-2)
    stage = small.train("stage", method, "start", strategy=FULL, learning_rate=1e-3)
    made = execute(small.run(tmp_path / "adapter", start, stage)).artifacts
    merged = load_policy(made["start"], dtype=torch.float32, device="cpu", merge=True)
    merged.save_pretrained(tmp_path / "merged")
    assert json.loads((made["start"].path() / "model" / INFO).read_text())["form"] == "adapter"
    full = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    monkeypatch.setattr(module, "load_policy", lambda *args, **kwargs: full)
    again = execute(small.run(tmp_path / "merged-run", start, stage)).artifacts["stage"]
    before, after = merged.state_dict(), weights(made["stage"])
    assert [name for name in after if torch.equal(after[name], before[name])] == [], "every weight has moved"
    same(after, weights(again))
    assert small.losses(made["stage"]) == small.losses(again)


@pytest.mark.parametrize(("start", "method"), cases(
    [("base", "sft"), ("start", "reward"), ("start", "dpo"), ("base", "kto")],
    [("start", "sft"), ("base", "reward"), ("base", "dpo"), ("start", "kto")],
))
def test_dropout_is_what_the_stage_says(tmp_path: Path, method: str, start: str) -> None:
    """Of a fresh adapter and of a continued one, whatever its start had; in the weights, the files and the manifest."""
    lora = {"kind": "lora", "r": 4, "alpha": 8}
    stages = [small.train(f"x{index}", method, start, strategy={**lora, "dropout": dropout})
              for index, dropout in enumerate((0.0, 0.6))]
    first = small.train("start", strategy={**lora, "dropout": 0.3})
    made = execute(small.run(tmp_path, first, *stages)).artifacts
    none, much = weights(made["x0"]), weights(made["x1"])
    assert [name for name in none if "lora_B" in name and torch.equal(none[name], much[name])] == []
    for name, dropout in (("start", 0.3), ("x0", 0.0), ("x1", 0.6)):
        assert made[name].manifest.facts["adapter"] == {"r": 4, "alpha": 8, "dropout": dropout}
        config = json.loads((made[name].path() / "model" / "adapter_config.json").read_text(encoding="utf-8"))
        assert config["lora_dropout"] == dropout


@pytest.mark.parametrize("method", ["sft", "reward", "dpo", "kto"])
def test_a_row_that_the_template_refuses_is_left_out_and_named(tmp_path: Path, method: str) -> None:
    stage = small.train("stage", method, eval_rows="data/dev")
    run = small.run(tmp_path, stage)
    base = execute(run, only="base").artifacts["base"]
    folder = base.path() / "model"
    template = folder / "chat_template.jinja"
    odd = "Number 2:"
    template.write_text("{% if '" + odd + "' in messages[0].content %}{{ raise_exception('not this one') }}{% endif %}"
                        + template.read_text())
    info = folder / "kubealign.json"
    said = json.loads(info.read_text())
    said["template"]["hash"] = template_hash(template.read_text())
    info.write_text(json.dumps(said))
    as_it_lies(base)
    made = execute(run).artifacts["stage"].manifest
    reason = "the chat template refuses a conversation: not this one"
    assert made.rows.dropped == {reason: 1}
    assert [tuple(row) for row in made.facts["dropped_rows"]] == [("rows-r2", reason)]


def test_unknown_lora_targets_are_refused(tmp_path: Path) -> None:
    strategy = {"kind": "lora", "r": 4, "alpha": 8, "targets": ["q_proj", "nowhere"]}
    with pytest.raises(Exception, match=r"nowhere|match no module"):
        execute(small.run(tmp_path, small.train("sft", strategy=strategy)))


def test_tensorboard_curves_are_published(tmp_path: Path) -> None:
    made = execute(small.run(tmp_path, small.train("sft", log_to=["tensorboard"]))).artifacts["sft"]
    assert [name for name in made.manifest.files if name.startswith("tensorboard/") and "tfevents" in name]


def test_a_logger_that_is_not_installed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="wandb is not installed"):
        execute(small.run(tmp_path, small.train("sft", log_to=["wandb"])))
