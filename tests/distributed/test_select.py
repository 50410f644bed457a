"""Select stages on tiny models: who is chosen and why the others are not, resuming, and rows that cannot serve."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest

from alignment.artifacts import Artifact
from alignment.checks.seen import Sight
from alignment.checks.stages import wrong
from alignment.config import Run
from alignment.errors import ConfigErrors, DataError, KubeAlignError, StageError
from alignment.inference.generator import open_embedder
from alignment.pipeline import execute
from alignment.records import Record, read_records
from alignment.selection.batches import EmbedBatch, ScoreBatch
from benchmarks.kcenter import plain
from tests import small

JUDGE: dict[str, Any] = {"name": "judge", "kind": "import", "role": "reward", "model": small.BASE["model"]}
VECTORS: dict[str, Any] = {"name": "vectors", "kind": "import", "role": "embedder", "model": small.BASE["model"]}


def length(record: Record, answer: str) -> float:
    """A score of our own: letters of the answer; none for some rows, and a refusal for others."""
    if answer == "green":
        return float("nan")
    if answer == "grey":
        raise DataError("grey is no colour", where=f"row {record.id}")
    return float(len(answer))


def quality(**more: Any) -> dict[str, Any]:
    return {"name": "quality", "kind": "select", "by": "quality", "rows": ["data/train"],
            "score": {"function": "tests.distributed.test_select:length"}, **more}


def coverage(**more: Any) -> dict[str, Any]:
    return {"name": "far", "kind": "select", "by": "coverage", "rows": ["data/train"], "embedder": "vectors",
            "pooling": "mean", **more}


def made(run: Run, name: str) -> Artifact:
    found = execute(run).artifacts[name]
    assert found is not None
    return found


def lines(artifact: Artifact, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (artifact.path() / name).read_text(encoding="utf-8").splitlines()]


def chosen(artifact: Artifact) -> list[Record]:
    return read_records(artifact.path() / "rows" / "train.jsonl")


def test_quality_keeps_what_scores_above_and_tells_why_of_every_other_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = made(small.run(tmp_path, quality(threshold=4.0)), "quality")
    rows = chosen(found)
    assert {record.completion for record in rows} == {"black", "white", "brown"}
    assert all(record.meta["quality"] == 5.0 for record in rows)
    bad = {one["raw"]["completion"]: one["reason"] for one in lines(found, "bad.jsonl")}
    assert bad.keys() == {"green", "grey"}
    assert "NaN" in bad["green"]
    assert bad["grey"] == "grey is no colour"
    left = lines(found, "left.jsonl")
    assert {one["reason"] for one in left} == {"score not above the cut"}
    assert {one["score"] for one in left} == {3.0, 4.0}
    counts = found.manifest.rows
    assert counts.read == 24 == counts.written["train"] + sum(counts.dropped.values())
    assert sum(found.manifest.facts["histogram"]["counts"]) == 24 - len(lines(found, "bad.jsonl"))
    assert "<- cut" in capsys.readouterr().err


def test_coverage_picks_what_the_plain_loop_picks_of_the_same_vectors(tmp_path: Path) -> None:
    run = small.run(tmp_path, VECTORS, coverage(take=7))
    found = made(run, "far")
    rows = sorted(chosen(found), key=lambda record: record.meta["coverage"]["order"])
    assert len(rows) == 7
    artifacts = execute(run).artifacts
    pool = read_records(artifacts["data"].path() / "rows" / "train.jsonl")  # type: ignore[union-attr]
    from alignment.context import StageContext

    context = StageContext(run, run.stage("far"), found.store, "x", "y", dict(artifacts), tmp_path)  # type: ignore[arg-type]
    with open_embedder(context, "vectors") as embedder:
        points, cut = embedder.embed([record.meta["question"] for record in pool], pooling="mean", max_tokens=96,
                                     normalise=False)
    ids = [record.id for record in pool]
    assert not cut
    picks = plain(points, 7, ids.index(rows[0].id))
    assert [ids[at] for at in picks] == [record.id for record in rows]
    drawn = json.loads((found.path() / "map.json").read_text(encoding="utf-8"))
    assert drawn["of"] == [7, 17]
    assert found.manifest.metrics["texts_cut"] == 0.0
    assert (numpy.diff([record.meta["coverage"]["distance"] for record in rows[1:]]) <= 0).all()


def test_texts_over_the_limit_are_cut_and_counted_and_a_language_model_serves_as_embedder(tmp_path: Path) -> None:
    found = made(small.run(tmp_path, coverage(share=0.5, max_tokens=6, embedder="base", text="prompt")), "far")
    assert found.manifest.metrics["texts_cut"] == 24.0
    assert found.manifest.rows.written == {"train": 12}


def test_the_whole_chain_of_mods_and_its_report(tmp_path: Path) -> None:
    run = small.run(
        tmp_path, JUDGE, VECTORS, quality(score={"model": "judge"}, quantile=0.25),
        coverage(rows=["quality/train"], take=6), small.train("first", rows=["far/train"]),
        {"name": "answers", "kind": "sample", "model": "first", "prompts": ["quality/train"], "n": 1, "pairs": "none",
         "sampling": {"temperature": 0.0, "max_new_tokens": 4}, "score": {"model": "judge"}},
        {"name": "needed", "kind": "select", "by": "necessity", "rows": ["quality/train"],
         "answers": "answers/samples", "quantile": 0.3},
        {"name": "both", "kind": "select", "by": "merge", "rows": ["far/train", "needed/train"]},
        small.train("last", rows=["both/train"]),
    )
    artifacts = execute(run).artifacts
    both, far, needed = (artifacts[name] for name in ("both", "far", "needed"))
    assert both is not None
    assert far is not None
    assert needed is not None
    assert not (artifacts["answers"].path() / "rows" / "pairs.jsonl").exists()  # type: ignore[union-attr]
    scores = {record.meta["prompt_id"]: record.meta["score"] for record in
              read_records(artifacts["answers"].path() / "rows" / "samples.jsonl")}  # type: ignore[union-attr]
    assert all(record.meta["necessity"] == scores[record.id] <= needed.manifest.metrics["cut"]
               for record in chosen(needed))
    assert {record.id for record in chosen(both)} == {record.id for record in [*chosen(far), *chosen(needed)]}
    page = (Path(run.store) / "runs" / "small" / "report.html").read_text(encoding="utf-8")
    assert "far: chosen instructions among the others" in page
    assert "instructions by their two principal components" in page
    assert "quality: scores, and the cut" in page


@pytest.mark.parametrize(("stage", "maker"), [
    (quality(quantile=0.5, score={"model": "judge"}, batch_size=5), ScoreBatch),
    (coverage(take=5, batch_size=5), EmbedBatch),
])
def test_a_killed_stage_reads_no_row_twice_and_chooses_the_same(
    tmp_path: Path, stage: dict[str, Any], maker: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = stage["name"]
    whole = made(small.run(tmp_path / "whole", JUDGE, VECTORS, stage), name)
    run, read, make = small.run(tmp_path / "cut", JUDGE, VECTORS, stage), list[str](), maker.make

    def watched(self: Any, items: Any) -> Any:
        if len(read) == 10:
            raise KeyboardInterrupt
        read.extend(item.id for item in items)
        return make(self, items)

    with monkeypatch.context() as patch:
        patch.setattr(maker, "make", watched)
        with pytest.raises(KeyboardInterrupt):
            execute(run)
    first = list(read)
    with monkeypatch.context() as patch:
        patch.setattr(maker, "make", lambda self, items: (read.extend(item.id for item in items), make(self, items))[1])
        resumed = execute(run).artifacts[name]
    assert resumed is not None
    assert len(first) == 10
    assert len(read) == len(set(read)) == 24
    for file in ("rows/train.jsonl", "left.jsonl", "bad.jsonl"):
        assert (resumed.path() / file).read_bytes() == (whole.path() / file).read_bytes()


def test_random_rows_of_a_larger_take_hold_those_of_a_smaller_one(tmp_path: Path) -> None:
    run = small.run(tmp_path, *({"name": f"few-{take}", "kind": "select", "by": "random", "rows": ["data/train"],
                                 "take": take} for take in (4, 9)))
    four, nine = ({record.id for record in chosen(artifact)} for name, artifact in execute(run).artifacts.items()
                  if name.startswith("few") and artifact is not None)
    assert len(four) == 4
    assert four < nine


ANSWERS = {"name": "answers", "kind": "sample", "model": "base", "prompts": ["data/dev"], "n": 1, "pairs": "none",
           "sampling": {"temperature": 0.0, "max_new_tokens": 2}, "score": {"function": "brevity"}}


@pytest.mark.parametrize(("stages", "error", "said"), [
    ([quality(threshold=99.0)], StageError, "no row is left"),
    ([quality(score={"function": "tests.distributed.test_select:same"}, quantile=0.5)], StageError,
     "all scores are the same"),
    ([ANSWERS, {"name": "needed", "kind": "select", "by": "necessity", "rows": ["data/train"],
                "answers": "answers/samples", "threshold": 0.0}], DataError, "no row of the stage was asked"),
    ([VECTORS, coverage(take=25)], DataError, "more rows are asked for than there are"),
    ([VECTORS, coverage(take=2, pooling="cls")], KubeAlignError, "pooling: cls needs a model"),
])
def test_what_cannot_be_selected_ends_with_one_clear_error(
    tmp_path: Path, stages: list[dict[str, Any]], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        execute(small.run(tmp_path, *stages))


def same(record: Record, answer: str) -> float:
    return 1.0


@pytest.mark.parametrize(("stages", "said"), [
    ([VECTORS, coverage(take=25)], "more rows are asked for than there are"),
    ([{"name": "few", "kind": "select", "by": "random", "rows": ["data/train"], "take": 25}], "more rows are asked"),
    ([quality(threshold=0.0, score={"function": "brevit"})], "not a reward function"),
    ([ANSWERS, {"name": "needed", "kind": "select", "by": "necessity", "rows": ["data/train"],
                "answers": "answers/samples", "threshold": 0.0}], "no row of the stage was asked"),
])
def test_what_is_known_before_launch_is_said_by_check(tmp_path: Path, stages: list[dict[str, Any]], said: str) -> None:
    run, sight = small.run(tmp_path, *stages), Sight(10**9)
    assert said in str([error for stage in run.stages for _, error in wrong(run, stage, sight)])


@pytest.mark.parametrize(("stage", "said"), [
    (quality(), "give threshold or quantile"), (quality(threshold=0.0, quantile=0.5), "give threshold or quantile"),
    (coverage(embedder="base"), "give take or share"),
    (coverage(take=3, embedder="data"), "an import with role: embedder"),
    (quality(threshold=0.0, score={"model": "base"}), "stage of method reward, or an import with role: reward"),
    ({"name": "n", "kind": "select", "by": "necessity", "rows": ["data/train"], "answers": "data/dev",
      "threshold": 0.0}, "has no scored answers"),
    ({"name": "n", "kind": "select", "by": "quantity", "rows": ["data/train"]}, "by .of a select stage. is one of"),
])
def test_keys_that_do_not_fit_are_refused_when_the_file_is_read(
    tmp_path: Path, stage: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigErrors, match=said):
        small.run(tmp_path, stage)


def test_the_plan_knows_how_many_rows_are_left_where_the_file_says_it(tmp_path: Path) -> None:
    from alignment.planner.estimate import Rates
    from alignment.planner.plan import plan

    run = small.run(tmp_path, VECTORS, JUDGE, quality(score={"model": "judge"}, quantile=0.25), coverage(take=6),
                    small.train("first", rows=["far/train"]))
    planned = {one.name: one for one in plan(run, {}, Rates(1e9, 1e9))}
    assert (planned["first"].rows, planned["first"].rows_known) == (6.0, True)
    assert planned["quality"].tokens is not None
    assert planned["far"].seconds is not None




@pytest.mark.ray
def test_workers_choose_what_one_process_chooses(tmp_path: Path) -> None:
    stages = [JUDGE, VECTORS, quality(score={"model": "judge"}, quantile=0.5, batch_size=6),
              coverage(rows=["quality/train"], take=5, batch_size=3)]
    found = [execute(small.run(tmp_path / str(workers), *stages, compute={
        "dtype": "float32", "device": "cpu", "workers": workers, "cpus_per_worker": 0.5})).artifacts["far"]
        for workers in (0, 2)]
    alone, shared = ([record.id for record in chosen(artifact)] for artifact in found if artifact is not None)
    assert alone == shared
