"""Keeps credentials and signed queries out of everything that is printed, logged or stored."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

HIDDEN = "***"

_USER = re.compile(r"//[^/\s'\"]*@")
# Up to the next space or quote, but for what closes the sentence around the URL.
_QUERY = re.compile(r"(?<=[^\s?])(?:\?(?=[\w%&=.~;-])|#(?=[\w.-]+=))[^\s'\"<>]*?(?=[),;:.\]}]*(?:[\s'\"<>]|$))")
_URL, _MATRIX = re.compile(r"://[^\s'\"<>]+"), re.compile(r";[\w%.~-]+=[^/;]*")
# As they stand in headers, connection strings and environment listings, alone or as a part of a longer name
# ("x-api-key", "aws_secret_access_key", "client_secret"); a query is gone by then.
_NAMED = re.compile(
    r"(?i)\b((?:[a-z0-9]+[-_.])*(?:access[-_]?key(?:[-_]?id)?|(?:api|account|private|subscription|shared|secret)[-_]?key"
    r"|sharedaccesssignature|secret|passw(?:or)?d|passphrase|pwd|token|sas|signature|sig|credentials?|authori[sz]ation"
    r"|auth|bearer|jwt|hmac)(?:[-_.][a-z0-9]+)*|x-(?:amz|goog|ms)-[a-z-]+)"
    r"(['\"]?\s*[=:]\s*['\"]?)(?:(?:Bearer|Basic|Digest|Negotiate|AWS4-HMAC-SHA256)\s+)?[^\s,;&'\"}]+"
)
_COOKIE = re.compile(r"(?i)\b((?:set-)?cookies?['\"]?\s*[=:]\s*['\"]?)[^'\"}\r\n]+")
_SCHEME = re.compile(r"(?i)\b(Bearer|Basic|Digest|Negotiate)\s+[\w+/=.~-]{8,}")
# Credentials that are known by their looks: JSON web tokens, AWS key ids, keys in PEM.
_LOOKS = re.compile(
    r"\beyJ[\w-]{8,}(?:\.[\w-]+)*|\b(?:AKIA|ASIA)[0-9A-Z]{12,}|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END|$)"
)
# What the name of an href's parameter holds where its value is a credential, or part of one.
_SECRET_NAME = re.compile(
    r"sig|token|key|secret|pass|pwd|auth|jwt|sas|cred|hmac|policy|session|bearer|ticket|login|x-amz-|x-goog-|x-ms-"
)
# fsspec options whose values are no secrets; everything else that is text counts as one.
_HARMLESS = frozenset({
    "endpoint_url", "region_name", "region", "profile", "account_name", "protocol", "asynchronous", "mode", "project",
    "base", "default_fill_cache", "default_cache_type", "signature_version", "addressing_style", "s3_additional_kwargs",
})  # fmt: skip
_SHORTEST = 4  # a shorter value would hide half of what there is to read


def redacted(text: object, secrets: Iterable[str] = ()) -> str:
    """Text without user information and queries of URLs, named credentials and the given secrets: safe to print."""
    shown = str(text)
    for secret in secrets:
        shown = shown.replace(secret, HIDDEN)
    shown = _QUERY.sub("", _USER.sub("//", shown))
    shown = _URL.sub(lambda url: _MATRIX.sub("", url[0]), shown)
    shown = _COOKIE.sub(rf"\1{HIDDEN}", _NAMED.sub(rf"\1\2{HIDDEN}", shown))
    return _LOOKS.sub(HIDDEN, _SCHEME.sub(rf"\1 {HIDDEN}", shown))


def one_line(text: object, secrets: Iterable[str] = ()) -> str:
    """`redacted`, on one line."""
    return redacted(" ".join(str(text).split()), secrets)


def safe_url(url: str) -> str:
    """A URL fit for a message or a store: without user, password, query and fragment, where tokens live."""
    if "://" not in url:
        return url
    try:
        parts = urlsplit(url)
    except ValueError:  # of a host that cannot be
        return _USER.sub("//", re.split(r"[?#]", url, maxsplit=1)[0])
    path = re.sub(r";[^/]*", "", parts.path)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], path, "", ""))


def secret_in(href: str) -> str | None:
    """What of an absolute href is a credential, in words that do not repeat it; None where nothing is.

    User information, and parameters whose name holds such a word or whose value looks like one, in the query, in the
    fragment or behind a semicolon of the path, percent-encoded or not. A local path is a name and nothing else.
    """
    if "://" not in href and not href.startswith("/vsi"):
        return None
    text = href
    for _ in range(3):  # what is encoded twice is a server's to decode
        text = unquote(text)
        if re.search(r"//[^/?#]*@", text):
            return "a user or password"
        _, *parameters = re.split(r"[?&;#]", text)
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if _SECRET_NAME.search(name.lower()):
                return f"the parameter {name[:40]!r}" if value else "a credential"
        if _LOOKS.search(text):
            return "a credential"
    return None


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
