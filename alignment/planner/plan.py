"""Every stage of a run with its size, rows, tokens, memory and time, finished or to do. No stage is started.

Walks the run in order, as later stages read what earlier ones make. Does not choose anything: a plan says what
the run file asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from alignment.artifacts import Artifact
from alignment.config import (
    AnyStage,
    Choose,
    Contrastive,
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
    Infer,
    JudgedScorer,
    Run,
    Sample,
    Select,
    SelectCoverage,
    SelectNecessity,
    SelectQuality,
    SelectRandom,
    Stage,
    TrainBase,
    row_of,
)
from alignment.config.arithmetic import settled, settled_here
from alignment.config.cards import Cards
from alignment.config.hardware import Native
from alignment.config.run import adapter_of
from alignment.config.stages.export import ROWS, TOKENS
from alignment.config.stages.fields import LENGTH
from alignment.config.stages.online import Online
from alignment.data.artifact_source import known_here
from alignment.errors import DataError
from alignment.planner import estimate, rows
from alignment.planner.context_length import fitted, of_stage
from alignment.planner.estimate import Memory, Rates
from alignment.planner.judging import judging, together
from alignment.planner.model_sizes import SIZES, of_any, of_artifact, of_reader
from alignment.planner.need import value_bytes
from alignment.planner.probed import Probed
from alignment.planner.rows import RowSet
from alignment.planner.sharing import overhead
from alignment.planner.sizes import ModelSize
from alignment.planner.state import StagePlan, State
from alignment.planner.training import of_online, of_training

MFU, READ = 0.35, 0.6
"""Shares of a GPU's rates that are counted on: of its matrix products in training and prompts, and of its memory's in
generation. Assumptions, on the careful side: NVIDIA's NeMo AutoModel reports 40 % for LoRA on an 8B model."""


def on_cards(run: Run, cards: Cards) -> Run:
    """The run as so many GPUs of one kind would compute it, a worker each where there are several."""
    several = cards.number if cards.number > 1 else 0
    compute = run.compute.model_copy(update={
        "device": "cpu" if cards.card is None else "cuda", "workers": several, "gpus_per_worker": float(several > 0),
        "gpu": None if cards.card is None else cards.name})
    return run.model_copy(update={"compute": compute})


def rates_of(cards: Cards) -> Rates:
    """What a plan counts on of one GPU."""
    assert cards.card is not None
    return Rates(flops=cards.card.bf16_tflops * 1e12 * MFU, bandwidth=cards.card.bandwidth_gbs * 1e9 * READ)


def plan(
    run: Run, artifacts: Mapping[str, Artifact | None], rates: Rates, cards: Cards | None = None,
    probes: Sequence[Probed] = (),
) -> list[StagePlan]:
    """One `StagePlan` per stage, in order.

    Args:
        artifacts: finished artifacts by stage name (`pipeline.status`).
        rates: of one worker (`measure_rates`, `rates_of`).
        cards: GPUs to plan for, where not this machine; with a run made by `on_cards`.
        probes: from which the memory of trainings starts that depends on the same.

    Raises:
        DataError, ModelError: a data file or a local model cannot be read.
    """
    native: Native = "gpu" if cards is not None and cards.card is not None else None
    run = settled_here(run) if cards is None else settled(run, lambda stage: native)
    state = State(run, artifacts, rates, cards=cards, probes=probes)
    state.lengths = next((found for stage in run.stages if stage.makes == "policy"
                          if (found := _tokenizer(artifacts.get(stage.name)))), None)
    return [_stage(state, fitted(stage, lambda name: of_stage(run, name))) for stage in run.stages]


def _stage(state: State, stage: AnyStage) -> StagePlan:
    made: StagePlan = row_of(PLANS, type(stage))(state, stage)
    own = rows.together([state.sets[f"{stage.name}/{split}"] for split in stage.splits()])
    about = own.about or any(state.sets[ref.ref].about for ref in stage.row_refs())
    made = replace(made, rows_about=about, looked=None if own.looked is None else (own.looked, own.rows))
    artifact = state.artifacts.get(stage.name)
    if artifact is None:
        return made
    return replace(made, artifact=artifact, seconds=artifact.manifest.seconds)


def _tokenizer(artifact: Artifact | None) -> rows.Lengths | None:
    # A remote model folder is gigabytes to fetch; a plan is not worth it.
    return rows.by_tokenizer(artifact.path() / "model") if artifact is not None and artifact.store.is_local else None


def _import_model(state: State, stage: ImportModel) -> StagePlan:
    artifact, model = state.artifacts.get(stage.name), stage.model
    size: ModelSize | None
    if stage.base is not None:  # an adapter, whose few weights do not count
        size = state.sizes[stage.name] = state.sizes[stage.base]
        return StagePlan(stage.name, stage.title(), size)
    size = SIZES[type(model)](stage.name, model) if artifact is None else of_artifact(artifact)
    state.sizes[stage.name] = size
    stored = {"float32": estimate.FLOAT32}.get(stage.dtype, estimate.BFLOAT16)
    memory = None if size is None else Memory(weights=size.parameters * stored)
    return StagePlan(stage.name, stage.title(), size, memory=memory)


def _import_reader(state: State, stage: ImportReader) -> StagePlan:
    size = state.sizes[stage.name] = of_reader(stage.name, stage.model)
    stored = {"float32": estimate.FLOAT32}.get(stage.dtype, estimate.BFLOAT16)
    memory = None if size is None else Memory(weights=size.parameters * stored)
    return StagePlan(stage.name, stage.title(), size, memory=memory)


def _import_artifact(state: State, stage: FromArtifact) -> StagePlan:
    """Nothing is computed; what it brings is looked at where it lies in a folder."""
    origin = state.artifacts.get(stage.name) or known_here(stage.reference.within(state.run.store))
    if stage.makes != "rows":
        size = state.sizes[stage.name] = None if origin is None else of_any(origin)
        return StagePlan(stage.name, stage.title(), size, needs_model=False, seconds=0.0)

    def to_come() -> dict[str, RowSet]:
        if origin is None:
            raise DataError("rows of another run are not known before they are brought, where its store is not a "
                            "folder here", where=f"stage {stage.name}", found=stage.reference.artifact,
                            hint=f"kubealign run RUN.yaml --stage {stage.name}, and then plan")
        return rows.of_artifact(origin, stage.splits(), state.lengths)

    return _import_rows(state, stage, to_come)


def _import_endpoint(state: State, stage: ImportEndpoint) -> StagePlan:
    """Nothing is computed here; what asking takes is planned with who asks."""
    state.sizes[stage.name] = None
    return StagePlan(stage.name, stage.title(), needs_model=False, seconds=0.0)


def _import_data(state: State, stage: ImportData) -> StagePlan:
    def to_come() -> dict[str, RowSet]:
        if hub := [source.place for source in stage.data if source.path is None]:
            raise DataError("rows of the hub are not known before their stage is made: knowing them may mean fetching "
                            "them all", where=f"stage {stage.name}", found=", ".join(hub),
                            hint=f"kubealign run RUN.yaml --stage {stage.name}, and then plan")
        return rows.of_sources(state.run, stage, state.lengths)

    return _import_rows(state, stage, to_come)


def _import_documents(state: State, stage: ImportDocuments) -> StagePlan:
    return _import_rows(state, stage, lambda: rows.of_documents(state.run, stage, state.lengths))


def _import_rows(state: State, stage: AnyStage, to_come: Callable[[], dict[str, RowSet]]) -> StagePlan:
    artifact = state.artifacts.get(stage.name)
    sets = rows.of_artifact(artifact, stage.splits(), state.lengths) if artifact is not None else to_come()
    state.sets |= {f"{stage.name}/{split}": found for split, found in sets.items()}
    every = rows.together(list(sets.values()))
    return StagePlan(stage.name, stage.title(), rows=every.rows, rows_known=every.known, counted=every.counted,
                     needs_model=False, tokens=every.rows * (every.prompt + every.answer + every.rejected))


def _sample(state: State, stage: Sample) -> StagePlan:
    prompts = rows.together([state.sets[ref] for ref in stage.prompts])
    artifact = state.artifacts.get(stage.name)
    made = (rows.of_artifact(artifact, stage.splits(), state.lengths) if artifact is not None
            else rows.of_sample(state.run, stage, prompts))
    state.sets |= {f"{stage.name}/{split}": found for split, found in made.items()}
    take = state.run.scaled(stage.take)
    asked = prompts.rows if take is None else min(prompts.rows, take)
    names = [stage.model] if stage.previous is None else [stage.model, stage.previous]
    made_of = _generation(state, stage, names, asked, prompts, stage.n)
    answers, prompt = len(names) * stage.n, min(prompts.prompt, stage.longest_prompt)
    return _judged(state, stage, stage.score, made_of, asked, answers, prompt, stage.sampling.max_new_tokens)


def _generate(state: State, stage: Generate) -> StagePlan:
    """The most that it may ask, every answer of full length; tasks refused on the way make it less."""
    shown_rows = rows.together([state.sets[place.ref] for place in stage.shown()])
    artifact, take = state.artifacts.get(stage.name), state.run.scaled(stage.take)
    if stage.per_row:
        take = round(shown_rows.rows) if take is None else min(take, round(shown_rows.rows))
    assert take is not None, "only where every row may be shown is there no number of them"
    loads = stage.requests(take)
    more = shown_rows.rows * any(load.per_row for load in loads)
    state.sets |= {f"{stage.name}/{split}": found for split, found in (
        rows.of_artifact(artifact, stage.splits(), state.lengths) if artifact is not None
        else {split: rows.at_most(shown_rows, take + more) for split in stage.splits()}).items()}
    size, tokens, seconds, longest, cost = state.sizes[stage.teacher], 0.0, 0.0, 0.0, 0.0
    there = state.run.stage(stage.teacher).endpoint
    for load in loads:
        asked, new = load.requests + load.per_row * shown_rows.rows, load.new_tokens
        prompt = load.own + load.shown * (shown_rows.prompt + (shown_rows.answer if load.answers else 0))
        if there is None:
            prompt = min(stage.longest_prompt, prompt)
        elif there.limits.price is not None:
            cost += asked * there.limits.price.of(prompt, new)
        tokens += asked * (prompt + new)
        longest = max(longest, stage.longest_prompt + new)
        if size is not None:
            seconds += estimate.generate_seconds(
                size, state.rates, prompts=asked, batch=stage.batch_size, answers=1, prompt_tokens=prompt,
                new_tokens=new, weight_bytes=value_bytes(stage.arithmetic))
    title = state.run.title_of(stage)
    title += f", costs about {cost:.3g} at most" if cost else ""
    base = StagePlan(stage.name, title, size, shown_rows.rows, tokens, False, needs_model=there is None)
    if size is None:
        return base
    memory = estimate.generate_memory(
        size, weight_bytes=value_bytes(stage.arithmetic), sequences=stage.batch_size, length=round(longest),
        scorer=False, quantised=_is_quantised(state.run, stage), on_gpu=state.device(stage).on_gpu)
    return replace(base, memory=memory, seconds=seconds / max(1, state.compute.workers))


def _pool(state: State, stage: Select) -> RowSet:
    return rows.together([state.sets[ref] for ref in stage.rows])


def _select(state: State, stage: Select) -> StagePlan:
    """Rows change hands, without a model."""
    read = _pool(state, stage)
    return _selected(state, stage, read, read.rows, known=False)


def _cut(state: State, stage: SelectNecessity) -> StagePlan:
    read = _pool(state, stage)
    return _selected(state, stage, read, read.rows * (stage.quantile or 1.0), known=False)


def _quality(state: State, stage: SelectQuality) -> StagePlan:
    read = _pool(state, stage)
    _selected(state, stage, read, read.rows * (1 - (stage.quantile or 0.0)), known=False)
    return _reading(state, stage, stage.score.model, read, read.prompt + read.answer)


def _few(state: State, stage: SelectCoverage | SelectRandom) -> StagePlan:
    read, wanted = _pool(state, stage), state.run.scaled(stage.take)
    few = min(read.rows, wanted) if wanted is not None else max(1.0, round(read.rows * (stage.share or 1.0)))
    return _selected(state, stage, read, few, known=read.known)


def _coverage(state: State, stage: SelectCoverage) -> StagePlan:
    _few(state, stage)
    read = _pool(state, stage)
    return _reading(state, stage, stage.embedder, read, min(read.prompt, stage.max_tokens))


def _selected(state: State, stage: Select, read: RowSet, kept: float, *, known: bool) -> StagePlan:
    """The rows that it leaves, and its plan where no model reads them."""
    artifact = state.artifacts.get(stage.name)
    made = ({split: replace(read, rows=kept, known=known) for split in stage.splits()} if artifact is None
            else rows.of_artifact(artifact, stage.splits(), state.lengths))
    state.sets |= {f"{stage.name}/{split}": found for split, found in made.items()}
    return StagePlan(stage.name, state.run.title_of(stage), rows=read.rows, rows_known=read.known, needs_model=False,
                     seconds=0.0)


def _reading(
    state: State, stage: SelectQuality | SelectCoverage, model: str | None, read: RowSet, length: float
) -> StagePlan:
    """One pass of a model over every row."""
    size, tokens = None if model is None else state.sizes[model], read.rows * length
    base = StagePlan(stage.name, state.run.title_of(stage), size, read.rows, tokens, read.known,
                     needs_model=model is not None)
    if size is None:
        return base
    value = value_bytes(stage.arithmetic)
    seconds = estimate.forward_flops(size, tokens, length) / state.rates.flops / max(1, state.compute.workers)
    return replace(base, memory=_passing(state, stage, size, stage.batch_size * length, value), seconds=seconds)


def _passing(state: State, stage: AnyStage, size: ModelSize, tokens: float, value: int) -> Memory:
    """Memory of one pass over so many tokens, with nothing kept of it."""
    passing = round(tokens * (4 * size.hidden + 3 * size.intermediate + size.inner) * value)
    return Memory(weights=size.parameters * value, activations=passing,
                  overhead=overhead(passing, on_gpu=state.device(stage).on_gpu))


def _evaluate_pairs(state: State, stage: EvaluatePairs) -> StagePlan:
    """Every judge reads both answers of every pair, one judge after the other; a language model also answers."""
    read, take = state.sets[stage.rows], state.run.scaled(stage.take)
    pairs = read.rows if take is None else min(read.rows, take)
    answer, value = (read.answer + (read.rejected or read.answer)) / 2, value_bytes(stage.arithmetic)
    length, tokens, seconds, cost, here = read.prompt + answer, 0.0, 0.0, 0.0, False
    memories, sizes = list[Memory](), list[ModelSize | None]()
    for score in stage.judges.values():
        if score.model is not None:
            size, here = state.sizes[score.model], True
            tokens += 2 * pairs * length
            sizes.append(size)
            if size is not None:
                seconds += estimate.forward_flops(size, 2 * pairs * length, length) / state.rates.flops
                memories.append(_passing(state, stage, size, 2 * stage.batch_size * length, value))
        if score.judge is not None:
            size = state.sizes[score.judge.model]
            own = judging(state.run, score.judge, size, state.rates, prompts=pairs, answers=2, prompt=read.prompt,
                          answer=answer, batch=stage.batch_size, weight_bytes=value,
                          on_gpu=state.device(stage).on_gpu)
            tokens, cost = tokens + own.tokens, cost + own.cost
            if state.run.stage(score.judge.model).endpoint is None:
                here, seconds = True, seconds + (own.seconds or 0.0)
                sizes.append(size)
                memories += [] if own.memory is None else [own.memory]
    title = f"{stage.title()}, costs about {cost:.3g} at most" if cost else stage.title()
    known = None not in sizes
    largest = max((size for size in sizes if size is not None), key=lambda one: one.parameters, default=None)
    return StagePlan(stage.name, title, largest if known else None, pairs, tokens, read.known, needs_model=here,
                     memory=max(memories, key=lambda one: one.total, default=None) if known else None,
                     seconds=seconds / max(1, state.compute.workers) if known else None)


def _evaluate(state: State, stage: Evaluate) -> StagePlan:
    read = state.sets[stage.rows]
    take = state.run.scaled(stage.take)
    asked = read.rows if take is None else min(read.rows, take)
    if stage.retrieve is None:
        made = _generation(state, stage, stage.models, asked, read, 1, perplexity=stage.asks_likelihoods)
    else:
        # At most: every question asks as often as it may, behind prompts that grow as far as they may.
        made = _generation(state, stage, stage.models, asked, read, 1, perplexity=stage.asks_likelihoods,
                           turns=stage.retrieve.steps + 1)
        embedder = state.sizes[stage.retrieve.embedder]
        if made.memory is not None and embedder is not None:
            made = replace(made, memory=replace(made.memory, weights=made.memory.weights + embedder.parameters
                                                * value_bytes(stage.arithmetic)))
    judge = None if stage.score is None else stage.score.judge
    if stage.score is None or judge is None:
        return made
    # Every two that are compared are asked about by themselves; marks are given to each answer.
    prompts, answers = (asked * len(stage.pairs()), 2) if judge.mode == "compare" else (asked, len(stage.models))
    return _judged(state, stage, stage.score, made, prompts, answers, min(read.prompt, stage.longest_prompt),
                   stage.sampling.max_new_tokens)


def _evaluate_harness(state: State, stage: EvaluateHarness) -> StagePlan:
    """How long documents are, nobody knows before the harness has built its prompts: the memory is that of
    prompts of LENGTH tokens, and there is no time."""
    sizes = [state.sizes[name] for name in stage.models]
    known = [size for size in sizes if size is not None]
    largest = max(known, key=lambda one: one.parameters, default=None) if len(known) == len(sizes) else None
    limit = state.run.scaled(stage.harness.limit)
    memory = None if largest is None else _passing(state, stage, largest, stage.batch_size * LENGTH,
                                                   value_bytes(stage.arithmetic))
    documents = None if limit is None else limit * len(stage.harness.tasks)
    return StagePlan(stage.name, stage.title(), largest, documents, None, False, memory=memory)


def _infer(state: State, stage: Infer) -> StagePlan:
    read = state.sets[stage.prompts]
    return _generation(state, stage, [stage.model], read.rows, read, stage.n)


def _generation(
    state: State, stage: Sample | Infer | Evaluate, names: Sequence[str], asked: float, prompts: RowSet, answers: int,
    *, perplexity: bool = False, turns: int = 1,
) -> StagePlan:
    """Time and memory are of the models that compute here; of endpoints it says what answers cost.

    Args:
        turns: how often a model is asked before it answers, at most, each time with more in the prompt.
    """
    new = stage.sampling.max_new_tokens
    prompt = min(prompts.prompt, stage.longest_prompt)
    here = [name for name in names if state.run.stage(name).endpoint is None]
    models, size = len(here), state.sizes[here[0]] if here else None
    tokens = len(names) * asked * answers * turns * (prompt + new)
    prices = [model.limits.price for name in names if (model := state.run.stage(name).endpoint) is not None]
    cost = sum(asked * answers * turns * price.of(prompt, new) for price in prices if price is not None)
    title = f"{stage.title()}, costs {cost:.3g} at most" if cost else stage.title()
    base = StagePlan(stage.name, title, size, asked, tokens, prompts.known, needs_model=bool(here))
    if size is None:
        return base
    value, quantised = value_bytes(stage.arithmetic), _is_quantised(state.run, stage)
    longest = round((min(prompts.longest, stage.longest_prompt) if turns == 1 else stage.longest_prompt) + new)
    scorer = any(ref.role == "reward" for ref in stage.model_refs())
    memory = estimate.generate_memory(size, weight_bytes=value, sequences=stage.batch_size * answers, length=longest,
                                      scorer=scorer, quantised=quantised, on_gpu=state.device(stage).on_gpu)
    seconds = models * estimate.generate_seconds(
        size, state.rates, prompts=asked * turns, batch=stage.batch_size, answers=answers, prompt_tokens=prompt,
        new_tokens=new, weight_bytes=value,
    )
    scored = tokens * (1 if scorer else 0) + (tokens if perplexity else 0)
    seconds += estimate.forward_flops(size, scored, prompt + new) / state.rates.flops
    return replace(base, memory=memory, seconds=seconds / max(1, state.compute.workers))


def _contrastive(state: State, stage: Contrastive) -> StagePlan:
    """Every try of every row, and every answer scored; the pairs have an answer of full length as their second."""
    made = _generate(state, stage)
    split = f"{stage.name}/{stage.splits()[0]}"
    shown = rows.together([state.sets[place.ref] for place in stage.shown()])
    if state.artifacts.get(stage.name) is None:
        state.sets[split] = replace(state.sets[split], rejected=stage.opposites.max_new_tokens)
    asked, = stage.requests(round(state.sets[split].rows))
    return _judged(state, stage, stage.score, made, 1, asked.requests + state.sets[split].rows, shown.prompt,
                   stage.opposites.max_new_tokens)


def _judged(
    state: State, stage: Sample | Contrastive | Evaluate, score: JudgedScorer, made: StagePlan, prompts: float,
    answers: float, prompt: float, answer: float,
) -> StagePlan:
    """The plan of a stage with what its judge takes beside.

    Args:
        answers: to each prompt.
    """
    if (judge := score.judge) is None:
        return made
    size = state.sizes[judge.model]
    own = judging(state.run, judge, size, state.rates, prompts=prompts, answers=answers, prompt=prompt, answer=answer,
                  batch=stage.batch_size, weight_bytes=value_bytes(stage.arithmetic),
                  on_gpu=state.device(stage).on_gpu)
    what = f"{made.what}, its judge costs about {own.cost:.3g} at most" if own.cost else made.what
    made = replace(made, what=what, tokens=(made.tokens or 0.0) + own.tokens)
    if state.run.stage(judge.model).endpoint is not None:
        return made
    one_model = any(ref.stage == judge.model for ref in stage.model_refs() if not ref.drawn)
    seconds = None if own.seconds is None else own.seconds / max(1, state.compute.workers)
    if not made.needs_model:  # who answers is an endpoint
        return replace(made, size=size, seconds=seconds, memory=own.memory, needs_model=True)
    if seconds is None or made.seconds is None:
        return replace(made, seconds=None, memory=None)
    return replace(made, seconds=made.seconds + seconds,
                   memory=together(made.memory, own.memory, one_model=one_model))


def _choose(state: State, stage: Choose) -> StagePlan:
    """Files change hands; the largest of the models may be the one."""
    sizes = [size for name in stage.models if (size := state.sizes[name]) is not None]
    size = state.sizes[stage.name] = max(sizes, key=lambda one: one.parameters, default=None)
    return StagePlan(stage.name, stage.title(), size, needs_model=False, seconds=0.0)


def _export(state: State, stage: Export) -> StagePlan:
    """Weights are merged in float32, whole; each form and the trained model read the compared rows once."""
    size = state.sizes[stage.name] = state.sizes[stage.model]
    read = state.sets[stage.rows] if stage.rows is not None else None
    count = ROWS if read is None else min(read.rows, state.run.scaled(stage.take) or ROWS)
    length = float(stage.max_tokens or TOKENS) if read is None else min(read.longest, stage.max_tokens or TOKENS)
    forms = len(stage.form) + len(stage.gguf or ("q8_0",)) * ("gguf" in stage.form)
    base = StagePlan(stage.name, stage.title(), size, rows=float(count), tokens=count * length * (1 + forms),
                     rows_known=read is None or read.known)
    if size is None:
        return base
    memory = Memory(weights=size.parameters * estimate.FLOAT32)
    return replace(base, memory=memory,
                   seconds=estimate.forward_flops(size, base.tokens or 0.0, length) / state.rates.flops)


def _is_quantised(run: Run, stage: AnyStage) -> bool:
    """Whether the models that a stage generates with stand on a base in four bits."""
    stages = {other.name: other for other in run.stages}
    starts = [adapter_of(stages, ref.stage) for ref in stage.model_refs() if ref.role == "policy"]
    return bool(starts) and all(start is not None and start.quantised is not None for start in starts)


PLANS: dict[type[Stage], Callable[[State, Any], StagePlan]] = {
    ImportModel: _import_model, ImportReader: _import_reader, ImportEndpoint: _import_endpoint,
    FromArtifact: _import_artifact,
    ImportData: _import_data, ImportDocuments: _import_documents, Generate: _generate, Select: _select,
    SelectQuality: _quality, SelectCoverage: _coverage, SelectNecessity: _cut, SelectRandom: _few,
    Contrastive: _contrastive,
    TrainBase: of_training, Online: of_online, Sample: _sample, Infer: _infer, Evaluate: _evaluate,
    EvaluatePairs: _evaluate_pairs, EvaluateHarness: _evaluate_harness, Choose: _choose, Export: _export,
}
"""Stage class -> what one of its stages will need."""
