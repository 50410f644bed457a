"""Bytes of all tensors that live at once while a stage trains, counted by torch itself: what estimates are held to.

Counts each storage once, from the operator that makes it until nothing refers to it, on whatever device. What a kernel
takes within one operator does not show, nor does what an allocator keeps.
"""

from __future__ import annotations

import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import TrainerCallback


class LiveBytes(TorchDispatchMode):
    """While it is entered: `now` and `peak` in bytes, and `at_peak`, bytes by the operator that made them."""

    def __init__(self, *there: torch.Tensor) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.by: Counter[str] = Counter()
        self.at_peak: Counter[str] = Counter()
        self._known: dict[int, weakref.ref[Any]] = {}
        for tensor in there:
            self.add(tensor, "there")

    def add(self, tensor: torch.Tensor, by: str) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or not size:
            return

        def gone(_: object) -> None:
            del self._known[key]
            self.now -= size
            self.by[by] -= size

        self._known[key] = weakref.ref(storage, gone)
        self.now += size
        self.by[by] += size
        if self.now > self.peak:
            self.peak, self.at_peak = self.now, self.by.copy()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor):
                self.add(leaf, f"{func} {leaf.dtype} {tuple(leaf.shape)}")
        return made


class Watch(TrainerCallback):  # type: ignore[misc]
    """Counts from the second step on, when an optimizer has its states; the steps before it are left out."""

    def __init__(self) -> None:
        self.mode: LiveBytes | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None,
                      **kwargs: Any) -> None:
        if state.global_step == 1:
            there = [*model.parameters(), *model.buffers()]
            there += [w.grad for w in model.parameters() if w.grad is not None]
            there += [leaf for leaf in tree_leaves(getattr(optimizer, "optimizer", optimizer).state_dict()["state"])
                      if isinstance(leaf, torch.Tensor)]
            self.mode = LiveBytes(*there)
            self.mode.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2 and self.mode is not None:
            self.mode.__exit__(None, None, None)


def model_folder(folder: Path, tokenizer: Path, config: Any) -> Path:
    """A random model of `config` with the tokenizer of a folder that the import stage made."""
    import shutil

    from transformers import AutoModelForCausalLM

    shutil.copytree(tokenizer, folder)
    torch.manual_seed(1)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder
