"""Many answers from one endpoint, at the pace that it bears and within the limits that the run file sets.

Each answer: look in the ledger -> wait for room (crowd, minutes, budget) -> ask -> keep, ask again, or give the row up.
What is wrong with the endpoint as a whole stops everything: no new request goes, those under way are waited for, since
they are paid, and `EndpointStopped` says why in one sentence. Runs in one event loop; opens no connection itself.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from alignment.config.stages.endpoint import EndpointModel
from alignment.inference.endpoint.client import Broken, Client, Refused
from alignment.inference.endpoint.ledger import Ledger, key_of
from alignment.inference.endpoint.pace import Crowd, Minute, pause
from alignment.inference.endpoint.reply import FILTERED, TOO_LONG, Said
from alignment.inference.requests import Completion, Draw, EndpointStopped, Failure, Request, Usage
from alignment.progress import console

GIVE_UP = 10
"""Rows in a row that the endpoint fails on, or the first rows that all fail, before the stage stops: it is not they."""
LONGEST_WAIT = 600.0
"""Seconds of Retry-After that are waited for; who asks for more is asked again by another run."""
SHRINK, SHRINKS = 0.8, 6
"""The share of max_new_tokens that is asked for after a context error (as Self-Instruct's code has it), and how often:
0.8^6 is about a quarter."""
_SAY = 15.0
_STOPS = {
    "key": ("the endpoint does not accept the key, or denies access",
            "key_env, and what the key may use"),
    "model": ("the endpoint has no model of this name", "a name that it lists (GET BASE_URL/models)"),
    "credit": ("the account at the endpoint has no credit left", "credit; what is paid is kept, run again to go on"),
    "address": ("there is no chat interface at this address", "base_url, up to and including /v1"),
    "length key": ("the endpoint's model does not take this name for the longest answer",
                   "length_key: max_completion_tokens, or max_tokens"),
}
"""What stops the stage at once -> what is wrong, and what to look at."""


@dataclass(frozen=True)
class Clock:
    """Time, waiting and chance."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
    draw: Callable[[], float] = random.random


@dataclass
class _Call:
    """One answer in the making."""

    request: Request
    draw: Draw
    most: int
    attempts: int = 0
    failures: int = 0
    lost: float = 0.0

    @property
    def prompt(self) -> int:
        """Tokens of the prompt, estimated on the high side: three bytes each, and some for each message's marks."""
        texts = (f"{message.get('content') or ''}{message.get('tools') or ''}{message.get('tool_calls') or ''}"
                 for message in self.request.prompt)
        return sum(8 + len(text.encode()) // 3 for text in texts)


class Asking:
    """Asks `client` for answers until it stops for good."""

    def __init__(self, client: Client, ledger: Ledger, model: EndpointModel, where: str, clock: Clock) -> None:
        self.client, self.ledger, self.model, self.where, self.clock = client, ledger, model, where, clock
        self.crowd = Crowd(model.concurrency)
        self.requests = Minute(model.limits.requests_per_minute)
        self.tokens = Minute(model.limits.tokens_per_minute)
        self.reserved = 0.0
        """What requests under way may cost."""
        self.not_before = 0.0
        # Rows in the making, those included that wait for another attempt: where all fail, few were begun.
        self._begun = asyncio.Semaphore(2 * model.concurrency)
        self._gate, self._changed, self._stop = asyncio.Lock(), asyncio.Event(), asyncio.Event()
        self._why: EndpointStopped | None = None
        self._answered = len(ledger) > 0
        self._in_a_row = 0
        self._failed: list[tuple[str, Failure]] = []
        self._other_model = False

    async def all(self, requests: Sequence[Request], on_progress: Callable[[int], None]) -> list[list[Completion]]:
        """As `Generator.generate`."""
        async def one(request: Request, draw: Draw) -> Completion | None:
            try:
                async with self._begun:
                    made = await self._answer(request, draw)
            except EndpointStopped as error:
                self._why = self._why or error
                self._stop.set()
                self._changed.set()
                return None
            on_progress(1)
            return made

        if self._why is not None:
            raise self._why
        made = await asyncio.gather(*(one(request, draw) for request in requests for draw in request.draws))
        if self._why is not None:
            self.ledger.push()
            raise self._why
        answers = iter(made)
        return [[completion for _ in request.draws if (completion := next(answers)) is not None]
                for request in requests]

    async def close(self) -> None:
        """Send what is kept, and let the connections go."""
        with suppress(Exception):  # what it was closed for is told
            self.ledger.push()
        await self.client.close()

    async def _answer(self, request: Request, draw: Draw) -> Completion:
        key = key_of(request, draw)
        found = self.ledger.find(key)
        if found is not None:
            return found
        call = _Call(request, draw, draw.max_new_tokens)
        while True:
            made = await self._attempt(call)
            if made is not None:
                break
        paid = made.usage is not None and made.usage.prompt_tokens != 0
        if made.failure is None or made.failure.reason == FILTERED or paid:
            self.ledger.add(key, made)  # asked again, it would say the same
        return made

    async def _attempt(self, call: _Call) -> Completion | None:
        """One request; None where it is to be tried again, after the pause that this has made."""
        worst = self._cost(call.prompt, call.most)
        entry = await self._admitted(call, worst)
        round_ = self.crowd.enter()
        self.reserved += worst
        jam: bool | None = None
        try:
            call.attempts += 1
            result = await self.client.ask(call.request.prompt, call.draw, call.most, call.request.calls)
            if isinstance(result, Said):
                jam = False
            elif isinstance(result, Refused):
                jam = True if result.kind in ("load", "server") else None
            else:
                jam = True if result.jam else None
        finally:
            self.crowd.leave(round_, jam=jam)
            self.reserved = self.reserved - worst if self.crowd.under_way else 0.0  # sums of floats keep a rest
            self._changed.set()
        if isinstance(result, Said):
            return self._said(call, result, entry)
        if isinstance(result, Broken):
            if result.reached:
                call.lost += worst
                self.ledger.waste(worst)
            return await self._again(call, Failure(result.reason, result.found), None)
        self.tokens.correct(entry, 0.0)
        return await self._refused(call, result)

    async def _admitted(self, call: _Call, worst: float) -> list[float]:
        """Wait until one more may go, in the order of asking."""
        needs = float(call.prompt + call.most)
        async with self._gate:
            while True:
                if self._why is not None:
                    raise self._why
                self._changed.clear()
                now, budget = self.clock.now(), self.model.limits.budget
                wait = max(self.not_before - now, self.requests.wait(now, 1), self.tokens.wait(now, needs))
                if math.isinf(wait):
                    raise self._stopped("one request may take more tokens than tokens_per_minute allows",
                                        f"about {needs:.0f}, row {call.request.id}", "a higher tokens_per_minute, or "
                                                                                     "fewer max_new_tokens")
                broke = budget is not None and self.ledger.spent + self.reserved + worst > budget
                if broke and not self.crowd.under_way:
                    assert budget is not None
                    raise self._stopped(
                        "the budget for the endpoint is spent", f"{self.ledger.spent:.6g} of {budget:g}",
                        "a higher `budget` in the model's limits",
                        f"{len(self.ledger)} answers are paid and kept: run again, and the stage goes on from them")
                if broke or not self.crowd.room:
                    await self._changed.wait()
                elif wait > 0:
                    await self._sleep(wait)
                else:
                    self.requests.take(now, 1)
                    return self.tokens.take(now, needs)

    def _said(self, call: _Call, said: Said, entry: list[float]) -> Completion:
        prompt, completion = said.tokens or (None, None)
        cost = None
        if prompt is not None and completion is not None:
            self.tokens.correct(entry, float(prompt + completion))
            cost = self._cost(prompt, completion) if self.model.limits.price is not None else None
        elif self.model.limits.budget is not None:
            raise self._stopped("the endpoint does not say how many tokens an answer took, so no budget can be held",
                                f"no usage in the reply to row {call.request.id}", "limits without a budget")
        self._note_model(said.model)
        usage = Usage(prompt, completion, cost, call.attempts, said.model, call.lost)
        if said.failure is not None:
            return self._failed_with(call, said.failure, usage)
        self._answered, self._in_a_row = True, 0
        return Completion(said.text, [], said.finished, usage=usage, calls=said.calls)

    async def _refused(self, call: _Call, refused: Refused) -> Completion | None:
        if refused.kind in _STOPS:
            problem, look = _STOPS[refused.kind]
            raise self._stopped(problem, refused.found, look)
        if refused.kind == "context":
            if call.attempts - call.failures <= SHRINKS and int(call.most * SHRINK) > 0:
                call.most = int(call.most * SHRINK)
                return None
            return self._failed_with(call, Failure(TOO_LONG, refused.found))
        if refused.kind == "filter":
            return self._failed_with(call, Failure(FILTERED, refused.found))
        if refused.kind == "request":
            return self._failed_with(call, Failure("the endpoint refuses the request", refused.found))
        reason = "the endpoint refuses for load" if refused.kind == "load" else "the endpoint failed"
        made = await self._again(call, Failure(reason, refused.found), refused.wait)
        if made is not None and refused.kind == "load":  # no row's fault, and none may be lost for it
            raise self._stopped(f"the endpoint refuses for load, asked {call.attempts} times", refused.found,
                                "a lower concurrency or requests_per_minute, or more retries")
        return made

    async def _again(self, call: _Call, failure: Failure, asked: float | None) -> Completion | None:
        """Pause before the next attempt; or give the row up, after the last."""
        if asked is not None and asked > LONGEST_WAIT:
            raise self._stopped(f"the endpoint asks to wait for {asked:.0f} s", failure.detail,
                                f"{LONGEST_WAIT:.0f} s at most", "what is paid is kept: run again then")
        call.failures += 1
        if call.failures > self.model.retries:
            return self._failed_with(call, failure)
        wait = pause(call.failures - 1, asked, self.clock.draw)
        if asked is not None:  # it speaks of the account, not of the row
            self.not_before = max(self.not_before, self.clock.now() + asked)
            if asked >= _SAY:
                console.print(f"  {self.where}: the endpoint asks to wait for {asked:.0f} s", markup=False)
        await self._sleep(wait)
        return None

    def _failed_with(self, call: _Call, failure: Failure, usage: Usage | None = None) -> Completion:
        self._failed.append((call.request.id, failure))
        self._in_a_row += usage is None and failure.reason not in (FILTERED, TOO_LONG)
        count = len(self._failed)
        if (not self._answered and count >= GIVE_UP) or self._in_a_row >= GIVE_UP:
            recent = self._failed if not self._answered else self._failed[-GIVE_UP:]
            reasons = ", ".join(f"{reason} ({count})" for reason, count in
                                Counter(failure.reason for _, failure in recent).most_common())
            examples = "; ".join(f"row {row}: {failure.detail}" for row, failure in recent[:3])
            raise self._stopped(f"the endpoint gives no answers: {reasons}", examples,
                                "answers to some rows", "what is paid is kept: mend it and run again")
        return Completion("", [], False, failure=failure,
                          usage=usage or Usage(0, 0, 0.0, call.attempts, None, call.lost))

    def _cost(self, prompt: int, completion: int) -> float:
        price = self.model.limits.price
        return 0.0 if price is None else price.of(prompt, completion)

    def _stopped(self, problem: str, found: str, expected: str, hint: str | None = None) -> EndpointStopped:
        return EndpointStopped(problem, where=f"{self.where} ({self.model.model} at {self.model.base_url})",
                               found=found, expected=expected, hint=hint)

    def _note_model(self, found: str | None) -> None:
        """Some servers answer with whatever model they have."""
        asked = self.model.model.lower()
        if found and not self._other_model and asked not in found.lower() and found.lower() not in asked:
            self._other_model = True
            console.print(f"! {self.where}: the endpoint says that {found} answers, where {self.model.model} was asked",
                          markup=False)

    async def _sleep(self, seconds: float) -> None:
        """Wait, or until everything stops."""
        if self._stop.is_set():
            return
        sleeping, stop = asyncio.ensure_future(self.clock.sleep(seconds)), asyncio.ensure_future(self._stop.wait())
        await asyncio.wait({sleeping, stop}, return_when=asyncio.FIRST_COMPLETED)
        for task in (sleeping, stop):
            task.cancel()
