"""Seeds and what was kept after them, by name: what a proposed text is compared with before it is kept. Pure."""

from __future__ import annotations

from typing import Any

from alignment.generation.novelty import Novelty, Tokens


class Pool:
    """Texts in the order in which they came.

    Args:
        tokens: of a text, for ROUGE-L.
        novelty: a text is new when its ROUGE-L F against every other is at most this.
        similar: so many of the most similar texts are named.
    """

    def __init__(self, tokens: Tokens, novelty: float, similar: int) -> None:
        self._texts, self._novelty, self._similar = Novelty(tokens), novelty, similar
        self._names: list[str] = []
        self._known: set[str] = set()

    def add(self, name: str, text: str) -> None:
        """Put a text in; a name may come twice."""
        self._texts.add(text)
        self._names.append(name)
        self._known.add(_plain(text))

    def refusal(self, text: str) -> tuple[str | None, dict[str, Any]]:
        """(why a text is not new, None where it is; what is kept beside that: the nearest text with its ROUGE-L F)."""
        if _plain(text) in self._known:
            return "duplicate", {}
        if (near := self._texts.nearest(text, self._novelty)) is not None:
            return "not-novel", {"nearest": [self._names[near.row], near.score]}
        return None, {}

    def similar(self, text: str) -> tuple[list[tuple[str, float]], float]:
        """([(name, ROUGE-L F)] of the most similar texts, the first first; the mean over all)."""
        found = self._texts.similar(text, self._similar)
        return [(self._names[one.row], one.score) for one in found.top], found.mean


def _plain(text: str) -> str:
    """What two texts have in common that differ in case and white space alone."""
    return " ".join(text.lower().split())
