"""Why a data file could not be read, in words: not there, refused, not answered, no credentials, no such client.

Clients are told by name, since only those that a run needs are installed. What a server said is not repeated, its
status alone: the sentence may stand where others read it.
"""

from __future__ import annotations

import http
import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from alignment.errors import DataError

_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound"}
_SILENT = {"ClientConnectionError", "ClientConnectorError", "ConnectError", "ConnectionError",
           "EndpointConnectionError", "FSTimeoutError", "HTTPClientError",
           "LocalEntryNotFoundError", "TimeoutError", "TimeoutException"}
_NAMES = {"ParamValidationError", "InvalidUrlClientError", "InvalidURL", "HFValidationError"}


class DataUnreachable(DataError):
    """The server does not answer. Nothing the user wrote need be wrong: trying again may be all it takes."""

    transient = True


def unreadable(path: str, error: Exception) -> DataError:
    """The error for a file that could not be opened or read.

    Args:
        path: as the user wrote it.
        error: what was raised.
    """
    chain = list(_chain(error))
    names = {kind.__name__ for one in chain for kind in type(one).__mro__}
    status = next((found for found in map(_status, chain) if found), 0)
    where = path if "://" in path else str(Path(path).absolute())
    kind, problem, hint = DataError, f"the data file cannot be read: {error}", None
    if status:
        kind, problem, hint = _answered(status)
    elif "OfflineModeIsEnabled" in names:
        problem, hint = "the hub is not asked: offline mode is on", "unset HF_HUB_OFFLINE, or name a local file"
    elif names & _CREDENTIALS:
        problem = "there are no credentials for the data file"
        hint = "for S3 set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_ENDPOINT_URL for anything but Amazon's)"
    elif names & _NAMES or (any(type(one) is ValueError for one in chain) and "://" in path):
        reason = next((one for one in chain if type(one) is ValueError or type(one).__name__ in _NAMES), error)
        problem = f"this is no URL that can be opened: {' '.join(str(reason).split())[:200]}"
    elif "://" in path and (names & _SILENT or any(isinstance(one, socket.gaierror | ssl.SSLError) for one in chain)):
        kind, problem, hint = _silent(chain)
    elif any(isinstance(one, PermissionError) for one in chain):
        problem = "the data file may not be read" + (" with these credentials" if "://" in path else " by this user")
    elif isinstance(error, FileNotFoundError):
        problem = "the data file does not exist"
        hint = None if "://" in path else "relative paths start at the working directory"
    return kind(problem, where=where, found=path, expected="a file or fsspec URL that can be read", hint=hint)


def _answered(status: int) -> tuple[type[DataError], str, str | None]:
    said = f"HTTP {status}"
    with suppress(ValueError):
        said += f" {http.HTTPStatus(status).phrase}"
    if status in (404, 410):
        return DataError, f"the data file does not exist ({said})", None
    if status in (401, 403, 407):
        return DataError, f"the server refuses this file ({said})", "look at the rights, tokens or a signed URL's age"
    if status in (408, 425, 429) or status >= 500:
        return DataUnreachable, f"the server cannot give this file now ({said})", "try again later"
    return DataError, f"the server does not give this file ({said})", None


def _silent(chain: list[BaseException]) -> tuple[type[DataError], str, str | None]:
    for one in chain:
        if isinstance(one, ssl.SSLError):
            return DataError, "no secure connection to the server", "https:// where the server speaks http, or its " \
                "certificate is not trusted here"
        if isinstance(one, socket.gaierror):
            return DataUnreachable, "the server's name is not known", "look at the URL and at name resolution"
        if isinstance(one, ConnectionRefusedError):
            return DataUnreachable, "the server refuses the connection", "look at host and port, and at the server"
    return DataUnreachable, "the server does not answer", "look at the network (a proxy, a NetworkPolicy?)"


def _status(error: BaseException) -> int:
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore's
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    else:
        status = getattr(error, "status", None) or getattr(response, "status_code", 0)
    return status if isinstance(status, int) else 0


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what led to it; fsspec hides a server's answer behind "not found"."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
