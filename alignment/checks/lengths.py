"""Rows that cannot fit a stage's token limits under any tokenizer, and steps that a training will make.

A lower bound, since no tokenizer is asked: a token is at most one of the pieces that blanks part a text into, and a
template has at least its marks. So what is refused here fails for certain; what is left may still be too long.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cache

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from alignment import templates
from alignment.checks.seen import Sight, Wrong
from alignment.config import Evaluate, ImportModel, Infer, Run, Sample, TrainBase
from alignment.errors import ConfigError, ModelError
from alignment.records import Message, Record

_BLOCKS = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")
_MARKS = re.compile(r"<[^<>\s]+>|\w+|\[/?\w+\]")
_SYSTEM = {"role": "system", "content": "s"}
_USER, _ANSWER = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}


def remember_template(sight: Sight, stage: ImportModel) -> None:
    """Keep how many tokens the stage's template has at least around a prompt and its answer."""
    if (name := shipped_template(stage)) is not None:
        sight.marks[stage.name] = marks(name)


def shipped_template(stage: ImportModel) -> str | None:
    """Name of the shipped template that a stage's model gets; None where it keeps its own, or the name is unknown."""
    name = stage.template or ("chatml" if stage.model.source == "tiny" else None)
    return name if name in templates.names() else None


def trainable(run: Run, sight: Sight, stage: TrainBase) -> Wrong:
    """Rows that are all longer than max_length, fewer rows than workers, and a warm-up that never ends."""
    sight.marks[stage.name] = around = sight.marks.get(stage.model, 1)
    sets = [sight.rows.get(ref) for ref in stage.rows]
    if None in sets:
        return
    records = [record for records in sets for record in records or ()]
    pairs, cut = stage.sequences > 1, stage.too_long == "truncate-prompt"
    least = [(_answer(record, pairs) if stage.drawn is None else stage.drawn)
             + (1 if cut else around + _prompt(record)) for record in records]
    over = [length for length in least if length > stage.longest]
    if over and (len(over) == len(least) or (stage.too_long == "error" and stage.take is None)):
        yield ("max_length",), ConfigError(
            f"{len(over)} of {len(least)} rows are longer than max_length, whatever the tokenizer",
            found=f"{stage.longest}, the shortest row has {min(least)} tokens or more",
            expected="room for prompt, answer and the chat template around them")
        return
    if over:
        sight.warn(stage.name, f"{len(over)} of {len(least)} rows are longer than max_length, whatever the tokenizer")
    rows = len(records) if stage.take is None else min(len(records), run.scaled(stage.take) or 0)
    if 0 < rows < run.compute.workers:
        yield ("rows",), ConfigError("fewer rows than workers", found=f"{rows} rows, {run.compute.workers} workers",
                                     expected="at least one row for each worker")
    if stage.drawn is not None and 0 < rows < stage.rows_per_step:
        yield ("batch_size",), ConfigError(
            "there are fewer prompts than one step asks", found=f"{rows} rows, {stage.rows_per_step} prompts a step",
            expected=f"{stage.rows_per_step} rows or more",
            hint="lower batch_size, which counts answers, or raise num_generations")
    else:
        _steps(sight, stage, rows)


def _steps(sight: Sight, stage: TrainBase, rows: int) -> None:
    steps = stage.trl.get("max_steps", -1)
    if not isinstance(steps, int) or steps < 1:
        steps = math.ceil(math.ceil(rows / stage.rows_per_step) * stage.epochs)
    warmup = stage.trl.get("warmup_steps", 0)
    if isinstance(warmup, int | float) and warmup >= max(1, steps):
        sight.warn(stage.name, f"the warm-up of {warmup:g} steps is as long as the training ({steps} steps or fewer), "
                               "so the learning rate is never reached")
    if rows < stage.rows_per_step:
        sight.warn(stage.name, f"a batch of {stage.rows_per_step} is more than the {rows} rows: one step per epoch")


def askable_within(sight: Sight, stage: Sample | Infer | Evaluate, prompts: Sequence[Record]) -> Wrong:
    """Prompts that are all longer than max_prompt_tokens."""
    least = [_prompt(record) for record in prompts]
    if least and min(least) > stage.longest_prompt:
        yield ("max_prompt_tokens",), ConfigError(
            "every prompt is longer than max_prompt_tokens, whatever the tokenizer",
            found=f"{stage.longest_prompt}, the shortest has {min(least)} tokens or more",
            expected="room for the prompts")


def _prompt(record: Record) -> int:
    turns = record.conversation()
    return _pieces(turns[:-1] if record.completion is not None or record.messages else turns)


def _answer(record: Record, pairs: bool) -> int:
    """Of the longer one, where both answers of a pair have to fit."""
    answers = [record.completion, *(turn["content"] for turn in record.messages[-1:])]
    answers += [record.rejected] if pairs else []
    return max((len(answer.split()) for answer in answers if answer), default=0)


def _pieces(turns: Sequence[Message]) -> int:
    return sum(len(turn["content"].split()) for turn in turns)


@cache
def marks(name: str) -> int:
    """Tokens that a shipped template has at least around a prompt and an answer: its marks, and words between them."""
    found = []
    for messages in ([_USER, _ANSWER], [_SYSTEM, _USER, _ANSWER]):  # without a system message some set one of their own
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        try:
            template = environment.from_string(_BLOCKS.sub("", templates.source(name)))
            text = template.render(messages=messages, bos_token="", eos_token="</s>", raise_exception=_refuse)
        except (jinja2.TemplateError, ModelError):  # it may have no system message
            continue
        found.append(len(_MARKS.findall(text)) - len(messages))
    return min(found, default=1)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)
