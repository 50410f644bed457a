"""What every generate stage does around its recipe: prompts read, requests answered, rows and refusals written.

A recipe makes requests (`Ask`), has them answered by `Asking.answered`, reads the answers, and hands its rows and all
that it refused to `finish`. Batches are made by batches.py, so that nothing is asked or paid twice. Reads no answer
itself.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from alignment.artifacts import RowCounts
from alignment.config import Generate
from alignment.config.prompts import read_prompt
from alignment.config.stages.hygiene import Hygiene
from alignment.context import Outcome, StageContext
from alignment.data.hygiene import Cleaner
from alignment.data.overlap import find_overlap
from alignment.data.text import prompt_of
from alignment.distributed.batches import Maker, make_parts, plan
from alignment.errors import DataError, StageError
from alignment.generation.asking import TOO_LONG, Ask, AskBatch, Part, Said
from alignment.generation.refused import Bad
from alignment.inference.generator import Generator, open_engine
from alignment.inference.requests import batches
from alignment.inference.usage import Tally, budgets, endpoint_facts, engine_facts
from alignment.records import Record, write_records
from alignment.records.importers.checks import check
from alignment.records.importers.rows import RowError

EXAMPLES = 3
"""Refused texts that an error, the manifest and the report show."""


@dataclass
class Took:
    """What the teacher's answers took, over all steps and attempts.

    Attributes:
        used: of each answer and failure of an endpoint.
        engines: who answered, of each batch.
    """

    tally: Tally
    tokens: int = 0
    seconds: float = 0.0
    answers: int = 0
    finished: int = 0
    used: list[dict[str, Any]] = field(default_factory=list)
    engines: list[dict[str, Any]] = field(default_factory=list)

    def add(self, part: Part) -> str:
        """Count one batch; returns what progress says beside."""
        tokens, used = sum(one.tokens for one in part.said), [one.usage for one in part.said if one.usage is not None]
        self.tokens, self.seconds = self.tokens + tokens, self.seconds + part.seconds
        self.answers += sum(one.refused is None for one in part.said)
        self.finished += sum(one.refused is None and one.finished for one in part.said)
        self.used += used
        self.engines += [part.engine] if part.engine else []
        return self.tally.add(tokens, part.seconds, used)


@dataclass(frozen=True)
class Asking:
    """The teacher, open for all steps of a stage, and what it took so far."""

    context: StageContext
    stage: Generate
    engine: Generator
    took: Took

    def answered(self, asks: Sequence[Ask], folder: str) -> dict[str, Said]:
        """Request id -> what was said; those of an earlier attempt are read, not asked.

        Args:
            folder: the step's name, one for each call: its parts lie there.

        Raises:
            EndpointStopped: the teacher is an endpoint that cannot be asked any further; what was paid is kept.
        """
        # An endpoint is asked from one process: a worker for each step would have limits and a count of what was spent
        # of its own. The engine is shared by all steps where the stage is made in one process.
        maker: Callable[[StageContext], Maker[Ask, Part]]
        run = self.context.run
        here = not run.compute.workers or run.stage(self.stage.teacher).endpoint is not None
        maker = (lambda own: AskBatch(own, self.engine)) if here else AskBatch
        planned = plan(self.context, batches(asks, self.stage.batch_size), lambda ask: [ask.id, ask.digest])
        parts = make_parts(self.context, planned, maker, Part, folder=folder, label=f"{self.stage.name}: {folder}",
                           unit="requests", note=self.took.add, here=here)
        return {one.id: one for part in parts for one in part.said}

    def round(self, asks: Sequence[Ask], folder: str, hint: str) -> dict[str, Said]:
        """As `answered`, of a round's first requests.

        Raises:
            DataError: none of their prompts fits, so that no later round's would; `hint` says what else makes room.
        """
        said = self.answered(asks, folder)
        if all(one.refused == TOO_LONG for one in said.values()):
            raise DataError("no prompt of a round fits", where=f"stage {self.stage.name}",
                            found=f"{len(asks)} prompts of over {self.stage.longest_prompt} tokens",
                            expected="room for them (max_prompt_tokens)", hint=hint)
        return said


@contextmanager
def teacher(context: StageContext, stage: Generate) -> Iterator[Asking]:
    """The stage's teacher, open.

    Raises:
        ModelError, ConfigError: it cannot be loaded.
    """
    with open_engine(context, stage.teacher) as engine:
        yield Asking(context, stage, engine, Took(Tally(budgets(context, [stage.teacher]))))


def prompts_of(stage: Generate) -> dict[str, str]:
    """Step -> the text of its prompt file.

    Raises:
        ConfigError: a file cannot be used.
    """
    return {prompt.step: read_prompt(prompt, f"stage {stage.name}, prompts.{prompt.step}")
            for prompt in stage.prompt_files()}


def teacher_digest(context: StageContext, stage: Generate) -> str:
    """What stands for the teacher in a row's origin."""
    return context.inputs[stage.teacher].manifest.digest


def apart(context: StageContext, stage: Generate, records: list[Record], bad: list[Bad]) -> list[Record]:
    """Rows without those that share text with a row kept for evaluation, asked in both directions, as the evaluation
    will ask, and without those that the stage's `hygiene` leaves out; they are added to `bad`."""
    held = [record for ref in stage.decontaminate for record in context.rows(ref)]
    left = records
    while held and left:
        found = {id_: (other, reason) for id_, (other, reason) in find_overlap(left, held).items()}
        found |= {own: (test, reason) for test, (own, reason) in find_overlap(held, left).items()}
        if not found:
            break
        for record in left:
            if record.id in found:
                other, reason = found[record.id]
                bad.append(Bad(record.id, "rows", "overlaps-held-out", prompt_of(record)[0]["content"],
                               {**record.meta["origin"], "held_out": other, "overlap": reason}))
        left = [record for record in left if record.id not in found]
    return left if stage.hygiene is None else _clean(context, stage, stage.hygiene, left, bad)


def _clean(
    context: StageContext, stage: Generate, hygiene: Hygiene, records: list[Record], bad: list[Bad]
) -> list[Record]:
    cleaner, kept = Cleaner(hygiene, f"stage {stage.name}"), []
    for record in records:
        try:
            check(made := cleaner(record))
            kept.append(made)
        except RowError as error:
            asked = prompt_of(record)[-1]["content"]
            bad.append(Bad(record.id, "rows", error.slug, asked, {**record.meta["origin"], "why": error.detail}))
    context.event("hygiene", kept=len(kept), of=len(records), **cleaner.found.to_json())
    return kept


def finish(
    context: StageContext, stage: Generate, records: Sequence[Record], bad: Sequence[Bad], took: Took, *,
    read: int, unfit: Mapping[str, int], metrics: Mapping[str, float], facts: Mapping[str, Any],
    used: Mapping[str, Sequence[dict[str, Any]]] = MappingProxyType({}),
) -> Outcome:
    """rows/train.jsonl and bad.jsonl in `context.out`, and what the manifest says of them.

    Args:
        read: rows that the stage read; unfit: why some of them cannot be used -> how many.
        metrics: the recipe's own; rows_train and finished_share are added.
        facts: the recipe's own, beside refusals, examples of them, time and what an endpoint took.
        used: what other models than the teacher took, by stage; the teacher's own where it has another part too.

    Raises:
        StageError: there is no row; bad.jsonl is then in the stage's work folder.
    """
    lines = (json.dumps(one.line(), ensure_ascii=False) + "\n" for one in bad)
    bad_file = context.work / "bad.jsonl"
    bad_file.write_text("".join(lines), encoding="utf-8", newline="\n")
    if not records:
        raise StageError("nothing that the teacher said could be kept", where=f"stage {stage.name}",
                         found=_shares(bad), expected="at least one row",
                         hint=f"for example {_shown(bad)}; all of it is in {bad_file}")
    written = {"train": write_records(context.out / "rows" / "train.jsonl", records)}
    shutil.move(bad_file, context.out / "bad.jsonl")
    reasons, examples = _by_step(bad), _examples(bad)
    context.event("refused", reasons=reasons, examples=examples)
    dropped = Counter(one.reason for one in bad) + Counter(unfit)
    timing = {"tokens": took.tokens, "seconds": round(took.seconds, 3),
              "tokens_per_second": round(took.tokens / max(took.seconds, 1e-9), 1)}
    return Outcome(
        RowCounts(read=read, written=written, dropped=dict(dropped)),
        {**metrics, "rows_train": float(len(records)),
         "finished_share": round(took.finished / max(1, took.answers), 4)},
        {**facts, "refused": reasons, "examples": examples, "timing": timing,
         **endpoint_facts(context, {stage.teacher: [*took.used, *used.get(stage.teacher, ())],
                                    **{name: own for name, own in used.items() if name != stage.teacher}}),
         **engine_facts({stage.teacher: took.engines})})


def _by_step(bad: Sequence[Bad]) -> dict[str, dict[str, int]]:
    """Step -> reason -> how many, the most frequent first."""
    steps = dict.fromkeys(one.step for one in bad)
    return {step: dict(Counter(one.reason for one in bad if one.step == step).most_common()) for step in steps}


def _shares(bad: Sequence[Bad]) -> str:
    counts = Counter(one.reason for one in bad)
    return ", ".join(f"{reason} {count / max(1, len(bad)):.0%} ({count})" for reason, count in counts.most_common())


def _examples(bad: Sequence[Bad]) -> list[dict[str, str]]:
    """Of the most frequent reasons one each, then more of the first."""
    ranked = [reason for reason, _ in Counter(one.reason for one in bad).most_common()]
    firsts = [next(one for one in bad if one.reason == reason) for reason in ranked[:EXAMPLES]]
    more = [one for one in bad if one not in firsts][: EXAMPLES - len(firsts)]
    return [{"id": one.id, "reason": one.reason, "text": (one.found or one.text)[:200]} for one in [*firsts, *more]]


def _shown(bad: Sequence[Bad]) -> str:
    return "; ".join(f"{one['id']} ({one['reason']}): {one['text'][:80]!r}" for one in _examples(bad))
