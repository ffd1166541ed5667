"""Defines Scene and BandSource: one acquisition of one tile, frozen into the plan, and where its pixels lie."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

from eocube.sensors.radiometry import Radiometry

BBox = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class BandSource:
    """Where one band of a scene lies.

    `key` is the asset's; `href` is unsigned and absolute (URL or local path); `index` is the 1-based band in the file.
    """

    band: str
    key: str
    href: str
    index: int
    radiometry: Radiometry
    size: int | None = field(default=None, compare=False)
    """Bytes of the asset, where the catalogue gives them (`file:size`)."""

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able copy (a nodata that is no finite number as a string: "nan", "inf")."""
        rule = self.radiometry
        nodata: float | str | None = rule.nodata
        if rule.nodata is not None and not math.isfinite(rule.nodata):
            nodata = str(rule.nodata)
        return {
            **({} if self.size is None else {"size": self.size}),
            "band": self.band,
            "key": self.key,
            "href": self.href,
            "index": self.index,
            "radiometry": {
                "scale": rule.scale,
                "offset": rule.offset,
                "nodata": nodata,
                "kind": rule.kind,
                "why": rule.why,
            },
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> BandSource:
        """The source that `to_dict` wrote."""
        rule = data["radiometry"]
        nodata = None if rule["nodata"] is None else float(rule["nodata"])
        radiometry = Radiometry(float(rule["scale"]), float(rule["offset"]), nodata, rule["kind"], rule.get("why", ""))
        return cls(data["band"], data["key"], data["href"], int(data["index"]), radiometry, data.get("size"))


@dataclass(frozen=True, slots=True)
class Scene:
    """One acquisition of one tile, as it is frozen into the plan.

    `id` is the item's, and the plan's name for it: no two scenes of a plan share one. `datetime` is the item's own
    (ISO, UTC); `time` the time coordinate (ISO, UTC, whole seconds): the start of the datatake, so that it does not
    depend on which tiles a bounding box finds. Scenes of one `group` (datatake) and day are one time step. `bbox` is
    (west, south, east, north) in degrees, west > east over the antimeridian; `footprint` is GeoJSON text or None.
    `signer` names who signs the hrefs as they are opened (`eocube.scenes.search.sign`).
    """

    id: str
    collection: str
    datetime: str
    platform: str
    group: str
    time: str
    epsg: int | None
    bbox: BBox
    footprint: str | None
    cloud_cover: float | None
    baseline: str | None
    sources: tuple[BandSource, ...]
    mask: BandSource | None
    signer: str | None = None
    item: str | None = None
    """The id that the catalogue gives it, where another item of the plan has that id too (`scenes.scene_ids`)."""
    orbit_state: str | None = field(default=None, compare=False)
    """"ascending" or "descending", where the item says; as the next, not part of what a plan is (`Plan.hash`)."""
    relative_orbit: int | None = field(default=None, compare=False)
    """The track's number, where the item says."""

    @property
    def item_id(self) -> str:
        """The id that the catalogue gives it."""
        return self.id if self.item is None else self.item

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able copy; hrefs are unsigned, so it holds no token."""
        return {
            "id": self.id,
            "collection": self.collection,
            "datetime": self.datetime,
            "platform": self.platform,
            "group": self.group,
            "time": self.time,
            "epsg": self.epsg,
            "bbox": list(self.bbox),
            "footprint": None if self.footprint is None else json.loads(self.footprint),
            "cloud_cover": self.cloud_cover,
            "baseline": self.baseline,
            "sources": [source.to_dict() for source in self.sources],
            "mask": None if self.mask is None else self.mask.to_dict(),
            "signer": self.signer,
            **({} if self.item is None else {"item": self.item}),
            **({} if self.orbit_state is None else {"orbit_state": self.orbit_state}),
            **({} if self.relative_orbit is None else {"relative_orbit": self.relative_orbit}),
        }

    def identity(self) -> dict[str, Any]:
        """What of `to_dict` makes the scene what it is: not its orbit, which plans of version 0.1 do not have."""
        return {k: v for k, v in self.to_dict().items() if k not in ("orbit_state", "relative_orbit")}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Scene:
        """The scene that `to_dict` wrote."""
        west, south, east, north = (float(value) for value in data["bbox"])
        return cls(
            id=data["id"],
            collection=data["collection"],
            datetime=data["datetime"],
            platform=data["platform"],
            group=data["group"],
            time=data["time"],
            epsg=data["epsg"],
            bbox=(west, south, east, north),
            footprint=None if data["footprint"] is None else geojson_text(data["footprint"]),
            cloud_cover=data["cloud_cover"],
            baseline=data["baseline"],
            sources=tuple(BandSource.from_dict(source) for source in data["sources"]),
            mask=None if data["mask"] is None else BandSource.from_dict(data["mask"]),
            signer=data["signer"],
            item=data.get("item"),
            orbit_state=data.get("orbit_state"),
            relative_orbit=data.get("relative_orbit"),
        )


def geojson_text(geometry: Any) -> str:
    """GeoJSON as text in one fixed spelling, so that equal footprints are equal strings."""
    return json.dumps(geometry, separators=(",", ":"), sort_keys=True)
