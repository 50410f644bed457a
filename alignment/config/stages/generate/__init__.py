"""Generation: rows that a model makes. One class for each recipe, in a file of its own; what those with a
teacher share is `Generate`."""

from __future__ import annotations

from alignment.config.stages.base import Stage
from alignment.config.stages.generate.contrastive import Contrastive
from alignment.config.stages.generate.document_qa import DocumentQa
from alignment.config.stages.generate.judged_pairs import JudgedPairs
from alignment.config.stages.generate.multihop import MultiHop
from alignment.config.stages.generate.self_instruct import SelfInstruct

RECIPES: tuple[type[Stage], ...] = (SelfInstruct, DocumentQa, MultiHop, Contrastive, JudgedPairs)
"""Every recipe, in the order in which errors and documents list them."""
