"""States the sizes of an EO-VAE, checks them, and reads and writes them as plain mappings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

MOST = {"ch": 4096, "ch_mult": 64, "num_res_blocks": 64, "hypernet_layers": 64}
"""Bounds of a configuration, far above any network that was trained: a file's header may claim anything."""


@dataclass(frozen=True, slots=True)
class EOVAEConfig:
    """Sizes of the network; the defaults are the published ones."""

    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    z_channels: int = 32
    norm_groups: int = 32
    hypernet_layers: int = 4
    wavelength_dim: int = 256
    hypernet_ff: int = 2048
    hypernet_heads: int = 4

    def __post_init__(self) -> None:
        object.__setattr__(self, "ch_mult", tuple(int(m) for m in self.ch_mult))
        if not self.ch_mult:
            raise ValueError("ch_mult is empty: give one multiplier a level, for example (1, 2, 4, 4)")
        for field in fields(self):
            values = self.ch_mult if field.name == "ch_mult" else (getattr(self, field.name),)
            if any(not isinstance(v, int) or v < 1 for v in values):
                raise ValueError(f"{field.name}={getattr(self, field.name)!r}: positive whole numbers only")
            most = MOST.get(field.name, 65_536)
            if len(values) > 12 or max(values) > most:
                raise ValueError(f"{field.name} is more than any network has ({most}, at 12 levels at most)")

    @property
    def scale_factor(self) -> int:
        """Pixels a side under one latent: 2 ** (levels - 1), 8 as published."""
        return int(2 ** (len(self.ch_mult) - 1))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EOVAEConfig:
        """Config from a mapping (JSON, YAML); missing keys take the published value, unknown ones raise ValueError."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"unknown EOVAEConfig keys {unknown}: known are {sorted(known)}")
        return cls(**dict(values))

    def to_dict(self) -> dict[str, Any]:
        """Plain mapping that JSON can hold and `from_dict` reads back."""
        return asdict(self) | {"ch_mult": list(self.ch_mult)}
