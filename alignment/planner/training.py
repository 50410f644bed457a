"""What train stages need, of given rows and online: tokens, and memory and time of passes, steps and drawing."""

from __future__ import annotations

from dataclasses import replace

from alignment.config import TrainBase
from alignment.config.sharding import zero_stage
from alignment.config.stages.online import Online
from alignment.planner import estimate, rows
from alignment.planner.estimate import Memory
from alignment.planner.need import Device, beside, checkpoints, fitting_rows, memory_of, value_bytes
from alignment.planner.probed import Probed, corrected, likeness
from alignment.planner.rows import RowSet
from alignment.planner.sizes import ModelSize
from alignment.planner.state import NO_CARDS, StagePlan, State


def of_training(state: State, stage: TrainBase) -> StagePlan:
    """Passes over given rows, those of a frozen model beside, and of rows held out."""
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
    second = None if stage.frozen is None else state.sizes[stage.frozen.stage]
    if stage.frozen is not None and second is None:
        return base
    device = state.device(stage)
    checkpointing, sequences = checkpoints(stage, device.on_gpu), stage.sequences
    length = round(min(read.longest, stage.longest))
    micro = fitting_rows(stage, size, device, state.cards or NO_CARDS, length, second)
    memory = memory_of(stage, size, device, rows=micro, length=length, second=second)
    mean = row_tokens / sequences
    flops = estimate.train_flops(size, tokens, mean, lora=lora is not None, checkpointing=checkpointing)
    if stage.reference_mode is not None:  # the reference sees every row once, or in every epoch where it is not kept
        once = tokens if stage.reference_mode == "adapter" else read.rows * row_tokens
        flops += estimate.forward_flops(second or size, once, mean)
    elif second is not None:  # a teacher reads every batch
        flops += estimate.forward_flops(second, tokens, mean)
    if stage.eval_rows is not None:
        held = state.sets[stage.eval_rows]
        times = passes / stage.batch_size // stage.checkpoints.every
        flops += estimate.forward_flops(size, times * held.rows * _row_tokens(stage, held), mean)
    seconds = flops / state.rates.flops / max(1, state.compute.workers)
    return replace(_from_probes(state, stage, base, device, memory, micro, length, second), seconds=seconds,
                   beside=beside(stage, size, device, second))


def of_online(state: State, stage: Online) -> StagePlan:
    """Generation and training one after the other; answers of full length, a reward model as large as the policy."""
    size = state.sizes[stage.name] = state.sizes[stage.model]
    read = rows.together([state.sets[ref] for ref in stage.rows])
    if (take := state.run.scaled(stage.take)) is not None:
        read = replace(read, rows=min(read.rows, take))
    device = state.device(stage)
    new, times, workers = stage.max_new_tokens, stage.num_generations, device.workers
    prompt = min(read.prompt, stage.longest - new)
    steps_asked = int(stage.trl.get("max_steps", -1))
    prompts = read.rows * stage.epochs if steps_asked <= 0 else float(steps_asked * stage.rows_per_step)
    tokens = prompts * times * (prompt + new)
    base = StagePlan(stage.name, stage.title(), size, read.rows, tokens, read.known)
    if size is None:
        return base
    length = round(min(read.longest, stage.longest - new)) + new
    micro = fitting_rows(stage, size, device, state.cards or NO_CARDS, length)
    memory = memory_of(stage, size, device, rows=micro, length=length)
    looks = stage.scorers + stage.has_reference + 1  # the last: log-probabilities of what was drawn
    flops = (stage.passes * estimate.train_flops(size, tokens, prompt + new, lora=stage.adapter is not None,
                                                 checkpointing=checkpoints(stage, device.on_gpu))
             + looks * estimate.forward_flops(size, tokens, prompt + new))
    seconds = flops / state.rates.flops / workers + _drawn_in(state, stage, size, prompts, times, prompt) / workers
    if stage.eval_rows is not None:
        held = state.sets[stage.eval_rows]
        evaluations = 1 + prompts / stage.rows_per_step // stage.checkpoints.every
        seconds += _drawn_in(state, stage, size, evaluations * held.rows, 1, held.prompt) / workers
    return replace(_from_probes(state, stage, base, device, memory, micro, length), seconds=seconds,
                   beside=beside(stage, size, device))


def _from_probes(
    state: State, stage: TrainBase, base: StagePlan, device: Device, memory: Memory, rows: int, length: int,
    second: ModelSize | None = None,
) -> StagePlan:
    """The plan with the memory of a pass; a probe measures one worker, which shares nothing out."""
    made, size = replace(base, memory=memory, micro_batch=rows, length=length), base.size
    if zero_stage(device.sharding) or size is None:
        return made
    like = likeness(state.run, stage, on_gpu=device.on_gpu)

    def formula(probe: Probed) -> Memory:
        batch = probe.rows * (2 if probe.accumulates else 1)
        return memory_of(stage.model_copy(update={"batch_size": batch}), size, Device(device.on_gpu), rows=probe.rows,
                         length=probe.length, second=second)

    memory, probed = corrected(memory, rows, length, [one for one in state.probes if one.like == like], formula,
                               device.workers)
    return replace(made, memory=memory, like=like, probed=probed)


def _drawn_in(state: State, stage: Online, size: ModelSize, prompts: float, answers: int, prompt: float) -> float:
    return estimate.generate_seconds(
        size, state.rates, prompts=prompts, batch=stage.rows_per_step if answers > 1 else stage.batch_size,
        answers=answers, prompt_tokens=prompt, new_tokens=stage.max_new_tokens,
        weight_bytes=value_bytes(stage.arithmetic))


def _row_tokens(stage: TrainBase, read: RowSet) -> float:
    """Mean tokens computed for a row: its answer after its prompt, and for pairs the rejected one after it again."""
    answer = min(read.prompt + read.answer, stage.longest)
    return answer if stage.sequences == 1 else answer + min(
        read.prompt + (read.rejected or read.answer), stage.longest)
