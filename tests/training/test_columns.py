"""Token columns in a file: the same rows and the same account of them, made once, also by a restart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alignment.config import TrainBase
from alignment.errors import DataError
from tests.training.made import answered, context, preferences, stage

METHODS = ("sft", "reward", "dpo", "kto")


def made(folder: Path, tokenizer: Any, method: str, records: list[Any], calls: list[str], **more: Any) -> Any:
    from alignment.training.columns import made_once
    from alignment.training.methods import method_of
    from alignment.training.prepare import Prepared, prepare
    from alignment.training.ranks import Disk

    of = stage(method, **more)

    def fill(into: Prepared) -> None:
        calls.append(method)
        prepare(records, tokenizer, of, "here", method_of(of).columns, into)
        into.not_taken = 3

    return made_once(folder, Disk(0, 1, True), "train", fill)


@pytest.mark.parametrize("method", METHODS)
def test_a_file_has_the_rows_and_the_account_of_a_list(method: str, tokenizer: Any, tmp_path: Path) -> None:
    from datasets import Dataset

    from alignment.training.methods import method_of
    from alignment.training.prepare import prepare

    of, records, calls = stage(method, max_length=40), preferences(12), []
    told, rows = made(tmp_path, tokenizer, method, records, calls, max_length=40)
    plain = prepare(records, tokenizer, of, "here", method_of(of).columns)
    assert rows.cache_files, "mapped, not in memory"
    listed = Dataset.from_list(plain.rows)
    assert rows.column_names == listed.column_names
    assert rows.features == listed.features
    assert rows.to_list() == listed.to_list()
    assert 0 < len(plain.dropped) < 12
    assert (told.ids, told.read, told.dropped, told.changed, told.supervised, told.lengths) == (
        plain.ids, plain.read, plain.dropped, plain.changed, plain.supervised, plain.lengths)
    assert told.not_taken == 3


def test_a_restart_takes_what_is_there_whole_and_makes_anew_what_is_not(tokenizer: Any, tmp_path: Path) -> None:
    calls: list[str] = []
    first = made(tmp_path, tokenizer, "sft", preferences(6), calls)[1].to_list()
    assert made(tmp_path, tokenizer, "sft", preferences(6), calls)[1].to_list() == first
    assert calls == ["sft"]
    next(tmp_path.glob("columns-*/train.json")).unlink()  # killed between the two files
    assert made(tmp_path, tokenizer, "sft", preferences(6), calls)[1].to_list() == first
    assert calls == ["sft", "sft"]
    assert {path.name for path in next(tmp_path.glob("columns-*")).iterdir()} == {"train.arrow", "train.json"}


def test_rows_that_cannot_serve_are_an_error_each_time(tokenizer: Any, tmp_path: Path) -> None:
    calls: list[str] = []
    for _ in range(2):
        with pytest.raises(DataError, match="no row can be used"):
            made(tmp_path, tokenizer, "dpo", [answered("a", "What?", "That.")], calls)
    assert calls == ["dpo", "dpo"]


@pytest.mark.parametrize("method", [*METHODS, "orpo", "distill"])
@pytest.mark.parametrize("policy", ["drop", "truncate-prompt"])
def test_rows_in_batches_are_rows_one_by_one(
    method: str, policy: str, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignment.records import Record
    from alignment.training import prepare as room
    from alignment.training.methods import method_of

    odd = [Record(f"odd{i}", "preference", prompt=[{"role": "user", "content": asked}], completion=said, rejected=other)
           for i, (asked, said, other) in enumerate([
               ("What?", "\n\nthat", "this"), ("<|im_end|>", "a<|im_start|>b", "c"), ("é 東", " ", "🙂"),
               ("x", "y", "y"),
               ("why " * 60, "so", "no"), ("why", "so " * 60, "no"), ("\n\nwho", "I", "me")])]
    records = [*preferences(5), *odd[:4], answered("plain", "What?", "That."), *preferences(4), *odd[4:]]
    of, made = stage(method, max_length=40, too_long=policy), []
    for at_once in (1, 3, 256):
        monkeypatch.setattr(room, "AT_ONCE", at_once)
        made.append(room.prepare(iter(records), tokenizer, of, "here", method_of(of).columns))
    assert made[0] == made[1] == made[2]
    assert made[0].dropped
    assert made[0].changed


def test_a_probe_trains_on_the_longest_rows(
        base: Any, store: Any, rows: Any, tokenizer: Any, tmp_path: Path) -> None:
    """And not on those that come first, which would fit where the others do not."""
    from dataclasses import fields

    from alignment.training.columns import Prepared
    from alignment.training.fit import _train_columns
    from alignment.training.methods import method_of
    from alignment.training.probe import _longest, _Worst

    plain = context(store, tmp_path, base, rows, method="dpo")
    worst = _Worst(**{name: getattr(plain, name) for name in (item.name for item in fields(plain))},
                   chosen=_longest(plain, plain.stage_as(TrainBase), 3))
    every, longest = Prepared(), Prepared()
    for own, into in ((plain, every), (worst, longest)):
        _train_columns(own, tokenizer, method_of(own.stage_as(TrainBase)), into)
    assert max(every.lengths) == max(longest.lengths)
    assert len(longest.ids) == 3 < len(every.ids)
    assert sum(longest.lengths) / 6 > sum(every.lengths) / len(every.lengths)
