"""The main job on a store that is there: extended by more ground and dates, refused otherwise, one run at a time."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import xarray as xr

import eocube
from eocube.cli import encode_main, main
from eocube.demo.catalogue import DEMO_BBOX, DEMO_DATETIME
from eocube.errors import StoreError
from eocube.ground.grid import grids_for
from eocube.net.objects import Objects
from eocube.plan.plan import build_plan
from eocube.products.eo_vae_document import latents
from eocube.report.info import status
from eocube.run import job as run
from eocube.run.extend import grow_plans
from eocube.run.request import Exit
from eocube.store.lease import Lease
from tests.faults.killing import ENCODING, SENSOR, plan_of, request_of, scene

WEST, SOUTH, EAST, NORTH = DEMO_BBOX
SPRING, SUMMER = "2024-05-01/2024-05-31", "2024-07-01/2024-08-31"
MIDDLE = ((WEST + EAST) / 2, (SOUTH + NORTH) / 2)


def encode(out: Path, catalog: Path, box: tuple[float, ...], dates: str = DEMO_DATETIME, *more: str) -> int:
    return encode_main(
        ["--bbox", *map(str, box), "--datetime", dates, "--catalog", str(catalog), "--out", str(out), "--quiet",
         "--resolution", "20", "--bands", "B02,B03,B04,B08", *more]
    )  # fmt: skip


@pytest.mark.slow
def test_more_ground_and_dates_extend_the_store(demo_catalog: Path, tmp_path: Path) -> None:
    grown, fresh = tmp_path / "grown.zarr", tmp_path / "fresh.zarr"
    first = (*MIDDLE, EAST, NORTH)
    assert encode(grown, demo_catalog, first, SUMMER, "--extent", *map(str, DEMO_BBOX)) == Exit.DONE
    before = {p: p.read_bytes() for p in (grown / "latent").rglob("c/*/*/*/*")}
    assert encode(grown, demo_catalog, DEMO_BBOX) == Exit.DONE
    assert encode(fresh, demo_catalog, DEMO_BBOX) == Exit.DONE
    a, b = (xr.open_zarr(p, mask_and_scale=False).sortby("time").load() for p in (grown, fresh))
    for name in ("latent", "status", "valid", "valid_percent", "x", "y", "time", "scene_ids"):
        assert a[name].values.tobytes() == b[name].values.tobytes(), name
    assert before and main(["verify", str(grown), "--json"]) == Exit.DONE
    assert encode(grown, demo_catalog, DEMO_BBOX, DEMO_DATETIME, "--extent", *map(str, DEMO_BBOX)) == Exit.DONE
    with pytest.warns(UserWarning, match=r'not in order of time.*ds.sortby\("time"\)'):
        eocube.open(str(grown))
    assert status(str(grown)).time_order.startswith("not in order: 1 steps lie behind")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        eocube.open(str(fresh))
    assert status(str(fresh)).time_order == "in order"


def test_a_store_of_one_zone_is_not_grown_into_a_second() -> None:
    across = (11.98, 48.02, 12.02, 48.045)
    west, east = grids_for(across, 10, core_px=48, halo_px=16, shard_px=96)
    asked = [
        build_plan(latents(SENSOR, ENCODING, grid.lattice), grid, [scene(10)], request_of(across, (1, 31)))
        for grid in (west, east)
    ]
    narrow = plan_of((11.98, 48.02, 11.99, 48.045), [scene(10)])
    assert narrow.grid.name == west.name
    with pytest.raises(StoreError, match=r"holds utm32 alone .* utm33 too: .* write to another --out") as refused:
        grow_plans("cube.zarr", [narrow], asked)
    assert "\n" not in str(refused.value)


@pytest.mark.slow
def test_another_request_is_refused_with_its_difference(
    demo_catalog: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cube.zarr"
    box = (*MIDDLE, EAST, NORTH)
    assert encode(out, demo_catalog, box, SUMMER) == Exit.DONE
    kept = {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and "lease" not in p.name}
    cases = {
        "a store grows by a --datetime that holds its own": (box, SPRING, ()),
        "a store grows by a --bbox that holds its own": ((WEST, SOUTH, *MIDDLE), SUMMER, ()),
        "max_cloud None, asked 40.0": (box, DEMO_DATETIME, ("--max-cloud", "40")),
        "storage 'codes', asked 'int8'": (box, SUMMER, ("--storage", "int8")),
        "weights 'nano2', asked 'nano'": (box, SUMMER, ("--weights", "nano")),
    }
    for says, (where, when, more) in cases.items():
        capsys.readouterr()
        assert encode(out, demo_catalog, where, when, *more) == Exit.BAD_INPUT
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1, error
    with Lease(Objects(out), "another-run"):
        assert encode(out, demo_catalog, box, SUMMER) == Exit.BAD_INPUT
        assert "is being written by run another-run" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in kept} == kept


@pytest.mark.slow
def test_two_extensions_planned_at_once_drop_nothing(
    demo_catalog: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """While one searches, another extends the store: the first compares its plans with the store's as it is now."""
    out, box = tmp_path / "cube.zarr", (*MIDDLE, EAST, NORTH)
    more = (MIDDLE[0], SOUTH, EAST, NORTH)
    assert encode(out, demo_catalog, box, SUMMER) == Exit.DONE
    search, turns = run.make_plans, iter((more, None))

    def meanwhile(*args: Any) -> Any:
        if (ground := next(turns, None)) is not None:
            assert encode(out, demo_catalog, ground, SUMMER) == Exit.DONE
        return search(*args)

    monkeypatch.setattr(run, "make_plans", meanwhile)
    capsys.readouterr()
    assert encode(out, demo_catalog, box, DEMO_DATETIME) == Exit.BAD_INPUT
    assert "a store grows by a --bbox that holds its own" in capsys.readouterr().err
    assert main(["verify", str(out), "--json"]) == Exit.DONE
    assert encode(out, demo_catalog, more, DEMO_DATETIME) == Exit.DONE
    assert main(["verify", str(out), "--json"]) == Exit.DONE
