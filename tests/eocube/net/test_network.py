"""Retries, the limit on requests and the circuit breaker, without a network: the requests are functions."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

import aiohttp
import pytest
from botocore.exceptions import ClientError, NoCredentialsError
from s3fs.errors import translate_boto_error

import eocube.net.network
from eocube.net.failures import Failure, judge
from eocube.net.network import Network, NetworkLimits, counting

QUICK = NetworkLimits(tries=4, first_wait=0.001, trip=3, first_pause=0.01, longest_pause=0.02, patience=5)


class ThrottledError(Exception):
    """As a client library says 503."""

    status = 503


def failing(times: int, error: Exception | None = None) -> Callable[[], str]:
    """A request that fails so often and then answers."""
    left = [times]
    lock = threading.Lock()

    def do() -> str:
        with lock:
            left[0] -= 1
            if left[0] >= 0:
                raise error or ThrottledError("Slow Down")
        return "answer"

    return do


def s3_error(code: str, status: int) -> Exception:
    answer = {"Error": {"Code": code, "Message": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    error: Exception = translate_boto_error(ClientError(answer, "PutObject"))
    return error


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (s3_error("SlowDown", 503), Failure.DOWN),
        (s3_error("InternalError", 500), Failure.DOWN),
        (s3_error("RequestTimeout", 400), Failure.DOWN),
        (s3_error("NoSuchKey", 404), Failure.FINAL),
        (s3_error("NoSuchBucket", 404), Failure.FINAL),
        (s3_error("AccessDenied", 403), Failure.FINAL),
        (s3_error("InvalidRequest", 400), Failure.FINAL),
        (NoCredentialsError(), Failure.FINAL),
        (TimeoutError(), Failure.DOWN),
        (ConnectionResetError(), Failure.DOWN),
        (aiohttp.ServerDisconnectedError(), Failure.DOWN),
        (aiohttp.ClientPayloadError("not completed"), Failure.AGAIN),
        (FileNotFoundError("x"), Failure.FINAL),
        (PermissionError("x"), Failure.FINAL),
        (ValueError("x"), Failure.FINAL),
        (RuntimeError("whatever"), Failure.AGAIN),
    ],
)
def test_what_a_failure_means(error: Exception, meaning: Failure) -> None:
    assert judge(error) is meaning


def test_fsspecs_not_found_because_of_a_503_is_no_not_found() -> None:
    try:
        raise FileNotFoundError("http://h/x") from ThrottledError()
    except FileNotFoundError as error:
        assert judge(error) is Failure.DOWN


def test_a_passing_failure_is_asked_again_and_counted() -> None:
    network = Network(QUICK)
    with counting() as tally:
        assert network.call("h", failing(3)) == "answer"
    assert tally.retries == 3
    assert network.retries == {"h": 3}


def test_retries_are_counted_for_the_work_they_were_made_for_in_whatever_thread() -> None:
    network = Network(QUICK)
    with ThreadPoolExecutor(1) as pool:
        with counting() as one:
            pool.submit(copy_context().run, network.call, "h", failing(2)).result()
        with counting() as other:
            pool.submit(copy_context().run, network.call, "h", failing(1)).result()
    assert (one.retries, other.retries) == (2, 1)


def test_retries_are_bounded_and_a_wrong_request_is_made_once() -> None:
    made: list[int] = []

    def do(error: Exception) -> None:
        made.append(1)
        raise error

    with pytest.raises(ThrottledError):
        Network(QUICK).call("h", lambda: do(ThrottledError()))
    assert len(made) == QUICK.tries
    made.clear()
    with pytest.raises(PermissionError):
        Network(QUICK).call("h", lambda: do(PermissionError("no")))
    assert len(made) == 1


def test_waits_grow_have_jitter_and_heed_retry_after(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(eocube.net.network.time, "sleep", waits.append)
    limits = NetworkLimits(tries=8, first_wait=1.0, longest_wait=8.0)
    Network(limits, seed=1).call("h", failing(6))
    bases = [1, 2, 4, 8, 8, 8]
    assert all(0.5 * base <= wait <= 1.5 * base for wait, base in zip(waits, bases, strict=True))
    again, waits[:] = list(waits), []
    Network(limits, seed=2).call("h", failing(6))
    assert waits != again
    waits.clear()
    asked = ThrottledError()
    asked.retry_after = 17.0  # type: ignore[attr-defined]
    Network(limits, seed=1).call("h", failing(1, asked))
    assert waits == [17.0]


def test_requests_to_a_host_are_counted_out_over_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, lock = [100.0], threading.Lock()
    slots: list[float] = []

    def sleep(seconds: float) -> None:
        with lock:
            slots.append(clock[0] + seconds)

    monkeypatch.setattr(eocube.net.network.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(eocube.net.network.time, "sleep", sleep)
    network = Network(NetworkLimits(requests_per_second=10))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: network.call("h", lambda: None), range(20)))
    assert sorted(slots) == pytest.approx([100 + k / 10 for k in range(20)])
    slots.clear()
    network.call("other", lambda: None)
    assert slots == [100.0], "each host has its own"


def test_the_driver_and_its_actors_keep_to_one_limit_together() -> None:
    whole = NetworkLimits(requests_per_second=10)
    network = Network(whole)
    for actors in (1, 3, 7):
        with network.keeping_to(network.limits.beside_actors()):
            rates = [network.limits.own_rate, *(whole.shared(actors).own_rate for _ in range(actors))]
        assert sum(rate or 0.0 for rate in rates) == pytest.approx(10.0)
        assert len(set(rates[1:])) == 1
    assert network.limits.own_rate == 10.0, "alone again"
    assert whole.shared(4).shared(2) == whole.shared(2), "a part of the whole, not of the part before"
    assert NetworkLimits().shared(3).own_rate is None


def test_a_host_that_goes_down_pauses_all_its_requests_and_they_go_on() -> None:
    said: list[str] = []
    network = Network(QUICK, say=said.append)
    network.call("h", lambda: None)
    asked: list[int] = []
    flaky = failing(12)

    def do() -> str:
        asked.append(1)
        return flaky()

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(network.call, "h", do) for _ in range(8)]
        assert [f.result(timeout=30) for f in futures] == ["answer"] * 8
    assert len(asked) == 12 + 8, "while it is down one request at a time asks"
    assert len(said) == 2 and "the run pauses" in said[0] and "answers again" in said[1]


def test_another_host_is_not_paused() -> None:
    said: list[str] = []
    network = Network(NetworkLimits(tries=4, first_wait=0.001, trip=2, first_pause=60), say=said.append)
    network.call("h", lambda: None)
    thread = threading.Thread(target=lambda: network.call("h", failing(10**9)), daemon=True)
    thread.start()
    while not said:
        thread.join(0.005)
    assert network.call("other", lambda: "fine") == "fine"
    assert thread.is_alive() and len(said) == 1 and said[0].startswith("h does not answer")


def test_patience_ends_and_what_needs_the_host_fails() -> None:
    said: list[str] = []
    limits = NetworkLimits(tries=3, first_wait=0.001, trip=2, first_pause=0.001, longest_pause=0.002, patience=0.01)
    network = Network(limits, say=said.append)
    network.call("h", lambda: None)
    with pytest.raises(ThrottledError):
        network.call("h", failing(10**9))
    assert len(said) == 2 and "has not answered" in said[1]
    with pytest.raises(ThrottledError):
        network.call("h", failing(10**9))
    assert network.call("h", failing(0)) == "answer"
    assert len(said) == 2


def test_a_host_that_never_answered_is_a_mistake_and_not_waited_for() -> None:
    said: list[str] = []
    with pytest.raises(ThrottledError):
        Network(QUICK, say=said.append).call("h", failing(10**9))
    assert not said


def test_an_object_that_is_broken_for_good_pauses_nothing() -> None:
    said: list[str] = []
    network = Network(QUICK, say=said.append)
    network.call("h", lambda: None)
    with pytest.raises(aiohttp.ClientPayloadError):
        network.call("h", failing(10**9, aiohttp.ClientPayloadError("never completed")))
    assert not said
