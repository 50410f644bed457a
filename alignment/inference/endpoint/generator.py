"""`Generator` (generator.py above) over an OpenAI-compatible endpoint: every answer a request of its own.

Messages are sent as they are and the endpoint sets its own chat template around them, so nothing here counts tokens:
`prompt_tokens` is 0, and the endpoint refuses what it cannot take. A row that gets no answer is a Completion with a
`failure`; what is wrong with the endpoint itself is `EndpointStopped`, never a row's. Loads nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from alignment.config.stages.endpoint import EndpointModel
from alignment.context import StageContext
from alignment.errors import ConfigError, DataError, ModelError
from alignment.inference.endpoint.asking import Asking, Clock
from alignment.inference.endpoint.client import Client
from alignment.inference.endpoint.ledger import Ledger
from alignment.inference.requests import Completion, Draw, Item, Request, Told
from alignment.records import Message
from alignment.records.importers.retrieval import RETRIEVE, TOOL
from alignment.templates import Spoken
from alignment.templates.calls import CUT, SEVERAL, UNMARKED, UNREADABLE, read_call, unmarked

_LEADS = (f'{RETRIEVE}:{{"query":', f'{{"name":"{RETRIEVE}","arguments":')
"""How calls begin in texts of servers that do not read the calls of their model."""


class EndpointGenerator:
    """The endpoint that the stage `name` of the run names.

    Args:
        clock: of pauses and limits; a test's own passes at once.
    """

    def __init__(self, context: StageContext, name: str, clock: Clock | None = None) -> None:
        model = context.run.stage(name).endpoint
        assert model is not None, name
        # Limits, price and key are those of the run file as it is now: the artifact of the import has none of them.
        self.context, self.name, self.model = context, name, model
        self.where = f"stage {context.stage.name}, model {name}"
        self._clock = clock or Clock()
        self._opened: tuple[asyncio.Runner, Asking] | None = None

    def load(self) -> None:
        """Raises ConfigError without the key or the openai package."""
        if self._opened is None:
            runner = asyncio.Runner()
            try:
                asking = runner.run(self._asking())
            except BaseException:
                runner.close()
                raise
            self._opened = runner, asking

    def close(self) -> None:
        if self._opened is not None:
            (runner, asking), self._opened = self._opened, None
            runner.run(asking.close())
            runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def made_by(self) -> Mapping[str, Any]:
        """Nothing: usage.py says who was asked."""
        return {}

    @property
    def ahead(self) -> bool:
        return False

    def begin(self, requests: Sequence[Request]) -> None:
        """Nothing: each batch is asked for as a whole, within the limits."""

    def prompt_tokens(self, prompt: list[Message]) -> int:
        """0: the endpoint alone can count them, and refuses what it cannot take."""
        return 0

    def answer_tokens(self, prompt: list[Message], answer: str) -> int:
        """0, as `prompt_tokens`."""
        return 0

    def offered(self, prompt: list[Message]) -> list[Message]:
        first, *rest = prompt
        return [{**first, "tools": [TOOL]}, *rest]

    def spoken(self, completion: Completion) -> Spoken:
        text = completion.text.strip()
        if len(completion.calls) > 1:
            return Spoken(text, problem=SEVERAL)
        for name, arguments in completion.calls:
            call = read_call(f"{name}:{arguments}")
            cut = UNREADABLE if completion.finished else CUT
            return Spoken(text, problem=cut) if call is None else Spoken(text, *call)
        lost = any(unmarked(completion.text, lead) for lead in _LEADS)
        return Spoken(completion.text, problem=UNMARKED if lost else None)

    def generate(
        self, requests: Sequence[Request], on_progress: Callable[[int], None] | None = None
    ) -> list[list[Completion]]:
        """Answers to the requests, one Completion per draw, in order; what was paid before is not asked again.

        Raises:
            EndpointStopped: it cannot be asked any further: the key, the model's name, the budget, an outage.
            DataError: a request without a prompt or a draw.
            ConfigError: a draw asks for what the endpoint does not take.
        """
        for request in requests:
            if not request.prompt or not request.draws:
                raise DataError("a request needs a prompt and at least one draw", where=f"row {request.id}",
                                found={"messages": len(request.prompt), "draws": len(request.draws)})
            for draw in request.draws:
                _check(draw, self.model, self.where)
        self.load()
        assert self._opened is not None
        runner, asking = self._opened
        return runner.run(asking.all(requests, on_progress or (lambda ended: None)))

    def told(self, prompts: Sequence[list[Message]], max_new_tokens: int) -> list[Told]:
        """None: an endpoint gives no ids."""
        return []

    def log_probs(self, items: Sequence[Item]) -> list[tuple[float, int]]:
        """Raises ModelError: endpoints do not tell how likely a given text is."""
        raise ModelError("an endpoint gives no log-probabilities of given texts", where=self.where,
                         expected="a model with weights here", hint="perplexity: false")

    async def _asking(self) -> Asking:
        ledger = Ledger(self.context, self.context.inputs[self.name].key)
        return Asking(Client(self.model, self.where), ledger, self.model, self.where, self._clock)


def _check(draw: Draw, model: EndpointModel, where: str) -> None:
    for key, asked in (("top_k", draw.top_k != 0), ("repetition_penalty", draw.repetition_penalty != 1.0)):
        if asked and key not in model.takes:
            raise ConfigError(f"the endpoint is not known to take {key}", where=where, found=getattr(draw, key),
                              expected=f"sampling without it, or {key} in the model's `takes`")
