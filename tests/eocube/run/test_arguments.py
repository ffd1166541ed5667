"""The command line's texts become values: the same defaults twice, and each value where it belongs."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import UTC, datetime
from typing import Any

import pytest

from eocube.errors import InputError
from eocube.run.arguments import EncodeOptions, typed
from eocube.run.asked import Running, Selection, Showing
from eocube.run.request import Request
from eocube.store.receipts import State

TEXTS = EncodeOptions(
    bbox=("179", "-20", "-179", "-19"), datetime="2024-06", extent=("178", "-21", "-178", "-18"), bands=" B04,B02,",
    offset="-0.1", resolution="20", max_cloud="40", product_options=("levels=8",), retry="read_failed, lost,damaged",
    verify_fraction="1", patience="1e1", unit_timeout="60", memory="1.5", max_requests_per_second="2.5",
    storage_options=("anon=true",), source_options=("{}",), out="cube.zarr",
)  # fmt: skip


def test_what_no_argument_says_is_what_no_value_says() -> None:
    assert typed(EncodeOptions()) == (Selection(), Running(), Showing())


def test_every_option_reaches_a_value() -> None:
    """Two are called otherwise, and `--retry damaged` is a value of its own."""
    options, *values = ({f.name for f in fields(kind)} for kind in (EncodeOptions, Selection, Running, Showing))
    reached = {"boxes": "bbox", "interval": "datetime", "mend": "retry"}
    assert options == {reached.get(name, name) for name in set.union(*values)}
    assert sum(map(len, values)) == len(set.union(*values))


def test_texts_are_read_into_values() -> None:
    selection, running, _ = typed(TEXTS)
    assert selection.boxes == ((179, -20, 180, -19), (-180, -20, -179, -19))
    assert selection.extent == ((178, -21, 180, -18), (-180, -21, -178, -18))
    assert selection.interval == (datetime(2024, 6, 1, tzinfo=UTC), datetime(2024, 6, 30, 23, 59, 59, 999999, UTC))
    assert selection.bands == ("B04", "B02") and selection.product_options == {"levels": "8"}
    assert (selection.offset, selection.resolution, selection.max_cloud) == (-0.1, 20, 40)
    assert running.retry == (State.READ_FAILED, State.NOT_ATTEMPTED) and running.mend
    assert (running.verify_fraction, running.patience, running.unit_timeout) == (1, 10, 60)
    assert (running.max_requests_per_second, running.memory) == (2.5, 1.5)
    assert (running.storage_options, running.source_options) == ({"anon": True}, {})


def test_the_demonstration_takes_no_ground_from_the_arguments() -> None:
    selection, running, _ = typed(replace(TEXTS, demo=True, bbox=("a",), datetime="b"))
    assert running.demo and selection.boxes == () and selection.interval is None


def test_whole_numbers_ask_for_the_same_as_their_texts() -> None:
    selection, running, _ = typed(replace(TEXTS, max_cloud="40", offset="0"))
    whole = replace(selection, boxes=((179, -20, -179, -19),), max_cloud=40, resolution=20, offset=0)
    texts, values = (repr(Request.parse(s, running, on_gpu=False).document()) for s in (selection, whole))
    assert texts == values


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"resolution": 10.5}, "--resolution is in whole metres above 0, not 10.5"),
        ({"resolution": float("nan")}, "--resolution is in whole metres above 0, not nan"),
        ({"resolution": float("inf")}, "--resolution is in whole metres above 0, not inf"),
        ({"max_cloud": 101}, "--max-cloud is a percentage from 0 to 100, not 101"),
        ({"verify_fraction": float("nan")}, "--verify-fraction is a share from 0 to 1, not nan"),
        ({"unit_timeout": float("inf")}, "--unit-timeout is a number of seconds above 0, not inf"),
        ({"memory": 0}, "--memory is a number of GB above 0, not 0"),
        ({"patience": -1}, "--patience is a number of seconds from 0, not -1"),
        ({"max_requests_per_second": 0}, "--max-requests-per-second is a number above 0, not 0"),
        ({"retry": (State.OK,)}, "--retry: windows that ended ok end so again"),
        ({"offset": float("nan")}, "--offset: nan is not a finite number"),
        ({"boxes": ()}, "--bbox takes four numbers, west south east north; 0 given (or --region a file)"),
        ({"boxes": ((11, 49, 12, 48),)}, "bbox 11 49 12 48 has south above north; the order is W S E N"),
        ({"interval": None}, "--datetime is missing: give a date or A/B, such as 2024-06-01/2024-08-31"),
    ],
)
def test_values_that_cannot_be_are_refused(changes: dict[str, Any], says: str) -> None:
    selection, running, _ = typed(replace(TEXTS, extent=()))
    ours = {f.name for f in fields(Selection)} & changes.keys()
    asked = replace(selection, **changes) if ours else selection
    with pytest.raises(InputError) as refused:
        Request.parse(asked, running if ours else replace(running, **changes), on_gpu=False)
    assert str(refused.value) == says
