"""What became of each key of another tool's file: read once, said once.

A key is a path to a value that is no mapping (`datasets[0].path`). Null values carry nothing and are said as that.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from alignment.errors import ConfigError

_PLAIN = re.compile(r"[\w-]+")
_TRUTH = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}
"""YAML 1.1's words, which these tools read as such and our loader as text."""
NULL = "is null, so there is nothing to carry"

UNKNOWN = "is not known to this table: look whether it changes what is learned"


@dataclass(frozen=True)
class Carried:
    """What became of one key.

    Attributes:
        key: of the other tool's file.
        to: where it stands in ours, or None: it was not carried.
        note: how the same key is treated otherwise here, or why it was not carried.
    """

    key: str
    to: str | None
    note: str = ""


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of everything below a mapping that is no mapping and no list of mappings; empty ones count."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            part = str(key) if _PLAIN.fullmatch(str(key)) else json.dumps(str(key))
            yield from leaves(item, f"{path}.{part}" if path else part)
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for index, item in enumerate(value):
            yield from leaves(item, f"{path}[{index}]")
    elif path:
        yield path, value


class Reading:
    """The keys of a file, each of which is said of at most once; those that nobody asks for are said as not known."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._values = dict(leaves(given))
        self._said: dict[str, Carried] = {path: Carried(path, None, NULL)
                                          for path, value in self._values.items() if value is None}

    def __contains__(self, path: str) -> bool:
        return self._values.get(path) is not None

    def left(self, below: str = "") -> list[str]:
        """Paths that nothing was said of yet, in the file's order."""
        return [path for path in self._values if path not in self._said and path.startswith(below)]

    def peek(self, path: str) -> Any:
        """A value, None where there is none; says nothing."""
        return self._values.get(path)

    def take(self, path: str, to: str, note: str = "") -> Any:
        """A value that is carried to a place of ours; None where there is none."""
        value = self._values.get(path)
        if value is not None:
            self._say(Carried(path, to, note))
        return value

    def leave(self, path: str, why: str) -> Any:
        """A value that is not carried; None where there is none."""
        value = self._values.get(path)
        if value is not None:
            self._say(Carried(path, None, why))
        return value

    def correct(self, path: str, to: str | None, note: str) -> None:
        """Say something else of a key that something was said of before."""
        self._said[path] = Carried(path, to, note)

    def number(self, path: str, to: str, note: str = "") -> float | None:
        """Raises ConfigError where the value is no number."""
        value = self.take(path, to, note)
        try:
            return None if value is None or isinstance(value, bool) else float(value)
        except (TypeError, ValueError) as error:
            raise _wrong(path, value, "a number") from error

    def whole(self, path: str, to: str, note: str = "") -> int | None:
        """Raises ConfigError where the value is no whole number."""
        value = self.number(path, to, note)
        if value is not None and not value.is_integer():
            raise _wrong(path, self._values[path], "a whole number")
        return None if value is None else int(value)

    def flag(self, path: str, to: str, note: str = "") -> bool | None:
        """Raises ConfigError where the value is neither true nor false."""
        value = self.take(path, to, note)
        if value is None or isinstance(value, bool):
            return value
        said = _TRUTH.get(str(value).strip().lower())
        if said is None:
            raise _wrong(path, value, "true or false")
        return said

    def word(self, path: str, to: str, note: str = "") -> str | None:
        """Raises ConfigError where the value is a list or a mapping."""
        value = self.take(path, to, note)
        if isinstance(value, list | Mapping):
            raise _wrong(path, value, "one name")
        return None if value is None else str(value).strip()

    def words(self, path: str, to: str, note: str = "") -> list[str]:
        """A list of names, or a text of them with commas between; empty where there is none."""
        value = self.take(path, to, note)
        items = value if isinstance(value, list) else [] if value is None else str(value).split(",")
        return [text for item in items if (text := str(item).strip())]

    def told(self) -> tuple[Carried, ...]:
        """Of every key, in the file's order."""
        return tuple(self._said.get(path, Carried(path, None, UNKNOWN)) for path in self._values)

    def _say(self, carried: Carried) -> None:
        if carried.key in self._said:
            raise AssertionError(f"{carried.key} is said twice: {self._said[carried.key]} and {carried}")
        self._said[carried.key] = carried


def _wrong(path: str, value: Any, expected: str) -> ConfigError:
    return ConfigError("not a value that this key takes", where=path, found=value, expected=expected)
