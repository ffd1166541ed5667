"""Relays by SOCKS5 on loopback to addresses which may be asked; a process of its own runs it.

Of its own, for GDAL waits for the network in many places (overviews, side cars) while it holds the lock that
every Python thread of its process needs: a proxy in a thread of the same process would never answer.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import selectors
import socket
import sys
import threading
from collections import OrderedDict

from eocube.net.addresses import AddressError, Policy, Reach, lookup, numeric

CONNECT_S = 15.0
_BLOCK = 2**18
_REMEMBERED = 64
# RFC 1928 and 1929.
_VERSION, _BY_PASSWORD, _NO_METHOD, _CONNECT = 5, 2, 0xFF, 1
_DONE, _NOT_ALLOWED, _UNREACHABLE, _REFUSED, _NO_COMMAND = 0, 2, 4, 5, 7


class Relay:
    """A proxy that is there as long as its process; connections are threads that wait in the kernel.

    Args:
        policy: which addresses may be connected to.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._password = secrets.token_hex(16)
        self._refused: OrderedDict[str, str] = OrderedDict()
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, name="eocube-relay", daemon=True).start()

    @property
    def gdal_options(self) -> dict[str, str]:
        """GDAL's configuration that makes it go through the proxy."""
        port = self._listener.getsockname()[1]
        return {
            "GDAL_HTTP_PROXY": f"socks5h://127.0.0.1:{port}",
            "GDAL_HTTP_PROXYUSERPWD": f"eocube:{self._password}",
        }

    def refusal(self, text: str) -> str | None:
        """Why a connection to a host that is named in a text was refused; None where none was."""
        return next((why for host, why in reversed(self._refused.items()) if host in text), None)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # the interpreter ends
                return
            threading.Thread(target=self._serve, args=(client,), name="eocube-relay", daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError, ValueError):  # either end may go at any time
            client.settimeout(CONNECT_S)
            self._log_in(client)
            server = self._connected(client)
            if server is not None:
                with server:
                    client.settimeout(None)
                    server.settimeout(None)
                    _pass_on(client, server)

    def _log_in(self, client: socket.socket) -> None:
        """Only this process knows the password: other users of the machine get nowhere."""
        version, count = _take(client, 2)
        methods = _take(client, count)
        if version != _VERSION or _BY_PASSWORD not in methods:
            client.sendall(bytes([_VERSION, _NO_METHOD]))
            raise ValueError("not SOCKS5 with a password")
        client.sendall(bytes([_VERSION, _BY_PASSWORD]))
        version, length = _take(client, 2)
        _take(client, length)
        given = _take(client, _take(client, 1)[0])
        right = secrets.compare_digest(given, self._password.encode())
        client.sendall(bytes([version, 0 if right else 1]))
        if not right:
            raise ValueError("wrong password")

    def _connected(self, client: socket.socket) -> socket.socket | None:
        """The server that is asked for, once the client has been told; None where it may not or cannot be reached."""
        _, command, _, kind = _take(client, 4)
        if kind == 3:
            host = _take(client, _take(client, 1)[0]).decode("ascii")
        else:
            size, family = (4, socket.AF_INET) if kind == 1 else (16, socket.AF_INET6)
            host = socket.inet_ntop(family, _take(client, size))
        port = int.from_bytes(_take(client, 2), "big")
        server, answer = None, _NO_COMMAND
        if command == _CONNECT:
            server, answer = self._connect(host, port)
        client.sendall(bytes([_VERSION, answer, 0, 1, 0, 0, 0, 0, 0, 0]))
        return server

    def _connect(self, host: str, port: int) -> tuple[socket.socket | None, int]:
        try:
            self._policy.check_host(host, port)
            spelt = numeric(host)
            addresses = [spelt] if spelt is not None else lookup(host, port)
            for address in addresses:
                self._policy.check_address(host, port, address)
        except AddressError as error:
            self._refused[host] = str(error)
            while len(self._refused) > _REMEMBERED:
                self._refused.popitem(last=False)
            return None, _NOT_ALLOWED
        except OSError:
            return None, _UNREACHABLE
        for address in addresses:
            with contextlib.suppress(OSError):
                server = socket.create_connection((address, port), CONNECT_S)
                server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return server, _DONE
        return None, _REFUSED


def _take(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = sock.recv(size - len(data))
        if not part:
            raise ValueError("the client went")
        data += part
    return data


def _pass_on(client: socket.socket, server: socket.socket) -> None:
    """Bytes both ways until either end is closed."""
    buffer = memoryview(bytearray(_BLOCK))
    with selectors.DefaultSelector() as ready:
        ready.register(client, selectors.EVENT_READ, server)
        ready.register(server, selectors.EVENT_READ, client)
        while True:
            for key, _ in ready.select():
                source, sink = key.fileobj, key.data
                count = source.recv_into(buffer)  # type: ignore[union-attr]
                if not count:
                    return
                sink.sendall(buffer[:count])


def main() -> None:
    """Serve until the standard input ends: the arguments are a policy's reach and hosts, a line asks for a refusal."""
    relay = Relay(Policy(Reach(int(sys.argv[1])), tuple(sys.argv[2:])))
    print(json.dumps(relay.gdal_options), flush=True)
    for line in sys.stdin:
        print(json.dumps(relay.refusal(json.loads(line))), flush=True)
