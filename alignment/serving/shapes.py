"""Requests as OpenAI (and vLLM, where it has more) shapes them, read strictly: a key that would not be honoured is
refused, with its name. Plain; imports no torch."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from alignment.records import Message
from alignment.serving.refused import Refused
from alignment.serving.strict_json import look

MOST_CHOICES, MOST_TEXTS, MOST_TOP, MOST_INPUTS = 16, 64, 20, 2048
Text = Annotated[str, Field(min_length=1)]
Id = Annotated[int, Field(ge=0, lt=2**31)]


def _or_null(schema: dict[str, Any]) -> None:
    """Say in a key's schema that null is its default."""
    own = {key: schema.pop(key) for key in list(schema) if key not in ("title", "default")}
    schema["anyOf"] = [own, {"type": "null"}]


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class TextPart(_Shape):
    """A part of a message's content; text is all that these models read."""

    type: Literal["text"]
    text: str


class Turn(_Shape):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None

    def message(self) -> Message:
        """As chat templates take it."""
        said = "".join(part.text for part in self.content) if isinstance(self.content, list) else self.content or ""
        made: Message = {"role": self.role, "content": said}
        for key in ("name", "tool_call_id", "reasoning_content"):
            if (value := getattr(self, key)) is not None:
                made[key] = value
        if self.tool_calls:
            made["tool_calls"] = [_call(call) for call in self.tool_calls]
        return made


class StreamOptions(_Shape):
    include_usage: bool = False
    continuous_usage_stats: Literal[False] = False


class _Drawn(_Shape):
    """What chat and completions have in common."""

    model: str
    temperature: Annotated[float, Field(ge=0, le=10, json_schema_extra=_or_null)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1, json_schema_extra=_or_null)] = 1.0
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] = 0
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = 1.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2, json_schema_extra=_or_null)] = 0.0
    frequency_penalty: float = 0.0
    seed: Annotated[int, Field(ge=-2**63, lt=2**63)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES, json_schema_extra=_or_null)] = 1
    stop: Text | Annotated[list[Text], Field(max_length=4)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stream: Annotated[bool, Field(json_schema_extra=_or_null)] = False
    stream_options: StreamOptions | None = None
    return_token_ids: bool = False
    logit_bias: dict[str, float] | None = None
    # Said of the request, not of the answer.
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None

    @field_validator("temperature", "top_p", "presence_penalty", "n", "stream", mode="before")
    @classmethod
    def _default(cls, value: Any, info: Any) -> Any:
        """null is the default, as with OpenAI."""
        return cls.model_fields[info.field_name].default if value is None else value

    @model_validator(mode="after")
    def _honoured(self) -> _Drawn:
        if self.frequency_penalty:
            raise ValueError("frequency_penalty: not served; presence_penalty and repetition_penalty are")
        if self.logit_bias:
            raise ValueError("logit_bias: not served")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: only with stream")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class ChatRequest(_Drawn):
    """POST /v1/chat/completions"""

    messages: Annotated[list[Turn], Field(min_length=1)]
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["auto"] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: Annotated[bool, Field(json_schema_extra=_or_null)] = False
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_TOP)] | None = None
    best_of: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    response_format: dict[Literal["type"], Literal["text"]] | None = None

    @field_validator("logprobs", mode="before")
    @classmethod
    def _no_logprobs(cls, value: Any) -> Any:
        return False if value is None else value

    @model_validator(mode="after")
    def _fits(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: only with logprobs")
        if self.messages[-1].role not in ("user", "tool"):
            raise ValueError(f"messages: the last is the {self.messages[-1].role}'s; expected the user's or a tool's")
        if self.best_of is not None and (self.stream or self.n > 1):
            raise ValueError("best_of: the best of several answers is known when all are made: without stream and n")
        if self.best_of is not None and self.tools:
            raise ValueError("best_of: an answer may be a call of a tool, which no reward model reads")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens: max_completion_tokens says otherwise")
        return self

    @property
    def most(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def top(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    def conversation(self) -> list[Message]:
        """As chat templates take it: tools stand in the first turn."""
        made = [turn.message() for turn in self.messages]
        return [{**made[0], "tools": self.tools}, *made[1:]] if self.tools else made


class CompletionRequest(_Drawn):
    """POST /v1/completions: text that is continued as it stands, or ids."""

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: Annotated[int, Field(ge=0, le=MOST_TOP)] | None = None
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
    suffix: Literal[""] | None = None

    @property
    def most(self) -> int | None:
        return self.max_tokens

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each text, or list of ids."""
        given: Any = self.prompt
        return list(given) if isinstance(given, list) and given and not isinstance(given[0], int) else [given]


class ScoreRequest(_Shape):
    """POST /v1/score: texts 1 and 2 as vLLM has them, a prompt and an answer; or a conversation and answers to it."""

    model: str
    text_1: str | list[str] | None = None
    text_2: str | list[str] | None = None
    messages: Annotated[list[Turn], Field(min_length=1)] | None = None
    answers: Annotated[list[str], Field(min_length=1, max_length=MOST_TEXTS)] | None = None
    user: str | None = None

    def items(self) -> list[tuple[list[Message], str]]:
        """(prompt, answer) of each score. Raises Refused where the two sides do not fit together."""
        if self.messages is not None and self.answers is not None and self.text_1 is None and self.text_2 is None:
            prompt = [turn.message() for turn in self.messages]
            return [(prompt, answer) for answer in self.answers]
        if self.text_1 is None or self.text_2 is None or self.messages is not None or self.answers is not None:
            raise Refused(400, "a score needs text_1 and text_2, or messages and answers", param="text_1")
        ones = [self.text_1] if isinstance(self.text_1, str) else self.text_1
        twos = [self.text_2] if isinstance(self.text_2, str) else self.text_2
        if len(ones) == 1:
            ones = ones * len(twos)
        if len(ones) != len(twos) or not 1 <= len(twos) <= MOST_TEXTS:
            raise Refused(400, f"text_1 has {len(ones)} texts, text_2 {len(twos)}; expected one and several, or as "
                               f"many, {MOST_TEXTS} at most", param="text_2")
        return [([{"role": "user", "content": one}], two) for one, two in zip(ones, twos, strict=True)]


def _kind(given: Any) -> str:
    """Which of the four an input is meant as."""
    if not isinstance(given, list):
        return "text"
    first = given[0] if given else ""
    return "lists of ids" if isinstance(first, list) else "texts" if isinstance(first, str) else "ids"


class EmbeddingRequest(_Shape):
    """POST /v1/embeddings: texts, or ids that stand for one as they are."""

    model: str
    input: Annotated[
        Annotated[Text, Tag("text")]
        | Annotated[list[Text], Field(min_length=1, max_length=MOST_INPUTS), Tag("texts")]
        | Annotated[list[Id], Field(min_length=1), Tag("ids")]
        | Annotated[list[Annotated[list[Id], Field(min_length=1)]], Field(min_length=1, max_length=MOST_INPUTS),
                    Tag("lists of ids")], Discriminator(_kind)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: str | None = None

    @property
    def inputs(self) -> list[str | list[int]]:
        """Each text, or list of ids."""
        given: Any = self.input
        return list(given) if isinstance(given, list) and not isinstance(given[0], int) else [given]


Shape = TypeVar("Shape", bound=_Shape)


def read(shape: type[Shape], body: bytes) -> Shape:
    """A request. Raises Refused, which names the key."""
    look(body)
    try:
        return shape.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = "not a key that is honoured here"
        param = place or message.partition(":")[0]
        raise Refused(400, f"{place}: {message}" if place else message, param=param if " " not in param else None,
                      code="invalid_request") from None


def _call(call: dict[str, Any]) -> dict[str, Any]:
    """A call whose arguments are an object, as templates take it; OpenAI has them as text."""
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise Refused(400, "a tool call needs function.name", param="messages.tool_calls")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            raise Refused(400, "the arguments of a tool call are no JSON", param="messages.tool_calls") from None
    return {**call, "function": {**function, "arguments": arguments}}
