"""Judges which failures of a request may pass: throttling, server errors, timeouts; not a wrong request."""

from __future__ import annotations

import errno
from enum import Enum

from eocube.errors import LeaseError


class Failure(Enum):
    """What the failure of a request means for the next one."""

    FINAL = "asking again is no use"
    AGAIN = "it may pass, and says nothing about the host"
    DOWN = "it may pass, and the host may be down or throttling"


# 409 is a conditional write that met another at the same moment; 509 some servers' word for too much traffic.
RETRIED_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 509})
# S3 says these with a status of 400.
_RETRIED_CODES = frozenset({"RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch", "SlowDown"})
_CHANGED = frozenset({"PreconditionFailed", "412"})
_UNKNOWN = frozenset({"NotImplemented", "501"})

_PERMANENT = (
    FileNotFoundError, FileExistsError, PermissionError, NotADirectoryError, IsADirectoryError, NotImplementedError,
    ImportError, TypeError, AttributeError, LookupError, ValueError, AssertionError, MemoryError,
)  # fmt: skip
_PERMANENT_ERRNO = frozenset(
    {errno.EINVAL, errno.EROFS, errno.ENOSPC, errno.ENOENT, errno.EEXIST, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG}
)
# botocore's, by name: no client library is imported for a judgement.
_PERMANENT_NAMES = frozenset(
    {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "ParamValidationError", "NoRegionError",
     "InvalidEndpointURLError", "InvalidURL", "UnknownServiceError", "TokenRetrievalError", "SSOTokenLoadError"}
)  # fmt: skip


def status_of(error: BaseException) -> int | None:
    """The HTTP status that an error of requests, aiohttp, pystac-client or botocore carries; None where none."""
    for name in ("status_code", "status"):
        value = getattr(error, name, None)
        if isinstance(value, int):
            return value
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        value = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return value if isinstance(value, int) else None
    value = getattr(response, "status_code", None)
    return value if isinstance(value, int) else None


def refused_condition(error: BaseException) -> bool:
    """Whether a conditional write found another object than it was for (412).

    Servers differ in what they say beside the status, and so does what client libraries make of it: s3fs gives a
    FileExistsError only where the answer names the header, and else an OSError like any other.
    """
    if isinstance(error, FileExistsError):
        return True
    behind = (error, error.__cause__)
    return any(one is not None and (status_of(one) == 412 or _s3_code(one) in _CHANGED) for one in behind)


def knows_no_conditions(error: BaseException) -> bool:
    """Whether storage or its client said that it has no conditional writes (501, or an option that is not known)."""
    if isinstance(error, NotImplementedError | TypeError | ValueError):
        return True
    behind = (error, error.__cause__)
    said = any(one is not None and (status_of(one) == 501 or _s3_code(one) in _UNKNOWN) for one in behind)
    return said or (isinstance(error, OSError) and error.errno == errno.ENOSYS)


def _s3_code(error: BaseException | None) -> str:
    response = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def judge(error: BaseException) -> Failure:
    """Which kind a failure is, of any client library."""
    if not is_transient(error):
        return Failure.FINAL
    for one in (error, error.__cause__):
        if one is None:
            continue
        name = type(one).__name__
        if status_of(one) is not None or isinstance(one, TimeoutError | ConnectionError):
            return Failure.DOWN
        if "Connect" in name or "Timeout" in name or "Disconnected" in name:
            return Failure.DOWN
    return Failure.AGAIN


def is_transient(error: BaseException) -> bool:
    """Whether asking again may help. An error that is not known is taken for one that passes: tries are bounded."""
    if isinstance(error, LeaseError):
        return False
    cause = error.__cause__
    if _s3_code(error) in _RETRIED_CODES or _s3_code(cause) in _RETRIED_CODES:
        return True
    status = status_of(error)
    if status is None and cause is not None:
        # fsspec says "not found" because of a 503, and s3fs turns every status into an OSError of its own.
        status = status_of(cause)
    if status is not None and status >= 400:
        return status in RETRIED_STATUS
    if isinstance(error, FileNotFoundError) and cause is not None and not isinstance(cause, FileNotFoundError):
        return is_transient(cause)
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    if type(error).__name__ in _PERMANENT_NAMES or isinstance(error, _PERMANENT):
        return False
    return not (isinstance(error, OSError) and error.errno in _PERMANENT_ERRNO)
