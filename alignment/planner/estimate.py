"""Memory and time of a stage from numbers alone: pure formulae, each with its source.

Notation: N parameters, L layers, H hidden, A heads, V vocabulary, B sequences at once, T tokens of a sequence.
All memory is bytes on one worker; all times are seconds on one worker. These are estimates: real programs add a
runtime (about 0.5 GB of Python and libraries) and fragmentation, and reach less than a matrix product's rate.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

from alignment.planner.sizes import ModelSize

FLOAT32, BFLOAT16 = 4, 2
NF4_DOUBLE = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a weight: four bits, a scale of eight bits for 64 of them, a scale's scale for 256 of those."""
LOGIT_TILE = 32_768
"""Columns of the output head that TRL's fused log-probabilities compute at once."""


@dataclass(frozen=True)
class Memory:
    """Bytes, by what they hold."""

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    logits: int = 0
    cache: int = 0

    @property
    def total(self) -> int:
        return sum(asdict(self).values())


@dataclass(frozen=True)
class Rates:
    """What one worker computes: floating-point operations and bytes read from memory, per second."""

    flops: float
    bandwidth: float


def measure_rates(seconds: float = 0.2) -> Rates:
    """Float32 matrix products and reads of a large array on this machine's CPU, half of `seconds` each."""
    import numpy as np

    def repeat(work: object, amount: float) -> float:
        assert callable(work)
        work()  # the first call allocates and starts threads
        began, done = time.perf_counter(), 0
        while (spent := time.perf_counter() - began) < seconds / 2:
            work()
            done += 1
        return done * amount / spent

    matrix = np.random.default_rng(0).random((512, 512), dtype=np.float32)
    block = np.ones(8 * 1024 * 1024, dtype=np.float32)
    return Rates(flops=repeat(lambda: matrix @ matrix, 2 * 512**3), bandwidth=repeat(block.sum, block.nbytes))


def train_memory(
    size: ModelSize,
    *,
    lora_rank: int | None,
    frozen_bytes: int,
    sequences: int,
    length: int,
    head: bool = True,
    checkpointing: bool = False,
    reference: bool = False,
    quantised: bool = False,
    whole_logits: bool = False,
    beside: int = 0,
) -> Memory:
    """Memory of training with Adam in float32.

    Args:
        lora_rank: None trains every weight.
        frozen_bytes: bytes of one frozen weight (adapters are always float32).
        sequences: B of one forward pass; a preference row is two sequences.
        length: T, prompt and answer.
        head: False for a reward model, which has no logits over the vocabulary.
        checkpointing: activations are kept at layer borders only and computed again in the backward pass.
        reference: a frozen second adapter beside the trained one (DPO).
        quantised: the frozen linear layers are in NF4 with double quantisation (arXiv:2305.14314, 3).
        whole_logits: the loss takes the logits of all tokens over the vocabulary at once (ORPO), and no tiles.
        beside: bytes of a second, frozen model: a teacher, or a reference of another stage.

    Weights, gradients and Adam's two moments are 4 + 4 + 8 bytes per trained weight (ZeRO, arXiv:1910.02054, 3.1, in
    float32). Activations of a layer are those of arXiv:2205.05198, 4.1, attention scores not stored: 2 H for the
    norms, 3 H for query, key and value, 2 H around the output projection, 2 H for the residual stream, and 3 I in a
    gated feed-forward layer, for each of B T tokens; with checkpointing one layer's, and H for each layer's border
    (arXiv:1604.06174). Logits are float32, themselves and their gradient, in TRL's tiles of the vocabulary.
    """
    trained = size.parameters if lora_rank is None else size.lora_parameters(lora_rank)
    weights = trained * FLOAT32 if lora_rank is None else size.parameters * frozen_bytes + trained * FLOAT32
    if quantised:
        weights -= round(size.linear_parameters * (frozen_bytes - NF4_DOUBLE))
    if reference:
        weights += trained * FLOAT32
    weights += beside
    value = FLOAT32 if lora_rank is None else frozen_bytes
    tokens = sequences * length
    layer = tokens * (9 * size.hidden + 3 * size.intermediate) * value
    border = tokens * size.hidden * value
    activations = size.layers * border + layer if checkpointing else size.layers * layer
    return Memory(
        weights=weights, gradients=trained * FLOAT32, optimizer=trained * 2 * FLOAT32, activations=activations,
        # Whole logits: themselves, their log-probabilities over chosen and over all, and a gradient.
        logits=(4 * size.vocab if whole_logits else 2 * min(size.vocab, LOGIT_TILE)) * tokens * FLOAT32 if head else 0,
    )


def generate_memory(size: ModelSize, *, weight_bytes: int, sequences: int, length: int, scorer: bool = False) -> Memory:
    """Memory of generation: weights (twice with a reward model of the same backbone), the cache of keys and values
    (2 L B T values per key-value head and dimension; arXiv:1911.02150), and the logits of one step.

    Args:
        sequences: B, prompts in a batch times answers per prompt.
        length: T, prompt and new tokens.
    """
    cache = 2 * size.layers * sequences * length * size.kv_heads * size.head_dim * weight_bytes
    return Memory(
        weights=size.parameters * weight_bytes * (2 if scorer else 1),
        activations=sequences * (9 * size.hidden + 3 * size.intermediate) * weight_bytes,
        logits=sequences * size.vocab * FLOAT32, cache=cache,
    )


def forward_flops(size: ModelSize, tokens: float, length: float) -> float:
    """2 N per token (arXiv:2001.08361, 2.1), and for attention 2 L A D T: scores and sums over T / 2 tokens."""
    return tokens * (2 * size.parameters + 2 * size.layers * size.heads * size.head_dim * length)


def train_flops(size: ModelSize, tokens: float, length: float, *, lora: bool, checkpointing: bool = False) -> float:
    """Forward once, backward twice that; with LoRA once, as frozen weights need no gradient of their own; with
    checkpointing one more forward (arXiv:1604.06174)."""
    passes = 1 + (1 if lora else 2) + (1 if checkpointing else 0)
    return passes * forward_flops(size, tokens, length)


def generate_seconds(
    size: ModelSize,
    rates: Rates,
    *,
    prompts: float,
    batch: int,
    answers: int,
    prompt_tokens: float,
    new_tokens: int,
    weight_bytes: int,
) -> float:
    """Upper bound, as if every answer were `new_tokens` long.

    Every step reads all weights once and computes one token for each sequence of the batch; the slower of the two
    counts (arXiv:2211.05102, 2.1).
    """
    together = min(prompts, batch) * answers
    steps = -(-prompts // batch) * new_tokens if prompts else 0.0
    step = max(
        size.parameters * weight_bytes / rates.bandwidth,
        forward_flops(size, together, prompt_tokens + new_tokens) / rates.flops,
    )
    return steps * step + forward_flops(size, prompts * answers * prompt_tokens, prompt_tokens) / rates.flops
