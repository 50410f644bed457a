"""Tasks of lm-evaluation-harness, before anything is asked: that there are such, that their documents are files here,
and that nothing of what they want is refused. Reads task files as text; runs none of their code.
"""

from __future__ import annotations

import importlib.util

from alignment.checks.seen import Sight, Wrong
from alignment.config import EvaluateHarness, Run
from alignment.config.harness import find, unasked
from alignment.config.stages.fields import on_this_machine
from alignment.errors import ConfigError


def harnessed(run: Run, stage: EvaluateHarness, sight: Sight) -> Wrong:
    """Tasks that there are not, or that cannot be asked as the stage says."""
    asked = stage.harness
    try:
        own = asked.own()
    except ConfigError as error:
        yield ("harness", "include"), error
        return
    for index, name in enumerate(asked.tasks):
        place = ("harness", "tasks", index)
        try:
            task = find(name, own)
        except ConfigError as error:
            yield place, error
            continue
        data = asked.data_of(task)
        for problem in unasked(task, data, task.shots(asked.num_fewshot), chat=asked.apply_chat_template,
                               wanted=asked.num_fewshot):
            yield place, ConfigError(f"task {name} {problem}", found=name, expected="a task that can be asked here")
        for split, path in data.items():
            if "://" in path or not on_this_machine(path).is_file():
                yield (("harness", "data", name, split) if name in asked.data else place), ConfigError(
                    f"the documents of task {name}, split {split}, are no file of this machine", found=path,
                    expected="a file that can be read")


def harnessed_here(stage: EvaluateHarness) -> Wrong:
    """The harness itself, where the stage is made on this machine."""
    if importlib.util.find_spec("lm_eval") is None:
        yield ("harness",), ConfigError("lm-evaluation-harness is not installed", found="no package lm_eval",
                                        expected="the extra harness", hint="pip install 'kubealign[harness]'")
