"""Train stages: one class for each method; which weights are trained is strategies.py's.

A new method is a class here and a file of alignment/training/methods/; docs/extending.md has the whole list.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from alignment.config.stages.base import Finding, ModelRef, MostTokens, RowsPlace, Stage
from alignment.config.stages.fields import LENGTH, Dtype, Name, Positive, RowsRef, Strict
from alignment.config.stages.strategies import Adapter, Lora, Strategy
from alignment.config.trl_keys import trl_findings
from alignment.config.trl_methods import (
    UNUSED_BY_DISTILL,
    UNUSED_BY_DPO,
    UNUSED_BY_ORPO,
    WITHOUT_SYNC,
    dpo_findings,
    dpo_losses,
    rows_of_a_pass_count,
)
from alignment.config.trl_values import late_findings


def _thawed(value: Any) -> Any:
    """Lists again where a loaded file has tuples: what is handed to a library is handed on as it was written."""
    if isinstance(value, dict):
        return {key: _thawed(item) for key, item in value.items()}
    return [_thawed(item) for item in value] if isinstance(value, list | tuple) else value


MOST_ROWS = 8
"""Rows of one forward pass where the run file does not say how many, at most: more is hardly faster on one device."""
Passed = Annotated[dict[str, Any], BeforeValidator(_thawed)]
"""Keys of a library, passed on untouched."""


class Checkpoints(Strict):
    """How often training is saved, and which weights the stage publishes."""

    every: Positive = 50
    """Optimizer steps between checkpoints (and evaluations, when eval_rows is given)."""
    keep: Positive = 2
    """How many are kept while training; the best is never thrown away."""
    final: Literal["last", "best"] = "last"
    """Which weights the stage publishes; `best` is judged by the loss on eval_rows."""


class TrainBase(Stage):
    """What every training method has."""

    tag: ClassVar[str] = "train"
    body = "alignment.distributed.train:train_stage"
    script = "train"
    on_workers = True
    not_learned = Stage.not_learned | {"log_to"}
    engine = "trl"
    # Measured on AVX512-BF16: a LoRA step gains nothing from it, as the backward pass and float32 adapters dominate.
    bfloat16_on = frozenset({"gpu"})
    trl_config: ClassVar[str]
    """The method's config class in the installed TRL: FILE:CLASS, relative to its package."""
    sequences: ClassVar[int] = 1
    """Token sequences that one row becomes."""
    least_micro_batch: ClassVar[int] = 1
    """Rows that one forward pass must have at least."""
    whole_logits: ClassVar[bool] = False
    """Whether its loss takes the logits over the whole vocabulary at once, and no tiles of them."""
    bounds: ClassVar[Mapping[str, str]] = {}
    """Numbers under `trl` that mean something to this method, where they are other ones than trl_values.BOUNDS has."""
    not_passed: ClassVar[Mapping[str, str]] = {}
    """Keys of the method's TRL config that would do nothing here, or cannot be honoured -> what to do instead."""
    reads: ClassVar[str]
    """Rows that the method can use, in words."""
    rates: ClassVar[tuple[float, float]]
    """Default learning rates of `full` and of an adapter: that of the method's TRL config, and ten times that, as TRL's
    own scripts have it, since an adapter starts at nothing."""

    kind: Literal["train"] = "train"
    """`train` with a `method`."""
    model: Name
    """The stage whose model this one starts from. Its adapter is continued, or merged by strategy full."""
    rows: tuple[RowsRef, ...] = Field(min_length=1)
    """The row sets to learn from, each STAGE/SPLIT (seed/train, rs/best, rs/pairs); several are put together. Rows
    that the method cannot use are dropped and counted."""
    take: Positive | None = None
    """At most so many rows (times the run's scale), drawn with the run's seed."""
    eval_rows: RowsRef | None = None
    """STAGE/SPLIT whose loss is measured at every checkpoint and nothing is learned from; needed for final: best.
    Never the split that evaluate asks."""
    strategy: Strategy = Lora(kind="lora")
    """Which weights are trained: `kind: lora` a small adapter, `kind: qlora` one over a base in four bits, `kind: full`
    all weights, `kind: auto` what fits."""
    epochs: Annotated[float, Field(gt=0)] = 1.0
    """Passes over the rows; fractions are allowed. 1 to 3 for sft, 1 for reward and dpo: more soon learns by
    heart."""
    batch_size: Positive = 8
    """Rows per optimizer step over all workers; accumulation follows from it."""
    micro_batch_size: Positive | None = None
    """Rows per forward pass on one worker, at most: less where batch_size is shared out over several workers. Left out:
    the most that share a worker's part of batch_size evenly, up to 8, and fit its memory by the planner's estimate;
    the stage says which."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    """Highest learning rate. Default: TRL's of the method (sft 2e-5, reward 1e-4, others 1e-6); with an adapter ten
    times that. Schedule, warm-up: `trl: {lr_scheduler_type: cosine, warmup_steps: 10}`."""
    max_length: Positive | None = None
    """Tokens of prompt and answer together. Default: 1024, or the model's context length where that is less."""
    too_long: Literal["drop", "truncate-prompt", "error"] = "drop"
    """A row over max_length: dropped and counted, its prompt cut at the left and counted, or an error. No answer is
    cut: where every turn of a conversation is learned (sft's loss: assistant or all), what is cut off ends before an
    answer or takes it whole, and a row whose last answer leaves no room for a prompt is dropped."""
    checkpoints: Checkpoints = Checkpoints()
    """How often the state is saved (to resume from, and to choose the best), and what is published."""
    log_every: Positive = 1
    """Optimizer steps between lines of events.jsonl."""
    log_to: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """Trackers that get the same curves as events.jsonl; each must be installed. wandb and mlflow read their own
    environment variables."""
    dtype: Dtype | None = None
    """Arithmetic of the frozen weights. Left out: compute.dtype, whose auto is float32 on a CPU and bfloat16 on a GPU
    that has it; what is settled is part of what the stage is."""
    trl: Passed = Field(default_factory=dict)
    """Passed to TRL's config of this method as it is, for example {warmup_steps: 10, beta: 0.2}."""
    method: str
    """What is learned, and from which rows; each method has keys of its own."""

    @classmethod
    def is_meant(cls, get: Callable[[str], Any]) -> bool:
        return super().is_meant(get) and get("method") == cls.tag

    def model_refs(self) -> Iterator[ModelRef]:
        yield ModelRef(("model",), self.model, "policy")

    def row_refs(self) -> Iterator[RowsPlace]:
        yield from (RowsPlace(("rows", index), ref) for index, ref in enumerate(self.rows))
        if self.eval_rows is not None:
            yield RowsPlace(("eval_rows",), self.eval_rows)

    def most_tokens(self) -> MostTokens:
        return MostTokens(("max_length",), self.longest, f"max_length {self.longest}", said=self.max_length is not None)

    def findings(self) -> Iterator[Finding]:
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            yield Finding(("batch_size",), "is no multiple of micro_batch_size", self.batch_size,
                          f"a multiple of {self.micro_batch_size}; or leave micro_batch_size out")
        key = "batch_size" if self.micro_batch_size is None else "micro_batch_size"
        if getattr(self, key) < self.least_pass:
            yield Finding((key,), f"method {self.method} compares rows of one forward pass", getattr(self, key),
                          f"{self.least_pass} or more")
        if self.checkpoints.final == "best" and self.eval_rows is None:
            yield Finding(("checkpoints",), "final: best needs eval_rows", "best", "eval_rows: STAGE/SPLIT")
        if self.adapter is not None and len(set(self.adapter.targets)) != len(self.adapter.targets) and isinstance(
                self.adapter.targets, tuple):
            yield Finding(("strategy", "targets"), "names a layer twice", list(self.adapter.targets), "each once")
        if self.adapter is not None and not self.adapter.targets:
            yield Finding(("strategy", "targets"), "names no layer", [], "all-linear, or names of linear layers")
        if self.adapter is not None and "lm_head" in self.adapter.targets:
            yield Finding(("strategy", "targets"), "lm_head takes no adapter: it may be the embedding as well, and the "
                          "losses read its weight past an adapter", "lm_head",
                          "names of other linear layers; modules_to_save: [lm_head] trains it whole")
        if self.checkpoints.every % self.log_every:
            yield Finding(
                ("checkpoints", "every"),
                "is no multiple of log_every, so a resumed run would log other averages than an uninterrupted one",
                self.checkpoints.every, f"a multiple of {self.log_every}")
        yield from (Finding(("trl", key), "does nothing here, or nothing that can be held to", key, instead)
                    for key, instead in self.not_passed.items() if key in self.trl)
        yield from (Finding(("trl", key), problem, found, expected)
                    for key, problem, found, expected in (
                        *trl_findings(self.trl, self.trl_config),
                        *late_findings(self.trl, self.trl_config, evaluates=self.eval_rows is not None,
                                       bounds=self.bounds)))

    def mended(self) -> dict[str, int]:
        # Dropout counted for fresh adapters of sft alone; a continued one kept that of its start.
        dropout = self.adapter is not None and self.adapter.dropout > 0
        # A last pass over eval_rows counted like a whole one, however few rows it had; `final: best` goes by the loss.
        held = self.eval_rows is not None and self.drawn is None
        return super().mended() | ({"dropout": 2} if dropout else {}) | ({"held-means": 2} if held else {})

    def learned(self, scaled: Callable[[int | None], int | None]) -> dict[str, Any]:
        learned = super().learned(scaled) | {"learning_rate": self.rate}
        learned["strategy"].pop("why", None)
        return learned | {"trl": {**self.by_strategy, **learned["trl"]}}

    def defaulted(self) -> str | None:
        rate = None if self.learning_rate is not None or self.strategy.kind == "auto" else (
            f"learning rate {self.rate:g}, the default of {self.method} with {self.strategy.kind}")
        return "; ".join(filter(None, (self.strategy.why, rate))) or None

    def title(self) -> str:
        return f"{self.method} · {'all weights' if self.adapter is None else f'{self.adapter.kind} r {self.adapter.r}'}"

    def micro_batch(self, workers: int, fits: Callable[[int], bool] = lambda rows: True) -> int:
        """Rows per forward pass on each of `workers`: micro_batch_size, or what of it divides a worker's share of
        batch_size; 0 where batch_size cannot be shared out evenly, or not in passes that are large enough.

        Args:
            fits: whether so many rows fit; asked where micro_batch_size is left out, and not of a method that compares
                rows of one pass, as that many rows are part of what is learned there.
        """
        share, left = divmod(self.batch_size, max(1, workers))
        if left:
            return 0
        if self.micro_batch_size is not None:
            rows = math.gcd(share, self.micro_batch_size)
            return rows if rows >= self.least_pass else 0
        sizes = [rows for rows in range(self.least_pass, share + 1) if share % rows == 0]
        usual = [rows for rows in reversed(sizes) if rows <= MOST_ROWS] or sizes[:1]
        if not self.pass_counts:
            return next(filter(fits, usual), 1)
        return usual[0] if usual else 0

    @property
    def least_pass(self) -> int:
        """Rows that one forward pass must have at least."""
        return self.least_micro_batch

    @property
    def pass_counts(self) -> bool:
        """Whether how many rows one forward pass has is part of what is learned, so that no memory may decide it."""
        return self.least_pass > 1

    @property
    def marked_loss(self) -> str | None:
        """The `loss` that is taken where the chat template marks the assistant's turns; None where no marks count."""
        return None

    @property
    def longest(self) -> int:
        """Tokens of prompt and answer together, at most."""
        return self.max_length or LENGTH

    @property
    def drawn(self) -> int | None:
        """Tokens of the answers that the stage draws itself, at most; None where its rows bring them."""
        return None

    @property
    def functions(self) -> tuple[str, ...]:
        """Reward functions of one answer that judge what is said to its rows."""
        return ()

    @property
    def rows_per_step(self) -> int:
        """Rows that an optimizer step goes through, over all workers."""
        return self.batch_size

    @property
    def rate(self) -> float:
        """The learning rate: the stage's own, or the default of its method and strategy."""
        return self.learning_rate or self.rates[self.adapter is not None]

    @property
    def by_strategy(self) -> dict[str, Any]:
        """Keys of TRL that the strategy sets; those in `trl` win."""
        return {"optim": self.adapter.optim} if self.adapter is not None and self.adapter.optim is not None else {}

    @property
    def adapter(self) -> Adapter | None:
        return self.strategy if isinstance(self.strategy, Adapter) else None

    @property
    def groups(self) -> tuple[str, ...]:
        return (self.name, self.method, self.kind)

    @property
    def reference_mode(self) -> Literal["adapter", "precomputed"] | None:
        """How the log-probabilities of a frozen reference are had; None for methods without one."""
        return None

    @property
    def scorers(self) -> int:
        """Reward models that are asked while the stage trains."""
        return 0

    @property
    def keeps_start(self) -> bool:
        """Whether all weights of the start are kept beside those that are trained, as a reference."""
        return False

    @property
    def frozen(self) -> ModelRef | None:
        """A second model, loaded beside the one that is trained and never changed; None for most."""
        return None

    @property
    def frozen_in_float32(self) -> bool:
        """Whether that second model computes in float32 whatever `dtype` says: a reference does so as the policy does,
        a teacher costs no more than it must."""
        return self.adapter is None and self.reference_mode is not None


def as_train(stage: Stage) -> TrainBase | None:
    """The stage with the keys of one that trains; None where it does not."""
    return stage if isinstance(stage, TrainBase) else None


class Sft(TrainBase):
    """Supervised fine-tuning on messages, prompt-completion rows or the chosen side of preferences."""

    tag: ClassVar[str] = "sft"
    makes = "policy"
    trl_config = "trl/trainer/sft_config.py:SFTConfig"
    reads = "rows with an answer, within max_length"
    rates = (2e-5, 2e-4)

    method: Literal["sft"]
    """`sft`: to answer as the rows do."""
    loss: Literal["completion", "assistant", "all"] = "completion"
    """Which tokens are learned: the last answer, every assistant turn, or everything."""
    packing: bool = False
    """Several rows in one sequence of max_length, without attention across rows."""

    @property
    def marked_loss(self) -> str | None:
        return None if self.loss == "completion" else self.loss

    def mended(self) -> dict[str, int]:
        # Whole conversations over max_length were dropped.
        cut = self.loss != "completion" and self.too_long == "truncate-prompt"
        return super().mended() | ({"truncate-prompt": 2} if cut else {})

    def findings(self) -> Iterator[Finding]:
        yield from super().findings()
        if self.packing and self.too_long == "error":
            yield Finding(("packing",), "packing does not combine with too_long: error", True,
                          "drop or truncate-prompt")


class Reward(TrainBase):
    """A scalar head on the backbone's last hidden state at the last real token (Bradley-Terry loss)."""

    tag: ClassVar[str] = "reward"
    makes = "reward"
    trl_config = "trl/trainer/reward_config.py:RewardConfig"
    sequences = 2
    reads = "preference rows"
    rates = (1e-4, 1e-3)

    method: Literal["reward"]
    """`reward`: to score answers, from pairs of a better and a worse one."""


class WithReference(TrainBase):
    """Methods that are held to a frozen reference: the start model, or that of `reference_model`."""

    not_passed = WITHOUT_SYNC

    reference: Literal["auto", "adapter", "precomputed"] = "auto"
    """How the reference's log-probabilities are had: a frozen copy of the start adapter, or computed once
    before training and cached by digest. auto: precomputed for full and for a reference_model, else adapter."""
    reference_model: Name | None = None
    """The stage whose model is the frozen reference, with the start's tokenizer and chat template. Left out: the start
    model itself, `model`."""

    @model_validator(mode="after")
    def _reference(self) -> Self:
        if self.reference == "adapter" and self.strategy.kind == "full":
            raise ValueError("reference: adapter needs strategy lora or qlora; with strategy full use precomputed")
        return self

    def model_refs(self) -> Iterator[ModelRef]:
        yield from super().model_refs()
        if self.frozen is not None:
            yield self.frozen

    def findings(self) -> Iterator[Finding]:
        yield from super().findings()
        if self.reference == "adapter" and self.reference_model is not None:
            yield Finding(("reference",), "a frozen copy of the start adapter is no other stage's model", "adapter",
                          "precomputed, or no reference_model")
        if self.reference_mode == "adapter" and "precompute_ref_batch_size" in self.trl:
            yield Finding(("trl", "precompute_ref_batch_size"), "nothing is computed before training",
                          self.trl["precompute_ref_batch_size"], "reference: precomputed, or without this key")

    @property
    def reference_mode(self) -> Literal["adapter", "precomputed"] | None:
        if self.reference == "auto":
            return "precomputed" if self.strategy.kind == "full" or self.reference_model is not None else "adapter"
        return self.reference

    @property
    def frozen(self) -> ModelRef | None:
        return None if self.reference_model is None else ModelRef(("reference_model",), self.reference_model, "policy")


class Dpo(WithReference):
    """Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290) with any of TRL's losses; the reference
    is `model`, or `reference_model`."""

    tag: ClassVar[str] = "dpo"
    makes = "policy"
    trl_config = "trl/trainer/dpo_config.py:DPOConfig"
    sequences = 2
    reads = "preference rows"
    rates = (1e-6, 1e-5)
    not_passed = UNUSED_BY_DPO

    method: Literal["dpo"]
    """`dpo`: to prefer the better answer of each pair, without a reward model. Its beta: `trl: {beta: 0.1}`; its loss,
    or several: `trl: {loss_type: ipo}`, `trl: {loss_type: [sigmoid, sft], loss_weights: [1.0, 0.2]}`."""

    def findings(self) -> Iterator[Finding]:
        yield from super().findings()
        yield from (Finding(("trl", key), problem, found, expected)
                    for key, problem, found, expected in dpo_findings(self.trl))

    @property
    def least_pass(self) -> int:
        return 2 if rows_of_a_pass_count(self.trl) == "sorted" else 1

    @property
    def pass_counts(self) -> bool:
        return rows_of_a_pass_count(self.trl) is not None

    @property
    def reads_reference(self) -> bool:
        """Whether the loss depends on the reference; what is logged as rewards does in any case."""
        return set(dpo_losses(self.trl)) != {"sft"}


class Kto(WithReference):
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv:2402.01306): answers that are wanted or not, without
    pairs; the reference is `model`, or `reference_model`. A preference counts as one wanted and one unwanted answer."""

    tag: ClassVar[str] = "kto"
    makes = "policy"
    trl_config = "trl/trainer/kto_config.py:KTOConfig"
    sequences = 2
    least_micro_batch = 2
    reads = "unpaired rows (with a label) or preference rows"
    rates = (1e-6, 1e-5)

    method: Literal["kto"]
    """`kto`: to prefer wanted answers over unwanted ones, without pairs. Its beta: `trl: {beta: 0.1}`."""


class Orpo(TrainBase):
    """Odds ratio preference optimisation (Hong et al. 2024, arXiv:2403.07691): learns the chosen answers and pushes the
    rejected ones away, without a reference. TRL calls its trainer experimental: it may change in any release."""

    tag: ClassVar[str] = "orpo"
    makes = "policy"
    trl_config = "trl/experimental/orpo/orpo_config.py:ORPOConfig"
    sequences = 2
    whole_logits = True
    reads = "preference rows"
    rates = (1e-6, 1e-5)
    not_passed = UNUSED_BY_ORPO

    method: Literal["orpo"]
    """`orpo`: to learn chosen answers and avoid rejected ones at once, without a reference. Experimental in TRL. Weight
    of the odds ratio: `trl: {beta: 0.1}`."""

    @property
    def pass_counts(self) -> bool:
        return True  # its likelihood term is a mean over the tokens of one forward pass


class Distill(TrainBase):
    """Distillation (Hinton et al. 2015, arXiv:1503.02531; generalised Jensen-Shannon divergence of Agarwal et al. 2023,
    arXiv:2306.13649): the rows' answers, each token as likely as the teacher finds it. Off-policy."""

    tag: ClassVar[str] = "distill"
    makes = "policy"
    trl_config = "trl/trainer/distillation_config.py:DistillationConfig"
    reads = "rows with an answer, within max_length"
    rates = (1e-6, 1e-5)
    bounds: ClassVar[Mapping[str, str]] = {"beta": "0 to 1", "temperature": "more than 0"}
    not_passed = UNUSED_BY_DISTILL

    method: Literal["distill"]
    """`distill`: to give each token of the rows' answers the probability that the teacher gives it. Its divergence:
    `trl: {beta: 0.0}` forward KL, 0.5 Jensen-Shannon, 1.0 (TRL's default) reverse KL; `temperature` of both."""
    teacher: Name
    """The stage whose model is the teacher: frozen, with the same tokenizer and chat template as `model`."""

    def model_refs(self) -> Iterator[ModelRef]:
        yield from super().model_refs()
        yield self.frozen

    def findings(self) -> Iterator[Finding]:
        yield from super().findings()
        if self.teacher == self.model:
            yield Finding(("teacher",), "is the model that is trained, so there is nothing to learn of it",
                          self.teacher, "another stage")

    @property
    def frozen(self) -> ModelRef:
        return ModelRef(("teacher",), self.teacher, "policy")


METHODS: tuple[type[TrainBase], ...] = (Sft, Reward, Dpo, Kto, Orpo, Distill)
"""Methods that learn from rows as they are, in the order in which errors and documents list them; online.py has the
others."""
