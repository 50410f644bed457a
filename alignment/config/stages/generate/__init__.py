"""Generation: rows that a teacher makes. One class for each recipe, in a file of its own; what they share is
`Generate`."""

from __future__ import annotations

from alignment.config.stages.generate.base import Generate
from alignment.config.stages.generate.multihop import MultiHop
from alignment.config.stages.generate.self_instruct import SelfInstruct

RECIPES: tuple[type[Generate], ...] = (SelfInstruct, MultiHop)
"""Every recipe, in the order in which errors and documents list them."""
