"""Importers: foreign files to records, row by row; a row that cannot be used comes out as a BadRow.

`read_source` reads one file of a named format; `import_rows` is the same from rows in memory, a pure generator.
Every row read is given back, as a Record or as a BadRow, and every key that is not read is counted. Does not draw,
split or write: `alignment.data` does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from alignment.errors import DataError
from alignment.records.few import Few
from alignment.records.importers import chat, judged, passages, ranked, retrieval, retrieved
from alignment.records.importers import votes as ballots
from alignment.records.importers.calls import tools, with_tools
from alignment.records.importers.checks import Seen, check
from alignment.records.importers.columns import format_of, read_columns
from alignment.records.importers.files import few_of, load_json, read_rows
from alignment.records.importers.keys import check_keys
from alignment.records.importers.ranked import join_transcript, split_transcript
from alignment.records.importers.rows import BadRow, Row, RowError, expect, optional_text
from alignment.records.importers.turns import user, with_system
from alignment.records.types import Record

__all__ = [
    "FORMATS", "PASSAGE_FORMATS", "BadRow", "Options", "Row", "Seen", "import_rows", "join_transcript", "read_source",
    "split_transcript",
]

FORMATS: dict[str, Callable[[dict[str, Any]], Record]] = {
    "messages": chat.messages,
    "prompt-completion": chat.prompt_completion,
    "preference": chat.preference,
    "unpaired": chat.unpaired,
    "prompt-only": chat.prompt_only,
    "alpaca": chat.alpaca,
    "self-instruct": chat.self_instruct,
    "sharegpt": chat.sharegpt,
    "sharegpt-preference": chat.sharegpt_preference,
    "hh-transcript": ranked.hh_transcript,
    "pandalm": judged.pandalm,
    "auto-j": judged.auto_j,
    "reward-bench": judged.reward_bench,
    "ultrafeedback-binarized": judged.ultrafeedback_binarized,
    "stack-exchange-paired": ranked.stack_exchange_paired,
    "votes": ballots.votes,
    "passage-qa": passages.passage_qa,
    "squad": passages.squad,
    "boolq": passages.boolq,
    "drop": passages.drop,
    "hotpotqa": passages.hotpotqa,
    "musique": passages.musique,
    "multihop": retrieval.multihop,
}
"""Format -> one raw row to a record. `columns` is not here: it becomes one of these."""
PASSAGE_FORMATS = frozenset({"passage-qa", "squad", "boolq", "drop", "hotpotqa", "musique"})
_NESTED = {"squad": (passages.squad_rows, passages.squad_above), "drop": (passages.drop_rows, passages.drop_above)}
"""Format of one document -> its rows, and the keys around them that nothing reads."""


@dataclass(frozen=True)
class Options:
    """What a stage asks of every source.

    Attributes:
        system: system message put before prompts that have none.
        passage_prompt: user message of the passage formats, with {passage} and {question}.
        split_field: field of the file that names the row's split; kept in meta.split.
        splits: the names that are allowed there.
        unanswerable: answer of the questions that their passage does not answer (squad, musique); None: they have none.
        retrieve: passage formats become conversations that retrieve their passages; passage_prompt is not read.
        ties: pairs that were judged a tie are good rows, of type tie, and pairs say who voted how.
    """

    system: str | None = None
    passage_prompt: str = "{passage}\n\n{question}"
    split_field: str | None = None
    splits: tuple[str, ...] = ()
    unanswerable: str | None = None
    retrieve: bool = False
    ties: bool = False


def read_source(
    path: str,
    format: str,
    name: str,
    options: Options = Options(),
    columns: dict[str, str] | None = None,
    seen: Seen | None = None,
    unread: Counter[str] | None = None,
    clean: Callable[[Record], Record] | None = None,
    few: Few | None = None,
) -> Iterator[Record | BadRow]:
    """Records and bad rows of one file, in the file's order.

    Args:
        path: file or fsspec URL.
        format: a key of FORMATS, or `columns`.
        name: the source's name; ids are NAME-ID, or NAME-NUMBER where the file gives no id.
        columns: for format columns, our field -> the file's column, or a text with {Column} slots.
        seen: shared between sources, so that a row which two files hold is kept once.
        unread: gets the keys that good rows have, or a document around its rows, and the format does not read, each
            with its number.
        clean: gives each good row back, changed or not, or raises a RowError: why it is left out.
        few: takes those rows of the file that are to be read; others are counted alone.

    Raises:
        DataError: the file is unreadable, empty, of the wrong shape, or lacks a mapped column.
    """
    rows: Iterable[Row | BadRow]
    if format == "columns":
        format = format_of(columns or {}, path)
        rows = read_columns(path, columns or {}, name, options.split_field)
    elif format in _NESTED:
        (taken_apart, above), document = _NESTED[format], load_json(path)
        rows = [Row(number, value) for number, value in enumerate(taken_apart(document, path), start=1)]
        if not rows:
            raise DataError("the file holds no rows", where=path, expected="at least one question")
        if unread is not None:
            unread.update(above(document))
    else:
        rows, few = read_rows(path, name, few), None
    return import_rows(few_of(rows, few), format, name, options, seen, unread, clean)


def import_rows(
    rows: Iterable[Row | BadRow], format: str, name: str, options: Options = Options(), seen: Seen | None = None,
    unread: Counter[str] | None = None, clean: Callable[[Record], Record] | None = None,
) -> Iterator[Record | BadRow]:
    """Raw rows -> records and bad rows, one for each, in order."""
    parse, seen = FORMATS[format], seen or Seen()
    for row in rows:
        if isinstance(row, BadRow):
            yield row
            continue
        try:
            value = expect(row.value, dict, "the row")
            # Before the row is parsed: a turn that is all tool call has no content, and that is not what is wrong.
            left = check_keys(value, format, _also(format, options, value))
            record = _finish(parse(value), value, row.number, format, name, options)
            check(record)
            seen.add(record)
            if clean is not None:
                check(record := clean(record))
        except RowError as error:
            yield BadRow(name, row.number, str(error), row.raw)
        except RecursionError:
            yield BadRow(name, row.number, "too-deep: objects and lists within each other, without end", row.raw)
        else:
            if unread is not None:
                unread.update((*left, *row.unread))
            yield record


def _also(format: str, options: Options, row: dict[str, Any]) -> tuple[str, ...]:
    """Keys that are read for another reason than the format."""
    split = () if options.split_field is None else (options.split_field,)
    if judged.is_tie(row, format):
        split = (*split, "type")
    return (*split, *retrieved.READ.get(format, ())) if options.retrieve else split


def _finish(
    record: Record, row: dict[str, Any], number: int, format: str, name: str, options: Options
) -> Record:
    """Add what no format knows: id, source, split, the passage's user message, the system message."""
    if options.unanswerable is not None:
        record = passages.answered(record, options.unanswerable)
    record = judged.settled(record, row, format, keep=options.ties)
    meta = {**record.meta, "source": name}
    if options.split_field is not None:
        meta["split"] = _split(row, options)
    if format in PASSAGE_FORMATS and options.retrieve:
        record = retrieved.retrieved(replace(record, meta=meta), row, format)
        meta = record.meta
    elif format in PASSAGE_FORMATS:
        record = replace(record, prompt=[user(passages.fill(options.passage_prompt, meta["passage"],
                                                            meta["question"]))])
    record = with_system(record, optional_text(row, "system") or None, differs=True)
    record = with_tools(with_system(record, options.system, differs=False), tools(row))
    return replace(record, id=f"{name}-{record.id or number}", meta=meta)


def _split(row: dict[str, Any], options: Options) -> str:
    value = row.get(options.split_field or "")
    if value is None:
        raise RowError("missing-field", f"{options.split_field}, which names the row's split")
    if str(value) not in options.splits:
        raise RowError("unknown-split", f"{options.split_field} is {value!r}, expected one of "
                                        f"{', '.join(options.splits)}")
    return str(value)
