"""Tables on terminals of any width: no word is broken, and what is left out is named."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.cli import show

WORDS = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=12)
CELLS = st.lists(WORDS, max_size=4).map(" ".join)


@given(rows=st.lists(st.tuples(WORDS, CELLS, CELLS, WORDS), min_size=1, max_size=5), columns=st.integers(20, 200))
def test_every_word_that_is_shown_is_whole(rows: list[tuple[str, ...]], columns: int) -> None:
    console = show.Console(record=True, width=columns, force_terminal=True, file=io.StringIO())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(show, "out", lambda: console)
        patch.setattr(show, "width", lambda: columns)
        show.table(("name", "what", "more", "size"), rows, right=("size",), spare=("more", "what"))
        said = console.export_text()
    shown = set(said.split())
    left_out = said.partition("no room for ")[2]
    for index, column in enumerate(("name", "what", "more", "size")):
        if column in left_out:
            assert column in ("more", "what")
            continue
        for row in rows:
            assert set(row[index].split()) <= shown, (column, said)
