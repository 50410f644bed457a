"""What to write instead of a value of another type."""

from __future__ import annotations

import re
from contextlib import suppress

from alignment.errors import Written

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)
_SPOKEN = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false",
           "true": "true", "false": "false"}


def instead(wanted: str, value: object) -> str:
    """What to write where a value of another type stands: `a number, so without quotes: 1e-4`."""
    if wanted == "a list" and repr(value).startswith("a mapping"):
        return "a list: each item with - before it, or all in [ ]"
    text = str(value) if isinstance(value, Written) else None
    if text is None or (not text and not repr(value).startswith(("'", '"'))):
        return wanted
    quoted = repr(value).startswith(("'", '"'))
    if wanted == "text":
        return f'text, so in quotes: "{text}"'
    if wanted == "true or false" and text.lower() in _SPOKEN:
        return f"{wanted}{', so without quotes' if quoted else ''}: {_SPOKEN[text.lower()]}"
    plain = text.replace("_", "").strip()
    if wanted in ("a whole number", "a number") and _NUMBER.fullmatch(plain):
        with suppress(ValueError, OverflowError):
            if wanted == "a number":
                return f"a number, so {'without quotes' if quoted else 'in digits'}: {plain}"
            if float(plain) == int(float(plain)):
                whole = plain if plain.lstrip("+-").isdecimal() else str(int(float(plain)))
                return f"a whole number, so {'without quotes' if quoted else 'in digits'}: {whole}"
    if wanted == "a list" and text:
        return f"a list, so in brackets: [{text}]"
    return wanted
