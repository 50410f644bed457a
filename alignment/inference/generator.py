"""How every other room has a model answer, weigh, score and embed: `open_engine`, `open_scorer`, `open_embedder` for
a stage's input.

Opening is cheap: the tokenizer is read when a prompt is counted, the weights when they are first needed (or by `load`),
and `close` gives the memory back. Nobody outside this room loads a model to generate with, settles a device or a
dtype for it, or holds its tokenizer. Imports no torch until something is opened. Does not train.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

from alignment.artifacts import Artifact
from alignment.config import Compute
from alignment.context import StageContext
from alignment.inference.requests import Completion, Item, Request, Told
from alignment.records import Message

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    from alignment.templates import Spoken


Pooling = Literal["cls", "mean"]
"""What of the last hidden layer stands for a text: its first token, or the mean over all."""


class Opened(Protocol):
    """A model of an artifact, usable in a `with` block that ends in `close`."""

    def load(self) -> None:
        """Load the weights now, unless they are. Raises ModelError when they cannot be, ConfigError without the
        device that `compute` asks for: the stage's trouble, never a row's."""

    def close(self) -> None:
        """Forget the weights and give back their memory, on the GPU too; what is needed later is loaded again."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


class Generator(Opened, Protocol):
    """A language model that answers prompts and tells how likely an answer is."""

    @property
    def made_by(self) -> Mapping[str, Any]:
        """Who answers, for the manifest: engine, version, dtype, adapter (merged, apart or None); empty of an endpoint,
        which has facts of its own. Known once it is loaded."""

    def prompt_tokens(self, prompt: list[Message]) -> int:
        """Tokens of a conversation that waits for its answer, as `generate` reads it. Needs no weights. 0 of an
        endpoint, which counts them itself and refuses what it cannot take.

        Raises:
            DataError: the chat template refuses the conversation.
            ModelError: the tokenizer or its template cannot be used.
        """

    def answer_tokens(self, prompt: list[Message], answer: str) -> int:
        """Tokens of an answer, its end token included, as `log_probs` reads it. Raises as `prompt_tokens`, and
        DataError where the template leaves out a part of the answer."""

    def offered(self, prompt: list[Message]) -> list[Message]:
        """A conversation whose answer may be a call of `retrieve`, as this model has to be told of it: unchanged where
        its chat template is here, since it was trained so; with the function's definition for an endpoint.

        Raises:
            ModelError: the chat template writes no calls that could be read back.
        """

    def spoken(self, completion: Completion) -> Spoken:
        """What an answer of this model is as a turn: a text, a call, or neither. Raises ModelError as `offered`."""

    @property
    def ahead(self) -> bool:
        """Whether it would hear of requests of batches to come, since it works on many at once."""

    def begin(self, requests: Sequence[Request]) -> None:
        """Hear of requests that `generate` will be asked for soon. Raises what `load` raises; what is wrong with a
        request is told by `generate`."""

    def generate(
        self, requests: Sequence[Request], on_progress: Callable[[int], None] | None = None
    ) -> list[list[Completion]]:
        """Answers to one batch of requests: for each request one Completion per draw, in order.

        Args:
            on_progress: called with the number of answers that have just ended.

        Raises:
            DataError: a request without draws, or a prompt without tokens.
            ModelError: the weights cannot be loaded, or give logits that are not finite.
            EndpointStopped: an endpoint cannot be asked any further. A row that it gives no answer to is a Completion
                with a `failure`.
        """

    def told(self, prompts: Sequence[list[Message]], max_new_tokens: int) -> list[Told]:
        """Greedy answers with their ids and log-probabilities, one for each prompt; none of an endpoint. Raises as
        `generate`."""

    def log_probs(self, items: Sequence[Item]) -> list[tuple[float, int]]:
        """For each (prompt, completion) the completion's summed log-probability in nats, end token included, and its
        number of tokens; NaN where they are more than the model's context length. Raises DataError and ModelError as
        `generate` does."""


class Scorer(Opened, Protocol):
    """A reward model."""

    def score(self, items: Sequence[Item]) -> list[float]:
        """One reward per (prompt, completion), in order; NaN where the model gives none, or where the two are over its
        context length.

        Raises:
            DataError: the chat template refuses a conversation.
            ModelError: the weights cannot be loaded.
        """


class Embedder(Opened, Protocol):
    """A model that makes a vector of a text."""

    def embed(
        self, texts: Sequence[str], *, pooling: Pooling, max_tokens: int, normalise: bool
    ) -> tuple[NDArray[numpy.float32], list[int]]:
        """Vectors [texts, H] of the last hidden layer, and the places of texts that were cut.

        Args:
            pooling: the first token's state, or the mean over all tokens but padding.
            max_tokens: of a text, special tokens included, or as many as the model takes where that is less; what is
                longer is cut at the right.
            normalise: to length 1.

        Raises:
            ModelError: the model cannot be loaded, gives numbers that are not finite, or has no such pooling.
        """

    def ids(self, text: str) -> list[int]:
        """The tokens that stand for a text, the model's own special ones included; none is cut."""

    def embed_ids(self, rows: Sequence[Sequence[int]], *, pooling: Pooling, normalise: bool) -> NDArray[numpy.float32]:
        """Vectors [rows, H] of ids as they stand, as `embed` has them. Raises ModelError as `embed`."""

    @property
    def context_length(self) -> int | None:
        """Tokens that the model takes, as its import recorded it."""

    @property
    def vocabulary(self) -> int:
        """Ids that there are."""


def open_engine(context: StageContext, name: str) -> Generator:
    """The policy that the stage `name` made, on the device and in the dtype of `compute`, by the engine that
    `compute.engine` says; or the endpoint that it names.

    Raises:
        ConfigError: vLLM is asked for and not installed.
        ModelError: it is asked for, and cannot serve one of the stage's models.
    """
    if context.run.stage(name).endpoint is not None:
        from alignment.inference.endpoint.generator import EndpointGenerator

        return EndpointGenerator(context, name)
    from alignment.inference.vllm.choice import engine_of

    if engine_of(context) == "vllm":
        from alignment.inference.vllm.generator import VllmGenerator

        return VllmGenerator(context, name)
    from alignment.inference.embedded import EmbeddedGenerator

    return EmbeddedGenerator(context.inputs[name], context.run.compute)


@contextmanager
def kept_open() -> Iterator[None]:
    """What an engine that is closed within the block has started may serve the next, until the end of the block."""
    from alignment.inference.vllm import shared

    with shared.kept_open():
        yield


def open_scorer(context: StageContext, name: str) -> Scorer:
    """The reward model that the stage `name` made, whose head computes in float32; or the one that it imported."""
    return scorer_of(context.inputs[name], context.run.compute)


def open_embedder(context: StageContext, name: str) -> Embedder:
    """The embedder that the stage `name` imported; or of a language model, its adapter merged, what stands below its
    head."""
    return embedder_of(context.inputs[name], context.run.compute)


def scorer_of(artifact: Artifact, compute: Compute) -> Scorer:
    """A reward model, by itself."""
    if "reads" in artifact.manifest.facts:
        from alignment.inference.classifier import ClassifierScorer

        return ClassifierScorer(artifact, compute)
    from alignment.inference.embedded import EmbeddedScorer

    return EmbeddedScorer(artifact, compute)


def embedder_of(artifact: Artifact, compute: Compute) -> Embedder:
    """An embedder, by itself."""
    from alignment.inference.embedding import EncoderEmbedder

    return EncoderEmbedder(artifact, compute)
