"""Receipts, moments and the commit log."""

from __future__ import annotations

import json
import tracemalloc
import uuid
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eocube.errors import StoreError
from eocube.ground.lattice import ShardPlace
from eocube.net.objects import Objects
from eocube.store.commit_log import CommitLog, segment_key
from eocube.store.moments import Moments
from eocube.store.receipts import STATES, Receipt, State, WindowResult, pack_mask, unpack_mask, with_check

finite = st.floats(-1e6, 1e6, allow_nan=False)
percent = st.integers(0, 100)
words = st.none() | st.text(min_size=1, max_size=20)


@st.composite
def windows(draw: st.DrawFn) -> WindowResult:
    return WindowResult(
        row=draw(st.integers(0, 999)), col=draw(st.integers(0, 999)), state=draw(st.sampled_from(State)),
        reason=draw(words), valid_percent=draw(percent), cloud_percent=draw(percent | st.just(255)),
        psnr=draw(st.none() | finite), sam=draw(st.none() | finite), valid_mask=draw(words), item=draw(words),
        asset=draw(words),
    )  # fmt: skip


@st.composite
def moments(draw: st.DrawFn, channels: int = 3) -> Moments:
    pixels = draw(st.integers(0, 20))
    seed = draw(st.integers(0, 2**32 - 1))
    return Moments.of(np.random.default_rng(seed).normal(5, 2, (channels, pixels)))


@st.composite
def receipts(draw: st.DrawFn, places: int = 4) -> Receipt:
    time, row, col = (draw(st.integers(0, places - 1)) for _ in range(3))
    found = tuple(draw(st.lists(windows(), max_size=4)))
    precision = draw(st.dictionaries(st.sampled_from(["fp16", "fp32"]), percent))
    return Receipt(
        unit=f"t{time}/r{row}/c{col}", time=time, shard=ShardPlace(row, col), windows=found,
        bytes_in=draw(st.integers(0, 2**50)), bytes_out=draw(st.integers(0, 2**40)), seconds=draw(st.floats(0, 1e6)),
        sha256=draw(st.none() | st.text("0123456789abcdef", min_size=64, max_size=64)),
        moments=draw(st.none() | moments()), precision=precision,
        created="2026-11-21T02:00:00Z", run=draw(st.text(max_size=8)),
    )  # fmt: skip


def memory_target() -> Objects:
    return Objects(f"memory://{uuid.uuid4().hex}")


@given(receipts())
def test_a_receipt_is_one_line_that_reads_back_equal(receipt: Receipt) -> None:
    line = receipt.to_json()
    assert "\n" not in line
    assert Receipt.from_json(line) == receipt
    assert Receipt.from_json(line.encode()) == receipt


@given(receipts())
def test_unknown_fields_are_ignored(receipt: Receipt) -> None:
    data = json.loads(receipt.to_json())
    del data["crc32"]
    data["of_a_later_version"] = {"a": 1}
    data["windows"]["of_a_later_version"] = {"0": "b"}
    assert Receipt.from_json(sealed(json.dumps(data))) == receipt


def sealed(body: str) -> str:
    """A line with its checksum, as documented."""
    return f'{body[:-1]},"crc32":"{zlib.crc32(body.encode()):08x}"}}'


@given(receipts(), st.data())
def test_a_flipped_bit_is_seen(receipt: Receipt, data: st.DataObject) -> None:
    line = bytearray(receipt.to_json().encode())
    line[data.draw(st.integers(0, len(line) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(ValueError):
        Receipt.from_json(bytes(line))


@pytest.mark.parametrize("line", ["", "{", "[]", "null", "3", '{"unit":"u"}', '{"unit":"u","time":0,"shard":[1]}'])
def test_what_is_no_receipt_is_a_value_error(line: str) -> None:
    with pytest.raises(ValueError):
        Receipt.from_json(line)
    with pytest.raises(ValueError):
        Receipt.from_json(sealed(line))


def test_an_infinite_psnr_counts_as_not_measured() -> None:
    receipt = Receipt("u", 0, (0, 0), (WindowResult(0, 0, State.OK, psnr=float("inf"), sam=float("nan")),))
    assert Receipt.from_json(receipt.to_json()).windows[0] == WindowResult(0, 0, State.OK)


def test_states_are_the_contract() -> None:
    assert STATES == ("not_attempted", "ok", "nodata", "cloudy", "outside", "read_failed", "encode_failed")
    assert [int(State.named(label)) for label in STATES] == list(range(7))
    assert {s.label for s in State if s.retryable} == {"not_attempted", "read_failed", "encode_failed"}
    with pytest.raises(ValueError, match="no window state 'lost'"):
        State.named("lost")


def test_a_unit_of_a_hundred_windows_is_small() -> None:
    results = tuple(WindowResult(i, j, State.OK, valid_percent=100) for i in range(10) for j in range(10))
    line = Receipt("t0/r0/c0", 0, (0, 0), results, moments=Moments.of(np.random.randn(32, 100))).to_json()
    assert len(line) < 3500


def test_masks_round_trip_and_full_ones_cost_nothing() -> None:
    mask = np.random.default_rng(0).integers(0, 101, (24, 24)).astype(np.uint8)
    assert pack_mask(np.full((24, 24), 100, np.uint8)) is None
    assert (unpack_mask(None, 24) == 100).all()
    packed = pack_mask(mask)
    assert packed is not None and (unpack_mask(packed, 24) == mask).all()
    with pytest.raises(ValueError):
        unpack_mask(packed, 12)


@given(st.lists(moments(), max_size=6))
def test_moments_merged_are_those_of_all_pixels(parts: list[Moments]) -> None:
    merged = Moments.merged(parts)
    count = sum(p.count for p in parts)
    assert merged.count == count
    if count:
        mean = sum(np.array(p.mean) * p.count for p in parts) / count
        square = sum(np.array(p.m2) + np.square(p.mean) * p.count for p in parts)
        np.testing.assert_allclose(merged.mean, mean, rtol=1e-9)
        np.testing.assert_allclose(merged.m2, square - count * np.square(mean), rtol=1e-6, atol=1e-6)
    assert Moments.from_dict(merged.to_dict()) == merged


def test_moments_of_split_pixels_equal_numpys_and_leave_out_what_is_not_finite() -> None:
    values = np.random.default_rng(1).normal(300, 0.5, (3, 40, 40)).astype(np.float32)
    values[1, 5, 5], values[0, 6, 6] = np.nan, np.inf
    merged = Moments.of(values[:, :13]).merge(Moments.of(values[:, 13:]))
    flat = values.reshape(3, -1).astype(np.float64)
    flat = flat[:, np.isfinite(flat).all(0)]
    assert merged.count == 1598
    np.testing.assert_allclose(merged.mean, flat.mean(1), rtol=1e-13)
    np.testing.assert_allclose(merged.std, flat.std(1), rtol=1e-10)
    with pytest.raises(ValueError, match="3 and 2 channels"):
        merged.merge(Moments.of(np.zeros((2, 4))))


@settings(max_examples=40, deadline=None)
@given(st.lists(receipts(), max_size=12), st.data())
def test_the_log_gives_back_what_was_appended_and_the_last_counts(given: list[Receipt], data: st.DataObject) -> None:
    target = memory_target()
    left = list(given)
    while left:
        size = data.draw(st.integers(1, len(left)))
        # A new log each time, as after a kill: it goes on after the segments that are there.
        CommitLog(target).append(left[:size])
        left = left[size:]
    log = CommitLog(target)
    assert list(log.receipts()) == given
    last = {(r.time, *r.shard): r for r in given}
    assert list(log.latest()) == [last[place] for place in sorted(last)]
    assert list(log.latest().of_times(1, 3)) == [last[p] for p in sorted(last) if 1 <= p[0] < 3]
    assert [log.latest().of(*place) for place in sorted(last)] == [last[place] for place in sorted(last)]
    for place, columns in log.latest().states():
        assert columns.T.tolist() == [[w.row, w.col, int(w.state)] for w in last[place].windows]


def test_a_shift_in_the_log_moves_what_was_before_it() -> None:
    target = memory_target()
    before, after = (Receipt("x", 0, (r, 0), (WindowResult(4 * r, 1, State.OK),)) for r in (1, 2))
    log = CommitLog(target)
    log.append([before])
    line = with_check({"shift": [2, 3], "windows": [8, 12]})
    assert target.create(segment_key(log.next_number()), line.encode() + b"\n")
    CommitLog(target).append([after])
    moved = Receipt("t00000/r0003/c0003", 0, (3, 3), (WindowResult(12, 13, State.OK),))
    assert list(CommitLog(target).latest()) == [after, moved]
    assert list(CommitLog(target).receipts()) == [moved, after]
    assert [columns.tolist() for _, columns in CommitLog(target).latest().states()] == [
        [[8], [1], [1]],
        [[12], [13], [1]],
    ]


def test_a_segment_of_another_driver_is_never_overwritten() -> None:
    target = memory_target()
    one, other = CommitLog(target), CommitLog(target)
    receipts = [Receipt(f"u{k}", k, (0, 0), ()) for k in range(4)]
    one.append(receipts[:1])
    other.append(receipts[1:2])
    one.append(receipts[2:3])
    other.append(receipts[3:])
    assert list(CommitLog(target).latest()) == receipts


def test_the_log_of_many_units_takes_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `latest` holds on to is where each receipt lies, not what it says."""
    target = memory_target()
    log = CommitLog(target)
    windows = tuple(WindowResult(k // 10, k % 10, State.OK) for k in range(100))
    for t in range(20):
        log.append(Receipt("u", t, (row, 0), windows) for row in range(50))
    size = sum(len(target.get(key) or b"") for key in log.segments())
    monkeypatch.setattr("eocube.store.commit_log._HELD", 0)
    log.latest()  # what is imported and remembered at first use is not the log's
    tracemalloc.start()
    latest = log.latest()
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(latest) == len(list(latest)) == 1000 and held < size / 5


@settings(max_examples=30, deadline=None)
@given(st.lists(receipts(), min_size=1, max_size=6, unique_by=lambda r: (r.time, r.shard)), st.data())
def test_order_and_duplicates_do_not_matter(given: list[Receipt], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(given + data.draw(st.lists(st.sampled_from(given)))))
    logs = [CommitLog(memory_target()) for _ in range(2)]
    logs[0].append(given)
    for receipt in shuffled:
        logs[1].append([receipt])
    assert list(logs[0].latest()) == list(logs[1].latest())


@given(st.integers(0, 2000))
@settings(max_examples=40, deadline=None)
def test_a_torn_last_line_is_a_unit_not_done(cut: int) -> None:
    target = memory_target()
    whole = [Receipt(f"t{t}/r0/c0", t, (0, 0), (WindowResult(0, t, State.OK),)) for t in range(4)]
    log = CommitLog(target)
    key = log.append(whole)
    assert key == "commits/00000000.jsonl"
    data = target.get(key)
    assert data is not None
    cut = min(cut, len(data))
    target.put(key, data[:cut])
    kept = list(CommitLog(target).receipts())
    assert kept == whole[: len(kept)]
    assert len(kept) in (data[:cut].count(b"\n"), data[:cut].count(b"\n") + 1)
    CommitLog(target).append(whole)
    assert list(CommitLog(target).latest()) == whole


def test_damage_inside_a_segment_is_named() -> None:
    target = memory_target()
    log = CommitLog(target)
    log.append([Receipt("u", 0, (0, 0), ())] * 2)
    target.put("commits/00000000.jsonl", b"garbage\n" + (target.get("commits/00000000.jsonl") or b""))
    with pytest.raises(StoreError, match=r"commits/00000000.jsonl line 1 is damaged"):
        list(CommitLog(target).receipts())


def test_nothing_to_log_writes_nothing(tmp_path: Path) -> None:
    log = CommitLog(Objects(tmp_path / "c"))
    assert log.append([]) is None
    assert not (tmp_path / "c").exists()
