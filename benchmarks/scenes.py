"""Local scenes for as long a job as wanted: the demo's COGs under many dates."""

from __future__ import annotations

import json
from datetime import date, timedelta
from itertools import cycle
from pathlib import Path
from typing import Any

from eocube.demo.catalogue import make_demo
from eocube.demo.files import write_json

EVERY = 7
"""Days between two passes of one season's scene; the seasons are no multiple of it apart."""
COLLECTION = "sentinel-2-l2a"


def scenes(folder: Path, dates: int) -> tuple[Path, str]:
    """Write the demo scenes and items of further dates that lead to the same files.

    Returns:
        The catalogue's path and the interval that holds its `dates` dates.
    """
    index = make_demo(folder)
    listing = index.parent / COLLECTION / "collection.json"
    collection = _read(listing)
    originals = sorted((index.parent / COLLECTION).glob("*/*.json"))
    seasons = sorted({_day(_read(path)) for path in originals})
    kept = {(day, number // len(seasons)) for number, day in zip(range(dates), cycle(seasons), strict=False)}
    links = [link for link in collection["links"] if link["rel"] != "item"]
    days: list[date] = []
    for path in originals:
        item = _read(path)
        for turn in sorted(turn for day, turn in kept if day == _day(item)):
            days.append(_day(item) + timedelta(days=EVERY * turn))
            copy = redated(item, _day(item), days[-1])
            write_json(path.with_name(f"{copy['id']}.json"), copy)
            href = f"./{path.parent.name}/{copy['id']}.json"
            links.append({"rel": "item", "href": href, "type": "application/geo+json"})
    collection["links"] = links
    collection["extent"]["temporal"]["interval"] = [[f"{min(days)}T00:00:00Z", f"{max(days)}T23:59:59Z"]]
    write_json(listing, collection)
    return index, f"{min(days)}/{max(days)}"


def _read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def _day(item: dict[str, Any]) -> date:
    return date.fromisoformat(item["properties"]["datetime"][:10])


def redated(item: dict[str, Any], old: date, new: date) -> dict[str, Any]:
    """The item as if it had been seen on another day; its assets stay the same files."""
    text = json.dumps({k: v for k, v in item.items() if k != "assets"})
    for form in ("%Y-%m-%d", "%Y%m%d"):
        text = text.replace(old.strftime(form), new.strftime(form))
    return {**json.loads(text), "assets": item["assets"]}
