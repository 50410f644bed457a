"""Selection: which rows of a pool are worth learning from. One class for each way; what they share is `Select`.

MoDS (Du et al. 2023, arXiv:2311.15653) is a chain of these: quality, coverage, an sft on what was chosen, its answers
scored (a sample stage), necessity, merge, and the sft of the raw base.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from alignment.config.stages.base import Finding, ModelRef, RowsPlace, Stage, plural
from alignment.config.stages.fields import Dtype, Fraction, Name, Positive, RowsRef
from alignment.config.stages.score import Scorer

Quantile = Annotated[float, Field(gt=0, lt=1)]


class Select(Stage):
    """What every way of selecting has: rows in, some of them out as they came, and what became of the others."""

    tag: ClassVar[str] = "select"
    makes = "rows"
    body = "alignment.distributed.select:select_stage"
    script = "select_stage"  # not select: scripts stand first on the path, and the standard library has a select

    kind: Literal["select"] = "select"
    """`select`: some rows of a pool are chosen; `by` says how."""
    rows: tuple[RowsRef, ...] = Field(min_length=1)
    """The row sets to choose from, each STAGE/SPLIT. Of rows with one id the first counts; the others are bad rows."""

    @classmethod
    def is_meant(cls, get: Callable[[str], Any]) -> bool:
        return super().is_meant(get) and get("by") == cls.tag.removeprefix("select-")

    def row_refs(self) -> Iterator[RowsPlace]:
        return (RowsPlace(("rows", index), ref) for index, ref in enumerate(self.rows))

    def splits(self) -> tuple[str, ...]:
        return ("train",)

    @property
    def draws(self) -> bool:
        return False

    def title(self) -> str:
        return f"select · {self.tag.removeprefix('select-')}"


class _Cut(Select):
    """A way that goes by a score: a threshold, or a quantile of the scores."""

    threshold: float | None = None
    """The score itself. Its scale is the scorer's; the paper has 0.0 of OpenAssistant/reward-model-deberta-v3-large-v2
    for quality."""
    quantile: Quantile | None = None
    """Instead of a threshold: the score that this share of the rows has at most. Rows with that very score are in the
    lower part, which necessity keeps and quality leaves."""

    @model_validator(mode="after")
    def _one_cut(self) -> Self:
        if (self.threshold is None) == (self.quantile is None):
            raise ValueError("give threshold or quantile, one of them")
        return self

    @property
    def cut_text(self) -> str:
        """The cut in a few words."""
        return f"threshold {self.threshold:g}" if self.threshold is not None else f"quantile {self.quantile:g}"


class _Few(Select):
    """A way that takes a number of rows, or a share of them."""

    take: Positive | None = None
    """So many rows (times the run's scale). More than there are is an error, not all of them."""
    share: Fraction | None = None
    """Instead of take: this share of the rows, rounded, at least one."""

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if (self.take is None) == (self.share is None):
            raise ValueError("give take or share, one of them")
        return self

    @property
    def draws(self) -> bool:
        return True

    @property
    def size_text(self) -> str:
        """The size in a few words."""
        return plural(self.take, "row") if self.take is not None else f"{self.share:.0%}"


class SelectQuality(_Cut):
    """Rows whose own answer a scorer likes: the score of (prompt, answer) is above the cut."""

    tag: ClassVar[str] = "select-quality"
    on_workers = True
    bfloat16_on = frozenset({"gpu"})

    by: Literal["quality"]
    """`quality`: rows whose answer scores above a threshold or quantile."""
    score: Scorer
    """What judges the rows: a reward model (trained here, or imported), a function, or the weighted sum of both."""
    batch_size: Positive = 32
    """Rows scored at once."""
    dtype: Dtype | None = None
    """Arithmetic of the reward model. Left out: compute.dtype, whose auto is bfloat16 on a GPU that has it, else
    float32; what is settled is part of what the stage is."""

    def model_refs(self) -> Iterator[ModelRef]:
        yield from self.score.model_refs()

    def findings(self) -> Iterator[Finding]:
        return self.score.findings()

    def title(self) -> str:
        return f"select · quality above {self.cut_text}"


class SelectCoverage(_Few):
    """Rows that lie far from each other: k-center greedy (Gonzalez 1985; Sener and Savarese 2018, arXiv:1708.00489)
    over embeddings of the instructions. The first is drawn; each next is the farthest from all chosen."""

    tag: ClassVar[str] = "select-coverage"
    on_workers = True
    bfloat16_on = frozenset({"gpu"})

    by: Literal["coverage"]
    """`coverage`: rows whose instructions lie far from each other."""
    embedder: Name
    """The stage whose model makes vectors of instructions: an import with role: embedder, or any that makes a language
    model, whose last hidden layer is taken."""
    pooling: Literal["cls", "mean"]
    """What of the last hidden layer stands for the text: `cls`, its first token (BERT, as in the paper), or `mean`,
    over all tokens (MiniLM and other sentence embedders; language models, whose first token sees nothing else)."""
    normalise: bool = False
    """Bring vectors to length 1 first, so that distances go by angles alone: as MiniLM is meant; the paper does not."""
    text: Literal["instruction", "prompt"] = "instruction"
    """What is embedded: the instruction alone (of a row whose parts are known apart that part; else the last user turn
    up to its first blank line, behind which Alpaca's rows have their input), or the whole last user turn."""
    max_tokens: Annotated[int, Field(ge=4)] = 96
    """Longer texts are cut at this many tokens, marks included, and counted. The paper has 96."""
    batch_size: Positive = 100
    """Texts embedded at once."""
    dtype: Dtype | None = None
    """Arithmetic of the embedder. Left out: compute.dtype, whose auto is bfloat16 on a GPU that has it, else float32;
    what is settled is part of what the stage is."""

    def model_refs(self) -> Iterator[ModelRef]:
        yield ModelRef(("embedder",), self.embedder, "embedder")

    def title(self) -> str:
        return f"select · coverage, {self.size_text}"


class SelectNecessity(_Cut):
    """Rows that a model still answers badly: the score of its own answer, which a sample stage has got, is below the
    cut. Of several answers to a row their mean counts."""

    tag: ClassVar[str] = "select-necessity"

    by: Literal["necessity"]
    """`necessity`: rows to which a model's own answer scores below a threshold or quantile."""
    answers: RowsRef
    """STAGE/samples of a sample stage that asked these rows of the model; with the scorer that judged their quality."""

    def row_refs(self) -> Iterator[RowsPlace]:
        yield from super().row_refs()
        yield RowsPlace(("answers",), self.answers)

    def findings(self) -> Iterator[Finding]:
        if self.answers.partition("/")[2] != "samples":
            yield Finding(("answers",), "has no scored answers", self.answers, "STAGE/samples of a sample stage")

    def title(self) -> str:
        return f"select · necessity below {self.cut_text}"


class SelectMerge(Select):
    """Several row sets as one, each row once: by id, and by its text."""

    tag: ClassVar[str] = "select-merge"

    by: Literal["merge"]
    """`merge`: all rows, each text once; of equal ones the first row set's counts."""


class SelectRandom(_Few):
    """Rows drawn by a hash of the run's seed and their id: what every other way has to be compared with."""

    tag: ClassVar[str] = "select-random"

    by: Literal["random"]
    """`random`: rows drawn with the run's seed. A larger take holds the rows of a smaller one."""

    def title(self) -> str:
        return f"select · random, {self.size_text}"


WAYS: tuple[type[Select], ...] = (SelectQuality, SelectCoverage, SelectNecessity, SelectMerge, SelectRandom)
"""Every way of selecting, in the order in which errors and documents list them."""
