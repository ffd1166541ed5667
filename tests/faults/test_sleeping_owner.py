"""A driver sleeps through its lease at any storage call of an extension, another takes over, and then the first wakes.

Whatever it was about to write, or had on its way: it is refused, and the store is as the other left it, verified.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from eocube.errors import LeaseError, StoreError
from eocube.net.objects import Objects
from eocube.plan.plan import Plan
from eocube.store.store import CubeStore
from tests.faults.conftest import ProxiedS3
from tests.faults.killing import check_readable, drive, plan_of, scene
from tests.faults.sleeping import SLEEPER, Sleep

pytestmark = pytest.mark.faults

SMALL, LARGER = (11.500, 48.100, 11.518, 48.110), (11.500, 48.085, 11.540, 48.110)
TWO_DAYS, LATER = (10, 15), (10, 15, 20)


def plan(box: Sequence[float], days: Sequence[int]) -> Plan:
    return plan_of(box, [scene(d) for d in days], (min(days), max(days)))


@dataclass(frozen=True)
class Story:
    """A store's requests before, what the sleeper asks of it, and what the one asks that takes over."""

    name: str
    before: tuple[Plan, ...]
    asleep: Plan
    other: Plan


SAME = Story("the same extension", (plan(SMALL, TWO_DAYS),), plan(SMALL, LATER), plan(SMALL, LATER))
MORE = Story("a larger extension", (plan(SMALL, TWO_DAYS),), plan(SMALL, LATER), plan(LARGER, LATER))
ELSE = Story("another extension", (plan(SMALL, TWO_DAYS),), plan(SMALL, LATER), plan(LARGER, TWO_DAYS))
NEW = Story("a new store", (), plan(SMALL, TWO_DAYS), plan(SMALL, TWO_DAYS))
STORIES = (SAME, MORE, ELSE, NEW)


def everything(url: str, options: Mapping[str, Any] | None = None) -> dict[str, bytes]:
    """All objects that count: not who had the lease when, nor what a late owner wrote to the log."""
    target = Objects(url, options)
    counted = CubeStore.open(url, storage_options=options).log.latest().segments
    found = {}
    for key in target.keys(""):
        history = key.startswith(("commits/lease-", "commits/fence"))
        if not history and not (key.endswith(".jsonl") and key not in counted):
            data = target.get(key)
            assert data is not None
            found[key] = data
    return found


@dataclass
class Told:
    """What the store was when the other had ended, and what the sleeper came to."""

    left: dict[str, bytes]
    refused: StoreError | None
    sleep: Sleep
    plan: Plan


def tell(
    story: Story,
    url: str,
    at: int | None,
    after: bool,
    options: Mapping[str, Any] | None = None,
    through: ProxiedS3 | None = None,
    only: str = "",
    settle: float = 0.0,
) -> Told:
    """The whole story: `through` a proxy the sleeper's requests are held, else its calls are."""
    left: dict[str, bytes] = {}
    took = [story.other]

    def other() -> None:
        try:
            drive(url, story.other, storage_options=options, run_id="other", settle=settle)
        except LeaseError:
            raise
        except StoreError:  # the sleeper's plan is the store's already: only who asks for as much goes on
            took[0] = story.asleep
            drive(url, story.asleep, storage_options=options, run_id="other", settle=settle)
        left.update(everything(url, options))

    sleep = Sleep(url, at, after, other, options, only)
    refused = None
    with sleep.upon_requests(through.proxy) if through is not None else sleep.upon_calls():
        try:
            given = through.options if through is not None else options
            drive(url, story.asleep, storage_options=given, run_id=SLEEPER, commit_every=1, settle=settle)
        except StoreError as error:
            refused = error
    return Told(left, refused, sleep, took[0])


def before(story: Story, url: str, options: Mapping[str, Any] | None = None) -> None:
    for asked in story.before:
        drive(url, asked, storage_options=options, settle=0.0)


def check(told: Told, url: str, options: Mapping[str, Any] | None = None) -> None:
    where = (told.sleep.at, told.sleep.after, told.sleep.where)
    assert told.sleep.slept, where
    assert told.refused is not None, where
    now = everything(url, options)
    differing = sorted(key for key in now.keys() | told.left.keys() if now.get(key) != told.left.get(key))
    assert not differing, (where, differing, told.refused)
    assert CubeStore.open(url, storage_options=options).verify() == [], where
    assert drive(url, told.plan, storage_options=options, settle=0.0).reads == [], where


def copies_of(story: Story) -> dict[str, bytes]:
    url = fresh_url()
    before(story, url)
    target = Objects(url)
    return {key: target.get(key) or b"" for key in target.keys("")}


def fresh_url() -> str:
    return f"memory://sleep-{uuid.uuid4().hex}/cube.zarr"


@pytest.mark.parametrize("story", STORIES, ids=lambda s: s.name)
def test_asleep_at_any_call(story: Story) -> None:
    there = copies_of(story)

    def copy() -> str:
        url = fresh_url()
        for key, data in there.items():
            Objects(url).put(key, data)
        return url

    calls = tell(story, copy(), None, False).sleep.calls
    assert calls > 40
    # Each third call of one story; of the others each eighth, the first ones and the last.
    step = 3 if story is MORE else 8
    others = 0
    for at in sorted({*range(1, calls + 1, step), 2, calls}):
        after = at < calls and bool(at // 2 % 2)  # behind its very last call there is nothing left to refuse
        url = copy()
        told = tell(story, url, at, after)
        check(told, url)
        assert isinstance(told.refused, LeaseError)
        others += told.plan is story.other
    assert others > calls // 2 // step if story is not ELSE else others
    assert check_readable(url)


@pytest.mark.parametrize("story", [MORE, NEW], ids=lambda s: s.name)
def test_asleep_on_disk(story: Story, tmp_path: Any) -> None:
    rng = random.Random(20261126)
    counted = str(tmp_path / "counted.zarr")
    before(story, counted)
    calls = tell(story, counted, None, False).sleep.calls
    for at in sorted(rng.sample(range(1, calls), 6)):
        url = str(tmp_path / f"{at}.zarr")
        before(story, url)
        check(tell(story, url, at, rng.random() < 0.5), url)


@pytest.fixture
def s3_url(s3_behind_proxy: ProxiedS3) -> str:
    return f"s3://{s3_behind_proxy.bucket}/{uuid.uuid4().hex}.zarr"


@pytest.mark.parametrize("story", [SAME, MORE], ids=lambda s: s.name)
def test_asleep_with_a_request_on_its_way_to_s3(story: Story, s3_behind_proxy: ProxiedS3, s3_url: str) -> None:
    """Held behind every look at the lease: what the other wrote is not written over, what it left alone is put back."""
    s3 = s3_behind_proxy
    before(story, s3_url, s3.direct)
    requests = tell(story, s3_url, None, False, s3.direct, s3).sleep.calls
    rng = random.Random(story.name)
    # The lease's own first writes come before the store is held, its last one when all is done.
    for at in sorted(rng.sample(range(5, requests - 1), 2)):
        url = f"{s3_url[:-5]}-{at}.zarr"
        before(story, url, s3.direct)
        told = tell(story, url, at, rng.random() < 0.3, s3.direct, s3)
        check(told, url, s3.direct)


@pytest.mark.parametrize("conditions", ["ignored", "refused"])
def test_asleep_where_conditions_are_not_kept(
    s3_behind_proxy: ProxiedS3, s3_url: str, conditions: Literal["ignored", "refused"]
) -> None:
    """At any call the sleeper is refused and the store is the other's, as where conditions hold."""
    s3 = s3_behind_proxy
    s3.proxy.conditions = conditions
    before(MORE, s3_url, s3.options)
    calls = tell(MORE, s3_url, None, False, s3.options).sleep.calls
    for at in (calls // 3,):
        url = f"{s3_url[:-5]}-{at}.zarr"
        before(MORE, url, s3.options)
        check(tell(MORE, url, at, False, s3.options), url, s3.options)


def test_requests_on_their_way_where_conditions_are_ignored_are_told_and_found(
    s3_behind_proxy: ProxiedS3, s3_url: str
) -> None:
    """There alone an object of the other's can be written over, by what was on its way just then: both say so."""
    s3 = s3_behind_proxy
    s3.proxy.conditions = "ignored"
    before(MORE, s3_url, s3.direct)
    told = tell(MORE, s3_url, 1, False, s3.direct, s3, only="/commits/plan.json")
    assert isinstance(told.refused, LeaseError), told.sleep.where
    now = everything(s3_url, s3.direct)
    assert {key for key in told.left if now.get(key) != told.left[key]} == {"commits/plan.json"}
    assert "commits/plan.json was being written just then: eocube verify" in str(told.refused)
    findings = CubeStore.open(s3_url, storage_options=s3.direct).verify()
    assert [finding.path for finding in findings] == ["commits/plan.json"]
