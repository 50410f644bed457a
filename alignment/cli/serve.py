"""`serve`: finished models behind OpenAI's protocol, once they have proved that they are what was measured."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from alignment.cli.options import KnownProfile, VllmOptions, vllm_options
from alignment.config import Compute, Profile, Run, as_train, load_profile, load_run
from alignment.config.hardware import native_here
from alignment.errors import ConfigError
from alignment.interrupt import leaves
from alignment.serving.hosts import on_loopback

if TYPE_CHECKING:
    from alignment.artifacts import Artifact
    from alignment.serving.service import Model

KEY_FROM = "KUBEALIGN_API_KEY"
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
    max_loras: Annotated[int, typer.Option(min=1, help="Adapters in memory at once; others are loaded when they are "
                                                       "asked.")] = 8,
    max_model_len: Annotated[int | None, typer.Option(min=2, help="Tokens of a conversation and its answer, where the "
                                                                  "model takes more.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of an answer whose request does not say.")] = 1024,
    max_batch: Annotated[int, typer.Option(min=1, help="Answers at once by the transformers engine.")] = 16,
    max_in_flight: Annotated[int, typer.Option(min=1, help="Requests at once; more get 429.")] = 256,
    max_body: Annotated[int, typer.Option(min=1024, help="Bytes of a request.")] = 1 << 20,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds of a request, to its last token.")] = 600.0,
) -> None:
    """Serve finished models by OpenAI's protocol, each once it has proved to be what was measured."""
    found = _found(models, stage, store, None if profile is None else load_profile(profile))
    key, options = _key(host, api_key_from, no_api_key), vllm_options(vllm)
    _installed()
    _check_votes(votes)
    # Before libraries are loaded, which read these once: threads that wait by spinning make a shared machine crawl.
    for name, value in {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false",
                        "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}.items():
        os.environ.setdefault(name, value)
    from alignment.serving import run
    from alignment.serving.service import Limits, Service

    listener = run.listening(host, port)
    leaves("nothing is served any more")
    compute = Compute(device=device, engine=engine, vllm=options)
    held = [_model(name, artifact, unproved) for name, artifact in found.items()]
    compute = compute.model_copy(update={"dtype": _dtype(dtype, held, compute)})
    _recorded(held, compute, unproved, pooling)
    limits = Limits(in_flight=max_in_flight, body=max_body, seconds=timeout, tokens=max_tokens, longest=max_model_len,
                    loaded=max_loras, rows=max_batch)
    run.serve(Service(held, compute, limits, key=key, votes=votes, pooling=pooling), listener, host)


# --- what is to be served ------------------------------------------------------------------------------------


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
    given = _NAMED.fullmatch(text) if not Path(text).exists() else None
    name, what = (given["name"], given["what"]) if given else (None, text)
    if what.endswith((".yaml", ".yml")):
        names = stages or list(_measured(load_run(what)))
        if name is not None and len(names) > 1:
            raise ConfigError("one name for several models", where="MODEL", found=text,
                              expected=f"NAME={what}:STAGE, the stage one of {', '.join(names)}")
        yield from ((name or one, f"{what}:{one}") for one in names)
        return
    head, colon, last = what.rpartition(":")
    of_run = bool(colon and head) and "://" not in what and not Path(what).exists()
    yield name or (last if of_run else None), what


def _measured(run: Run) -> dict[str, None]:
    """The models of a run that are served where none is named: those that its last evaluation measures, with their
    reward model; else those that it trains."""
    tables = [stage for stage in run.stages if stage.makes == "table"]
    if tables:
        names = [ref.stage for ref in tables[-1].model_refs()
                 if ref.role in ("policy", "reward") and run.stage(ref.stage).endpoint is None]
    else:
        names = [stage.name for stage in run.stages if as_train(stage) is not None]
    if not names:
        raise ConfigError("the run makes no model", where="MODEL", found=run.name,
                          expected="a run with a train stage, or RUN.yaml:STAGE")
    return dict.fromkeys(names)


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


def _model(name: str, artifact: Artifact, unproved: bool) -> Model:
    from alignment.serving import records
    from alignment.serving.service import Model

    return Model(name, artifact, None if unproved else records.find(artifact))


def _recorded(held: list[Model], compute: Compute, unproved: bool, pooling: Literal["cls", "mean"] | None) -> None:
    """Make records of models that no evaluation measured."""
    from alignment.serving import records

    for model in held:
        if model.record is None and not unproved:
            model.record = records.make(model.artifact, compute, pooling)


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
    if given is not None and (len(given) < 8 or not given.isascii() or not given.isprintable() or " " in given):
        raise ConfigError("the API key cannot be sent, or is too short", where=variable or KEY_FROM,
                          expected="8 or more printable ASCII letters without blanks")
    return given


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


def _dtype(asked: str, held: list[Model], compute: Compute) -> Literal["float32", "bfloat16"]:
    """What the models compute in: as asked, or as the recorded answers were computed, or what this hardware has."""
    from alignment.inference.proof_rows import ProofRow

    if asked in ("float32", "bfloat16"):
        return "float32" if asked == "float32" else "bfloat16"
    rows = [row for model in held if model.record is not None for row in model.record.rows]
    said = [str(row.made_by["dtype"]) if isinstance(row, ProofRow) else row.dtype for row in rows]
    if said:
        return "float32" if said[0] == "float32" else "bfloat16"
    return "bfloat16" if native_here(compute) == "gpu" else "float32"
