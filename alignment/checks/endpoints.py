"""Stages that ask an endpoint: what it cannot give, keys of the stage that nobody could honour, and what asking needs.

An endpoint counts its own tokens, has no log-probabilities of given texts, and takes no parameter that it does not
know. Asks none.
"""

from __future__ import annotations

from collections.abc import Iterator

from alignment.checks.seen import Sight, Wrong
from alignment.config import (
    AnyStage,
    EndpointModel,
    Evaluate,
    EvaluatePairs,
    Generate,
    ImportEndpoint,
    Infer,
    Run,
    Sample,
)
from alignment.config.secrets import key_from
from alignment.config.stages.fields import Place
from alignment.config.stages.sampling import Sampling
from alignment.errors import ConfigError
from alignment.inference.endpoint.client import package


def named(run: Run, stage: ImportEndpoint, sight: Sight) -> Wrong:
    """Nothing is wrong with a name; what its answers cost is said."""
    limits = stage.model.limits
    if limits.price is None:
        sight.note(stage.name, "no price, so costs are not counted")
    elif limits.budget is None:
        sight.note(stage.name, "no budget")
    yield from ()


def askable_there(run: Run, stage: Sample | Infer | Evaluate | EvaluatePairs | Generate) -> Wrong:
    """What the endpoints among a stage's models cannot do."""
    asked = dict(_endpoints(run, stage))
    if not asked:
        return
    if run.compute.workers > 1:
        yield (), ConfigError("an endpoint is asked by one process, so that its limits and budget hold",
                              found=f"compute.workers: {run.compute.workers}", expected="0 or 1 for this stage",
                              hint="a profile may give each stage its own: overrides")
    models = [ref for ref in stage.model_refs() if ref.role == "policy" and not ref.drawn]
    if stage.max_prompt_tokens is not None and models and all(ref.stage in asked for ref in models):
        yield ("max_prompt_tokens",), ConfigError(
            "an endpoint counts its own tokens, so nobody here can hold prompts to this", found=stage.max_prompt_tokens,
            expected="to be left out: the endpoint refuses what it cannot take, and such rows are counted")
    for name, model in asked.items():
        drawn = {given for ref in stage.model_refs() if ref.stage == name for given in ref.drawn or stage.samplings()}
        for place, sampling in sorted(drawn, key=lambda given: given[0]):
            yield from _unknown(name, model, place, sampling)


def measurable_there(run: Run, stage: Evaluate) -> Wrong:
    """Perplexity, which no endpoint can tell."""
    if stage.asks_likelihoods and (asked := [name for name, _ in _endpoints(run, stage) if name in stage.models]):
        place, without = ("perplexity", "perplexity: false") if stage.metrics is None else (
            "metrics", "metrics without perplexity")
        yield (place,), ConfigError("an endpoint gives no log-probabilities, so it has no perplexity",
                                    found=f"perplexity, with {', '.join(asked)}", expected=without)


def reachable_here(run: Run, stage: AnyStage) -> Wrong:
    """What a stage that asks an endpoint on this machine needs of it: the package, and the key in the environment."""
    for name, model in _endpoints(run, stage):
        try:
            package(f"model {name}")
            if model.key_env is not None:
                key_from(model.key_env, f"model {name}")
        except ConfigError as error:
            yield (), error


def _endpoints(run: Run, stage: AnyStage) -> Iterator[tuple[str, EndpointModel]]:
    for name in dict.fromkeys(ref.stage for ref in stage.model_refs()):
        model = run.stage(name).endpoint
        if model is not None:
            yield name, model


def _unknown(name: str, model: EndpointModel, place: Place, sampling: Sampling) -> Wrong:
    for key, idle in (("top_k", sampling.top_k in (0, (0, 0))), ("repetition_penalty",
                                                                 sampling.repetition_penalty == 1.0)):
        if not idle and key not in model.takes:
            found = getattr(sampling, key)
            yield (*place, key), ConfigError(
                f"endpoint {name} is not known to take {key}", found=list(found) if isinstance(found, tuple) else found,
                expected=f"sampling without it, or {key} in `takes` of {name}'s model, where its server knows it "
                         "(vLLM does, OpenAI does not)")
