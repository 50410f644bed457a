"""What went wrong with a store, in words: no bucket, no or wrong credentials, no answer.

Turns whatever a file system or a storage client raises into one ArtifactError that names the URL and what to do.
Imports no client: theirs are told by name, since only the one that a store needs is installed.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from alignment.errors import ArtifactError

_CLIENTS = {"botocore", "aiobotocore", "aiohttp", "s3fs", "gcsfs", "adlfs"}
_SILENT = {"ConnectionError", "HTTPClientError", "TimeoutError", "ClientConnectionError", "FSTimeoutError"}
_BUSY = {errno.EBUSY, errno.EREMOTEIO, errno.ENETUNREACH, errno.EHOSTUNREACH}
_NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound"}
_REFUSED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "403"}
_CREDENTIALS = ("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_ENDPOINT_URL for anything but Amazon's own); "
                "in a cluster they are keys of the secret that cluster.storage.secret names")


class StoreUnreachable(ArtifactError):
    """The store does not answer. Nothing the user wrote need be wrong: trying again may be all it takes."""

    transient = True


@contextmanager
def explained(url: str, verb: str) -> Iterator[None]:
    """Raise ArtifactError in place of a storage client's own errors.

    Args:
        url: of the store or of the object at hand.
        verb: `read` or `written`.

    Raises:
        FileNotFoundError, FileExistsError: as they came, when an object is not there, or is there already.
        StoreUnreachable: the store does not answer, or says that it is overloaded.
        ArtifactError: anything else that the store or its client says.
    """
    try:
        yield
    except Exception as error:
        if _code(error) != "NoSuchBucket" and isinstance(error, FileNotFoundError | FileExistsError):
            raise
        found = _error(error, url, verb)
        if found is None:
            raise
        raise found from None if "://" in url else error


def _error(error: Exception, url: str, verb: str) -> ArtifactError | None:
    """None: not a storage error."""
    names = {kind.__name__ for kind in type(error).__mro__}
    code = _code(error)
    said = f"{type(error).__name__}: {error}"[:300]
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    at = f" (AWS_ENDPOINT_URL is {endpoint})" if endpoint and url.startswith("s3://") else ""
    if code == "NoSuchBucket":
        return ArtifactError(f"the bucket does not exist{at}", where=url, expected="a bucket made beforehand",
                             hint="create it, or mend the store's URL; buckets are never created from here")
    if names & _NO_CREDENTIALS:
        return ArtifactError(f"there are no credentials for the store: {error}", where=url, hint=f"set {_CREDENTIALS}")
    if "://" in url and (isinstance(error, PermissionError) or code in _REFUSED or "UserNotFound" in code):
        return ArtifactError(f"the store refuses these credentials{at}", where=url, found=_message(error),
                             expected=f"credentials with which this can be {verb}", hint=f"look at {_CREDENTIALS}")
    if isinstance(error, ValueError) and str(error).startswith("Invalid endpoint"):
        return ArtifactError("the endpoint is no URL", where=url, found=endpoint, expected="http(s)://HOST[:PORT]",
                             hint="mend AWS_ENDPOINT_URL")
    if names & _SILENT or ("://" in url and isinstance(error, OSError) and error.errno in _BUSY):
        return StoreUnreachable(f"the store does not answer{at}", where=url, found=said,
                                hint="look at the endpoint, the network (a NetworkPolicy?) and the store itself, "
                                     "then run again to resume")
    if isinstance(error, OSError) or type(error).__module__.split(".")[0] in _CLIENTS:
        return ArtifactError(f"the store cannot be {verb}: {error}", where=url,
                             expected="a folder or bucket that this user may write" if verb == "written" else None)
    return None


def _code(error: Exception) -> str:
    """The store's own code (NoSuchBucket, ...), which s3fs keeps in the cause; "" where there is none."""
    for one in (error, error.__cause__):
        response = getattr(one, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
    return ""


def _message(error: Exception) -> str:
    for one in (error.__cause__, error):
        response = getattr(one, "response", None)
        if isinstance(response, dict):
            said = response.get("Error", {})
            return f"{said.get('Code')}: {said.get('Message')}"
    return str(error)
