"""Shows the comparison at equal bits: tables over all places and by place, and the curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from model.evaluation import plot
from model.evaluation.equal_bits import CODES, Compared, Lines, Row
from model.evaluation.yardsticks import DRAWS, IMAGES

PICTURE = "equal_bits.png"
NEAR = 16
"""Bytes a block that the table by place is of, or as near as the codes of a place come."""
EXPLAINED = (
    "PSNR in dB / SAM in radians / NDVI MAE in physical units, at the bytes that codes take. `codes`: as a store "
    "packs them, all tiles at one factor on the weights' steps; (default) is factor 1, the default quality. Where "
    f"codes cannot take as many or as few bytes, the row has the size next to it. `{IMAGES}`: the KLT fitted on the "
    f"training images, completed ones included; `{DRAWS}`: on these and, at the same weight, on patches that "
    "training's sampler drew from them, augmented as in training. Both are given: neither is chosen by what is "
    "measured. Their coefficients have one step (reverse water-filling) and count by their entropy on the measured "
    "tiles themselves, which no real coder reaches. Image codecs count by their files, and get, tile for tile, the "
    "bytes of the codes; the principal components are those of the measured tiles. A place's own row has its own "
    "bytes, and the KLTs a step and frequencies of that place alone."
)


def section(sets: Mapping[str, Compared], kind: str) -> list[str]:
    """Markdown of all sensors; `kind` of places, validation or test."""
    lines = [f"![bytes a block and PSNR]({PICTURE})", "", EXPLAINED]
    by = f"PSNR in dB of each place, at the rate whose codes come nearest to {NEAR} bytes a block there:"
    for title, item in sets.items():
        of = f"{counted(item.tiles, 'tile')} of {counted(len(item.places), f'independent {kind} place')}"
        lines += ["", f"### {title}: {of}", "", *table(item.pooled), "", by, "", *by_place(item)]
    return lines


def counted(count: int, thing: str) -> str:
    """So many of a thing, in words."""
    return f"{count} {thing}{'' if count == 1 else 's'}"


def table(lines: Lines) -> list[str]:
    """Markdown: a line a rate, PSNR / SAM / NDVI error of each codec; "-" where it cannot code at that rate."""
    rows = [f"| {_size(code)} | {' | '.join(_cell(row) for row in _at(lines, code))} |" for code in lines[CODES]]
    return [f"| bytes a block | {' | '.join(lines)} |", "|---|" + "---|" * len(lines), *rows]


def by_place(item: Compared) -> list[str]:
    """Markdown: a line a place, PSNR of each codec at the rate nearest to `NEAR` bytes a block."""
    names = list(item.pooled)
    rows = []
    for place, lines in item.places.items():
        code = min(lines[CODES], key=lambda row: abs(row.size - NEAR))
        found = dict(zip(lines, _at(lines, code), strict=True))
        cells = ["-" if (row := found.get(name)) is None else f"{row.psnr:.1f}" for name in names]
        rows.append(f"| {place} | {_size(code)} | {' | '.join(cells)} |")
    return [f"| place | bytes a block | {' | '.join(names)} |", "|---|---|" + "---|" * len(names), *rows]


def _at(lines: Lines, code: Row) -> list[Row | None]:
    """Each codec's row at the rate of a row of the codes."""
    return [next((row for row in line if row.rate == code.rate), None) for line in lines.values()]


def _size(row: Row) -> str:
    return f"{row.size:.1f}{' (default)' if row.default else ''}"


def _cell(row: Row | None) -> str:
    if row is None:
        return "-"
    ndvi = "" if row.ndvi is None else f" / {row.ndvi:.4f}"
    return f"{row.psnr:.1f} / {row.sam:.4f}{ndvi}"


def draw(sets: Mapping[str, Compared], kind: str, path: Path) -> None:
    """One panel a sensor, written as PNG: bytes a block against PSNR, a ring at the default quality."""
    panels = {}
    for title, item in sets.items():
        panels[f"{title} ({counted(len(item.places), f'{kind} place')})"] = plot.Panel(
            {name: _spots(rows) for name, rows in item.pooled.items()},
            "bytes a block of 8x8 pixels",
            f"PSNR in dB, range {item.range:g}",
            _spots([row for row in item.pooled[CODES] if row.default]),
        )
    plot.draw(panels, path, "codes at the default quality")


def _spots(rows: Sequence[Row]) -> list[plot.Spot]:
    return [(row.size, row.psnr) for row in rows]
