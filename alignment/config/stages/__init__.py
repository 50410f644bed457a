"""The stage kinds of a run: `KINDS`, the explicit list, and the union that a run file is read with.

One file each; what they have in common is base.py's `Stage`. A new kind is one more member of KINDS, a new training
method one more of METHODS; docs/extending.md has the whole list.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import Discriminator, Tag

from alignment.config.stages.artifact import ImportArtifact, ImportArtifactEmbedder, ImportArtifactReward, ImportRows
from alignment.config.stages.base import Stage
from alignment.config.stages.choose import Choose
from alignment.config.stages.documents import ImportDocuments
from alignment.config.stages.endpoint import ImportEndpoint
from alignment.config.stages.evaluate import Evaluate
from alignment.config.stages.evaluate_harness import EvaluateHarness
from alignment.config.stages.evaluate_pairs import EvaluatePairs
from alignment.config.stages.export import Export
from alignment.config.stages.generate import RECIPES
from alignment.config.stages.imports import ImportData, ImportEmbedder, ImportModel, ImportReward
from alignment.config.stages.infer import Infer
from alignment.config.stages.online import Grpo, Ppo, Rloo
from alignment.config.stages.sample import Sample
from alignment.config.stages.select import WAYS
from alignment.config.stages.train import METHODS as OFFLINE
from alignment.config.stages.train import TrainBase

METHODS: tuple[type[TrainBase], ...] = (*OFFLINE, Grpo, Rloo, Ppo)
"""Every training method, in the order in which errors and documents list them."""
KINDS: tuple[type[Stage], ...] = (
    ImportModel, ImportReward, ImportEmbedder, ImportEndpoint, ImportArtifact, ImportArtifactReward,
    ImportArtifactEmbedder, ImportData, ImportDocuments, ImportRows,
    *(kind for kind in RECIPES if not issubclass(kind, Sample)), *WAYS, *METHODS,
    Sample, *(kind for kind in RECIPES if issubclass(kind, Sample)), Infer, Evaluate, EvaluatePairs, EvaluateHarness,
    Choose, Export)
"""Every stage class, in the order in which a run usually has them."""


def kind_names() -> tuple[str, ...]:
    """What `kind` of a stage may be, each once."""
    return tuple(dict.fromkeys(str(kind.model_fields["kind"].default) for kind in KINDS))


def stage_tag(value: Any) -> str | None:
    """Discriminator of the union: the tag of the class that a mapping (or an instance) is a stage of."""
    def get(key: str) -> Any:
        return value.get(key) if isinstance(value, dict) else getattr(value, key, None)

    return next((kind.tag for kind in KINDS if kind.is_meant(get)), None)


if TYPE_CHECKING:
    AnyStage = Stage
else:
    AnyStage = Annotated[
        Union[tuple(Annotated[kind, Tag(kind.tag)] for kind in KINDS)],  # noqa: UP007 - of a tuple
        Discriminator(
            stage_tag,
            custom_error_type="unknown_stage",
            custom_error_message=f"not a stage: kind is one of {', '.join(kind_names())}; "
            f"method (of a train stage) is one of {', '.join(method.tag for method in METHODS)}; "
            f"recipe (of a generate stage) is one of {', '.join(recipe.tag.replace('-', '_') for recipe in RECIPES)}; "
            f"by (of a select stage) is one of {', '.join(way.tag.removeprefix('select-') for way in WAYS)}",
        ),
    ]
