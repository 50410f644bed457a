"""The format of a data file that nobody named, as the keys of its first row tell it, and where these fit two formats
its values. Reads that row, or the header of a table; guesses nothing: what does not tell is asked for."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignment.config.stages.fields import on_this_machine
from alignment.errors import ConfigError

_FORMATS: tuple[tuple[frozenset[str], str], ...] = tuple((frozenset(keys.split(",")), name) for keys, name in (
    ("messages,chosen,rejected,vote", "votes"), ("messages", "messages"),
    ("conversations,chosen,rejected", "sharegpt-preference"), ("conversations", "sharegpt"),
    ("prompt,chosen,rejected,subset", "reward-bench"),
    ("prompt,chosen,rejected,score_chosen,score_rejected", "ultrafeedback-binarized"),
    ("prompt,chosen,rejected", "preference"), ("prompt,response 1,response 2", "auto-j"),
    ("question,response_j,response_k", "stack-exchange-paired"),
    ("instruction,response1,response2,annotator1", "pandalm"), ("instruction,instances", "self-instruct"),
    ("instruction,output", "alpaca"), ("question,sub_questions,final_answer", "multihop"),
    ("context,question,answers", "squad"), ("context,question,answer,supporting_facts", "hotpotqa"),
    ("paragraphs,question,answer,question_decomposition", "musique"), ("prompt,completion,label", "unpaired"),
    ("prompt,completion", "prompt-completion"), ("prompt", "prompt-only")))
"""Keys that tell a format, the most telling first."""
_TABLES = {".csv": ",", ".tsv": "\t"}
_ASKED = ("prompt", "question", "instruction", "query", "input")
_SAID = ("completion", "answer", "best answer", "response", "output", "target")
"""Columns, in small letters, that may be a prompt and its reference: shown in a hint, never taken unasked."""
_NUMBER = re.compile(r"####\s*[-$]*\d")
_EXPECTED = "--format FORMAT (kubealign explain format lists them), or --columns prompt=COLUMN,completion=COLUMN"


def format_of(file: str) -> str:
    """The format of a JSON file's rows.

    Raises:
        ConfigError: they do not tell it, or the file is none of JSON; with what it has and what to say.
    """
    path = on_this_machine(file)
    if "://" not in file and path.suffix in _TABLES:
        columns = _header(path)
        raise ConfigError("a table has columns of any name, so it does not tell which is which", where=f"--data {file}",
                          found=f"columns {', '.join(columns) or 'none'}", hint=_mapped(columns),
                          expected="--columns prompt=COLUMN,completion=COLUMN")
    if "://" in file or path.suffix not in (".jsonl", ".json"):
        raise ConfigError("only a JSON file's keys tell its format", where="--data", found=file, expected=_EXPECTED)
    row = _first(path)
    found = _told(row)
    if found is None:
        keys = sorted(row)
        raise ConfigError("the keys of the first row do not tell the format", where=f"--data {file}",
                          found=", ".join(keys) or "no row", expected=_EXPECTED, hint=_mapped(keys))
    return found


def metric_of(file: str, source: Mapping[str, Any]) -> tuple[str, str] | None:
    """A metric that these rows are made for, beside the usual ones, and why; None where they show none.

    Args:
        source: of an import: its format, and the columns that it maps.
    """
    if source.get("format") == "boolq":
        return "yes_no", "BoolQ's answers are yes or no"
    path = on_this_machine(file)
    if "://" in file or path.suffix not in (".jsonl", ".json"):
        return None
    said = _first(path).get((source.get("columns") or {}).get("completion", "completion"))
    if isinstance(said, str) and _NUMBER.search(said):
        return "final_number", "the first reference ends in #### and a number"
    return None


def _told(row: Mapping[str, Any]) -> str | None:
    keys = row.keys()
    if keys >= {"data", "version"}:
        return "squad"
    if row and all(isinstance(value, dict) and value.keys() >= {"passage", "qa_pairs"} for value in row.values()):
        return "drop"
    for telling, name in _FORMATS:
        if telling <= keys:
            return name
    if {"passage", "question", "answer"} <= keys:
        answer = row["answer"]
        return ("boolq" if isinstance(answer, bool) else "drop" if isinstance(answer, dict) else
                "passage-qa" if isinstance(answer, str) and answer.strip() else None)
    if {"chosen", "rejected"} <= keys and all("\n\nHuman:" in str(row[side]) for side in ("chosen", "rejected")):
        return "hh-transcript"
    return None


def _mapped(columns: list[str]) -> str | None:
    """`--columns` as it would be, where names make it likely."""
    by_name = {column.lower(): column for column in columns}
    asked, said = (next((by_name[name] for name in names if name in by_name), None) for names in (_ASKED, _SAID))
    if asked is None or said is None:
        return None
    return f'--columns "prompt={asked},completion={said}", if that is what these are'


def _header(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            return next(csv.reader(lines, delimiter=_TABLES[path.suffix]), [])
    except (OSError, ValueError, csv.Error) as error:
        raise _unread(path, error) from error


def _first(path: Path) -> dict[str, Any]:
    """The first row, or the whole document; empty where it is no object."""
    try:
        with path.open(encoding="utf-8-sig") as lines:
            first = next((line for line in lines if line.strip()), "")
        try:
            row = json.loads(first)
        except ValueError:  # one document over many lines
            row = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise _unread(path, error) from error
    row = row[0] if isinstance(row, list) and row else row
    return row if isinstance(row, dict) else {}


def _unread(path: Path, error: Exception) -> ConfigError:
    if isinstance(error, FileNotFoundError):
        return ConfigError("the data file does not exist", where="--data", found=str(path),
                           expected=f"a file at {path.absolute()}")
    return ConfigError(f"the data file cannot be read: {error}", where="--data", found=str(path))
