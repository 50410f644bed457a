"""One check for each stage kind, in `CHECKS` under its class: what its stages read, and what that must be.

Every finding is made, none stops the next. A data file over the limit is looked for but not read: its stage reads it.
What is imported is looked at in imported.py; rows are judged in rows.py, models in layers.py, templates in told.py, the
machine in machine.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from alignment.checks.contrast import contrastable
from alignment.checks.documents import readable
from alignment.checks.endpoints import askable_there, measurable_there
from alignment.checks.endpoints import named as named_there
from alignment.checks.export import exportable, exportable_here
from alignment.checks.functions import callable_by_name
from alignment.checks.harness import harnessed, harnessed_here
from alignment.checks.imported import (
    importable_artifact,
    importable_data,
    importable_model,
    importable_reader,
    importable_reward,
)
from alignment.checks.layers import adaptable
from alignment.checks.lengths import trainable
from alignment.checks.machine import train
from alignment.checks.new_tokens import learned
from alignment.checks.passages import questionable
from alignment.checks.retrieved import answerable as retrievable
from alignment.checks.rows import askable, comparable_pairs, inferable, learnable, measurable
from alignment.checks.seeds import seedable
from alignment.checks.seen import Sight, Wrong
from alignment.checks.selected import answerable, coverable, drawable, judgeable, mergeable
from alignment.checks.tokens import comparable, root
from alignment.checks.told import tellable
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
    FromArtifact,
    Generate,
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
    Stage,
    TrainBase,
    row_of,
)
from alignment.config.prompts import PromptFile, read_prompt
from alignment.config.sharding import unfit
from alignment.config.stages.fields import Place
from alignment.config.stages.online import Online
from alignment.data.adapter_config import read_adapter_config
from alignment.data.fingerprint import folder_path
from alignment.data.hygiene import lacks
from alignment.errors import ConfigError, KubeAlignError


def wrong(run: Run, stage: AnyStage, sight: Sight) -> Wrong:
    """Everything that is known to fail of one stage. Asked of all stages of a run, in their order.

    Args:
        run: as it would be executed.
        sight: what was seen of the stages before; gets what was seen of this one.
    """
    yield from row_of(CHECKS, type(stage))(run, stage, sight)


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
            yield from callable_by_name((*place, "function"), part.function, built_in=True)
        if part.batch_function is not None:
            yield from callable_by_name((*place, "batch_function"), part.batch_function, built_in=False)
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
            yield from callable_by_name(("judges", name, "function"), judge.function, built_in=True)
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
        yield from callable_by_name(("score", "function"), stage.score.function, built_in=True)


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
    ImportModel: importable_model, ImportEndpoint: named_there, FromArtifact: importable_artifact,
    ImportData: importable_data, ImportDocuments: readable,
    ImportReader: importable_reader, ImportReward: importable_reward, SelfInstruct: _self_instruct,
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
