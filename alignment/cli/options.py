"""Arguments that several sub-commands share, and how a run and its profile are loaded from them."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import Annotated

import typer

from alignment.config import Profile, Run, load_profile, load_run
from alignment.errors import ConfigError

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
Namespace = Annotated[
    str | None, typer.Option("--namespace", "-n", help="Kubernetes namespace. Default: the kubeconfig's.")
]
Context = Annotated[str | None, typer.Option("--context", help="Context of the kubeconfig. Default: its current one.")]
StageName = Annotated[str | None, typer.Option("--stage", help="This stage alone.")]

_OF_PROFILE = ("compute", "cluster")
"""Top-level keys that a profile replaces, so that an override of them is meant for it."""


def load(
    file: str, overrides: Iterable[str] | None, profile: str | None, *, resolve: bool = True
) -> tuple[Run, Profile | None]:
    """The run as its file has it, and the profile; overrides go to the one that has the last word.

    Args:
        resolve: what is left to `auto` is chosen for the profile's hardware, or this machine's.

    Raises:
        ConfigErrors: findings in either file.
        ConfigError: an override that the profile would make void; `auto` where nothing can be chosen.
    """
    run, loaded = _loaded(file, list(overrides or ()), profile)
    if not resolve:
        return run, loaded
    from alignment.planner.auto import resolved

    return resolved(run, loaded)


def _loaded(file: str, given: list[str], profile: str | None) -> tuple[Run, Profile | None]:
    if profile is None:
        return load_run(file, given), None
    of_profile = [text for text in given if text.partition("=")[0].strip().split(".")[0] in _OF_PROFILE]
    loaded = load_profile(profile, of_profile)
    run = load_run(file, [text for text in given if text not in of_profile])
    stores = [text for text in given if text.partition("=")[0].strip() == "store"]
    if stores and (loaded.store is not None or loaded.cluster is not None):
        raise ConfigError("the profile says where artifacts lie, so this override has no effect",
                          where=f"--set {stores[-1]}", found=f"profile {loaded.name}",
                          hint="override cluster.storage.url, or change the profile")
    return run, loaded


def as_typed(
    file: str, profile: str | None, namespace: str | None, context: str | None, overrides: Iterable[str] | None
) -> str:
    """The arguments by which any sub-command finds the same run in the same place, as a shell takes them."""
    given = [("--profile", profile), ("-n", namespace), ("--context", context),
             *(("--set", text) for text in overrides or ())]
    return shlex.join([file, *(word for name, value in given if value for word in (name, value))])
