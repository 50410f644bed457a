"""One check for each stage kind, in `CHECKS` under its class: what its stages read, and what that must be.

Every finding is made, none stops the next. A data file over the limit is looked for but not read: its stage reads it.
Rows are judged in rows.py, models in layers.py, templates in told.py, the machine in machine.py.
"""

from __future__ import annotations

import ast
import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from alignment import templates
from alignment.artifacts import Artifact
from alignment.checks.contrast import contrastable
from alignment.checks.documents import readable
from alignment.checks.endpoints import askable_there, measurable_there
from alignment.checks.endpoints import named as named_there
from alignment.checks.export import exportable, exportable_here
from alignment.checks.harness import harnessed, harnessed_here
from alignment.checks.layers import adaptable, remember, remember_made
from alignment.checks.lengths import remember_template, trainable
from alignment.checks.looked import look
from alignment.checks.machine import train
from alignment.checks.new_tokens import learned
from alignment.checks.passages import questionable
from alignment.checks.retrieved import answerable as retrievable
from alignment.checks.rows import askable, comparable_pairs, inferable, learnable, measurable
from alignment.checks.seeds import seedable
from alignment.checks.seen import Sight, Wrong, counted
from alignment.checks.selected import answerable, coverable, drawable, judgeable, mergeable
from alignment.checks.store import nowhere
from alignment.checks.tokens import comparable, remember_made_vocabulary, remember_vocabulary, root
from alignment.checks.told import remember_made_text, remember_text, tellable
from alignment.checks.walks import walkable
from alignment.config import (
    Adapter,
    AnyStage,
    Choose,
    Contrastive,
    DocumentQa,
    Evaluate,
    EvaluateHarness,
    EvaluatePairs,
    Export,
    FolderModel,
    FromArtifact,
    Generate,
    GgufModel,
    HubModel,
    ImportData,
    ImportDocuments,
    ImportEndpoint,
    ImportModel,
    ImportReader,
    ImportReward,
    Infer,
    JudgedScorer,
    MultiHop,
    Run,
    Sample,
    Select,
    SelectCoverage,
    SelectMerge,
    SelectNecessity,
    SelectQuality,
    SelectRandom,
    SelfInstruct,
    Source,
    Stage,
    TinyModel,
    TrainBase,
    row_of,
)
from alignment.config.messages import close_to
from alignment.config.prompts import PromptFile, read_prompt
from alignment.config.run import adapter_of
from alignment.config.sharding import unfit
from alignment.config.stages.fields import Place, on_this_machine
from alignment.config.stages.hygiene import REFUSALS
from alignment.config.stages.online import Online
from alignment.data.adapter_config import read_adapter_config
from alignment.data.artifact_source import artifact_meant
from alignment.data.fingerprint import folder_path, gguf_path
from alignment.data.hygiene import lacks
from alignment.data.import_artifact import fits
from alignment.data.import_data import check_template
from alignment.data.lineage import rows_learned
from alignment.data.model_files import unclear
from alignment.errors import ConfigError, KubeAlignError
from alignment.planner.rows import preview
from alignment.records import read_records
from alignment.rewards import BUILT_IN, named


def wrong(run: Run, stage: AnyStage, sight: Sight) -> Wrong:
    """Everything that is known to fail of one stage. Asked of all stages of a run, in their order.

    Args:
        run: as it would be executed.
        sight: what was seen of the stages before; gets what was seen of this one.
    """
    yield from row_of(CHECKS, type(stage))(run, stage, sight)


def made(stage: AnyStage, artifact: Artifact, sight: Sight) -> None:
    """Instead of `wrong`, for a stage that is finished: what later ones will read of it, where that is cheap."""
    if not artifact.store.is_local:
        return
    for split in stage.splits():
        file = artifact.path() / "rows" / f"{split}.jsonl"
        if not file.exists() or file.stat().st_size <= sight.limit:  # a split that got no rows has no file
            sight.rows[f"{stage.name}/{split}"] = read_records(file) if file.exists() else []
    if stage.makes == "policy":
        remember_made(sight, stage, artifact)
        remember_made_text(sight, stage, artifact)
        remember_made_vocabulary(sight, stage, artifact)


def _import_model(run: Run, stage: ImportModel, sight: Sight) -> Wrong:
    try:
        MODELS[type(stage.model)](stage.name, stage.model)
    except KubeAlignError as error:
        yield ("model",), error
    if stage.base is not None and (adapter_of({other.name: other for other in run.stages}, stage.base)
                                   or run.stage(stage.base).base):
        yield ("model", "base"), ConfigError("an adapter stands on full weights, and this stage makes an adapter",
                                             found=stage.base, expected="a stage that imports a whole model")
    if stage.template is not None and stage.template not in templates.names():
        yield ("template",), ConfigError("no chat template of this name is shipped", found=stage.template,
                                         expected="one of " + ", ".join(templates.names()))
    remember(sight, stage)
    remember_template(sight, stage)
    remember_text(sight, stage)
    remember_vocabulary(sight, stage)


def _from_artifact(run: Run, stage: FromArtifact, sight: Sight) -> Wrong:
    """Looked at where its store is a folder that is here; a store elsewhere is the stage's own to ask."""
    ref, place = stage.reference.within(run.store), (*stage.place, "artifact")
    url = str(ref.named.store)
    if "://" in url or (url.startswith("/") and not Path(url).is_dir()):
        return
    try:
        artifact = artifact_meant(f"stage {stage.name}", ref)
        fits(f"stage {stage.name}", stage, artifact)
        rows_learned(artifact)
    except KubeAlignError as error:
        yield place, ConfigError(error.problem, found=error.found, expected=error.expected, hint=error.hint)
        return
    made(stage, artifact, sight)


def _check_gguf(stage: str, model: GgufModel) -> None:
    path = gguf_path(stage, model)
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise ConfigError(f"not a GGUF file ({path})", found=magic, expected="the four bytes GGUF at its start")


def _check_folder(stage: str, model: FolderModel) -> None:
    folder = folder_path(stage, model)
    if not folder.is_dir():
        raise ConfigError("the model folder does not exist", found=str(folder),
                          expected=f"a folder at {folder.absolute()}",
                          hint="relative paths start at the working directory")
    if model.base is not None:
        read_adapter_config(folder, f"stage {stage}, model.path")
        return
    if (other := unclear(folder, adapter=False)) is not None:
        raise ConfigError(other.problem, found=str(folder), expected=other.expected, hint=other.hint)
    names = {path.name for path in folder.iterdir()}
    missing = [text for text, there in (
        ("config.json", "config.json" in names),
        ("weights (*.safetensors)", any(name.endswith(".safetensors") for name in names)),
        ("a tokenizer", any(name.startswith("tokenizer.") or name in ("vocab.json", "tekken.json") for name in names)),
    ) if not there]
    if missing:
        raise ConfigError(f"the model folder lacks {', '.join(missing)}",
                          found=", ".join(sorted(names)[:8]) or "nothing",
                          expected="config.json, safetensors weights and a tokenizer")


def _import_data(run: Run, stage: ImportData, sight: Sight) -> Wrong:
    problems, unread = list(_sources(stage, sight.limit)), []
    for index, error in problems:
        if error is None:
            unread.append(stage.data[index].place)
        else:
            yield ("data", index), error
    if any(error is not None for _, error in problems):
        return
    if unread:
        yield from look(run, stage, sight, unread)
        return
    try:
        check_template(stage)
    except KubeAlignError as error:
        yield ("passage_prompt",), ConfigError(error.problem, found=error.found, expected=error.expected,
                                               hint=error.hint)
    try:
        seen = preview(run, stage)
    except KubeAlignError as error:
        yield ("data",), error
        return
    seen_rows = ", ".join(f"{len(rows)} {split}" for split, rows in seen.splits.items())
    sight.note(stage.name, seen_rows)
    if seen.bad:
        sight.note(stage.name, f"{len(seen.bad)} bad rows: {counted(row.slug for row in seen.bad)}")
    if seen.unread:
        sight.note(stage.name, f"keys that nothing reads: {counted(seen.unread.elements())}")
    if stage.hygiene is not None and (lacking := lacks(stage.hygiene)):
        sight.note(stage.name, f"hygiene is left to the stage, as {', '.join(lacking)} is not installed here")
    bad = [row for row in seen.bad if row.slug not in REFUSALS]
    if stage.max_bad is not None and len(bad) > stage.max_bad * seen.read:
        first = "; ".join(f"{row.source} row {row.row}: {row.reason}" for row in bad[:3])
        yield ("data",), ConfigError(
            f"{len(bad)} of {seen.read} rows are bad", found=first,
            expected=f"at most {stage.max_bad:.1%} (max_bad)",
            hint=f"by reason: {counted(row.slug for row in bad)}; mend them, correct `format`, or raise max_bad "
                 f"(--set {stage.name}.max_bad=null: any number, kept in bad.jsonl)")
        return
    empty = [split for split, rows in seen.splits.items() if not rows]
    if empty:
        yield ("split",), ConfigError(f"split {', '.join(empty)} has no rows", found=seen_rows,
                                      expected="at least one row in every split")
        return
    sight.rows |= {f"{stage.name}/{split}": rows for split, rows in seen.splits.items()}


def _sources(stage: ImportData, limit: int) -> Iterator[tuple[int, ConfigError | None]]:
    """Sources that cannot be read (with the error), or are not read now (None)."""
    for index, source in enumerate(stage.data):
        if source.path is None:
            yield index, _hub_library(source)
            continue
        if "://" in source.path:
            yield index, next(nowhere(source.path), None)
            continue
        path = on_this_machine(source.path)
        if not path.is_file():
            near = sorted(other.name for other in path.parent.glob("*.json*"))[:5] if path.parent.is_dir() else []
            yield index, ConfigError(
                "the data file does not exist", found=source.path, expected=f"a file at {path.absolute()}",
                hint=f"there are {', '.join(near)}" if near else "relative paths start at the working directory")
        elif not os.access(path, os.R_OK):
            yield index, ConfigError("the data file may not be read by this user", found=source.path)
        elif path.stat().st_size > limit:
            yield index, None


def _hub_library(source: Source) -> ConfigError | None:
    """A data set of the hub is not asked for before its stage is made: that may fetch all of it."""
    if importlib.util.find_spec("datasets") is not None:
        return None
    return ConfigError("the datasets package, which reads the hub's data sets, is not installed", found=source.place,
                       expected="kubealign[train]", hint="pip install 'kubealign[train]'")


def _train(run: Run, stage: TrainBase, sight: Sight) -> Wrong:
    workers, gpus = run.compute.workers, run.compute.gpus_per_worker
    start = run.stage(stage.model)
    if start.base is not None and stage.adapter is not None:
        yield from _continues(stage.adapter, start)
    if not stage.micro_batch(workers):
        yield ("batch_size",), ConfigError(
            "batch_size cannot be shared out over the workers",
            found=f"{stage.batch_size}, {workers} workers", expected=f"a multiple of {workers}")
    if workers > 1 and 0 < gpus < 1:
        yield (), ConfigError("workers that train need a GPU each: NCCL refuses two ranks on one",
                              found=f"compute.gpus_per_worker: {gpus:g}", expected="1, or 1 worker")
    for finding in unfit(run.compute.sharding, run.compute.deepspeed, workers, stage):
        yield finding.place, ConfigError(finding.problem, found=finding.found, expected=finding.expected)
    if (said := stage.defaulted()) is not None:
        sight.note(stage.name, said)
    yield from adaptable(sight, stage)
    yield from learned(run, stage)
    yield from learnable(sight, stage)
    yield from tellable(sight, stage)
    yield from comparable(run, sight, stage)
    yield from trainable(run, sight, stage)


def _online(run: Run, stage: Online, sight: Sight) -> Wrong:
    for name, part in stage.reward.parts.items():
        place = ("reward", "parts", name)
        if part.function is not None:
            yield from _function((*place, "function"), part.function, built_in=True)
        if part.batch_function is not None:
            yield from _function((*place, "batch_function"), part.batch_function, built_in=False)
    yield from _train(run, stage, sight)


def _sample(run: Run, stage: Sample, sight: Sight) -> Wrong:
    yield from _scoring(stage)
    yield from _rubric(stage.score)
    yield from askable_there(run, stage)
    yield from askable(sight, stage)


def _generate(run: Run, stage: Generate) -> Wrong:
    """What every recipe has: prompt files that can be read, a teacher that can be asked."""
    for prompt in stage.prompt_files():
        yield from _prompt(("prompts", prompt.step), prompt)
    yield from askable_there(run, stage)


def _self_instruct(run: Run, stage: SelfInstruct, sight: Sight) -> Wrong:
    yield from _generate(run, stage)
    yield from seedable(run, sight, stage)


def _document_qa(run: Run, stage: DocumentQa, sight: Sight) -> Wrong:
    yield from _generate(run, stage)
    yield from questionable(run, sight, stage)


def _import_reader(run: Run, stage: ImportReader, sight: Sight) -> Wrong:
    try:
        MODELS[type(stage.model)](stage.name, stage.model)
    except KubeAlignError as error:
        yield ("model",), error


def _import_reward(run: Run, stage: ImportReward, sight: Sight) -> Wrong:
    yield from _import_reader(run, stage, sight)
    if stage.template is not None and stage.template not in templates.names():
        yield ("template",), ConfigError("no chat template of this name is shipped", found=stage.template,
                                         expected="one of " + ", ".join(templates.names()))


def _quality(run: Run, stage: SelectQuality, sight: Sight) -> Wrong:
    yield from _scoring(stage)
    yield from judgeable(sight, stage)


def _contrastive(run: Run, stage: Contrastive, sight: Sight) -> Wrong:
    yield from _generate(run, stage)
    yield from _scoring(stage)
    yield from _rubric(stage.score)
    yield from contrastable(sight, stage)


def _multihop(run: Run, stage: MultiHop, sight: Sight) -> Wrong:
    yield from _generate(run, stage)
    yield from retrievable(run, sight, stage)


def _infer(run: Run, stage: Infer, sight: Sight) -> Wrong:
    yield from askable_there(run, stage)
    yield from inferable(sight, stage)


def _evaluate(run: Run, stage: Evaluate, sight: Sight) -> Wrong:
    yield from _scoring(stage)
    if stage.score is not None:
        yield from _rubric(stage.score)
    yield from askable_there(run, stage)
    yield from measurable_there(run, stage)
    yield from measurable(run, sight, stage)
    yield from walkable(run, sight, stage)


def _evaluate_pairs(run: Run, stage: EvaluatePairs, sight: Sight) -> Wrong:
    for name, judge in stage.judges.items():
        if judge.function is not None:
            yield from _function(("judges", name, "function"), judge.function, built_in=True)
        if judge.judge is not None:
            yield from _prompt(("judges", name, "judge", "prompt"), judge.judge.file)
    yield from askable_there(run, stage)
    yield from comparable_pairs(run, sight, stage)


def _continues(own: Adapter, start: AnyStage) -> Wrong:
    """An imported adapter is continued as it is."""
    source: Any = start.sources()[0].source
    try:
        made = read_adapter_config(folder_path(start.name, source), f"stage {start.name}, model.path")
    except KubeAlignError:
        return  # said of the stage that imports it
    if own.quantised is not None:
        yield ("strategy", "kind"), ConfigError(
            f"continues the adapter of stage {start.name}, which stands on weights that are not quantised",
            found=own.kind, expected="lora, or full, which merges it")
    for key, name in (("r", "r"), ("alpha", "lora_alpha")):
        if getattr(own, key) != made[name]:
            yield ("strategy", key), ConfigError(
                f"continues the adapter of stage {start.name}, which has another {key}", found=getattr(own, key),
                expected=str(made[name]), hint="or strategy full, which merges it")


def _rubric(score: JudgedScorer) -> Wrong:
    if score.judge is not None:
        yield from _prompt(("score", "judge", "prompt"), score.judge.file)


def _prompt(place: Place, prompt: PromptFile) -> Wrong:
    try:
        read_prompt(prompt, "")
    except ConfigError as error:
        yield place, ConfigError(error.problem, found=error.found, expected=error.expected)


def _scoring(stage: Sample | Evaluate | Contrastive | SelectQuality) -> Wrong:
    if stage.score is not None and stage.score.function is not None:
        yield from _function(("score", "function"), stage.score.function, built_in=True)


def _function(place: Place, name: str, *, built_in: bool) -> Wrong:
    """A scoring function that cannot be found. It is located, not imported: a user's module may take minutes, or a
    GPU."""
    if built_in and name in BUILT_IN:
        return
    (module, colon, function), expected = name.partition(":"), named(built_in=built_in)
    if not (colon and module and function):
        yield place, ConfigError("not a reward function", found=name, expected=expected)
        return
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        yield place, ConfigError("the reward function's module is not installed", found=module, expected=expected,
                                 hint="install it, or put its folder on PYTHONPATH")
    elif (names := _defined(spec.origin)) is not None and function not in names:
        yield place, ConfigError("the module has no such function", found=name,
                                 expected=close_to(function, [name for name in names if name[0] != "_"]))


def _defined(file: str | None) -> list[str] | None:
    """Names that a module's source gives to functions, classes and variables, and to what it imports; None where that
    does not show."""
    if file is None or not file.endswith(".py"):
        return None
    try:
        tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return None
    found: list[str] = []
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop(0)
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                found.append(name)
                continue  # what stands within is not the module's
            case ast.Name(id=name, ctx=ast.Store()):
                found.append(name)
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                found += [alias.asname or alias.name for alias in names]
        waiting += ast.iter_child_nodes(node)
    return None if "*" in found or "__getattr__" in found else found


def wrong_here(stage: AnyStage) -> Wrong:
    """What is known to fail of a stage that is made on this machine, and not in an image of its own."""
    yield from row_of(HERE, type(stage))(stage)


def _nothing(stage: AnyStage) -> Wrong:
    return iter(())


def _hygiene_here(stage: ImportData | Generate) -> Wrong:
    if stage.hygiene is not None and (lacking := lacks(stage.hygiene)):
        yield ("hygiene",), ConfigError("a package that it looks with is not installed", found=", ".join(lacking),
                                        expected="kubealign[hygiene]", hint="pip install 'kubealign[hygiene]'")


def _choose(run: Run, stage: Choose, sight: Sight) -> Wrong:
    """Nothing is wrong with files; what comes after it reads what its models have in common."""
    roots = {root(run, name) for name in stage.models}
    if len(roots) > 1:
        yield ("models",), ConfigError("the models come of several imports, so no later stage knows what it reads",
                                       found=", ".join(sorted(roots)), expected="rounds over the model that they start "
                                                                                "from")
        return
    last = stage.models[-1]
    if last in sight.layers:
        sight.layers[stage.name] = sight.layers[last]
    if last in sight.marks:
        sight.marks[stage.name] = sight.marks[last]
    if last in sight.templates:
        sight.templates[stage.name] = sight.templates[last]
    if last in sight.settled:
        sight.settled.add(stage.name)


CHECKS: dict[type[Stage], Callable[[Run, Any, Sight], Wrong]] = {
    ImportModel: _import_model, ImportEndpoint: named_there, FromArtifact: _from_artifact, ImportData: _import_data,
    ImportDocuments: readable,
    ImportReader: _import_reader, ImportReward: _import_reward, SelfInstruct: _self_instruct,
    DocumentQa: _document_qa, Contrastive: _contrastive, MultiHop: _multihop, SelectQuality: _quality,
    SelectCoverage: coverable, SelectNecessity: answerable, SelectMerge: mergeable, SelectRandom: drawable,
    TrainBase: _train, Online: _online, Sample: _sample, Infer: _infer, Evaluate: _evaluate,
    EvaluatePairs: _evaluate_pairs, EvaluateHarness: harnessed, Choose: _choose, Export: exportable,
}
"""Stage class -> its check."""
HERE: dict[type[Stage], Callable[[Any], Wrong]] = {
    ImportModel: _nothing, ImportEndpoint: _nothing, FromArtifact: _nothing, ImportData: _hygiene_here,
    ImportDocuments: _nothing,
    Generate: _hygiene_here, ImportReader: _nothing, Select: _nothing, TrainBase: train, Sample: _nothing,
    Infer: _nothing, Evaluate: _nothing, EvaluatePairs: _nothing, EvaluateHarness: harnessed_here, Choose: _nothing,
    Export: exportable_here,
}
"""Stage class -> what it needs of the machine that makes it."""
MODELS: dict[type, Callable[[str, Any], None]] = {
    HubModel: lambda stage, model: None, FolderModel: _check_folder, GgufModel: _check_gguf,
    TinyModel: lambda stage, model: None,
}
"""Where a model comes from -> its check, from (stage's name, source); raises what is wrong."""
