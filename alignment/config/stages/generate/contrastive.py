"""Contrastive pairs: rows with a good answer -> an answer that is not what was asked for, as preference rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from alignment.config.prompts import PromptFile
from alignment.config.stages.base import Finding, ModelRef, Outside, RowsPlace, plural
from alignment.config.stages.fields import Place, Positive, RowsRef
from alignment.config.stages.generate.base import Generate, Load, OwnPrompts, Slots, Whole
from alignment.config.stages.sampling import Range, Sampling
from alignment.config.stages.score import JudgedScorer


class Prompts(OwnPrompts):
    """A file of your own in place of that in configs/prompts/; configs/prompts/README.md has its slots."""

    slots: ClassVar[dict[str, Slots]] = {"opposite": (("prompt",), ("answer", "kind", "other"))}

    opposite: str | None = None
    """Asks for an answer that is not what was asked for; needs {prompt}, may have {answer}, {kind} and {other}."""


class Opposites(Sampling):
    """Sampling of opposites: varied, so that a further try gives another one."""

    temperature: float | Range = 0.8
    """0 always takes the likeliest token, which leaves nothing to try again; at most 10."""
    top_p: float | Range = 0.95
    """Draws only among the likeliest tokens that together hold this much probability; 1 leaves all."""


class Contrastive(Generate):
    """Contrastive pairs (the Socratic questions' preference data): a row's answer that scores high is chosen, a teacher
    is asked for one that is not of its type, and that is rejected once its score says so."""

    tag: ClassVar[str] = "contrastive"
    body = "alignment.distributed.generate.contrastive:contrastive_stage"
    per_row = True

    recipe: Literal["contrastive"]
    """`contrastive`: rows with a good answer get a bad one."""
    rows: tuple[RowsRef, ...] = Field(min_length=1)
    """Row sets with prompts and good answers, each STAGE/SPLIT. Of a conversation, the last answer."""
    take: Positive | None = None  # type: ignore[assignment]
    """At most so many rows (times the run's scale), drawn with the run's seed. Left out: all of them."""
    ask: Literal["opposite", "other_kind"] = "opposite"
    """`opposite`: by the prompt file of this name. `other_kind`: the row's own prompt, its kind exchanged for another
    one of the rows at each try: for a teacher that learned such prompts. Rows need a kind that their prompt names."""
    language: Literal["en", "zh"] | None = None
    """Language of the shipped prompt, configs/prompts/contrastive-LANGUAGE/. Default: en."""
    prompts: Prompts = Prompts()
    """A prompt file of your own; the other is that of configs/prompts/contrastive-LANGUAGE/."""
    score: JudgedScorer
    """What says how good an answer is: a reward model, a function, a judge (mode: score), or their weighted sum."""
    min_score: float
    """An answer is good with at least this score: a row whose own answer has less is refused, and an opposite that has
    as much is still good, and asked for again."""
    min_margin: Annotated[float, Field(ge=0)] = 0.0
    """The good answer must score more than the opposite by over this much; else it is asked for again."""
    min_rejected: float | None = None
    """An opposite that scores less is no answer at all, teaches nothing, and is asked for again. Left out: any."""
    most_alike: Annotated[float, Field(ge=0, le=1)] = 0.9
    """An opposite whose ROUGE-L F against the good answer is over this is asked for again. It compares words and no
    signs: 1 allows all but the same text, as where x > 3 stands against x < 3."""
    retries: Whole = 4
    """Further tries after the first. An opposite that half of the tries give is missed by 3 % of the rows after five,
    while a row that resists five costs more tries than it is worth: kept in bad.jsonl, with all of them."""
    opposites: Opposites = Opposites()
    """How opposites are drawn. One that max_new_tokens cuts is asked for again."""

    def shown(self) -> Iterator[RowsPlace]:
        return (RowsPlace(("rows", index), ref) for index, ref in enumerate(self.rows))

    @property
    def prompt_set(self) -> str:
        return f"contrastive-{self.language or 'en'}"

    def prompt_files(self) -> tuple[PromptFile, ...]:
        return super().prompt_files() if self.ask == "opposite" else ()

    def samplings(self) -> Iterator[tuple[Place, Sampling]]:
        yield ("opposites",), self.opposites

    def requests(self, take: int) -> list[Load]:
        most = take * (1 + self.retries)
        return [Load(most if self.max_requests is None else min(most, self.max_requests), 1, self.ask == "opposite",
                     self.opposites.max_new_tokens)]

    def model_refs(self) -> Iterator[ModelRef]:
        yield from super().model_refs()
        yield from self.score.model_refs()

    def sources(self) -> tuple[Outside, ...]:
        return (*super().sources(), *self.score.sources())

    def relocated(self, paths: Mapping[str, str]) -> Self:
        return super().relocated(paths).model_copy(update={"score": self.score.relocated(paths)})

    def learned(self, scaled: Callable[[int | None], int | None]) -> dict[str, Any]:
        config = self.score.without_paths(super().learned(scaled))
        config.pop("language", None)  # it says which prompt file, whose content counts
        return config

    def findings(self) -> Iterator[Finding]:
        yield from super().findings()
        yield from self.score.findings()
        if self.score.judge is not None and self.score.judge.mode == "compare":
            yield Finding(("score", "judge", "mode"), "gives no score that an answer has by itself", "compare",
                          "mode: score")
        if self.min_rejected is not None and self.min_rejected >= self.min_score - self.min_margin:
            yield Finding(("min_rejected",), "leaves no score for an opposite", self.min_rejected,
                          f"less than min_score less min_margin, {self.min_score - self.min_margin:g}")
        if self.retries and self.opposites.greedy and self.ask == "opposite":
            yield Finding(("retries",), "every try gives the same answer", self.retries,
                          "0, or opposites with a temperature above 0")
        if self.ask == "other_kind" and self.prompts.opposite is not None:
            yield Finding(("prompts", "opposite"), "is not used, since ask is other_kind", self.prompts.opposite,
                          "ask: opposite")
        if self.language is not None and (self.ask == "other_kind" or self.prompts.opposite is not None):
            yield Finding(("language",), "is not used, since no shipped prompt is", self.language, "to be left out")

    def title(self) -> str:
        rows = "all rows" if self.take is None else plural(self.take, "row")
        return f"generate · contrastive, {rows}, at most {1 + self.retries} tries each"
