"""A reward endpoint: answers out as JSON, scores back.

    POST URL      {"rows": [{"id", "prompt": [{"role", "content"}, ...], "answer", "reference", "meta"}, ...]}
    200           {"scores": [0.5, ...]}, one number per row, in order

`reference` is the row's reference answer or null, `meta` what its importer kept (passage, question, ...). Requests are
made one after the other, each with at most `batch_size` rows. A connection that fails, silence, 429 and 5xx are tried
again; anything else ends it at once. Redirects are not followed: a key would go along. Whether a score is a number is
for parts.py to say. Needs nothing but the standard library.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from http.client import HTTPException
from typing import Any

from alignment.config.secrets import key_from
from alignment.config.stages.rewards import BATCH_SIZE, RETRIES, RewardPart
from alignment.errors import StageError
from alignment.records import Record
from alignment.rewards.limits import TookTooLong, within

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds before the first further attempt, doubled each time, and at most."""
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_ROOM, _ROOM_PER_ROW = 65_536, 1_024
"""Bytes of an answer that are read: a server that sends without end must not fill the memory."""


class _Again(Exception):
    """An attempt that failed in a way that may pass."""


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_Stay)


class Endpoint:
    """Judges answers by asking `part.url`.

    Args:
        where: names the part in errors.
        pause: sleeps between attempts; seconds.

    Raises:
        ConfigError: the variable that shall hold the key is not set.
    """

    def __init__(self, part: RewardPart, where: str, pause: Callable[[float], None] = time.sleep) -> None:
        assert part.url is not None
        self.part, self.url, self.where, self.pause = part, part.url, where, pause
        self.headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if part.key_env is not None:
            self.headers["Authorization"] = f"Bearer {key_from(part.key_env, where)}"

    def __call__(self, records: Sequence[Record], answers: Sequence[str]) -> list[Any]:
        """What the endpoint says of each answer, unchecked, in order.

        Raises:
            StageError: it could not be asked, or what it answers is not of the form.
        """
        size, said = self.part.batch_size or BATCH_SIZE, list[Any]()
        for start in range(0, len(records), size):
            some = records[start:start + size]
            said += self._batch(some, [_row(*pair) for pair in zip(some, answers[start:start + size], strict=True)])
        return said

    def _batch(self, records: Sequence[Record], rows: list[dict[str, Any]]) -> list[Any]:
        where = f"{self.where}, {_named(records)}"
        body = json.dumps({"rows": rows}).encode()
        text = self._asked(body, where, _ROOM + _ROOM_PER_ROW * len(rows))
        expected = f'{{"scores": [...]}} with {len(rows)} number{"" if len(rows) == 1 else "s"}'
        try:
            answer = json.loads(text)
        except ValueError:
            raise StageError("the reward endpoint's answer is no JSON", where=where, found=_short(text),
                             expected=expected) from None
        scores = answer.get("scores") if isinstance(answer, dict) else None
        if not isinstance(scores, list):
            raise StageError("the reward endpoint's answer has no scores", where=where, found=_short(text),
                             expected=expected)
        if len(scores) != len(rows):
            raise StageError("the reward endpoint gave another number of scores than it got rows", where=where,
                             found=len(scores), expected=str(len(rows)))
        return scores

    def _asked(self, body: bytes, where: str, most: int) -> bytes:
        attempts = 1 + (RETRIES if self.part.retries is None else self.part.retries)
        for attempt in range(attempts):
            try:
                return within(self.part.seconds, lambda: self._once(body, where, most))
            except (_Again, TookTooLong) as error:
                last = error
            if attempt + 1 < attempts:
                self.pause(min(LONGEST_PAUSE, FIRST_PAUSE * 2**attempt))
        found = str(last) if isinstance(last, _Again) else f"no answer within {self.part.seconds:g} s"
        raise StageError(f"the reward endpoint does not answer, asked {attempts} times", where=where,
                         found=found, expected=f"scores from {self.url}",
                         hint="checkpoints are kept: see to the endpoint and run again; or raise timeout or retries")

    def _once(self, body: bytes, where: str, most: int) -> bytes:
        request = urllib.request.Request(self.url, data=body, headers=self.headers, method="POST")
        try:
            with _OPENER.open(request, timeout=self.part.seconds) as answer:
                text: bytes = answer.read(most + 1)
        except urllib.error.HTTPError as error:
            said = f"{error.code} {error.reason}: {_short(error.read(1_000))}"
            if error.code in _AGAIN:
                raise _Again(said) from None
            raise StageError("the reward endpoint refuses the request", where=where, found=said,
                             expected=f"200 from {self.url}") from None
        except (OSError, HTTPException) as error:
            raise _Again(f"{type(error).__name__}: {getattr(error, 'reason', None) or error}") from None
        if len(text) > most:
            raise StageError("the reward endpoint's answer is too long", where=where, found=f"over {most} bytes",
                             expected="scores alone")
        return text


def _row(record: Record, answer: str) -> dict[str, Any]:
    return {"id": record.id, "prompt": record.prompt, "answer": answer, "reference": record.reference(),
            "meta": record.meta}


def _named(records: Sequence[Record]) -> str:
    first, last = records[0].id, records[-1].id
    return f"row {first}" if len(records) == 1 else f"rows {first} to {last}"


def _short(text: bytes) -> str:
    said = text.decode("utf-8", "replace").strip()
    return said if len(said) <= 200 else f"{said[:197]}..."
