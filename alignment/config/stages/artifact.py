"""Stages that name what another run made, a model or rows, by its artifact: nothing is made anew, and no file is copied
where a link does.

An artifact's key has its digest in it, so a key is all that a digest needs; which run made it does not matter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from alignment.config.stages.base import Finding, Outside, Stage
from alignment.config.stages.fields import NAME, SPLIT, Place, StoreUrl, Strict
from alignment.config.stages.imports import source_of

KEY = re.compile(r"[a-z][a-z0-9-]*-[0-9a-f]{12}")
"""KIND-DIGEST12, an artifact's folder in its store."""
RUN_STAGE = re.compile(f"({NAME[1:-1]}):({NAME[1:-1]})")
"""RUN:STAGE."""


class Named(NamedTuple):
    """What a reference says: a key, or a run and a stage of it; in which store, None for that of the run itself."""

    store: str | None
    key: str | None = None
    run: str | None = None
    stage: str | None = None


class ArtifactRef(Strict):
    """Where a finished artifact lies."""

    artifact: str
    """Its key as `kubealign status` says it (sft-86ea8fe7c8a6), RUN:STAGE for what a run of the store made last, or
    the path or URL of its folder (runs/artifacts/sft-86ea8fe7c8a6)."""
    store: StoreUrl | None = None
    """The store that has it, a folder or URL. Default: the run's own."""

    @model_validator(mode="after")
    def _means_something(self) -> Self:
        named = self.named
        if named.key is None and named.run is None:
            raise ValueError(f"artifact: {self.artifact!r} names no artifact; expected a key (sft-86ea8fe7c8a6), "
                             "RUN:STAGE, or the path of an artifact's folder (STORE/artifacts/sft-86ea8fe7c8a6)")
        if self.store is not None and "/" in self.artifact:
            raise ValueError("store beside an artifact's path: the path says in which store it lies")
        return self

    @property
    def named(self) -> Named:
        """What `artifact` says; neither key nor run where it says nothing."""
        if "/" in self.artifact:
            above, _, name = self.artifact.rstrip("/").removesuffix("/model").rpartition("/")
            store, _, folder = above.rpartition("/")
            return Named(store or "/", name) if folder == "artifacts" and KEY.fullmatch(name) else Named(None)
        if found := RUN_STAGE.fullmatch(self.artifact):
            return Named(self.store, None, found[1], found[2])
        return Named(self.store, self.artifact if KEY.fullmatch(self.artifact) else None)

    def within(self, store: str) -> Self:
        """The reference as a run in `store` means it."""
        return self if self.named.store is not None else self.model_copy(update={"store": store})


class ArtifactModel(ArtifactRef):
    """A model that another run made, or this one before, by its artifact."""

    source: Literal["artifact"]
    """What any run has made or imported, as it is: weights or adapter, tokenizer, template. Evaluations know which rows
    it has learned from."""


class RunRows(ArtifactRef):
    """Row sets that another run made."""

    splits: Annotated[tuple[Annotated[str, Field(pattern=SPLIT)], ...], Field(min_length=1)]
    """Which of its row sets: [train, test] of an import, [best] or [pairs] of a sample stage. Later stages name them
    STAGE/SPLIT."""


class FromArtifact(Stage):
    """What stages have in common that bring what another run made."""

    tag: ClassVar[str] = "from-artifact"
    brings_artifact = True
    body = "alignment.data.import_artifact:import_artifact"
    script = "import_stage"

    kind: Literal["import"] = "import"
    """`import` with `artifact` in its `model` or `rows` brings what another run made."""

    @property
    def reference(self) -> ArtifactRef:
        """Which artifact is meant."""
        raise NotImplementedError

    @property
    def place(self) -> Place:
        """Where the config says so."""
        return ("model",)

    @property
    def draws(self) -> bool:
        return False

    def sources(self) -> tuple[Outside, ...]:
        return (Outside(self.place, self.reference, self.reference.named.store),)

    def learned(self, scaled: Callable[[int | None], int | None]) -> dict[str, Any]:
        config = super().learned(scaled)
        for key in ("artifact", "store"):  # which one it is stands among the sources, by its digest
            config[str(self.place[0])].pop(key, None)
        return config

    def title(self) -> str:
        return f"import · artifact {self.reference.artifact}"


class FromArtifactModel(FromArtifact):
    """What stages have in common that bring a model, whatever it has to be."""

    known_by = "model: {source: artifact}"

    model: ArtifactModel
    """The artifact."""

    @classmethod
    def is_meant(cls, get: Callable[[str], Any]) -> bool:
        role = cls.makes if "role" in cls.model_fields else None
        return super().is_meant(get) and source_of(get("model")) == "artifact" and get("role") == role

    @property
    def reference(self) -> ArtifactRef:
        return self.model


class ImportArtifact(FromArtifactModel):
    """Bring a language model that another run made, by its artifact."""

    tag: ClassVar[str] = "import-artifact"
    makes = "policy"


class ImportArtifactReward(FromArtifactModel):
    """Bring a reward model that another run made, by its artifact."""

    tag: ClassVar[str] = "import-artifact-reward"
    makes = "reward"

    role: Literal["reward"]
    """`reward`: what a stage of method reward made, or an import with that role."""


class ImportArtifactEmbedder(FromArtifactModel):
    """Bring a model that makes vectors of texts from another run, by its artifact."""

    tag: ClassVar[str] = "import-artifact-embedder"
    makes = "embedder"

    role: Literal["embedder"]
    """`embedder`: what an import with that role made; or a language model, of which what stands below its head is
    read."""


class ImportRows(FromArtifact):
    """Bring row sets that another run made, by their artifact: the same rows with the same ids."""

    tag: ClassVar[str] = "import-rows"
    makes = "rows"
    known_by = "rows"

    rows: RunRows
    """The artifact and its row sets."""

    @classmethod
    def is_meant(cls, get: Callable[[str], Any]) -> bool:
        return super().is_meant(get) and get("rows") is not None

    @property
    def reference(self) -> ArtifactRef:
        return self.rows

    @property
    def place(self) -> Place:
        return ("rows",)

    def splits(self) -> tuple[str, ...]:
        return self.rows.splits

    def findings(self) -> Iterator[Finding]:
        if len(set(self.rows.splits)) < len(self.rows.splits):
            yield Finding(("rows", "splits"), "names a row set twice", list(self.rows.splits), "each once")
