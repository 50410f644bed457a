"""Which prompts are sampled and with which parameters, all from the run's seed and the row's id.

Nothing depends on the order of work, the batch or the number of workers, so a resumed run draws the same.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import replace

from alignment.config import Sampling
from alignment.inference.sampling import Draw
from alignment.records import Record


def as_prompt(record: Record) -> Record | None:
    """The record with a prompt to answer and, where it has one, its reference as `completion`; None without a prompt.

    A conversation is asked again at its last question. The unwanted completion of an unpaired row is no reference.
    """
    if record.type == "messages":
        turns, last = record.messages, None
        if turns and turns[-1]["role"] == "assistant":
            turns, last = turns[:-1], turns[-1]["content"]
        record = replace(record, prompt=turns, completion=last)
    elif record.label is False:
        record = replace(record, completion=None)
    return record if record.prompt and record.prompt[-1]["role"] in ("user", "tool") else None


def choose_prompts(records: Sequence[Record], take: int | None, seed: int) -> list[Record]:
    """At most `take` records, drawn by a hash of seed and id, in their input order.

    A larger take holds the smaller one's rows, so that scaling a run up adds prompts and swaps none.
    """
    if take is None or take >= len(records):
        return list(records)
    ranked = sorted(records, key=lambda record: hashlib.sha256(f"{seed}/{record.id}".encode()).digest())
    kept = {record.id for record in ranked[:take]}
    return [record for record in records if record.id in kept]


def draws(row: str, seed: int, n: int, sampling: Sampling, first: Sampling | None = None,
          model: str = "newest") -> tuple[Draw, ...]:
    """The `n` draws of one prompt; pairs [low, high] of the config become numbers here.

    Args:
        row: the prompt's id.
        seed: the run's seed.
        first: parameters of draw 0, where they differ.
        model: enters the seed, so that two models never share their random numbers.
    """
    made = []
    for index in range(n):
        given = first if first is not None and index == 0 else sampling
        # A string seeds Python's generator by sha512: the same on every machine and version.
        source = random.Random(f"{seed}/{model}/{row}/{index}")
        made.append(Draw(
            temperature=_value(given.temperature, source),
            top_p=_value(given.top_p, source),
            top_k=source.randint(*given.top_k) if isinstance(given.top_k, tuple) else given.top_k,
            repetition_penalty=given.repetition_penalty,
            max_new_tokens=given.max_new_tokens,
            seed=source.getrandbits(62),
        ))
    return tuple(made)


def _value(given: float | tuple[float, float], source: random.Random) -> float:
    return source.uniform(*given) if isinstance(given, tuple) else given
