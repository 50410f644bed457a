"""Choosing: of the models of several rounds the last before one that gained no more, as the result of them all."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from alignment.config.aims import Aim, parse_aim
from alignment.config.stages.base import Finding, ModelRef, Stage, plural
from alignment.config.stages.fields import Name
from alignment.config.stops import stages_of


def _is_bound(text: str) -> str:
    try:
        parse_aim(text)
    except ValueError as error:
        raise ValueError(f"not a bound: {error}") from error
    return text


Bound = Annotated[str, Field(max_length=300), AfterValidator(_is_bound)]


class Choose(Stage):
    """The model of the last round that met its gate. A group with a `gate` has one for each name in its `first`."""

    tag: ClassVar[str] = "choose"
    makes = "policy"
    body = "alignment.evaluation.choose:choose_stage"
    script = "choose"
    says_names = True

    kind: Literal["choose"] = "choose"
    """`choose`: the model of the last round that met its gate; written where a group with a `gate` is expanded."""
    models: tuple[Name, ...] = Field(min_length=2)
    """The model before the first round, then that of each round, in order."""
    bounds: tuple[Bound, ...] = Field(min_length=1)
    """What each round has to reach, as in the run's `aims`. After the first that is not met no round counts, and
    those that were not made are not asked for."""

    @property
    def draws(self) -> bool:
        return False

    @property
    def stands_for(self) -> tuple[str, ...]:
        return self.models

    def held_to(self) -> tuple[Aim, ...]:
        return tuple(parse_aim(text) for text in self.bounds)

    def model_refs(self) -> Iterator[ModelRef]:
        return (ModelRef(("models", index), name, "policy") for index, name in enumerate(self.models))

    def inputs(self) -> tuple[str, ...]:
        # Round by round, so that those of the rounds that were made stand first.
        names = [self.models[0]]
        for model, gate in zip(self.models[1:], self.held_to(), strict=False):
            names += [model, *stages_of(gate)]
        return tuple(dict.fromkeys(names))

    def findings(self) -> Iterator[Finding]:
        if len(self.bounds) != len(self.models) - 1:
            yield Finding(("bounds",), "not one for each round", plural(len(self.bounds), "bound"),
                          f"{len(self.models) - 1}, one for each of `models` after the first")
        if any(one == next_ for one, next_ in pairwise(self.models)):
            yield Finding(("models",), "a round has the model of the one before", list(self.models), "a model each")

    def title(self) -> str:
        return f"choose · of {plural(len(self.bounds), 'round')}"
