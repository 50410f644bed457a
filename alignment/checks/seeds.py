"""Whether a generate stage's seeds can serve it, as far as the source files tell before anything is made."""

from __future__ import annotations

from alignment.checks.seen import Sight, Wrong, counted
from alignment.config import SelfInstruct
from alignment.errors import ConfigError
from alignment.generation.self_instruct import own_share
from alignment.generation.tasks import seed_task


def seedable(sight: Sight, stage: SelfInstruct) -> Wrong:
    """Too few seeds, seeds of another language, prompts that cannot fit."""
    sets = [sight.rows.get(ref) for ref in stage.seeds]
    if None in sets:
        return
    made = [seed_task(record) for records in sets for record in records or ()]
    tasks, unfit = [one for one in made if not isinstance(one, str)], [one for one in made if isinstance(one, str)]
    if len(tasks) < stage.demonstrations:
        yield ("seeds",), ConfigError(
            "too few seed tasks for one request", found=f"{len(tasks)} of {len(made)} rows" + (
                f": {counted(unfit)}" if unfit else ""),
            expected=f"at least {stage.demonstrations} (demonstrations)")
        return
    if unfit:
        sight.warn(stage.name, f"{len(unfit)} of {len(made)} seed rows cannot be shown to a teacher: {counted(unfit)}")
    own = [task for task in tasks if own_share(task.instruction, stage.language) >= stage.filters.own_language]
    if 2 * len(own) < len(tasks):
        yield ("language",), ConfigError(
            "most seed tasks are in another language", found=f"{len(own)} of {len(tasks)} in {stage.language}",
            expected="the language of the seeds")
    # A word is a token or more, whatever the tokenizer.
    least = sum(sorted(len(task.instruction.split()) for task in tasks)[:stage.demonstrations])
    if least > stage.longest_prompt:
        yield ("max_prompt_tokens",), ConfigError(
            "every prompt is longer than max_prompt_tokens, whatever the tokenizer",
            found=f"{stage.longest_prompt}, the shortest {stage.demonstrations} seeds have {least} tokens or more",
            expected="room for the prompts")
    classes = sum(bool(task.is_classification) for task in tasks)
    sight.note(stage.name, f"{len(tasks)} seed tasks, {classes} of them classifications")
