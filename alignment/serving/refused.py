"""Refusals in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}` with a status that says whether to ask
again."""

from __future__ import annotations

from typing import Any


class Refused(Exception):
    """A request that gets no answer.

    Args:
        status: of HTTP. 429 and 503 come with `retry_after` in seconds: the same request may be answered then.
        code: a word for programs; param: the key of the request that it is about.
    """

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None,
                 retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.retry_after = status, message, code, param, retry_after

    def body(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        own = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        return own | ({"www-authenticate": "Bearer"} if self.status == 401 else {})


_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error",
          503: "service_unavailable"}
