"""The pipeline: no-ops, what a changed key re-runs, and where results lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignment.errors import StageError
from alignment.pipeline import execute, keys, status
from alignment.pipeline.run import summary
from alignment.report.summary import left_out
from tests import small


def chain(tmp_path: Path, **sft):
    return small.run(tmp_path, small.train("sft", **sft), small.train("dpo", "dpo", "sft"))


def test_the_second_run_does_nothing(tmp_path: Path) -> None:
    first = execute(chain(tmp_path)).artifacts
    before = {name: (a.path() / "manifest.json").stat().st_mtime_ns for name, a in first.items()}
    second = execute(chain(tmp_path)).artifacts
    assert {name: (a.path() / "manifest.json").stat().st_mtime_ns for name, a in second.items()} == before
    assert not any((tmp_path / "store" / "work").iterdir())


def test_a_changed_key_re_runs_that_stage_and_those_after_it_and_no_other(tmp_path: Path) -> None:
    before, after = keys(chain(tmp_path)), keys(chain(tmp_path, learning_rate=1e-3))
    assert {name for name in before if before[name].key != after[name].key} == {"sft", "dpo"}


def test_changed_source_rows_re_run_what_reads_them(tmp_path: Path) -> None:
    before = keys(chain(tmp_path))
    file = tmp_path / "rows.jsonl"
    file.write_text(file.read_text(encoding="utf-8").replace("red", "crimson"), encoding="utf-8")
    after = keys(_same_run(tmp_path))
    assert {name for name in before if before[name].key != after[name].key} == {"data", "sft", "dpo"}


def test_rows_beyond_take_are_not_told_as_left_out(tmp_path: Path) -> None:
    made = execute(small.run(tmp_path, small.train("sft"), {
        "name": "rs", "kind": "sample", "model": "sft", "prompts": ["data/train"], "take": 2, "n": 2,
        "sampling": {"max_new_tokens": 4}, "score": {"function": "brevity"}})).artifacts["rs"]
    dropped = made.manifest.rows.dropped
    beyond, others = dropped["not taken"], sum(dropped.values()) - dropped["not taken"]
    assert beyond > 2
    assert f", {beyond} not taken" in summary(made)
    assert (f", {others} left out" in summary(made)) is (others > 0)


def test_rows_that_are_left_out_say_why() -> None:
    assert left_out({}) == left_out({"not taken": 3, "tie": 0}) == ""
    assert left_out({"prompt over max_prompt_tokens": 57, "not taken": 9}) == (
        "57 left out (prompt over max_prompt_tokens)")
    assert left_out({"tie": 1, "duplicate-row": 5}) == "6 left out (5 duplicate-row, 1 tie)"
    assert left_out({"a": 1, "b": 2, "c": 3}) == "6 left out (3 c, 2 b, ...)"


def _same_run(tmp_path: Path):
    """The run of `chain` over the rows as they lie on the disk."""
    import yaml

    from alignment.config import parse_run

    stage = {"name": "data", "kind": "import", "data": [{"path": str(tmp_path / "rows.jsonl"), "format": "passage-qa"}],
             "split": {"by": "ratio", "ratios": {"train": 0.6, "dev": 0.2, "test": 0.2}}}
    tree = {"name": "small", "seed": 3, "store": str(tmp_path / "store"),
            "stages": [small.BASE, stage, small.train("sft"), small.train("dpo", "dpo", "sft")]}
    return parse_run(yaml.safe_dump(tree))


def test_where_it_is_computed_and_logged_changes_no_key(tmp_path: Path) -> None:
    one = keys(small.run(tmp_path, small.train("sft")))
    stage = small.train("sft", log_to=["tensorboard"])
    two = keys(small.run(tmp_path, stage, compute={"workers": 4}, store="elsewhere"))
    assert {n: k.key for n, k in one.items()} == {n: k.key for n, k in two.items()}


def test_a_single_stage_needs_its_inputs(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="not finished"):
        execute(chain(tmp_path), only="dpo")
    execute(chain(tmp_path), only="base")
    assert [name for name, artifact in status(chain(tmp_path)).items() if artifact] == ["base"]


def test_a_manifest_says_what_it_was_made_from(tmp_path: Path) -> None:
    made = execute(small.run(tmp_path, small.train("sft"))).artifacts["sft"].manifest
    assert set(made.inputs) == {"base", "data"}
    assert made.rows.written["train"] == made.rows.read
    assert made.facts["template"]["hash"]
    assert made.versions["trl"]
    assert made.files["model/adapter_model.safetensors"].size > 0


def test_rows_that_change_while_they_are_read_are_not_published_under_the_old_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignment.data import import_data

    run, read = small.run(tmp_path), import_data.import_data

    def edited(context):
        outcome = read(context)
        file = tmp_path / "rows.jsonl"
        file.write_text(file.read_text(encoding="utf-8").replace("red", "rot"), encoding="utf-8")
        return outcome

    monkeypatch.setattr(import_data, "import_data", edited)
    with pytest.raises(StageError, match="a source changed"):
        execute(run, only="data")
    assert status(run)["data"] is None
    monkeypatch.undo()
    assert execute(run, only="data").artifacts["data"] is not None


def test_a_stage_is_held_to_the_context_length_that_the_import_recorded(tmp_path: Path) -> None:
    from alignment.errors import ConfigError

    run = small.run(tmp_path, small.train("sft", max_length=64), small.train("more", model="sft", max_length=2049))
    with pytest.raises(ConfigError, match="more tokens than the model of sft") as refused:
        execute(run)
    assert refused.value.where == "stage more, max_length"
    made = status(run)
    assert made["more"] is None
    assert [made[name].manifest.facts["context_length"] for name in ("base", "sft")] == [2048, 2048]
