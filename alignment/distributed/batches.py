"""Rows in -> part files -> rows out: fixed batches, made in this process or by a pool of Ray Data actors.

    plan -> parts of earlier attempts are found -> the others are made -> parts in the plan's order

A stage gives a maker: a class (or partial) that is called once per process with the context, and whose `make` turns
one batch of rows into one part. It knows no Ray and no files; this module knows no models and no rows. A batch is named
by what it holds, and finished parts are kept (parts.py), so a killed stage goes on where it was. Called by the bodies
of sample and evaluate.
"""

from __future__ import annotations

import logging
import pickle
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from functools import cached_property
from operator import attrgetter
from typing import Any, Protocol, TypeVar, runtime_checkable

from alignment.artifacts import digest_of
from alignment.config import Compute
from alignment.config.engines import wanted
from alignment.config.hardware import device_here
from alignment.context import StageContext
from alignment.distributed.local import WorkersLost, ensure_ray, workers_lost
from alignment.distributed.parts import Kept, P, Part, Parts
from alignment.distributed.room import wait_for_room
from alignment.errors import ArtifactError, KubeAlignError, StageError
from alignment.progress import console

MAX_RESTARTS = 5
"""Times that a worker which died is started again, and that its batch is tried: a batch that kills its process each
time must end the stage."""

TOGETHER = 8
"""Batches that a worker with vLLM gets at once."""

Item = TypeVar("Item")
Item_contra = TypeVar("Item_contra", contravariant=True)
P_co = TypeVar("P_co", bound=Part, covariant=True)


class Maker(Protocol[Item_contra, P_co]):
    """Makes parts in one process."""

    def make(self, items: Sequence[Item_contra]) -> P_co:
        """The part of one batch, a function of the items and the context alone. A row that fails is the maker's
        matter (count it, or raise); what it raises ends the stage."""

    def close(self) -> None:
        """Nothing more is to be made: give memory back. Not called where the process ends instead."""


@runtime_checkable
class Foresighted(Protocol[Item_contra]):
    """A maker whose engine works on several batches at once, so that it need not wait for each one's longest
    answer."""

    @property
    def ahead(self) -> bool:
        """Whether it would hear of another batch that is still to be made."""

    def begin(self, items: Sequence[Item_contra]) -> None:
        """Hear of a batch that will be made soon. What is wrong with its rows is told by `make`."""


Plan = dict[str, list[Item]]
"""Part name -> the items of its batch, in the order in which parts are made and given."""
Made = Generator[tuple[str, str, float], None, None]
"""(part name, its text, seconds), in any order."""


def plan(context: StageContext, batches: Iterable[list[Item]],
         holds: Callable[[Item], object] = attrgetter("id")) -> Plan[Item]:
    """Name batches by what they hold, so that the same work finds its parts again and other work does not.

    Args:
        holds: what tells items apart that are not told apart by the stage's digest, as JSON can hold it.
    """
    return {digest_of([context.digest, [holds(item) for item in batch]])[:16]: batch for batch in batches}


def make_parts(
    context: StageContext, planned: Plan[Item], maker: Callable[[StageContext], Maker[Item, P]], part: type[P], *,
    folder: str, label: str, unit: str, note: Callable[[P], str] | None = None, here: bool = False,
) -> Parts[P]:
    """Make what is missing of a plan, here or on `compute.workers` Ray workers, and give all of it.

    Args:
        maker: as the module says; with workers, it and the items travel there by pickle.
        part: reads what the maker makes.
        folder: of the parts in the stage's work; one for each plan of the stage.
        label, unit: of the progress: what is done, and to how many of what.
        note: gets every part, those of earlier attempts first, and gives what progress says beside.
        here: in this process, whatever `compute.workers` says.

    Raises:
        WorkersLost: workers died too often.
        KubeAlignError: what the maker raised. Finished parts are kept, whatever is raised.
    """
    kept = Kept(context, folder, part)
    found = kept.find(planned)
    missing = {name: items for name, items in planned.items() if name not in found}
    reused = sum(len(planned[name]) for name in found)
    on_workers = context.run.compute.workers and not here
    made = _on_workers(context, missing, maker) if on_workers else _here(context, missing, maker)
    with closing(made), context.track(label, sum(map(len, planned.values())), unit) as tracker:
        tracker.begin_at(reused)
        said = [note(one) for name in found if note is not None and (one := kept.read(name)) is not None]
        tracker.advance(0, said[-1] if said else "")
        if reused:
            console.print(f"  {label}: {reused} of {sum(map(len, planned.values()))} {unit} were made before")
        try:
            for name, text, seconds in made:
                kept.add(name, text)
                context.event("batch", of=folder, part=name, rows=len(planned[name]), seconds=round(seconds, 3))
                tracker.advance(len(planned[name]), note(part.from_json(text)) if note is not None else "")
        except BaseException:
            with suppress(ArtifactError):  # what went wrong first is what is told
                kept.push()
            raise
    kept.push()
    return Parts(planned, kept.read, reused)


def _here(context: StageContext, missing: Plan[Item], maker: Callable[[StageContext], Maker[Item, P]]) -> Made:
    if not missing:
        return
    mine = maker(context)
    try:
        yield from _in_turn(mine, list(missing.items()))
    finally:
        mine.close()


def _in_turn(mine: Maker[Item, Part], batches: Sequence[tuple[str, list[Item]]]) -> Made:
    """Make batches one after another; who has foresight hears of those to come."""
    told = 0
    for place, (name, items) in enumerate(batches):
        told = max(told, place)
        while isinstance(mine, Foresighted) and told < len(batches) and mine.ahead:
            mine.begin(batches[told][1])
            told += 1
        yield name, *_timed(mine, items)


def _on_workers(context: StageContext, missing: Plan[Item], maker: Callable[[StageContext], Maker[Item, P]]) -> Made:
    """A worker that dies is replaced and its batch made again."""
    if not missing:
        return
    compute = context.run.compute
    ensure_ray(compute)
    wait_for_room(compute, 1, f"stage {context.stage.name}")  # the others join as they find room
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.WARNING)
    ray.data.DataContext.get_current().enable_progress_bars = False
    batches, together = list(missing.items()), _together(compute, len(missing))
    rows = [{"batches": pickle.dumps(batches[start : start + together])} for start in range(0, len(batches), together)]
    made = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Worker,
        fn_constructor_kwargs={"context": context, "maker": maker},
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(compute.workers, len(rows))),
        num_cpus=compute.cpus_per_worker,
        num_gpus=compute.gpus_per_worker or None,
        max_restarts=MAX_RESTARTS,
        max_task_retries=MAX_RESTARTS,
    )
    try:
        for row in made.iter_rows():
            if row["error"]:
                raise pickle.loads(row["error"])
            yield row["name"], row["part"], row["seconds"]
    except KubeAlignError:
        raise
    except Exception as error:
        kind = StageError if workers_lost(error) is None else WorkersLost
        raise kind(f"a worker failed: {error}", where=f"stage {context.stage.name}",
                   hint="finished batches are kept; run it again to go on with the others") from error


def _together(compute: Compute, batches: int) -> int:
    """Batches that a worker gets at once: one, or so many that vLLM always has others to work on. They are made again
    together where the worker dies."""
    if wanted(compute, device_here(compute)) != "vllm":
        return 1
    return max(1, min(TOGETHER, batches // compute.workers))


class _Worker:
    """A Ray Data actor: one row in is one batch or several, each row out a batch's part, or the user's error.

    The error goes as a value, since Ray Data hands on what a worker raises as text alone.
    """

    def __init__(self, context: StageContext, maker: Callable[[StageContext], Maker[Any, Any]]) -> None:
        self.context, self.maker = context, maker

    @cached_property
    def mine(self) -> Maker[Any, Any]:
        """Made at the first batch: what an actor's constructor raises, Ray takes for the actor's death."""
        return self.maker(self.context)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        # Not as a generator, of which Ray gives an error another form than of a call.
        made: list[tuple[str, str, float, bytes]] = []
        try:
            for name, text, seconds in _in_turn(self.mine, pickle.loads(batch["batches"][0])):
                made.append((name, text, seconds, b""))
        except KubeAlignError as error:
            made.append(("", "", 0.0, pickle.dumps(error)))
        columns = zip(("name", "part", "seconds", "error"), zip(*made, strict=True), strict=True)
        return {key: list(values) for key, values in columns}


def _timed(maker: Maker[Item, Part], items: list[Item]) -> tuple[str, float]:
    began = time.monotonic()
    return maker.make(items).to_json(), time.monotonic() - began
