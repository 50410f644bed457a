"""`serve`: finished models behind OpenAI's protocol, once they have proved that they are what was measured."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from alignment.cli.options import KnownProfile, VllmOptions, vllm_options
from alignment.config import Compute, Profile, Run, load_profile, load_run
from alignment.config.serve import Limits, Serve, served
from alignment.errors import ConfigError
from alignment.interrupt import leaves
from alignment.serving.hosts import KEY_FROM, checked_key, on_loopback

if TYPE_CHECKING:
    from alignment.artifacts import Artifact

_NAMED = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*)=(?P<what>.+)")


def serve(
    models: Annotated[list[str], typer.Argument(
        metavar="MODEL...", help="RUN.yaml (its models, or those of --stage), RUN.yaml:STAGE, RUN:STAGE, an artifact's "
                                 "key or folder, a model's folder; NAME=MODEL gives it another name.")],
    stage: Annotated[list[str] | None, typer.Option(help="Of a run file: this stage's model. May be repeated.")] = None,
    profile: KnownProfile = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0: all of this machine.")] = "127.0.0.1",
    engine: Annotated[Literal["auto", "vllm", "transformers"], typer.Option(
        help="auto: vLLM where it is installed and there is a GPU.")] = "auto",
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where the models compute.")] = "auto",
    dtype: Annotated[Literal["auto", "float32", "bfloat16"], typer.Option(
        help="auto: as the recorded answers were computed.")] = "auto",
    api_key_from: Annotated[str | None, typer.Option(
        metavar="VARIABLE", help=f"Environment variable with the API key. Default: {KEY_FROM}, if it is set; needed "
                                 "outside of this machine.")] = None,
    no_api_key: Annotated[bool, typer.Option(help="Anybody who reaches the server may use it.")] = False,
    pooling: Annotated[Literal["cls", "mean"] | None, typer.Option(
        help="Of an embedder: which states stand for a text. Default: as the stages of its store have it.")] = None,
    unproved: Annotated[bool, typer.Option(help="Serve without proof.")] = False,
    votes: Annotated[str | None, typer.Option(metavar="FILE", help="Keep votes of the page: lines of JSON, to be "
                                                                   "imported as preferences.")] = None,
    store: Annotated[str | None, typer.Option(metavar="URL", help="Where keys and runs are looked up. Default: the run "
                                                                  "file's own, else runs.")] = None,
    vllm: VllmOptions = None,
    max_loras: Annotated[int | None, typer.Option(
        min=1, max=1024, help="Adapters in memory at once; others are loaded when they are asked. Default: 8.")] = None,
    max_model_len: Annotated[int | None, typer.Option(min=2, help="Tokens of a conversation and its answer, where the "
                                                                  "model takes more.")] = None,
    max_tokens: Annotated[int | None, typer.Option(
        min=1, help="Of an answer whose request does not say. Default: 1024.")] = None,
    max_batch: Annotated[int | None, typer.Option(
        min=1, max=1024, help="Answers at once by the transformers engine. Default: 16.")] = None,
    max_in_flight: Annotated[int | None, typer.Option(
        min=1, max=100_000, help="Requests at once; more get 429. Default: 256.")] = None,
    max_body: Annotated[int | None, typer.Option(
        min=1024, max=1 << 30, help="Bytes of a request. Default: 1 MiB.")] = None,
    timeout: Annotated[float | None, typer.Option(
        min=0.1, max=86_400, help="Seconds of a request, to its last token. Default: 600.")] = None,
) -> None:
    """Serve finished models by OpenAI's protocol, each once it has proved to be what was measured.

    A run file's own `serve` says which models, and the limits; an option that is given goes before it.
    """
    said = _section(models)
    found = _found(models, stage, store, None if profile is None else load_profile(profile))
    key, options = _key(host, api_key_from, no_api_key), vllm_options(vllm)
    _installed()
    _check_votes(votes)
    from alignment.serving import run
    from alignment.serving.opened import opened

    listener = run.listening(host, port)
    leaves("nothing is served any more")
    compute = Compute(device=device, engine=engine, vllm=options, dtype=dtype)
    given = {"in_flight": max_in_flight, "body": max_body, "seconds": timeout, "tokens": max_tokens,
             "longest": max_model_len, "loaded": max_loras, "rows": max_batch}
    limits = Limits(**{**said.limits.model_dump(), **{name: one for name, one in given.items() if one is not None}})
    run.serve(opened(found, compute, limits, unproved=unproved or said.unproved, key=key, votes=votes,
                     pooling=pooling or said.pooling), listener, host)


# --- what is to be served ------------------------------------------------------------------------------------


def _section(models: list[str]) -> Serve:
    """What the run files that are named say of serving. Raises ConfigError where two say different things."""
    from alignment.cli.show import say

    files = [what for _, what in map(_split, models) if what.endswith((".yaml", ".yml"))]
    said = {file: own for file in files if (own := load_run(file).serve) is not None}
    for file, own in said.items():
        if own.replicas > 1 or own.max_replicas is not None:
            say(f"{file}: this is one server; serve.replicas and max_replicas are for a cluster")
    first = next(iter(said.values()), Serve())
    for file, own in said.items():
        if (own.limits, own.unproved) != (first.limits, first.unproved):
            raise ConfigError("run files that are served together have different limits, and a server has one set",
                              where=f"{file}, serve.limits, serve.unproved", found=", ".join(said),
                              hint="one of the runs as RUN.yaml:STAGE is served with the limits of the others")
    return first


def _found(
    models: list[str], stages: list[str] | None, store: str | None, profile: Profile | None
) -> dict[str, Artifact]:
    """Name -> artifact, in the order in which they were named."""
    asked = [one for text in models for one in _each(text, stages)]
    if stages and not any(text.endswith((".yaml", ".yml")) for text in models):
        raise ConfigError("--stage is of a run file, and none is named", where="--stage", found=", ".join(stages))
    found: dict[str, Artifact] = {}
    for name, what in asked:
        artifact = _artifact(what, store, profile)
        called = name or artifact.key
        if called in found:
            raise ConfigError("two models have one name", where="MODEL", found=called,
                              hint="NAME=MODEL gives one of them another")
        found[called] = artifact
    return found


def _each(text: str, stages: list[str] | None) -> Iterator[tuple[str | None, str]]:
    """(name, what) of each model that an argument names."""
    name, what = _split(text)
    if what.endswith((".yaml", ".yml")):
        own = {one: one for one in stages} if stages else _served(load_run(what))
        if name is not None and len(own) > 1:
            raise ConfigError("one name for several models", where="MODEL", found=text,
                              expected=f"NAME={what}:STAGE, the stage one of {', '.join(own.values())}")
        yield from ((name or called, f"{what}:{one}") for called, one in own.items())
        return
    head, colon, last = what.rpartition(":")
    of_run = bool(colon and head) and "://" not in what and not Path(what).exists()
    yield name or (last if of_run else None), what


def _split(text: str) -> tuple[str | None, str]:
    """NAME=MODEL."""
    given = _NAMED.fullmatch(text) if not Path(text).exists() else None
    return (given["name"], given["what"]) if given else (None, text)


def _served(run: Run) -> dict[str, str]:
    """Name -> stage. Raises ConfigError where a run makes no model."""
    if not (own := served(run)):
        raise ConfigError("the run makes no model", where="MODEL", found=run.name,
                          expected="a run with a train stage, or RUN.yaml:STAGE")
    return own


def _artifact(what: str, store: str | None, profile: Profile | None) -> Artifact:
    from alignment.artifacts import Artifact
    from alignment.cli.without_file import importing
    from alignment.pipeline.named import STORE, named

    found = named(what, store, makes=("policy", "reward", "embedder"), profile=profile)
    if isinstance(found, Artifact):
        return found
    if isinstance(found, Path):
        from alignment import pipeline

        run, name = importing(found, store or STORE)
        made = pipeline.execute(run, only=name, typed=f"serve {what}").artifacts[name]
        assert made is not None
        return made
    raise ConfigError("an endpoint is served already, by somebody else", where="MODEL", found=what,
                      expected="a model with weights")


# --- how -----------------------------------------------------------------------------------------------------


def _key(host: str, variable: str | None, without: bool) -> str | None:
    """The API key. Raises ConfigError where one is needed and there is none."""
    from alignment.cli.show import say

    given = os.environ.get(variable or KEY_FROM) or None
    if without and variable is not None:
        raise ConfigError("a key is named, and none is to be asked for", where="--no-api-key, --api-key-from")
    if variable is not None and given is None:
        raise ConfigError("the environment variable with the API key is not set", where="--api-key-from",
                          found=variable)
    if without:
        say("! --no-api-key: anybody who reaches this server may use it")
        return None
    if given is None and not on_loopback(host):
        raise ConfigError("a server that other machines reach needs an API key", where="--host", found=host,
                          expected=f"a key in {KEY_FROM}, or --api-key-from VARIABLE",
                          hint="--no-api-key serves everybody who reaches it")
    return None if given is None else checked_key(given, variable or KEY_FROM)


def _installed() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("torch", "transformers", "starlette", "uvicorn", "httptools", "prometheus_client")
               if find_spec(name) is None]
    if missing:
        raise ConfigError("what serves is not installed", where="kubealign serve", found=f"no {', '.join(missing)}",
                          hint="pip install 'kubealign[train,serve]'")


def _check_votes(file: str | None) -> None:
    if file is None:
        return
    try:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        with open(file, "ab"):
            pass
    except OSError as error:
        raise ConfigError(f"votes cannot be kept there: {error.strerror}", where="--votes", found=file) from error
