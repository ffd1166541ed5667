"""Fetches a catalogue's documents, of APIs and of files anywhere: whole, by the network's rules, or with a reason."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pystac.link import Link
from pystac_client.exceptions import APIError
from pystac_client.stac_api_io import StacApiIO

from eocube.errors import InputError
from eocube.net.http_client import SILENCE_S, Answer, AnswerError, ask, check_status
from eocube.net.network import Network, shared_network
from eocube.net.redaction import one_line, safe_url, secrets_of
from eocube.net.storage_options import filesystem_for, host_of, policy_of
from eocube.net.trust import MAX_DOCUMENT, check_href, scheme


@dataclass(frozen=True, slots=True)
class AnswerLimits:
    """What a catalogue may cost: generous to the largest that there are, and an end to what has none."""

    document_bytes: int = 256 * 2**20
    """Of one document from another machine, unpacked: ten thousand items of the richest catalogues."""
    document_values: int = 16_000_000
    """Of one document; each takes some hundred bytes of memory once read."""
    document_seconds: float = 600.0
    silence: float = SILENCE_S
    """Seconds that may pass without a byte before a document is asked for again."""
    bytes: int = 16 * 2**30
    """Of a whole search."""
    documents: int = 1_000_000
    """Pages and files of a whole search."""
    items: int = 1_000_000
    seconds: float = 3 * 3600.0
    """Of a whole search."""
    idle_pages: int = 3
    """Pages on end that hold no item which the search does not have yet."""
    alike: int = 200
    """Items of one collection, moment and box: more than an acquisition is ever processed."""


_SMALLER = "narrow --bbox or --datetime, or save the items to a file and give that as --catalog"


class Budget:
    """Counts what one search has taken, for any thread; InputError, with the way out, where it goes beyond its limits.

    Args:
        where: what is searched, for messages.
        limits: the bounds.
        clock: seconds, whatever they count from.
    """

    def __init__(
        self, where: str, limits: AnswerLimits | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.limits = limits or AnswerLimits()
        self._where, self._clock, self._start = where, clock, clock()
        self._bytes = self._documents = self._items = 0
        self._lock = threading.Lock()

    @property
    def document_seconds(self) -> float:
        """Seconds that the next document may take."""
        self._in_time()
        return min(self.limits.document_seconds, self.limits.seconds - (self._clock() - self._start))

    def document(self, size: int) -> None:
        """Count a document of so many bytes."""
        with self._lock:
            self._documents += 1
            self._bytes += size
        if self._documents > self.limits.documents:
            self._end(f"more than {self.limits.documents:,} documents")
        if self._bytes > self.limits.bytes:
            self._end(f"more than {self.limits.bytes / 2**30:g} GiB")
        self._in_time()

    def item(self) -> None:
        """Count an item that was not there before."""
        self._items += 1
        if self._items > self.limits.items:
            self._end(f"more than {self.limits.items:,} items")

    def _in_time(self) -> None:
        if self._clock() - self._start >= self.limits.seconds:
            self._end(f"an answer of more than {self.limits.seconds:g} s")

    def _end(self, what: str) -> None:
        raise InputError(f"{self._where} gives {what} to one search: {_SMALLER}")


class BrokenBodyError(Exception):
    """A page that is no JSON: cut in the middle, most likely. It never counts as a shorter page."""


def parse_json(data: bytes, limits: AnswerLimits | None = None) -> Any:
    """The value of a JSON document; AnswerError for one that would fill the memory or nests without bounds.

    Raises:
        ValueError: no JSON.
    """
    limits = limits or AnswerLimits()
    if data.count(b",") + data.count(b"[") + data.count(b"{") > limits.document_values:
        raise AnswerError(f"it holds more than {limits.document_values:,} values")
    try:
        return json.loads(data)
    except RecursionError:
        raise AnswerError("its JSON is nested too deep") from None


class RetryingIO(StacApiIO):
    """pystac-client's I/O by the rules of the network: throttling, server errors, timeouts, bodies that broke off.

    Requests go through `eocube.net.http_client`, with the options that their host takes.

    Args:
        base: the API that the user named.
        options: as `eocube.net.storage_options.scoped` gives them.
        network: None takes this process's own.
        budget: of the whole search.
    """

    def __init__(
        self,
        base: str,
        options: Mapping[str, Any] | None = None,
        network: Network | None = None,
        budget: Budget | None = None,
    ) -> None:
        super().__init__(max_retries=0)
        self._base, self._options = base, options
        self._network = network or shared_network()
        self._budget = budget or Budget(safe_url(base))

    def read_text(self, source: Any, *args: Any, **kwargs: Any) -> str:
        """As pystac-client's, but that no API leads to a file of this machine."""
        if not isinstance(source, Link) and scheme(str(source)) not in ("http", "https"):
            raise APIError(f"its link {safe_url(str(source))} is no web address")
        text: str = super().read_text(source, *args, **kwargs)
        return text

    def request(
        self,
        href: str,
        method: str | None = None,
        headers: Mapping[str, str] | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> str:
        """The whole body of one request, which is JSON; raises pystac-client's `APIError`, or as `Budget`."""
        method = (method or "GET").upper()
        if scheme(href) not in ("http", "https") or method not in ("GET", "POST"):
            raise APIError(f"its link {safe_url(href)} is no web address, or is not to be got or posted to")
        check_href(href, self._base)
        if method == "POST":
            sent: dict[str, Any] = {"json": parameters or {}}
        else:
            sent = {"params": {name: str(value) for name, value in (parameters or {}).items() if value is not None}}
        limits = self._budget.limits
        seconds = self._budget.document_seconds

        def once() -> bytes:
            filesystem, url = filesystem_for(href, self._options)
            answer = ask(
                filesystem, url, method=method, headers=headers, most=limits.document_bytes,
                seconds=seconds, silence=limits.silence, **sent,
            )  # fmt: skip
            _check_answer(answer)
            try:
                parse_json(answer.body, limits)
            except AnswerError:
                raise
            except ValueError as error:
                raise BrokenBodyError(f"answers with what is no JSON: {error}") from None
            return answer.body

        try:
            body = self._network.call(host_of(href), once, patient=False)
        except APIError:
            raise
        except Exception as error:  # of whichever layer of the client
            raise APIError(str(error) or type(error).__name__) from error
        self._budget.document(len(body))
        try:
            return body.decode()
        except UnicodeDecodeError as error:
            raise APIError(str(error)) from error

    def get_pages(
        self, url: str, method: str | None = None, parameters: dict[str, Any] | None = None
    ) -> Iterator[dict[str, Any]]:
        """As pystac-client's: all pages in turn; but APIError where a page leads to one that was there before."""
        asked = set[str]()
        page = self.read_json(url, method=method, parameters=parameters)
        while isinstance(page, dict) and (page.get("features") or page.get("collections")):
            yield page
            links = page.get("links")
            links = links if isinstance(links, list) else []
            link = next((one for one in links if isinstance(one, dict) and one.get("rel") == "next"), None)
            if link is None:
                return
            request = json.dumps([link.get(part) for part in ("href", "method", "body", "merge")], sort_keys=True)
            if request in asked:
                raise APIError(
                    f"its pages lead in a circle after {len(asked) + 1} of them, so that none can be the last"
                )
            asked.add(request)
            page = self.read_json(Link.from_dict(link), parameters=parameters)


def _check_answer(answer: Answer) -> None:
    if 200 <= answer.status < 300:
        return
    error = APIError(f"HTTP status {answer.status}")
    error.status_code = answer.status
    said = answer.headers.get("retry-after", "")
    error.retry_after = float(said) if said.isdecimal() else None  # type: ignore[attr-defined]
    raise error


def cause(error: Exception, secrets: tuple[str, ...] = ()) -> str:
    """One line of what went wrong, with credentials and the queries of any URLs in it taken out."""
    status = getattr(error, "status_code", None)
    if status is not None:
        return f"HTTP status {status}"
    line = (str(error).strip().splitlines() or [""])[0]
    return one_line(line, secrets)[:300] or type(error).__name__


def load_json(
    location: str,
    storage_options: Mapping[str, Any] | None = None,
    *,
    network: Network | None = None,
    budget: Budget | None = None,
) -> Any:
    """The JSON of a file or URL through fsspec; `InputError` names the place where it is absent or is no JSON."""
    where, host, secrets = safe_url(location), host_of(location, storage_options), secrets_of(storage_options)
    budget = budget or Budget(where)
    # A file of this machine is its owner's; what comes from elsewhere is kept shorter.
    most = min(MAX_DOCUMENT, budget.limits.document_bytes) if host else MAX_DOCUMENT

    def fetch() -> bytes:
        policy_of(storage_options).check_url(location)
        filesystem, path = filesystem_for(location, storage_options)
        if scheme(location) in ("http", "https"):
            seconds, silence = budget.document_seconds, budget.limits.silence
            answer = ask(filesystem, path, most=most, seconds=seconds, silence=silence)
            check_status(answer, path)
            return answer.body
        data = bytes(filesystem.cat_file(path, start=0, end=most + 1))
        if len(data) > most:
            raise AnswerError(f"it is larger than {most // 2**20} MiB")
        return data

    try:
        data = (network or shared_network()).call(host, fetch, patient=False) if host else fetch()
    except (FileNotFoundError, IsADirectoryError, PermissionError, NotADirectoryError) as error:
        raise InputError(f"cannot read {where}: {error.strerror or 'no such file'}") from error
    except AnswerError as error:
        raise InputError(
            f"{where} is not read: {error}; give a part of it, or save it to a file and give that"
        ) from None
    except Exception as error:  # fsspec backends raise errors of their own clients for one and the same outage
        raise InputError(f"cannot read {where}: {cause(error, secrets)}") from error
    budget.document(len(data))
    try:
        return parse_json(data, budget.limits)
    except AnswerError as error:
        raise InputError(f"{where} is not read: {error}") from error
    except ValueError as error:  # no JSON, no UTF-8, or a number of thousands of digits
        raise InputError(f"{where} is not STAC: it holds no JSON") from error
