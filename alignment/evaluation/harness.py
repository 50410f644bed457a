"""lm-evaluation-harness by its own API: tasks loaded over files on disk, its requests answered, its metrics as it makes
them.

The harness builds prompts, filters answers and measures; how a request is answered is the caller's (`Answer`). The only
file that imports more of it than two plain functions. Draws nothing, knows no artifacts.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import yaml
from lm_eval.api.model import LM
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from alignment.config import EvaluateHarness, Harness
from alignment.config.harness import Task, unasked
from alignment.config.stages.fields import on_this_machine
from alignment.errors import ConfigError, DataError, KubeAlignError
from alignment.evaluation.harness_asked import Asked, Conversation
from alignment.inference.requests import Draw
from alignment.records import Message

Answer = Callable[[list[Asked]], Mapping[str, Any]]
"""Requests of one kind -> request id -> its answer."""
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""What tasks call the length of an answer, the first that is there counts, as in the harness."""
_DRAWN = {"until", "do_sample", "temperature", "top_p", "top_k", "repetition_penalty", *_LENGTHS}


def load(harness: Harness, folder: Path, where: str) -> dict[str, Any]:
    """Task name -> the harness's task, over files on disk.

    Args:
        folder: a new one for what the harness reads: task files laid out as they lie, and its cache of documents.
        where: how errors call the stage.

    Raises:
        ConfigError: a task there is not, or that is not asked here, and why.
        DataError: the harness cannot load it.
    """
    found = harness.found()
    for task in found.values():
        shots = task.shots(harness.num_fewshot)
        for problem in unasked(task, harness.data_of(task), shots, chat=harness.apply_chat_template,
                               wanted=harness.num_fewshot):
            raise ConfigError(f"task {task.name} {problem}", where=where)
    return {name: _loaded(task, harness, folder / str(number), where)
            for number, (name, task) in enumerate(found.items())}


def _loaded(task: Task, harness: Harness, folder: Path, where: str) -> Any:
    for name, path in task.read.items():
        target = folder / "files" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    data = {split: str(on_this_machine(path).absolute()) for split, path in harness.data_of(task).items()}
    for split in data:
        if "://" in harness.data_of(task)[split] or not Path(data[split]).is_file():
            raise DataError(f"the documents of task {task.name}, split {split}, are no file of this machine",
                            where=where, found=harness.data_of(task)[split], expected="a file that can be read")
    own = task.filled(data, task.shots(harness.num_fewshot))
    own["dataset_kwargs"]["cache_dir"] = str(folder / "cache")
    (folder / "asked").mkdir()
    (folder / "asked" / "asked.yaml").write_text(yaml.safe_dump(
        {"include": str((folder / "files" / task.file).absolute()), "task": task.name, **own}), encoding="utf-8")
    random.seed(0)  # as the harness's own command does, for tasks that shuffle
    numpy.random.seed(1234)
    try:
        manager = TaskManager(include_path=str(folder / "asked"), include_defaults=False)
        made = manager.load([task.name])["tasks"][task.name]
    except Exception as error:  # of the harness, of datasets, of a task's own code
        raise DataError(f"the harness cannot load task {task.name}: {type(error).__name__}: {error}", where=where,
                        found=harness.data_of(task), expected="documents as the task file reads them") from error
    return made


class Asking(LM):  # type: ignore[misc]
    """A model as the harness sees it: requests go to `answer`, all of one kind at once.

    Args:
        chat: of messages, the prompt in the model's template.
        seed: enters what is drawn.
    """

    def __init__(self, name: str, answer: Answer, chat: Callable[[list[Message]], Conversation], seed: int) -> None:
        super().__init__()
        self.name, self.answer, self.chat, self.seed = name, answer, chat, seed

    @property
    def tokenizer_name(self) -> str:
        return self.name

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        assert add_generation_prompt, "tasks that begin the answer are refused before"
        return self.chat([{"role": one["role"], "content": one["content"]} for one in chat_history])

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        asked = [Asked(id_, "continuation", one.args[0], one.args[1]) for id_, one in _numbered(requests)]
        told = self.answer(asked)
        return [(told[one.id][0], told[one.id][1]) for one in asked]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        asked = [Asked(id_, "whole", "", one.args[0]) for id_, one in _numbered(requests)]
        told = self.answer(asked)
        return [told[one.id] for one in asked]

    def generate_until(self, requests: list[Any]) -> list[str]:
        asked = [Asked(id_, "answer", one.args[0], draw=self._draw(id_, one)) for id_, one in _numbered(requests)]
        told = self.answer(asked)
        return [told[one.id] for one in asked]

    def _draw(self, id_: str, request: Any) -> Draw:
        given = dict(request.args[1])
        if unknown := sorted(set(given) - _DRAWN):
            raise ConfigError(f"task {request.task_name} draws answers in a way that is not honoured here",
                              where="generation_kwargs", found=", ".join(unknown), expected=", ".join(sorted(_DRAWN)))
        drawn = bool(given.get("do_sample", float(given.get("temperature") or 0) > 0))
        until = given.get("until") or []
        length = next((given[key] for key in _LENGTHS if given.get(key) is not None), 256)
        seed = hashlib.sha256(f"{self.seed}/{self.name}/{id_}".encode()).digest()
        return Draw(temperature=float(given.get("temperature", 1.0)) if drawn else 0.0,
                    top_p=float(given.get("top_p", 1.0)), top_k=int(given.get("top_k") or 0),
                    repetition_penalty=float(given.get("repetition_penalty", 1.0)), max_new_tokens=int(length),
                    seed=int.from_bytes(seed[:7]),
                    stop=tuple(one for one in ([until] if isinstance(until, str) else until) if one))


def _numbered(requests: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Requests with an id: task, document, which of its requests, which of its repeats."""
    seen = Counter[str]()
    for one in requests:
        id_ = f"{one.task_name}/{one.doc_id}/{one.idx}"
        yield f"{id_}/{seen[id_]}", one
        seen[id_] += 1


def asked_of(stage: EvaluateHarness, tasks: Mapping[str, Any], model: Asking, limit: int | None) -> dict[str, Any]:
    """What the harness makes of one model: its own `EvalResults`, samples among them.

    Raises what the answers raise; DataError where the harness or a task's own code fails.
    """
    for task in tasks.values():
        task.set_fewshot_seed(stage.harness.fewshot_seed)  # every model is shown the same examples
    chat = stage.harness.apply_chat_template
    try:
        with _alone():
            made: dict[str, Any] = evaluate(
                model, {"tasks": dict(tasks), "groups": {}, "group_map": {}}, limit=limit, log_samples=True,
                bootstrap_iters=stage.bootstrap, system_instruction=stage.harness.system_instruction,
                apply_chat_template=chat, fewshot_as_multiturn=chat)
    except KubeAlignError:
        raise
    except Exception as error:  # of the harness or of a task's own code
        raise DataError(f"the harness cannot measure its tasks: {type(error).__name__}: {error}",
                        where=f"stage {stage.name}, model {model.name}",
                        expected="tasks that its own command can measure over the same documents") from error
    return made


@contextmanager
def _alone() -> Iterator[None]:
    """The harness resamples in this process: forks of one that has a model in memory may hang."""
    before = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"
    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    try:
        yield
    finally:
        if before is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = before


def config_hash(task: Any) -> str:
    """sha256 (hex) of a task's config as the harness has it, without where its files lie."""
    config = dict(task.dump_config())
    config["metadata"] = {key: value for key, value in (config.get("metadata") or {}).items() if key != "config_source"}
    config["dataset_kwargs"] = sorted((config.get("dataset_kwargs") or {}).get("data_files", {}))
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()
