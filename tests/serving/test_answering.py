"""Text up to a stop text, whatever pieces it comes in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from alignment.serving.growing import Until


class Pieces:
    """A text whose token i is its i-th piece."""

    def __init__(self, pieces: list[str]) -> None:
        self.pieces = pieces

    def add(self, token: int) -> str:
        return self.pieces[token]

    def end(self, *, finished: bool) -> str:
        return self.pieces[-1]


LETTERS = st.text("ab\n", max_size=4)


@given(st.lists(LETTERS, min_size=1, max_size=12), st.lists(st.text("ab\n", min_size=1, max_size=3), max_size=3))
def test_text_ends_before_the_first_stop_text_and_loses_nothing_else(pieces: list[str], stops: list[str]) -> None:
    text, said = Until(Pieces(pieces), stops), []
    for token in range(len(pieces) - 1):
        said.append(text.add(token))
        if text.found is not None:
            break
    else:
        said.append(text.end(finished=True))
    whole = "".join(pieces)
    ends = [place for stop in stops if (place := whole.find(stop)) >= 0]
    got = "".join(said)
    if not ends:
        assert got == whole
        assert text.found is None
    else:
        assert text.found in stops
        assert whole.startswith(got + str(text.found))
        assert not any(stop in got for stop in stops)
