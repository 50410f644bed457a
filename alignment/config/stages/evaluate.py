"""Evaluation: models measured on a held-out split."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from alignment.config.stages.base import Finding, ModelRef, Outside, RowsPlace, plural
from alignment.config.stages.fields import FORMS, Dtype, Name, Place, Positive, RowsRef
from alignment.config.stages.retrieve import Retrieve
from alignment.config.stages.sampling import Answering, Range, Sampling
from alignment.config.stages.score import JudgedScorer

REFERENCE = "reference"
"""What results call the line of the reference answers; no model may have this name."""
MetricName = Literal["exact_match", "f1", "word_recall", "containment", "rouge1", "rouge2", "rouge_l", "bleu", "chrf",
                     "yes_no", "final_number", "question_type", "perplexity", "finished", "words"]
"""A metric by its name; each is a file of evaluation/measures."""
USUAL: tuple[MetricName, ...] = ("exact_match", "f1", "rouge_l", "finished", "words", "perplexity")
"""What is measured where nothing is named."""
_ROUGE = frozenset({"rouge1", "rouge2", "rouge_l"})
_NORMALISED = frozenset({"exact_match", "f1", "word_recall", "containment"})
READ_BY: dict[str, frozenset[str]] = {
    "segmentation": _ROUGE, "language": _NORMALISED | {"bleu"},
    "answer_pattern": _NORMALISED | {"yes_no", "final_number", "question_type"},
}
"""Key -> the metrics that read it."""
_LANGUAGE = r"^[a-z]{2,3}$"
FORMS[_LANGUAGE] = "a language's letters in ISO 639: de, zh, vi"


class Greedy(Sampling):
    """Sampling that always takes the likeliest token, unless a temperature is given."""

    temperature: float | Range = 0.0
    """0 always takes the likeliest token; 1 draws from the model's own distribution; at most 10."""


class Evaluate(Answering):
    """Answers of each model to a held-out split, measured; no stage before may have seen the split."""

    tag: ClassVar[str] = "evaluate"
    makes = "table"
    body = "alignment.distributed.evaluate:evaluate_stage"
    script = "evaluate"
    says_names = True  # the table's lines, and the metrics that aims ask for
    bfloat16_on = frozenset({"gpu", "cpu"})
    revision = 2  # 1 had exact match and F1 of texts without blanks at 0, and cut words at combining marks

    kind: Literal["evaluate"] = "evaluate"
    """`evaluate`: models are measured on rows that none of them has seen."""
    models: tuple[Name, ...] = Field(min_length=1)
    """In the order of the table, the start model first."""
    rows: RowsRef
    """STAGE/SPLIT to ask, with reference answers for what compares with them (kubealign explain evaluate)."""
    take: Positive | None = None
    """At most so many rows (times the run's scale), drawn with the run's seed; the same rows for every model."""
    sampling: Greedy = Greedy()
    """How each model answers. Temperature 0 unless given: the same answers each time. max_new_tokens must leave room
    for a whole answer."""
    retrieve: Retrieve | None = None
    """The model asks for passages while it answers, instead of being given the row's own turns; its answer is what it
    says at last, nothing where it comes to none. max_prompt_tokens holds with all that was found."""
    score: JudgedScorer | None = None
    """Reward model, function and/or judge for scores and win rates; a function, and a judge that marks, also give a
    column. A judge of mode compare is shown the answers of `compare`'s models, in both orders."""
    compare: tuple[tuple[Name, Name], ...] = ()
    """Win rates to report, [challenger, baseline]. Default: every later model against the first."""
    metrics: Annotated[tuple[MetricName, ...], Field(min_length=1)] | None = None
    """Columns of the table by name, in this order; `score` adds its own. Default: exact_match, f1, rouge_l, finished,
    words, and perplexity where that is true."""
    answer_pattern: str | None = None
    """Regular expression whose group `answer` is what short-answer metrics compare (exact_match, f1, word_recall,
    containment, yes_no, final_number, question_type). Default: the whole text."""
    language: Annotated[str, Field(pattern=_LANGUAGE)] | None = None
    """Language of the answers (ISO 639: de, es, vi, ar, zh, ...): exact match and F1 leave out its articles and all
    punctuation, as MLQA's own script does. Default: Latin letters as SQuAD's script, others as MLQA's."""
    segmentation: Literal["jieba"] | None = None
    """`jieba`: ROUGE counts Chinese words, as jieba's dictionary cuts them, instead of Chinese characters."""
    perplexity: bool = True
    """Perplexity of the reference answers under each model. Where `metrics` is given, that says whether."""
    overlap: Literal["error", "drop"] = "error"
    """A test row that a stage has seen, by id or by text: an error, or dropped and counted."""
    bootstrap: Annotated[int, Field(ge=100)] = 2000
    """Resamples of the rows for each 95% interval. The default is steady to about two digits; more takes only CPU
    time."""
    batch_size: Positive = 32
    """Rows answered at once: as many as memory allows. Lower it when the GPU runs out."""
    max_prompt_tokens: Positive | None = None
    """A row whose prompt is longer, for any of the models, is left out for all of them and counted. Default: 1024, or
    what the models' context lengths leave beside max_new_tokens, where that is less."""
    dtype: Dtype | None = None
    """Arithmetic of all models. Left out: compute.dtype, whose auto is bfloat16 where the hardware has it, else float32
    (and float32 on a cluster's CPUs); what is settled is part of what the stage is."""

    @classmethod
    def is_meant(cls, get: Callable[[str], Any]) -> bool:
        return super().is_meant(get) and get("judges") is None and get("harness") is None

    @property
    def asks_likelihoods(self) -> bool:
        return "perplexity" in self.measured

    @property
    def measured(self) -> tuple[str, ...]:
        """Names of the metrics, without those of `score`."""
        if self.metrics is not None:
            return self.metrics
        return tuple(name for name in USUAL if name != "perplexity" or self.perplexity)

    def model_refs(self) -> Iterator[ModelRef]:
        yield from (ModelRef(("models", index), name, "policy", asked=True) for index, name in enumerate(self.models))
        if self.score is not None:
            yield from self.score.model_refs()
        if self.retrieve is not None:
            yield from self.retrieve.model_refs()

    def sources(self) -> tuple[Outside, ...]:
        return () if self.score is None else self.score.sources()

    def relocated(self, paths: Mapping[str, str]) -> Self:
        return self if self.score is None else self.model_copy(update={"score": self.score.relocated(paths)})

    def learned(self, scaled: Callable[[int | None], int | None]) -> dict[str, Any]:
        config = super().learned(scaled)
        return config if self.score is None else self.score.without_paths(config)

    def row_refs(self) -> Iterator[RowsPlace]:
        yield RowsPlace(("rows",), self.rows)
        if self.retrieve is not None:
            yield from self.retrieve.row_refs(self.rows)

    def names(self) -> Iterator[Place]:
        yield from super().names()
        yield from (("compare", index, side) for index in range(len(self.compare)) for side in (0, 1))

    def held_out(self) -> Iterator[RowsPlace]:
        yield RowsPlace(("rows",), self.rows)

    def findings(self) -> Iterator[Finding]:
        if REFERENCE in self.models:
            yield Finding(("models",), "the name is taken by the results' line for the reference answers", REFERENCE,
                          "another name for that stage")
        for index, pair in enumerate(self.compare):
            for name in pair:
                if name not in self.models:
                    yield Finding(("compare", index), "compares a model that is not evaluated", name,
                                  "one of " + ", ".join(self.models))
            if pair[0] == pair[1]:
                yield Finding(("compare", index), "compares a model with itself", list(pair), "two models")
        if len(set(self.compare)) != len(self.compare):
            yield Finding(("compare",), "names a pair twice", [list(pair) for pair in self.compare], "each pair once")
        if len(set(self.models)) != len(self.models):
            yield Finding(("models",), "names a model twice", list(self.models), "each model once")
        if self.answer_pattern is not None:
            yield from _pattern_findings(self.answer_pattern)
        yield from self._metric_findings()

    def _metric_findings(self) -> Iterator[Finding]:
        named = self.metrics or ()
        if len(set(named)) != len(named):
            yield Finding(("metrics",), "names a metric twice", list(named), "each metric once")
        if "perplexity" in named and not self.perplexity:
            yield Finding(("perplexity",), "says that it is not measured, and metrics names it", False,
                          "true, or metrics without perplexity")
        for key, readers in READ_BY.items():
            if getattr(self, key) is not None and not readers & set(self.measured):
                yield Finding((key,), "is read by none of the metrics that are measured", getattr(self, key),
                              "one of its metrics beside it: " + ", ".join(sorted(readers)))

    def pairs(self) -> tuple[tuple[str, str], ...]:
        """[challenger, baseline] of each comparison: as asked, or every later model against the first."""
        first, *later = self.models
        return self.compare or tuple((model, first) for model in later)

    def mended(self) -> dict[str, int]:
        # Adapters were merged into models whose rotary positions were then in bfloat16 as well.
        return super().mended() | ({"positions": 2} if self.arithmetic == "bfloat16" else {})

    def title(self) -> str:
        retrieve = "" if self.retrieve is None else " that retrieves" if len(self.models) == 1 else " that retrieve"
        return f"evaluate · {plural(len(self.models), 'model')}{retrieve}"


def _pattern_findings(pattern: str) -> Iterator[Finding]:
    place = ("answer_pattern",)
    try:
        groups = re.compile(pattern, re.DOTALL).groupindex
    except re.error as error:
        yield Finding(place, f"is no regular expression: {error}", pattern, "a Python regular expression")
    else:
        if "answer" not in groups:
            yield Finding(place, "has no group named answer", pattern, "(?P<answer>...)")
