"""How many rows a stage will read and how long they are, in tokens.

Counted from a finished artifact, else from the source files; of more than 20,000 rows the lengths are those of 5,000
(and of the longest), and of files also the number is estimated from them. Tokens are the tokenizer's own where the
model is imported (and `tokenizers` is installed), else a character count over `CHARS_PER_TOKEN`. The chat template's
own tokens are not counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from alignment.artifacts import Artifact
from alignment.config import FieldSplit, ImportData, ImportDocuments, Run, Sample
from alignment.config.stages.fields import on_this_machine
from alignment.data.documents.readers import missing
from alignment.data.documents.rows import Reading
from alignment.data.hygiene import Cleaner, lacks
from alignment.data.import_documents import divided_documents
from alignment.data.read import SourceRows, divided, read_sources
from alignment.records import Record, each_line, record_of
from alignment.records.few import Few
from alignment.records.importers import BadRow

CHARS_PER_TOKEN = 4
"""English text under a byte-pair vocabulary of 30,000 to 150,000; other languages have fewer."""
Lengths = Callable[[Sequence[str]], list[int]]


@dataclass(frozen=True)
class RowSet:
    """Rows and their mean lengths in tokens.

    Attributes:
        rows: how many.
        prompt, answer, rejected: mean tokens of each part; 0 where rows have no such part.
        longest: tokens of the longest row, prompt and longer answer.
        counted: False where the lengths are an estimate.
        known: False where the number of rows is one.
        looked: rows whose lengths were looked at; None: all.
        about: where the number of rows is estimated from those.
    """

    rows: float
    prompt: float = 0.0
    answer: float = 0.0
    rejected: float = 0.0
    longest: float = 0.0
    counted: bool = False
    known: bool = True
    looked: float | None = None
    about: bool = False


@dataclass
class Preview:
    """Rows of an import that has not run: by split, and those that are bad; `read` counts all.

    `unread` has the keys that good rows have and nothing reads, with their number of rows.
    """

    splits: dict[str, list[Record]] = field(default_factory=dict)
    bad: list[BadRow] = field(default_factory=list)
    read: int = 0
    unread: Counter[str] = field(default_factory=Counter)


def by_characters(texts: Sequence[str]) -> list[int]:
    """Estimated tokens of each text."""
    return [-(-len(text) // CHARS_PER_TOKEN) for text in texts]


def by_tokenizer(model: Path) -> Lengths | None:
    """Token counts under a model folder's tokenizer.json, or None where it or the library is missing."""
    file = model / "tokenizer.json"
    if not file.exists():
        return None
    try:
        from tokenizers import Tokenizer
    except ImportError:
        return None
    tokenizer: Any = Tokenizer.from_file(str(file))
    return lambda texts: [len(item.ids) for item in tokenizer.encode_batch(list(texts), add_special_tokens=False)]


def measure(records: Sequence[Record], lengths: Lengths, counted: bool) -> RowSet:
    """Lengths of records; the last assistant turn of a conversation counts as its answer."""
    if not records:
        return RowSet(0, counted=counted)
    prompts, answers, rejected = [], [], []
    for record in records:
        turns = [message["content"] for message in record.conversation()]
        if record.type == "passage":
            turns = [record.meta["passage"]]
        answer = turns.pop() if record.completion is not None or record.messages else ""
        prompts.append("\n".join(turns))
        answers.append(answer)
        rejected.append(record.rejected or "")
    p, a, r = lengths(prompts), lengths(answers), lengths(rejected)
    return RowSet(
        len(records), sum(p) / len(p), sum(a) / len(a), sum(r) / len(r),
        longest=max(x + max(y, z) for x, y, z in zip(p, a, r, strict=True)), counted=counted,
    )


def of_artifact(artifact: Artifact, splits: Iterable[str], lengths: Lengths | None) -> dict[str, RowSet]:
    """Each split of a finished import or sample stage; of many rows, lengths of a few."""
    folder = artifact.path() / "rows"
    found = {}
    for split in splits:
        file, few = folder / f"{split}.jsonl", Few(split)
        lines = few.of(each_line(file), lambda line: len(line[1])) if file.exists() else []
        records = [record_of(file, number, line) for number, line in lines]
        made = measure_few(records[:few.drawn], records[few.drawn:], lengths)
        found[split] = made if few.is_whole else replace(made, rows=few.read, looked=few.drawn)
    return found


def measure_few(records: Sequence[Record], longest: Sequence[Record], lengths: Lengths | None) -> RowSet:
    """Lengths of records, and the longest of them and of those that are longer than the others."""
    made = measure(records, lengths or by_characters, lengths is not None)
    if not longest:
        return made
    most = measure(longest, lengths or by_characters, lengths is not None).longest
    return replace(made, longest=max(made.longest, most), counted=False)


def preview(run: Run, stage: ImportData) -> Preview:
    """What an import stage will write, from its files; nothing is written. Where packages of its `hygiene` are not
    installed, its rows are not looked through.

    Raises:
        DataError: a file cannot be read.
    """
    return _preview(run, stage, list(read_sources(run, stage, _cleaner(stage))))


def _cleaner(stage: ImportData) -> Cleaner | None:
    return None if stage.hygiene is None or lacks(stage.hygiene) else Cleaner(stage.hygiene, f"stage {stage.name}")


def _preview(run: Run, stage: ImportData, sources: Sequence[SourceRows]) -> Preview:
    made, taken = Preview(), list[Record]()
    for source in sources:
        made.bad += source.bad
        made.read += len(source.good) + len(source.bad)
        made.unread.update(source.unread)
        taken += source.taken
    made.splits, _ = divided(run, stage, taken)
    return made


def of_sources(run: Run, stage: ImportData, lengths: Lengths | None) -> dict[str, RowSet]:
    """Each split of an import that has not run; where a file has many rows, estimated from a few of each file.

    Raises:
        DataError: a file cannot be read.
    """
    sources = list(read_sources(run, stage, _cleaner(stage), lambda name: Few(f"{run.seed}/{name}")))
    if all(source.few is None or source.few.is_whole for source in sources):
        splits = _preview(run, stage, sources).splits
        return {name: measure(records, lengths or by_characters, lengths is not None)
                for name, records in splits.items()}
    return of_few(run, stage, sources, lengths)


def of_few(run: Run, stage: ImportData, sources: Sequence[SourceRows], lengths: Lengths | None) -> dict[str, RowSet]:
    """Splits of sources of which a few rows were drawn: their share of good rows and, by field, of each split are
    taken for those of the whole. What lies twice in a file, and what rows of one text move, is not known."""
    field_split = isinstance(stage.split, FieldSplit)
    sets: dict[str, list[RowSet]] = {name: [] for name in stage.splits()}
    for source in sources:
        assert source.few is not None
        good = source.few.read * len(source.good) / max(1, source.few.drawn)
        take = run.scaled(source.source.take)
        taken = good if take is None else min(good, take)
        for name, rows in sets.items():
            mine = [row for row in source.good if not field_split or row.meta["split"] == name]
            share = (len(mine) / max(1, len(source.good)) if isinstance(stage.split, FieldSplit)
                     else stage.split.cut[name])
            found = measure_few(mine, source.longest if mine else [], lengths)
            rows.append(replace(found, rows=round(taken * share), known=False, about=True, counted=False,
                                looked=len(source.good) * share))
    return {name: together(rows) for name, rows in sets.items()}


READ_NOW = 4_000_000
"""Bytes of documents up to which they are read before their stage is made."""
_SLOW = {"pdf": 8, "docx": 4}
"""Kind of file -> how much longer a byte of it takes."""


def preview_documents(run: Run, stage: ImportDocuments) -> tuple[Preview, Reading] | None:
    """What an import of documents will write; None where that is not known now: it is too much, or
    elsewhere, or a library that reads it is not here.

    Raises:
        DataError: a file cannot be opened.
    """
    files = stage.listed().files
    if any("://" in file.path or missing(file.kind) for file in files) or sum(
            on_this_machine(file.path).stat().st_size * _SLOW.get(str(file.kind), 1) for file in files
            if on_this_machine(file.path).is_file()) > READ_NOW:
        return None
    made, reading = Preview(), Reading(stage)
    rows = [row for file in files for row in reading.each(file)]
    made.bad = [row for row in rows if isinstance(row, BadRow)]
    made.read = len(rows)
    made.splits, _ = divided_documents(run, stage, [row for row in rows if isinstance(row, Record)])
    return made, reading


def of_documents(run: Run, stage: ImportDocuments, lengths: Lengths | None) -> dict[str, RowSet]:
    """Each split of an import of documents that has not run; of many, a guess from their bytes. Raises DataError when a
    file cannot be opened."""
    seen = preview_documents(run, stage)
    if seen is not None:
        return {name: measure(records, lengths or by_characters, lengths is not None)
                for name, records in seen[0].splits.items()}
    sizes = [on_this_machine(file.path).stat().st_size for file in stage.listed().files if "://" not in file.path]
    tokens = stage.chunk_words * 1.4
    guessed = max(1.0, sum(sizes) / CHARS_PER_TOKEN / tokens)
    take = run.scaled(stage.take)
    one = RowSet(guessed if take is None else min(take, guessed), tokens, longest=tokens, known=False)
    ratios = {"train": 1.0} if stage.split is None else stage.split.ratios
    return {name: replace(one, rows=one.rows * ratios[name]) for name in stage.splits()}


def of_sample(run: Run, stage: Sample, prompts: RowSet) -> dict[str, RowSet]:
    """The most that an unfinished sample stage can write: every prompt pairs up, every answer is of full length."""
    take = run.scaled(stage.take)
    asked = prompts.rows if take is None else min(prompts.rows, take)
    new = stage.sampling.max_new_tokens
    one = RowSet(asked, prompts.prompt, new, longest=prompts.longest + new, known=False, about=prompts.about)
    samples = replace(one, rows=asked * stage.n, known=prompts.known)
    made = {"best": one, "pairs": replace(one, rejected=new), "samples": samples}
    return {name: made[name] for name in stage.splits()}


def at_most(like: RowSet, rows: float) -> RowSet:
    """Rows that are still to be made, as long as others."""
    return replace(like, rows=rows, known=False, looked=None, about=False)


def together(sets: Sequence[RowSet]) -> RowSet:
    """Several row sets read one after the other."""
    rows = sum(s.rows for s in sets)
    said = RowSet(
        rows, longest=max((s.longest for s in sets), default=0.0), counted=all(s.counted for s in sets),
        known=all(s.known for s in sets), about=any(s.about for s in sets),
        looked=None if all(s.looked is None for s in sets) else sum(
            s.rows if s.looked is None else s.looked for s in sets))
    if not rows:
        return replace(said, longest=0.0)
    return replace(said, prompt=sum(s.prompt * s.rows for s in sets) / rows,
                   answer=sum(s.answer * s.rows for s in sets) / rows,
                   rejected=sum(s.rejected * s.rows for s in sets) / rows)
