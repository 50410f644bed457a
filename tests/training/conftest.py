"""What tests of training start from: a tiny model, an adapter on it, and rows. Don't write into any of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from alignment.artifacts import Artifact, Store
from alignment.context import StageContext
from tests.models import published
from tests.training.made import context, preferences, published_rows, stage


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    """These models are so small that threads only wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(str(tmp_path_factory.mktemp("training") / "store"))


@pytest.fixture(scope="session")
def tokenizer(tiny_model_dir: Path) -> Any:
    from alignment.inference.loading import load_tokenizer

    return load_tokenizer(tiny_model_dir, side="right")


@pytest.fixture(scope="session")
def base(store: Store, tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Full weights: 57,504 of them in 21 tensors, 14 linear layers beside the output head."""
    folder = tmp_path_factory.mktemp("base")
    shutil.copytree(tiny_model_dir, folder / "model")
    return published(store, "base-000000000000", folder)


@pytest.fixture(scope="session")
def adapter(store: Store, base: Artifact, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A policy's adapter of rank 4 on `base`, every tensor of it away from zero, written as `fit` does."""
    import torch

    from alignment.training.fit import _save
    from alignment.training.model import build

    folder = tmp_path_factory.mktemp("adapter")
    made = stage("sft")
    model, _ = build(made, base, torch.float32, tokenizer.pad_token_id)
    noise = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=noise) * 0.1)
    _save(model, folder / "model", made, base, tokenizer)
    return published(store, "adapter-000000000000", folder)


@pytest.fixture(scope="session")
def rows(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Preferences: p0 to p7 to train on, p0 to p3 (again) as dev."""
    return published_rows(store, tmp_path_factory.mktemp("rows"), "data-000000000000", train=preferences(8),
                          dev=preferences(4))


@pytest.fixture(scope="session")
def fitted(
    store: Store, base: Artifact, rows: Artifact, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], StageContext]:
    """Method -> context of a stage that `fit` has trained for two steps and evaluated once; trained when asked for."""

    @cache
    def train(method: str) -> StageContext:
        from alignment.training.fit import fit

        folder = tmp_path_factory.mktemp(method)
        made = context(store, folder, base, rows, method, batch_size=4, micro_batch_size=2, eval_rows="data/dev",
                       take=7, max_length=60, trl={"max_steps": 2})
        fit(made)
        return made

    return train
