"""The main job on a store that is there: extended by more ground and dates, refused otherwise, one run at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import xarray as xr

from eocube.cli import encode_main, main
from eocube.demo import DEMO_BBOX, DEMO_DATETIME
from eocube.encode import Exit
from eocube.lease import Lease
from eocube.target import Target

WEST, SOUTH, EAST, NORTH = DEMO_BBOX
SPRING, SUMMER = "2024-05-01/2024-05-31", "2024-07-01/2024-08-31"
MIDDLE = ((WEST + EAST) / 2, (SOUTH + NORTH) / 2)


def encode(out: Path, catalog: Path, box: tuple[float, ...], dates: str = DEMO_DATETIME, *more: str) -> int:
    return encode_main(
        ["--bbox", *map(str, box), "--datetime", dates, "--catalog", str(catalog), "--out", str(out), "--quiet",
         "--resolution", "20", "--bands", "B02,B03,B04,B08", *more]
    )  # fmt: skip


@pytest.mark.slow
def test_more_ground_and_dates_extend_the_store(demo_catalog: Path, tmp_path: Path, ray_local: object) -> None:
    grown, fresh = tmp_path / "grown.zarr", tmp_path / "fresh.zarr"
    assert encode(grown, demo_catalog, (*MIDDLE, EAST, NORTH), SUMMER) == Exit.DONE
    before = {p: p.read_bytes() for p in (grown / "latent").rglob("c/*/*/*/*")}
    assert encode(grown, demo_catalog, DEMO_BBOX) == Exit.DONE
    assert encode(fresh, demo_catalog, DEMO_BBOX) == Exit.DONE
    a, b = (xr.open_zarr(p, mask_and_scale=False).sortby("time").load() for p in (grown, fresh))
    for name in ("latent", "status", "valid", "valid_percent", "x", "y", "time", "scene_ids"):
        assert a[name].values.tobytes() == b[name].values.tobytes(), name
    assert before and main(["verify", str(grown), "--json"]) == Exit.DONE


@pytest.mark.slow
def test_another_request_is_refused_with_its_difference(
    demo_catalog: Path, tmp_path: Path, ray_local: object, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cube.zarr"
    box = (*MIDDLE, EAST, NORTH)
    assert encode(out, demo_catalog, box, SUMMER) == Exit.DONE
    kept = {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and "lease" not in p.name}
    cases = {
        "a store grows by a --datetime that holds its own": (box, SPRING, ()),
        "a store grows by a --bbox that holds its own": ((WEST, SOUTH, *MIDDLE), SUMMER, ()),
        "max_cloud None, asked 40.0": (box, DEMO_DATETIME, ("--max-cloud", "40")),
        "storage 'fp16', asked 'int8'": (box, SUMMER, ("--storage", "int8")),
    }
    for says, (where, when, more) in cases.items():
        capsys.readouterr()
        assert encode(out, demo_catalog, where, when, *more) == Exit.BAD_INPUT
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1, error
    with Lease(Target(out), "another-run"):
        assert encode(out, demo_catalog, box, SUMMER) == Exit.BAD_INPUT
        assert "is being written by run another-run" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in kept} == kept
