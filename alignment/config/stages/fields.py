"""What keys of a config are made of: names, references, bounds, and the strict model that holds them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

NAME = r"^[a-z][a-z0-9-]{0,39}$"
Name = Annotated[str, Field(pattern=NAME)]
SPLIT = r"^[a-z][a-z0-9_-]{0,39}$"
ROWS = r"^[a-z][a-z0-9-]{0,39}/[a-z][a-z0-9_-]{0,39}$"
RowsRef = Annotated[str, Field(pattern=ROWS)]
"""STAGE/SPLIT, for example seed/train. No description here: pydantic takes an alias's before the field's docstring."""
Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]


def _one_count(value: object) -> object:
    if isinstance(value, dict | list | tuple):
        raise ValueError("workers is one number. Counts that change within an attempt are not offered: Ray Train would "
                         "also start with numbers by which a stage's batch_size cannot be divided. Write the number "
                         "that is sure to be there; a later start with another goes on from the newest checkpoint")
    return value


OneCount = BeforeValidator(_one_count)
"""Of keys that say how many Ray workers there are."""
Dtype = Literal["float32", "bfloat16"]
LENGTH = 1024
"""Tokens of a prompt, or of prompt and answer, where a config says none and the model takes as many."""
STORE = r"\S"
StoreUrl = Annotated[str, Field(pattern=STORE)]
FORMS = {
    NAME: "a name: small letters, digits and hyphens, 40 at most, a letter first (no dots, which part STAGE from "
          "METRIC in aims and which Kubernetes' services refuse: llama-3-1)",
    ROWS: "STAGE/SPLIT, for example seed/train",
    SPLIT: "a row set's name: train",
    STORE: "a folder or URL: runs, s3://bucket/prefix",
}
"""Pattern -> what it asks for, in words; who adds a pattern adds them."""
Place = tuple[str | int, ...]
"""Keys and list positions that lead to a value, from the stage's own mapping on."""


def on_this_machine(path: str) -> Path:
    """Where a local path of the user's lies, ~ spelled out. The one place for that, so that all who look mean one file;
    not done at loading, because ~ is this machine's and an absolute path a pod's."""
    return Path(os.path.expanduser(path))  # Path.expanduser raises where a user has no home


class Strict(BaseModel):
    """Unknown keys and wrong types are errors; instances never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True,
                              allow_inf_nan=False)
