"""Asks web servers: bounded in bytes and seconds, at addresses that may be asked, headers to their own hosts alone."""

from __future__ import annotations

import re
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from fsspec import AbstractFileSystem

from eocube.errors import InputError
from eocube.net.addresses import Policy, matches

if TYPE_CHECKING:
    import aiohttp
    import yarl
    from aiohttp.abc import ResolveResult

# aiohttp takes a quarter of a second to import, which a job on local files never needs: it is imported as it is used.
CONNECT_S = 15.0
SILENCE_S = 60.0
"""Seconds without a single byte after which a request has failed."""
REQUEST_S = 300.0
"""Seconds of a whole request for a part of a file."""
# Of a request's headers, those that say nothing about who asks: they go along when a server sends it elsewhere.
_PLAIN_HEADERS = frozenset(
    {"accept", "accept-encoding", "user-agent", "range", "host", "content-type", "content-length", "connection"}
)


class AnswerError(InputError):
    """A server's answer goes beyond what is taken, in bytes or seconds. Asking again is no use."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered: status, headers by their names in lower case, the body as it is once unpacked."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


class _JudgingResolver:
    """Looks names up and refuses addresses that may not be asked: the ones returned are those connected to.

    Of the form of `aiohttp.abc.AbstractResolver`.
    """

    def __init__(self, policy: Policy, exempt: frozenset[str]) -> None:
        import aiohttp

        self._policy, self._exempt, self._inner = policy, exempt, aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        if host not in self._exempt:
            for entry in found:
                self._policy.check_address(host, port or None, entry["host"])
        return found

    async def close(self) -> None:
        await self._inner.close()


@dataclass(frozen=True, slots=True)
class GuardedClient:
    """Makes the HTTP sessions of fsspec's filesystem; equal ones share a session. Redirects are judged like any URL.

    `tied` are the patterns of hosts that the session's headers and credentials are for: a request that a redirect
    takes to another host goes without them.
    """

    policy: Policy
    tied: tuple[str, ...] = ()

    async def __call__(self, *, loop: Any = None, **client_kwargs: Any) -> aiohttp.ClientSession:
        """As `aiohttp.ClientSession`, inside the loop that it is for."""
        import aiohttp

        how: dict[str, Any] = {
            "trust_env": True,
            "timeout": aiohttp.ClientTimeout(total=REQUEST_S, sock_connect=CONNECT_S, sock_read=SILENCE_S),
            **client_kwargs,
        }
        if "connector" not in how:
            resolver: Any = _JudgingResolver(self.policy, proxies())
            how["connector"] = aiohttp.TCPConnector(resolver=resolver)
        how["middlewares"] = (self._judge, *how.get("middlewares", ()))
        return aiohttp.ClientSession(**how)

    async def _judge(
        self,
        request: aiohttp.ClientRequest,
        go_on: Callable[[aiohttp.ClientRequest], Awaitable[aiohttp.ClientResponse]],
    ) -> aiohttp.ClientResponse:
        url = str(request.url)
        self.policy.check_url(url)
        if not all(matches(pattern, url) for pattern in self.tied):
            for name in [n for n in request.headers if n.lower() not in _PLAIN_HEADERS]:
                request.headers.popall(name, None)
        return await go_on(request)


def proxies() -> frozenset[str]:
    """Hosts of the proxies that the environment names: requests go through them, wherever they lie."""
    found = (
        urlsplit(url if "://" in url else f"//{url}").hostname for name, url in getproxies().items() if name != "no"
    )
    return frozenset(host for host in found if host)


def ask(
    filesystem: AbstractFileSystem,
    url: str,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    most: int,
    seconds: float = REQUEST_S,
    silence: float = SILENCE_S,
    **more: Any,
) -> Answer:
    """One request and its whole answer, of any status, through a filesystem of `storage_options.filesystem_for`.

    Args:
        filesystem: fsspec's for http, with the user's options.
        url: what to ask for.
        method: of HTTP.
        headers: beside the user's.
        most: bytes that are taken, counted as they are unpacked.
        seconds: that all of it may take.
        silence: seconds that may pass without a byte.
        **more: `params` or `json`, as aiohttp takes them.

    Raises:
        AnswerError: more bytes came, or it took longer.
        AddressError: it, or where it redirects to, is at an address that may not be asked.
        aiohttp.ClientError, TimeoutError: no answer.
    """
    import aiohttp
    from fsspec.asyn import sync

    options = {**filesystem.kwargs, **more}
    options["headers"] = {**(options.get("headers") or {}), **(headers or {})}
    timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=CONNECT_S, sock_read=silence)

    async def whole() -> Answer:
        session = await filesystem.set_session()
        body = bytearray()
        try:
            async with session.request(method, _as_given(filesystem, url), timeout=timeout, **options) as answer:
                async for part in answer.content.iter_any():
                    body += part
                    if len(body) > most:
                        raise AnswerError(f"its answer is larger than {_size(most)}")
                said = {name.lower(): value for name, value in answer.headers.items()}
                return Answer(answer.status, said, bytes(body))
        except aiohttp.ServerTimeoutError:  # no connection, or silence: it may be better the next time
            raise
        except TimeoutError as error:
            raise AnswerError(f"its answer takes more than {seconds:g} s") from error

    found: Answer = sync(filesystem.loop, whole)
    return found


def _as_given(filesystem: AbstractFileSystem, url: str) -> yarl.URL:
    """A URL as it stands where that is possible: signatures hold for one way of escaping."""
    import yarl

    clean = re.fullmatch(r"(?:[\w.~:/?#\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+", url, re.ASCII)
    return yarl.URL(url, encoded=True) if clean else filesystem.encode_url(url)


def _size(count: int) -> str:
    return f"{count // 2**20} MiB" if count >= 2**20 else f"{count} bytes"


def read_range(filesystem: AbstractFileSystem, url: str, low: int, high: int) -> bytes:
    """The bytes [low, high) of a file, or the whole of it from a server that knows no ranges, and no byte more.

    Raises as `ask`, but that an answer too long or too slow counts as broken; and as `check_status`.
    """
    try:
        answer = ask(filesystem, url, headers={"Range": f"bytes={low}-{high - 1}"}, most=high - low)
    except AnswerError as error:
        raise ConnectionError(f"{high - low} bytes were asked for, and {error}") from None
    check_status(answer, url)
    return answer.body


class StatusError(Exception):
    """A server refused a request with a status.

    `retry_after` are the seconds that it asks to wait for, None where it does not.
    """

    def __init__(self, answer: Answer) -> None:
        super().__init__(f"HTTP status {answer.status}")
        self.status = answer.status
        said = answer.headers.get("retry-after", "")
        self.retry_after = float(said) if said.isdecimal() else None


def check_status(answer: Answer, url: str) -> None:
    """FileNotFoundError for an answer of 404, StatusError for any other that is no success."""
    if answer.status == 404:
        raise FileNotFoundError(url)
    if not 200 <= answer.status < 300:
        raise StatusError(answer)
