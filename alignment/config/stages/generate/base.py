"""What every recipe of generation has: a teacher, a budget, prompt files, rows kept apart for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, TypeVar

from pydantic import Field

from alignment.config.prompts import PromptFile
from alignment.config.stages.base import Finding, ModelRef, Outside, RowsPlace
from alignment.config.stages.fields import Dtype, Name, Place, Positive, RowsRef, Strict
from alignment.config.stages.hygiene import Hygiene, hygiene_findings
from alignment.config.stages.sampling import Answering, Sampling

Keys = TypeVar("Keys", bound=Strict)
Whole = Annotated[int, Field(ge=0)]
Slots = tuple[tuple[str, ...], tuple[str, ...]]
"""Slots that a prompt must have, and those that it may have."""


def filled(keys: Keys, defaults: Mapping[str, Any]) -> Keys:
    """Keys with what a run file leaves open filled in; defaults that are no keys of theirs are passed over."""
    left = {key: value for key, value in defaults.items()
            if key in type(keys).model_fields and getattr(keys, key) is None}
    return keys.model_copy(update=left)


class Load(NamedTuple):
    """What a step may ask of the teacher: requests, rows shown in each, whether with their answers, longest answer,
    tokens of the prompt beside the rows, requests for each shown row beside `requests`."""

    requests: int
    shown: int
    answers: bool
    new_tokens: int
    own: int = 0
    per_row: int = 0


class OwnPrompts(Strict):
    """Files of your own in place of a recipe's, a key for each step."""

    slots: ClassVar[dict[str, Slots]] = {}
    """Step -> the slots of its prompt."""


class Generate(Answering):
    """What every recipe has: a teacher, a budget, rows to train on, and rows refused beside them with the reason."""

    tag: ClassVar[str] = "generate"
    makes = "rows"
    script = "generate"
    per_row: ClassVar[bool] = False
    """Whether it makes at most one row of each that is shown, so that there are no more than those."""
    bfloat16_on = frozenset({"gpu", "cpu"})

    kind: Literal["generate"] = "generate"
    """`generate`: a teacher makes rows; `recipe` says how."""
    teacher: Name
    """The stage whose model is asked; it may name an endpoint."""
    take: Positive = 1000
    """Rows that are wanted (times the run's scale); when so many are kept, no more are asked for."""
    max_requests: Positive | None = None
    """At most so many requests in the whole stage, whatever comes of them. Left out: what the other keys need."""
    decontaminate: tuple[RowsRef, ...] = ()
    """Row sets that are kept for evaluation: a generated row that shares its prompt or half of its runs of 8 words with
    one of them is refused. Reading them here does not count as training on them."""
    hygiene: Hygiene | None = None
    """Near duplicates, other languages and personal data: rows left out, or changed, and counted; decontaminate comes
    first."""
    batch_size: Positive = 8
    """Requests in one generation batch."""
    max_prompt_tokens: Positive | None = None
    """A request whose prompt is longer is not asked; it is counted and kept in bad.jsonl. Default: 1024, or what the
    teacher's context length leaves beside the longest answer, where that is less. Not for an endpoint."""
    dtype: Dtype | None = None
    """Arithmetic of the teacher. Left out: compute.dtype, whose auto is bfloat16 where the hardware has it, else
    float32 (and float32 on a cluster's CPUs); what is settled is part of what the stage is."""
    prompts: OwnPrompts = OwnPrompts()
    """Prompt files of your own, by step; the others are those of configs/prompts/."""

    @classmethod
    def is_meant(cls, get: Callable[[str], Any]) -> bool:
        return super().is_meant(get) and get("recipe") == cls.tag.replace("-", "_")

    # --- what a recipe says of itself ---

    def shown(self) -> Iterator[RowsPlace]:
        """Row sets whose rows its prompts show, with the place in the config."""
        return iter(())

    @property
    def prompt_set(self) -> str:
        """The folder of its prompts in configs/prompts/."""
        return self.tag.replace("-", "_")

    def samplings(self) -> Iterator[tuple[Place, Sampling]]:
        """How each step's answers are drawn, with the place in the config."""
        return iter(())

    def requests(self, take: int) -> list[Load]:
        """The most that each step asks for `take` rows: unless a recipe knows better, once with one shown row each."""
        most = self.most_tokens()
        return [Load(take, 1, True, 0 if most is None else most.beside)]

    # --- what follows from it ---

    def model_refs(self) -> Iterator[ModelRef]:
        yield ModelRef(("teacher",), self.teacher, "policy", asked=True)

    def row_refs(self) -> Iterator[RowsPlace]:
        yield from self.shown()
        yield from self.kept_apart()

    def kept_apart(self) -> Iterator[RowsPlace]:
        return (RowsPlace(("decontaminate", index), ref) for index, ref in enumerate(self.decontaminate))

    def splits(self) -> tuple[str, ...]:
        return ("train",)

    def prompt_files(self) -> tuple[PromptFile, ...]:
        """One for each step."""
        return tuple(PromptFile(self.prompt_set, step, getattr(self.prompts, step), needed, allowed)
                     for step, (needed, allowed) in self.prompts.slots.items())

    def sources(self) -> tuple[Outside, ...]:
        return tuple(Outside(("prompts",) if prompt.path is None else ("prompts", prompt.step), prompt, prompt.path,
                             travels=prompt.path is not None) for prompt in self.prompt_files())

    def relocated(self, paths: Mapping[str, str]) -> Self:
        own = {step: paths.get(path, path) for step in self.prompts.slots
               if (path := getattr(self.prompts, step)) is not None}
        return self.model_copy(update={"prompts": self.prompts.model_copy(update=own)})

    def learned(self, scaled: Callable[[int | None], int | None]) -> dict[str, Any]:
        config = super().learned(scaled)
        del config["prompts"]  # their content counts, and where they lie does not
        return config

    def findings(self) -> Iterator[Finding]:
        yield from hygiene_findings(self.hygiene)
        shown = {place.ref for place in self.shown()}
        if both := sorted(shown & set(self.decontaminate)):
            yield Finding(("decontaminate",), "names rows that the prompts show, which every generated row comes from",
                          both, "rows kept for evaluation")

    def title(self) -> str:
        return f"generate · {self.tag.replace('-', '_')}, {self.take:,} rows"
