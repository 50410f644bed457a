"""Task files of lm-evaluation-harness, read as text: which task a name is, what it asks, where its data lies.

Runs none of their code and imports neither the harness nor anything heavy, so that `check` and digests can ask. Knows
no model and no stage; evaluation/harness.py has the harness load what is found here.
"""

from __future__ import annotations

import difflib
import importlib.util
import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import yaml

from alignment.config.stages.fields import on_this_machine
from alignment.errors import ConfigError

BUILDERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text", ".arrow": "arrow"}
"""Ending of a data file -> what reads it, as the task files call it (`dataset_path`)."""
USUAL = {
    "loglikelihood": ("perplexity", "acc"), "loglikelihood_rolling": ("word_perplexity", "byte_perplexity",
                                                                      "bits_per_byte"),
    "multiple_choice": ("acc", "acc_norm"), "generate_until": ("exact_match",),
}
"""Output type -> what the harness measures where a task does not say."""
_NEAR = 5
_NAMED = re.compile(r"""^(task|group):[ \t]*["']?([^\s"'#]+)["']?[ \t]*(?:#.*)?$""", re.MULTILINE)
_SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")


class _Loader(yaml.SafeLoader):
    """YAML as the harness has it; a `!function` stays its name."""


_Loader.add_constructor("!function", lambda loader, node: str(loader.construct_scalar(cast(yaml.ScalarNode, node))))


@dataclass(frozen=True)
class Task:
    """One task as its files say it.

    Attributes:
        file: name of its YAML file, below the folder of task files.
        config: all keys, those of included files among them.
        read: name -> path of the YAML files that make it, and of every Python file beside them, any of which it may
            import.
        packaged: whether it is one of the harness's own.
    """

    name: str
    file: str
    config: Mapping[str, Any]
    read: Mapping[str, Path]
    packaged: bool

    @property
    def output_type(self) -> str:
        return str(self.config.get("output_type") or "generate_until")

    @property
    def asked(self) -> str | None:
        """The split whose documents are asked."""
        split = self.config.get("test_split") or self.config.get("validation_split")
        return None if split is None else str(split)

    @property
    def examples(self) -> str | None:
        """The split that examples are taken from; None where the task writes them out."""
        few = self.config.get("fewshot_config") or {}
        named = few.get("split") or self.config.get("fewshot_split")
        if named is None and few.get("samples") is not None:
            return None
        return str(named or self.config.get("training_split") or self.config.get("validation_split") or self.asked)

    def shots(self, wanted: int | None) -> int:
        """Examples before each document."""
        return int(self.config.get("num_fewshot") or 0) if wanted is None else wanted

    def filled(self, data: Mapping[str, str], shots: int) -> dict[str, Any]:
        """Keys to put over its own, so that it reads these files and no split that they lack."""
        local = self.config.get("dataset_path") in set(BUILDERS.values())
        builder = self.config["dataset_path"] if local else BUILDERS[Path(next(iter(data.values()))).suffix.lower()]
        beside = dict(self.config.get("dataset_kwargs") or {}) if local else {}
        missing = [key for key in _SPLITS if self.config.get(key) not in (None, *data)]
        few = dict(self.config.get("fewshot_config") or {})
        if few.get("split") not in (None, *data):
            few.pop("split")
        return {"dataset_path": builder, "dataset_name": None, "num_fewshot": shots,
                "dataset_kwargs": {**beside, "data_files": dict(data)}, **dict.fromkeys(missing),
                **({"fewshot_config": few} if few or "fewshot_config" in self.config else {})}

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of its metrics as results have them; with a filter of a name, METRIC/FILTER."""
        listed = self.config.get("metric_list")
        names = [str(one.get("metric")) for one in listed or () if isinstance(one, dict)] or list(
            USUAL.get(self.output_type, ()))
        filters = self.config.get("filter_list") or [{"name": "none"}]
        return tuple(flat(name, str(one.get("name"))) for one in filters for name in names)

    def data(self) -> dict[str, str]:
        """Split -> file, as the task itself says; empty where its data is no single file for each split."""
        if self.config.get("dataset_path") not in set(BUILDERS.values()):
            return {}
        files = (self.config.get("dataset_kwargs") or {}).get("data_files")
        if isinstance(files, str):
            return {"train": files}
        if isinstance(files, dict):
            single = {str(split): one[0] if isinstance(one, list) and len(one) == 1 else one
                      for split, one in files.items()}
            return single if all(isinstance(one, str) for one in single.values()) else {}
        return {}

    def refusals(self) -> Iterator[str]:
        """Why it is not asked here, whatever its data is."""
        config, dataset = self.config, self.config.get("dataset_kwargs") or {}
        if "class" in config:
            yield "is a class of Python, which brings its own data"
        if config.get("unsafe_code"):
            yield "runs code that the model writes (unsafe_code)"
        if dataset.get("trust_remote_code"):
            yield "needs code of a hub's data set (trust_remote_code)"
        if config.get("custom_dataset") is not None:
            yield "makes its data by a function (custom_dataset), so nobody knows what it was"
        if config.get("use_prompt") is not None:
            yield "takes its prompt from promptsource (use_prompt), which is not installed"
        if config.get("doc_to_image") is not None or config.get("doc_to_audio") is not None:
            yield "shows images or sounds"
        if self.output_type not in USUAL:
            yield f"has an output_type that nobody knows here: {self.output_type}"
        for one in config.get("metric_list") or ():
            if isinstance(one, dict) and one.get("hf_evaluate"):
                yield f"fetches the code of its metric {one.get('metric')} from the hub (hf_evaluate)"


def unasked(task: Task, data: Mapping[str, str], shots: int, *, chat: bool, wanted: int | None) -> Iterator[str]:
    """Why a task cannot be asked, with these files and so many examples.

    Args:
        chat: whether in a chat template.
        wanted: examples that the user asks for, where he does.
    """
    yield from task.refusals()
    if not data:
        yield (f"has its data elsewhere ({task.config.get('dataset_path')}), and nothing is fetched: harness.data has "
               "to name its files")
        return
    endings = {Path(path).suffix.lower() for path in data.values()}
    if task.config.get("dataset_path") not in set(BUILDERS.values()) and (
            len(endings) > 1 or not endings <= set(BUILDERS)):
        yield f"has data files that end in {', '.join(sorted(endings))}: all are to end alike, in {', '.join(BUILDERS)}"
    if task.asked is None:
        yield "has neither a test split nor a validation split"
    elif task.asked not in data:
        yield f"asks the documents of split {task.asked}, and its files are of {', '.join(data)}"
    if shots and task.examples is not None and task.examples not in data:
        yield f"shows {shots} examples of split {task.examples}, and its files are of {', '.join(data)}"
    if wanted and task.config.get("num_fewshot") == 0:
        yield "says num_fewshot: 0, which the harness holds to whatever is asked"
    if chat and task.config.get("gen_prefix") is not None:
        yield "begins the answer itself (gen_prefix), which no chat template here can be asked to go on from"


def flat(metric: str, filter_name: str) -> str:
    """A metric's name as aims may write it: `acc`, `exact_match/strict-match`."""
    name = metric if filter_name == "none" else f"{metric}/{filter_name}"
    return re.sub(r"[^A-Za-z0-9_/-]", "_", name)


@dataclass(frozen=True)
class TaskFiles:
    """Task files by name, below one folder; what they name is read once."""

    paths: Mapping[str, Path]

    @cached_property
    def named(self) -> _Named:
        return _named(self.paths)


def listed(include: str) -> dict[str, Path]:
    """Name -> path of the task files below a folder. Raises ConfigError where there is no such folder."""
    folder = on_this_machine(include)
    if not folder.is_dir():
        raise ConfigError("the folder of task files does not exist", found=include,
                          expected=f"a folder at {folder.absolute()}")
    return _below(folder)


def find(name: str, own: TaskFiles) -> Task:
    """The task of a name: of the user's own files, else of the harness's.

    Raises:
        ConfigError: there is none, it is a group, or its files cannot be read.
    """
    known = own.named
    if name in known.tasks:
        return _task(name, known.tasks[name], own.paths, packaged=False)
    theirs = TaskFiles({}) if name in known.groups else _shipped()
    shipped = theirs.named
    if name in shipped.tasks:
        return _task(name, shipped.tasks[name], theirs.paths, packaged=True)
    if (group := known.groups.get(name) or shipped.groups.get(name)) is not None:
        raise ConfigError("is a group of tasks, whose mean over tasks is not made here", found=name,
                          expected="the names of its tasks", hint=f"they are listed in {group}")
    near = difflib.get_close_matches(name, [*known.tasks, *shipped.tasks], _NEAR, cutoff=0.5)
    raise ConfigError("no task has this name", found=name,
                      expected="perhaps " + " or ".join(near) if near else "a task of the folder `include`, or of the "
                                                                           "harness",
                      hint=None if theirs.paths else "the harness's own tasks need pip install 'kubealign[harness]'")


class _Named(NamedTuple):
    """Name -> name of the YAML file, of tasks and of groups."""

    tasks: dict[str, str]
    groups: dict[str, str]


def _below(folder: Path) -> dict[str, Path]:
    return {one.relative_to(folder).as_posix(): one for one in sorted(folder.rglob("*"))
            if one.suffix in (".yaml", ".py") or one.name.endswith("_yaml")}


def _named(own: Mapping[str, Path]) -> _Named:
    made = _Named({}, {})
    for file, path in own.items():
        if not file.endswith(".yaml"):
            continue
        try:
            kinds = dict(_NAMED.findall(path.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError):
            continue  # then nothing of it is found, and that is said
        if "group" in kinds:
            made.groups.setdefault(kinds["group"], file)
        elif "task" in kinds:
            made.tasks.setdefault(kinds["task"], file)
    return made


@lru_cache(maxsize=1)
def _shipped() -> TaskFiles:
    spec = importlib.util.find_spec("lm_eval")  # located, never imported
    if spec is None or not spec.submodule_search_locations:
        return TaskFiles({})
    return TaskFiles(_below(Path(next(iter(spec.submodule_search_locations)), "tasks")))


def _task(name: str, file: str, own: Mapping[str, Path], *, packaged: bool) -> Task:
    seen: dict[str, Path] = {}
    config = _read(file, own, seen)
    folders = {posixpath.dirname(one) for one in seen}
    beside = {one: path for one, path in own.items() if one.endswith(".py") and posixpath.dirname(one) in folders}
    return Task(name, file, config, seen | beside, packaged)


def _read(file: str, own: Mapping[str, Path], seen: dict[str, Path]) -> dict[str, Any]:
    if file in seen:
        raise ConfigError("a task file includes itself", where=str(own[file]))
    if file not in own:
        raise ConfigError("a task file includes one that is not below the same folder", found=file,
                          expected="a file of the folder `include`")
    seen[file] = own[file]
    try:
        config = yaml.load(own[file].read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"a task file cannot be read: {error}", where=str(own[file])) from error
    if not isinstance(config, dict):
        raise ConfigError("a task file is no mapping", where=str(own[file]), found=type(config).__name__)
    includes = config.pop("include", None) or []
    merged: dict[str, Any] = {}
    for one in includes if isinstance(includes, list) else [includes]:
        merged |= _read(posixpath.normpath(posixpath.join(posixpath.dirname(file), str(one))), own, seen)
    return merged | config
