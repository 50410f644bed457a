"""A sample stage: prompts in fixed batches -> answers -> scores -> best-of-N rows and preference pairs.

With `compute.workers` 0 the batches are made in this process, else by a pool of Ray Data actors. Either way each
batch becomes one part file, so a killed stage goes on where it was; parts are joined by row id. Launched by the
pipeline or by ray_jobs/sample.py. Does not know how text is generated or scored: `sampling` does.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alignment.artifacts import RowCounts, digest_of
from alignment.config import Sample
from alignment.context import Outcome, StageContext
from alignment.distributed.local import WorkersLost, ensure_ray, users_error, workers_lost
from alignment.errors import DataError, StageError
from alignment.inference.draws import choose
from alignment.inference.requests import batches
from alignment.progress import track
from alignment.records import Record, write_records
from alignment.rewards import resolve
from alignment.sampling.batch import Part, SampleBatch, bad_row
from alignment.sampling.measures import histogram, measures
from alignment.sampling.prompts import as_prompt
from alignment.sampling.select import best_of_n, pairs_max_min, pairs_newest_previous

MAX_RESTARTS = 5
"""Times that a worker which died is started again, and that its batch is tried: a batch that kills its process each
time must end the stage."""

Batches = dict[str, list[Record]]
"""Part name -> its prompts."""


def sample_stage(context: StageContext) -> Outcome:
    """Body of the stages of kind sample; fills `rows/` and bad.jsonl in `context.out`.

    Raises:
        DataError: no prompt is left.
        StageError: nothing could be answered or scored.
        WorkersLost: workers died too often.
    """
    stage = context.stage_as(Sample)
    if stage.score.function is not None:
        resolve(stage.score.function)  # a wrong name shows now, not after the models are loaded
    prompts, bad, read = _prompts(context, stage)
    parts = _make(context, _plan(context, stage, prompts))
    answers = [answer for part in parts for answer in part.answers]
    bad += [row for part in parts for row in part.bad]
    if not answers:
        raise StageError("no prompt was answered", where=f"stage {stage.name}", found=_reasons(bad))
    answered = {answer.id for answer in answers}
    asked = {record.id: record for record in prompts if record.id in answered}
    best = best_of_n(asked, answers, min_score=stage.min_score)
    select = pairs_max_min if stage.pairs == "max-min" else pairs_newest_previous
    pairs = select(asked, answers, min_margin=stage.min_margin, min_score=stage.min_score)
    rows = context.out / "rows"
    written = {
        "best": write_records(rows / "best.jsonl", best.records),
        "pairs": write_records(rows / "pairs.jsonl", pairs.records),
        "samples": write_records(rows / "samples.jsonl", (answer.to_record(asked[answer.id]) for answer in answers)),
    }
    (context.out / "bad.jsonl").write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in bad), encoding="utf-8", newline="\n"
    )
    return Outcome(
        RowCounts(read=read, written=written, dropped=dict(_reasons(bad) + best.dropped + pairs.dropped)),
        {**measures(answers), "rows_best": float(written["best"]), "rows_pairs": float(written["pairs"])},
        {"histogram": histogram(answers), "timing": _timing(parts)},
    )


def _prompts(context: StageContext, stage: Sample) -> tuple[list[Record], list[dict[str, Any]], int]:
    """The prompts to answer with unique ids, rows that have none, and how many rows were read."""
    records = [record for ref in stage.prompts for record in context.rows(ref)]
    usable: dict[str, Record] = {}
    bad = []
    for record in records:
        asked = as_prompt(record)
        if asked is None:
            bad.append(bad_row(record, "no prompt that ends with a question"))
        elif record.id in usable:
            bad.append(bad_row(record, "id of an earlier prompt of this stage"))
        else:
            usable[record.id] = asked
    chosen = choose(list(usable.values()), context.run.scaled(stage.take), context.run.seed)
    if not chosen:
        raise DataError("no row has a prompt", where=f"stage {stage.name}", found=dict(_reasons(bad)))
    return chosen, bad, len(records)


def _plan(context: StageContext, stage: Sample, prompts: list[Record]) -> Batches:
    """Fixed batches, named by what they hold, in the order in which they are made."""
    return {digest_of([context.digest, [record.id for record in batch]])[:16]: batch
            for batch in batches(prompts, stage.batch_size)}


def _make(context: StageContext, planned: Batches) -> list[Part]:
    """All parts in the order of the plan; those that an earlier attempt finished are read."""
    context.store.pull_work(context.key, "parts/")
    folder = context.work / "parts"
    parts = {name: part for name in planned if (part := _read(folder / name)) is not None}
    missing = {name: records for name, records in planned.items() if name not in parts}
    run = _with_ray if context.run.compute.workers else _here
    with track("sample", sum(map(len, planned.values())), "prompts") as tracker:
        tracker.advance(sum(len(planned[name]) for name in parts))
        for name, part in run(context, missing):
            _save(folder / name, part)
            context.store.push_work(context.key, f"parts/{name}")
            parts[name] = part
            context.event("batch", part=name, answers=len(part.answers), bad=len(part.bad), seconds=part.seconds)
            tracker.advance(len(planned[name]))
    return [parts[name] for name in planned]


def _here(context: StageContext, missing: Batches) -> Iterator[tuple[str, Part]]:
    maker = SampleBatch(context)
    for name, records in missing.items():
        yield name, maker.make(records)


def _with_ray(context: StageContext, missing: Batches) -> Iterator[tuple[str, Part]]:
    """Parts as they come, in any order; a worker that dies is replaced and its batch made again."""
    if not missing:
        return
    compute = context.run.compute
    ensure_ray(compute)
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.WARNING)
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = [{"name": name, "records": [record.to_json() for record in records]} for name, records in missing.items()]
    made = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Worker,
        fn_constructor_kwargs={"context": context},
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(compute.workers, len(rows))),
        num_cpus=compute.cpus_per_worker,
        num_gpus=compute.gpus_per_worker or None,
        ray_remote_args_fn=lambda: {"max_restarts": MAX_RESTARTS, "max_task_retries": MAX_RESTARTS},
    )
    try:
        for row in made.iter_rows():
            yield row["name"], Part.from_json(row["part"])
    except Exception as error:
        ours = users_error(error)
        if ours is not None:
            raise ours from error
        kind = StageError if workers_lost(error) is None else WorkersLost
        raise kind(f"a worker failed: {error}", where=f"stage {context.stage.name}",
                   hint="finished batches are kept; run it again to go on with the others") from error


class _Worker:
    """A Ray Data actor: one row in is one batch, one row out is its part."""

    def __init__(self, context: StageContext) -> None:
        self.maker = SampleBatch(context)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        part = self.maker.make([Record.from_json(line) for line in batch["records"][0]])
        return {"name": [str(batch["name"][0])], "part": [part.to_json()]}


def _save(folder: Path, part: Part) -> None:
    """Write a part so that it is there whole or not at all."""
    temporary = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    with (temporary / "part.json").open("w", encoding="utf-8") as file:
        file.write(part.to_json())
        file.flush()
        os.fsync(file.fileno())
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def _read(folder: Path) -> Part | None:
    """A finished part; None where there is none, or a disk lost what it held."""
    try:
        return Part.from_json((folder / "part.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


def _reasons(bad: list[dict[str, Any]]) -> Counter[str]:
    return Counter(row["reason"] for row in bad)


def _timing(parts: list[Part]) -> dict[str, float]:
    """Speed over all parts, those of earlier attempts included; workers run at once, so it is per worker."""
    tokens, seconds = sum(a.tokens for part in parts for a in part.answers), sum(part.seconds for part in parts)
    return {"tokens": tokens, "seconds": round(seconds, 3), "tokens_per_second": round(tokens / max(seconds, 1e-9), 1)}
