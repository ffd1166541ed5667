"""Reads options of remote storage, of the user and the environment, and tells which of them a URL takes."""

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
from eocube.net.addresses import Policy, Reach, matches, origins, reach_of_host, specificity, vouched_hosts
from eocube.net.http_client import GuardedClient
from eocube.net.redaction import SecretOptions
from eocube.net.trust import check_href

S3_SCHEMES = ("s3", "s3a")
# fsspec (s3fs) options that GDAL's own S3 reader understands too.
GDAL_S3_OPTIONS = frozenset(
    {"key", "secret", "token", "anon", "profile", "endpoint_url", "requester_pays", "client_kwargs"}
)
GDAL_S3_CLIENT_OPTIONS = frozenset({"endpoint_url", "region_name"})
_S3_ONLY = GDAL_S3_OPTIONS - {"client_kwargs"} | {"config_kwargs", "s3_additional_kwargs"}
# Numbers only where a number can be meant: a key of digits stays text.
_TEXT = frozenset({"key", "secret", "token", "password", "username", "profile", "account_key", "sas_token"})
# Their clients send credentials to their own service or the endpoint in the options, wherever a URL's bucket is.
_OBJECT_STORES = (*S3_SCHEMES, "gs", "gcs", "az", "abfs", "abfss")
HOSTS = "hosts"
"""Options by host: `{"hosts": {"data.example.org": {"headers": {...}}}}`. No option of fsspec's has this name."""
# Set by `scoped` alone: the other options then go to no host but those of `hosts`. Its values are numbers and lists,
# since texts count as secrets.
_REACH = "reach"
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


def scoped(options: Mapping[str, Any] | None, base: str, *, trusted: bool = False) -> SecretOptions:
    """Options for what a catalogue (or a store's plan) at `base` leads to: what it names is not what the user named.

    Options outside `hosts` then go to the catalogue's own host; to another go those that `hosts` gives it, and none
    else: headers and credentials travel to no host that only the catalogue named. Object stores take them as ever:
    their clients sign requests to the endpoint that the user gave, or to the service itself. Addresses that are
    nearer to this machine than `base` are refused (see `eocube.net.addresses`), but for hosts that `hosts` names, or
    where the catalogue is `trusted` as a whole. Options that are scoped already stay as they are.

    Raises:
        InputError: `hosts` is no mapping of hosts to options.
    """
    given = SecretOptions(options if options is not None else from_environment())
    if _REACH in given:
        return given
    hosts = _hosts_of(given)
    named = vouched_hosts(hosts)
    bare = {name: value for name, value in given.items() if name != HOSTS}
    for origin in origins(base) if _by_host(base) else ():
        hosts[origin] = {**bare, **hosts.get(origin, {})}
    reach = Reach.ANY if trusted else _reach_of(base, given)
    return SecretOptions(
        {
            **given,
            HOSTS: hosts,
            _REACH: {"nearest": int(reach), "named": list(named), "base": "" if trusted else scheme_of(base)},
        }
    )


def check_reach(href: str, options: Mapping[str, Any] | None) -> None:
    """SourceError for an href that whoever these options are scoped to may not name: a file of this machine, say.

    So wherever a source is opened, and whoever wrote the plan that names it: a catalogue, or a cube from elsewhere.
    """
    said = (options or {}).get(_REACH)
    if said is not None and said.get("base"):
        check_href(href, f"{said['base']}://")


def policy_of(options: Mapping[str, Any] | None) -> Policy:
    """Which addresses the sources of such options may be at; any, for options that no catalogue has scoped."""
    said = (options or {}).get(_REACH)
    return Policy() if said is None else Policy(Reach(said["nearest"]), tuple(said["named"]))


def _reach_of(base: str, options: Mapping[str, Any]) -> Reach:
    if scheme_of(base) in ("", "memory"):
        return Reach.LOOPBACK
    host = host_of(base, options)
    return reach_of_host(urlsplit(f"//{host}").hostname or "") if host else Reach.PUBLIC


def _hosts_of(options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    found = options.get(HOSTS, {})
    if not isinstance(found, Mapping) or not all(isinstance(of, Mapping) for of in found.values()):
        raise InputError(
            f'storage options: {HOSTS} takes options by host, as in {{"{HOSTS}": {{"data.example.org": {{...}}}}}}'
        )
    return {str(pattern).lower(): dict(of) for pattern, of in found.items()}


def _by_host(url: str) -> bool:
    """Whether a URL's host is who gets the request: not so where its first part is a bucket."""
    scheme = scheme_of(url).rpartition("::")[2]
    return scheme not in ("", "memory") and (scheme not in _OBJECT_STORES or "@" in urlsplit(url).netloc)


def options_for(url: str, options: Mapping[str, Any] | None) -> SecretOptions:
    """Those of the options that a URL's protocol and host take, with what the environment says about S3.

    One set serves target, catalogue and sources, which may be of different protocols: S3's own are left out elsewhere,
    and all are for a local path. `AWS_NO_SIGN_REQUEST` and `AWS_REQUEST_PAYER` count as for GDAL and the AWS command
    line; endpoint, profile, region and keys in the environment are read by the client libraries themselves.
    """
    return _taken(url, options)[0]


def _taken(url: str, options: Mapping[str, Any] | None) -> tuple[SecretOptions, tuple[str, ...]]:
    """The options that a URL takes, and the patterns of hosts that any of them hang on."""
    scheme = scheme_of(url)
    if scheme in ("", "memory"):
        return SecretOptions(), ()
    whole = options if options is not None else from_environment()
    given = SecretOptions({name: value for name, value in whole.items() if name not in (HOSTS, _REACH)})
    tied: list[str] = []
    if _by_host(url):
        if _REACH in whole:
            given.clear()
        elif given:
            tied += origins(url)
        hosts = _hosts_of(whole)
        for pattern in sorted(hosts, key=specificity):
            if hosts[pattern] and matches(pattern, url):
                given.update(hosts[pattern])
                tied.append(pattern)
    if scheme.rpartition("::")[2] not in S3_SCHEMES:
        if scheme in ("http", "https"):
            client = {k: v for k, v in (given.get("client_kwargs") or {}).items() if k not in GDAL_S3_CLIENT_OPTIONS}
            given = SecretOptions({k: v for k, v in given.items() if k not in _S3_ONLY and k != "client_kwargs"})
            if client:
                given["client_kwargs"] = client
        return given, tuple(tied)
    if scheme in S3_SCHEMES:
        if _set("AWS_NO_SIGN_REQUEST") and not given.keys() & {"key", "secret", "token", "anon", "profile"}:
            given["anon"] = True
        if os.environ.get("AWS_REQUEST_PAYER", "").lower() == "requester":
            given.setdefault("requester_pays", True)
    return given, tuple(tied)


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
    """The filesystem and path of a URL, for requests that `eocube.net.network` retries.

    That of a web server judges every address it connects to, and leaves headers behind where it is redirected to
    another host. S3's two inner layers of retries (botocore's times s3fs's) are off: one layer bounds, counts and
    pauses. What `config_kwargs` say otherwise is kept.
    """
    given, tied = _taken(url, options)
    if scheme_of(url) in ("http", "https"):
        given.setdefault("get_client", GuardedClient(policy_of(options), tied if given else ()))
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
