"""What `probe` has found of a run's stages: shown by `plan`, and held against what `run` and `submit` would start."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from alignment.cli.show import memory, prose, say
from alignment.config import Profile, Run, as_train
from alignment.config.cards import GIB, load_card
from alignment.config.sharding import zero_stage
from alignment.errors import ConfigError

if TYPE_CHECKING:
    from alignment.artifacts import Artifact, Store
    from alignment.planner import StagePlan
    from alignment.planner.probed import Probed


def say_probed(run: Run, profile: Profile | None = None) -> None:
    """What probes measured of these very stages; with a cluster's profile of the stages as its pods make them."""
    stores, unseen = _stores(run, profile)
    for name, seen in _found(run if profile is None else profile.applied(run), stores):
        end = f", and {seen.refuted}" if seen.refuted else ""
        say(f"{name}: probed on {seen.device}: {memory(seen.peak)} measured, {memory(seen.planned)} planned, with "
            f"{seen.rows} rows of up to {seen.length} tokens{end}")
    if unseen:
        say(unseen)


def kept_probes(run: Run, profile: Profile | None = None) -> list[Probed]:
    """All that probes measured, of whatever stages, where they may lie for this run."""
    from alignment.planner.probed import read_all

    return [probed for store in _stores(run, profile)[0] for probed in read_all(store)]


def say_corrected(plans: Iterable[StagePlan]) -> None:
    """Which estimates start from a probe, with what it measured and what the formulas say."""
    for item in plans:
        if item.artifact is not None or item.memory is None or item.probed is None:
            continue
        seen, planned = item.probed, item.memory
        same = (seen.rows, seen.length) == (item.micro_batch, item.length)
        scaled = "" if same else f", here {item.micro_batch} of up to {item.length}, by which alone activations differ"
        prose(f"{item.name}: {memory(planned.total)} starts from a probe of {seen.stage} on {seen.device}: "
              f"{memory(seen.seen)} measured with {seen.rows} rows of up to {seen.length} tokens{scaled}; "
              f"{memory(planned.total - planned.probed)} by the formulas")


def refuted_here(run: Run, file: str, found: Mapping[str, Artifact | None], only: str | None) -> list[ConfigError]:
    """Stages left to make that a probe has tried on such a device, and that ran out of memory."""
    from alignment.config.hardware import device_here, processor

    left = [stage.name for stage in run.stages if as_train(stage) is not None and found.get(stage.name) is None
            and only in (None, stage.name)]
    if not left or zero_stage(run.compute.sharding):  # a probe shares nothing out
        return []
    device = processor(device_here(run.compute))
    return [_refusal(name, seen, file) for name, seen in _found(run, _stores(run, None)[0])
            if name in left and seen.refuted is not None and seen.device == device]


def refuted_there(
    run: Run, profile: Profile, *, contacts: bool = True, only: str | None = None
) -> tuple[list[ConfigError], list[str]]:
    """(refusals, what else is to be said) of a run for a profile's pods: of this machine's store, where `probe` writes,
    and of the profile's storage.

    Args:
        contacts: whether that storage may be looked at.
    """
    stores, unseen = _stores(run, profile, contacts=contacts)
    executed = profile.applied(run)
    card = None if executed.compute.gpu is None else load_card(executed.compute.gpu)
    refusals, said = [], [unseen] if unseen else []
    for name, seen in _found(executed, stores):
        if only not in (None, name):
            continue
        more = card is not None and seen.peak > card.memory
        if seen.refuted is None and not more:
            continue
        alike = card is not None and (seen.device.replace(" ", "-") in card.products or (
            seen.memory is not None and seen.memory >= card.memory))
        if seen.refuted is not None and alike and not zero_stage(executed.compute.sharding):
            refusals.append(_refusal(name, seen, f"profile {profile.name}"))
            continue
        what = seen.refuted or f"{memory(seen.peak)} measured, more than {executed.compute.gpu} has"
        said.append(f"! a probe of {name} on {seen.device}: {what}; not refused, as " + (
            "the profile shares the model out, and a probe does not" if zero_stage(executed.compute.sharding) else
            "the profile names no GPU to compare" if card is None else f"the profile's GPU is {executed.compute.gpu}"))
    return refusals, said


def _refusal(name: str, seen: Probed, where: str) -> ConfigError:
    return ConfigError(f"a probe of {name} on {seen.device} ran out of memory", where=where,
                       found=f"{seen.refuted}; {seen.peak / GIB:.1f} GiB seen, {seen.planned / GIB:.1f} planned",
                       expected="a stage that fits", hint="change it, or probe it again")


def _stores(run: Run, profile: Profile | None, *, contacts: bool = True) -> tuple[list[Store], str]:
    """Where probes of a run may lie, and a sentence where one of these was not looked at. With a cluster's profile this
    machine's folder counts, where `probe` writes, and its storage."""
    from alignment.artifacts import Store

    if profile is None or profile.cluster is None:
        return [Store(run.store)], ""
    url = profile.cluster.storage.url
    here = [] if "://" in run.store else [Store(run.store)]
    if "://" in url and contacts:
        from alignment.cluster.storage.truth import reachable

        if reachable(url):
            return [*here, Store(url)], ""
    looked = f"; of this machine's store {run.store} they were" if here else ""
    return here, f"probes in {url} were not looked at, as it is not read from here{looked}"


def _found(run: Run, stores: list[Store]) -> Iterator[tuple[str, Probed]]:
    """Train stages that were probed, of the last store that knows of them. Keys are made, and so data is read, only
    where there are probes."""
    from alignment.pipeline.keys import keys
    from alignment.planner.probed import read

    stores = [store for store in stores if store.fs.exists(f"{store.root}/probes")]
    known = keys(run) if stores else {}
    for stage in run.stages:
        seen = [one for store in stores if (one := read(store, known[stage.name].key)) is not None]
        if seen:
            yield stage.name, seen[-1]
