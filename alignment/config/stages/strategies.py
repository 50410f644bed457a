"""Strategies of training: which weights are trained."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from alignment.config.stages.fields import Positive, Strict


class Adapter(Strict):
    """A low-rank adapter beside frozen weights (Hu et al. 2021, arXiv:2106.09685); the classes below say what those
    weights are kept in."""

    quantised: ClassVar[Literal["nf4-double"] | None] = None
    """What the frozen weights below the adapter are rounded to; None: the stage's dtype alone."""
    optim: ClassVar[str | None] = None
    """TRL's `optim` where `trl` has none; None: TRL's own default. It changes what is learned: TrainBase.learned."""

    kind: str
    why: str | None = None
    """Filled in where `auto` chose this kind: from what. Nothing is learned from it."""
    r: Positive = 16
    """Rank of the matrices. 8 to 64 is usual; higher holds more and costs more. A stage that continues an adapter has
    the same kind, r, alpha, targets and modules_to_save."""
    alpha: Positive = 32
    """The update is scaled by alpha / r; twice r is usual. Change it together with r."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the adapter's inputs set to zero while training; 0.05 to 0.1 against overfitting on few rows. Counts for
    a continued adapter too; a reference has none."""
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """`all-linear` (all but the output head) or names of linear layers, as `q_proj` or `self_attn.q_proj`; a name that
    matches nothing or another kind of module is an error, and so is the output head."""
    modules_to_save: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Modules that are trained whole, in float32, and kept with the adapter: `[embed_tokens, lm_head]` where tokens are
    new to the model. Embeddings that are tied stay tied: naming one of them trains both."""

    @property
    def shape(self) -> dict[str, object]:
        """What an adapter is made with; a stage that continues it cannot change it."""
        return {"kind": self.kind, "r": self.r, "alpha": self.alpha, "targets": self.targets,
                "modules_to_save": self.modules_to_save}


class Lora(Adapter):
    """Low-rank adapters over weights in the stage's dtype (Hu et al. 2021, arXiv:2106.09685)."""

    kind: Literal["lora"]
    """Small matrices beside the frozen weights are trained: a fraction of the memory, and an adapter of a few MB."""


class QLora(Adapter):
    """Low-rank adapters over a base in four bits (Dettmers et al. 2023, arXiv:2305.14314): NF4, double quantisation.

    Quantised are the weights of the linear layers, in blocks of 64 with a scale each, the scales in turn to eight bits.
    Output head, embeddings, norms, experts that are one parameter, adapters and a reward model's head are not. The
    matrix products are in the stage's dtype; what is trained is float32.
    """

    quantised = "nf4-double"
    optim = "paged_adamw_8bit"  # on a CPU too: the optimizer is part of what is learned, the machine is not

    kind: Literal["qlora"]
    """As lora, over a base in four bits (NF4): a quarter of bfloat16's memory. Evaluation and sampling use the same
    rounded base. Optimizer: 8-bit AdamW, `trl: {optim: ...}` for another."""


class Auto(Adapter):
    """One of the others, by the memory of the hardware that is named or found (planner/auto.py)."""

    kind: Literal["auto"]
    """full where it leaves two fifths of the GPU free, else lora likewise, else qlora; lora on a CPU. Several GPUs
    share out a full training, by the least sharding that fits. What is chosen is part of what is learned."""


class Full(Strict):
    """Every weight is trained."""

    why: str | None = None
    """Filled in where `auto` chose this kind: from what. Nothing is learned from it."""

    kind: Literal["full"]
    """All weights, in float32: 16 bytes per parameter with Adam."""


Strategy = Annotated[Lora | QLora | Full | Auto, Field(discriminator="kind")]
