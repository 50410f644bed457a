"""docs/planner.md has the tables that the formulas make."""

from __future__ import annotations

from pathlib import Path

from alignment.planner import table

PAGE = Path(__file__).resolve().parents[2] / "docs" / "planner.md"


def test_the_page_is_what_the_formulas_say() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert table.filled(page) == page, "python -m alignment.planner.table makes it anew"


def test_less_is_trained_and_more_is_shared_out_for_less_memory() -> None:
    for shape in table.MODELS.values():
        size = table.size_of(shape)
        full, lora, qlora = (table.gib(size, kind) for kind in ("full", "lora", "qlora"))
        assert full > lora > qlora
        ddp, *zero = (table.gib(size, "full", sharding, 8) for sharding in ("none", "zero1", "zero2"))
        assert ddp > zero[0] > zero[1]


def test_what_was_measured_with_whole_logits_is_met_to_a_gigabyte_and_never_under() -> None:
    size = table.size_of(table.LLAMA_2_7B)
    for kind, rows, length, seen in table.MEASURED:
        assert round(table.with_whole_logits(size, kind, rows, length) / 1e9) - seen in (0, 1)
