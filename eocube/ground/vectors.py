"""Reads places out of files: GeoJSON, CSV and Parquet of points, and what GDAL knows by pyogrio."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from pyproj import CRS
from pyproj.exceptions import CRSError

from eocube.errors import InputError
from eocube.net.storage_options import filesystem_for, options_for, scheme_of

LONLAT = CRS.from_epsg(4326)
JSON_ENDINGS = (".geojson", ".json")
TABLE_ENDINGS = (".csv", ".parquet")
ACROSS, UP = ("lon", "longitude", "x", "easting"), ("lat", "latitude", "y", "northing")
"""Names of columns that hold a point's coordinates, in capitals too."""
MOST_BYTES = 2**30
"""A larger GeoJSON or CSV file is refused: it is read whole."""


@dataclass(frozen=True, slots=True)
class Features:
    """What a file holds: (N,) shapely geometries, their CRS, and what it says beside them, by column, (N,) each."""

    geometries: NDArray[np.object_]
    crs: CRS
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)


def read_features(
    path: str | PathLike[str], *, crs: str | None = None, storage_options: Mapping[str, Any] | None = None
) -> Features:
    """Places out of a file, by its ending.

    Args:
        path: GeoJSON, CSV (columns lon and lat, or x and y) or Parquet (so too, or GeoParquet): a path or any fsspec
            URL. Anything else that GDAL reads, such as a Shapefile or GeoPackage: a local path, by the extra `tables`.
        crs: that of a file that does not say its own: EPSG:32633, WKT, ... Without it lon and lat are in degrees.
        storage_options: of fsspec.

    Raises:
        InputError: no such file, one that cannot be read, or one whose CRS is not known.
    """
    path = fspath(path)
    stated = None if crs is None else parse_crs(crs)
    ending = Path(path.partition("?")[0]).suffix.lower()
    if ending in JSON_ENDINGS:
        return _geojson(path, _whole(path, storage_options), stated)
    if ending == ".csv":
        return _csv(path, _whole(path, storage_options), stated)
    if ending == ".parquet":
        return _parquet(path, stated, storage_options)
    return _by_gdal(path, stated)


def parse_crs(text: str) -> CRS:
    """A CRS as a user writes it; InputError for none."""
    try:
        return CRS.from_user_input(text)
    except CRSError:
        raise InputError(f"{text!r} is no coordinate reference system: write it as EPSG:32633") from None


def points_of(across: Any, up: Any, where: str) -> NDArray[np.object_]:
    """(N,) points of two columns of numbers. InputError for what is no number."""
    try:
        x, y = (np.asarray(values, np.float64) for values in (across, up))
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: coordinates are no numbers ({error})") from None
    return np.asarray(shapely.points(x, y), np.object_)


def coordinate_columns(names: Sequence[str], where: str) -> tuple[str, str]:
    """The columns that hold a point's coordinates. InputError where there are none."""
    low = {name.strip().lower(): name for name in names}
    for across, up in zip(ACROSS, UP, strict=True):
        if across in low and up in low:
            return low[across], low[up]
    raise InputError(f"{where} has the columns {', '.join(names) or 'none'}: name two of them lon and lat, or x and y")


def _whole(path: str, options: Mapping[str, Any] | None) -> bytes:
    filesystem, inside = filesystem_for(path, options_for(path, options))
    try:
        if filesystem.size(inside) > MOST_BYTES:
            raise InputError(f"{path} is larger than {MOST_BYTES // 2**20} MiB: write it as Parquet")
        data: bytes = filesystem.cat_file(inside)
        return data
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None


def _geojson(path: str, data: bytes, stated: CRS | None) -> Features:
    try:
        document = json.loads(data)
        found = list(_members(document))
        geometries = np.array(
            [None if g is None else shapely.from_geojson(json.dumps(g)) for g, _ in found] + [None], np.object_
        )[:-1]
        named = document.get("crs")
        name = named["properties"]["name"] if isinstance(named, Mapping) else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, shapely.GEOSException) as error:
        raise InputError(f"{path} is no GeoJSON: {str(error)[:120]}") from None
    own = None if name is None else parse_crs(str(name))
    keys = dict.fromkeys(key for _, properties in found for key in properties)
    columns = {str(key): _column([properties.get(key) for _, properties in found]) for key in keys}
    return Features(geometries, own or stated or LONLAT, columns)


def _members(document: Any) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    """(geometry, properties) of what a GeoJSON document holds."""
    kind = document["type"]
    if kind == "FeatureCollection":
        for feature in document["features"]:
            yield from _members(feature)
    elif kind == "Feature":
        named = {"id": document["id"]} if "id" in document else {}
        yield document["geometry"], named | dict(document.get("properties") or {})
    else:
        yield document, {}


def _column(values: list[Any]) -> NDArray[Any]:
    """Values as one typed array where they are all of a kind; lists and objects as their JSON."""
    kinds = {type(v) for v in values}
    if kinds <= {int} and all(abs(v) < 2**63 for v in values):
        return np.array(values, np.int64)
    if kinds <= {int, float}:
        return np.array(values, np.float64)
    if kinds <= {bool}:
        return np.array(values, np.bool_)
    flat = [json.dumps(v) if isinstance(v, dict | list) else v for v in values]
    if len({type(v) for v in flat if v is not None}) > 1:
        flat = [None if v is None else str(v) for v in flat]
    found = np.empty(len(flat), np.object_)
    found[:] = flat
    return found


def _csv(path: str, data: bytes, stated: CRS | None) -> Features:
    import io

    import pandas as pd

    try:
        table = pd.read_csv(io.BytesIO(data), skipinitialspace=True)
    except (ValueError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no CSV: {' '.join(str(error).split())[:120]}") from None
    return of_table(path, {str(name): table[name].to_numpy() for name in table.columns}, stated)


def of_table(path: str, columns: Mapping[str, NDArray[Any]], stated: CRS | None) -> Features:
    """Points out of columns, two of which are coordinates; x and y need a CRS."""
    across, up = coordinate_columns(list(columns), path)
    if stated is None and across.strip().lower() in ("x", "easting"):
        raise InputError(
            f"{path} has the columns {across} and {up} and no CRS: say --crs EPSG:..., or name them lon lat"
        )
    rest = {name: values for name, values in columns.items() if name not in (across, up)}
    return Features(points_of(columns[across], columns[up], path), stated or LONLAT, rest)


def _parquet(path: str, stated: CRS | None, options: Mapping[str, Any] | None) -> Features:
    pyarrow = needed("pyarrow", "Parquet files")
    parquet = needed("pyarrow.parquet", "Parquet files")
    filesystem, inside = filesystem_for(path, options_for(path, options))
    try:
        table = parquet.read_table(inside, filesystem=filesystem)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"{path} is no Parquet file: {str(error)[:120]}") from None
    columns = {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
    said = (table.schema.metadata or {}).get(b"geo")
    if said is None:
        return of_table(path, columns, stated)
    try:
        geo = json.loads(said)
        name = geo["primary_column"]
        about = geo["columns"][name]
        crs = CRS.from_json_dict(about["crs"]) if about.get("crs") else LONLAT
        geometries = np.asarray(shapely.from_wkb(columns.pop(name)), np.object_)
    except (ValueError, KeyError, TypeError, CRSError, shapely.GEOSException) as error:
        raise InputError(f"{path}: its GeoParquet metadata cannot be used: {str(error)[:120]}") from None
    return Features(geometries, crs, columns)


def _by_gdal(path: str, stated: CRS | None) -> Features:
    if scheme_of(path):
        raise InputError(f"{path}: files of this kind are read from this machine alone: copy it here, or as GeoJSON")
    if not Path(path).exists():
        raise InputError(f"{path}: there is no such file")
    pyogrio = needed("pyogrio", f"{Path(path).suffix or 'such'} files")
    try:
        layers = [str(name) for name, kind in pyogrio.list_layers(path) if kind is not None]
        if len(layers) > 1:
            raise InputError(f"{path} has the layers {', '.join(layers)}: write the one that is meant as GeoJSON")
        about, _, geometry, values = pyogrio.raw.read(path, force_2d=True)
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {' '.join(str(error).split())[:160]}") from None
    if geometry is None:
        raise InputError(f"{path} holds no geometry")
    crs = parse_crs(about["crs"]) if about["crs"] else stated
    if crs is None:
        raise InputError(
            f"{path} says no CRS (a Shapefile's lies beside it as .prj): say --crs, or write it as GeoJSON"
        )
    columns = dict(zip(map(str, about["fields"]), values, strict=True))
    return Features(np.asarray(shapely.from_wkb(geometry), np.object_), crs, columns)


def needed(module: str, what: str) -> Any:
    """A package of the extra `tables`. InputError, which says how to get it, where it is not there."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(f"{what} need {module}, which is not installed: pip install 'eocube[tables]'") from None
