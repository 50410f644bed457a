"""What a stage says of itself: the facts that every room reads instead of asking which class it has.

A stage class holds what a user may write and what follows from that alone; code that needs a library or the store lies
in its room's table, under the class (`row_of`). Reads no files, imports no torch.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self, TypeVar

from alignment.config.aims import Aim
from alignment.config.stages.fields import Dtype, Name, Place, Strict
from alignment.config.stages.strategies import Adapter

if TYPE_CHECKING:
    from alignment.config.stages.endpoint import EndpointModel
    from alignment.config.stages.sampling import Sampling

Role = Literal["policy", "reward", "embedder"]
"""What a model has to be; where an embedder is asked for, a language model serves too."""


def serving_as(role: str) -> tuple[str, ...]:
    """What a stage may make whose model is asked for by this role."""
    return ("embedder", "policy") if role == "embedder" else (role,)


class ModelRef(NamedTuple):
    """A model that a stage reads: where its config says so, the stage that makes it, and what it has to be.

    Attributes:
        asked: whether it is asked alone, so that an endpoint, which has no weights here, serves as well.
        drawn: how its answers are drawn, with the place in the config, where the stage's `samplings` do not say.
    """

    place: Place
    stage: str
    role: Role
    asked: bool = False
    drawn: tuple[tuple[Place, Sampling], ...] = ()


class RowsPlace(NamedTuple):
    """A row set that a stage reads: where its config says so, and STAGE/SPLIT."""

    place: Place
    ref: str

    @property
    def stage(self) -> str:
        return self.ref.partition("/")[0]

    @property
    def split(self) -> str:
        return self.ref.partition("/")[2]


class Finding(NamedTuple):
    """Something wrong in a config, with the place that it is about."""

    place: Place
    problem: str
    found: object
    expected: str

    def below(self, *place: str | int) -> Finding:
        """The same, seen from a mapping that holds this one at `place`."""
        return self._replace(place=(*place, *self.place))


class Findings(ValueError):
    """Several findings as one error, for pydantic's validators."""

    def __init__(self, findings: list[Finding]) -> None:
        super().__init__("; ".join(finding.problem for finding in findings))
        self.findings = findings


class Outside(NamedTuple):
    """Something that a stage reads from outside the store. Its content is part of the stage's digest.

    Attributes:
        source: what the config says of it; rooms have tables by its class.
        path: of a file or folder, or a URL; None where it is found otherwise (a hub, an installed package).
        travels: whether a bundle takes it along to a cluster.
    """

    place: Place
    source: object
    path: str | None = None
    travels: bool = False


class MostTokens(NamedTuple):
    """The most tokens that a stage gives a model at once: the key to lower, the number, and how the config says it.

    Attributes:
        beside: tokens of it that other keys ask for.
        said: whether the config says that key; a default gives way to what the model can take.
    """

    place: Place
    tokens: int
    text: str
    beside: int = 0
    said: bool = True


class Stage(Strict):
    """One step of a run: it reads finished artifacts and writes one."""

    tag: ClassVar[str]
    """The stage kind or method by one name: import-model, sft, sample, ..."""
    makes: ClassVar[Literal["rows", "policy", "reward", "embedder", "table", "files", "endpoint"]]
    known_by: ClassVar[str | None] = None
    """What tells it from other classes of its `kind`, where a key of its own does not."""
    body: ClassVar[str]
    """module:function that makes it, `(StageContext) -> Outcome`; imported when something is made."""
    script: ClassVar[str]
    """Its file in ray_jobs/, without .py."""
    on_workers: ClassVar[bool] = False
    """Whether `compute.workers` counts; else it runs in one process."""
    revision: ClassVar[int] = 1
    """Raised when what the kind makes changes, so that an artifact of a faulty version is made again."""
    opens_all: ClassVar[bool] = False
    """Whether all of its models are in memory at once, and not one after the other."""
    not_learned: ClassVar[frozenset[str]] = frozenset({"name"})
    """Keys that change nothing in what the stage makes."""
    brings_data: ClassVar[bool] = False
    """Whether it reads rows from files or the hub, which a model card names as data."""
    brings_artifact: ClassVar[bool] = False
    """Whether it brings what another run made, so that what that is shows in the store alone."""
    says_names: ClassVar[bool] = False
    """Whether what it makes calls its inputs by the names of their stages, so that another name is another artifact."""
    engine: ClassVar[str] = "transformers"
    """The library that computes with its models, where it has any."""
    bfloat16_on: ClassVar[frozenset[Literal["gpu", "cpu"]]] = frozenset()
    """Hardware on which `dtype: auto` is bfloat16, where it has that of its own; empty: computes with no model."""

    kind: str
    """What the stage does; its other keys follow from that."""
    name: Name
    """The stage's own name, which later stages and aims refer to."""

    @classmethod
    def is_meant(cls, get: Callable[[str], Any]) -> bool:
        """Whether a mapping, read by key through `get`, is a stage of this class."""
        return bool(get("kind") == cls.model_fields["kind"].default)

    @classmethod
    def revisions(cls) -> dict[str, int]:
        """Raised revisions of this class and of those that it is made from, by tag."""
        own = {vars(base)["tag"]: vars(base).get("revision", 1) for base in cls.__mro__ if "tag" in vars(base)}
        return {tag: revision for tag, revision in own.items() if revision != 1}

    def mended(self) -> dict[str, int]:
        """Raised revisions of what only some stages of a class made wrong, by a name of its own."""
        return {}

    @property
    def arithmetic(self) -> Dtype | None:
        """The dtype that it computes with a model in, where that is settled."""
        return getattr(self, "dtype", None) if self.bfloat16_on else None

    @property
    def asks_likelihoods(self) -> bool:
        """Whether its models are asked how likely given texts are, beside answers."""
        return False

    @property
    def draws(self) -> bool:
        """Whether the run's seed has a part in what the stage makes; if not, every seed shares one artifact."""
        return True

    def model_refs(self) -> Iterator[ModelRef]:
        """Every model that the stage reads."""
        return iter(())

    def row_refs(self) -> Iterator[RowsPlace]:
        """Every row set that the stage reads."""
        return iter(())

    def kept_apart(self) -> Iterator[RowsPlace]:
        """Those of `row_refs` that are read only to keep their texts out of what is made: nothing learns from them."""
        return iter(())

    def quotes(self) -> Iterator[tuple[Place, str]]:
        """Evaluations whose numbers the stage repeats, with the place in the config: no model is made from them."""
        return iter(())

    def names(self) -> Iterator[Place]:
        """Every place of the config that names another stage, alone or before a split."""
        yield from (ref.place for ref in self.model_refs())
        yield from (ref.place for ref in self.row_refs())

    def inputs(self) -> tuple[str, ...]:
        """Names of the stages that this one reads, each once, in order."""
        names = [ref.stage for ref in self.model_refs()] + [ref.stage for ref in self.row_refs()]
        return tuple(dict.fromkeys(names + [name for _, name in self.quotes()]))

    def most_tokens(self) -> MostTokens | None:
        """How long its models' inputs may get; None for a stage that gives them none."""
        return None

    def splits(self) -> tuple[str, ...]:
        """Names of the row sets that the stage writes; none where it makes something else."""
        return ()

    @property
    def parted(self) -> bool:
        """Whether no text stands in two of its splits, since the stage divides rows so."""
        return False

    def held_out(self) -> Iterator[RowsPlace]:
        """Row sets that no stage before may have read, of those that made the models which this one reads."""
        return iter(())

    def sources(self) -> tuple[Outside, ...]:
        """What the stage reads from outside the store."""
        return ()

    def relocated(self, paths: Mapping[str, str]) -> Self:
        """The stage with the paths of its sources replaced; those that `paths` does not know stay."""
        return self

    def learned(self, scaled: Callable[[int | None], int | None]) -> dict[str, Any]:
        """What of the config decides what is made, as JSON. The content of `sources` counts beside it.

        Args:
            scaled: a `take` as the run's scale has it.
        """
        # Without the keys that are null: a later version's new, unused key must not make everything anew.
        config = self.model_dump(mode="json", exclude=set(self.not_learned), exclude_none=True)
        if config.get("take") is not None:
            config["take"] = scaled(config["take"])
        return config

    def findings(self) -> Iterator[Finding]:
        """What is wrong within the stage, beyond types and bounds."""
        return iter(())

    def defaulted(self) -> str | None:
        """A value that the file leaves out and that decides much, in words: said before anything is made."""
        return None

    @abstractmethod
    def title(self) -> str:
        """What the stage is, in a few words: `dpo · lora r 16`."""

    @property
    def adapter(self) -> Adapter | None:
        """The adapter that the stage's model carries on top of its base weights; None for full weights and no model."""
        return None

    @property
    def untaught(self) -> tuple[str, ...]:
        """Tokens of its model that nothing was learned of yet."""
        return ()

    @property
    def base(self) -> str | None:
        """The stage with the full weights, where this one brings an adapter that others made."""
        return None

    @property
    def stands_for(self) -> tuple[str, ...]:
        """Stages one of whose models this one's is, where which one shows only when they are made."""
        return ()

    def held_to(self) -> tuple[Aim, ...]:
        """What each of the rounds that it stands for is held to."""
        return ()

    @property
    def endpoint(self) -> EndpointModel | None:
        """The endpoint that the stage names as a model; None where it makes anything else."""
        return None

    @property
    def groups(self) -> tuple[str, ...]:
        """Names that an override of a profile may call the stage by, the closest first."""
        return (self.name, self.kind)


Row = TypeVar("Row")


def row_of(table: Mapping[type[Stage], Row], kind: type[Stage]) -> Row:
    """A room's row for a stage class: its own, or that of the nearest class which it is made from."""
    for base in kind.__mro__:
        if base in table:
            return table[base]
    raise KeyError(f"the table has no row for stage kind {kind.tag}")


def plural(count: int, word: str) -> str:
    """`1 file`, `2 files`."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"
