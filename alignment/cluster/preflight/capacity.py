"""Whether the pods of a stage fit a cluster's nodes and a namespace's quota. Pure arithmetic over plain dicts.

Counts what the scheduler counts: requests against allocatable, node selectors, taints. Not affinities between pods,
host ports or volumes' zones.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from kubernetes.utils.quantity import parse_quantity

from alignment.cluster.status.trouble import Object

_CLOSING = ("node.kubernetes.io/unschedulable", "node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
"""Taints that say of a node what `closed` says."""
Amounts = dict[str, float]
"""Resource name -> amount: cores, bytes, or a count."""


@dataclass(frozen=True)
class Ask:
    """Pods of one kind: how many, what each asks for, and which nodes it accepts."""

    name: str
    count: int
    asks: Amounts
    selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: Sequence[Mapping[str, str]] = ()


@dataclass(frozen=True)
class Room:
    """A node: what it has in all, what is free now, and why it takes no new pods (`closed`)."""

    name: str
    labels: Mapping[str, str]
    taints: Sequence[Mapping[str, str]]
    allocatable: Amounts
    free: Amounts
    closed: str = ""


def amount(quantity: object) -> float:
    """A Kubernetes quantity as a number. Raises ValueError when it is none."""
    return float(parse_quantity(quantity))


def asked_by(spec: Object) -> Amounts:
    """What the scheduler counts for a pod: the larger of its containers together and its largest init container.

    Args:
        spec: a pod's spec.
    """
    together: dict[str, float] = defaultdict(float)
    for container in spec.get("containers", []):
        for name, value in ((container.get("resources") or {}).get("requests") or {}).items():
            together[name] += amount(value)
    for container in spec.get("initContainers", []):
        for name, value in ((container.get("resources") or {}).get("requests") or {}).items():
            together[name] = max(together[name], amount(value))
    for name, value in (spec.get("overhead") or {}).items():
        together[name] += amount(value)
    return dict(together)


def ask_of(name: str, template: Object, count: int) -> Ask:
    """The Ask of a pod template."""
    spec = template["spec"]
    return Ask(name, count, asked_by(spec), spec.get("nodeSelector") or {}, spec.get("tolerations") or ())


def rooms(nodes: Iterable[Object], pods: Iterable[Object]) -> list[Room]:
    """The nodes, with what their running pods leave free."""
    used: dict[str, dict[str, float]] = {}
    for pod in pods:
        node = pod.get("spec", {}).get("nodeName")
        if node and pod.get("status", {}).get("phase") not in ("Succeeded", "Failed"):
            taken = used.setdefault(node, defaultdict(float))
            for name, value in {**asked_by(pod["spec"]), "pods": 1.0}.items():
                taken[name] += value
    made = []
    for node in nodes:
        ready = any(item["type"] == "Ready" and item["status"] == "True"
                    for item in node.get("status", {}).get("conditions", []))
        cordoned = node.get("spec", {}).get("unschedulable")
        has = {name: amount(value) for name, value in node["status"].get("allocatable", {}).items()}
        taken = used.get(node["metadata"]["name"], {})
        made.append(Room(node["metadata"]["name"], node["metadata"].get("labels") or {},
                         node.get("spec", {}).get("taints") or (), has,
                         {name: value - taken.get(name, 0) for name, value in has.items()},
                         closed="" if ready and not cordoned else "cordoned" if ready else "not ready"))
    return made


def accepts(room: Room, ask: Ask) -> bool:
    """Whether the node is open and its labels and taints let such a pod in, room or not."""
    return not room.closed and _suits(room, ask)


def _suits(room: Room, ask: Ask) -> bool:
    if any(room.labels.get(name) != value for name, value in ask.selector.items()):
        return False
    return all(any(_tolerates(entry, taint) for entry in ask.tolerations)
               for taint in room.taints if taint.get("effect") in ("NoSchedule", "NoExecute")
               and not str(taint.get("key")).startswith(_CLOSING))


def lacks(asks: Amounts, has: Amounts) -> dict[str, tuple[float, float]]:
    """Resource -> (asked, there), of those that are not enough."""
    return {name: (value, has.get(name, 0.0)) for name, value in asks.items() if value > has.get(name, 0.0) + 1e-9}


def never_fits(ask: Ask, where: Sequence[Room]) -> str | None:
    """Why no node could hold one such pod, even if it were empty; None where one can."""
    open_to = [room for room in where if accepts(room, ask)]
    closed = [f"{room.name} is {room.closed}" for room in where if room.closed and _suits(room, ask)]
    if not open_to and closed:
        return f"no node takes new pods now that could take it: {', '.join(closed)}"
    if not open_to:
        wanted = ", ".join(f"{name}={value}" for name, value in ask.selector.items())
        tainted = sorted({str(taint.get("key")) for room in where for taint in room.taints})
        return (f"no node has the labels {wanted}" if wanted else "no node takes it") + (
            f"; taints: {', '.join(tainted)}" if tainted else "")
    short = [lacks(ask.asks, room.allocatable) for room in open_to]
    if not all(short):
        return None
    nearest = min(short, key=len)
    return "; ".join(
        f"a pod asks for {pretty(name, asked)} {name}, and the most that any node has is "
        f"{pretty(name, max(room.allocatable.get(name, 0.0) for room in open_to))}"
        for name, (asked, _) in nearest.items())


def unplaced(asks: Sequence[Ask], where: Sequence[Room], *, empty: bool) -> list[str]:
    """Names of pods that find no place when all are placed together, largest first (first fit, so it may err).

    Args:
        empty: as if nothing else ran.
    """
    left = {room.name: dict(room.allocatable if empty else room.free) for room in where}
    pods = [ask for ask in asks for _ in range(ask.count)]
    # Scarce resources first: a pod with GPUs has the fewest nodes to choose from.
    pods.sort(key=lambda ask: (sum(value for name, value in ask.asks.items() if "/" in name),
                               ask.asks.get("memory", 0.0)), reverse=True)
    missed = []
    for pod in pods:
        home = next((room for room in where if accepts(room, pod) and not lacks(
            {**pod.asks, "pods": 1}, {"pods": 1, **left[room.name]})), None)
        if home is None:
            missed.append(pod.name)
            continue
        for name, value in {**pod.asks, "pods": 1}.items():
            left[home.name][name] = left[home.name].get(name, 1 if name == "pods" else 0) - value
    return missed


def over_quota(asks: Sequence[Ask], quota: Object) -> dict[str, tuple[float, float]]:
    """Resource -> (needed by these pods together, left in the quota), of those that do not fit.

    Args:
        quota: a ResourceQuota; what it says of limits is held against requests, which are the same here.
    """
    needs: dict[str, float] = defaultdict(float)
    for ask in asks:
        for name, value in ask.asks.items():
            for key in (f"requests.{name}", f"limits.{name}", *([name] if name in ("cpu", "memory") else [])):
                needs[key] += value * ask.count
        needs["pods"] += ask.count
        needs["count/pods"] += ask.count
    status = quota.get("status", {})
    hard, used = status.get("hard") or quota.get("spec", {}).get("hard") or {}, status.get("used") or {}
    left = {name: amount(value) - amount(used.get(name, "0")) for name, value in hard.items()}
    return {name: (needs[name], there) for name, there in left.items() if needs.get(name, 0.0) > there + 1e-9}


def pretty(resource: str, value: float) -> str:
    """An amount for people: 1.5 GiB of what is counted in bytes, else a plain number."""
    if "memory" in resource or "storage" in resource:
        return f"{value / 2**30:.3g} GiB"
    return f"{value:.4g}"


def _tolerates(entry: Mapping[str, str], taint: Mapping[str, str]) -> bool:
    if entry.get("effect") and entry["effect"] != taint.get("effect"):
        return False
    if entry.get("key") and entry["key"] != taint.get("key"):
        return False
    return entry.get("operator") == "Exists" or bool(
        entry.get("key") and (entry.get("value") or "") == (taint.get("value") or ""))
