"""What an endpoint's reply says, read from its bytes: an answer, no answer for a reason, or nothing that can be read.

Pure functions. Nothing in a reply is believed before it was looked at: servers cut, wrap and rename.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from alignment.inference.requests import Failure

_STOP = frozenset({"stop", "eos", "eos_token", "stop_sequence", "end_turn"})
_LENGTH = frozenset({"length", "max_tokens", "model_length", "max_length"})
_CALLED = frozenset({"tool_calls", "function_call"})
FILTERED = "refused by the endpoint's content filter"
DECLINED = "the endpoint's model declined to answer"
UNREADABLE = "no answer that can be read"
TOO_LONG = "the prompt does not fit the endpoint's context"
_SHOWN = 300
"""Letters of a reply that are kept of a failure."""
_CONTEXT = re.compile(
    r"reduce (your|the) (prompt|length)|context[ _](length|window|size)|maximum (context|model|sequence) length|"
    r"prompt is too long|exceeds? the (available|maximum|model'?s?) context|too many tokens|max_model_len",
    re.IGNORECASE)
_FILTER = re.compile(r"content[ _](filter|policy)|content management policy|safety system", re.IGNORECASE)
_NO_MODEL = re.compile(r"model.{0,80}(does not exist|not (be )?found|not available|is not supported|unknown)|"
                       r"(unknown|invalid|no such|unsupported) model", re.IGNORECASE | re.DOTALL)
_NO_CREDIT = re.compile(r"insufficient[ _](quota|balance|credit|funds)|exceeded your current quota|"
                        r"billing|payment required", re.IGNORECASE)


class Tokens(NamedTuple):
    """As the endpoint counted them."""

    prompt: int
    completion: int


@dataclass(frozen=True)
class Said:
    """An answer, or why there is none although one was paid for.

    Attributes:
        finished: it ended by itself; False when its length was cut.
        failure: set where the reply is no answer; `text` is empty then.
        tokens: None where the endpoint does not say.
        model: as the endpoint calls who answered.
        calls: (name, arguments as JSON text) of the tools that are called, where that was offered.
    """

    text: str
    finished: bool
    failure: Failure | None
    tokens: Tokens | None
    model: str | None
    calls: tuple[tuple[str, str], ...] = ()


def read_reply(content: bytes, calls: bool = False) -> Said | str:
    """A reply with status 200; or, as a sentence, why it cannot be read and is to be asked for again.

    Args:
        calls: whether calls of tools are an answer.
    """
    try:
        reply = json.loads(content)
    except (ValueError, RecursionError):
        return f"no JSON, or cut: {shown(content)}"
    if not isinstance(reply, dict):
        return f"no JSON object: {shown(content)}"
    choices = reply.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return f"no choices: {shown(content)}"
    message, reason = choices[0].get("message"), choices[0].get("finish_reason")
    if not isinstance(message, dict):
        return f"a choice without a message: {shown(content)}"
    text, refusal = message.get("content"), message.get("refusal")
    if text is not None and not isinstance(text, str):
        return f"a message whose content is no text: {shown(content)}"
    found = reply.get("model")
    failure: Failure | None = None
    called = _calls(message.get("tool_calls")) if calls else ()
    if reason == "content_filter":
        failure = Failure(FILTERED, "finish_reason content_filter")
    elif isinstance(refusal, str) and refusal:
        failure = Failure(DECLINED, refusal[:_SHOWN])
    elif reason in _CALLED and not called:
        failure = Failure(UNREADABLE, f"a tool call instead of an answer: finish_reason {reason}")
    elif reason not in _STOP | _LENGTH | _CALLED:
        return f"finish_reason {str(reason)[:40]!r}, where stop, length or content_filter was expected"
    return Said("" if failure is not None else text or "", reason in _STOP | _CALLED, failure,
                _tokens(reply.get("usage")), found if isinstance(found, str) else None, called)


def _calls(value: Any) -> tuple[tuple[str, str], ...]:
    """Calls of tools; of one that is not as it should be, what there is of it, for who reads it to refuse."""
    made = []
    for call in value if isinstance(value, list) else ():
        function = call.get("function") if isinstance(call, dict) else None
        name, arguments = (function.get("name"), function.get("arguments")) if isinstance(function, dict) else (None,
                                                                                                                None)
        made.append((str(name or ""), arguments if isinstance(arguments, str) else json.dumps(arguments)))
    return tuple(made)


def _tokens(usage: Any) -> Tokens | None:
    if not isinstance(usage, dict):
        return None
    counts = [usage.get("prompt_tokens"), usage.get("completion_tokens", 0)]
    if any(isinstance(count, bool) or not isinstance(count, int) or count < 0 for count in counts):
        return None
    return Tokens(*counts)


Refusal = Literal["key", "model", "credit", "address", "length key", "context", "filter", "load", "server", "request"]
"""What a status other than 200 means: of the endpoint as a whole (the first five), of the row (context, filter,
request), or of the moment (load, server)."""


def refusal(status: int, content: str) -> Refusal:
    """What the endpoint refuses for, by its status and what it wrote beside."""
    if status in (401, 403):
        return "filter" if status == 403 and _FILTER.search(content) else "key"
    if status == 402 or (status == 429 and _NO_CREDIT.search(content)):
        return "credit"
    if status in (408, 409, 425, 429):
        return "load"
    if status >= 500:
        return "server"
    if status == 404:
        return "model" if _NO_MODEL.search(content) or "model_not_found" in content else "address"
    if status < 400 or status == 405:
        return "address"
    if _CONTEXT.search(content) or status == 413:
        return "context"
    if "model_not_found" in content or _NO_MODEL.search(content):
        return "model"
    if "max_completion_tokens" in content and "max_tokens" in content:
        return "length key"
    return "filter" if _FILTER.search(content) else "request"


def message_of(content: str) -> str:
    """The words of an error reply, without what is around them, on one line."""
    try:
        found: Any = json.loads(content)
    except (ValueError, RecursionError):
        return shown(content.encode())
    for key in ("error", "message", "detail"):
        if isinstance(found, dict) and key in found:
            found = found[key]
    return shown((found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)).encode())


def shown(content: bytes) -> str:
    """The beginning of a reply, on one line."""
    text = " ".join(content[: 4 * _SHOWN].decode("utf-8", "replace").split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN - 3]}..."
