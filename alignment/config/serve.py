"""`serve`: the section of a run that says which of its models are served once it has succeeded, and to how many.

It is no stage, since it never finishes; nothing of it is in a digest. `kubealign serve RUN.yaml` obeys it on a machine,
the operator on a cluster, where the profile's `cluster.serve` says what pods there are. Opens no models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from alignment.config.compute import Compute
from alignment.config.stages import AnyStage
from alignment.config.stages.base import Finding
from alignment.config.stages.fields import FORMS, Name, StoreUrl, Strict
from alignment.config.stages.train import as_train

if TYPE_CHECKING:
    from alignment.config.run import Run

SERVED = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
FORMS[SERVED] = "a name: letters, digits and ._-, a letter or digit first, 63 at most"
ServedName = Annotated[str, Field(pattern=SERVED)]
MEASURED = ("policy", "reward")
ROLES = (*MEASURED, "embedder")
"""What a stage makes that can be served; the first two also where no model is named."""


def _named(value: object) -> object:
    """[sft, dpo] is {sft: sft, dpo: dpo}."""
    if isinstance(value, list | tuple) and all(isinstance(name, str) for name in value):
        if doubled := next((name for name in value if list(value).count(name) > 1), None):
            raise ValueError(f"{doubled} is named twice")
        return {name: name for name in value}
    return value


class Limits(Strict):
    """What one server takes on, wherever it runs."""

    in_flight: Annotated[int, Field(ge=1, le=100_000)] = 256
    """Requests that are worked on at once; more are told to come again (429)."""
    body: Annotated[int, Field(ge=1024, le=1 << 30)] = 1 << 20
    """Bytes of a request."""
    seconds: Annotated[float, Field(gt=0, le=86_400)] = 600.0
    """Of a request, to its last token."""
    tokens: Annotated[int, Field(ge=1)] = 1024
    """Of an answer whose request does not say."""
    longest: Annotated[int, Field(ge=2)] | None = None
    """Tokens of a conversation and its answer, where the model takes more."""
    loaded: Annotated[int, Field(ge=1, le=1024)] = 8
    """Adapters in memory at once; others are loaded when they are asked."""
    rows: Annotated[int, Field(ge=1, le=1024)] = 16
    """Answers at once by the transformers engine; vLLM has `max_num_seqs`."""


class Serve(Strict):
    """Which models are served, and by how many replicas; each answers nobody before it has proved its models."""

    models: Annotated[dict[ServedName, Name], BeforeValidator(_named), Field(min_length=1, max_length=64)] | None = None
    """Stages whose models are served: `[sft, dpo]` under their own names, or NAME: STAGE. Default: those that the last
    evaluation measures, with their reward model; without one, those that are trained."""
    replicas: Annotated[int, Field(ge=1, le=256)] = 1
    """Servers, each in a pod of its own with all the models; on a machine there is one."""
    max_replicas: Annotated[int, Field(ge=2, le=256)] | None = None
    """Given: there are `replicas` at least and so many at most, by what is asked of them."""
    target: Annotated[int, Field(ge=1)] = 16
    """Requests in flight for each replica, where their number follows what is asked."""
    limits: Limits = Limits()
    """Of each replica."""
    pooling: Literal["cls", "mean"] | None = None
    """What of an embedder's last hidden layer stands for a text: `cls`, its first token, or `mean`, over all tokens;
    its vectors then have length 1. Default: as the newest stage of the store that reads vectors of it does."""
    unproved: bool = False
    """Serve models without holding them to what was recorded of them."""

    @model_validator(mode="after")
    def _more(self) -> Self:
        if self.max_replicas is not None and self.max_replicas <= self.replicas:
            raise ValueError(f"max_replicas: {self.max_replicas} is no more than replicas: {self.replicas}; leave it "
                             "out where their number stays")
        return self


class Serving(Strict):
    """All that a replica has to know: which artifacts, under which names, and how."""

    store: StoreUrl
    models: dict[ServedName, str] = Field(min_length=1)
    """Name -> key of the artifact."""
    compute: Compute
    serve: Serve
    """Without `models`, which are resolved above."""


def served(run: Run) -> dict[str, str]:
    """Name -> stage of the models of a run that are served, also where it has no `serve`; none where it makes none."""
    if run.serve is not None and run.serve.models is not None:
        return dict(run.serve.models)
    tables = [stage for stage in run.stages if stage.makes == "table"]
    if tables:
        names = [ref.stage for ref in tables[-1].model_refs()
                 if ref.role in MEASURED and run.stage(ref.stage).endpoint is None]
    else:
        names = [stage.name for stage in run.stages if as_train(stage) is not None]
    return {name: name for name in names}


def findings(run: Run) -> Iterator[Finding]:
    """What is wrong between `serve` and the run's stages."""
    if run.serve is None:
        return
    stages: Mapping[str, AnyStage] = {stage.name: stage for stage in run.stages}
    fitting = [name for name, stage in stages.items() if stage.makes in ROLES and stage.endpoint is None]
    expected = "one of " + ", ".join(fitting) if fitting else "a run that makes a model"
    for called, name in (run.serve.models or {}).items():
        place = ("serve", "models", called)
        if name not in stages:
            yield Finding(place, "names an unknown stage", name, expected)
        elif stages[name].endpoint is not None:
            yield Finding(place, "is an endpoint, which somebody else serves already", name, expected)
        elif name not in fitting:
            yield Finding(place, "is a stage that makes no model which can be served", name, expected)
    if run.serve.models is None and not served(run):
        yield Finding(("serve",), "the run makes no model that could be served", run.name, "a train stage, or `models`")
