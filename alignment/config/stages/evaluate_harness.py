"""Evaluation by tasks of lm-evaluation-harness: which tasks, where their data lies, how they are asked. Reads the task
files, which say what the stage reads; runs none of their code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import Field

from alignment.config import harness as files
from alignment.config.stages.base import Finding, ModelRef, MostTokens, Outside, Stage, plural
from alignment.config.stages.fields import Dtype, Name, Positive, Strict, on_this_machine
from alignment.errors import ConfigError


class TaskFile(NamedTuple):
    """A file that tasks are made of.

    Attributes:
        name: `task NAME` of a task file, below its folder; `package NAME` of one of the harness's own;
            `data TASK SPLIT` of documents.
        error: set where tasks are not found, so that nobody knows their files; raised by whoever reads it.
    """

    name: str
    path: str
    error: ConfigError | None = None


class Harness(Strict):
    """Which tasks are asked and how; what is left out is as the harness itself has it."""

    tasks: Annotated[tuple[str, ...], Field(min_length=1)]
    """Names of tasks: of `include`, else of the harness's own. Groups and tags are named by their tasks."""
    include: str | dict[str, str] | None = None
    """A folder with task files: YAML, and the Python beside them. Those that the tasks are made of travel to a cluster,
    where they stand as NAME -> path."""
    data: dict[str, dict[str, str]] = Field(default={})
    """TASK -> SPLIT -> file (.json, .jsonl, .csv, .parquet, .txt, .arrow), instead of what the task says: a task of the
    harness's own has its data on the hub, and nothing is fetched from there."""
    limit: Positive | None = None
    """At most so many documents of each task (times the run's scale), the first ones."""
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    """Examples before each document. Left out: as the task says, else 0."""
    fewshot_seed: Annotated[int, Field(ge=0)] = 1234
    """Seeds the choice of examples. The default is the harness's own."""
    apply_chat_template: bool = False
    """Ask in the model's chat template, token for token as it was trained: examples are turns, and a given answer is
    what the assistant says. Without it texts are continued as they stand."""
    system_instruction: str | None = None
    """Text before all others; with a chat template the system's turn."""

    def own(self) -> files.TaskFiles:
        """The user's task files. Raises ConfigError where the folder does not exist."""
        if isinstance(self.include, str):
            return files.TaskFiles(files.listed(self.include))
        return files.TaskFiles({name: on_this_machine(path) for name, path in (self.include or {}).items()})

    def found(self) -> dict[str, files.Task]:
        """The tasks as their files say them. Raises ConfigError of the first that there is not, or cannot be read."""
        own = self.own()
        return {name: files.find(name, own) for name in self.tasks}

    def data_of(self, task: files.Task) -> dict[str, str]:
        """Split -> file of a task; empty where that is not known."""
        return self.data.get(task.name) or task.data()


class EvaluateHarness(Stage):
    """Models measured by tasks of lm-evaluation-harness whose documents are files: likelihoods, choices and answers, by
    the harness's own metrics. What its documents have in common with training rows is not looked for."""

    tag: ClassVar[str] = "evaluate-harness"
    makes = "table"
    known_by = "harness"
    body = "alignment.distributed.evaluate_harness:evaluate_harness_stage"
    script = "evaluate"
    says_names = True  # the table's lines, and the metrics that aims ask for
    bfloat16_on = frozenset({"gpu", "cpu"})

    kind: Literal["evaluate"] = "evaluate"
    """`evaluate` with `harness`: models are measured by tasks of lm-evaluation-harness."""
    models: tuple[Name, ...] = Field(min_length=1)
    """In the order of the table, the start model first; each later one is compared with it. Not endpoints, which tell
    no likelihoods."""
    harness: Harness
    """Which tasks are asked, and how."""
    bootstrap: Annotated[int, Field(ge=100)] = 2000
    """Resamples of the documents for each 95% interval of a difference, and for the harness's own standard errors where
    it makes these by resampling."""
    batch_size: Positive = 32
    """Requests answered at once; one document of a task with choices is several."""
    dtype: Dtype | None = None
    """Arithmetic of all models. Left out: compute.dtype, whose auto is bfloat16 where the hardware has it, else float32
    (and float32 on a cluster's CPUs); what is settled is part of what the stage is."""

    @classmethod
    def is_meant(cls, get: Callable[[str], Any]) -> bool:
        return super().is_meant(get) and get("harness") is not None

    @property
    def asks_likelihoods(self) -> bool:
        return True

    def model_refs(self) -> Iterator[ModelRef]:
        yield from (ModelRef(("models", index), name, "policy") for index, name in enumerate(self.models))

    def most_tokens(self) -> MostTokens | None:
        """None: a text that is longer than a model takes is cut at the left, as the harness does it, and counted."""
        return None

    def sources(self) -> tuple[Outside, ...]:
        """Files that the tasks are made of, then their documents; where a task is not found, the error alone."""
        place = ("harness", "include")
        if isinstance(self.harness.include, dict):
            own = [Outside(place, TaskFile(f"task {name}", path), path, travels=True)
                   for name, path in self.harness.include.items()]
            return (*own, *self._documents(self.harness.data))
        try:
            tasks = self.harness.found()
        except ConfigError as error:
            return (Outside(("harness", "tasks"), TaskFile("task files", str(self.harness.include or ""), error)),)
        made: dict[str, Outside] = {}
        for task in tasks.values():
            for name, path in task.read.items():
                if task.packaged:
                    made[f"package {name}"] = Outside(("harness", "tasks"), TaskFile(f"package {name}", str(path)))
                else:
                    written = f"{str(self.harness.include).rstrip('/')}/{name}"
                    made[f"task {name}"] = Outside(place, TaskFile(f"task {name}", written), written, travels=True)
        return (*made.values(), *self._documents({name: self.harness.data_of(task) for name, task in tasks.items()}))

    def _documents(self, data: Mapping[str, Mapping[str, str]]) -> Iterator[Outside]:
        for task, splits in data.items():
            for split, path in splits.items():
                yield Outside(("harness", "data", task, split), TaskFile(f"data {task} {split}", path), path,
                              travels=True)

    def relocated(self, paths: Mapping[str, str]) -> Self:
        include, data, sources = self.harness.include, dict(self.harness.data), self.sources()
        for source in sources:
            if source.path is not None and source.place[1] == "data":
                _, _, task, split = map(str, source.place)
                data[task] = {**data.get(task, {}), split: paths.get(source.path, source.path)}
        if isinstance(include, str):
            moved = {item.source.name.removeprefix("task "): paths[item.path] for item in sources
                     if isinstance(item.source, TaskFile) and item.path is not None and item.path in paths
                     and item.place[1] == "include"}
            include = moved or include
        elif include is not None:
            include = {name: paths.get(path, path) for name, path in include.items()}
        return self.model_copy(update={"harness": self.harness.model_copy(update={"include": include, "data": data})})

    def learned(self, scaled: Callable[[int | None], int | None]) -> dict[str, Any]:
        config = super().learned(scaled)
        # Where files lie changes nothing; their names and contents are among the sources.
        for key in ("include", "data"):
            config["harness"].pop(key, None)
        if config["harness"].get("limit") is not None:
            config["harness"]["limit"] = scaled(config["harness"]["limit"])
        return config

    def findings(self) -> Iterator[Finding]:
        for place, names in ((("models",), self.models), (("harness", "tasks"), self.harness.tasks)):
            if len(set(names)) != len(names):
                yield Finding(place, "names one twice", list(names), "each once")
        for task in self.harness.data:
            if task not in self.harness.tasks:
                yield Finding(("harness", "data", task), "is data of a task that is not asked", task,
                              "one of " + ", ".join(self.harness.tasks))

    def pairs(self) -> tuple[tuple[str, str], ...]:
        """[challenger, baseline]: every later model against the first."""
        first, *later = self.models
        return tuple((model, first) for model in later)

    def title(self) -> str:
        return f"evaluate · {plural(len(self.models), 'model')}, {plural(len(self.harness.tasks), 'harness task')}"
