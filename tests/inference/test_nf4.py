"""NF4: the same four bits on every machine, in the layout and of the layers that bitsandbytes and transformers have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alignment.inference import nf4

SHAPES = [(96, 128), (7, 64), (33, 192), (300, 64)]


def weight(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5)) * 0.02


def states(of: nf4.Nf4) -> Any:
    """What bitsandbytes's kernels read."""
    from bitsandbytes.functional import QuantState

    scales = QuantState(absmax=of.groups, blocksize=nf4.GROUP, code=nf4.scale_levels(), dtype=torch.float32)
    return QuantState(absmax=of.scales, shape=of.shape, dtype=torch.float32, blocksize=nf4.BLOCK,
                      code=torch.tensor(nf4.LEVELS), quant_type="nf4", offset=of.offset, state2=scales)


@pytest.mark.parametrize("shape", [*SHAPES, (1, 1), (5, 3)])
def test_the_kernels_of_bitsandbytes_give_the_same_weights_to_the_bit(shape: tuple[int, int]) -> None:
    from bitsandbytes.functional import dequantize_4bit

    made = nf4.quantise(weight(*shape))
    assert torch.equal(dequantize_4bit(made.packed, states(made)), nf4.dequantise(made))


@pytest.mark.parametrize("shape", SHAPES)
def test_values_are_those_of_bitsandbytes_but_for_the_last_digits_of_scales(shape: tuple[int, int]) -> None:
    from bitsandbytes.functional import create_dynamic_map, quantize_4bit

    given = weight(*shape)
    made = nf4.quantise(given)
    packed, state = quantize_4bit(given, blocksize=nf4.BLOCK, compress_statistics=True, quant_type="nf4")
    assert torch.equal(made.packed, packed)
    assert (made.scales.int() - state.absmax.int()).abs().max() <= 1, "a scale between two levels"
    assert torch.allclose(made.offset, state.offset)
    assert torch.allclose(nf4.scale_levels(), create_dynamic_map().sort().values, atol=1e-7)


def test_the_error_is_that_of_four_bits() -> None:
    given = weight(512, 512)
    apart = (nf4.dequantise(nf4.quantise(given)) - given).abs().mean() / given.abs().mean()
    assert 0.08 < apart < 0.1


def test_a_number_of_threads_and_an_order_change_nothing() -> None:
    """A mean in float32, as bitsandbytes takes it, has other last digits in another order."""
    given, threads = weight(4096, 512), torch.get_num_threads()
    alone = nf4.quantise(given)
    try:
        torch.set_num_threads(threads + 3)
        assert all(torch.equal(a, b) for a, b in zip(alone[:4], nf4.quantise(given)[:4], strict=True))
    finally:
        torch.set_num_threads(threads)
    shuffled = given.reshape(-1, nf4.BLOCK)[torch.randperm(given.numel() // nf4.BLOCK)].reshape(given.shape)
    assert torch.equal(nf4.quantise(shuffled).offset, alone.offset)


def test_what_is_computed_in_parts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    given = weight(70, 192)
    whole = nf4.quantise(given)
    rounded = nf4.dequantise(whole)
    monkeypatch.setattr(nf4, "_PART", 4)
    parts = nf4.quantise(given)
    assert all(torch.equal(a, b) for a, b in zip(whole[:4], parts[:4], strict=True))
    assert torch.equal(nf4.dequantise(parts), rounded)


def test_known_numbers() -> None:
    """A machine that computes otherwise is found: sums over what was quantised, as whole numbers."""
    made = nf4.quantise((torch.arange(4096 * 3).reshape(64, 192) * 7919 % 4093 - 2046) / 65536)
    assert [int(made.packed.int().sum()), int(made.scales.int().sum())] == [766463, 24720]
    assert made.offset.view(torch.int32).item() == 1023220352


def test_zeros_stay_zeros() -> None:
    assert not nf4.dequantise(nf4.quantise(torch.zeros(64, 64))).any()


@pytest.mark.parametrize("name", ["llama-tied", "llama", "gpt2", "gemma2", "qwen3_moe", "opt", "falcon", "mixtral"])
@pytest.mark.parametrize("auto", ["AutoModelForCausalLM", "AutoModelForSequenceClassification"])
def test_layers_are_those_that_transformers_quantises(
    name: str, auto: str, base_of: Callable[[str], Path]
) -> None:
    import transformers

    given = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
                                            bnb_4bit_use_double_quant=True)
    loads = getattr(transformers, auto).from_pretrained
    theirs = loads(base_of(name), quantization_config=given, num_labels=1)
    ours = [layer for layer, _ in nf4.quantised_layers(loads(base_of(name), num_labels=1))]
    assert ours == [layer for layer, module in theirs.named_modules() if type(module).__name__ == "Linear4bit"]


@pytest.fixture(scope="module")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    from alignment.artifacts import Store
    from tests.training.families import family

    folder = tmp_path_factory.mktemp("families")
    store = Store(str(folder / "store"))
    made: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in made:
            work = folder / name.replace("_", "-")
            work.mkdir()
            made[name] = family(name, store, work).path() / "model"
        return made[name]

    return of
