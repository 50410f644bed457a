"""Rounds carried out: each reads what the one before has made, and the report says what each was held to and gained."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from alignment.config import Run, parse_run
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
    [(group, (one, two))] = rounds_of(run, made, {name: results(made[name]) for name in ("dev-1", "dev-2")})
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
    [(_, lines)] = rounds_of(run, dict.fromkeys(stage.name for stage in run.stages), {})
    assert [(line.number, line.done, line.made, line.gains) for line in lines] == [(1, False, [], []),
                                                                                  (2, False, [], [])]
    assert [line.starts for line in lines] == [[("step-1", "sft", "")], [("step-2", "step-1", "")]]


def results(artifact):
    from alignment.report.reading import read_results

    return read_results(artifact)
