"""Memory and time of a stage from numbers alone: pure formulae, each with its source.

Notation: N parameters, L layers, H hidden, A heads, V vocabulary, B sequences at once, T tokens of a sequence.
All memory is bytes on one worker; all times are seconds on one worker. A training's memory is that of its highest
moment, counted in tensors; what a process has beside tensors is overhead.py's.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace

from alignment.planner.activations import LOGIT_TILE, Arithmetic, Pass
from alignment.planner.sharing import Zero, held, overhead, zero_of
from alignment.planner.sizes import ModelSize

FLOAT32, BFLOAT16 = 4, 2
NF4_DOUBLE = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a weight in NF4 with double quantisation (arXiv:2305.14314, 3): four bits, a scale of eight bits for 64 of
them, a scale's scale for 256 of those."""
ADAM, ADAM_8BIT = 2 * FLOAT32, 2 * (1 + FLOAT32 / 256)
"""Bytes of an optimizer's states for a trained weight: two moments in float32; in eight bits with a scale for 256
(arXiv:2110.02861, 2.2; bitsandbytes' block of 256)."""

__all__ = ["ADAM", "ADAM_8BIT", "BFLOAT16", "FLOAT32", "LOGIT_TILE", "Memory", "Rates", "forward_flops",
           "generate_memory", "generate_seconds", "measure_rates", "states", "train_flops", "train_memory"]


@dataclass(frozen=True)
class Memory:
    """Bytes, by what they hold."""

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    logits: int = 0
    cache: int = 0
    buffers: int = 0
    """Of DistributedDataParallel or DeepSpeed."""
    overhead: int = 0
    """What the device holds beside tensors (sharing.py)."""
    probed: int = 0
    """What a probe saw beyond the formulas; below 0, where it saw less (probed.py)."""

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
    optimizer: float = ADAM,
    accumulated: bool = True,
    sharding: str = "none",
    workers: int = 1,
    zero: Zero | None = None,
    autocast: bool = True,
    padded: bool = True,
    on_gpu: bool = False,
) -> Memory:
    """Memory of training with AdamW (fused, which keeps no copies) at its highest moment, on one worker.

    Args:
        lora_rank: None trains every weight, in float32.
        frozen_bytes: bytes of a value in the stage's dtype: of a frozen weight, and of what products give.
        sequences: B of one forward pass; a preference row is two sequences.
        length: T, prompt and answer.
        head: False for a reward model, whose head is one row in float32.
        checkpointing: activations are kept at layer borders only and computed again in the backward pass.
        reference: a frozen second adapter beside the trained one (DPO).
        quantised: the frozen linear layers are in NF4 with double quantisation.
        optimizer: bytes of its states for a trained weight.
        accumulated: gradients of a forward pass are added to those of others, so they are there from its beginning.
        sharding, workers, zero: as in `held`.
        autocast: where the dtype is bfloat16 and an adapter is float32: on GPUs.
        padded, on_gpu: as in `Pass`.

    Weights, gradients and Adam's two moments are 4 + 4 + 8 bytes per trained weight (ZeRO, arXiv:1910.02054, 3.1, in
    float32). The highest moment is the loss, or the backward pass of the last layer or the first one.
    """
    one = Pass(size, sequences, length, _arithmetic(lora_rank, frozen_bytes, autocast), lora_rank,
               padded, quantised, on_gpu)
    trained, frozen = states(size, lora_rank=lora_rank, frozen_bytes=frozen_bytes, head=head, reference=reference,
                             quantised=quantised)
    zero = zero or zero_of(sharding, None, size.hidden)
    part = held(trained, frozen, optimizer, sharding=sharding, workers=workers, zero=zero,
                largest=size.vocab * size.hidden, kept=_kept_whole(size, lora_rank, frozen_bytes, zero.persistent))
    whole = Memory(weights=round(part.weights), gradients=round(part.gradients), optimizer=round(part.optimizer),
                   buffers=round(part.buffers))
    full = lora_rank is None
    early = whole if accumulated else replace(whole, gradients=0)
    kept, again = one.saved(checkpointing), one.again(checkpointing)
    # Autocast keeps its copies of trained weights until the forward pass ends; without checkpointing, autograd does.
    casts = size.linear_parameters * BFLOAT16 if full and one.arithmetic == "autocast" else 0
    later = 0 if checkpointing else casts
    adding = _gradient(size, one) if full else 0
    embedding = size.vocab * size.hidden * FLOAT32 if full else 0
    first = embedding if head and not accumulated else 0  # of the head
    # Comes last; where workers share gradients out, their buckets are there from the beginning.
    missing = embedding if workers == 1 and not accumulated and not (head and size.tied) else 0
    layers = one.saved(checkpointing, ends=not checkpointing)
    moments = [
        replace(early, activations=kept + casts + (one.tokens * one.passing() if casts else 0),
                logits=one.head(trained=full, backward=False) if head else 0),
        replace(early, activations=kept + later, logits=one.head(trained=full, backward=True) if head else 0),
        replace(early, activations=layers + again + adding + later, gradients=early.gradients + first),
        replace(whole, activations=one.tokens * one.border + again + adding,
                gradients=max(0, whole.gradients - missing)),
        replace(whole, activations=2 * one.tokens * one.border + embedding - missing),
    ]
    most = max(moments, key=lambda memory: memory.total)
    return replace(most, overhead=overhead(most.activations + most.logits + most.gradients, on_gpu=on_gpu,
                                           workers=workers))


def states(
    size: ModelSize, *, lora_rank: int | None, frozen_bytes: int, head: bool = True, reference: bool = False,
    quantised: bool = False,
) -> tuple[int, float]:
    """Weights that are trained, and bytes of those that are not."""
    score = 0 if head else size.hidden
    body = size.parameters - (0 if head else size.head_parameters)
    if lora_rank is None:
        return body + score, 0.0
    adapter = size.lora_parameters(lora_rank)
    frozen: float = body * frozen_bytes + (adapter * FLOAT32 if reference else 0)
    frozen -= size.linear_parameters * (frozen_bytes - NF4_DOUBLE) if quantised else 0
    return adapter + score, frozen


def _arithmetic(lora_rank: int | None, value: int, autocast: bool) -> Arithmetic:
    if value == FLOAT32:
        return "float32"
    return "autocast" if autocast or lora_rank is None else "cast-inputs"


def _kept_whole(size: ModelSize, rank: int | None, value: int, threshold: int) -> float:
    """Bytes of the matrices of at most so many elements: of linear layers, and of adapters."""
    own = FLOAT32 if rank is None else value
    total = sum(own * width * height for width, height in size.shapes() if width * height <= threshold)
    if rank is not None:
        total += sum(FLOAT32 * rank * side for shape in size.shapes() for side in shape if rank * side <= threshold)
    return float(size.layers * total)


def _gradient(size: ModelSize, one: Pass) -> int:
    """Bytes of the gradient of the largest linear layer on its way to where it is added."""
    largest = max(width * height for width, height in size.shapes())
    return largest * (FLOAT32 + (0 if one.arithmetic == "float32" else BFLOAT16))


def generate_memory(
    size: ModelSize, *, weight_bytes: int, sequences: int, length: int, scorer: bool = False, quantised: bool = False,
    on_gpu: bool = False,
) -> Memory:
    """Memory of generation: weights (twice with a reward model of the same backbone), the cache of keys and values
    (2 L B T values per key-value head and dimension; arXiv:1911.02150), the prompts' way through a layer, and the
    logits of one step: themselves, sorted, their order in 64 bits, and probabilities.

    Args:
        sequences: B, prompts in a batch times answers per prompt.
        length: T, prompt and new tokens.
        quantised: as in `train_memory`; the reward model is not.
    """
    cache = 2 * size.layers * sequences * length * size.kv_heads * size.head_dim * weight_bytes
    whole = size.parameters * weight_bytes
    weights = whole - (size.linear_parameters * (weight_bytes - NF4_DOUBLE) if quantised else 0)
    passing = sequences * length * (4 * size.hidden + 3 * size.intermediate + size.inner) * weight_bytes
    logits = sequences * size.vocab * (3 * FLOAT32 + 8)
    return Memory(weights=round(weights + (whole if scorer else 0)), activations=passing, logits=logits, cache=cache,
                  overhead=overhead(passing + logits + cache, on_gpu=on_gpu))


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
