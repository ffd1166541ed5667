"""What a store says of its ground is valid by the Zarr conventions that it claims, and its attributes follow CF."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import xarray as xr

from eocube.store.layout import CONVENTIONS
from tests.eocube.cubes import Made, make_plan, make_store, make_weights

SCHEMAS = Path(__file__).parents[2] / "data" / "conventions"
PROJ = {"proj:code": r"[A-Z]+:[0-9]+", "proj:wkt2": r".+", "proj:projjson": r".+"}
"""Of github.com/zarr-conventions/proj, schema.json: exactly one of these; the code by this form."""
STANDARD_NAMES = {"time", "projection_x_coordinate", "projection_y_coordinate", "status_flag"}
"""Those of CF's table that stores use."""
UNITS = {"1", "m", "dB", "rad", "percent", "um"}
"""Units that udunits knows (dB since CF 1.9's appendix on units that are no physical quantities)."""


@pytest.fixture(scope="module", params=["fp16", "codes"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("conventions")
    plan = make_plan(make_weights(folder / "tiny.safetensors"), storage=request.param)
    return make_store(str(folder / "cube.zarr"), plan)


def nodes(made: Made) -> dict[str, dict[str, Any]]:
    """Every node's metadata by its path."""
    root = Path(made.url)
    return {path.parent.relative_to(root).as_posix(): json.loads(path.read_text()) for path in root.rglob("zarr.json")}


def test_every_node_on_the_ground_is_valid_by_the_conventions_it_claims(made: Made) -> None:
    validator = jsonschema.Draft7Validator(json.loads((SCHEMAS / "spatial-v0.1.json").read_text()))
    claimed = 0
    for path, node in nodes(made).items():
        attributes = node["attributes"]
        names = {one["name"] for one in attributes.get("zarr_conventions", ())}
        if not names:
            assert not [key for key in attributes if key.startswith(("spatial:", "proj:"))], path
            continue
        claimed += 1
        assert names == {"spatial", "proj"}, path
        validator.validate(node)
        (key,) = [key for key in PROJ if key in attributes]
        assert re.fullmatch(PROJ[key], attributes[key]), path
        if node["node_type"] == "array":
            at = [node["dimension_names"].index(name) for name in attributes["spatial:dimensions"]]
            assert attributes["spatial:shape"] == [node["shape"][k] for k in at], path
    assert claimed >= 4


def test_the_schema_refuses_what_is_wrong() -> None:
    validator = jsonschema.Draft7Validator(json.loads((SCHEMAS / "spatial-v0.1.json").read_text()))
    node = {"zarr_format": 3, "node_type": "array", "attributes": {"zarr_conventions": CONVENTIONS}}
    with pytest.raises(jsonschema.ValidationError, match="spatial:dimensions"):
        validator.validate(node)


def test_transform_and_axes_say_the_same_ground(made: Made) -> None:
    ds = xr.open_zarr(made.url, chunks=None)
    for name, (down, across) in {"latent": ("y", "x"), "status": ("wy", "wx")}.items():
        a, b, c, d, e, f = ds[name].attrs["spatial:transform"]
        assert b == d == 0
        np.testing.assert_allclose(ds[across].values, c + a * (np.arange(ds.sizes[across]) + 0.5))
        np.testing.assert_allclose(ds[down].values, f + e * (np.arange(ds.sizes[down]) + 0.5))


def test_attributes_follow_cf(made: Made) -> None:
    """By hand what a checker would say first: CF 1.11, sections 2.6.1, 3.1, 3.3, 3.5, 4, 5.6 and 5.7."""
    ds = xr.open_zarr(made.url, chunks=None, decode_cf=False)
    assert re.fullmatch(r"CF-1\.\d+", ds.attrs["Conventions"])
    axes: list[str] = []
    for name, variable in ds.variables.items():
        attrs = variable.attrs
        assert "long_name" in attrs or "standard_name" in attrs or "grid_mapping_name" in attrs, name
        assert isinstance(attrs.get("long_name", ""), str), name
        if "standard_name" in attrs:
            assert attrs["standard_name"] in STANDARD_NAMES, name
        if "units" in attrs:
            assert attrs["units"] in UNITS or re.match(r"seconds since \d{4}-", attrs["units"]), (name, attrs["units"])
        if "flag_values" in attrs:
            assert len(attrs["flag_values"]) == len(attrs["flag_meanings"].split()) == len(set(attrs["flag_values"]))
            assert np.isin(variable.values, attrs["flag_values"]).all(), name
        if "grid_mapping" in attrs:
            assert "grid_mapping_name" in ds[attrs["grid_mapping"]].attrs, name
        axes += [attrs["axis"]] if "axis" in attrs else []
        assert re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", str(name)), name
    assert sorted(axes) == ["T", "X", "Y"], "one axis of each kind"
    assert ds["time"].attrs["calendar"] == "proleptic_gregorian"
    for name in ds.attrs["coordinates"].split():
        assert name in ds.variables, name
