"""The main job with latents as codes: the same bytes however they came about, a fraction of fp16's, near as good."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import eocube
from eocube.cli import encode_main, main
from eocube.demo.catalogue import DEMO_BBOX
from eocube.run.request import Exit
from eocube.store.store import CubeStore

pytestmark = pytest.mark.slow
MAY, SUMMER = "2024-05-01/2024-05-31", "2024-05-01/2024-08-31"


def encode(catalog: Path, out: Path, when: str, *more: str) -> int:
    return encode_main([
        "--bbox", *map(str, DEMO_BBOX), "--datetime", when, "--catalog", str(catalog), "--out", str(out), "--quiet",
        "--bands", "B02,B03,B04,B08", "--verify-fraction", "1", *more,
    ])  # fmt: skip


def hashes(out: Path) -> dict[str, str | None]:
    return {receipt.unit: receipt.sha256 for receipt in CubeStore.open(str(out)).receipts()}


def stored_bytes(out: Path) -> int:
    return sum(receipt.bytes_out for receipt in CubeStore.open(str(out)).receipts())


def test_codes_by_any_way_are_the_same_and_near_the_latents(
    demo_catalog: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = ("--storage", "codes")
    whole, grown, half, small = (tmp_path / f"{name}.zarr" for name in ("whole", "grown", "half", "small"))
    assert encode(demo_catalog, whole, SUMMER, "--actors", "2") == Exit.DONE
    for when, said in ((MAY, codes), (SUMMER, ()), (SUMMER, codes)):  # a store goes on as it began, said again or not
        assert encode(demo_catalog, grown, when, *said) == Exit.DONE
    assert hashes(whole) == hashes(grown) and len(hashes(whole)) == 2 and all(hashes(whole).values())
    assert main(["verify", str(grown)]) == Exit.DONE
    for other in (("--storage", "fp16"), (*codes, "--quality", "small")):
        assert encode(demo_catalog, grown, SUMMER, *other) == Exit.BAD_INPUT
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and str(grown) in lines[0]

    assert encode(demo_catalog, half, SUMMER, "--storage", "fp16") == Exit.DONE
    assert encode(demo_catalog, small, SUMMER, "--quality", "small") == Exit.DONE
    assert stored_bytes(small) < stored_bytes(whole) < 0.4 * stored_bytes(half)
    psnr = {out: float(np.nanmean(xr.open_zarr(out)["psnr"])) for out in (half, whole, small)}
    assert psnr[half] - 0.7 < psnr[whole] < psnr[half] and psnr[small] < psnr[whole]

    stored, values = xr.open_zarr(whole)["latent"], eocube.open(str(whole)).eocube.latents()
    assert stored.dtype == np.int16 and values.dtype == np.float32
    exact = eocube.open(str(half)).eocube.latents().values
    steps = xr.open_zarr(whole)["scale"].values[None, :, None, None]
    there = np.isfinite(values.values)
    assert (there == np.isfinite(exact)).all()
    # Half a step, and what float16 itself rounds off.
    assert (np.abs(values.values - exact) <= 0.51 * steps + 2**-10 * np.abs(exact))[there].all()


def test_a_store_of_earlier_defaults_goes_on_unasked(
    demo_catalog: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Made with what used to be the defaults: extended, mended and resumed as it is; other weights are an error."""
    grown, whole = tmp_path / "grown.zarr", tmp_path / "whole.zarr"
    earlier = ("--weights", "nano", "--storage", "fp16")
    assert encode(demo_catalog, whole, SUMMER, *earlier) == Exit.DONE
    for when, said in ((MAY, earlier), (SUMMER, ()), (SUMMER, earlier)):
        assert encode(demo_catalog, grown, when, *said) == Exit.DONE
    assert hashes(whole) == hashes(grown) and xr.open_zarr(grown)["latent"].dtype == np.float16
    plan = grown / "commits" / "plan.json"
    frozen = json.loads(plan.read_text())["hash"]
    plan.unlink()
    assert encode(demo_catalog, grown, SUMMER, "--retry", "damaged") == Exit.DONE
    assert json.loads(plan.read_text())["hash"] == frozen and hashes(grown) == hashes(whole)
    for other, says in ((("--weights", "nano2"), "weights 'nano', asked 'nano2'"), (("--quality", "small"), "codes")):
        capsys.readouterr()
        assert encode(demo_catalog, grown, SUMMER, *other) == Exit.BAD_INPUT
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and says in lines[0] and str(grown) in lines[0], lines
    assert main(["verify", str(grown)]) == Exit.DONE
