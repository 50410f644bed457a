"""What the user may do in the namespace, held against what each target needs. Part of `kubealign preflight`."""

from __future__ import annotations

from collections.abc import Iterator

from alignment.cluster.client.client import Client
from alignment.cluster.preflight.finding import Finding, fail, ok, warn

_ALL = ("get", "list", "watch", "create", "patch", "delete")
_ALWAYS = (
    ("configmaps", "", ("get", "list", "create", "patch", "delete")),
    ("pods", "", ("list",)), ("pods/log", "", ("get",)),
    ("events", "", ("list",)), ("jobs", "batch", ("get", "watch", "create", "patch", "delete")),
)
_BY_TARGET = {
    "rayjob": (("rayjobs", "ray.io", _ALL),),
    "run": (("alignmentruns", "kubealign.dev", _ALL), ("rayjobs", "ray.io", ("get", "list", "watch"))),
    "job": (("pods/portforward", "", ("create",)), ("secrets", "", ("get",))),
}
_WANTED = {"kubernetes": ("rayjob",), "rayjob": ("rayjob",), "run": ("run",), "job": ("job",)}
_USEFUL = {"kubernetes": ("run", "job")}


def permissions(client: Client, target: str) -> Iterator[Finding]:
    """Whether all verbs are allowed that the target needs, and those that others would."""
    needed, useful = permissions_for(target)
    for make, rules in ((fail, needed), (warn, useful)):
        refused = [f"{verb} {resource}{f'.{group}' if group else ''}" for verb, resource, group in rules
                   if not client.may(verb, resource, group)]
        if refused:
            yield make("permissions", f"this user may not {', '.join(refused)} in namespace {client.namespace}",
                       "ask an administrator for a Role with these verbs")
        elif make is fail:
            yield ok("permissions", f"all {len(rules)} that are needed")


def permissions_for(target: str) -> tuple[list[tuple[str, str, str]], list[tuple[str, str, str]]]:
    """(verb, resource, group) that a target needs, and those that are merely useful."""
    def spread(targets: tuple[str, ...]) -> list[tuple[str, str, str]]:
        rules = [rule for name in targets for rule in _BY_TARGET[name]]
        return [(verb, resource, group) for resource, group, verbs in rules for verb in verbs]

    always = [(verb, resource, group) for resource, group, verbs in _ALWAYS for verb in verbs]
    needed = list(dict.fromkeys([*always, *spread(_WANTED[target])]))
    return needed, [rule for rule in dict.fromkeys(spread(_USEFUL.get(target, ()))) if rule not in needed]
