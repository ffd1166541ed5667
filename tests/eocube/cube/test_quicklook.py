"""Quicklooks: what they show, that they can be read back as pictures, and what bad input gets."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from matplotlib.image import imread
from matplotlib.text import Text

import eocube
from eocube.cube.colours import Composite, Stretch, composite
from eocube.cube.quicklook import MAX_CORES, draw, quicklook
from eocube.errors import InputError
from eocube.sensors import get_sensor
from eocube.store.receipts import State
from tests.eocube.cubes import CORE, Made, make_plan, make_store, make_weights

BAD = {(0, 1, 2): State.CLOUDY, (0, 0, 3): State.READ_FAILED}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("report")
    return make_store(str(folder / "cube.zarr"), make_plan(make_weights(folder / "tiny.safetensors")), BAD)


@pytest.fixture(scope="module")
def ds(made: Made) -> xr.Dataset:
    return eocube.open(made.url)


@pytest.fixture(scope="module")
def source(ds: xr.Dataset) -> xr.DataArray:
    """The decoded pixels and a little noise, over more ground than the cube has and bands in another order."""
    decoded = ds.eocube.decode(crop=False).isel(time=0).compute()
    noise = np.random.default_rng(0).normal(0, 0.01, decoded.shape)
    return (decoded.fillna(0.1) + noise).isel(band=[3, 2, 1, 0]).astype("float32")


def titles(figure: Any) -> list[str]:
    return [ax.get_title("left") for ax in figure.axes]


def text_of(figure: Any) -> str:
    return "\n".join(t.get_text() for ax in figure.axes for t in ax.texts)


# -- colours


def pixels(count: int, shape: tuple[int, int] = (4, 5)) -> np.ndarray:
    return np.arange(count, dtype="float32")[:, None, None] + np.zeros(shape, "float32")


@pytest.mark.parametrize(
    ("sensor", "bands", "label", "first"),
    [
        ("S2L2A", None, "true colour B04, B03, B02", [3, 2, 1]),
        ("S2L1C", None, "true colour B04, B03, B02", [3, 2, 1]),
        ("S2L2A", ("B03", "B04", "B08"), "false colour B08, B04, B03", [2, 1, 0]),
        ("S2L2A", ("B05", "B11", "B12", "B09"), "bands B05, ", [0, 1, 3]),
        ("S2L2A", ("B08",), "band B08", [0, 0, 0]),
        ("S1RTC", None, "VV, VH, VV/VH", [0, 1, -1]),
        ("S1RTC", ("VH",), "band VH", [0, 0, 0]),
    ],
)
def test_composites(sensor: str, bands: tuple[str, ...] | None, label: str, first: list[int]) -> None:
    s = get_sensor(sensor) if bands is None else get_sensor(sensor).subset(bands)
    shown = composite(pixels(len(s.bands)), s.band_names, s)
    assert shown.label.startswith(label)
    if "B09" not in s.band_names or bands is None:
        assert shown.layers[:, 0, 0].tolist() == first


def test_one_stretch_makes_two_pictures_comparable() -> None:
    rng = np.random.default_rng(1)
    truth = Composite(rng.uniform(0.1, 0.3, (3, 50, 50)).astype("float32"), "", joint=True)
    stretch = Stretch.of(truth)
    assert len(set(stretch.low)) == len(set(stretch.high)) == 1
    brighter = stretch(truth.layers + 0.05)[..., :3] - stretch(truth.layers)[..., :3]
    assert brighter.mean() > 0.1
    layers = truth.layers.copy()
    layers[1, 2, 3] = np.nan
    colours = stretch(layers)
    assert colours[2, 3, 3] == 0 and (np.delete(colours[..., 3].ravel(), 2 * 50 + 3) == 1).all()
    assert np.isfinite(colours).all() and colours.min() >= 0 and colours.max() <= 1
    assert np.isfinite(Stretch.of(Composite(np.full((3, 2, 2), np.nan, "float32"), "", True)).low).all()


# -- pictures


def test_a_quicklook_with_its_source_has_every_panel(ds: xr.Dataset, source: xr.DataArray, tmp_path: Path) -> None:
    path = ds.eocube.quicklook(tmp_path / "q.png", time=0, source=source)
    image = imread(path)
    assert image.shape[1] == 2000 and 900 < image.shape[0] < 2200
    assert image[..., :3].std() > 0.1
    figure = draw(ds, source=source)
    starts = [
        "Source, true colour",
        "Decoded, true colour",
        "Error, RMSE over 4 bands",
        "Latents, 3",
        "Windows by state (3 x 4",
    ]
    shown = titles(figure)
    assert all(any(title.startswith(start) for title in shown) for start in starts)
    title = figure.get_suptitle()
    assert "S2L2A" in title and "2023-08-15 09:57 UTC" in title and "48.1" in title and "11.5" in title
    text = text_of(figure)
    assert "PSNR" in text and "(range 1)" in text and "0.01" in text and ds.eocube.space_id in text
    labels = [t.get_text() for ax in figure.axes if ax.get_legend() for t in ax.get_legend().get_texts()]
    assert labels == ["ok 10", "cloudy 1", "read failed 1"]


def test_the_source_may_be_an_array_or_a_function(ds: xr.Dataset, source: xr.DataArray) -> None:
    same = source.sel(band=list(ds.eocube.bands)).sel(x=ds.eocube.decode().x, y=ds.eocube.decode().y)
    asked: list[xr.DataArray] = []

    def read(decoded: xr.DataArray) -> xr.DataArray:
        asked.append(decoded)
        return source

    for given in (same.values, read, source.expand_dims("time")):
        assert text_of(draw(ds, source=given)) == text_of(draw(ds, source=source))
    assert asked[0].dims == ("band", "y", "x")


def test_without_a_source_there_is_no_error(ds: xr.Dataset) -> None:
    figure = ds.eocube.quicklook(time=1)
    assert not any(title.startswith(("Source", "Error")) for title in titles(figure))
    assert "PSNR" not in text_of(figure) and "2023-08-20" in figure.get_suptitle()


def _is_title(artist: Any, ax: Any) -> bool:
    return isinstance(artist, Text) and artist.get_text() == ax.get_title("left")


def test_no_text_overlaps(ds: xr.Dataset, source: xr.DataArray) -> None:
    for given in (source, None):
        figure = draw(ds, source=given)
        figure.canvas.draw()
        renderer = figure.canvas.get_renderer()
        boxes = []
        for ax in figure.axes:
            parts = [*ax.texts, ax.xaxis.label, ax.yaxis.label, *(c for c in ax.get_children() if _is_title(c, ax))]
            for axis, (low, high), at in ((ax.xaxis, ax.get_xlim(), 0), (ax.yaxis, ax.get_ylim(), 1)):
                labels = axis.get_ticklabels() if ax.axison else []
                parts += [label for label in labels if low <= label.get_position()[at] <= high]
            legend = ax.get_legend()
            parts += [] if legend is None else legend.get_texts()
            boxes += [(p.get_text(), p.get_window_extent(renderer)) for p in parts if p.get_text() and p.get_visible()]
        width, height = figure.canvas.get_width_height()
        for number, (text, box) in enumerate(boxes):
            assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, f"{text!r} is cut off"
            for other, there in boxes[number + 1 :]:
                lapped = min(box.x1, there.x1) - max(box.x0, there.x0) > 1 and (
                    min(box.y1, there.y1) - max(box.y0, there.y0) > 1
                )
                assert not lapped, f"{text!r} lies over {other!r}"


def test_of_a_large_cube_the_fullest_part_is_drawn(
    ds: xr.Dataset, monkeypatch: pytest.MonkeyPatch, source: xr.DataArray
) -> None:
    assert MAX_CORES == 8
    monkeypatch.setattr("eocube.cube.quicklook.MAX_CORES", 2)
    figure = draw(ds, source=source)
    shown = next(ax for ax in figure.axes if ax.get_title("left").startswith("Decoded"))
    left, right = shown.get_xlim()
    bottom, top = shown.get_ylim()
    assert (right - left, top - bottom) == (2 * CORE * 80, 2 * CORE * 80)
    states = next(ax for ax in figure.axes if ax.get_title("left").startswith("Windows"))
    assert (states.get_xlim(), states.get_ylim()) == (shown.get_xlim(), shown.get_ylim()), "on the same ground"
    status = ds.status.isel(time=0).sel(wx=slice(left, right), wy=slice(top, bottom))
    assert (status == State.OK).all()


def test_a_part_without_states_or_time_is_drawn(ds: xr.Dataset, tmp_path: Path) -> None:
    part = ds.isel(time=1)[["latent"]]
    assert Path(quicklook(part, tmp_path / "part.png")).stat().st_size > 10_000


def test_pictures_leave_pyplot_alone(ds: xr.Dataset) -> None:
    before = "matplotlib.pyplot" in sys.modules
    draw(ds)
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_bad_input_is_said_in_one_line(ds: xr.Dataset, source: xr.DataArray, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no time step 2: the cube has 0 to 1"):
        ds.eocube.quicklook(tmp_path / "q.png", time=2)
    with pytest.raises(InputError, match=r"source of shape \(4, 3, 3\)"):
        ds.eocube.quicklook(tmp_path / "q.png", source=np.zeros((4, 3, 3)))
    with pytest.raises(InputError, match="cannot be written"):
        ds.eocube.quicklook(tmp_path / "no" / "such" / "folder.png")
