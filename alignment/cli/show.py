"""How the commands talk: tables to stdout, errors to stderr, units for people. No prose of its own."""

from __future__ import annotations

import functools
import inspect
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from alignment.errors import KubeAlignError

PLAIN_WIDTH = 160
"""Columns where there is no terminal: log files wrap by themselves, a table cut to 80 loses words."""


def out() -> Console:
    """A console on the present stdout."""
    console = Console(highlight=False, soft_wrap=True)
    return console if console.is_terminal else Console(highlight=False, width=PLAIN_WIDTH)


def say(text: str = "") -> None:
    """One line to stdout, exactly as it is: brackets in a user's value are no markup."""
    out().print(Text(text), soft_wrap=True)


Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error as well.")]
_traceback_asked = False


def debuggable(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the option --debug, which `complain` obeys."""
    @functools.wraps(command)
    def with_debug(*arguments: Any, debug: bool = False, **named: Any) -> None:
        global _traceback_asked
        _traceback_asked = debug
        command(*arguments, **named)

    known = inspect.signature(command, eval_str=True)
    option = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Debug)
    parameters = [*known.parameters.values(), option]
    # Typer asks both of them.
    with_debug.__signature__ = known.replace(parameters=parameters)  # type: ignore[attr-defined]
    with_debug.__annotations__ = {one.name: one.annotation for one in parameters}
    return with_debug


def complain(error: KubeAlignError) -> None:
    """The whole error to stderr, its first line red on a terminal; after its traceback, where --debug asks for it."""
    if _traceback_asked:
        traceback.print_exception(error, file=sys.stderr)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    first, newline, rest = str(error).partition("\n")
    console.print(Text.assemble(("error: ", "bold red"), first, newline, rest), soft_wrap=True)


def prose(text: str) -> None:
    """Sentences to stdout; on a terminal its lines end between words."""
    out().print(Text(text), soft_wrap=not out().is_terminal)


def table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = (), spare: Sequence[str] = ()
) -> None:
    """A plain table to stdout. No word is broken: where the terminal is too narrow, columns are left out, and named.

    Args:
        right: names of the columns that hold numbers, which stay on one line.
        spare: columns that may be left out, in this order.
    """
    needed = {column: _needed([column, *(row[index] for row in rows)], whole=column in right)
              for index, column in enumerate(columns)}
    left_out: list[str] = []
    while sum(needed.values()) + len(needed) - 1 > width() and (more := [one for one in spare if one in needed]):
        left_out.append(more[0])
        del needed[more[0]]
    made = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for column, least in needed.items():
        made.add_column(column, justify="right" if column in right else "left", min_width=least,
                        no_wrap=column in right, overflow="fold")
    for row in rows:
        made.add_row(*(Text(cell) for column, cell in zip(columns, row, strict=True) if column in needed))
    show(made, least=sum(needed.values()) + len(needed) - 1)
    if left_out:
        prose(f"(no room for {', '.join(left_out)}: a wider terminal has it)")


def _needed(cells: Sequence[str], *, whole: bool) -> int:
    """Columns of the terminal that the longest cell takes, or the longest word where a cell may have several lines."""
    return max(cell_len(part) for cell in cells for part in ([cell] if whole else cell.split() or [""]))


def width() -> int:
    """Columns of the terminal; PLAIN_WIDTH where there is none."""
    return shutil.get_terminal_size().columns if out().is_terminal else PLAIN_WIDTH


def show(made: Table, least: int = 0) -> None:
    """Any rich table to stdout, as wide as the terminal; wider, where it would have to be less than `least`."""
    out().print(made, width=max(width(), least), soft_wrap=True)


def count(value: float) -> str:
    """1234567 -> `1.2M`."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"


def memory(value: float) -> str:
    """Bytes -> `1.2 GB` (10^9)."""
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} B"


def duration(seconds: float) -> str:
    """Seconds -> `8.4 s`, `5 min 12 s`, `2 h 05 min`, as the report writes them."""
    from alignment.report.format import duration as text

    return text(seconds)
