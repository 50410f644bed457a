"""Every row that a stage upstream has read is found through real manifests, however far up it was read."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest

from alignment.config import Evaluate
from alignment.errors import ArtifactError, DataError
from alignment.evaluation.held_out import check_held_out, seen_rows
from alignment.records import Record, each_record

NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def rows(prefix: str, count: int = 2) -> list[Record]:
    """Rows that share no run of words with those of another prefix or number."""
    return [
        Record(id=f"{prefix}-{i}", type="prompt-completion", completion=f"{prefix}{i} is right",
               prompt=[{"role": "user", "content": " ".join(f"{prefix}{i}{word}" for word in NUMBERS)}])
        for i in range(count)
    ]


def stages(**evaluate: Any) -> list[dict[str, Any]]:
    splits = ("train", "dev", "rm", "prompts", "other", "test")
    data = {"kind": "import", "name": "seed", "data": [{"path": "x.jsonl", "format": "prompt-completion"}],
            "split": {"by": "field", "names": splits}}
    return [
        {"kind": "import", "name": "base", "model": {"source": "tiny"}},
        data,
        {**data, "name": "extra"},
        {"kind": "train", "name": "sft", "method": "sft", "model": "base", "rows": ["seed/train"],
         "eval_rows": "seed/dev"},
        {"kind": "train", "name": "rm", "method": "reward", "model": "sft", "rows": ["seed/rm"]},
        {"kind": "sample", "name": "draws", "model": "sft", "prompts": ["seed/prompts"], "score": {"model": "rm"}},
        {"kind": "train", "name": "dpo", "method": "dpo", "model": "sft", "rows": ["draws/pairs"]},
        {"kind": "train", "name": "aside", "method": "sft", "model": "base", "rows": ["extra/train"]},
        {"kind": "evaluate", "name": "eval", "models": ["base", "dpo"], "rows": "seed/test", **evaluate},
    ]


def published(build: Callable[..., Any], test: list[Record], **evaluate: Any) -> Any:
    built = build(stages(**evaluate))
    splits = {name: rows(name) for name in ("train", "dev", "rm", "prompts", "other")}
    built.publish("base", lambda folder: (folder / "model").mkdir())
    built.publish_rows("seed", **splits, test=test)
    built.publish_rows("extra", train=rows("extra"))
    for name in ("sft", "rm"):
        built.publish(name, lambda folder: (folder / "model").mkdir())
    built.publish_rows("draws", pairs=rows("pairs"), best=rows("best"), samples=rows("samples"))
    for name in ("dpo", "aside"):
        built.publish(name, lambda folder: (folder / "model").mkdir())
    return built


def check(built: Any, test: list[Record]) -> Any:
    context = built.context("eval")
    assert isinstance(context.stage, Evaluate)
    return check_held_out(context, context.stage, test)


def test_everything_upstream_is_seen_and_nothing_else(build: Callable[..., Any]) -> None:
    built = published(build, rows("test"))
    context = built.context("eval")
    seen = seen_rows(context, context.stage)
    assert set(seen) == {"seed/train", "seed/dev", "seed/rm", "seed/prompts", "draws/pairs"}
    assert [record.id for record in each_record(seen["draws/pairs"])] == ["pairs-0", "pairs-1"]


def test_without_the_late_models_less_is_seen(build: Callable[..., Any]) -> None:
    built = published(build, rows("test"), models=["base", "sft"])
    context = built.context("eval")
    assert set(seen_rows(context, context.stage)) == {"seed/train", "seed/dev"}


def test_rows_of_the_reward_model_that_scores_are_seen(build: Callable[..., Any]) -> None:
    built = published(build, rows("test"), models=["base"], score={"model": "rm"})
    context = built.context("eval")
    assert set(seen_rows(context, context.stage)) == {"seed/train", "seed/dev", "seed/rm"}


def test_a_held_out_split_is_kept_whole(build: Callable[..., Any]) -> None:
    test = rows("test", 3)
    got = check(published(build, test), test)
    assert got.kept == test
    assert got.dropped == []
    assert got.seen["seed/train"] == 2


@pytest.mark.parametrize("split", ["train", "dev", "rm", "prompts", "pairs"])
def test_an_id_seen_anywhere_upstream_is_an_error(build: Callable[..., Any], split: str) -> None:
    test = [*rows("test"), Record(id=f"{split}-1", type="prompt-only", prompt=[{"role": "user", "content": "new"}])]
    with pytest.raises(DataError, match="1 of 3 test rows") as error:
        check(published(build, test), test)
    assert f"{split}-1" in str(error.value.found)
    assert f"/{split}" in str(error.value.found)
    assert error.value.hint is not None


def test_the_same_text_under_another_id_is_an_error(build: Callable[..., Any]) -> None:
    [copied] = rows("prompts", 1)
    test = [*rows("test"), Record(id="fresh", type="prompt-completion", prompt=copied.prompt, completion="anything")]
    with pytest.raises(DataError, match="1 of 3 test rows") as error:
        check(published(build, test), test)
    assert "fresh" in str(error.value.found)


def test_the_error_shows_three(build: Callable[..., Any]) -> None:
    test = [*rows("train"), *rows("dev")]
    with pytest.raises(DataError, match="4 of 4") as error:
        check(published(build, test), test)
    assert len(error.value.found) == 3  # type: ignore[arg-type]


def test_drop_keeps_the_others_and_says_why(build: Callable[..., Any]) -> None:
    test = [*rows("test"), *rows("rm", 1)]
    got = check(published(build, test, overlap="drop"), test)
    assert [record.id for record in got.kept] == ["test-0", "test-1"]
    [(record, seen_id, reason)] = got.dropped
    assert (record.id, seen_id) == ("rm-0", "rm-0")
    assert reason


def test_dropping_all_is_an_error(build: Callable[..., Any]) -> None:
    test = rows("train")
    with pytest.raises(DataError, match="every test row"):
        check(published(build, test, overlap="drop"), test)


def test_rows_of_an_unrelated_stage_do_not_count(build: Callable[..., Any]) -> None:
    test = [*rows("extra"), *rows("other")]
    assert len(check(published(build, test), test).kept) == 4


def test_a_lost_ancestor_is_named(build: Callable[..., Any]) -> None:
    built = published(build, rows("test"))
    shutil.rmtree(built.artifacts["rm"].path())
    with pytest.raises(ArtifactError, match="stage draws was made from is gone") as error:
        check(built, rows("test"))
    assert error.value.expected == "the artifact of stage rm"
