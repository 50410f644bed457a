"""What the GPU benchmark measures on: rows of the length that is said, weights of the shape, wheels of the lock."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.gpu.__main__ import _tiny_tokenizer
from benchmarks.gpu.pack import LACKING, pinned
from benchmarks.gpu.shapes import SHAPES, make_model, write_rows


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _tiny_tokenizer(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("pairs", [False, True])
def test_rows_are_as_long_as_is_said(tokenizer: Path, tmp_path: Path, pairs: bool) -> None:
    file, encoder = tmp_path / "rows.jsonl", AutoTokenizer.from_pretrained(tokenizer)
    write_rows(tokenizer, file, 5, 256, 64, pairs=pairs)
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 5
    for row in rows:
        for answer in ("chosen", "rejected") if pairs else ("completion",):
            ids = encoder.apply_chat_template(row["prompt"] + row[answer], return_dict=True)["input_ids"]
            assert 240 <= len(ids) <= 256


def test_a_model_has_its_shape_and_takes_the_tokenizers_ids(tokenizer: Path, tmp_path: Path) -> None:
    make_model(SHAPES["tiny"], tokenizer, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert {key: getattr(model.config, key) for key in SHAPES["tiny"].config} == SHAPES["tiny"].config
    assert len(AutoTokenizer.from_pretrained(tmp_path)) <= model.config.vocab_size
    assert 0.01 < float(model.lm_head.weight.float().std()) < 0.03


def test_wheels_are_those_of_the_lock() -> None:
    assert [name for name in LACKING if "==" not in pinned(name)] == ["liger-kernel"]
