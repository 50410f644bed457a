"""Models of artifacts, opened to be served: who shares weights shares an engine, and what of vLLM cannot serve is said.

Policies that stand on the same full weights, rounded the same way, are one engine with an adapter each. Imports torch
where something is opened.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from alignment.artifacts import Artifact
from alignment.config import Compute
from alignment.config.engines import not_installed, vllm_here, wanted
from alignment.config.hardware import device_here
from alignment.errors import KubeAlignError, ModelError
from alignment.inference.generator import Generator
from alignment.inference.info import base_artifact, base_key, context_length, model_info, quantisation_of
from alignment.inference.live.asked import LiveEngine
from alignment.progress import console

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from alignment.templates.calls import Marks


@dataclass(frozen=True)
class LiveModel:
    """A policy that can be asked.

    Attributes:
        adapter: what its questions say; None of full weights.
        longest: tokens of a conversation and its answer, at most.
    """

    artifact: Artifact
    engine: LiveEngine
    adapter: str | None
    longest: int

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        from alignment.inference.loading import load_tokenizer

        return load_tokenizer(self.artifact.path() / "model", side="left")

    @cached_property
    def speaker(self) -> PreTrainedTokenizerBase:
        """The same tokenizer again, to decode with: one object is not to be used by two threads."""
        from alignment.inference.loading import load_tokenizer

        return load_tokenizer(self.artifact.path() / "model", side="left")

    @cached_property
    def marks(self) -> Marks | None:
        """The tokens around a call; None where the chat template writes none that can be read back."""
        from alignment.templates import call_marks

        try:
            return call_marks(self.speaker)
        except ModelError:
            return None

    @cached_property
    def stops(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        from alignment.templates import stop_ids

        return tuple(stop_ids(self.tokenizer))


def engine_for(models: Sequence[Artifact], compute: Compute) -> Literal["transformers", "vllm"]:
    """What answers, for all of these policies alike.

    Raises:
        ConfigError: vLLM is asked for and not installed for this device.
        ModelError: it is asked for, and cannot serve one of them.
    """
    device = device_here(compute)
    if wanted(compute, device) == "transformers":
        return "transformers"
    if vllm_here(device) is None:
        raise not_installed(device)
    from alignment.inference.vllm.choice import unfit_of

    for artifact in models:
        for unfit in unfit_of(artifact, device):
            if compute.engine == "vllm":
                raise ModelError(unfit.problem, where=f"model {artifact.key}", found=unfit.found,
                                 expected=unfit.expected, hint="--engine transformers serves it")
            console.print(f"! model {artifact.key}: {unfit.problem} ({unfit.found}), so all models are served with "
                          "transformers", markup=False)
            return "transformers"
    return "vllm"


def open_live(
    models: Sequence[Artifact], compute: Compute, *, longest: int | None = None, loaded: int = 8, rows: int = 16,
    beside: int = 0,
) -> Iterator[tuple[Artifact, LiveModel | KubeAlignError]]:
    """Policies, each ready to be asked or with what is wrong with it, as their engines come up; nobody is to ask before
    the last has come. The caller closes the engines.

    Args:
        compute: its dtype is float32 or bfloat16.
        longest: tokens of a conversation and its answer, where the model itself takes more.
        loaded: adapters that an engine holds at once, at most.
        rows: answers that the transformers engine makes at once.
        beside: other models that share a GPU with these.

    Raises:
        ConfigError, ModelError: as `engine_for`.
    """
    families: dict[tuple[str, str | None], list[Artifact]] = {}
    for artifact in models:
        try:
            key = (base_key(artifact), quantisation_of(artifact))
            if model_info(artifact)["form"] == "adapter":
                changes_nothing(artifact)  # reads all of it: one damaged file is not to keep others from being served
            base_artifact(artifact)
        except KubeAlignError as error:
            yield artifact, error
        else:
            families.setdefault(key, []).append(artifact)
    engine = engine_for([artifact for own in families.values() for artifact in own], compute)
    for own in families.values():
        adapters = {one.key: one for one in own if model_info(one)["form"] == "adapter"}
        limit = context_length(own[0]) or longest or 4096
        most = min(longest or limit, limit)
        try:
            live = _engine(engine, own[0], adapters, compute, most, loaded, rows, len(families) + beside)
        except KubeAlignError as error:
            yield from ((one, error) for one in own)
            continue
        for one in own:
            yield one, _opened(one, live, one.key if one.key in adapters else None, most)


def _opened(artifact: Artifact, live: LiveEngine, adapter: str | None, most: int) -> LiveModel | KubeAlignError:
    try:
        made = LiveModel(artifact, live, adapter, most)
        _ = made.tokenizer
        live.load(adapter)
    except KubeAlignError as error:
        return error
    return made


def changes_nothing(artifact: Artifact) -> bool:
    """Whether an adapter's second matrices are all zero, as a fresh one's are. Raises ModelError for a damaged file."""
    from alignment.inference.vllm.proof import changes_nothing as of_folder

    return of_folder(artifact.path() / "model")


def merged_policy(artifact: Artifact, compute: Compute) -> Generator:
    """A policy as stages ask it with transformers, its adapter merged: what a live one is held to."""
    from alignment.inference.embedded import EmbeddedGenerator

    return EmbeddedGenerator(artifact, compute)


def _engine(engine: str, first: Artifact, adapters: Mapping[str, Artifact], compute: Compute, longest: int,
            loaded: int, rows: int, sharing: int) -> LiveEngine:
    if engine == "transformers":
        from alignment.inference.live.embedded import EmbeddedLive

        return EmbeddedLive(first, adapters, compute, loaded=loaded, rows=rows)
    from alignment.inference.vllm.choice import launch_served
    from alignment.inference.vllm.live import VllmLive

    base = base_artifact(first)
    launch = launch_served(compute, base, adapters, compute.dtype, longest, loaded, sharing)
    return VllmLive(launch, base, adapters)
