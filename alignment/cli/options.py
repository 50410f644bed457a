"""Arguments that several sub-commands share."""

from __future__ import annotations

from typing import Annotated

import typer

RunFile = Annotated[str, typer.Argument(metavar="RUN.yaml", help="The run file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a value: sft.epochs=2, compute.workers=2, params.x=y."),
]
