"""Writes tables of points part by part: GeoParquet, CSV or GeoJSON, by the name's ending."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import shapely
from numpy.typing import NDArray

from eocube.cube.staging import staged
from eocube.errors import InputError
from eocube.ground.vectors import LONLAT, needed

ENDINGS = (".parquet", ".csv", ".geojson")
Rows = Mapping[str, NDArray[Any]]


class Writer(Protocol):
    """Takes parts of one table: the same columns each time."""

    def write(self, rows: Rows) -> None: ...
    def close(self) -> None: ...


def check_ending(out: str) -> None:
    """InputError, before anything is read, for a table that cannot be written."""
    if _ending(out) not in ENDINGS:
        raise InputError(f"--out {out}: give a name ending in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}")
    if _ending(out) == ".parquet":
        needed("pyarrow", "Parquet files")


def write_table(out: str, parts: Iterable[Rows], storage_options: Mapping[str, Any] | None = None) -> int:
    """Write a table with the columns lon and lat, part by part, whole or not at all. Returns how many rows it has.

    GeoParquet has the points as WKB in a column `geometry` and a row group a part; CSV and GeoJSON leave out what is
    NaN. `out` is a path or any fsspec URL.
    """
    check_ending(out)
    count = 0
    with staged(out, storage_options) as path:
        kinds: dict[str, Callable[[Path], Writer]] = {".parquet": _Parquet, ".csv": _Csv, ".geojson": _GeoJson}
        made = kinds[_ending(out)](path)
        try:
            for rows in parts:
                made.write(rows)
                count += len(rows["lon"])
        finally:
            made.close()
    return count


def _ending(out: str) -> str:
    return Path(out.partition("?")[0]).suffix.lower()


class _Parquet:
    def __init__(self, path: Path) -> None:
        self._path, self._writer, self._schema = path, None, None  # type: Path, Any, Any

    def write(self, rows: Rows) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {name: _arrow(pa, values) for name, values in rows.items()}
        points = shapely.to_wkb(shapely.points(rows["lon"], rows["lat"]))
        columns["geometry"] = pa.array(points, pa.binary())
        table = pa.table(columns)
        if self._writer is None:
            about = {"encoding": "WKB", "geometry_types": ["Point"], "crs": json.loads(LONLAT.to_json())}
            geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": about}}
            self._schema = table.schema.with_metadata({"geo": json.dumps(geo)})
            self._writer = pq.ParquetWriter(self._path, self._schema, compression="zstd")
        # A part may lack what another has, such as a column of nothing but missing texts.
        self._writer.write_table(table.cast(self._schema))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _arrow(pa: Any, values: NDArray[Any]) -> Any:
    if values.dtype.kind == "M":
        return pa.array(values.astype("datetime64[us]"), pa.timestamp("us", tz="UTC"))
    if values.dtype == np.object_:
        texts = [None if v is None or v != v else str(v) for v in values.tolist()]
        return pa.array(texts, pa.string())
    return pa.array(values)


class _Csv:
    def __init__(self, path: Path) -> None:
        self._path, self._begun = path, False

    def write(self, rows: Rows) -> None:
        import pandas as pd

        table = pd.DataFrame({k: _written(v) for k, v in rows.items()})
        table.to_csv(self._path, mode="a", header=not self._begun, index=False, float_format="%.9g")
        self._begun = True

    def close(self) -> None:
        pass


def _written(values: NDArray[Any]) -> NDArray[Any]:
    """Values as a text file has them: times in ISO 8601 with their zone."""
    if values.dtype.kind == "M":
        return np.char.add(np.datetime_as_string(values, unit="s"), "Z").astype(np.object_)
    return values


class _GeoJson:
    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")
        self._file.write('{"type": "FeatureCollection", "features": [')
        self._begun = False

    def write(self, rows: Rows) -> None:
        lists = {k: _written(v).tolist() for k, v in rows.items()}
        names = [k for k in lists if k not in ("lon", "lat")]
        for i, (lon, lat) in enumerate(zip(lists["lon"], lists["lat"], strict=True)):
            properties = {k: _json(lists[k][i]) for k in names}
            point = {"type": "Point", "coordinates": [round(lon, 9), round(lat, 9)]}
            self._file.write(",\n" if self._begun else "\n")
            json.dump({"type": "Feature", "geometry": point, "properties": properties}, self._file, allow_nan=False)
            self._begun = True

    def close(self) -> None:
        self._file.write("\n]}\n")
        self._file.close()


def _json(value: Any) -> Any:
    """A value as JSON has it: nothing for NaN, a float in as many digits as float32 holds."""
    if isinstance(value, float):
        return float(f"{value:.9g}") if np.isfinite(value) else None
    return value if isinstance(value, int | str | bool) or value is None else str(value)
