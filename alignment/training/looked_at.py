"""Rows as a training would see them: ids, and which of them are learned. For people who look, before anything is made.

The columns are the method's own, so what is shown is what would be trained. Trains nothing and writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from alignment.config import TrainBase
from alignment.config.stages import METHODS
from alignment.errors import ConfigError, DataError, ModelError
from alignment.inference.info import INFO
from alignment.inference.loading import load_tokenizer
from alignment.inference.settle import set_template, settle
from alignment.records import Record
from alignment.training.methods import method_of
from alignment.training.prepare import IGNORED, Columns, Prepared, TooLong, begun

WITHOUT_LIMIT = 1 << 30
"""Tokens; of a stage that is made to look alone, unless a limit is asked for."""


@dataclass(frozen=True)
class Sequence:
    """One token sequence of a row.

    Attributes:
        name: which of the row's answers it ends with; "" where there is one.
        ids: [T].
        learned: [T], whether the loss asks for this token.
    """

    name: str
    ids: list[int]
    learned: list[bool]


@dataclass(frozen=True)
class Looked:
    """A record and its sequences; none, and why, where the method cannot use it."""

    record: Record
    sequences: list[Sequence]
    reason: str | None = None


def to_look(method: str, loss: str | None, max_length: int | None) -> TrainBase:
    """A stage of a method that is there to look alone.

    Raises:
        ConfigError: the method needs what no row has (a teacher, a reward), or has no such key.
    """
    kind = next(kind for kind in METHODS if kind.tag == method)
    if loss is not None and "loss" not in kind.model_fields:
        raise ConfigError("the method has no choice of what is learned", where="--loss", found=loss,
                          expected=f"no --loss with --method {method}")
    if loss is not None and loss not in (choices := get_args(kind.model_fields["loss"].annotation)):
        raise ConfigError("no such loss", where="--loss", found=loss, expected="one of " + ", ".join(choices))
    return kind.model_validate({
        "name": "look", "method": method, "model": "model", "rows": ("data/rows",),
        "max_length": max_length or WITHOUT_LIMIT, **({} if loss is None else {"loss": loss})})


def opened(named: str, template: str | None, where: str) -> PreTrainedTokenizerBase:
    """A settled tokenizer of a model folder (ours or its maker's), a GGUF file, or a repository of the hub.

    Args:
        template: a shipped template in place of the model's own.

    Raises:
        ModelError: there is no such tokenizer, or nothing can be settled on it.
    """
    place = Path(named).expanduser()
    place = place / "model" if (place / "model" / INFO).exists() else place
    if (place / INFO).exists() and template is None:
        return load_tokenizer(place, side="right")
    try:
        tokenizer: PreTrainedTokenizerBase
        if place.suffix == ".gguf":
            tokenizer = AutoTokenizer.from_pretrained(place.parent, gguf_file=place.name, local_files_only=True)
        else:
            tokenizer = AutoTokenizer.from_pretrained(place if place.exists() else named,
                                                      local_files_only=place.exists())
    except (OSError, ValueError) as error:
        raise ModelError(f"there is no tokenizer to load: {str(error).splitlines()[0]}", where=where, found=named,
                         expected="a model folder, a GGUF file, or the name of a repository of the hub") from error
    set_template(tokenizer, template, where)
    settle(tokenizer, where)
    return tokenizer


def of_model(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of an artifact with a model."""
    return load_tokenizer(folder / "model", side="right")


def look(records: Iterable[Record], tokenizer: PreTrainedTokenizerBase, stage: TrainBase) -> Iterator[Looked]:
    """Each record as the stage's method would have it, in order."""
    for record, finish in begun(records, tokenizer, stage, method_of(stage).columns, Prepared()):
        try:
            made = finish()
        except TooLong as error:
            yield Looked(record, [], f"{error.reason} ({error})")
            continue
        except (DataError, ModelError) as error:
            yield Looked(record, [], error.problem)
            continue
        if isinstance(made, str):
            yield Looked(record, [], made)
        else:
            rows = made if isinstance(made, list) else [made]
            yield Looked(record, [sequence for row in rows for sequence in sequences(row)])


def sequences(row: Columns) -> list[Sequence]:
    """The token sequences of a row's columns, by the names that TRL's trainers know them by."""
    if "input_ids" in row:
        return [Sequence("", row["input_ids"], [label != IGNORED for label in row["labels"]])]
    if "prompt" in row:  # of an online method, which draws the answer
        return [Sequence("prompt", row["prompt"], [False] * len(row["prompt"]))]
    prompt = row.get("prompt_ids", [])
    answers = {"chosen": "chosen_ids", "rejected": "rejected_ids", "": "completion_ids"}
    wanted = {True: "wanted", False: "unwanted", None: ""}[row.get("label")]
    return [Sequence(name or wanted, prompt + row[key], [False] * len(prompt) + _answer(row, key))
            for name, key in answers.items() if key in row]


def _answer(row: Columns, key: str) -> list[bool]:
    """What of an answer counts: all of it; of a reward model's, whose ids are prompt and answer, where it is read."""
    if "prompt_ids" in row:
        return [True] * len(row[key])
    return [False] * (len(row[key]) - 1) + [True]
