"""Rounds carried out: each reads what the one before has made, and the report says what each was held to and gained."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml

from alignment.config import Run, parse_run
from alignment.errors import StageError
from alignment.pipeline import execute, status
from alignment.report.rounds import rounds_of
from tests import small


def run_of(folder: Path, rounds: int, method: str = "dpo", split: str = "pairs") -> Run:
    group = {
        "group": "improve", "rounds": rounds, "first": {"step": "sft"}, "stages": [
            {"name": "rs", "kind": "sample", "model": "previous.step", "prompts": ["data/train"], "n": 6,
             "sampling": {"max_new_tokens": 12, "temperature": 1.0}, "score": {"function": "brevity"}},
            small.train("step", method, "previous.step", rows=[f"rs/{split}"], batch_size=4, micro_batch_size=4),
            {"name": "dev", "kind": "evaluate", "models": ["previous.step", "step"], "rows": "data/dev",
             "sampling": {"max_new_tokens": 4}, "perplexity": False, "bootstrap": 100},
        ],
    }
    tree = {"name": "rounds", "seed": 3, "store": str(folder / "store"),
            "compute": {"dtype": "float32", "device": "cpu"},
            "stages": [small.BASE, small.data(folder), small.train(
                "sft", strategy={"kind": "full"}, epochs=6), group]}
    return parse_run(yaml.safe_dump(tree, sort_keys=False))


def test_each_round_goes_on_from_the_one_before_and_says_what_it_gained(tmp_path: Path) -> None:
    run = run_of(tmp_path, 2)
    made = execute(run).artifacts
    for index, start in ((1, "sft"), (2, "step-1")):
        facts = made[f"step-{index}"].manifest.facts
        assert facts["start"] == facts["reference"]["artifact"] == made[start].key
        assert made[f"step-{index}"].manifest.inputs[f"rs-{index}"] == made[f"rs-{index}"].key
        assert made[f"rs-{index}"].manifest.inputs == {start: made[start].key, "data": made["data"].key}
    [(group, (one, two), _)] = rounds_of(run, made, {name: results(made[name]) for name in ("dev-1", "dev-2")})
    assert group == "improve"
    assert (one.starts, two.starts) == ([("step-1", "sft", "sft")], [("step-2", "step-1", "step-1")])
    assert [name for name, _ in two.made] == ["rs-2", "step-2"]
    assert {(challenger, baseline) for challenger, baseline, _, _ in two.gains} == {("step-2", "step-1")}
    assert {title for _, _, title, _ in two.gains} == {"Exact match", "F1"}
    assert all(cell.interval for *_, cell in two.gains)
    page = Path(run.store, "runs", "rounds", "report.html").read_text(encoding="utf-8")
    assert re.search(r'<section id="rounds">.*step-2 − step-1, F1.*</section>', page, re.DOTALL)
    kept = parse_run(Path(run.store, "runs", "rounds", "run.yaml").read_text(encoding="utf-8"))
    assert [stage.name for stage in kept.stages] == [stage.name for stage in run.stages]
    # One more round makes what is new, and takes the rest as it is.
    found = status(run_of(tmp_path, 3))
    assert [name for name, artifact in found.items() if artifact is None] == ["rs-3", "step-3", "dev-3"]


def test_rounds_that_are_not_made_yet_stand_in_the_table_as_such(tmp_path: Path) -> None:
    run = run_of(tmp_path, 2, "sft", "best")
    [(_, lines, _)] = rounds_of(run, dict.fromkeys(stage.name for stage in run.stages), {})
    assert [(line.number, line.done, line.made, line.gains) for line in lines] == [(1, False, [], []),
                                                                                  (2, False, [], [])]
    assert [line.starts for line in lines] == [[("step-1", "sft", "")], [("step-2", "step-1", "")]]


def results(artifact):
    from alignment.report.reading import read_results

    return read_results(artifact)


def gated(folder: Path, *overrides: str, rounds: int = 3) -> Run:
    """Rounds of fine-tuning that end where perplexity falls no more, and a test of what came out."""
    short = {"sampling": {"max_new_tokens": 4}, "bootstrap": 100, "take": 4}
    group = {
        "group": "improve", "rounds": rounds, "first": {"step": "base"},
        "gate": "dev.step.perplexity < dev.previous.step.perplexity", "stages": [
            small.train("step", "sft", "previous.step", take=16),
            {"name": "dev", "kind": "evaluate", "models": ["previous.step", "step"], "rows": "data/dev", **short}],
    }
    tree = {"name": "gated", "seed": 3, "store": str(folder / "store"),
            "compute": {"dtype": "float32", "device": "cpu"}, "aims": ["step.round >= 1"], "stages": [
                small.BASE, small.data(folder), group,
                {"name": "test", "kind": "evaluate", "models": ["base", "step"], "rows": "data/test", **short}]}
    return parse_run(yaml.safe_dump(tree, sort_keys=False), overrides=overrides)


def test_rounds_end_early_and_what_follows_reads_the_last_that_gained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = gated(tmp_path, "step-2.learning_rate=1.0e-30")  # which learns nothing, so round 2 gains nothing
    result = execute(run)
    made = result.artifacts
    assert list(result.unneeded) == ["step-3", "dev-3"] == [name for name, artifact in made.items() if artifact is None]
    assert result.finished
    said = capsys.readouterr().err
    assert "- step-3 not needed: round 2 of improve did not meet its gate" in " ".join(said.split())
    chosen = made["step"]
    assert chosen.manifest.metrics == {"round": 1, "rounds": 2}
    assert chosen.manifest.facts["chosen"] == {"stage": "step-1", "artifact": made["step-1"].key}
    assert [(gate["round"], gate["met"]) for gate in chosen.manifest.facts["gates"]] == [(1, True), (2, False)]
    assert list(chosen.manifest.inputs) == ["base", "step-1", "dev-1", "step-2", "dev-2"]
    weights = "model/adapter_model.safetensors"
    assert (chosen.path() / weights).read_bytes() == (made["step-1"].path() / weights).read_bytes()
    assert chosen.manifest.facts["start"] == made["base"].key, "what the model is it says itself"
    assert made["test"].manifest.inputs["step"] == chosen.key
    assert [verdict.met for verdict in result.verdicts] == [True]
    page = Path(run.store, "runs", "gated", "report.html").read_text(encoding="utf-8")
    assert re.search(r'<section id="rounds">.*not needed.*step is step-1, of round 1: the last that met its gate',
                     page, re.DOTALL)
    assert "2 stages of further rounds not needed" in page
    # Run again, elsewhere: what the store has decides, and nothing is made.
    before = sorted(path.name for path in Path(run.store, "artifacts").iterdir())
    assert execute(run).artifacts["step"].key == chosen.key
    assert sorted(path.name for path in Path(run.store, "artifacts").iterdir()) == before
    for lost in (made["test"], chosen, made["dev-2"]):
        shutil.rmtree(lost.path())
    with pytest.raises(StageError, match="waits for dev-2: the gate of round 2 of improve") as caught:
        execute(run, only="dev-3")
    assert caught.value.where == "stage dev-3"
    assert status(run)["dev-2"] is None
    again = execute(run)
    assert again.artifacts["step"].manifest.facts["chosen"]["stage"] == "step-1"


def test_a_gate_without_a_number_ends_the_run_with_a_sentence(tmp_path: Path) -> None:
    run = gated(tmp_path, "dev.perplexity=false", rounds=2)
    with pytest.raises(StageError, match=r"gate of round 1 of improve asks for .*, and there is no finite") as caught:
        execute(run)
    assert caught.value.where == "stage step-2"
