"""What goes between an engine and its vLLM process: how it is started, what is asked, what it says. Plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from alignment.inference.requests import Draw
from alignment.inference.vllm.limits import served_rank


@dataclass(frozen=True)
class Adapter:
    """A LoRA as it lies in the store: its name here, its folder, its rank, the last parts of its modules' names."""

    name: str
    folder: str
    rank: int
    modules: tuple[str, ...]


@dataclass(frozen=True)
class Launch:
    """What a vLLM process is started with.

    Attributes:
        model: folder of the full weights.
        max_model_len: tokens of a prompt and its answer, at most.
        options: of vllm.EngineArgs beside these.
        environment: variables of the process beside this one's.
    """

    model: str
    dtype: str
    max_model_len: int
    adapters: tuple[Adapter, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    def lora_options(self) -> dict[str, Any]:
        """Of vllm.EngineArgs; empty without adapters. All of them stay loaded, and no other layer is wrapped: with the
        head wrapped as well, vLLM 0.29 cannot tell likelihoods of prompts on a CPU."""
        if not self.adapters:
            return {}
        return {"enable_lora": True, "max_loras": len(self.adapters),
                "lora_target_modules": sorted({name for adapter in self.adapters for name in adapter.modules}),
                "max_lora_rank": served_rank(max(adapter.rank for adapter in self.adapters))}


@dataclass(frozen=True)
class Ask:
    """Answer `ids` as `draw` says, up to a token of `stops`, with the adapter of that name, or the full weights
    alone."""

    number: int
    ids: tuple[int, ...]
    stops: tuple[int, ...]
    draw: Draw
    adapter: str | None


@dataclass(frozen=True)
class Weigh:
    """How likely each token of `ids` is from place `start` on."""

    number: int
    ids: tuple[int, ...]
    start: int
    adapter: str | None


@dataclass(frozen=True)
class Ready:
    """vLLM is up: its version, and for each adapter the modules that the model has no place for."""

    version: str
    unplaced: dict[str, list[str]]


@dataclass(frozen=True)
class Answered:
    number: int
    ids: list[int]
    stop: int | None


@dataclass(frozen=True)
class Weighed:
    number: int
    log_probs: list[float]


@dataclass(frozen=True)
class Failed:
    """A question that vLLM refused; without a number: vLLM itself."""

    number: int | None
    words: str
