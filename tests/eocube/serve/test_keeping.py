"""What is kept stays within its bytes, and is made once however many ask; the latest asked is computed first."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from eocube.serve.keeping import OVERHEAD, Kept
from eocube.serve.pool import LatestFirst, Leave, LeftError


def test_the_longest_unused_goes_first_and_the_bytes_are_never_more() -> None:
    kept = Kept(3 * (100 + OVERHEAD))
    for key in "abc":
        kept.put(key, key.upper(), 100)
    assert kept.get("a") == "A" and kept.bytes == kept.limit
    kept.put("d", "D", 100)
    assert "b" not in kept and [kept.get(key) for key in "acd"] == ["A", "C", "D"]
    kept.put("a", "again", 50)
    assert len(kept) == 3 and kept.bytes == kept.limit - 50
    kept.put("large", "L", kept.limit)
    assert "large" not in kept and kept.bytes <= kept.limit
    kept.put("whole", "W", kept.limit - OVERHEAD)
    assert len(kept) == 1 and kept.bytes == kept.limit


def test_many_who_ask_at_once_have_it_made_once() -> None:
    kept, made, begun, go = Kept(10_000), list[int](), threading.Barrier(9), threading.Event()

    def make() -> tuple[str, int]:
        made.append(1)
        go.wait(120)
        return "thing", 5

    def ask() -> str:
        begun.wait(10)
        return kept.once("key", make)

    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask) for _ in range(8)]
        begun.wait(10)
        go.set()
        assert [one.result() for one in asked] == ["thing"] * 8
    assert made == [1]


def test_what_fails_is_told_to_all_and_made_again_next_time() -> None:
    kept = Kept(10_000)

    def fail() -> tuple[str, int]:
        raise OSError("no disk")

    with pytest.raises(OSError, match="no disk"):
        kept.once("key", fail)
    assert kept.once("key", lambda: ("thing", 5)) == "thing"


def test_a_job_that_several_wait_for_runs_once_and_the_latest_asked_runs_first() -> None:
    pool, hold, begun, ran = LatestFirst(1), threading.Event(), threading.Event(), list[str]()

    def job(name: str, wait: bool = False) -> str:
        if wait:
            begun.set()
            hold.wait(120)
        ran.append(name)
        return name

    with ThreadPoolExecutor(8) as clients:
        first = clients.submit(pool.all, {"first": lambda: job("first", True)})
        begun.wait(120)
        asked = []
        for number, name in enumerate("abb"):
            asked.append(clients.submit(pool.all, {name: lambda name=name: job(name)}))
            while len(pool) < min(number + 2, 3):
                time.sleep(0.001)
        while pool._jobs["b"].waiting < 2:
            time.sleep(0.001)
        hold.set()
        assert first.result() == {"first": "first"}
        assert [one.result() for one in asked] == [{"a": "a"}, {"b": "b"}, {"b": "b"}]
    assert ran == ["first", "b", "a"]
    pool.close()


def test_what_nobody_waits_for_is_dropped_and_what_somebody_does_is_not() -> None:
    pool, hold, begun, ran = LatestFirst(1), threading.Event(), threading.Event(), list[str]()
    leave = Leave()
    with ThreadPoolExecutor(4) as clients:
        first = clients.submit(pool.all, {"first": lambda: (begun.set(), hold.wait(120))})
        begun.wait(120)
        alone = clients.submit(pool.all, {"alone": lambda: ran.append("alone")}, leave)
        both = clients.submit(pool.all, {"both": lambda: ran.append("both")}, leave)
        while len(pool) < 3:
            time.sleep(0.001)
        stays = clients.submit(pool.all, {"both": lambda: ran.append("both")})
        while pool._jobs["both"].waiting < 2:
            time.sleep(0.001)
        leave.now()
        for gone in (alone,):
            with pytest.raises(LeftError):
                gone.result(10)
        hold.set()
        first.result(10)
        assert stays.result(10) == {"both": None} and both.result(10) == {"both": None}
    assert ran == ["both"]
    with pytest.raises(LeftError):
        pool.all({"late": lambda: None}, leave)
    pool.close()
    with pytest.raises(LeftError):
        pool.all({"later": lambda: None})


def test_an_error_of_a_job_is_told_to_who_waits() -> None:
    pool = LatestFirst(2)

    def fail() -> None:
        raise OSError("no disk")

    with pytest.raises(OSError, match="no disk"):
        pool.all({"bad": fail, "good": lambda: 1})
    assert pool.all({"bad": lambda: 2}) == {"bad": 2}
    pool.close()
