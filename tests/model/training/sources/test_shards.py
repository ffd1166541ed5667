"""Shards: found, joined by key, shared out without loss or repetition, shuffled, resumed; damaged ones named."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import fsspec
import pytest

from model.training.sources.shards import Sample, ShardError, expand, find_shards, read_shard
from model.training.sources.stream import ShardStream, Worker, share_out
from tests.model.training import shards as make

SIZES = (5, 7, 3, 6, 4)


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Five aligned shards of two modalities, 25 samples in all; no test may change them."""
    root = tmp_path_factory.mktemp("terramesh")
    return make.make_shards(root, ("S2L2A", "S1RTC"), SIZES, tmp_path_factory.mktemp("scratch"))


def stream(pattern: str, **options: object) -> ShardStream:
    return ShardStream(find_shards(pattern, ("S2L2A", "S1RTC")), **options)  # type: ignore[arg-type]


def take(source: ShardStream, count: int) -> list[str]:
    return [next(source).key for _ in range(count)]


def test_braces_are_spelt_out() -> None:
    assert expand("a_{008..011}_{x,y}.tar") == [f"a_{n}_{w}.tar" for n in ("008", "009", "010", "011") for w in "xy"]
    with pytest.raises(ValueError, match="counts down"):
        expand("a_{3..1}.tar")


def test_modalities_are_joined_by_key_and_stay_packed_alike(pattern: str) -> None:
    (first, *_) = find_shards(pattern, ("S2L2A", "S1RTC"))
    samples = list(read_shard(first, lambda ordinal: True))
    assert [s.key for s in samples] == [f"majortom_train_{i:07d}" for i in range(5)]
    assert all(set(s.packed) == {"S2L2A", "S1RTC"} and s.packed["S2L2A"][:2] == b"PK" for s in samples)
    only = list(read_shard(first, lambda ordinal: ordinal in (1, 3)))
    assert [s.ordinal for s in only] == [1, 3] and only[0].packed == samples[1].packed


def test_listing_a_folder_finds_the_same_shards(pattern: str) -> None:
    listed = find_shards(pattern.split("/[")[0] + "/{modality}/*.tar", ("S2L2A", "S1RTC"))
    assert [s.name for s in listed] == [s.name for s in find_shards(pattern, ("S2L2A", "S1RTC"))]


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 7])
def test_workers_and_loader_processes_share_every_sample_once_an_epoch(pattern: str, workers: int) -> None:
    for epoch in range(2):
        seen: Counter[str] = Counter()
        given = []
        for index in range(workers):
            one = stream(pattern, seed=5, worker=Worker(index, workers), buffer=4)
            share = None
            for _ in range(200):
                if one.epoch == epoch and share is None:
                    share = one.share({f"majortom_shard_{i:06d}.tar": n for i, n in enumerate(SIZES, 1)})
                sample = next(one)
                if one.epoch > epoch:
                    break
                if one.epoch == epoch:
                    seen[sample.key] += 1
            given.append(share)
        assert len(seen) == sum(SIZES) and set(seen.values()) == {1}
        if epoch == 0:
            assert sum(n for n in given if n is not None) == sum(SIZES)


def test_workers_count_from_0() -> None:
    with pytest.raises(ValueError, match="count from 0"):
        Worker(3, 3)


def test_whole_shards_go_round_evenly_and_the_rest_is_split_by_sample() -> None:
    parts = [share_out(range(7), Worker(i, 3)) for i in range(3)]
    assert [[p.shard for p in part if p.modulus == 1] for part in parts] == [[0, 3], [1, 4], [2, 5]]
    assert [[(p.shard, p.remainder) for p in part if p.modulus == 3] for part in parts] == [[(6, i)] for i in range(3)]


def test_order_is_the_seeds_and_differs_by_epoch_and_seed(pattern: str) -> None:
    first, again, other = (take(stream(pattern, seed=s, buffer=6), 50) for s in (1, 1, 2))
    assert first == again and first != other
    assert sorted(first[:25]) == sorted(first[25:]) and first[:25] != first[25:]
    assert first[:25] != sorted(first[:25])
    plain = take(stream(pattern, shuffle=False), 25)
    assert plain == sorted(plain)


@pytest.mark.parametrize("at", [0, 1, 9, 24, 25, 26, 61])
def test_resuming_goes_on_with_the_very_next_sample(pattern: str, at: int) -> None:
    whole = take(stream(pattern, seed=3, buffer=6), at + 30)
    first = stream(pattern, seed=3, buffer=6)
    take(first, at)
    state = json.loads(json.dumps(first.state_dict()))
    resumed = stream(pattern, seed=3, buffer=6)
    resumed.load_state_dict(state)
    assert take(resumed, 30) == whole[at:]
    assert take(first, 30) == whole[at:]  # taking the state changed nothing


def test_a_state_of_other_data_or_workers_is_refused(pattern: str) -> None:
    state = stream(pattern, seed=3).state_dict()
    for other in (stream(pattern, seed=4), stream(pattern, seed=3, worker=Worker(1, 2))):
        with pytest.raises(ValueError, match="resume with the same data arguments"):
            other.load_state_dict(state)


def test_any_fsspec_url_serves(pattern: str, s3_server: object) -> None:
    bucket = s3_server.bucket()  # type: ignore[attr-defined]
    options = s3_server.storage_options  # type: ignore[attr-defined]
    files = fsspec.filesystem("s3", **options)
    for shard in find_shards(pattern, ("S2L2A", "S1RTC")):
        for modality, url in shard.urls:
            files.put_file(url, f"{bucket}/train/{modality}/{shard.name}")
    remote = f"s3://{bucket}/train/[S2L2A,S1RTC]/majortom_shard_{{000001..000005}}.tar"
    found = find_shards(remote, ("S2L2A", "S1RTC"), options)
    far = ShardStream(found, seed=3, buffer=6, storage_options=options)
    assert take(far, 30) == take(stream(pattern, seed=3, buffer=6), 30)


def broken(pattern: str, tmp_path: Path, spoil: str) -> tuple[ShardStream, str]:
    """A copy of the shards with shard 3's radar tar spoilt."""
    root = tmp_path / "copy"
    for shard in find_shards(pattern, ("S2L2A", "S1RTC")):
        for modality, url in shard.urls:
            path = root / "train" / modality / shard.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(Path(url).read_bytes())
    target = root / "train" / "S1RTC" / "majortom_shard_000003.tar"
    raw = target.read_bytes()
    offsets = [i for i in range(0, len(raw), 512) if raw[i : i + 8] == b"majortom"]
    if spoil == "inside a member":
        target.write_bytes(raw[: offsets[2] + 700])
    elif spoil == "between members":
        target.write_bytes(raw[: offsets[2]])
    elif spoil == "header":
        target.write_bytes(raw[: offsets[2]] + bytes([255]) * 512 + raw[offsets[2] + 512 :])
    elif spoil == "no tar":
        target.write_bytes(b"<html>404</html>" * 100)
    elif spoil == "empty":
        target.write_bytes(b"")
    else:
        target.unlink()
    return stream(pattern.replace(pattern.split("/train")[0], str(root)), shuffle=False), target.name


@pytest.mark.parametrize(
    ("spoil", "left"),
    [("inside a member", 2), ("between members", 2), ("header", 2), ("no tar", 0), ("empty", 0), ("missing", 0)],
)
def test_a_damaged_shard_is_skipped_counted_and_named(
    pattern: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil: str, left: int
) -> None:
    source, name = broken(pattern, tmp_path, spoil)
    keys = take(source, sum(SIZES) - 3 + left)
    assert len(set(keys)) == len(keys) and keys == sorted(keys)
    assert source.epoch == 0
    next(source)
    assert source.ledger.counts == {"shard": 1} and source.epoch == 1
    ((kind, named, why),) = source.ledger.entries
    assert (kind, named) == ("shard", name) and name in why and "\n" not in why
    assert sum(name in record.message for record in caplog.records) == 1


def test_a_key_that_one_modality_lacks_is_left_out_and_named(pattern: str, tmp_path: Path) -> None:
    root = tmp_path / "lacking"
    members = [(f"k{i}", b"payload %d" % i) for i in range(6)]
    make.write_tar(root / "S2L2A" / "a.tar", members)
    make.write_tar(root / "S1RTC" / "a.tar", [m for m in members if m[0] != "k2"])
    source = ShardStream(find_shards(f"{root}/{{modality}}/a.tar", ("S2L2A", "S1RTC")), shuffle=False)
    assert take(source, 5) == ["k0", "k1", "k3", "k4", "k5"]
    next(source)
    assert source.ledger.counts == {"sample": 1} and source.ledger.entries[0][1] == "k2"
    assert "S1RTC" in source.ledger.entries[0][2]


def test_a_read_that_fails_now_and_then_is_tried_again(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from model.training.sources import shards

    whole = shards._opened
    failures = iter([True, False, False, True] + [False] * 50)

    def flaky(url: str, options: object) -> object:
        if next(failures):
            raise ConnectionResetError("reset by peer")
        return whole(url, options)  # type: ignore[arg-type]

    monkeypatch.setattr(shards, "_opened", flaky)
    monkeypatch.setattr(shards, "_FIRST_WAIT", 0.0)
    assert take(stream(pattern, shuffle=False), 25) == take(stream(pattern, shuffle=False), 25)


def test_shards_that_cannot_be_reached_end_with_one_line(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from model.training.sources import shards

    def never(url: str, options: object) -> Sample:
        raise ConnectionResetError("reset by peer")

    monkeypatch.setattr(shards, "_opened", never)
    monkeypatch.setattr(shards, "_FIRST_WAIT", 0.0)
    with pytest.raises(ShardError, match="cannot be read after 3 more tries: reset by peer"):
        list(read_shard(find_shards(pattern, ("S2L2A",))[0], lambda ordinal: True))
    with pytest.raises(ValueError, match=r"no sample in 5 shards: 5 shards left out, such as majortom_shard"):
        next(stream(pattern))


def test_no_shards_or_no_place_for_the_modality_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="check the URL"):
        find_shards(f"{tmp_path}/{{modality}}/*.tar", ("S2L2A",))
    with pytest.raises(ValueError, match="no place for 2 modalities"):
        find_shards(f"{tmp_path}/a.tar", ("S2L2A", "S1RTC"))
