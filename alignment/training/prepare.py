"""Records -> token columns for TRL's trainers, with every row accounted for.

We tokenize, TRL trains: ids come from `alignment.templates`, the same place that sampling and scoring use, so
what is learned is what will be asked. Counts rows that are too long or cannot serve, and supervised tokens:
zero is an error before the first step. Which columns a row becomes is its method's to say. Does not batch, pad or pack
(TRL does).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

from alignment import templates
from alignment.config import TrainBase
from alignment.data.projections import to_preference
from alignment.errors import DataError, KubeAlignError, ModelError
from alignment.records import Record
from alignment.templates import Encoding

Columns = dict[str, Any]
AT_ONCE = 256
"""Records whose texts are encoded in one batch."""
IGNORED = -100
"""Label of tokens without a loss (torch's cross entropy convention)."""

SPELLED = {"as-text": "a special token in its text learned as letters",
           "as-tokens": "a special token in its text learned as that token"}
"""What is counted of rows that spell one, by the model's convention; `refuse` drops them."""


class Sink(Protocol):
    """Where rows go: a list, or a file."""

    def append(self, row: Columns, /) -> None:
        """Take one more."""


@dataclass
class Prepared:
    """Rows ready for a trainer.

    Attributes:
        rows: one dict per row; always with `row` (index into `ids`).
        ids: the record that each row is made from, for messages about a batch.
        read: records seen; a method may make several rows of one.
        not_taken: records that `take` left out, unseen.
        dropped: (record id, reason) of every row that is not in `rows`.
        changed: reason -> rows kept but altered.
        supervised: tokens with a loss.
        lengths: tokens per sequence (per side for preferences).
    """

    rows: Sink = field(default_factory=lambda: list[Columns]())
    ids: list[str] = field(default_factory=list)
    read: int = 0
    not_taken: int = 0
    dropped: list[tuple[str, str]] = field(default_factory=list)
    changed: Counter[str] = field(default_factory=Counter)
    supervised: int = 0
    lengths: list[int] = field(default_factory=list)


MakesColumns = Callable[[Record, Any, Any, Prepared], Encoding[Columns | list[Columns] | str]]
"""A method's way from a record to its rows, or to why it has none."""


class TooLong(Exception):
    """A row over max_length that the policy does not allow to be cut, or that no cut would make fit.

    Args:
        tokens: of the whole row.
        reason: why it goes, where rows that are too long are not an error.
    """

    def __init__(self, tokens: int, reason: str = "longer than max_length") -> None:
        super().__init__(f"{tokens} tokens")
        self.reason = reason


def prepare(
    records: Iterable[Record], tokenizer: Any, stage: TrainBase, where: str,
    columns: MakesColumns, into: Prepared | None = None,
) -> Prepared:
    """Tokenize the records of a train stage.

    Args:
        columns: the method's.
        where: names the rows in errors, for example `stage sft, rows seed/train`.
        into: an empty one to fill, if its rows are to go somewhere else than into a list.

    Raises:
        DataError: no row can serve the method, a row is too long under `too_long: error`, or nothing is supervised.
        ModelError: the model's template or tokenizer can serve no row.
    """
    prepared, types, odd = into or Prepared(), Counter[str](), list[KubeAlignError]()
    for record, finish in begun(records, tokenizer, stage, columns, prepared):
        types[record.type] += 1
        prepared.read += 1
        try:
            made = finish()
        except TooLong as error:
            if stage.too_long == "error":
                raise DataError(
                    "a row is longer than max_length", where=f"{where}, row {record.id}", found=str(error),
                    expected=f"at most {stage.longest} tokens",
                    hint="raise max_length, or set too_long: drop or truncate-prompt",
                ) from None
            made = error.reason
        except (DataError, ModelError) as error:  # sampling and evaluation leave such a row out as well
            made = error.problem
            odd.append(error)
        if isinstance(made, str):
            prepared.dropped.append((record.id, made))
            continue
        if _spells(record, tokenizer):
            prepared.changed[SPELLED[templates.Convention.of(tokenizer).special_tokens_in_text]] += 1
        for row in made if isinstance(made, list) else [made]:
            prepared.rows.append({"row": len(prepared.ids), **row})
            prepared.ids.append(record.id)
    if not prepared.ids and prepared.read and sum(isinstance(error, ModelError) for error in odd) == prepared.read:
        raise odd[0]  # then it is the model, and no row
    if not prepared.ids:
        raise DataError(
            f"no row can be used for method {stage.method}", where=where,
            found=f"{prepared.read} rows of types {dict(types)}, dropped: "
                  f"{dict(Counter(reason for _, reason in prepared.dropped))}",
            expected=stage.reads, hint=odd[0].hint if odd else None,
        )
    if not prepared.supervised:
        raise DataError("there is not one supervised token: every label is masked", where=where,
                        found=f"loss over {getattr(stage, 'loss', 'answers')}",
                        hint="the template may lack generation markers; set `template` on the import stage")
    return prepared


def begun(
    records: Iterable[Record], tokenizer: Any, stage: TrainBase, columns: MakesColumns, prepared: Prepared
) -> Iterator[tuple[Record, Callable[[], Columns | list[Columns] | str]]]:
    """Each record, and what gives its rows; the texts of many records are encoded in one batch."""
    left = iter(records)
    while some := list(islice(left, AT_ONCE)):
        yield from zip(some, templates.together(
            tokenizer, [columns(record, tokenizer, stage, prepared) for record in some]), strict=True)


def _spells(record: Record, tokenizer: Any) -> bool:
    texts = [{"content": text} for text in (record.completion, record.rejected) if text is not None]
    return bool(templates.spelled(tokenizer, [*record.messages, *record.prompt, *texts]))


def cut_prompt(prompt: list[int], longest: int, stage: TrainBase, prepared: Prepared) -> list[int]:
    """The prompt ids, cut at the left where prompt and the longest answer exceed max_length and policy allows.

    Raises:
        TooLong: it does not allow, or the answer alone is too long.
    """
    over = len(prompt) + longest - stage.longest
    if over <= 0:
        return prompt
    if stage.too_long != "truncate-prompt":
        raise TooLong(len(prompt) + longest)
    if longest >= stage.longest:
        raise TooLong(len(prompt) + longest, _alone(longest, stage))
    prepared.changed["prompt truncated at the left"] += 1
    return prompt[over:]


def cut_turns(mask: list[int], stage: TrainBase, prepared: Prepared) -> int:
    """Where a whole conversation begins that is cut at the left to fit: 0, or never within an answer or at its start.

    An answer that would be cut goes whole, with what stands before it; each answer that stays has something before it.

    Args:
        mask: of the conversation's tokens, 1 for what the assistant says.

    Raises:
        TooLong: it may not be cut, or its last answer does not fit.
    """
    over = len(mask) - stage.longest
    if over <= 0:
        return 0
    if stage.too_long != "truncate-prompt":
        raise TooLong(len(mask))
    begin = over
    while begin < len(mask) and mask[begin]:
        begin += 1
    if any(mask) and not any(mask[begin:]):
        last = len(mask) - mask[::-1].index(1)
        longest = next((n for n in range(last) if not mask[last - 1 - n]), last)
        raise TooLong(len(mask), _alone(longest, stage))
    lost = any(mask[:begin])
    prepared.changed["cut at the left, with earlier answers" if lost else "prompt truncated at the left"] += 1
    return begin


def _alone(answer: int, stage: TrainBase) -> str:
    if answer > stage.longest:
        return "answer alone longer than max_length"
    return "answer leaves no room for a prompt within max_length"


def pair(
    record: Record, tokenizer: Any, stage: TrainBase, prepared: Prepared
) -> Encoding[tuple[list[int], list[int], list[int]] | str]:
    """Ids of the prompt, the chosen and the rejected answer of a preference; or why the record cannot serve."""
    projected = to_preference(record)
    if isinstance(projected, str):
        return projected
    messages, chosen_text, rejected_text = projected
    (prompt, chosen), (_, rejected) = yield from templates.gather(
        [templates.completing(tokenizer, messages, text) for text in (chosen_text, rejected_text)])
    if chosen == rejected:
        return "chosen and rejected are the same tokens"
    prompt = cut_prompt(prompt, max(len(chosen), len(rejected)), stage, prepared)
    prepared.supervised += len(chosen) + len(rejected)
    prepared.lengths += [len(prompt) + len(chosen), len(prompt) + len(rejected)]
    return prompt, chosen, rejected
