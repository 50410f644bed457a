"""Records -> token columns for TRL's trainers, with every row accounted for.

We tokenize, TRL trains: ids come from `alignment.templates`, the same place that sampling and scoring use, so
what is learned is what will be asked. Counts rows that are too long or cannot serve, and supervised tokens:
zero is an error before the first step. Does not batch, pad or pack (TRL does).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from alignment import templates
from alignment.config import Dpo, Reward, Sft, TrainStage
from alignment.data.projections import to_preference, to_sft
from alignment.errors import DataError
from alignment.records import Message, Record

Columns = dict[str, Any]
IGNORED = -100
"""Label of tokens without a loss (torch's cross entropy convention)."""


@dataclass
class Prepared:
    """Rows ready for a trainer.

    Attributes:
        rows: one dict per row; always with `row` (index into `ids`).
        ids: record ids, for messages about a batch.
        dropped: (record id, reason) of every row that is not in `rows`.
        changed: reason -> rows kept but altered.
        supervised: tokens with a loss.
        lengths: tokens per sequence (per side for preferences).
    """

    rows: list[Columns] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    dropped: list[tuple[str, str]] = field(default_factory=list)
    changed: Counter[str] = field(default_factory=Counter)
    supervised: int = 0
    lengths: list[int] = field(default_factory=list)


class TooLong(Exception):
    """A row over max_length that the policy does not allow to be cut."""


def prepare(records: Iterable[Record], tokenizer: Any, stage: TrainStage, where: str) -> Prepared:
    """Tokenize the records of a train stage.

    Args:
        where: names the rows in errors, for example `stage sft, rows seed/train`.

    Raises:
        DataError: no row can serve the method, a row is too long under `too_long: error`, or nothing is supervised.
    """
    columns: Callable[[Record, Any, Any, Prepared], Columns | str] = (
        _sft if isinstance(stage, Sft) else _reward if isinstance(stage, Reward) else _dpo
    )
    prepared, types = Prepared(), Counter[str]()
    for record in records:
        types[record.type] += 1
        try:
            made = columns(record, tokenizer, stage, prepared)
        except TooLong as error:
            if stage.too_long == "error":
                raise DataError(
                    "a row is longer than max_length", where=f"{where}, row {record.id}", found=str(error),
                    expected=f"at most {stage.max_length} tokens",
                    hint="raise max_length, or set too_long: drop or truncate-prompt",
                ) from None
            made = "longer than max_length" if stage.too_long == "drop" else "answer alone longer than max_length"
        if isinstance(made, str):
            prepared.dropped.append((record.id, made))
        else:
            prepared.rows.append({"row": len(prepared.ids), **made})
            prepared.ids.append(record.id)
    if not prepared.rows:
        raise DataError(
            f"no row can be used for method {stage.method}", where=where,
            found=f"{sum(types.values())} rows of types {dict(types)}, dropped: "
                  f"{dict(Counter(reason for _, reason in prepared.dropped))}",
            expected="preference rows" if not isinstance(stage, Sft) else "rows with an answer, within max_length",
        )
    if not prepared.supervised:
        raise DataError("there is not one supervised token: every label is masked", where=where,
                        found=f"loss over {getattr(stage, 'loss', 'answers')}",
                        hint="the template may lack generation markers; set `template` on the import stage")
    return prepared


def _fit(prompt: list[int], longest: int, stage: TrainStage, prepared: Prepared) -> list[int]:
    """The prompt ids, cut at the left where prompt and the longest answer exceed max_length and policy allows."""
    over = len(prompt) + longest - stage.max_length
    if over <= 0:
        return prompt
    if stage.too_long != "truncate-prompt" or longest >= stage.max_length:
        raise TooLong(f"{len(prompt) + longest} tokens")
    prepared.changed["prompt truncated at the left"] += 1
    return prompt[over:]


def _sft(record: Record, tokenizer: Any, stage: Sft, prepared: Prepared) -> Columns | str:
    projected = to_sft(record)
    if isinstance(projected, str):
        return projected
    conversation: list[Message] = projected
    if stage.loss == "completion":
        if conversation[-1]["role"] != "assistant":
            return "the last turn is not the assistant's"
        prompt, answer = templates.encode_completion(tokenizer, conversation[:-1], conversation[-1]["content"])
        prompt = _fit(prompt, len(answer), stage, prepared)
        ids, labels = prompt + answer, [IGNORED] * len(prompt) + answer
    else:
        ids, mask = templates.encode_conversation(tokenizer, conversation)
        if len(ids) > stage.max_length:
            raise TooLong(f"{len(ids)} tokens")
        labels = list(ids) if stage.loss == "all" else [i if m else IGNORED for i, m in zip(ids, mask, strict=True)]
    supervised = sum(label != IGNORED for label in labels)
    if not supervised:
        return "no supervised token"
    prepared.supervised += supervised
    prepared.lengths.append(len(ids))
    return {"input_ids": ids, "labels": labels}


def _pair(
    record: Record, tokenizer: Any, stage: Any, prepared: Prepared
) -> tuple[list[int], list[int], list[int]] | str:
    projected = to_preference(record)
    if isinstance(projected, str):
        return projected
    messages, chosen_text, rejected_text = projected
    prompt, chosen = templates.encode_completion(tokenizer, messages, chosen_text)
    _, rejected = templates.encode_completion(tokenizer, messages, rejected_text)
    if chosen == rejected:
        return "chosen and rejected are the same tokens"
    prompt = _fit(prompt, max(len(chosen), len(rejected)), stage, prepared)
    prepared.supervised += len(chosen) + len(rejected)
    prepared.lengths += [len(prompt) + len(chosen), len(prompt) + len(rejected)]
    return prompt, chosen, rejected


def _reward(record: Record, tokenizer: Any, stage: Reward, prepared: Prepared) -> Columns | str:
    pair = _pair(record, tokenizer, stage, prepared)
    if isinstance(pair, str):
        return pair
    prompt, chosen, rejected = pair
    return {"chosen_ids": prompt + chosen, "rejected_ids": prompt + rejected}


def _dpo(record: Record, tokenizer: Any, stage: Dpo, prepared: Prepared) -> Columns | str:
    pair = _pair(record, tokenizer, stage, prepared)
    if isinstance(pair, str):
        return pair
    prompt, chosen, rejected = pair
    return {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
