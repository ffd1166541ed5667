"""Boxes and intervals as typed, and footprints around the antimeridian."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from eocube.errors import InputError
from eocube.ground.boxes import bbox_of, footprint_of, meets, overlap, parse_bbox, parse_interval, split_box

LON, LAT = st.floats(-180, 180), st.floats(-90, 90)


@given(LON, LAT, LON, LAT)
def test_a_box_is_one_or_two_boxes_or_an_error(west: float, south: float, east: float, north: float) -> None:
    if south >= north or west == east or (west > east and east - west + 360 >= 180):
        with pytest.raises(InputError):
            parse_bbox(west, south, east, north)
        return
    parts = parse_bbox(west, south, east, north)
    assert all(w < e and s < n for w, s, e, n in parts)
    width = sum(e - w for w, _, e, _ in parts)
    assert width == pytest.approx(east - west if west < east else east - west + 360, abs=1e-9)
    if west < east:
        assert parts == ((west, south, east, north),)
    else:
        assert {180.0, -180.0} & {value for part in parts for value in (part[0], part[2])}


def test_the_antimeridian_gives_two_boxes_and_its_edge_one() -> None:
    assert parse_bbox(170, -20, -175, -10) == ((170, -20, 180.0, -10), (-180.0, -20, -175, -10))
    assert parse_bbox(180, -20, -175, -10) == ((-180.0, -20, -175, -10),)
    assert parse_bbox(170, -20, -180, -10) == ((170, -20, 180.0, -10),)
    with pytest.raises(InputError, match="west > east"):
        parse_bbox(12, 47, 11, 48)


@pytest.mark.parametrize(
    ("box", "says"),
    [
        ((-48, -95, -47, -94), "latitude must lie"),
        ((48.1, 111.4, 48.3, 111.7), r"swapped, did you mean 111.4 48.1 111.7 48.3"),
        ((111.4, 48.1, 111.7, 148.3), r"-90..90$"),
        ((190, 1, 200, 2), r"did you mean -170 1 -160 2"),
        ((-48.1, -25.3, -48.0, -25.4), "south above north"),
        ((-48.1, -25.3, -48.0, -25.3), "south equals north"),
        ((-48.1, -25.3, -48.1, -25.2), "west equals east"),
        ((float("nan"), 0, 1, 1), "finite"),
        ((0, 0, float("inf"), 1), "finite"),
    ],
)
def test_wrong_boxes_say_why_in_one_line(box: tuple[float, float, float, float], says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        parse_bbox(*box)
    assert "\n" not in str(caught.value)


@given(st.floats(-540, 540), st.floats(-100, 80), st.floats(0.001, 400))
def test_boxes_with_halos_past_the_ends_of_the_map(west: float, south: float, width: float) -> None:
    parts = split_box((west, south, west + width, 85.0))
    assert all(-180 <= w < e <= 180 and -90 <= s < n <= 85 for w, s, e, n in parts)
    assert sum(e - w for w, _, e, _ in parts) == pytest.approx(min(width, 360), abs=1e-6)
    middle = (west + width / 2 + 180) % 360 - 180
    assert any(w - 1e-9 <= middle <= e + 1e-9 for w, _, e, _ in parts)


def test_split_boxes_agree_with_typed_ones() -> None:
    for box in ((170, -20, -175, -10), (10, 40, 11, 41), (180, -20, -175, -10), (170, -20, -180, -10)):
        assert split_box(box) == parse_bbox(*box)
    assert split_box((179.9, -91, 180.2, -80)) == (
        (179.9, -90.0, 180.0, -80),
        (-180.0, -90.0, pytest.approx(-179.8), -80),
    )
    with pytest.raises(InputError, match="is empty"):
        split_box((0, 10, float("nan"), 11))


@given(st.dates(), st.dates())
def test_intervals_of_days_hold_both_days_whole(first: object, last: object) -> None:
    text = f"{first}/{last}"
    if first > last:  # type: ignore[operator]
        with pytest.raises(InputError, match="earlier date first"):
            parse_interval(text)
        return
    assume(str(last) != "9999-12-31")
    start, end = parse_interval(text)
    assert start.isoformat() == f"{first}T00:00:00+00:00"
    assert (end + timedelta(microseconds=1)).isoformat() == str(
        datetime.fromisoformat(str(last)).replace(tzinfo=UTC) + timedelta(days=1)
    ).replace(" ", "T")


def test_other_spellings_of_time() -> None:
    assert parse_interval("2024-02") == (
        datetime(2024, 2, 1, tzinfo=UTC),
        datetime(2024, 2, 29, 23, 59, 59, 999999, tzinfo=UTC),
    )
    assert parse_interval("2024")[1] == datetime(2024, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
    start, end = parse_interval("2024-06-01T12:00:00+02:00/2024-06-02T00:00:00Z")
    assert (start.hour, end) == (10, datetime(2024, 6, 2, tzinfo=UTC))


@pytest.mark.parametrize(
    "text", ["2021-13-45/2021-14-01", "yesterday", "", "2021-01-01/..", "/", "a/b/c", "2021-02-30", "0000", "9999-99"]
)
def test_what_is_no_date_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(InputError, match="datetime") as caught:
        parse_interval(text)
    assert "\n" not in str(caught.value)


def test_footprints_over_the_antimeridian_meet_both_sides_and_not_the_rest_of_the_globe(shared_dir: Path) -> None:
    folder = shared_dir / "data" / "stac_json" / "earth-search-v1" / "mapchete_antimeridian_items"
    wrapped = 0
    for path in sorted(folder.glob("*.json")):
        item = json.loads(path.read_text())
        shape = footprint_of(item)
        assert shape is not None
        west, south, east, north = bbox_of(shape)
        assert not meets(shape, [(-60, -80, 60, 80)]), "a box that spans the globe must not match Africa"
        if west > east:
            wrapped += 1
            assert meets(shape, [(179.0, south, 180.0, north)]) and meets(shape, [(-180.0, south, -179.6, north)])
            assert east - west + 360 < 5
        assert meets(shape, parse_bbox(170, south, -170, north))
    assert wrapped >= 1


def test_boxes_stand_in_where_there_is_no_geometry() -> None:
    flat = footprint_of({"bbox": [10.0, 45.0, 0.0, 11.0, 46.0, 900.0]})
    assert flat is not None and bbox_of(flat) == (10.0, 45.0, 11.0, 46.0)
    over = footprint_of({"bbox": [179.0, -20.0, -179.0, -19.0]})
    assert over is not None and bbox_of(over) == (179.0, -20.0, -179.0, -19.0)
    assert meets(over, [(-180.0, -20.0, -179.5, -19.0)]) and not meets(over, [(-178.0, -20.0, 178.0, -19.0)])
    assert footprint_of({}) is None
    west = footprint_of({"bbox": [-181.0, -20.0, -179.0, -19.0]})
    assert west is not None and overlap(over, west) == pytest.approx(1.0)
