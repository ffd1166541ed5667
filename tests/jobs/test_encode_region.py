"""The main job from the command line: bad input, a real region, resumption, the same bytes, failed reads, Ctrl-C."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from eocube.cli import encode_main, main
from eocube.run.request import Exit

ROOT = Path(__file__).resolve().parents[2]
PLACE = ("-48.117", "-25.326", "-48.095", "-25.306")
DATES = "2021-07-01/2021-07-31"
FILL = -32768
"""What is stored where no window is ok."""


def arguments(out: Path, catalog: str | Path, **changes: tuple[str, ...]) -> list[str]:
    """A request that would do, with some of its options changed."""
    options: dict[str, tuple[str, ...]] = {
        "--bbox": PLACE,
        "--datetime": (DATES,),
        "--sensor": ("S2L2A",),
        "--catalog": (str(catalog),),
        "--out": (str(out),),
    }
    options.update(changes)
    return [word for flag, values in options.items() for word in (flag, *values)]


BAD = {
    "latitude out of range": ({"--bbox": ("-48", "-95", "-47", "-94")}, "latitude"),
    "swapped": ({"--bbox": ("-25.3", "-148.1", "-25.2", "-148.0")}, "swap"),
    "south above north": ({"--bbox": ("-48.1", "-25.3", "-48.0", "-25.4")}, "north"),
    "west above east": ({"--bbox": ("20", "40", "10", "41")}, "west"),
    "not a number": ({"--bbox": ("a", "b", "c", "d")}, "not a number"),
    "three numbers": ({"--bbox": ("1", "2", "3")}, "four numbers"),
    "empty box": ({"--bbox": ("-48.1", "-25.3", "-48.1", "-25.3")}, "bbox"),
    "nan": ({"--bbox": ("nan", "-25.3", "-48.1", "-25.2")}, "finite"),
    "sensor": ({"--sensor": ("S2L9A",)}, "S2L2A"),
    "band": ({"--bands": ("B02,B99",)}, "B99"),
    "catalogue": ({"--catalog": ("nowhere/catalog.json",)}, "nowhere/catalog.json"),
    "catalogue is not STAC": ({"--catalog": (__file__,)}, Path(__file__).name),
    "catalogue's name": ({"--catalog": ("earth-serach",)}, "earth-search"),
    "no scenes": ({"--datetime": ("1990-01-01/1990-02-01",)}, "no scenes found"),
    "no such date": ({"--datetime": ("2021-13-45/2021-14-01",)}, "2021-13-45"),
    "dates reversed": ({"--datetime": ("2021-08-01/2021-07-01",)}, "2021-08-01"),
    "weights": ({"--weights": ("nowhere.safetensors",)}, "nowhere.safetensors"),
    "weights that are none": ({"--weights": (__file__,)}, Path(__file__).name),
    "precision": ({"--precision": ("fp12",)}, "fp16"),
    "storage": ({"--storage": ("fp12",)}, "int8"),
    "quality of what has none": ({"--storage": ("fp16",), "--quality": ("small",)}, "fp16"),
    "quality": ({"--storage": ("codes",), "--quality": ("tiny",)}, "near-lossless"),
    "unit timeout": ({"--unit-timeout": ("0",)}, "--unit-timeout is a number of seconds above 0"),
    "resolution": ({"--resolution": ("0",)}, "resolution"),
    "cloud": ({"--max-cloud": ("140",)}, "100"),
    "retry": ({"--retry": ("nodata",)}, "read_failed"),
    "target": ({"--out": ("/proc/nowhere/cube.zarr",)}, "/proc/nowhere"),
    "an option that is none": ({"--bandz": ("B02",)}, "bandz"),
    "engine": ({"--engine": ("locl",)}, "did you mean local?"),
    "engine that cannot": ({"--engine": ("local",), "--actors": ("2",)}, "--actors 2 asks for actors"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_exit_2_nothing_written(
    case: str, tmp_path: Path, demo_catalog: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from eocube.demo.catalogue import DEMO_BBOX, DEMO_DATETIME

    changes, expected = BAD[case]
    out = tmp_path / "cube.zarr"
    good = {"--bbox": tuple(str(v) for v in DEMO_BBOX), "--datetime": (DEMO_DATETIME,)}
    before = sorted(p.name for p in tmp_path.iterdir())
    try:
        code = encode_main(arguments(out, demo_catalog, **{**good, **changes}))
    except SystemExit as end:
        code = int(end.code or 0)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert code == Exit.BAD_INPUT
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    assert expected.casefold() in lines[0].casefold()
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_weights_not_trained_for_the_sensor(tmp_path: Path, demo_catalog: Path, capsys: pytest.CaptureFixture[str]):
    code = encode_main(arguments(tmp_path / "cube.zarr", demo_catalog, **{"--sensor": ("S1GRD",)}))
    error = capsys.readouterr().err
    assert code == Exit.BAD_INPUT and "S1GRD" in error and "S1RTC" in error
    assert not (tmp_path / "cube.zarr").exists()


HEAVY = ("xarray", "dask", "pandas", "scipy", "ray", "matplotlib", "zarr")


@pytest.mark.slow
def test_a_plan_is_made_without_what_only_cubes_and_clusters_need(demo_catalog: Path) -> None:
    from eocube.demo.catalogue import DEMO_BBOX, DEMO_DATETIME

    words = ["--bbox", *map(str, DEMO_BBOX), "--datetime", DEMO_DATETIME, "--catalog", str(demo_catalog), "--plan"]
    code = (
        "import sys\nfrom eocube.cli import encode_main\nassert encode_main(sys.argv[1:]) == 0\n"
        f"found = set({HEAVY}) & set(sys.modules)\nassert not found, found"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def demo_cube(tmp_path_factory: pytest.TempPathFactory, demo_catalog: Path) -> Path:
    """The demonstration region, encoded once."""
    from eocube.demo.catalogue import DEMO_BBOX, DEMO_DATETIME

    out = tmp_path_factory.mktemp("cube") / "cube.zarr"
    box = tuple(str(v) for v in DEMO_BBOX)
    code = encode_main(arguments(out, demo_catalog, **{"--bbox": box, "--datetime": (DEMO_DATETIME,)}))
    assert code == Exit.DONE
    return out


def test_opens_in_plain_xarray_without_eocube(demo_cube: Path) -> None:
    code = (
        "import sys, xarray as xr; ds = xr.open_zarr(sys.argv[1]); l = ds.latent;"
        "assert l.dims == ('time', 'channel', 'y', 'x') and l.dtype == 'int16', l;"
        "assert ds.scale.dims == ds.offset.dims == ('channel',) and (ds.scale > 0).all(), ds;"
        "v = (l * ds.scale + ds.offset).where(l != l.encoding.get('_FillValue', -32768));"
        "assert 0.1 < float(v.std()) < 100 and abs(float(v.mean())) < 10, v;"
        "assert not any(m.split('.')[0] == 'eocube' for m in sys.modules);"
        "assert 'ok' in ds.status.attrs['flag_meanings'].split();"
        "print(float(v.notnull().mean()))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(demo_cube)], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    assert 0 < float(done.stdout) < 1


def test_decoded_pixels_lie_on_the_scenes_ground(demo_cube: Path) -> None:
    """A decoded pixel's coordinates equal the pixel centre that rasterio gives for the same ground, within 1e-6 m."""
    import rasterio
    import rioxarray  # noqa: F401

    import eocube
    from eocube.plan.plan import Plan

    decoded = eocube.open(str(demo_cube)).eocube.decode(bands=["B04", "B03", "B02"])
    plan = Plan.from_json((demo_cube / "commits" / "plan.json").read_text())
    source = next(s for s in plan.scenes[0].sources if s.band == "B04")
    with rasterio.open(source.href) as file:
        assert decoded.rio.crs == file.crs
        for row, col in ((100, 130), (200, 77)):
            x, y = float(decoded.x[col]), float(decoded.y[row])
            line, sample = file.index(x, y)
            assert np.abs(np.subtract(file.xy(line, sample), (x, y))).max() < 1e-6


def test_the_store_holds_what_the_encoder_gives(demo_cube: Path) -> None:
    """A window encoded through the store equals a direct `vae.encode` of the same pixels, to its own precision and half
    a step of its codes."""
    import torch

    from eocube.plan.plan import Plan
    from eocube.read.reader import WindowReader
    from model.weights import load_weights

    plan = Plan.from_json((demo_cube / "commits" / "plan.json").read_text())
    assert plan.product.network == "nano2" and plan.product.storage.name == "codes" == plan.request["storage"]
    vae = load_weights("nano2").eval()
    lattice = plan.grid.lattice
    ds = xr.open_zarr(demo_cube, mask_and_scale=False)
    window = next(w for w in plan.grid.requested_windows() if ds.status.values[(0, *plan.grid.place_in_status(w))] == 1)
    pixels = WindowReader(plan.sensor, lattice).read(plan.scenes_of(0, window), window)
    x = np.empty((1, len(plan.sensor.bands), lattice.window_px, lattice.window_px))
    for sampling, members in plan.sensor.groups(lattice.resolution).items():
        group = torch.from_numpy(pixels.groups[sampling].astype("float64"))[None]
        margin = (group.shape[-1] * sampling - lattice.window_px * lattice.resolution) / 2
        at = ((np.arange(lattice.window_px) + 0.5) * lattice.resolution + margin) / sampling - 0.5
        low = np.clip(np.floor(at).astype(int), 0, group.shape[-1] - 2)
        weight = at - low
        g = group.numpy()[0]
        rows = g[:, low] * (1 - weight)[None, :, None] + g[:, low + 1] * weight[None, :, None]
        x[0, list(members)] = rows[:, :, low] * (1 - weight) + rows[:, :, low + 1] * weight
    bands = plan.sensor.bands
    mean, std = (np.array([getattr(b, k) for b in bands])[:, None, None] for k in ("mean", "std"))
    z = ((x * plan.sensor.scale + plan.sensor.offset) * plan.sensor.unit_factor - mean) / std
    with torch.inference_mode():
        latents = vae.encode(torch.from_numpy(z).float(), torch.tensor([b.wavelength for b in bands])).mean[0].numpy()
    inner = slice(lattice.halo, lattice.halo + lattice.core)
    wy, wx = (k * lattice.core for k in plan.grid.place_in_status(window))
    stored = plan.product.storage.unpack(ds.latent.values[0, :, wy : wy + lattice.core, wx : wx + lattice.core])
    direct = latents[:, inner, inner]
    step = ds.scale.values[:, None, None]
    limit = {"fp32": 1e-3, "bf16": 3e-2}[plan.product.precision]
    assert (np.abs(stored - direct) <= 2 * limit * np.abs(direct).max() + 0.501 * step).all()
    rounding = np.linalg.norm(np.broadcast_to(step, direct.shape)) / np.sqrt(12)
    assert np.linalg.norm(stored - direct) < np.hypot(limit * np.linalg.norm(direct), 1.05 * rounding)


def test_the_same_command_resumes_and_does_nothing_again(
    demo_cube: Path, demo_catalog: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from eocube.demo.catalogue import DEMO_BBOX, DEMO_DATETIME

    shards = {p: p.stat().st_mtime_ns for p in (demo_cube / "latent").rglob("*") if p.is_file()}
    box = tuple(str(v) for v in DEMO_BBOX)
    code = encode_main(arguments(demo_cube, demo_catalog, **{"--bbox": box, "--datetime": (DEMO_DATETIME,)}))
    assert code == Exit.DONE
    assert {p: p.stat().st_mtime_ns for p in (demo_cube / "latent").rglob("*") if p.is_file()} == shards


def test_another_space_or_ground_is_refused_with_the_difference(
    demo_cube: Path, demo_catalog: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from eocube.demo.catalogue import DEMO_BBOX, DEMO_DATETIME

    box = tuple(str(v) for v in DEMO_BBOX)
    good = {"--bbox": box, "--datetime": (DEMO_DATETIME,)}
    assert encode_main(arguments(demo_cube, demo_catalog, **good, **{"--bands": ("B02,B03",)})) == Exit.BAD_INPUT
    assert "bands has 12, asked 2" in capsys.readouterr().err
    assert encode_main(arguments(demo_cube, demo_catalog, **good, **{"--resolution": ("20",)})) == Exit.BAD_INPUT
    assert "resolution" in capsys.readouterr().err


def test_two_boxes_over_the_same_place_give_the_same_chunks(
    demo_cube: Path, demo_catalog: Path, tmp_path: Path
) -> None:
    from eocube.demo.catalogue import DEMO_BBOX, DEMO_DATETIME

    west, south, east, north = DEMO_BBOX
    part = (west + 0.35 * (east - west), south, east, south + 0.6 * (north - south))
    out = tmp_path / "part.zarr"
    box = tuple(str(v) for v in part)
    assert encode_main(arguments(out, demo_catalog, **{"--bbox": box, "--datetime": (DEMO_DATETIME,)})) == Exit.DONE
    a, b = (xr.open_zarr(p, mask_and_scale=False).latent for p in (demo_cube, out))
    a, b = xr.align(a, b, join="inner")
    a, b = a.values, b.values
    both = (a != FILL).all(1) & (b != FILL).all(1)
    assert both.sum() >= 2 * 24 * 24
    assert (a == b).all(1)[both].all()


@pytest.mark.slow
def test_a_source_that_cannot_be_read_fails_its_windows_and_can_be_retried(
    demo_catalog: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from eocube.demo.catalogue import DEMO_BBOX, DEMO_DATETIME
    from eocube.plan.plan import Plan

    catalog = tmp_path / "catalog"
    shutil.copytree(demo_catalog.parent, catalog)
    out = tmp_path / "cube.zarr"
    box = tuple(str(v) for v in DEMO_BBOX)
    request = arguments(out, catalog / demo_catalog.name, **{"--bbox": box, "--datetime": (DEMO_DATETIME,)})
    assert encode_main([*request, "--plan"]) == Exit.DONE
    assert not out.exists()
    broken = sorted(catalog.rglob("*B05*.tif"))[0]
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 3])
    capsys.readouterr()
    assert encode_main(request) == Exit.RETRYABLE
    said = capsys.readouterr().err
    plan = Plan.from_json((out / "commits" / "plan.json").read_text())
    item = next(s for s in plan.scenes if any(Path(b.href) == broken for b in s.sources))
    assert item.id in said and "rededge1" in said and "--retry read_failed" in said
    ds = xr.open_zarr(out, mask_and_scale=False)
    meanings = ds.status.attrs["flag_meanings"].split()
    failed = ds.status.values == meanings.index("read_failed")
    assert failed.any() and (ds.status.values == meanings.index("ok")).any()
    t, wy, wx = (int(k[0]) for k in np.nonzero(failed))
    assert (ds.latent.values[t, :, 24 * wy : 24 * wy + 24, 24 * wx : 24 * wx + 24] == FILL).all()
    assert main(["status", str(out)]) == Exit.RETRYABLE
    broken.write_bytes(whole)
    assert encode_main([*request, "--retry", "read_failed"]) == Exit.DONE
    assert main(["verify", str(out), "--json"]) == Exit.DONE


def test_commands_read_the_cube(demo_cube: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import rasterio

    assert main(["info", str(demo_cube), "--json"]) == Exit.DONE
    info = json.loads(capsys.readouterr().out)
    assert info["sensor"] == "S2L2A" and len(info["times"]) == 2 and len(info["space_id"]) == 16
    assert main(["status", str(demo_cube), "--json"]) == Exit.DONE
    status = json.loads(capsys.readouterr().out)
    assert status["windows"]["ok"] > 0 and status["percent_done"] == 100.0
    tif = tmp_path / "rgb.tif"
    assert main(["decode", str(demo_cube), "--out", str(tif), "--bands", "B04,B03,B02"]) == Exit.DONE
    with rasterio.open(tif) as file:
        assert file.count == 3 and file.descriptions == ("B04", "B03", "B02")
        assert np.nanmedian(file.read(1)) > 0
    assert main(["info", str(tmp_path / "nowhere.zarr")]) == Exit.BAD_INPUT


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "seconds"), [("local", 0.5), ("ray", 4.0)])
def test_ctrl_c_leaves_a_store_that_resumes(
    engine: str, seconds: float, demo_cube: Path, demo_catalog: Path, tmp_path: Path
) -> None:
    from eocube.demo.catalogue import DEMO_BBOX, DEMO_DATETIME

    out = tmp_path / "cube.zarr"
    box = tuple(str(v) for v in DEMO_BBOX)
    request = arguments(out, demo_catalog, **{"--bbox": box, "--datetime": (DEMO_DATETIME,)})
    command = [sys.executable, str(ROOT / "jobs" / "encode_region.py"), *request, "--engine", engine]
    run = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while run.poll() is None and not (out / "commits" / "plan.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(seconds)
    if run.poll() is None:
        os.kill(run.pid, signal.SIGINT)
    _, said = run.communicate(timeout=120)
    assert run.returncode in (Exit.DONE, Exit.RETRYABLE), said
    assert encode_main(request) == Exit.DONE
    a, b = (xr.open_zarr(p, mask_and_scale=False) for p in (demo_cube, out))
    for name in ("latent", "status", "valid_percent", "cloud_percent"):
        assert a[name].values.tobytes() == b[name].values.tobytes(), name
