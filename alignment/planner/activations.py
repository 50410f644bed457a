"""Bytes that a forward and backward pass keeps beside weights: of a layer, of layer borders, of the output head.

Read off what autograd keeps of transformers 5.19's modeling files and TRL 1.16's fused head, operator by operator, and
held to tensors counted at the peak (tests/planner/test_peak.py). With attention by sdpa or flash, so that no T x T
scores are kept. All sizes are bytes for one token, unless a docstring says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from alignment.planner.sizes import ModelSize

LOGIT_TILE, TOKEN_TILE = 32_768, 4096
"""Columns of the output head, and tokens, that TRL's fused log-probabilities compute at once
(trl/trainer/utils.py `_CHUNKED_LOGPROB_CHUNK_SIZE`, trl/kernels/chunked_logprob.py `TOKEN_CHUNK_SIZE`)."""
_FLOAT = 4
Arithmetic = Literal["float32", "autocast", "cast-inputs"]
"""How a pass computes. float32; autocast: trained weights float32, products bfloat16; cast-inputs: frozen weights
bfloat16, adapters float32 without autocast (on a CPU)."""


@dataclass(frozen=True)
class Pass:
    """One forward and backward pass: what it computes on, and in what arithmetic.

    Attributes:
        sequences, length: B and T, with padding.
        rank: of the adapters; None where every weight is trained.
        padded: some rows are shorter, so that there is a mask and sdpa copies keys and values for each query head
            (transformers/integrations/sdpa_attention.py `use_gqa_in_sdpa`).
        quantised: linear weights are in four bits and are unpacked one layer at a time.
        on_gpu: TRL's head folds its tiles in a Triton kernel, on a CPU in torch.
    """

    size: ModelSize
    sequences: int
    length: int
    arithmetic: Arithmetic
    rank: int | None
    padded: bool = True
    quantised: bool = False
    on_gpu: bool = False

    @property
    def tokens(self) -> int:
        return self.sequences * self.length

    @property
    def value(self) -> int:
        """Bytes of what a product gives."""
        return _FLOAT if self.arithmetic == "float32" else 2

    @property
    def border(self) -> int:
        """Of the residual stream between layers: float32 where embeddings are trained under autocast."""
        return self.size.hidden * (_FLOAT if self.arithmetic == "autocast" and self.rank is None else self.value)

    def layer(self) -> int:
        """What one layer keeps for its backward pass.

        Norms keep their input (in float32, as they compute in it), and where their weight is trained what they scale;
        linear layers their input; sdpa query, key, value, answer and a log-sum per head; the gated layer gate, its
        activation, up and their product. Under autocast every linear layer of an adapter keeps a copy of its own.
        """
        size, value = self.size, self.value
        inner, kv, full = size.inner, size.kv, self.rank is None
        wide = size.norms * size.hidden + size.head_norms * (inner + kv)
        norms = _FLOAT * wide * (2 if full else 1)
        inputs = sum(width for width, _ in size.shapes())
        shared = 2 * size.hidden  # one output of a norm for query, key and value, one for gate and up
        if self.arithmetic == "autocast":
            linear = value * (inputs if not full else inputs - inner - size.intermediate)
            gated = value * (3 if not full else 4) * size.intermediate
        elif self.arithmetic == "cast-inputs":
            linear, gated = _FLOAT * inputs, value * 3 * size.intermediate
        else:
            linear, gated = value * shared, value * 4 * size.intermediate
        repeated = self.padded and size.kv_heads < size.heads
        attention = value * 2 * (inner + (inner if repeated else kv)) + _FLOAT * size.heads
        if size.fused and not repeated:  # the value is a view of what has query and key as well
            attention += value * (inner + kv)
        if size.fused and self.arithmetic == "float32":  # sdpa gives it in another order
            attention += value * inner
        adapters = (self.rank or 0) * len(size.shapes()) * (_FLOAT if self.arithmetic == "cast-inputs" else value)
        return norms + linear + gated + attention + adapters + _FLOAT * size.norms

    def passing(self) -> int:
        """What is there beside it for a moment, in the widest place of a layer: the gated feed-forward layer."""
        wide, narrow = self.size.intermediate, self.size.hidden
        if self.arithmetic == "float32":
            return _FLOAT * (2 * wide + narrow)
        if self.rank is None:
            return 4 * wide + 4 * narrow
        return 6 * wide + 12 * narrow

    def masks(self, layers: int) -> int:
        """Bytes of a batch's mask, B T T: of booleans, and as sdpa adds it to scores in the pass's type, by layer."""
        square = self.sequences * self.length**2
        return square * (1 + self.value * (layers + 1)) if self.padded else 0

    def saved(self, checkpointing: bool, *, ends: bool = True) -> int:
        """Bytes kept of the forward pass: of every layer, or of the borders alone (arXiv:1604.06174). `ends`: with the
        last norm, which goes when the backward pass comes to the layers."""
        layers = self.size.layers
        last = self.tokens * (2 * self.border + self.size.hidden * (_FLOAT - self.value)) if ends else 0
        if checkpointing:
            return self.tokens * layers * self.border + last + self.masks(0)
        return self.tokens * layers * self.layer() + last + self.masks(layers)

    def again(self, checkpointing: bool) -> int:
        """Bytes on top of `saved` in a layer's backward pass: what is computed again, and what passes."""
        once = self.tokens * self.passing() + self._unpacked()
        return once + (self.tokens * self.layer() + self.masks(1) if checkpointing else 0)

    def _unpacked(self) -> int:
        """Bytes of the largest linear layer's weights, in the pass's type, where they are in four bits."""
        return max(width * height for width, height in self.size.shapes()) * self.value if self.quantised else 0

    def head(self, *, trained: bool, backward: bool) -> int:
        """Bytes of TRL's fused head, forward or backward: a tile of logits, the hidden states, in the backward pass
        their gradient and that of the weight where it is trained; a tile of that in bfloat16 where it is float32."""
        size = self.size
        rows, columns = min(self.tokens, TOKEN_TILE), min(size.vocab, LOGIT_TILE)
        tile = rows * LOGIT_TILE * self.value
        if not self.on_gpu:  # folded in torch: float32 copies as wide as the vocabulary, and one of booleans
            tile += rows * columns * ((7 + size.capped) * _FLOAT + 1 if backward else 4 * _FLOAT)
        cast = columns * size.hidden * self.value if trained and self.arithmetic == "autocast" else 0
        if not backward:
            return tile + self.tokens * size.hidden * self.value + cast
        weight = size.vocab * size.hidden * _FLOAT if trained else 0
        return tile + self.tokens * size.hidden * (self.value + _FLOAT) + cast + weight
