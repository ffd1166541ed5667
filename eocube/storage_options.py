"""Options of remote storage: as the user writes them, from the environment, and which of them a URL takes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

from eocube.errors import InputError
from eocube.redaction import SecretOptions

S3_SCHEMES = ("s3", "s3a")
# fsspec (s3fs) options that GDAL's own S3 reader understands too.
GDAL_S3_OPTIONS = frozenset(
    {"key", "secret", "token", "anon", "profile", "endpoint_url", "requester_pays", "client_kwargs"}
)
GDAL_S3_CLIENT_OPTIONS = frozenset({"endpoint_url", "region_name"})
_S3_ONLY = GDAL_S3_OPTIONS - {"client_kwargs"} | {"config_kwargs", "s3_additional_kwargs"}
# Numbers only where a number can be meant: a key of digits stays text.
_TEXT = frozenset({"key", "secret", "token", "password", "username", "profile", "account_key", "sas_token"})
CONNECT_TIMEOUT_S = 15
VARIABLE = "EOCUBE_STORAGE_OPTIONS"
_TRUE = ("1", "YES", "TRUE", "ON")


def parse_options(words: Sequence[str], flag: str = "--storage-options") -> SecretOptions | None:
    """Storage options out of arguments: each a JSON object, `name=value`, or `@file.json`; None when there are none.

    A dotted name nests: `client_kwargs.endpoint_url=http://localhost:9000`. `true`, `false` and whole numbers are taken
    as such. Raises InputError, which never repeats a value.
    """
    if not words:
        return None
    found = SecretOptions()
    for word in words:
        if word.startswith("@"):
            try:
                word = Path(word[1:]).expanduser().read_text()
            except (OSError, UnicodeDecodeError) as error:
                raise InputError(f"{flag}: cannot read {word[1:]}: {type(error).__name__}") from None
        if word.lstrip().startswith("{"):
            try:
                given = json.loads(word)
            except json.JSONDecodeError as error:
                raise InputError(f"{flag}: no JSON ({error.msg}, character {error.pos})") from None
            found.update(given)
            continue
        name, mark, value = word.partition("=")
        if not mark or not name:
            raise InputError(f"{flag} takes a JSON object, name=value or @file.json; an argument is none of them")
        *outer, last = name.strip().split(".")
        inside: dict[str, Any] = found
        for step in outer:
            inside = inside.setdefault(step, {})
            if not isinstance(inside, dict):
                raise InputError(f"{flag}: {step} is given twice, once as a value and once as a group")
        inside[last] = _value(last, value)
    return found


def _value(name: str, text: str) -> Any:
    if name in _TEXT:
        return text
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    return int(text) if text.isdecimal() else text


def from_environment() -> SecretOptions:
    """Options in the variable `EOCUBE_STORAGE_OPTIONS`, as JSON or name=value pairs: for where none are given."""
    text = os.environ.get(VARIABLE, "").strip()
    if not text:
        return SecretOptions()
    return parse_options([text] if text[0] in "{@" else text.split(), VARIABLE) or SecretOptions()


def scheme_of(href: str) -> str:
    """The URL's protocol: "https", "s3", "simplecache::s3"; "" for a local path or a file URL."""
    scheme = href.partition("://")[0] if "://" in href else ""
    return "" if scheme in ("file", "local") else scheme


def options_for(url: str, options: Mapping[str, Any] | None) -> SecretOptions:
    """Those of the options that a URL's protocol takes, with what the environment says about S3.

    One set serves target, catalogue and sources, which may be of different protocols: S3's own are left out elsewhere,
    and all are for a local path. `AWS_NO_SIGN_REQUEST` and `AWS_REQUEST_PAYER` count as for GDAL and the AWS command
    line; endpoint, profile, region and keys in the environment are read by the client libraries themselves.
    """
    scheme = scheme_of(url)
    if scheme in ("", "memory"):
        return SecretOptions()
    given = SecretOptions(options if options is not None else from_environment())
    if scheme.rpartition("::")[2] not in S3_SCHEMES:
        if scheme in ("http", "https"):
            client = {k: v for k, v in (given.get("client_kwargs") or {}).items() if k not in GDAL_S3_CLIENT_OPTIONS}
            given = SecretOptions({k: v for k, v in given.items() if k not in _S3_ONLY and k != "client_kwargs"})
            if client:
                given["client_kwargs"] = client
        return given
    if scheme in S3_SCHEMES:
        if _set("AWS_NO_SIGN_REQUEST") and not given.keys() & {"key", "secret", "token", "anon", "profile"}:
            given["anon"] = True
        if os.environ.get("AWS_REQUEST_PAYER", "").lower() == "requester":
            given.setdefault("requester_pays", True)
    return given


def endpoint_of(options: Mapping[str, Any]) -> str | None:
    """The S3 endpoint that options or the environment name, None for Amazon's own."""
    client = options.get("client_kwargs") or {}
    found = options.get("endpoint_url") or client.get("endpoint_url")
    return found or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def host_of(url: str, options: Mapping[str, Any] | None = None) -> str:
    """The host that requests for a URL go to, "" for none: what limits and outages are counted by."""
    scheme = scheme_of(url)
    if scheme in ("", "memory"):
        return ""
    netloc = urlsplit(url).netloc.rpartition("@")[2]
    if scheme.rpartition("::")[2] not in S3_SCHEMES:
        return netloc or scheme
    endpoint = endpoint_of(options or {})
    if endpoint:
        return urlsplit(endpoint).netloc.rpartition("@")[2] or endpoint
    return f"{netloc}.s3.amazonaws.com"


def filesystem_for(url: str, options: Mapping[str, Any] | None) -> tuple[AbstractFileSystem, str]:
    """The filesystem and path of a URL, for requests that `eocube.network` retries.

    S3's two inner layers of retries (botocore's times s3fs's) are off: one layer bounds, counts and pauses. What
    `config_kwargs` say otherwise is kept.
    """
    given = options_for(url, options)
    if scheme_of(url) not in S3_SCHEMES:
        return url_to_fs(url, **given)  # type: ignore[no-any-return]
    config = {
        "retries": {"max_attempts": 0},
        "connect_timeout": CONNECT_TIMEOUT_S,
        **(given.get("config_kwargs") or {}),
    }
    filesystem, path = url_to_fs(url, **{**given, "config_kwargs": config})
    filesystem.retries = 1  # its instances are told apart by their options: no other user of s3fs has this one
    return filesystem, path


def gdal_s3_options(options: Mapping[str, Any]) -> dict[str, str]:
    """fsspec's S3 options, and the endpoint of the environment, in GDAL's words."""
    given = options_for("s3://", options)
    client = given.get("client_kwargs") or {}
    said = {
        "AWS_ACCESS_KEY_ID": given.get("key"),
        "AWS_SECRET_ACCESS_KEY": given.get("secret"),
        "AWS_SESSION_TOKEN": given.get("token"),
        "AWS_PROFILE": given.get("profile"),
        "AWS_NO_SIGN_REQUEST": "YES" if given.get("anon") else None,
        "AWS_REQUEST_PAYER": "requester" if given.get("requester_pays") else None,
        "AWS_REGION": client.get("region_name"),
    }
    endpoint = endpoint_of(given)
    if endpoint:
        parts = urlsplit(str(endpoint))
        said["AWS_S3_ENDPOINT"] = parts.netloc or parts.path
        said["AWS_HTTPS"] = "NO" if parts.scheme == "http" else "YES"
        said["AWS_VIRTUAL_HOSTING"] = "FALSE"
    return {name: str(value) for name, value in said.items() if value}


def _set(name: str) -> bool:
    return os.environ.get(name, "").upper() in _TRUE
