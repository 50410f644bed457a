"""GPUs by name: one file of configs/hardware/ each, for the planner. `8xH100`, `4090` and `none` as `--gpus` has them.

A name is looked for in configs/hardware/ of the working directory, then beside the installed code. Looks at no GPU.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import Field

from alignment.config.messages import close_to
from alignment.config.stages.fields import Strict
from alignment.config.yaml_file import parse_tree, read_text, validated
from alignment.errors import ConfigError, ConfigErrors

_FOLDER = Path("configs") / "hardware"
_SHIPPED = Path(__file__).resolve().parents[2] / _FOLDER
GIB = 2**30


class Card(Strict):
    """One file of configs/hardware/: what a GPU holds and how fast it is."""

    description: str
    """Maker, product and size."""
    memory_gib: Annotated[float, Field(gt=0)]
    """GiB that a process can have: the total that the driver reports, less than what is sold."""
    bf16_tflops: Annotated[float, Field(gt=0)]
    """TFLOP/s of matrix products in bfloat16, dense."""
    bandwidth_gbs: Annotated[float, Field(gt=0)]
    """GB/s that its memory is read with."""
    interconnect_gbs: Annotated[float, Field(gt=0)] | None = None
    """GB/s to another GPU of the same machine, one way."""
    products: tuple[str, ...] = ()
    """What NVIDIA's device plugin calls it in the node label nvidia.com/gpu.product."""

    @property
    def memory(self) -> int:
        """Bytes."""
        return int(self.memory_gib * GIB)


class Cards(NamedTuple):
    """So many GPUs of one kind; `card` None is a CPU."""

    name: str
    card: Card | None
    number: int = 1

    def __str__(self) -> str:
        if self.card is None:
            return "no GPU"
        return self.name if self.number == 1 else f"{self.number}x{self.name}"


def known_cards() -> list[str]:
    """Names that `load_card` finds."""
    return sorted({path.stem for folder in (_FOLDER, _SHIPPED) for path in folder.glob("*.yaml")})


def load_card(name: str, where: str = "compute.gpu") -> Card:
    """The card of a name, in letters of any case.

    Raises:
        ConfigErrors: no file of that name, or findings in it.
    """
    lower = name.lower()
    path = next((folder / f"{lower}.yaml" for folder in (_FOLDER, _SHIPPED)
                 if re.fullmatch(r"[a-z0-9-]+", lower) and (folder / f"{lower}.yaml").is_file()), None)
    if path is None:
        raise ConfigErrors([ConfigError(
            "no GPU of this name is known", where=where, found=name, expected=close_to(lower, known_cards()),
            hint=f"add {_FOLDER}/{lower}.yaml with its memory and rates: copy one that is there")])
    _, node = parse_tree(read_text(path, "hardware"), str(path), "hardware", "memory_gib: ..., bf16_tflops: ...")
    return validated(Card, node)


def parse_cards(text: str, where: str = "--gpus") -> Cards:
    """`8xH100`, `4090` or `none`.

    Raises:
        ConfigErrors: as `load_card`.
    """
    if text.lower() in ("none", "cpu", "0"):
        return Cards("none", None, 0)
    match = re.fullmatch(r"(?:([1-9]\d{0,3})x)?(.+)", text.strip(), re.IGNORECASE)
    if match is None:
        raise ConfigErrors([ConfigError("no GPU is named", where=where, found=text, expected="8xH100, 4090 or none")])
    return Cards(match[2].lower(), load_card(match[2], where), int(match[1] or 1))
