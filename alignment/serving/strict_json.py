"""JSON that every reader reads alike: a body is looked through before a shape is made of it. Keeps nothing of it."""

from __future__ import annotations

import json
from math import isfinite
from typing import Any

from alignment.serving.refused import Refused


def look(body: bytes) -> None:
    """Raise Refused for what readers pass over or take each in their way: keys that stand twice, NaN, numbers that are
    over every float, letters that are no UTF-8."""
    try:
        json.loads(body.decode(), object_pairs_hook=_once, parse_constant=_number, parse_float=_number)
    except UnicodeDecodeError as error:
        raise Refused(400, f"the body is not UTF-8: byte {error.start}", code="invalid_request") from None
    except RecursionError:
        raise Refused(400, "the body is nested too deeply", code="invalid_request") from None
    except ValueError as error:
        raise Refused(400, f"the body is not JSON that can be read: {error}", code="invalid_request") from None


def _once(pairs: list[tuple[str, Any]]) -> None:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        name = next(name for name in names if names.count(name) > 1)
        raise Refused(400, f"{name}: stands twice", code="invalid_request", param=name)


def _number(text: str) -> None:
    if not isfinite(float(text)):
        raise ValueError(f"{text} is no number")
