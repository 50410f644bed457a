"""What stages emit: the metrics of their manifests, which aims may name, and the events of their events.jsonl.

Declared by stage class, as every room's table is, and here rather than in the rooms that emit, because some of those
load torch when they are imported. A test makes a small run and compares both ways: nothing is emitted that is not
declared, nothing is declared that is not emitted. Capitals in a name stand for a name of the user's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from alignment.config import (
    Choose,
    Contrastive,
    DocumentQa,
    Evaluate,
    EvaluateHarness,
    EvaluatePairs,
    Export,
    FromArtifact,
    Generate,
    ImportData,
    ImportDocuments,
    ImportEndpoint,
    ImportModel,
    ImportReader,
    ImportRows,
    Infer,
    MultiHop,
    Sample,
    Select,
    SelectCoverage,
    SelectNecessity,
    SelectQuality,
    SelfInstruct,
    Stage,
    TrainBase,
    row_of,
)
from alignment.config.stages.evaluate import USUAL
from alignment.config.stages.online import Online, Ppo
from alignment.config.stages.train import Distill, Dpo, Kto, Orpo, Reward, Sft
from alignment.evaluation.measures import NAMES, measure_of
from alignment.evaluation.measures.base import POINTS, POSITIVE, SHARE

Better = Literal["higher", "lower", "neither"]


@dataclass(frozen=True)
class Metric:
    """One number of a manifest.

    Attributes:
        name: as in the manifest; an aim writes STAGE.NAME.
        span: the values that it can have.
        better: which way is better; `neither` where that depends, or where it only describes.
        when: what it takes for the metric to be there, where it is not always.
    """

    name: str
    text: str
    span: str
    better: Better = "neither"
    when: str | None = None


@dataclass(frozen=True)
class Event:
    """One kind of line of an events.jsonl. Every line also has `time` (seconds since 1970) and `event` (the name).

    Attributes:
        fields: name -> what it holds.
    """

    name: str
    text: str
    fields: Mapping[str, str]
    when: str | None = None


@dataclass(frozen=True)
class Curve:
    """Something that a training method logs, of the batch (event `train`) and of eval_rows (event `eval`).

    Attributes:
        final: also in the manifest, as train_NAME (mean over the last fifth of the lines) and eval_NAME.
        only: the one event that has it, where not both have.
        when: what it takes for it to be there, where it is not always.
    """

    name: str
    text: str
    span: str
    better: Better = "neither"
    final: bool = False
    only: Literal["train", "eval"] | None = None
    when: str | None = None


ANY, COUNT = "any number", "whole number, 0 or more"
DIFFERENCE = "-1 to 1"
_ENTROPY = Curve("entropy", "Mean entropy of the predicted next token, in nats; falling fast, answers get uniform.",
                 POSITIVE)
_TOKENS = "Share of the learned tokens that the model would have chosen itself."

_HAS_BETA = "trl.beta is above 0"
_HARNESS_ERROR = "the harness gives a standard error for the metric"
_LATER = "there are several models"


def _drawn(name: str, text: str, span: str, *, final: bool = False, when: str | None = None) -> Curve:
    return Curve(name, text, span, final=final, only="train", when=when)


def _gain(end: str) -> str:
    return f"{end} end of its 95% interval (normal, over prompts)."


_ONLINE = (
    _drawn("loss", "What is minimised; its value says little: it starts at 0 whatever is learned.", ANY, final=True),
    Curve("reward", "Mean reward of answers: the weighted sum of the parts.", ANY, "higher", True),
    *(Curve(f"reward_{end.lower()}", f"Of reward: {_gain(end)}", ANY, "higher", True, "eval")
      for end in ("Low", "High")),
    Curve("reward_gain", "Mean of what each prompt's reward gained over the start's answer to it.", ANY, "higher", True,
          "eval"),
    *(Curve(f"reward_gain_{end.lower()}", f"Of reward_gain: {_gain(end)}", ANY, "higher", True, "eval")
      for end in ("Low", "High")),
    Curve("rewards/PART/mean", "Mean of one part of the reward, before its weight.", ANY, "higher"),
    _drawn("rewards/PART/std", "Its standard deviation.", POSITIVE),
    _drawn("reward_std", "Standard deviation of the reward.", POSITIVE),
    _drawn("frac_reward_zero_std", "Share of prompts whose answers all earn the same, and teach nothing.", SHARE),
    _drawn("kl", "KL to the reference, the start model, in nats per token (grpo: the estimate that is never negative, "
                 "arXiv:2402.03300 eq. 4; rloo: the mean log-ratio).", ANY, final=True, when=_HAS_BETA),
    _drawn("entropy", "Mean entropy of the next token of an answer, in nats; falling fast, answers get uniform.",
           POSITIVE, final=True),
    _drawn("sampling/logp_difference", "Mean difference between a token's log-probability when it was drawn and when "
                                       "it is learned, in nats.", POSITIVE),
    Curve("completions/mean_length", "Mean length of an answer, in tokens, the end token included.", "1 or more",
          final=True),
    Curve("completions/clipped_ratio", "Share of answers that max_new_tokens cut.", SHARE, "lower"),
    *(_drawn(f"completions/{which}", text, POSITIVE) for which, text in (
        ("min_length", "Shortest answer."), ("max_length", "Longest answer."),
        ("mean_terminated_length", "Mean length of the answers that ended by themselves; 0 without any."),
        ("min_terminated_length", "The shortest of them."), ("max_terminated_length", "The longest of them."))),
    *(_drawn(f"clip_ratio/{which}", text, SHARE) for which, text in (
        ("low_mean", "Share that the loss clips since the policy moved away from a bad answer far enough."),
        ("low_min", "The least such share."),
        ("high_mean", "Share that the loss clips since the policy moved towards a good answer far enough."),
        ("high_max", "The greatest such share."), ("region_mean", "Both together."))),
)
_AS_ONLINE = ("reward", "reward_low", "reward_high", "reward_gain", "reward_gain_low", "reward_gain_high",
              "rewards/PART/mean", "reward_std", "entropy", "sampling/logp_difference", "completions/mean_length",
              "completions/clipped_ratio")
_PPO = (
    _drawn("loss", "policy_loss plus vf_coef times value_loss, mean over a step's updates; it says little alone.", ANY,
           final=True),
    *(curve for curve in _ONLINE if curve.name in _AS_ONLINE),
    _drawn("kl", "KL to the reference, the start model, in nats per token, as kl_estimator has it.", ANY, final=True),
    _drawn("policy_loss", "The clipped surrogate, per token.", ANY),
    _drawn("value_loss", "Half the squared error of the value head, per token; falling, advantages get less noisy.",
           POSITIVE, final=True),
    _drawn("clip_fraction", "Share of tokens whose probability moved past cliprange, so that they taught no more.",
           SHARE),
    _drawn("value_clip_fraction", "Share of tokens whose value moved past cliprange_value.", SHARE),
    _drawn("approx_kl", "How far updates moved the policy from the one that answered, in nats per token.", POSITIVE),
)
CURVES: dict[type[Stage], tuple[Curve, ...]] = {
    Sft: (
        Curve("loss", "Cross entropy per learned token, in nats; exp(loss) is the perplexity.", POSITIVE, "lower",
              True),
        Curve("mean_token_accuracy", _TOKENS, SHARE, "higher", True),
        _ENTROPY,
    ),
    Reward: (
        Curve("loss", "-log sigmoid(margin) per pair; a model that knows nothing has 0.693.", POSITIVE, "lower", True),
        Curve("accuracy", "Share of pairs whose chosen answer scores higher; chance is 0.5.", SHARE, "higher", True),
        Curve("margin", "Mean score of chosen minus rejected answers.", ANY, "higher", True),
        Curve("mean_reward", "Mean score of all answers.", ANY),
        Curve("min_reward", "Lowest score.", ANY),
        Curve("max_reward", "Highest score.", ANY),
    ),
    Dpo: (
        Curve("loss", "Per pair, by trl.loss_type: sigmoid is -log sigmoid(rewards/margins), 0.693 where policy and "
                      "reference are one; some others can be negative.", ANY, "lower", True),
        Curve("rewards/accuracies", "Share of pairs whose chosen answer gained more than the rejected one; "
                                    "chance is 0.5.", SHARE, "higher", True),
        Curve("rewards/margins", "rewards/chosen minus rewards/rejected.", ANY, "higher", True),
        Curve("rewards/chosen", "beta times the log-probability that the chosen answer gained over the reference. "
                                "Often negative while margins grow: both answers get unlikely, the rejected faster.",
              ANY),
        Curve("rewards/rejected", "The same for the rejected answer.", ANY),
        Curve("logps/chosen", "Summed log-probability of the chosen answer, in nats.", "0 or less"),
        Curve("logps/rejected", "Summed log-probability of the rejected answer, in nats.", "0 or less"),
        Curve("logits/chosen", "Mean logit over the chosen answer; for spotting drift.", ANY),
        Curve("logits/rejected", "Mean logit over the rejected answer.", ANY),
        Curve("mean_token_accuracy", _TOKENS, SHARE, "higher"),
        _ENTROPY,
    ),
    Kto: (
        Curve("loss", "1 - sigmoid of how far a wanted answer's reward lies above the KL (an unwanted one's below it), "
                      "per answer; the start model has 0.5.", SHARE, "lower", True),
        Curve("kl", "KL to the reference, in nats, estimated from answers under other rows' prompts.", POSITIVE,
              final=True),
        Curve("rewards/margins", "rewards/chosen minus rewards/rejected.", ANY, "higher", True),
        Curve("rewards/chosen", "beta times the log-probability that wanted answers gained over the reference.", ANY,
              "higher", True),
        Curve("rewards/rejected", "The same for unwanted answers.", ANY, "lower", True),
        Curve("logps/chosen", "Summed log-probability of a wanted answer, in nats.", "0 or less"),
        Curve("logps/rejected", "Summed log-probability of an unwanted answer, in nats.", "0 or less"),
        Curve("logits/chosen", "Mean logit over wanted answers; for spotting drift.", ANY),
        Curve("logits/rejected", "Mean logit over unwanted answers.", ANY),
        _ENTROPY,
    ),
    Orpo: (
        Curve("loss", "nll_loss minus beta times log_odds_ratio, per pair.", POSITIVE, "lower", True),
        Curve("nll_loss", "Cross entropy per token of prompt and chosen answer, in nats; TRL learns the prompt too.",
              POSITIVE, "lower", True),
        Curve("log_odds_ratio", "Log-sigmoid of log_odds_chosen, before beta; -0.693 where both are as likely.",
              "0 or less", "higher", True),
        Curve("log_odds_chosen", "Log of the chosen answer's odds over the rejected one's, both by the geometric mean "
                                 "of their tokens.", ANY, "higher"),
        Curve("rewards/accuracies", "Share of pairs whose chosen answer is likelier per token; chance is 0.5.", SHARE,
              "higher", True),
        Curve("rewards/margins", "rewards/chosen minus rewards/rejected.", ANY, "higher", True),
        Curve("rewards/chosen", "beta times the chosen answer's mean log-probability per token.", "0 or less"),
        Curve("rewards/rejected", "The same for the rejected answer.", "0 or less"),
        Curve("logps/chosen", "Mean log-probability per token of the chosen answer, in nats.", "0 or less"),
        Curve("logps/rejected", "The same for the rejected answer.", "0 or less"),
        Curve("logits/chosen", "Mean logit over prompt, chosen answer and padding; for spotting drift.", ANY),
        Curve("logits/rejected", "The same with the rejected answer.", ANY),
    ),
    Distill: (
        Curve("loss", "Divergence from the teacher per token of the answers, in nats, by beta and temperature; 0 where "
                      "both models say the same.", POSITIVE, "lower", True),
        Curve("entropy", "Mean entropy of the student's next token, in nats, at that temperature.", POSITIVE,
              final=True),
    ),
    Online: _ONLINE,
    Ppo: _PPO,
}
"""What each method logs, the loss first. What TRL adds under options of `trl` is written as it comes."""

_WORDS = "words (in scripts without blanks, characters)"
_SCORED_BY_MODEL, _SCORED_BY_FUNCTION = "score.model is given", "score.function is given"
_SCORED, _SCORED_BY_BOTH = "score is given", "score has several parts"
_HAS_JUDGE, _COMPARED = "score has a judge", "score has a judge of mode compare"
_MARKED = "score has a judge of mode score"
_HELD_OUT, _HAS_EVAL, _HAS_PREVIOUS = "final: best", "eval_rows is given", "previous is given"
_HAS_PAIRS = "pairs is not none"
_RETRIEVES = "retrieve is given"
_LENGTHS = "pairs have answers of different lengths"

_REQUESTS = Metric("requests", "Requests to the teacher, of all steps.", COUNT)
_FINISHED = Metric("finished_share", "Share of answers that ended by themselves. Low: raise max_new_tokens, or the "
                                     "teacher does not know when to stop.", SHARE, "higher")

_READ = Metric("judge_read_share", "Share of the judge's answers that could be read; of the others the answer gets no "
                                   "score.", SHARE, "higher", _HAS_JUDGE)
_AGREED = Metric("judge_agreement", "Share of the compared answers on which the judge says the same in both orders; "
                                    "the others are ties.", SHARE, "higher", _COMPARED)

GAINED = ("exact_match", "f1")
"""Metrics whose difference an evaluation gives where none are named."""


def _when(name: str, unasked: Sequence[str]) -> str:
    """`when` of a metric that an evaluation can name."""
    left_out = "" if name not in unasked else ", or metrics is left out" + (
        " and perplexity is true" if name == "perplexity" else "")
    needs = measure_of(name).needs
    return f"metrics has {name}{left_out}" + (f"; {needs}" if needs else "")


def _measures(name: str) -> Callable[[Any], bool]:
    return lambda stage: name in stage.measured


def _compares(name: str) -> Callable[[Any], bool]:
    return lambda stage: name in (stage.metrics or GAINED)


DECIDED: Mapping[str, Callable[[Any], bool]] = {
    _SCORED: lambda stage: stage.score is not None,
    _SCORED_BY_MODEL: lambda stage: stage.score is not None and stage.score.model is not None,
    _SCORED_BY_FUNCTION: lambda stage: stage.score is not None and stage.score.function is not None,
    _SCORED_BY_BOTH: lambda stage: sum(part is not None for part in (
        stage.score.model, stage.score.function, stage.score.judge)) > 1,
    _HAS_JUDGE: lambda stage: stage.score is not None and stage.score.judge is not None,
    _COMPARED: lambda stage: _judged_by(stage, "compare"),
    _MARKED: lambda stage: _judged_by(stage, "score"),
    _HELD_OUT: lambda stage: stage.checkpoints.final == "best",
    _HAS_EVAL: lambda stage: stage.eval_rows is not None,
    _HAS_PREVIOUS: lambda stage: stage.previous is not None,
    _HAS_PAIRS: lambda stage: stage.pairs != "none",
    _RETRIEVES: lambda stage: stage.retrieve is not None,
    _HAS_BETA: lambda stage: stage.has_reference,
    _LATER: lambda stage: len(stage.models) > 1,
    **{_when(name, USUAL): _measures(name) for name in NAMES},
    **{_when(name, GAINED): _compares(name) for name in NAMES},
}
"""`when` of a metric -> whether the stage's config allows it; those that rows decide are not here."""


def _judged_by(stage: Any, mode: str) -> bool:
    return stage.score is not None and stage.score.judge is not None and bool(stage.score.judge.mode == mode)


def _compared(
    name: str, text: str, span: str, when: str, draw: str, better: Better = "higher"
) -> tuple[Metric, Metric]:
    """A comparison of two models, and the end of its interval on which an aim can ask for more than chance: the lower
    one; the upper where less is better."""
    name = f"CHALLENGER_vs_BASELINE.{name}"
    end, which, side = ("high", "Upper", "below") if better == "lower" else ("low", "Lower", "above")
    return (Metric(name, text, span, better, when),
            Metric(f"{name}_{end}", f"{which} end of its 95 % interval, rows drawn in pairs: {side} {draw} it is no "
                                    "chance.", span, better, when))


_MEASURED = tuple(Metric(f"MODEL.{name}", f"{one.text} Source: {one.source}.", one.span, one.better, _when(name, USUAL))
                  for name in NAMES for one in [measure_of(name)])
_SPANS = {SHARE: DIFFERENCE, POINTS: "-100 to 100"}
_GAINED = tuple(metric for name in NAMES for one in [measure_of(name)] for metric in _compared(
    f"{name}_gain", f"CHALLENGER's {name} less BASELINE's, over the same rows.", _SPANS.get(one.span, ANY),
    _when(name, GAINED), "0", one.better))
_SELECTED = (
    Metric("rows_train", "Rows that were chosen.", COUNT),
    Metric("share", "rows_train by all rows read.", SHARE),
)
_SCORES = (
    Metric("mean_score", "Mean score of all rows that have one.", ANY),
    Metric("score_std", "Standard deviation of the scores; near 0 there is nothing to choose from.", POSITIVE),
    Metric("cut", "The score that rows had to be above (necessity: below): the threshold, or the quantile's.", ANY),
)

_METRICS: dict[type[Stage], tuple[Metric, ...]] = {
    ImportEndpoint: (),
    FromArtifact: (),
    ImportModel: (Metric("parameters", "Weights of the model.", COUNT),),
    ImportReader: (Metric("parameters", "Weights of the model.", COUNT),),
    ImportData: (
        Metric("rows_SPLIT", "Rows of each split.", COUNT),
        Metric("mean_prompt_words", f"Mean length of the prompts in {_WORDS}.", POSITIVE),
        Metric("max_prompt_words", "Length of the longest prompt.", COUNT),
        Metric("mean_answer_words", f"Mean length of the answers in {_WORDS}.", POSITIVE, when="rows have answers"),
        Metric("max_answer_words", "Length of the longest answer.", COUNT, when="rows have answers"),
    ),
    ImportDocuments: (
        Metric("documents", "Files that were read.", COUNT),
        Metric("rows_SPLIT", "Passages of each split.", COUNT),
        Metric("mean_passage_words", "Mean length of a passage, its headings included; each Chinese character is a "
                                     "word.", POSITIVE),
        Metric("max_passage_words", "Length of the longest.", COUNT),
    ),
    TrainBase: (
        Metric("steps", "Optimizer steps made.", COUNT),
        Metric("supervised_tokens", "Tokens that a loss is taken over, in one epoch; of answers still to be drawn, the "
                                    "most that there can be.", COUNT),
        Metric("best_step", "Step of the published weights.", COUNT, when=_HELD_OUT),
    ),
    SelfInstruct: (
        _REQUESTS,
        Metric("rounds", "Rounds of requests for new tasks.", COUNT),
        Metric("proposed", "Instructions that the teacher proposed, whatever became of them.", COUNT),
        Metric("tasks", "Tasks with at least one row.", COUNT, "higher"),
        Metric("rows_train", "Rows written: a task's examples, one each.", COUNT, "higher"),
        Metric("kept_share", "tasks by proposed.", SHARE, "higher"),
        Metric("classification_share", "Share of the tasks that the teacher called classifications.", SHARE),
        Metric("mean_similar", "Mean over the tasks of their mean ROUGE-L F against the pool that they came to.", SHARE,
               "lower"),
        _FINISHED,
    ),
    DocumentQa: (
        _REQUESTS,
        Metric("rounds", "Rounds of questions and their answers.", COUNT),
        Metric("proposed", "Questions that the teacher proposed, whatever became of them.", COUNT),
        Metric("passages", "Passages with at least one row.", COUNT, "higher"),
        Metric("rows_train", "Rows written: a question with its answer each.", COUNT, "higher"),
        Metric("kept_share", "rows_train by proposed.", SHARE, "higher"),
        Metric("judgmental_share", "Share of the rows whose question yes or no answers.", SHARE),
        Metric("yes_share", "Share of yes among these. Near 0 or 1, a model learns to say it always.", SHARE),
        Metric("mean_similar", "Mean over the rows of their mean ROUGE-L F against the pool that they came to.", SHARE,
               "lower"),
        _FINISHED,
    ),
    Select: _SELECTED,
    SelectQuality: (*_SELECTED, *_SCORES),
    SelectNecessity: (*_SELECTED, *_SCORES),
    SelectCoverage: (
        *_SELECTED,
        Metric("radius", "The largest distance of a row to the nearest chosen one, after the last was chosen.",
               POSITIVE, "lower"),
        Metric("texts_cut", "Texts that were longer than max_tokens and were cut before they were embedded.", COUNT),
    ),
    Contrastive: (
        _REQUESTS,
        Metric("rows", "Rows whose answers were scored.", COUNT),
        Metric("good_share", "Share of the rows whose own answer has min_score.", SHARE, "higher"),
        Metric("rows_train", "Pairs written.", COUNT, "higher"),
        Metric("pair_share", "Pairs by good rows.", SHARE, "higher"),
        Metric("mean_gap", "Mean over the pairs of the good answer's score less the opposite's.", POSITIVE, "higher"),
        Metric("mean_tries", "Mean over the pairs of the tries that they took.", "1 or more", "lower"),
        _READ,
        _FINISHED,
    ),
    MultiHop: (
        _REQUESTS,
        Metric("rounds", "Rounds of requests for comparisons.", COUNT),
        Metric("proposed", "Comparisons that the teacher was asked for and answered.", COUNT),
        Metric("comparisons", "Comparisons written, with all of their answers.", COUNT, "higher"),
        Metric("kept_share", "comparisons by proposed.", SHARE, "higher"),
        Metric("negatives", "Comparisons written again with a paragraph that does not answer.", COUNT),
        Metric("answered", "Rows of data sets written with the teacher's answers.", COUNT, "higher"),
        Metric("agreement", "Mean over the comparisons of the lower token F1 between an answer written greedily and "
                            "the one that was drawn.", SHARE, "higher", "where a comparison is written"),
        Metric("rows_train", "Rows written, of all three kinds.", COUNT, "higher"),
        _FINISHED,
    ),
    Sample: (
        Metric("prompts", "Prompts that were answered.", COUNT),
        Metric("answers", "Answers of the newest model: n for each prompt.", COUNT),
        Metric("finished_share", "Share of answers that ended by themselves. Low: raise max_new_tokens, or the model "
                                 "does not know when to stop.", SHARE, "higher"),
        Metric("mean_score", "Mean score of the newest model's answers: what it says when it says one thing.", ANY,
               "higher"),
        Metric("score_std", "Standard deviation of the scores; near 0 there is nothing to choose from.", POSITIVE),
        Metric("best_score", "Mean over prompts of the highest score.", ANY, "higher"),
        Metric("worst_score", "Mean over prompts of the lowest score.", ANY, "higher"),
        Metric("best_gain", "Mean over prompts of the highest score less the mean of its answers: what choosing "
                            "gives.", POSITIVE, "higher"),
        Metric("mean_function", "Mean of the function's values, unweighted.", ANY, "higher", _SCORED_BY_BOTH),
        Metric("mean_model", "Mean of the reward model's values, unweighted.", ANY, "higher", _SCORED_BY_BOTH),
        Metric("mean_judge", "Mean of the judge's scores, unweighted.", ANY, "higher", _SCORED_BY_BOTH),
        _READ,
        _AGREED,
        Metric("previous_mean_score", "Mean score of the previous model's answers; mean_score should be above it.", ANY,
               when=_HAS_PREVIOUS),
        Metric("rows_best", "Best-of-N rows written.", COUNT, "higher"),
        Metric("rows_pairs", "Preference pairs written.", COUNT, "higher", _HAS_PAIRS),
    ),
    Infer: (
        Metric("prompts", "Prompts that were answered.", COUNT),
        Metric("answers", "Answers: n for each prompt.", COUNT),
        Metric("finished_share", "Share of answers that ended by themselves. Low: raise max_new_tokens.", SHARE,
               "higher"),
        Metric("mean_tokens", "Mean length of an answer in tokens, without the one that ends it.", POSITIVE),
    ),
    Evaluate: (
        *_MEASURED,
        Metric("MODEL.reward", "Mean score that the reward model gives. Only differences mean something. MODEL may be "
                               "`reference`: the reference answers themselves.", ANY, "higher", _SCORED_BY_MODEL),
        Metric("MODEL.style", "Mean value of the scoring function. MODEL may be `reference`.", "the function's",
               "higher", _SCORED_BY_FUNCTION),
        Metric("MODEL.answered", "Share of questions that ended with an answer; facts.retrieval.ended of the manifest "
                                 "counts the others by reason, all of them wrong in the metrics of answers.", SHARE,
               "higher", _RETRIEVES),
        Metric("MODEL.gold_recall", "Mean share of a row's gold passages that were found at any of its calls; rows "
                                    "without any take no part.", SHARE, "higher", _RETRIEVES),
        Metric("MODEL.fact_recall", "Mean share of a row's supporting facts (HotpotQA: sentences) that stand in a "
                                    "passage that was found.", SHARE, "higher", _RETRIEVES),
        Metric("MODEL.turns", "Mean number of times that the model spoke to a question, its answer included.", POSITIVE,
               when=_RETRIEVES),
        Metric("MODEL.calls", "Mean number of calls to a question that were answered with passages.", POSITIVE,
               when=_RETRIEVES),
        *_compared("win_rate", "Share of rows on which CHALLENGER scores higher by `score`, ties counted half; 0.5 is "
                               "a draw.", SHARE, _SCORED, "0.5"),
        *_compared("reward_win_rate", "The same by the reward model alone.", SHARE, _SCORED_BY_MODEL, "0.5"),
        *_compared("style_win_rate", "The same by the scoring function alone.", SHARE, _SCORED_BY_FUNCTION, "0.5"),
        Metric("MODEL.judge", "Mean of the marks that the judge gives.", ANY, "higher", _MARKED),
        *_compared("judge_win_rate", "The same by the judge alone; one of mode compare sees both answers in both "
                                     "orders, and where these disagree it is a tie.", SHARE, _HAS_JUDGE, "0.5"),
        *_compared("reward_lc_win_rate", "reward_win_rate as it would be if both answers were as long as each other "
                                         "(docs/judges.md).", SHARE, _SCORED_BY_MODEL, "0.5"),
        *_compared("judge_lc_win_rate", "judge_win_rate as it would be if both answers were as long as each other.",
                   SHARE, _HAS_JUDGE, "0.5"),
        _READ,
        _AGREED,
        *_GAINED,
        *_compared("style_gain", "The same of style.", ANY, _SCORED_BY_FUNCTION, "0"),
    ),
    EvaluatePairs: (
        Metric("JUDGE.accuracy", "Share of pairs whose chosen answer the judge scores higher, equal scores counted "
                                 "half; chance is 0.5.", SHARE, "higher"),
        Metric("JUDGE.accuracy_low", "Lower end of its 95 % interval.", SHARE, "higher"),
        Metric("JUDGE.ties", "Share of pairs whose two answers the judge scores alike.", SHARE),
        Metric("JUDGE.read", "Share of all pairs that the judge gave a verdict on. The others count nowhere.", SHARE,
               "higher"),
        Metric("JUDGE.accuracy_shorter", f"accuracy on pairs whose chosen answer is the shorter one, in {_WORDS}.",
               SHARE, "higher", _LENGTHS),
        Metric("JUDGE.accuracy_longer", "accuracy on pairs whose chosen answer is the longer one. Far above "
                                        "accuracy_shorter: the judge goes by length.", SHARE, "higher", _LENGTHS),
        Metric("JUDGE.prefers_longer", "Share of pairs in which the judge prefers the longer answer.", SHARE,
               when=_LENGTHS),
        Metric("JUDGE.label_agreement", "Share of rows on which the judge says what the row says, ties among it.",
               SHARE, "higher"),
        Metric("JUDGE.label_kappa", "The same beyond chance: Cohen's kappa, every pair counted in both orders.",
               DIFFERENCE, "higher"),
        Metric("JUDGE.annotator_agreement", "Mean over the annotators of the share of rows on which the judge says "
                                            "what the annotator says.", SHARE, "higher",
               "rows have votes (meta.votes)"),
        Metric("JUDGE.section_mean", "Mean accuracy over the sections, as RewardBench's score.", SHARE, "higher",
               "rows have sections (meta.section)"),
        Metric("SCORER.ece", "Expected calibration error of a reward model alone: mean distance between how sure it is "
                             "(sigmoid of the margin) and how often it is right.", SHARE, "lower"),
        Metric("SCORER.loss", "-log sigmoid(margin) per pair, in nats; a model that knows nothing has 0.693.",
               POSITIVE, "lower"),
        Metric("COMPARING.consistent", "Share of pairs on which a judge of mode compare says the same in both orders; "
                                       "the others are ties.", SHARE, "higher"),
        Metric("COMPARING.prefers_first", "Share of pairs on which it chose the answer in the first place, whichever "
                                          "stood there.", SHARE, "lower"),
        Metric("COMPARING.prefers_second", "The same of the second place.", SHARE, "lower"),
        Metric("FIRST_and_SECOND.agreement", "Share of pairs on which two judges say the same, ties among it.", SHARE),
        Metric("FIRST_and_SECOND.kappa", "The same beyond chance: Cohen's kappa, every pair counted in both orders.",
               DIFFERENCE),
    ),
    EvaluateHarness: (
        Metric("MODEL.TASK.METRIC", "A metric of a task, as lm-evaluation-harness makes it: acc, acc_norm, "
                                    "exact_match, word_perplexity, ... Behind a filter of a name METRIC/FILTER: "
                                    "exact_match/strict-match.", ANY),
        *(Metric(f"MODEL.TASK.METRIC_{end}", f"{which} end of its 95 % interval: 1.96 of the harness's standard errors "
                                             "from the value.", ANY, when=_HARNESS_ERROR)
          for end, which in (("low", "Lower"), ("high", "Upper"))),
        Metric("CHALLENGER_vs_BASELINE.TASK.METRIC_gain", "Mean difference over the same documents, of metrics that "
                                                          "are means over documents.", ANY, when=_LATER),
        *(Metric(f"CHALLENGER_vs_BASELINE.TASK.METRIC_gain_{end}", f"{which} end of its 95 % interval: documents in "
                                                                   "pairs, resampled.", ANY, when=_LATER)
          for end, which in (("low", "Lower"), ("high", "Upper"))),
    ),
    Choose: (
        Metric("round", "Number of the round whose model it is; 0: the start, since not even round 1 met its gate.",
               COUNT, "higher"),
        Metric("rounds", "Rounds that were judged: the last of them did not meet its gate, or there are no more.",
               COUNT),
    ),
    Export: (
        Metric("FORM.kl", "Mean KL from the trained model to what was exported, in nats per token. FORM is "
                          "safetensors, adapter, nf4, fp8 or gguf_TYPE.", POSITIVE, "lower"),
        Metric("FORM.top1", "Share of positions where both have the same likeliest token.", SHARE, "higher"),
        Metric("FORM.greedy", "Share of tokens of greedy answers that are the same, up to the first that is not.",
               SHARE, "higher"),
        Metric("bytes", "Size of the files that a repository gets, or would.", COUNT),
    ),
}

_HYGIENE = Event("hygiene", "Rows were looked through.", {
    "kept": "Rows kept.", "of": "Rows looked through.", "personal_data": "Kind -> how many were found.",
    "replaced": "Rows whose personal data was replaced.",
    "language_unsure": "Texts of whose language nobody can be sure.",
}, when="hygiene")
_REFUSED = Event("refused", "All steps are done.", {
    "reasons": "Step -> reason -> how many.", "examples": "Three refused texts, each with id, reason and text.",
})
_REUSED = "How many of them an earlier, killed attempt had made already."
_BATCH = Event("batch", "A batch of rows was made and kept.", {
    "of": "What it is part of: the folder in the stage's work.", "part": "Name of the batch, from what it holds.",
    "rows": "Rows in it.", "seconds": "Time spent.",
})

_JUDGED = Event("judged", "All answers are judged.", {
    "requests": "Answers that the judge was asked for.", "read": "Those that could be read.",
    "tokens": "Tokens of its answers.", "refused": "Why others were not read -> how many.",
    "examples": "Three of them, each with id, reason and text.",
    "compared": "Pairs of answers with two verdicts.", "disagreed": "Those on which the two orders disagree.",
}, when=_HAS_JUDGE)
_CHOSEN = Event("chosen", "The rows were chosen.", {
    "read": "Rows read.", "rows": "Rows chosen.", "reasons": "Reason -> rows that were not, or could not be judged.",
})

_FOUND = Event("found", "The artifact was found, and its files are whole.", {
    "key": "Its key.", "store": "The store that has it.", "stage": "Name of the stage that made it, there.",
})
_SEEN = Event("seen", "The rows that it was made from came along, so that evaluations know them.", {
    "row_sets": "KEY/SPLIT of each.",
})

_EVENTS: dict[type[Stage], tuple[Event, ...]] = {
    ImportEndpoint: (
        Event("named", "The endpoint was written down; nothing was asked.", {
            "model": "Its name at the endpoint.", "base_url": "The endpoint's address.",
        }),
    ),
    FromArtifact: (_FOUND, _SEEN, Event("base", "An adapter's full weights were looked for.", {
        "key": "Their artifact.", "brought": "Whether they had to be brought into this store.",
    }, when="an adapter comes from another store")),
    ImportRows: (_FOUND, _SEEN),
    ImportModel: (
        Event("load", "The model is about to be read.", {"source": "hub, folder, gguf or tiny."}),
        Event("saved", "It lies in the store's format.", {"parameters": "Weights of the model."}),
    ),
    ImportReader: (
        Event("load", "The model is about to be read.", {"source": "hub, folder or tiny."}),
        Event("saved", "It lies in the store's format.", {"parameters": "Weights of the model."}),
    ),
    ImportData: (
        Event("source", "A file was read.", {
            "name": "The source's name; ids of its rows begin with it.", "path": "As in the run file.",
            "format": "As in the run file.", "read": "Rows in the file.", "bad": "Rows that cannot be used.",
            "taken": "Rows left after `take`.", "reasons": "Reason -> bad rows.",
            "unread": "Key that the format does not read -> good rows that have it.",
        }),
        Event("examples", "The first rows of a split, for a look.", {
            "split": "The split.", "rows": "Up to three records, long texts cut.",
        }),
        Event("cross_split_overlap", "Rows of a split share text with rows of an earlier split.", {
            "split": "The later split.", "rows": "How many of its rows.", "of": "Rows that it has.",
            "examples": "Up to 20, each with row, seen (the other row) and reason.",
        }, when="split by field, and the file's splits overlap"),
    ),
    ImportDocuments: (
        Event("document", "A file was read.", {
            "name": "What its rows call it.", "passages": "Passages of it.", "refused": "Reason -> how many.",
        }),
    ),
    Generate: (_BATCH, _HYGIENE, _REFUSED),
    SelfInstruct: (
        _BATCH,
        Event("round", "The answers of a round were read.", {
            "round": "Its number.", "requests": "Requests in it.", "proposed": "Instructions proposed.",
            "kept": "Tasks kept.", "pool": "Seeds and tasks now.",
        }),
        _HYGIENE,
        _REFUSED,
    ),
    Select: (_CHOSEN,),
    SelectQuality: (_BATCH, _CHOSEN),
    SelectCoverage: (_BATCH, _CHOSEN),
    Contrastive: (
        _BATCH,
        Event("try", "The answers of a try were scored.", {
            "number": "Its number.", "requests": "Requests in it.", "kept": "Pairs that it gave.",
            "left": "Rows that wait for another.",
        }),
        _HYGIENE,
        _REFUSED,
    ),
    DocumentQa: (
        _BATCH,
        Event("round", "The answers of a round were read.", {
            "round": "Its number.", "requests": "Requests in it, for questions and for answers.",
            "proposed": "Questions proposed.", "questions": "Those that were asked to be answered.",
            "kept": "Rows kept.",
        }),
        _HYGIENE,
        _REFUSED,
    ),
    MultiHop: (
        _BATCH,
        Event("round", "The comparisons of a round were read.", {
            "round": "Its number.", "requests": "Requests in it.", "kept": "Comparisons that passed.",
            "comparisons": "So many now.",
        }),
        _HYGIENE,
        _REFUSED,
    ),
    Sample: (
        _BATCH,
        _JUDGED,
    ),
    Infer: (_BATCH,),
    Evaluate: (
        _BATCH,
        Event("held_out", "The split was compared with all rows that any stage before has read.", {
            "rows": "Rows of the split.", "left_out": "Rows dropped as seen (overlap: drop).",
            "seen": "Row set -> its rows.",
        }),
        Event("passages", "What can be retrieved was embedded.", {
            "passages": "Texts, of all rows or of the corpus.", "cut": "Those longer than retrieve.max_tokens.",
            "corpus": "retrieve.corpus; null: each row's own passages.",
        }, when=_RETRIEVES),
        Event("answers", "A model has answered every row.", {
            "model": "The stage that made the model.", "rows": "Answers.", "reused": _REUSED,
            "load": "Seconds of loading.", "generate": "Seconds of answering.",
            "perplexity": "Seconds of scoring the references.", "tokens": "Tokens generated.",
            "tokens_per_second": "Their rate.",
        }),
        Event("rewards", "The reward model has scored every answer.", {
            "model": "The reward model's stage.", "scores": "Scores; equal answers to a row count once.",
            "reused": _REUSED, "seconds": "Time spent.",
        }, when=_SCORED_BY_MODEL),
        _JUDGED,
    ),
    EvaluateHarness: (
        _BATCH,
        Event("answers", "A model has answered all requests of all tasks.", {
            "model": "The stage that made the model.", "requests": "Requests; a document with choices is several.",
            "reused": _REUSED, "seconds": "Seconds of encoding and computing.",
            "cut": "Task -> requests of which tokens at the left were left out.",
        }),
    ),
    EvaluatePairs: (
        _BATCH,
        Event("held_out", "The split was compared with all rows that any stage before has read.", {
            "rows": "Rows of the split.", "left_out": "Rows dropped as seen (overlap: drop).",
            "seen": "Row set -> its rows.",
        }),
        Event("judged", "A judge has judged every pair.", {
            "judge": "Its name.", "rows": "Pairs.", "read": "Pairs that it gave a verdict on.", "reused": _REUSED,
            "seconds": "Time spent.", "unread": "Why there is no verdict -> pairs.",
        }),
    ),
    Export: (
        Event("asked", "The trained model was asked what it says of the compared rows.", {
            "rows": "Rows.", "source": "STAGE/SPLIT, or built-in prompts.", "left_out": "Rows that cannot be read.",
        }),
        Event("compared", "A form was held against it.", {
            "form": "Which.", "kl": "Nats per token.", "top1": "Share of equal likeliest tokens.",
            "greedy": "Share of equal greedy tokens.", "positions": "Positions compared.",
            "max_kl": "The bound of kl.", "min_top1": "The bound of top1.",
        }),
        Event("read_back", "A GGUF file's tokenizer was read by transformers.", {
            "form": "Which file.", "texts": "Texts that were encoded.", "same_ids": "Those with the trained ids.",
        }, when="form has gguf"),
        Event("pushed", "The files are on the hub, or were listed.", {
            "repo": "OWNER/NAME.", "dry_run": "Whether nothing was sent.", "files": "How many.", "bytes": "Their size.",
            "revision": "The commit.",
        }, when="push_to_hub"),
    ),
    Choose: (
        Event("gate", "A round was held to its gate.", {
            "round": "Its number.", "gate": "The bound.", "found": "The number that was held against it.",
            "met": "Whether the round counts.",
        }),
        Event("chosen", "The model is taken over.", {
            "round": "Number of its round, 0 for the start.", "model": "The stage that made it.",
            "artifact": "Its key.",
        }),
    ),
}


def metrics(kind: type[Stage]) -> tuple[Metric, ...]:
    """What a stage class's manifest may hold, and aims may name."""
    final = [curve for curve in _curves(kind) if curve.final]
    trained = [Metric(f"train_{c.name}", c.text + " Mean over the last fifth of the logged steps.", c.span, c.better,
                      c.when)
               for c in final if c.only != "eval"]
    held = [Metric(f"eval_{c.name}", c.text + " On eval_rows, at the last evaluation (final: best: at the best).",
                   c.span, c.better, _HAS_EVAL) for c in final if c.only != "train"]
    return (*row_of(_METRICS, kind), *trained, *held)


def events(kind: type[Stage]) -> tuple[Event, ...]:
    """What a stage class writes to events.jsonl."""
    where = {"step": "Optimizer steps made so far.", "epoch": "Passes over the rows so far, as a fraction."}
    logged = {curve.name: curve.text + (f" Where {curve.when}." if curve.when else "")
              for curve in _curves(kind) if curve.only != "eval"}
    held = {f"eval_{curve.name}": curve.text for curve in _curves(kind) if curve.only != "train"}
    if not logged:
        return row_of(_EVENTS, kind)
    return (
        Event("train", "Every log_every steps: means since the line before. null stands for a number that is not "
                       "finite.",
              where | {"learning_rate": "Of the last step.",
                       "grad_norm": "Norm of the gradient before clipping."} | logged),
        Event("eval", "Every checkpoints.every steps: means over eval_rows.",
              where | held, _HAS_EVAL),
    )


def _curves(kind: type[Stage]) -> tuple[Curve, ...]:
    return next((CURVES[base] for base in kind.__mro__ if base in CURVES), ())
