"""How answers come to the terminal: as they are said, one below the other or in two columns. Asks no model.

What models write is shown and never obeyed: control characters, with which a text could move the cursor or rename the
window, become signs. Where there is no terminal the text is written as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from alignment.cli.show import out, width

COLUMNS_FROM = 80
"""Columns of a terminal that has room for two answers side by side."""
_SIGNS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421} | dict.fromkeys(
    range(0x80, 0xA0), 0xFFFD)
_GAP = 3

OnText = Callable[[str], None]


def shown(text: str) -> str:
    """A text with signs for its control characters."""
    return text.translate(_SIGNS)


def one(speak: Callable[[OnText], None]) -> None:
    """An answer on stdout, piece by piece, and a line's end."""
    here = out().is_terminal

    def on_text(piece: str) -> None:
        sys.stdout.write(shown(piece) if here else piece)
        sys.stdout.flush()

    try:
        speak(on_text)
    finally:
        sys.stdout.write("\n")
        sys.stdout.flush()


def several(names: Sequence[str], speak: Sequence[Callable[[OnText], None]]) -> None:
    """The answers of two models, in columns where the terminal has room for them; else each below its name."""
    if not out().is_terminal or width() < COLUMNS_FROM:
        for name, speaks in zip(names, speak, strict=True):
            sys.stdout.write(f"[{name}]\n")
            one(speaks)
        return
    texts = ["" for _ in names]
    try:
        with _live(names, texts):
            for place, speaks in enumerate(speak):
                def on_text(piece: str, place: int = place) -> None:
                    texts[place] += shown(piece)

                speaks(on_text)
    finally:
        out().print(_columns(names, texts, out(), None))


@contextmanager
def _live(names: Sequence[str], texts: Sequence[str]) -> Iterator[None]:
    """Columns that grow with `texts`; their last lines, where the terminal is lower. Gone after the block."""
    console = out()

    def drawn() -> Table:
        return _columns(names, texts, console, max(3, console.height - 4))

    with Live(console=console, transient=True, refresh_per_second=12, get_renderable=drawn):
        yield


def _columns(names: Sequence[str], texts: Sequence[str], console: Console, lines: int | None) -> Table:
    each = (width() - _GAP * (len(names) - 1)) // len(names)
    made = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, show_edge=False, header_style="bold")
    for name in names:
        made.add_column(Text(name, overflow="ellipsis"), width=each, overflow="fold")
    made.add_row(*(_last(Text(text, overflow="fold"), console, each, lines) for text in texts))
    return made


def _last(text: Text, console: Console, each: int, lines: int | None) -> Text:
    if lines is None:
        return text
    return Text("\n").join(text.wrap(console, each, overflow="fold")[-lines:])
