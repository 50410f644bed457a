"""GPUs by name: every shipped file, and what `--gpus` takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignment.config.cards import known_cards, load_card, parse_cards
from alignment.errors import ConfigErrors

SHIPPED = ["4090", "a100-40", "a100-80", "a6000", "h100", "h200", "l4"]


def test_the_shipped_files_are_these() -> None:
    assert known_cards() == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_card_loads_and_its_numbers_are_of_a_gpu(name: str) -> None:
    card = load_card(name)
    assert 20 < card.memory_gib < 160
    assert 100 < card.bf16_tflops < 1000, "dense, not with sparsity"
    assert 200 < card.bandwidth_gbs < 5000
    assert card.products


@pytest.mark.parametrize(("text", "said", "number"), [
    ("8xH100", "8xh100", 8), ("4090", "4090", 1), ("2xA6000", "2xa6000", 2), ("1xl4", "l4", 1), ("none", "no GPU", 0),
    ("a100-80", "a100-80", 1),
])
def test_gpus_as_they_are_typed(text: str, said: str, number: int) -> None:
    cards = parse_cards(text)
    assert (str(cards), cards.number) == (said, number)


@pytest.mark.parametrize("text", ["5090", "8x", "0xh100", "../h100", "8xB9000"])
def test_an_unknown_gpu_is_refused_with_those_that_are_known_and_how_to_add_one(text: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        parse_cards(text)
    [finding] = caught.value.findings
    assert "h100" in str(finding.expected)
    assert "configs/hardware/" in str(finding.hint)


def test_a_file_of_ones_own_is_found_and_read_strictly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "configs" / "hardware"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("{description: Mine, memory_gib: 31.0, bf16_tflops: 200, bandwidth_gbs: 900}")
    assert load_card("MINE").memory == 31 * 2**30
    (folder / "mine.yaml").write_text("{description: Mine, memory_gib: 31.0, bf16_tflop: 200, bandwidth_gbs: 900}")
    with pytest.raises(ConfigErrors, match="bf16_tflop"):
        load_card("mine")
