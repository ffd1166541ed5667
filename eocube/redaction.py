"""Keeps credentials and signed queries out of everything that is printed, logged or stored."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

HIDDEN = "***"

_USER = re.compile(r"//[^/\s'\"]*@")
_QUERY = re.compile(r"\?[^\s'\",;)>\]]*")
# As they stand in headers, connection strings and environment listings; a query is gone by then.
_NAMED = re.compile(
    r"(?i)\b((?:aws_)?(?:secret_access_key|access_key_id|session_token)|secret|password|passwd|token|api_?key|sas"
    r"|accountkey|sharedaccesssignature|signature|sig|credential|authorization|x-amz-[a-z-]+)"
    r"(['\"]?\s*[=:]\s*['\"]?)(?:(?:Bearer|Basic|AWS4-HMAC-SHA256)\s+)?[^\s,;&'\"}]+"
)
# fsspec options whose values are no secrets; everything else that is text counts as one.
_HARMLESS = frozenset({
    "endpoint_url", "region_name", "region", "profile", "account_name", "protocol", "asynchronous", "mode", "project",
    "default_fill_cache", "default_cache_type", "signature_version", "addressing_style", "s3_additional_kwargs",
})  # fmt: skip
_SHORTEST = 4  # a shorter value would hide half of what there is to read


def redacted(text: object, secrets: Iterable[str] = ()) -> str:
    """Text without user information and queries of URLs, named credentials and the given secrets: safe to print."""
    shown = str(text)
    for secret in secrets:
        shown = shown.replace(secret, HIDDEN)
    shown = _QUERY.sub("", _USER.sub("//", shown))
    return _NAMED.sub(rf"\1\2{HIDDEN}", shown)


def one_line(text: object, secrets: Iterable[str] = ()) -> str:
    """`redacted`, on one line."""
    return redacted(" ".join(str(text).split()), secrets)


def safe_url(url: str) -> str:
    """A URL fit for a message or a store: without user, password, query and fragment, where tokens live."""
    if "://" not in url:
        return url
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def secrets_of(options: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The values among storage options that nobody may see, longest first."""
    found = {value for name, value in _leaves(options or {}) if name not in _HARMLESS and len(value) >= _SHORTEST}
    return tuple(sorted(found, key=lambda value: (-len(value), value)))


def _leaves(options: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _leaves(value)
        elif isinstance(value, str):
            yield str(name), value


class SecretOptions(dict[str, Any]):
    """Storage options that show their names alone, wherever they are printed."""

    def __repr__(self) -> str:
        return "{" + ", ".join(f"{name!r}: {HIDDEN}" for name in self) + "}"

    __str__ = __repr__
