"""Every stage of a run with its size, rows, tokens, memory and time, finished or to do. No stage is started.

Walks the run in order, as later stages read what earlier ones make. Does not choose anything: a plan says what
the run file asks for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from alignment.artifacts import Artifact
from alignment.config import (
    AnyStage,
    Compute,
    Evaluate,
    FolderModel,
    GgufModel,
    HubModel,
    ImportData,
    ImportModel,
    Run,
    Sample,
    Stage,
    TinyModel,
    TrainBase,
    row_of,
)
from alignment.config.arithmetic import settled_here
from alignment.config.hardware import device_here
from alignment.config.stages.fields import on_this_machine
from alignment.data.fingerprint import gguf_path
from alignment.planner import estimate, rows
from alignment.planner.context_length import fitted, of_stage
from alignment.planner.estimate import Memory, Rates
from alignment.planner.rows import RowSet
from alignment.planner.sizes import ModelSize, size_from_config, size_of_folder, size_of_gguf, size_of_tiny


@dataclass(frozen=True)
class StagePlan:
    """What a stage needs; None where it cannot be known yet (a hub model that was not imported).

    Attributes:
        rows: rows read (all, in one pass), or written by an import; `rows_known` says whether that is exact.
        tokens: tokens computed: over all epochs of a training, all models of an evaluation; in generation with
            answers of full length. `counted`: by the tokenizer.
        needs_model: False where the stage computes with none, so that its `size` never comes.
        seconds: estimated for one worker of this machine's CPU; measured where the stage is finished.
    """

    name: str
    what: str
    size: ModelSize | None = None
    rows: float | None = None
    tokens: float | None = None
    rows_known: bool = True
    counted: bool = False
    memory: Memory | None = None
    seconds: float | None = None
    artifact: Artifact | None = None
    needs_model: bool = True


@dataclass
class _State:
    run: Run
    artifacts: Mapping[str, Artifact | None]
    rates: Rates
    sizes: dict[str, ModelSize | None] = field(default_factory=dict)
    sets: dict[str, RowSet] = field(default_factory=dict)
    lengths: rows.Lengths | None = None

    @property
    def compute(self) -> Compute:
        return self.run.compute


def plan(run: Run, artifacts: Mapping[str, Artifact | None], rates: Rates) -> list[StagePlan]:
    """One `StagePlan` per stage, in order.

    Args:
        artifacts: finished artifacts by stage name (`pipeline.status`).
        rates: of one worker (`measure_rates`).

    Raises:
        DataError, ModelError: a data file or a local model cannot be read.
    """
    run = settled_here(run)
    state = _State(run, artifacts, rates)
    state.lengths = next((found for stage in run.stages if stage.makes == "policy"
                          if (found := _tokenizer(artifacts.get(stage.name)))), None)
    return [_stage(state, fitted(stage, lambda name: of_stage(run, name))) for stage in run.stages]


def _stage(state: _State, stage: AnyStage) -> StagePlan:
    made = row_of(PLANS, type(stage))(state, stage)
    artifact = state.artifacts.get(stage.name)
    if artifact is None:
        return made
    return replace(made, artifact=artifact, seconds=artifact.manifest.seconds)


def _tokenizer(artifact: Artifact | None) -> rows.Lengths | None:
    # A remote model folder is gigabytes to fetch; a plan is not worth it.
    return rows.by_tokenizer(artifact.path() / "model") if artifact is not None and artifact.store.is_local else None


def _import_model(state: _State, stage: ImportModel) -> StagePlan:
    artifact, model = state.artifacts.get(stage.name), stage.model
    size: ModelSize | None
    if stage.base is not None:  # an adapter, whose few weights do not count
        size = state.sizes[stage.name] = state.sizes[stage.base]
        return StagePlan(stage.name, stage.title(), size)
    if artifact is not None and artifact.store.is_local:
        size = size_of_folder(artifact.path() / "model")
    elif artifact is not None:
        config = f"{artifact.store.root}/artifacts/{artifact.key}/model/config.json"
        size = size_from_config(json.loads(artifact.store.fs.cat_file(config)))
    else:
        size = SIZES[type(model)](stage.name, model)
    state.sizes[stage.name] = size
    stored = {"float32": estimate.FLOAT32}.get(stage.dtype, estimate.BFLOAT16)
    memory = None if size is None else Memory(weights=size.parameters * stored)
    return StagePlan(stage.name, stage.title(), size, memory=memory)


def _import_data(state: _State, stage: ImportData) -> StagePlan:
    artifact = state.artifacts.get(stage.name)
    sets = (rows.of_artifact(artifact, stage.splits(), state.lengths) if artifact is not None
            else rows.of_sources(state.run, stage, state.lengths))
    state.sets |= {f"{stage.name}/{split}": found for split, found in sets.items()}
    every = rows.together(list(sets.values()))
    return StagePlan(stage.name, stage.title(), rows=every.rows, rows_known=every.known, counted=every.counted,
                     needs_model=False, tokens=every.rows * (every.prompt + every.answer + every.rejected))


def _train(state: _State, stage: TrainBase) -> StagePlan:
    size = state.sizes[stage.name] = state.sizes[stage.model]
    read = rows.together([state.sets[ref] for ref in stage.rows])
    if (take := state.run.scaled(stage.take)) is not None:
        read = replace(read, rows=min(read.rows, take))
    lora = stage.adapter
    steps_asked = int(stage.trl.get("max_steps", -1))
    passes = read.rows * stage.epochs if steps_asked <= 0 else float(steps_asked * stage.batch_size)
    row_tokens = _row_tokens(stage, read)
    tokens = passes * row_tokens
    base = StagePlan(stage.name, stage.title(), size, read.rows, tokens, read.known, read.known and read.counted)
    if size is None:
        return base
    checkpointing = bool(stage.trl.get("gradient_checkpointing", device_here(state.compute) == "cuda"))
    sequences = stage.sequences
    length = min(read.longest, stage.longest)
    frozen_copy = stage.reference_mode == "adapter"
    memory = estimate.train_memory(
        size, lora_rank=lora.r if lora else None, frozen_bytes=_value_bytes(stage),
        sequences=max(1, stage.micro_batch(state.compute.workers)) * sequences, length=round(length),
        head=stage.makes == "policy", checkpointing=checkpointing, reference=frozen_copy,
        quantised=lora is not None and lora.quantised is not None,
    )
    mean = row_tokens / sequences
    flops = estimate.train_flops(size, tokens, mean, lora=lora is not None, checkpointing=checkpointing)
    if stage.reference_mode is not None:  # the reference sees every row once, or in every epoch where it is not kept
        flops += estimate.forward_flops(size, tokens if frozen_copy else read.rows * row_tokens, mean)
    if stage.eval_rows is not None:
        held = state.sets[stage.eval_rows]
        times = passes / stage.batch_size // stage.checkpoints.every
        flops += estimate.forward_flops(size, times * held.rows * _row_tokens(stage, held), mean)
    seconds = flops / state.rates.flops / max(1, state.compute.workers)
    return replace(base, memory=memory, seconds=seconds)


def _value_bytes(stage: AnyStage) -> int:
    """Bytes of one frozen weight."""
    return estimate.FLOAT32 if stage.arithmetic == "float32" else estimate.BFLOAT16


def _row_tokens(stage: TrainBase, read: RowSet) -> float:
    """Mean tokens computed for a row: its answer after its prompt, and for pairs the rejected one after it again."""
    answer = min(read.prompt + read.answer, stage.longest)
    return answer if stage.sequences == 1 else answer + min(
        read.prompt + (read.rejected or read.answer), stage.longest)


def _sample(state: _State, stage: Sample) -> StagePlan:
    prompts = rows.together([state.sets[ref] for ref in stage.prompts])
    artifact = state.artifacts.get(stage.name)
    made = (rows.of_artifact(artifact, stage.splits(), state.lengths) if artifact is not None
            else rows.of_sample(state.run, stage, prompts))
    state.sets |= {f"{stage.name}/{split}": found for split, found in made.items()}
    take = state.run.scaled(stage.take)
    asked = prompts.rows if take is None else min(prompts.rows, take)
    models = 2 if stage.pairs == "newest-previous" else 1
    return _generation(state, stage, state.sizes[stage.model], asked, prompts, stage.n, models)


def _evaluate(state: _State, stage: Evaluate) -> StagePlan:
    read = state.sets[stage.rows]
    take = state.run.scaled(stage.take)
    asked = read.rows if take is None else min(read.rows, take)
    size = state.sizes[stage.models[0]]
    return _generation(state, stage, size, asked, read, 1, len(stage.models), perplexity=stage.perplexity)


def _generation(
    state: _State, stage: Sample | Evaluate, size: ModelSize | None, asked: float, prompts: RowSet, answers: int,
    models: int, *, perplexity: bool = False,
) -> StagePlan:
    new = stage.sampling.max_new_tokens
    prompt = min(prompts.prompt, stage.longest_prompt)
    tokens = models * asked * answers * (prompt + new)
    base = StagePlan(stage.name, stage.title(), size, asked, tokens, prompts.known)
    if size is None:
        return base
    value = _value_bytes(stage)
    longest = round(min(prompts.longest, stage.longest_prompt) + new)
    scorer = stage.score is not None and stage.score.model is not None
    memory = estimate.generate_memory(size, weight_bytes=value, sequences=stage.batch_size * answers, length=longest,
                                      scorer=scorer)
    seconds = models * estimate.generate_seconds(
        size, state.rates, prompts=asked, batch=stage.batch_size, answers=answers, prompt_tokens=prompt,
        new_tokens=new, weight_bytes=value,
    )
    scored = tokens * (1 if scorer else 0) + (tokens if perplexity else 0)
    seconds += estimate.forward_flops(size, scored, prompt + new) / state.rates.flops
    return replace(base, memory=memory, seconds=seconds / max(1, state.compute.workers))


PLANS: dict[type[Stage], Callable[[_State, Any], StagePlan]] = {
    ImportModel: _import_model, ImportData: _import_data, TrainBase: _train, Sample: _sample, Evaluate: _evaluate,
}
"""Stage class -> what one of its stages will need."""
SIZES: dict[type, Callable[[str, Any], ModelSize | None]] = {
    HubModel: lambda stage, model: None,
    FolderModel: lambda stage, model: size_of_folder(on_this_machine(model.path)),
    GgufModel: lambda stage, model: size_of_gguf(gguf_path(stage, model)),
    TinyModel: lambda stage, model: size_of_tiny(model),
}
"""Where a model comes from -> its size before it is imported, from (stage's name, source); None: not known yet."""
