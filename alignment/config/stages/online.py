"""Online methods: the policy answers prompts while it trains, and a reward says which answers were good."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from alignment.config.stages.base import Finding, ModelRef
from alignment.config.stages.fields import Fraction, Positive, RowsRef, Strict
from alignment.config.stages.rewards import Rewards
from alignment.config.stages.train import TrainBase

OURS = {
    "use_vllm": "nothing yet: answers are drawn by the engine that sample stages use",
    "num_generations": "num_generations", "num_generations_eval": "nothing: held-out prompts are answered greedily",
    "max_completion_length": "max_new_tokens", "temperature": "temperature", "reward_weights": "weight of a part",
    "eval_on_start": "eval_rows: the start is always measured",
    "ds3_gather_for_generation": "nothing: each worker has all weights while it answers, at its own pace",
    **dict.fromkeys(("generation_batch_size", "steps_per_generation"), "batch_size: each step has answers of its own"),
    **dict.fromkeys(("top_p", "top_k", "min_p", "repetition_penalty", "generation_kwargs", "cache_implementation",
                     "use_transformers_continuous_batching", "transformers_continuous_batching_config",
                     "use_transformers_paged"),
                    "nothing: answers are drawn from the whole distribution, since that is what is learned"),
    "chat_template_kwargs": "template of the import stage",
    **dict.fromkeys(("sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps"),
                    "nothing: the reference is the start model, and recorded as that"),
    **dict.fromkeys(("log_completions", "log_multimodal", "num_completions_to_print", "log_unique_prompts",
                     "log_completions_hub_repo"), "nothing: a sample stage keeps answers"),
    "max_tool_calling_iterations": "nothing: answers call no tools",
    "neftune_noise_alpha": "nothing: the policy that learns would not be the one that answered",
    "label_smoothing_factor": "nothing: answers are no labels",
    "use_adaptive_entropy": "nothing: a fixed `trl: {entropy_coef: ...}` adds entropy to what is learned",
}
"""TRL's keys of online methods whose value our own config already holds, or that are not to be had; and vllm_*."""
Least = Annotated[float, Field(ge=0)]
Most = Annotated[float, Field(gt=0)]


class Gates(Strict):
    """Limits that stop a training which collapses, each over three log lines in a row. Whatever they say, a stage stops
    whose policy is not its reference before the first step, or one of whose values is no number."""

    kl: Most | None = None
    """Most KL to the reference, in nats per token. Default: 10, which no policy reaches that still speaks; 0.1 to 1 is
    usual."""
    mismatch: Most | None = None
    """Most difference between the log-probabilities of drawn tokens when they were drawn and when they are learned, in
    nats per token. Default: 0.2; float32 has under 0.001. More means that something else is learned than was said."""
    entropy: Least | None = None
    """Least entropy, in nats per token: at 0 every answer is the same. Default: none."""
    reward: float | None = None
    """Least mean reward. Default: none."""
    length: Least | None = None
    """Least mean length of answers, in tokens, the end token included. Default: none."""


class Online(TrainBase):
    """What every online method has: prompts, a reward, gates."""

    makes = "policy"
    # A stage that a gate stopped goes on from its checkpoint under other gates.
    not_learned = TrainBase.not_learned | {"gates"}
    reads = "rows with a prompt that ends with a user's or a tool's turn"
    bounds: ClassVar[Mapping[str, str]] = {"beta": "0 or more", "num_iterations": "more than 0"}

    reward: Rewards
    """What an answer earns: the weighted sum of named parts (reward models, functions, endpoints)."""
    batch_size: Positive = 64
    """Answers per optimizer step over all workers: batch_size / num_generations prompts, each answered
    num_generations times."""
    num_generations: Annotated[int, Field(ge=2)] = 8
    """Answers to each prompt, which are compared with each other. 4 to 16 are usual; answers that all earn the same
    teach nothing."""
    max_new_tokens: Positive = 128
    """Longest answer, in tokens. A prompt has max_length less these."""
    temperature: Annotated[float, Field(gt=0, le=10)] = 1.0
    """Answers are drawn at this temperature from the whole distribution, and learned under the same. Evaluations on
    eval_rows are greedy."""
    gates: Gates = Gates()
    """Limits that stop a collapse with a clear word."""
    eval_rows: RowsRef | None = None
    """STAGE/SPLIT of held-out prompts: at every checkpoint each is answered once, greedily, and the mean reward is
    logged with its 95% interval; needed for final: best. Never the split that evaluate asks."""

    def model_refs(self) -> Iterator[ModelRef]:
        yield from super().model_refs()
        yield from self.reward.model_refs()

    def findings(self) -> Iterator[Finding]:
        yield from super().findings()
        yield from self.reward.findings()
        if self.batch_size % self.num_generations:
            yield Finding(("batch_size",), "is no multiple of num_generations: a prompt gets all its answers in one "
                          "step", self.batch_size, f"a multiple of {self.num_generations}")
        if self.max_new_tokens >= self.longest:
            yield Finding(("max_new_tokens",), "leaves no room for a prompt within max_length", self.max_new_tokens,
                          f"less than {self.longest}")
        if self.adapter is not None and self.adapter.dropout > 0:
            yield Finding(("strategy", "dropout"), "is not for online methods: the policy that learns would not be the "
                          "one that answered", self.adapter.dropout, "0")
        yield from (Finding(("trl", key), "is set elsewhere, not under trl", key, OURS.get(key, OURS["use_vllm"]))
                    for key in self.trl if key in OURS or key.startswith("vllm_"))
        if self.trl.get("lr_scheduler_type") in ("reduce_lr_on_plateau", "greedy"):
            yield Finding(("trl", "lr_scheduler_type"), "follows a loss on eval_rows, which online methods have not",
                          self.trl["lr_scheduler_type"], "linear, cosine, constant, ...")
        if self.gates.kl is not None and not self.has_reference:
            yield Finding(("gates", "kl"), "is not measured without a reference", self.gates.kl,
                          "trl: {beta: 0.04} or another weight of the KL above 0")

    def learned(self, scaled: Callable[[int | None], int | None]) -> dict[str, Any]:
        return super().learned(scaled) | {"reward": self.reward.judged()}

    @property
    def drawn(self) -> int:
        return self.max_new_tokens

    @property
    def functions(self) -> tuple[str, ...]:
        return tuple(part.function for part in self.reward.parts.values() if part.function is not None)

    @property
    def reference_mode(self) -> Literal["adapter", "precomputed"] | None:
        return "adapter" if self.has_reference and self.adapter is not None else None

    @property
    def scorers(self) -> int:
        return sum(part.model is not None for part in self.reward.parts.values())

    @property
    def keeps_start(self) -> bool:
        return self.has_reference and self.adapter is None

    @property
    def has_reference(self) -> bool:
        """Whether the KL to a reference is measured."""
        return bool(self.beta)

    @property
    def passes(self) -> int:
        """Times that a step's answers are learned from."""
        return 1

    @property
    def rows_per_step(self) -> int:
        return max(1, self.batch_size // self.num_generations)

    @property
    def beta(self) -> float:
        """Weight of the KL to the reference; without one, there is no reference."""
        given = self.trl.get("beta", self.default_beta)
        return float(given) if isinstance(given, int | float) else self.default_beta  # the type is told of elsewhere

    default_beta: ClassVar[float] = 0.0
    """TRL's own of the method."""


class _Groups(Online):
    """Methods of TRL that compare a prompt's answers with each other."""

    def findings(self) -> Iterator[Finding]:
        yield from super().findings()
        repeats = self.trl.get("num_iterations", 1)
        if isinstance(repeats, int) and repeats > 1 and self.checkpoints.every % repeats:
            yield Finding(("checkpoints", "every"), "falls between two steps on the same answers, which a resumed run "
                          "would draw anew", self.checkpoints.every,
                          f"a multiple of trl.num_iterations, which is {repeats}")


class Grpo(_Groups):
    """Group relative policy optimisation (Shao et al. 2024, arXiv:2402.03300): an answer's advantage is its reward less
    the mean of its prompt's other answers, in units of their spread."""

    tag: ClassVar[str] = "grpo"
    trl_config = "trl/trainer/grpo_config.py:GRPOConfig"
    rates = (1e-6, 1e-5)

    method: Literal["grpo"]
    """`grpo`: to answer as a reward asks for, no value model needed. A KL to the start model: `trl: {beta: 0.04}`."""


class Rloo(_Groups):
    """REINFORCE with a leave-one-out baseline (Ahmadian et al. 2024, arXiv:2402.14740): an answer's advantage is its
    reward, less beta times its KL, less the mean of its prompt's other answers."""

    tag: ClassVar[str] = "rloo"
    trl_config = "trl/trainer/rloo_config.py:RLOOConfig"
    rates = (1e-6, 1e-5)
    default_beta = 0.05

    method: Literal["rloo"]
    """`rloo`: to answer as a reward asks for, with the KL to the start model in the reward: `trl: {beta: 0.05}`."""


class Ppo(Online):
    """Proximal policy optimisation (Schulman et al. 2017, arXiv:1707.06347) as in Ouyang et al. 2022
    (arXiv:2203.02155): a value head tells what was to be expected, and a step may move the policy only so far."""

    tag: ClassVar[str] = "ppo"
    trl_config = "trl/trainer/base_config.py:_BaseConfig"  # what all of TRL's trainers take; PPO itself is ours
    rates = (3e-6, 3e-5)
    whole_logits = True

    method: Literal["ppo"]
    """`ppo`: to answer as a reward asks for, token by token. Defaults are TRL 1.12's, the last that had it."""
    batch_size: Positive = 64
    """Answers of one step over all workers, one to each prompt; the step makes ppo_epochs times minibatches updates
    from them. Log, schedule and checkpoints count such steps. Ouyang et al.: 512."""
    num_generations: Annotated[int, Field(ge=1, le=1)] = 1
    """One answer to each prompt: it is compared with the value head's estimate, not with other answers."""
    ppo_epochs: Positive = 4
    """Passes over a step's answers before new ones are drawn. Ouyang et al.: 1."""
    minibatches: Positive = 1
    """Updates of one pass. Ouyang et al.: 8, of 64 answers each."""
    kl_coef: Least = 0.05
    """What each token pays for its KL to the start model, which is the reference. Ouyang et al.: 0.02."""
    kl_estimator: Literal["k1", "k3"] = "k1"
    """How that KL is estimated: k1 is log p - log q of the drawn token, k3 (q/p) - 1 - log (q/p), which varies less and
    is never negative (Schulman 2020, joschu.net/blog/kl-approx.html)."""
    cliprange: Most = 0.2
    """How far the probability of a token may move from what it was when drawn, as a share, before it earns no more."""
    cliprange_value: Most = 0.2
    """How far a value may move from what it was before it is judged as if it had moved so far."""
    vf_coef: Most = 0.1
    """Weight of the value loss beside the policy's. The head's gradients end at the head."""
    value_learning_rate: Most = 2e-3
    """Highest learning rate of the value head, under the policy's schedule. Ours: one layer on normalised states, of
    which one rate fits models of all sizes."""
    gamma: Fraction = 1.0
    """Discount of what is earned later; 1 as in Ouyang et al."""
    lam: Annotated[float, Field(ge=0, le=1)] = 0.95
    """Lambda of generalised advantage estimation: 1 trusts what was earned, 0 the value head."""
    whiten_rewards: bool = False
    """Scale what tokens earn to variance 1 over a step. Advantages always are, to mean 0 too."""
    missing_eos_penalty: Most | None = None
    """What an answer loses that max_new_tokens cut. Default: nothing."""

    def findings(self) -> Iterator[Finding]:
        yield from super().findings()
        if self.batch_size % self.minibatches:
            yield Finding(("batch_size",), "is no multiple of minibatches", self.batch_size,
                          f"a multiple of {self.minibatches}")

    def mended(self) -> dict[str, int]:
        # Its value head was stepped by the policy's optimizer.
        optimizer = str(self.trl.get("optim", self.by_strategy.get("optim", "adamw_torch")))
        return super().mended() | ({} if optimizer.startswith("adamw_torch") else {"value head's optimizer": 2})

    @property
    def beta(self) -> float:
        return self.kl_coef

    @property
    def has_reference(self) -> bool:
        return True  # whatever its KL costs

    @property
    def passes(self) -> int:
        return self.ppo_epochs
