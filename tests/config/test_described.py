"""Every key that a user may write says what it is: the reference, the editor's help and the CRD are made of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from alignment.config import Profile, Run
from alignment.config.rounds import Group
from alignment.config.stages.fields import Strict


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _below(*waiting: type[BaseModel]) -> list[type[BaseModel]]:
    """The models given and all that their keys hold, each once."""
    found: dict[type[BaseModel], None] = {}
    queue = list(waiting)
    while queue:
        model = queue.pop(0)
        if model not in found:
            found[model] = None
            queue += [below for field in model.model_fields.values() for below in _models(field.annotation)]
    return list(found)


MODELS = _below(Run, Profile, Group)


def test_the_walk_finds_what_hides_in_unions_lists_and_mappings() -> None:
    names = {model.__name__ for model in MODELS}
    assert {"Sft", "Lora", "Full", "Source", "RatioSplit", "StageOverride", "Toleration"} <= names


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_key_and_every_mapping_has_a_description(model: type[BaseModel]) -> None:
    assert model.__doc__, f'{model.__name__} needs a docstring: """What the mapping is."""'
    lacking = [key for key, field in model.model_fields.items() if not (field.description or "").strip()]
    assert not lacking, f'{model.__name__}: write """...""" under {", ".join(lacking)}'


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_no_two_keys_share_a_description(model: type[BaseModel]) -> None:
    # An alias's own description is taken before the field's docstring, and would stand under every key of that type.
    said = [field.description for field in model.model_fields.values()]
    assert len(set(said)) == len(said), f"{model.__name__}: {[text for text in said if said.count(text) > 1]}"


def test_a_description_is_a_docstring_and_three_lines_at_most() -> None:
    class Made(Strict):
        """A mapping."""

        key: int = 1
        """What it is."""

    assert Made.model_fields["key"].description == "What it is."
    long = [f"{model.__name__}.{key}" for model in MODELS for key, field in model.model_fields.items()
            if (field.description or "").count("\n") > 2]
    assert not long
