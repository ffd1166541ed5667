"""Fetches a catalogue's documents, of APIs and of files anywhere: whole, by the network's rules, or with a reason."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from typing import Any

import requests
from pystac_client.exceptions import APIError
from pystac_client.stac_api_io import StacApiIO

from eocube.errors import InputError
from eocube.network import Network, shared_network
from eocube.redaction import one_line, safe_url, secrets_of
from eocube.storage_options import filesystem_for, host_of
from eocube.untrusted import MAX_DOCUMENT, scheme

TIMEOUT_S = (10.0, 60.0)


class BrokenBodyError(Exception):
    """A page that is no JSON: cut in the middle, most likely. It never counts as a shorter page."""


class RetryingIO(StacApiIO):
    """pystac-client's I/O by the rules of the network: throttling, server errors, timeouts, bodies that broke off."""

    def __init__(self, network: Network | None = None) -> None:
        super().__init__(max_retries=0, timeout=TIMEOUT_S)
        self._network = network or shared_network()
        self._asked_to_wait = threading.local()
        self.session.hooks["response"].append(self._note_wait)

    def _note_wait(self, response: requests.Response, *args: Any, **kwargs: Any) -> None:
        said = response.headers.get("Retry-After", "")
        self._asked_to_wait.seconds = float(said) if said.isdecimal() else None

    def request(self, href: str, *args: Any, **kwargs: Any) -> str:
        """The whole body of one request, which is JSON; raises pystac-client's `APIError`."""
        ask = super().request

        def once() -> str:
            self._asked_to_wait.seconds = None
            try:
                text: str = ask(href, *args, **kwargs)
            except APIError as error:
                error.retry_after = self._asked_to_wait.seconds  # type: ignore[attr-defined]
                raise
            try:
                json.loads(text)
            except ValueError as error:
                raise BrokenBodyError(f"answers with what is no JSON: {error}") from None
            return text

        try:
            return self._network.call(host_of(href), once, patient=False)
        except BrokenBodyError as error:
            raise APIError(str(error)) from None


def cause(error: Exception, secrets: tuple[str, ...] = ()) -> str:
    """One line of what went wrong, with credentials and the queries of any URLs in it taken out."""
    status = getattr(error, "status_code", None)
    if status is not None:
        return f"HTTP status {status}"
    line = (str(error).strip().splitlines() or [""])[0]
    return one_line(line, secrets)[:200] or type(error).__name__


def load_json(
    location: str, storage_options: Mapping[str, Any] | None = None, *, network: Network | None = None
) -> Any:
    """The JSON of a file or URL through fsspec; `InputError` names the place where it is absent or is no JSON."""
    where, host, secrets = safe_url(location), host_of(location, storage_options), secrets_of(storage_options)

    def fetch() -> bytes:
        filesystem, path = filesystem_for(location, storage_options)
        # Web servers may compress or know no ranges: their documents are asked for whole.
        part = {} if scheme(location) in ("http", "https") else {"start": 0, "end": MAX_DOCUMENT + 1}
        return bytes(filesystem.cat_file(path, **part))

    try:
        data = (network or shared_network()).call(host, fetch, patient=False) if host else fetch()
    except (FileNotFoundError, IsADirectoryError, PermissionError, NotADirectoryError) as error:
        raise InputError(f"cannot read {where}: {error.strerror or 'no such file'}") from error
    except Exception as error:  # fsspec backends raise errors of their own clients for one and the same outage
        raise InputError(f"cannot read {where}: {cause(error, secrets)}") from error
    if len(data) > MAX_DOCUMENT:
        raise InputError(f"{where} is larger than {MAX_DOCUMENT // 2**20} MiB: not read")
    try:
        return json.loads(data)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{where} is not STAC: it holds no JSON") from error
