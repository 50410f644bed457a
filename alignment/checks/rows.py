"""Whether the rows that a stage will read can serve it, as far as the source files tell before anything is made.

Asks what the stages themselves ask: a method's projection, a scoring function's needs, the overlap of an evaluation.
Rows of files that were not read are left to their stage. Does not tokenize.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace

from alignment.checks.lengths import askable_within
from alignment.checks.seen import Sight, Wrong, counted
from alignment.config import Evaluate, EvaluatePairs, Infer, Run, Sample, TrainBase, row_of
from alignment.config.run import read_upstream
from alignment.config.stages.fields import Place
from alignment.data.overlap import find_overlap
from alignment.data.projections import PROJECTIONS, to_preference
from alignment.errors import ConfigError, KubeAlignError
from alignment.evaluation.measures import measure_of
from alignment.records import Record
from alignment.rewards import lacking
from alignment.sampling.prompts import as_prompt

COMPARED = 2_000_000
"""Letters of rows up to which overlap is looked for now; a second and a half."""
_TO_COME = "?"
"""Stands for an answer that a model is still to give; one piece, so that it is never too long."""


def learnable(sight: Sight, stage: TrainBase) -> Wrong:
    """Rows to learn from, and to measure the loss on, that the method cannot use."""
    sets = [(ref, sight.rows.get(ref)) for ref in stage.rows]
    usable = 0
    reasons: list[str] = []
    for ref, records in sets:
        if records is None:
            continue
        refused = list(_refused(stage, records))
        usable += len(records) - len(refused)
        reasons += refused
        if refused:
            few = "none of the" if len(refused) == len(records) else f"{len(refused)} of"
            sight.warn(stage.name, f"{few} {len(records)} rows of {ref} can{'' if few[0] == 'n' else 'not'} be used: "
                                   f"{counted(refused)}")
    if not usable and None not in [records for _, records in sets]:
        yield ("rows",), _useless(stage, [record for _, records in sets for record in records or ()], reasons)
    held = sight.rows.get(stage.eval_rows or "")
    if held is not None and len(refused := list(_refused(stage, held))) == len(held):
        yield ("eval_rows",), _useless(stage, held, refused)


def _refused(stage: TrainBase, records: Iterable[Record]) -> Iterator[str]:
    project = row_of(PROJECTIONS, type(stage))
    for record in records:
        if isinstance(made := project(record), str):
            yield made
        elif lacks := [lack for name in stage.functions for lack in lacking(name, record)]:
            yield f"no {', '.join(dict.fromkeys(lacks))}"


def _useless(stage: TrainBase, records: Sequence[Record], reasons: list[str]) -> ConfigError:
    return ConfigError(f"no row can be used for method {stage.method}", expected=stage.reads,
                       found=f"{_types(records)}: {counted(reasons)}")


def _prompts_of(
    sight: Sight, stage: Sample | Infer, records: Sequence[Record]
) -> Generator[tuple[Place, KubeAlignError], None, list[Record]]:
    """Prompts of the rows that have one; that none has, or that they are too long, is what it finds."""
    prompts = [asked for record in records if (asked := as_prompt(record)) is not None]
    if not prompts:
        yield ("prompts",), ConfigError("no row has a prompt that ends with a question", found=_types(records),
                                        expected="rows whose prompt ends with a user's or a tool's turn")
        return []
    if len(prompts) < len(records):
        sight.warn(stage.name, f"{len(records) - len(prompts)} of {len(records)} rows have no prompt to answer")
    yield from askable_within(sight, stage, prompts)
    return prompts


def inferable(sight: Sight, stage: Infer) -> Wrong:
    """Prompts that cannot be asked."""
    if (records := sight.rows.get(stage.prompts)) is None:
        return
    yield from _prompts_of(sight, stage, records)


def askable(sight: Sight, stage: Sample) -> Wrong:
    """Prompts that cannot be asked or scored; remembers what the stage will write."""
    sets = [sight.rows.get(ref) for ref in stage.prompts]
    if None in sets:
        return
    records = [record for records in sets for record in records or ()]
    prompts = yield from _prompts_of(sight, stage, records)
    if not prompts:
        return
    unfit = _unfit(stage, prompts)
    if len(unfit) == len(prompts):
        yield ("score", "function"), _needs(stage, prompts, unfit)
    elif unfit:
        sight.warn(stage.name, f"{len(unfit)} of {len(prompts)} prompts cannot be scored: {counted(unfit)}")
    made = {
        "best": [replace(record, id=f"{record.id}-best", type="prompt-completion", completion=_TO_COME, label=None)
                 for record in prompts],
        "pairs": [replace(record, id=f"{record.id}-pair", type="preference", completion=_TO_COME, label=None,
                          rejected=f"not{_TO_COME}") for record in prompts],
    }
    made["samples"] = made["best"]
    sight.rows |= {f"{stage.name}/{split}": made[split] for split in stage.splits()}


def measurable(run: Run, sight: Sight, stage: Evaluate) -> Wrong:
    """Test rows that were read before, that a scoring function cannot score, or that have nothing to compare with."""
    test = sight.rows.get(stage.rows)
    if test is None:
        return
    asked = [record for row in test if (record := as_prompt(row)) is not None]
    if stage.retrieve is None:
        yield from askable_within(sight, stage, asked)
    unfit = _unfit(stage, asked)
    if unfit and (stage.take is None or len(unfit) == len(asked)):
        yield ("score", "function"), _needs(stage, asked, unfit)
    elif unfit:
        sight.warn(stage.name, f"{len(unfit)} of {len(asked)} rows cannot be scored, and the stage fails if it draws "
                               f"one: {counted(unfit)}")
    if stage.metrics is not None:
        yield from _metrics(sight, stage, test)
    elif not any(record.completion or record.meta.get("references") for record in asked):
        sight.warn(stage.name, "no row has a reference answer, so exact match, F1, ROUGE-L and perplexity are not "
                               "measured")
    yield from _held_out(run, sight, stage, test)


def _metrics(sight: Sight, stage: Evaluate, test: Sequence[Record]) -> Wrong:
    """Metrics that are named and that no row, or not every row, can be measured by."""
    from alignment.evaluation.results import question_of, reply_of, rules_of  # with numpy, where nothing else needs it

    questions = [question_of(record) for record in test]
    rules = rules_of(stage, questions)
    replies = [reply_of(q, "", True, None if q.reference is None else (0.0, 1)) for q in questions]
    for place, name in enumerate(stage.metrics or ()):
        lacking_it = [lack for reply in replies if (lack := measure_of(name).lacks(reply, rules)) is not None]
        if lacking_it and len(lacking_it) == len(replies):
            yield ("metrics", place), ConfigError(
                f"no row can be measured by {name}", found=f"{_types(test)}: {counted(lacking_it)}",
                expected=f"{measure_of(name).needs}, or metrics without {name}")
        elif lacking_it:
            sight.warn(stage.name, f"{len(lacking_it)} of {len(replies)} rows have no {name}: {counted(lacking_it)}")


def comparable_pairs(run: Run, sight: Sight, stage: EvaluatePairs) -> Wrong:
    """Rows that are no pairs, that were read before, or that a function cannot score where it does not see the answer
    that was chosen."""
    test = sight.rows.get(stage.rows)
    if test is None:
        return
    reasons = [None if row.type == "tie" else why if isinstance(why := to_preference(row), str) else None
               for row in test]
    refused = [why for why in reasons if why is not None]
    pairs = [row for row, why in zip(test, reasons, strict=True) if why is None]
    if not any(row.type == "preference" for row in pairs):
        yield ("rows",), ConfigError("no row is a pair of which one answer is preferred",
                                     found=f"{_types(test)}: {counted(refused)}" if refused else _types(test),
                                     expected="preference rows")
        return
    if refused:
        sight.warn(stage.name, f"{len(refused)} of {len(test)} rows are no pairs: {counted(refused)}")
    for name, judge in stage.judges.items():
        blind = [replace(row, completion=None, rejected=None) for row in pairs]
        lacks = [] if judge.function is None else [f"no {', '.join(lack)}" for row in blind
                                                   if (lack := lacking(judge.function, row))]
        if len(lacks) == len(pairs):
            yield ("judges", name, "function"), ConfigError(
                f"{judge.function} cannot score the answers of a pair", found=counted(lacks),
                expected="a function that needs no reference: the chosen answer, which it would be, is not shown")
        elif lacks:
            sight.warn(stage.name, f"{name} cannot judge {len(lacks)} of {len(pairs)} pairs: {counted(lacks)}")
    yield from _held_out(run, sight, stage, test)


def _held_out(run: Run, sight: Sight, stage: Evaluate | EvaluatePairs, test: list[Record]) -> Wrong:
    """Overlap with what stages before have read."""
    own = run.stage(stage.rows.partition("/")[0])
    refs = [ref for ref in read_upstream(run, stage) if not (own.parted and ref.startswith(f"{own.name}/"))]
    seen = [record for ref in refs for record in sight.rows.get(ref, ())]
    letters = sum(len(turn["content"]) for record in (*test, *seen) for turn in record.conversation())
    if letters > COMPARED:
        sight.note(stage.name, "overlap with what was read before is looked for when the stage is made")
        return
    overlap = find_overlap(test, seen)
    if overlap and (stage.overlap == "error" or len(overlap) == len(test)):
        origin = {record.id: ref for ref in refs for record in sight.rows.get(ref, ())}
        examples = "; ".join(f"{id_} like {other} of {origin[other]} ({reason})"
                             for id_, (other, reason) in list(overlap.items())[:3])
        yield ("rows",), ConfigError(
            f"{len(overlap)} of {len(test)} test rows are rows that earlier stages read", found=examples,
            expected="test rows that no earlier stage reads, by id and by text",
            hint="choose another split; overlap: drop leaves such rows out of the evaluation")
    elif overlap:
        sight.note(stage.name, f"{len(overlap)} of {len(test)} rows were read before and will be left out")


def _unfit(stage: Sample | Evaluate, records: Sequence[Record]) -> list[str]:
    """What each of the records lacks that the stage's scoring function needs; nothing for those that can be scored."""
    name = stage.score.function if stage.score is not None else None
    found = [] if name is None else [", ".join(lacking(name, record)) for record in records]
    return [f"no {lack}" for lack in found if lack]


def _needs(stage: Sample | Evaluate, records: Sequence[Record], unfit: list[str]) -> ConfigError:
    assert stage.score is not None
    return ConfigError(f"{stage.score.function} cannot score {len(unfit)} of {len(records)} rows",
                       found=f"{_types(records)}: {counted(unfit)}",
                       expected="rows with what the function needs (kubealign explain reward)")


def _types(records: Sequence[Record]) -> str:
    return f"{len(records)} rows of type {counted(record.type for record in records)}"
