"""What keys of a config are made of: names, references, bounds, and the strict model that holds them."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

NAME = r"^[a-z][a-z0-9-]{0,39}$"
Name = Annotated[str, Field(pattern=NAME)]
RowsRef = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,39}/[a-z][a-z0-9_-]{0,39}$")]
"""STAGE/SPLIT, for example seed/train. No description here: pydantic takes an alias's before the field's docstring."""
Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Place = tuple[str | int, ...]
"""Keys and list positions that lead to a value, from the stage's own mapping on."""


class Strict(BaseModel):
    """Unknown keys and wrong types are errors; instances never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)
