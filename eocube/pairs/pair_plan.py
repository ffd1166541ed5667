"""Plans a pair store: rows in their order, its arrays, what they mean, and all of its metadata."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.buffer import Buffer
from zarr.storage import MemoryStore

from eocube.errors import InputError
from eocube.pairs.encoding import Form, Maker, Which
from eocube.pairs.pixel_pairs import Row
from eocube.products.identity import digest
from eocube.store.receipts import STATES, State
from eocube.store.shard_codec import ShardCodec, compressors

Values = NDArray[Any]
FORMAT = "eocube-pairs-1"
UNIT = 32
"""Pairs a unit of work, and so a shard: some 2 MB of values at 256 px."""
_SECOND = {"bounds": "edge", "transform": "term"}


@dataclass(frozen=True, slots=True)
class PairPlan:
    """What a store is to hold: rows in their order, arrays, and the document that says what they mean."""

    rows: tuple[Row, ...]
    forms: Mapping[str, Form]
    document: Mapping[str, Any]
    image_splits: tuple[str, ...] = ()
    per_unit: int = UNIT

    @classmethod
    def of(
        cls,
        rows: Sequence[Row],
        maker: Maker,
        *,
        image_splits: Sequence[str] = (),
        skipped: Mapping[str, int] | None = None,
        per_unit: int = UNIT,
    ) -> Self:
        """The plan of rows that a maker is to make. InputError where there is none."""
        if not rows:
            raise InputError(f"there is no pair to encode{_why(skipped)}: take smaller sides, or other images")
        side = max(row.note.side for row in rows)
        spaces: dict[str, dict[str, Any]] = {"lr": {}, "hr": {}}
        for note in {(r.note.resolution, r.note.side): r.note for r in rows}.values():
            for which, (space_id, meaning) in maker.spaces(note).items():
                spaces[which][space_id] = dict(meaning)
        metres = sorted({row.note.resolution for row in rows})
        document = {
            "format": FORMAT,
            **maker.document,
            "side": side,
            "resolutions": {"lr": [r * maker.scale for r in metres], "hr": metres},
            "spaces": spaces,
            "splits": dict(Counter(str(row.note.split) for row in rows)),
            "skipped": dict(skipped or {}),
            "images": list(image_splits),
            "numerics": dict(maker.numerics),
            "notes": digest([row.note.to_json() for row in rows]),
        }
        return cls(tuple(rows), maker.forms(side, bool(image_splits)), document, tuple(image_splits), per_unit)

    @property
    def units(self) -> int:
        """How many there are."""
        return -(-len(self.rows) // self.per_unit)

    def of_unit(self, unit: int) -> range:
        """The rows of a unit."""
        return range(unit * self.per_unit, min(len(self.rows), (unit + 1) * self.per_unit))

    def codec(self, name: str) -> ShardCodec:
        """How an array's shards are packed."""
        form = self.forms[name]
        return ShardCodec((self.per_unit, *form.shape), (1, *form.shape), form.dtype, form.fill, keep_empty=False)

    def to_json(self) -> str:
        """What is written before anything else; the same plan always gives the same text."""
        forms = {n: [list(f.shape), f.dtype, None if f.fill != f.fill else f.fill] for n, f in self.forms.items()}
        return json.dumps(
            {"document": self.document, "forms": forms, "per_unit": self.per_unit,
             "rows": [[row.source, row.note.to_json()] for row in self.rows]},
            sort_keys=True, allow_nan=False,
        )  # fmt: skip


def metadata(plan: PairPlan, document: Mapping[str, Any], states: Sequence[int], maker: Maker) -> dict[str, bytes]:
    """Every object of the store but shards and receipts."""
    objects: dict[str, Buffer] = {}
    store = MemoryStore(objects)
    group = zarr.create_group(store, attributes={"eocube": dict(document)})
    count = len(plan.rows)
    attributes = _attributes(maker)
    for name, form in plan.forms.items():
        zarr.create_array(
            store, name=name, shape=(count, *form.shape), chunks=(1, *form.shape), shards=(plan.per_unit, *form.shape),
            dtype=form.dtype, fill_value=form.fill, compressors=compressors(), attributes=attributes.get(name, {}),
            dimension_names=("pair", *(("band", f"{name}_y", f"{name}_x") if name.endswith("image") else
                                       ("channel", f"{name}_y", f"{name}_x"))),
        )  # fmt: skip
    for name, (values, attrs) in _tables(plan, states, maker).items():
        text = values.dtype.kind == "T"
        array = zarr.create_array(
            store, name=name, shape=values.shape, chunks=(max(1, count), *values.shape[1:]),
            dtype="str" if text else values.dtype, fill_value="" if text else 0, compressors=compressors(),
            dimension_names=("pair", *((_SECOND[name],) if values.ndim > 1 else ())), attributes=attrs,
            config={"write_empty_chunks": True},
        )  # fmt: skip
        array[...] = values
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        zarr.consolidate_metadata(group.store)
    return {key: objects[key].to_bytes() for key in objects}


def _attributes(maker: Maker) -> dict[str, dict[str, Any]]:
    said = {
        "lr": "values of the low resolution (posterior mean, not whitened)",
        "hr": "values of the high resolution (posterior mean, not whitened)",
        "lr_up": "values of the low resolution upsampled by bicubic before encoding, as published",
        "lr_sharp": "values of the low resolution upsampled by bicubic and put right by the MTF before encoding",
    }
    found: dict[str, dict[str, Any]] = {name: {"long_name": text, "units": "1"} for name, text in said.items()}
    for name, attributes in maker.images().items():
        found[name] = {k: list(v) if isinstance(v, tuple) else v for k, v in attributes.items()}
    return found


def _tables(plan: PairPlan, states: Sequence[int], maker: Maker) -> dict[str, tuple[Values, dict[str, Any]]]:
    notes = [row.note for row in plan.rows]
    text = np.dtypes.StringDType()
    spaces = {key: maker.spaces(note) for key, note in {(n.resolution, n.side): n for n in notes}.items()}

    def space(which: Which) -> Values:
        return np.array([spaces[n.resolution, n.side][which][0] for n in notes], text)

    return {
        "id": (np.array([n.id for n in notes], text), {"long_name": "a pair's own name"}),
        "place": (np.array([n.place for n in notes], text), {"long_name": "pairs of one ground have one"}),
        "level": (np.array([n.level for n in notes], text), {"long_name": "kind of the image"}),
        "split": (np.array([str(n.split) for n in notes], text), {"long_name": "train, val or test"}),
        "lr_space": (space("lr"), {"long_name": "space id of lr"}),
        "hr_space": (space("hr"), {"long_name": "space id of hr"}),
        "resolution": (np.array([n.resolution for n in notes], np.float64),
                       {"long_name": "of the high resolution", "units": "m"}),
        "side": (np.array([n.side for n in notes], np.int32),
                 {"long_name": "pixels a side of the high resolution; smaller pairs lie in the upper left corner"}),
        "flip": (np.array([n.flip for n in notes], np.uint8),
                 {"long_name": "symmetry of the square: right angles turned, from 4 on mirrored too; 0 as it lies"}),
        "epsg": (np.array([n.epsg or 0 for n in notes], np.int32), {"long_name": "CRS of bounds, 0 where not known"}),
        "bounds": (np.array([n.bounds for n in notes], np.float64), {"long_name": "left, bottom, right, top"}),
        "transform": (np.array([n.transform for n in notes], np.float64),
                      {"long_name": "a, b, c, d, e, f of the high resolution before it was flipped"}),
        "status": (np.array(states, np.uint8),
                   {"long_name": "how each pair ended", "flag_values": [int(s) for s in State],
                    "flag_meanings": " ".join(STATES)}),
    }  # fmt: skip


def difference(found: Mapping[str, Any], plan: PairPlan) -> str:
    """In what a store that is there differs from a plan, in words."""
    was, now = found["document"], plan.document
    if was.get("encoder") != now["encoder"]:
        one, other = was.get("encoder") or {}, now["encoder"] or {}
        return (
            f"another space: weights {one.get('name')} {str(one.get('sha256'))[:8]} {one.get('precision')} of "
            f"{one.get('sensor')}, not {other.get('name')} {str(other.get('sha256'))[:8]} {other.get('precision')} of "
            f"{other.get('sensor')}"
        )
    if was.get("spaces") != now["spaces"]:
        return f"another space: {_ids(was)}, not {_ids(now)}"
    for key in ("source", "scale", "side", "splits", "upsampled", "sharpened", "images", "numerics"):
        if was.get(key) != now.get(key):
            return f"another {key}: {str(was.get(key))[:80]}, not {str(now.get(key))[:80]}"
    return "other pairs"


def _ids(document: Mapping[str, Any]) -> str:
    spaces = document.get("spaces", {})
    return ", ".join(sorted({*spaces.get("lr", {}), *spaces.get("hr", {})})[:4])


def _why(skipped: Mapping[str, int] | None) -> str:
    return " (" + ", ".join(f"{n} {why}" for why, n in (skipped or {}).items()) + ")" if skipped else ""
