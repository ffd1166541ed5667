"""The main job on real imagery: right ground, right level, two tiles of a day in one picture, S1 in dB."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import eocube
from eocube.cli import encode_main
from eocube.report.fidelity import Fidelity, fidelity
from eocube.report.info import plan_of
from eocube.run.request import Exit

pytestmark = [pytest.mark.real, pytest.mark.slow]

SAHARA = "raw/rio_tiler_pds/sentinel-cogs/sentinel-s2-l2a-cogs/29/R/KH/2020/2/S2A_29RKH_20200219_0_L2A"


def encode(out: Path, catalog: Path, box: tuple[float, ...], when: str, *more: str) -> dict[str, Fidelity]:
    """Encode without a word; the decoded cube's figures against its sources, by time step."""
    code = encode_main(
        ["--bbox", *map(str, box), "--datetime", when, "--catalog", str(catalog), "--out", str(out), "--quiet", *more]
    )
    assert code == Exit.DONE
    return fidelity(plan_of(str(out), None), str(out))


@pytest.fixture
def sahara(shared_dir: Path, tmp_path: Path) -> Path:
    """The Sahara tile's item with its hrefs turned to the files beside it."""
    folder = shared_dir / "data" / SAHARA
    item = json.loads((folder / f"{folder.name}.json").read_text())
    for key, asset in list(item["assets"].items()):
        local = folder / Path(asset["href"]).name
        if local.is_file() and not key.endswith("-jp2"):
            asset["href"] = str(local)
        else:
            del item["assets"][key]
    path = tmp_path / "item.json"
    path.write_text(json.dumps(item))
    return path


def test_twelve_bands_at_100_m(sahara: Path, tmp_path: Path) -> None:
    scores = encode(tmp_path / "cube.zarr", sahara, (-11.5, 24.6, -11.3, 24.8), "2020-02-19", "--resolution", "100")
    (entry,) = scores.values()
    assert entry.psnr > 28 and entry.sam is not None and entry.sam < 0.1


def test_two_tiles_of_a_day_make_one_picture(shared_dir: Path, tmp_path: Path) -> None:
    catalog = shared_dir / "data" / "raw/mapchete_eo/full_products/catalog.json"
    out = tmp_path / "cube.zarr"
    # Northing 5 100 000 is the border of tiles 33TWM and 33TWL; only the second of August 20 holds its south.
    scores = encode(
        out, catalog, (15.5, 45.9, 15.8, 46.2), "2023-08-20", "--bands", "B02,B03,B04,B08", "--resolution", "120"
    )
    (entry,) = scores.values()
    assert entry.psnr > 25
    plan = plan_of(str(out), None)
    assert len(plan.times) == 1 and len(plan.scenes) == 2
    decoded = eocube.open(str(out)).eocube.decode(bands=["B08"]).isel(time=0, band=0).compute()
    assert np.isfinite(decoded.values[:, decoded.sizes["x"] // 2]).all(), "a gap runs between the tiles"


def test_backscatter_is_in_decibel(catalog_json: Path, tmp_path: Path) -> None:
    item = next((catalog_json.parent / "sentinel-1-rtc").glob("*/*.json"))
    about = json.loads(item.read_text())
    west, south, east, north = about["bbox"]
    out = tmp_path / "cube.zarr"
    scores = encode(out, catalog_json, (west, south, east, north), about["properties"]["datetime"][:10],
                    "--sensor", "S1RTC")  # fmt: skip
    (entry,) = scores.values()
    assert entry.rmse < 4.0  # dB; speckle does not fit into 32 numbers
    decoded = eocube.open(str(out)).eocube.decode().compute()
    assert decoded.attrs["units"] == "dB" and -35 < float(np.nanmedian(decoded.sel(band="VH"))) < -5
