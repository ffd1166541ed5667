"""Requests that a page of this machine would not make are refused, in one line of JSON and without a stack trace."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from eocube.cli import main
from eocube.errors import InputError
from eocube.serve.cube import open_cubes
from eocube.serve.guard import allowed_names
from eocube.serve.server import Place, listen
from tests.eocube.cubes import make_plan, make_store, make_weights
from tests.eocube.serve.running import Running, running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("guard")
    made = make_store(str(folder / "a.zarr"), make_plan(make_weights(folder / "tiny.safetensors")))
    with running(open_cubes([made.url]), place=Place(port=0, allow_hosts=("cubes.example.org",))) as one:
        yield one


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1", 200), ("localhost:80", 200), ("LOCALHOST", 200), ("[::1]:9", 200), ("cubes.example.org", 200),
     ("evil.example", 421), ("127.0.0.1.evil.example", 421), ("localhost.evil.example:80", 421), ("", 421),
     ("10.0.0.7", 421), ("evil.example:127.0.0.1", 421)],
)  # fmt: skip
def test_other_names_in_host_are_refused(server: Running, host: str, status: int) -> None:
    found = server.get("/healthz", {"Host": host})
    assert found.status == status and (status == 200 or "error" in found.json())


def test_two_hosts_none_and_a_post_are_refused(server: Running) -> None:
    for text in (b"GET /healthz HTTP/1.1\r\n\r\n", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
            raw.sendall(text)
            assert raw.recv(4096).split(b" ")[1] in (b"400", b"421")
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE"):
        assert server.get("/healthz", method=method).status == 405


def test_a_server_of_every_address_takes_addresses_and_no_names() -> None:
    names = allowed_names("0.0.0.0", ())
    from eocube.serve.guard import Guard

    guard = Guard(None, names)  # type: ignore[arg-type]
    assert all(guard._is_ours(host) for host in ("192.168.1.5:8080", "[fe80::1]", "localhost"))
    assert not any(guard._is_ours(host) for host in ("evil.example", "1.2.3.4.evil"))


@pytest.mark.parametrize(
    "path",
    ["/static/../app.py", "/static/../../../../etc/passwd", "/static/%2e%2e/app.py", "/static/..%2fapp.py",
     "/static/%2e%2e%2f%2e%2e%2fcli.py", "/static//etc/passwd", "/static/..\\app.py", "/../etc/passwd", "/static/%00",
     "/tiles/../../etc/passwd", "/static/static/../../app.py"],
)  # fmt: skip
def test_paths_lead_nowhere_else(server: Running, path: str) -> None:
    found = server.get(path)
    assert found.status in (404, 405, 400) and set(found.json()) == {"error"}
    assert b"root:" not in found.body and b"import" not in found.body


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/tiles/0/true-colour/0/25/0/0.png", 400, "zoom 25"),
        ("/tiles/0/true-colour/0/-1/0/0.png", 400, "zoom -1"),
        ("/tiles/0/true-colour/0/3/8/0.png", 400, "columns"),
        ("/tiles/0/true-colour/0/3/0/99999999999999999999.png", 400, "columns"),
        ("/tiles/0/true-colour/0/x/0/0.png", 422, "z:"),
        ("/tiles/0/true-colour/9/3/0/0.png", 400, "no time step 9"),
        ("/tiles/0/true-colour/-1/3/0/0.png", 400, "no time step -1"),
        ("/tiles/7/true-colour/0/3/0/0.png", 404, "no cube"),
        ("/tiles/0/no-such/0/3/0/0.png", 400, "no layer"),
        ("/tiles/0/rgb/0/3/0/0.png?bands=B99,B02,B03", 400, "no band"),
        ("/tiles/0/rgb/0/3/0/0.png?bands=B02", 400, "takes bands"),
        ("/tiles/0/rgb/0/3/0/0.png?bands=" + "B02," * 200, 422, "bands"),
        ("/tiles/0/true-colour/0/3/0/0.png?stretch=odd", 422, "stretch"),
        ("/tiles/0/true-colour/0/3/0/0.png?scale=9", 422, "scale"),
        ("/tiles/0/true-colour/0/3/0/0.png?source=1", 400, "not served"),
        ("/api/stretch/0/true-colour/0?vmin=nan", 400, "finite"),
        ("/api/stretch/0/true-colour/0?vmin=a,b", 400, "numbers"),
        ("/api/stretch/0/true-colour/0?vmin=1,2", 400, "one number, or 3"),
        ("/api/point/0?lon=nan&lat=1", 400, "degrees"),
        ("/api/point/0?lon=500&lat=1", 400, "degrees"),
        ("/api/point/0?lon=1&lat=1", 400, "outside"),
        ("/api/point/0?lon=1", 422, "lat"),
        ("/api/point/0?lon=11.51&lat=48.106&source=1", 400, "not served"),
        ("/download/0/true-colour/0.tif?bbox=1,2", 400, "four numbers"),
        ("/download/0/true-colour/0.tif?bbox=1,2,3,4", 400, "no ground"),
        ("/download/0/true-colour/0.tif?bbox=11.6,48,11.5,48.2", 400, "west > east"),
        ("/download/0/true-colour/0.tif?what=else", 422, "what"),
        ("/nothing", 404, "Not Found"),
    ],
)
def test_malformed_requests_get_one_line(server: Running, path: str, status: int, said: str) -> None:
    found = server.get(path)
    line = found.json()["error"]
    assert (found.status, said in line) == (status, True), (found.status, line)
    assert "\n" not in line and "Traceback" not in line and "/work" not in line


def test_pages_of_other_sites_make_nothing_be_decoded(server: Running) -> None:
    for mode, status in (("no-cors", 403), ("cors", 403), ("navigate", 200)):
        headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": mode}
        assert server.get("/healthz", headers).status == status
    assert server.get("/healthz", {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "no-cors"}).status == 200


def test_long_paths_and_queries_are_refused(server: Running) -> None:
    assert server.get("/healthz?" + "a" * 5000).status == 414
    assert server.get("/" + "a" * 5000).status == 414
    assert server.get("/healthz", {"X-Long": "a" * 40_000}).status in (400, 431)


def test_answers_carry_their_policy(server: Running) -> None:
    for path in ("/healthz", "/static/nothing.js", "/api/cubes"):
        headers = server.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'self'" in policy and "worker-src 'self' blob:" in policy and "http" not in policy
        assert headers["x-content-type-options"] == "nosniff" and "server" not in headers
        assert "access-control-allow-origin" not in headers


def test_a_defect_is_a_line_for_the_client_and_a_place_for_the_owner(
    server: Running, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret at /home/me")

    monkeypatch.setattr(type(server.service), "documents", broken)
    found = server.get("/api/cubes")
    assert found.status == 500 and "secret" not in found.json()["error"]
    said = capfd.readouterr().err
    assert "RuntimeError: secret at /home/me" in said and "Traceback" not in said


def test_a_larger_download_than_is_given_is_refused(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eocube.serve.downloads.MOST_PIXELS", 1000)
    found = server.get("/download/0/true-colour/0.tif")
    assert found.status == 413 and "eocube export" in found.json()["error"]


def test_more_requests_than_can_wait_are_told_so(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eocube.serve.app.MOST_WAITING", 0)
    assert server.get("/api/stretch/0/true-colour/0").status == 503


def test_a_place_that_is_taken_is_said(server: Running) -> None:
    with pytest.raises(InputError, match="another --port"):
        listen(Place(port=server.port))
    with pytest.raises(InputError, match="65535"):
        listen(Place(port=99999))


def test_the_command_says_what_is_wrong(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    for argv, said in (
        (["/nowhere.zarr"], "nowhere.zarr"),
        (["/nowhere.zarr", "--memory", "0"], "--memory"),
    ):
        assert main(["serve", *argv]) == 2
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1
    monkeypatch.setattr("eocube.commands.serve.importlib.util.find_spec", lambda name: None)
    assert main(["serve", "/nowhere.zarr"]) == 2
    assert "eocube[serve]" in capsys.readouterr().err
