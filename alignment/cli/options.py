"""Arguments that several sub-commands share, and how a run and its profile are loaded from them."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from alignment.config import Profile, Run, load_profile, load_run
from alignment.config.engines import refused_options
from alignment.errors import ConfigError
from alignment.progress import console

RunFile = Annotated[str, typer.Argument(metavar="RUN.yaml", help="The run file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a value: sft.epochs=2, compute.workers=2, params.x=y, "
                                                    "cluster.worker.memory=4Gi (of the profile)."),
]
ProfileName = Annotated[
    str | None,
    typer.Option("--profile", metavar="NAME|PATH", help="Where it is computed and stored: a file, or a name in "
                                                        "configs/profiles. Default: as the run file says."),
]
KnownProfile = Annotated[
    str | None,
    typer.Option("--profile", metavar="NAME|PATH", envvar="KUBEALIGN_PROFILE",
                 help="The profile that the run was made with: a file, or a name in configs/profiles. Default: none, "
                      "that is the run file's own store."),
]
ClusterProfile = Annotated[
    str,
    typer.Option("--profile", metavar="NAME|PATH", envvar="KUBEALIGN_PROFILE",
                 help="Profile with a cluster: a file, or a name in configs/profiles."),
]
Here = Annotated[
    bool,
    typer.Option("--here", help="With a cluster's profile: on this machine and in the run file's store, as `run` and "
                                "`probe` always are."),
]
Namespace = Annotated[
    str | None, typer.Option("--namespace", "-n", help="Kubernetes namespace. Default: the kubeconfig's.")
]
Context = Annotated[str | None, typer.Option("--context", help="Context of the kubeconfig. Default: its current one.")]
VllmOptions = Annotated[
    list[str] | None,
    typer.Option("--vllm", metavar="KEY=VALUE", help="Of vLLM's options on memory and speed: tensor_parallel_size=2, "
                                                     "max_num_seqs=512."),
]
StageName = Annotated[str | None, typer.Option("--stage", help="This stage alone.")]

_OF_PROFILE = ("compute", "cluster")
"""Top-level keys that a profile replaces, so that an override of them is meant for it."""


def vllm_options(given: list[str] | None) -> dict[str, Any] | None:
    """vLLM's options by name. Raises ConfigError for one that is not handed on."""
    made = {key: yaml.safe_load(value) for key, _, value in (text.partition("=") for text in given or ())}
    if wrong := list(refused_options(made)):
        raise ConfigError("not an option of vLLM that is handed on", where="--vllm", found="; ".join(wrong))
    return made or None


def load(
    file: str, overrides: Iterable[str] | None, profile: str | None, *, resolve: bool = True, here: bool = False
) -> tuple[Run, Profile | None]:
    """The run as its file has it, and the profile; overrides go to the one that has the last word.

    Args:
        resolve: what is left to `auto` is chosen for the profile's hardware, or this machine's.
        here: a cluster's profile is taken for this machine, and what that leaves unused is said on stderr.

    Raises:
        ConfigErrors: findings in either file.
        ConfigError: an override that would have no effect; `auto` where nothing can be chosen.
    """
    run, loaded = _loaded(file, list(overrides or ()), profile, here)
    if not resolve:
        return run, loaded
    from alignment.planner.auto import resolved

    return resolved(run, loaded)


def _loaded(file: str, given: list[str], profile: str | None, here: bool) -> tuple[Run, Profile | None]:
    if profile is None:
        return load_run(file, given), None
    of_profile = [text for text in given if text.partition("=")[0].strip().split(".")[0] in _OF_PROFILE]
    loaded = load_profile(profile, of_profile)
    run = load_run(file, [text for text in given if text not in of_profile])
    if here and loaded.cluster is not None:
        loaded = _of_this_machine(run, loaded, of_profile)
    stores = [text for text in given if text.partition("=")[0].strip() == "store"]
    if stores and (loaded.store is not None or loaded.cluster is not None):
        raise ConfigError("the profile says where artifacts lie, so this override has no effect",
                          where=f"--set {stores[-1]}", found=f"profile {loaded.name}",
                          hint="override cluster.storage.url, or change the profile")
    return run, loaded


def _of_this_machine(run: Run, profile: Profile, overrides: list[str]) -> Profile:
    """A cluster's profile without its cluster; says so."""
    assert profile.cluster is not None
    void = [text for text in overrides if text.partition("=")[0].strip().split(".")[0] == "cluster"]
    if void:
        raise ConfigError("nothing of the profile's cluster is used on this machine, so this override has no effect",
                          where=f"--set {void[-1]}", found=f"profile {profile.name}", expected="compute.KEY=VALUE")
    from alignment.planner.auto import unlike

    other = unlike(profile.compute)
    planned = "" if other is None else f"; planned is for {profile.compute.gpu}, and here is {other[0]}"
    console.print(f"profile {profile.name} on this machine: its compute is obeyed, its cluster (pods, storage "
                  f"{profile.cluster.storage.url}) is not used; artifacts are in {run.store}{planned}", markup=False)
    return profile.here()


def of_cluster(profile: str | None) -> bool:
    """Whether a profile has a cluster, so that `--here` is needed to find what `run` made with it."""
    return profile is not None and load_profile(profile).cluster is not None


def told_of_here(run: Run, verb: str, arguments: str) -> None:
    """Say on stderr that this machine's store has a run of this name too, before a cluster is asked about it."""
    if "://" not in run.store and Path(run.store, "runs", run.name).is_dir():
        console.print(f"! this is about the profile's cluster; this machine's store {run.store} has a run {run.name} "
                      f"too: kubealign {verb} {arguments} --here", markup=False)


def as_typed(
    file: str, profile: str | None, namespace: str | None, context: str | None, overrides: Iterable[str] | None, *,
    here: bool = False,
) -> str:
    """The arguments by which any sub-command finds the same run in the same place, as a shell takes them."""
    given = [("--profile", profile), ("-n", namespace), ("--context", context),
             *(("--set", text) for text in overrides or ())]
    words = [file, *(word for name, value in given if value for word in (name, value))]
    return shlex.join([*words, *(["--here"] if here else [])])
