"""How a model is named on a command line or in a request, and what that is: an artifact, a folder or an endpoint.

    sft-86ea8fe7c8a6            an artifact of the store, by its key; or its folder, or its URL
    RUN.yaml:STAGE              what that stage of a run file makes; without :STAGE the last stage that makes a model
    RUN:STAGE                   the same of a run that the store has a record of
    path/to/folder              a model or an adapter that another program wrote
    https://host/v1#MODEL       an OpenAI-compatible endpoint, and the model's name there

Finds and refuses; loads no weights and makes nothing. A folder is brought into the store by the run that
cli/without_file.py makes for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from alignment.artifacts import Artifact, Store
from alignment.config import KINDS, AnyStage, EndpointModel, Profile, Run, load_run, parse_run
from alignment.config.messages import close_to
from alignment.config.stages.artifact import KEY
from alignment.config.stages.endpoint import ImportEndpoint
from alignment.config.stages.fields import on_this_machine
from alignment.data.artifact_source import STAGES
from alignment.errors import ArtifactError, ConfigError, DataError, KubeAlignError, ModelError
from alignment.pipeline.keys import keys

STORE = "runs"
"""Where artifacts and runs are looked up if nothing else is said: the default of a run file's `store`."""
FORMS = ("an artifact's key (sft-86ea8fe7c8a6), RUN.yaml:STAGE, RUN:STAGE, a model's folder, "
         "or an endpoint (https://host/v1#MODEL)")
Makes = Literal["policy", "reward", "embedder"]
_MADE = {kind.tag: kind.makes for kind in KINDS}
_SHOWN = 8
"""Artifacts that an error lists."""


def named(
    text: str, store: str | None = None, *, makes: Iterable[Makes] = ("policy",), profile: Profile | None = None,
    key_env: str | None = None, where: str = "MODEL",
) -> Artifact | Path | EndpointModel:
    """What `text` names.

    Args:
        store: where keys and runs are looked up, and a run file's stages instead of in its own store. Default: `runs`,
            or what a run file says.
        makes: what the model may be; a folder and an endpoint are not asked.
        profile: that the run file was executed with.
        key_env: environment variable with an endpoint's key.
        where: of errors.

    Returns:
        A finished artifact; a folder with config.json or adapter_config.json; or an endpoint.

    Raises:
        ConfigError: nothing is named so, or it is no model; says what there is.
        ModelError: a folder without a model.
        ArtifactError: the store cannot be read, or the artifact's manifest is damaged.
    """
    if text.startswith(("http://", "https://")):
        return _endpoint(text, key_env, where)
    found: Artifact | EndpointModel
    if "://" in text:
        found = _at(text, where)
    elif KEY.fullmatch(text) and (known := Store(store or STORE).find(text)) is not None:
        found = known
    elif (folder := on_this_machine(text)).is_dir():
        below = _within_store(folder)
        if below is None:
            return _model_folder(folder, where)
        found = below
    else:
        found = _of_run(text, store, profile, tuple(makes), where)
    if isinstance(found, Artifact) and _made(found) == "endpoint":
        found = EndpointModel.model_validate(
            {**found.manifest.config["model"], "takes": tuple(found.manifest.config["model"]["takes"])})
    if isinstance(found, EndpointModel):
        return found if key_env is None else found.model_copy(update={"key_env": key_env})
    _check_makes(found, tuple(makes), where)
    return found


def models_in(store: Store, makes: Iterable[Makes] = ("policy",)) -> list[Artifact]:
    """Finished artifacts of a store that hold such a model, the newest first. One whose manifest is damaged is left
    out: whoever names it hears of it."""
    wanted = frozenset[str](makes)
    found = []
    for key in store.listed():
        if _MADE.get(key[:-13], "") not in wanted | {""}:
            continue
        try:
            artifact = store.find(key)
        except ArtifactError:
            continue
        if artifact is not None and _made(artifact) in wanted:
            found.append(artifact)
    return sorted(found, key=lambda artifact: artifact.manifest.finished, reverse=True)


def _made(artifact: Artifact) -> str:
    """What an artifact is, by the kind that made it; of a kind that this version does not know, by its files."""
    return _MADE.get(artifact.key[:-13]) or ("policy" if "model/kubealign.json" in artifact.manifest.files else "files")


def _check_makes(artifact: Artifact, makes: tuple[Makes, ...], where: str) -> None:
    if _made(artifact) not in makes:
        found = f"{artifact.key}, which is {_WORDS[_made(artifact)]}"
        raise ConfigError("is not such a model", where=where, found=found,
                          expected=" or ".join(_WORDS[one] for one in makes), hint=_there(artifact.store, makes))


_WORDS = {"policy": "a language model", "reward": "a reward model", "embedder": "an embedder", "rows": "rows",
          "table": "an evaluation", "files": "files", "endpoint": "an endpoint"}


# --- each form -----------------------------------------------------------------------------------------------


def _endpoint(text: str, key_env: str | None, where: str) -> EndpointModel:
    address, _, model = text.partition("#")
    if not model:
        raise ConfigError("an endpoint is named with the model that it shall answer by", where=where, found=text,
                          expected=f"{address}#MODEL, as {address.rstrip('/')}/models lists them")
    stage = ImportEndpoint.model_validate({"name": "endpoint", "model": {
        "source": "endpoint", "base_url": address, "model": model, "key_env": key_env}})
    for finding in stage.findings():
        raise ConfigError(finding.problem, where=where, found=finding.found, expected=finding.expected)
    return stage.model


def _at(url: str, where: str) -> Artifact:
    """By URL: STORE/artifacts/KEY."""
    store, _, key = url.rstrip("/").rpartition("/artifacts/")
    if not store or not KEY.fullmatch(key):
        raise ConfigError("no artifact has this URL", where=where, found=url, expected="STORE/artifacts/KEY")
    found = Store(store).find(key)
    if found is None:
        raise ConfigError("no such artifact in the store", where=where, found=url, hint=_there(Store(store)))
    return found


def _within_store(folder: Path) -> Artifact | None:
    """A folder of a store, or `model` within it, is the artifact: it knows the base that an adapter stands on. Others
    beside `model` (`last`, `nf4`, `fp8`, `adapter`) have other weights, and are folders like any."""
    folder = folder.resolve()
    one = folder.parent if folder.name == "model" else folder
    if one.parent.name == "artifacts" and KEY.fullmatch(one.name) and (one / "manifest.json").is_file():
        return Store(str(one.parent.parent)).find(one.name)
    return None


def _model_folder(folder: Path, where: str) -> Path:
    if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        files = sorted(one.name for one in folder.iterdir())[:12]
        raise ModelError("the folder holds no model", where=where, found=files,
                         expected=f"config.json or adapter_config.json in {folder.absolute()}")
    return folder


def _of_run(
    text: str, store: str | None, profile: Profile | None, makes: tuple[Makes, ...], where: str
) -> Artifact | EndpointModel:
    head, colon, name = text.rpartition(":")
    run_name, stage_name = (head, name) if colon else (text, None)
    made = None
    if run_name.endswith((".yaml", ".yml")):
        run = load_run(run_name)
        run = run if profile is None else profile.applied(run)
        run = run if store is None else run.model_copy(update={"store": store})
    else:
        run = _recorded(run_name, Store(store or STORE), text, makes, where)
        made = Store(run.store).read_run_file(run_name, STAGES)
    stage = _stage(run, stage_name, text, makes, where)
    key = None if made is None else json.loads(made).get(stage.name)
    return stage.endpoint or _finished(run, stage, key, f"kubealign run {run_name}", where)


def _recorded(name: str, store: Store, text: str, makes: tuple[Makes, ...], where: str) -> Run:
    known = store.runs()
    record = store.read_run_file(name, "run.yaml") if name in known else None
    if record is None:
        raise ConfigError("no model is named so", where=where, found=text, expected=FORMS,
                          hint=_there(store, makes) + (f"; runs there: {', '.join(known[:_SHOWN])}" if known else ""))
    return parse_run(record, store.url_of(f"runs/{name}/run.yaml")).model_copy(update={"store": store.url})


def _stage(run: Run, name: str | None, text: str, makes: tuple[Makes, ...], where: str) -> AnyStage:
    fitting = [stage for stage in run.stages if stage.makes in makes or stage.endpoint is not None]
    if not fitting:
        raise ConfigError("no stage of the run makes such a model", where=where, found=text,
                          expected=f"a run with a stage that makes {' or '.join(_WORDS[one] for one in makes)}")
    if name is None:
        return [stage for stage in fitting if stage.endpoint is None or stage is fitting[-1]][-1]
    stage = next((one for one in run.stages if one.name == name), None)
    if stage is None or stage not in fitting:
        problem = "the run has no stage of this name" if stage is None else f"the stage makes {_WORDS[stage.makes]}"
        raise ConfigError(problem, where=where, found=text, expected=close_to(name, [one.name for one in fitting]))
    return stage


def _finished(run: Run, stage: AnyStage, key: str | None, command: str, where: str) -> Artifact:
    """Args: key: what the run noted of the stage, which needs none of its sources; else it is computed from them."""
    store = Store(run.store)
    try:
        key = key or keys(run)[stage.name].key
    except (DataError, ModelError) as error:
        raise ConfigError("what the stage was made from cannot be read any more, so its key is not known",
                          where=where, found=error.where, expected="the run's sources as they were",
                          hint=_there(store, called=stage.name)) from error
    found = store.find(key)
    if found is None:
        raise ConfigError("the stage is not finished", where=where, found=f"{stage.name}, {key}",
                          expected=f"an artifact at {store.url_of(f'artifacts/{key}')}",
                          hint=f"{command}; {_there(store, called=stage.name)}")
    return found


# --- what there is, and small things -------------------------------------------------------------------------


def _there(store: Store, makes: Iterable[Makes] = ("policy",), called: str | None = None) -> str:
    """The models of a store in a line: of stages called so, where there are any."""
    try:
        found = models_in(store, makes)
    except KubeAlignError as error:
        return f"{store.url} cannot be read: {error.problem}"
    same = [artifact for artifact in found if artifact.manifest.stage == called]
    shown = ", ".join(f"{one.key} ({one.manifest.stage})" for one in (same or found)[:_SHOWN])
    more = f" and {len(same or found) - _SHOWN} more" if len(same or found) > _SHOWN else ""
    return f"models in {store.url}: {shown or 'none'}{more}"
