"""Calls of tools by the real client, over an engine that says what it is told to: OpenAI's shape, whole and streamed;
what is no call of the request's tools stays text; turns that come back are encoded as in training."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import httpx2
import openai
import pytest
import yaml

from alignment import pipeline
from alignment.config import Compute, parse_run
from alignment.config.serve import Limits
from alignment.inference.live.asked import Grown, Hear, Question
from alignment.inference.live.opened import LiveModel
from alignment.inference.requests import Token
from alignment.records.importers.retrieval import TOOL, call_turn, found_turn
from alignment.serving.app import build
from alignment.serving.service import Model, Service
from alignment.templates import encode_completion, encode_prompt
from tests.small import BASE

ASKED: list[Any] = [{"role": "user", "content": "Which boat is red?"}]
CHATML_TOOL: Any = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


class Says:
    """An engine that gives these tokens, one by one, to whoever asks."""

    made_by: ClassVar = {"engine": "says", "version": "0", "dtype": "float32"}
    trouble = None

    def __init__(self) -> None:
        self.ids: Sequence[int] = ()
        self.asked: list[Question] = []
        self._numbers = itertools.count(1)

    def ask(self, question: Question, hear: Hear) -> int:
        self.asked.append(question)
        for place, token in enumerate(self.ids):
            last = place == len(self.ids) - 1
            hear(Grown((Token(token),), last, stop=last))
        return next(self._numbers)

    def cancel(self, number: int) -> None: ...

    def load(self, adapter: str | None) -> None: ...

    def close(self) -> None: ...


class Told:
    """A model of a template, and what the client hears of it."""

    def __init__(self, folder: Path, **base: Any) -> None:
        made = parse_run(yaml.safe_dump({"name": "calls", "store": str(folder), "stages": [{**BASE, **base}]}))
        artifact = pipeline.execute(made).artifacts["base"]
        assert artifact is not None
        self.engine = Says()
        self.live = LiveModel(artifact, self.engine, None, 2048)
        model = Model("base", artifact, None, state="ready", live=self.live)
        self.service = Service([model], Compute(dtype="float32"), Limits())
        self.tokenizer: Any = self.live.tokenizer

    def ask(self, turn: Any, messages: list[Any] = ASKED, **more: Any) -> Any:
        """The answer where the model says `turn`."""
        self.engine.ids = encode_completion(self.tokenizer, ASKED, turn)[1]
        return asyncio.run(self._ask(messages, more))

    async def _ask(self, messages: list[Any], more: dict[str, Any]) -> Any:
        transport = httpx2.ASGITransport(app=build(self.service, prove=False))
        async with httpx2.AsyncClient(transport=transport) as http:
            client = openai.AsyncOpenAI(base_url="http://localhost/v1", api_key="none", http_client=http, max_retries=0)
            made: Any = await client.chat.completions.create(model="base", messages=messages, **more)
            if not more.get("stream"):
                return made
            return [chunk.choices[0] async for chunk in made]


@pytest.fixture(scope="module")
def retrieval(tmp_path_factory: pytest.TempPathFactory) -> Told:
    return Told(tmp_path_factory.mktemp("calls"), template="retrieval", new_tokens=["<|bof|>", "<|eof|>", "<|eot|>"])


@pytest.mark.parametrize("beside", ["", "The gate is black."])
def test_a_call_is_told_in_openais_shape_and_goes_back_as_training_had_it(retrieval: Told, beside: str) -> None:
    turn = call_turn(beside, "red boat, 红")
    said = retrieval.ask(turn, tools=[TOOL]).choices[0]
    assert said.finish_reason == "tool_calls"
    assert said.message.content == (beside or None)
    [call] = said.message.tool_calls
    assert (call.type, call.function.name) == ("function", "retrieve")
    assert json.loads(call.function.arguments) == {"query": "red boat, 红"}
    # streamed: the same, the call once it is whole
    chunks = retrieval.ask(turn, tools=[TOOL], stream=True)
    assert "".join(chunk.delta.content or "" for chunk in chunks) == beside
    [whole] = [one for chunk in chunks for one in chunk.delta.tool_calls or ()]
    assert (whole.index, whole.function.name, whole.function.arguments) == (0, "retrieve", call.function.arguments)
    assert chunks[-1].finish_reason == "tool_calls"
    # and what the client sends back is what the model was trained on
    back = [*ASKED, said.message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": call.id, "content": "The boat Anna is red."}]
    retrieval.ask("Anna", messages=back, tools=[TOOL])
    trained = [*ASKED, turn, found_turn("The boat Anna is red.")]
    assert list(retrieval.engine.asked[-1].ids) == encode_prompt(retrieval.tokenizer, trained)


def test_what_is_no_call_of_the_requests_tools_stays_text(retrieval: Told) -> None:
    call = call_turn("Look: ", "red boat")
    without = retrieval.ask(call).choices[0]
    assert without.finish_reason == "stop"
    assert without.message.tool_calls is None
    for turn in ("An answer.", 'It says retrieve: {"query": "x"}', "two lines\n\n and blanks "):
        told = retrieval.ask(turn, tools=[TOOL]).choices[0]
        plain = retrieval.ask(turn).choices[0]
        chunks = retrieval.ask(turn, tools=[TOOL], stream=True)
        assert told.message.content == plain.message.content
        assert "".join(chunk.delta.content or "" for chunk in chunks) == plain.message.content
        assert told.finish_reason == chunks[-1].finish_reason == "stop"
    other = {"role": "assistant", "content": "", "tool_calls": [
        {"type": "function", "function": {"name": "delete", "arguments": {"query": "x"}}}]}
    told = retrieval.ask(other, tools=[TOOL]).choices[0]
    assert (told.finish_reason, told.message.tool_calls) == ("stop", None)
    assert 'delete:\n{"query": "x"}' in told.message.content
    cut = encode_completion(retrieval.tokenizer, ASKED, call)[1][:-4]
    retrieval.engine.ids = cut
    chunks = asyncio.run(retrieval._ask(ASKED, {"tools": [TOOL], "stream": True}))
    assert "retrieve:" in "".join(chunk.delta.content or "" for chunk in chunks)
    assert not any(chunk.delta.tool_calls for chunk in chunks)


def test_tools_that_the_model_cannot_be_told_of_are_refused(retrieval: Told) -> None:
    with pytest.raises(openai.BadRequestError, match="the chat template ignores tools"):
        retrieval.ask("x", tools=[TOOL, CHATML_TOOL])
    with pytest.raises(openai.BadRequestError, match="best_of: an answer may be a call"):
        retrieval.ask("x", tools=[TOOL], extra_body={"best_of": 2})
