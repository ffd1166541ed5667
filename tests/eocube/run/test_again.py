"""What a store was made by, asked again: by --retry with --out alone, and up to this moment by --since last."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import shapely

from eocube.cli import encode_main
from eocube.demo.catalogue import DEMO_BBOX
from eocube.errors import InputError
from eocube.run.again import asked_again
from eocube.run.asked import Running, Selection
from eocube.run.request import Request
from eocube.store.receipts import State

NOW = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.mark.slow
def test_a_store_goes_on_with_its_own_request(
    demo_catalog: Path, tmp_path: Path, ray_local: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    west, south, east, north = DEMO_BBOX
    (tmp_path / "r.geojson").write_text(
        shapely.to_geojson(shapely.Polygon([(west, south), (east, south), (west, north)]))
    )
    out = str(tmp_path / "c.zarr")
    words = ["--region", str(tmp_path / "r.geojson"), "--datetime", "2024-05", "--catalog", str(demo_catalog),
             "--bands", "B02,B03,B04,B08", "--resolution", "20", "--quiet", "--out", out]  # fmt: skip
    assert encode_main([*words, "--since", "yesterday"]) == 2
    assert encode_main(words) == 0
    selection, running = Selection(out=out), Running(retry=(State.READ_FAILED,))
    again = asked_again(selection, running, None)
    stored = json.loads((Path(out) / "commits" / "plan.json").read_text())["request"]
    asked = Request.parse(again, running, on_gpu=False).document()
    left = ("weights", "precision", "storage")  # which a run takes from the store itself
    assert {k: v for k, v in asked.items() if k not in left} == {k: v for k, v in stored.items() if k not in left}
    assert encode_main(["--out", out, "--retry", "read_failed", "--quiet"]) == 0
    capsys.readouterr()
    assert encode_main(["--out", out, "--since", "last", "--plan"]) == 0
    (plan,) = json.loads(capsys.readouterr().out)
    assert plan["times"] == 2  # the demo has a date in July, too
    later = asked_again(replace(selection, since="last"), Running(), None, NOW)
    assert later.interval is not None and later.interval[1] == NOW and later.interval[0].month == 5


def test_without_a_store_the_first_run_needs_ground_and_dates(tmp_path: Path) -> None:
    selection = Selection(out=str(tmp_path / "none.zarr"), since="last")
    with pytest.raises(InputError, match="no store to go on with"):
        asked_again(selection, Running(), None)
    begun = datetime(2024, 5, 1, tzinfo=UTC)
    first = asked_again(replace(selection, boxes=((1, 2, 3, 4),), interval=(begun, begun)), Running(), None, NOW)
    assert first.interval == (begun, NOW)
    plain = Selection(out=str(tmp_path / "none.zarr"))
    assert asked_again(plain, Running(), None) is plain
