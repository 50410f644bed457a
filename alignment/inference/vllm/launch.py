"""What goes between an engine and its vLLM process: how it is started, what is asked, what it says. Plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from alignment.inference.requests import Draw, Token
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
        loaded: adapters that are held at once, at most, the one used longest ago making room; None: all of them.
    """

    model: str
    dtype: str
    max_model_len: int
    adapters: tuple[Adapter, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    loaded: int | None = None

    def lora_options(self) -> dict[str, Any]:
        """Of vllm.EngineArgs; empty without adapters. No other layer than theirs is wrapped: with the head wrapped as
        well, vLLM 0.29 cannot tell likelihoods of prompts on a CPU."""
        if not self.adapters:
            return {}
        held = min(self.loaded or len(self.adapters), len(self.adapters))
        return {"enable_lora": True, "max_loras": held, "max_cpu_loras": held,
                "lora_target_modules": sorted({name for adapter in self.adapters for name in adapter.modules}),
                "max_lora_rank": served_rank(max(adapter.rank for adapter in self.adapters))}


@dataclass(frozen=True)
class Ask:
    """Answer `ids` as `draw` says, up to a token of `stops`, with the adapter of that name, or the full weights
    alone.

    Attributes:
        top: how many alternatives each token says beside its own log-probability; None: neither.
        stream: whether each token is told when it is there, in `Pieces`.
    """

    number: int
    ids: tuple[int, ...]
    stops: tuple[int, ...]
    draw: Draw
    adapter: str | None
    top: int | None = None
    stream: bool = False


@dataclass(frozen=True)
class Cancel:
    """Nobody waits for the answer of that number any more."""

    number: int


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
    """A whole answer; `tokens` where their log-probabilities were asked for, the stop token with them."""

    number: int
    ids: list[int]
    stop: int | None
    tokens: list[Token] | None = None


@dataclass(frozen=True)
class Piece:
    """Tokens that an answer has grown by, the stop token too, and whether it ended."""

    number: int
    tokens: list[Token]
    ended: bool


@dataclass(frozen=True)
class Pieces:
    """What one step of vLLM told of answers that are asked for with `stream`."""

    pieces: list[Piece]


@dataclass(frozen=True)
class Weighed:
    number: int
    log_probs: list[float]


@dataclass(frozen=True)
class Failed:
    """A question that vLLM refused; without a number: vLLM itself."""

    number: int | None
    words: str
