"""Keeps what weights say of themselves in the safetensors header: sizes, sensors as trained, provenance."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from model.config import EOVAEConfig
from model.sensors import S1RTC, S2L1C, S2L2A, S2RGB

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "eocube-weights-1"
CODE_OF_MEAN = 128
"""Code of a channel's mean where latents are stored as codes: below 256, far from 0, where the high byte changes."""
DISTILLATION = "distillation"
"""Key of the metrics of weights that stage 1 made: they have seen no data yet."""
_OWN_FIGURES = "nano"  # what tables of the recipe call the network itself, whatever its weights are called
FLOOR_MARGIN = 6.0
"""dB that a window may fall below the worst held-out place before it is suspect: twice that place's error."""


_NEWER = (
    "code_steps",
    "code_error",
)  # left out where there are none: earlier versions refuse what they do not know


class WeightsError(ValueError):
    """Weights that cannot be found, read, or do not fit the network; one line that names them."""


@dataclass(frozen=True, slots=True)
class SensorMeta:
    """One sensor as the weights were trained for it.

    `wavelengths` are micrometres as trained (the published list is partly in another order than the bands); `mean` and
    `std` are the z-score statistics in `unit`: "reflectance*1e4", "dB" or "dn8". `subsets` says that any subset of the
    bands may be encoded; `source` where the statistics come from. `psnr_floor` in dB, of physical units: a window that
    decodes worse is suspect; None where none was recorded (see `WeightsMeta.psnr_floor`). `code_steps` are the steps,
    a channel each, in which latents are stored as codes, `code_error` the RMS error that this adds to each band, in
    the physical unit (`model.training.eo_vae.code_steps`); both None where they were not measured.
    """

    bands: tuple[str, ...]
    wavelengths: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    unit: str
    subsets: bool
    source: str
    psnr_floor: float | None = None
    code_steps: tuple[float, ...] | None = None
    code_error: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "bands", tuple(self.bands))
        for name in ("wavelengths", "mean", "std"):
            values = tuple(float(v) for v in getattr(self, name))
            object.__setattr__(self, name, values)
            if len(values) != len(self.bands):
                raise ValueError(f"{name} has {len(values)} entries for {len(self.bands)} bands")
            # In float32 a smaller one divides to infinity, a larger one is infinite itself.
            if not all(1e-30 < abs(v) < 1e30 or (v == 0 and name == "mean") for v in values):
                raise ValueError(f"{name} holds what is not finite or of no ordinary size: {str(values)[:80]}")
            if name != "mean" and min(values, default=1.0) < 0:
                raise ValueError(f"{name} holds a value below 0: {str(values)[:80]}")
        for name in ("code_steps", "code_error"):
            if (given := getattr(self, name)) is not None:
                values = tuple(float(v) for v in given)
                object.__setattr__(self, name, values)
                if not all(1e-30 < v < 1e30 for v in values):
                    raise ValueError(f"{name} holds what is not above 0 and of ordinary size: {str(values)[:80]}")


@dataclass(frozen=True, slots=True)
class WeightsMeta:
    """What a weights file says of itself. `metrics` is free-form JSON: held-out figures, PSNR floors and the like.

    `sha256` identifies what decides a latent's meaning: the tensors, the configuration and the sensors, not the file's
    bytes, name or date. It is computed on load and left out of comparisons.
    """

    name: str
    config: EOVAEConfig
    sensors: Mapping[str, SensorMeta]
    training_data: str
    licence: str
    created: str
    metrics: Mapping[str, object] = field(default_factory=dict)
    sha256: str = field(default="", compare=False)

    def psnr_floor(self, sensor: str) -> float | None:
        """PSNR in dB below which a decoded window of a sensor is suspect; None where the weights do not say.

        What the sensor's own entry records; else `FLOOR_MARGIN` below the worst place that was held out, in the units
        and ranges of the held-out table (physical; range 1 for reflectance, 40 dB for backscatter, 255 counts).
        """
        known = self.sensors.get(sensor)
        if known is not None and known.psnr_floor is not None:
            return known.psnr_floor
        table = self.metrics.get("held_out")
        found = []
        for place, entry in table.items() if isinstance(table, Mapping) else ():
            figures = entry.get(self.name, entry.get(_OWN_FIGURES)) if isinstance(entry, Mapping) else None
            if isinstance(figures, Mapping) and sensor in str(place).split() and "psnr_physical" in figures:
                found.append(float(figures["psnr_physical"]))
        return min(found) - FLOOR_MARGIN if found else None

    def coded(self, sensor: str, bands: Collection[str]) -> SensorMeta | None:
        """The entry whose code steps hold for some bands of a sensor: of those in its unit that have all of them, the
        one with the fewest; steps of more bands are no coarser for any of them. None where no such entry has steps.
        """
        own = self.sensors.get(sensor)
        fitting = [
            entry
            for entry in self.sensors.values()
            if own is not None and entry.code_steps is not None and entry.unit == own.unit
            and (entry is own or set(bands) <= set(entry.bands))
        ]  # fmt: skip
        return min(fitting, key=lambda entry: len(entry.bands), default=None)

    def to_header(self) -> dict[str, str]:
        """The safetensors header: every value a JSON string."""
        values: dict[str, Any] = {
            "format": FORMAT,
            "name": self.name,
            "config": self.config.to_dict(),
            "sensors": {
                name: {key: value for key, value in asdict(sensor).items() if value is not None or key not in _NEWER}
                for name, sensor in self.sensors.items()
            },
            "training_data": self.training_data,
            "licence": self.licence,
            "created": self.created,
            "metrics": dict(self.metrics),
        }
        return {key: json.dumps(value) for key, value in values.items()}

    @classmethod
    def from_header(cls, header: Mapping[str, str] | None) -> WeightsMeta | None:
        """Metadata of a header that `to_header` wrote; None for a header of another origin.

        Raises WeightsError where the header is ours but damaged.
        """
        if header is None or header.get("format") != json.dumps(FORMAT):
            return None
        try:
            values = {key: json.loads(text) for key, text in header.items() if key != "format"}
            values["config"] = EOVAEConfig.from_dict(values["config"])
            values["sensors"] = {name: SensorMeta(**sensor) for name, sensor in values["sensors"].items()}
            return cls(**values)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            raise WeightsError(
                f"damaged metadata ({str(error)[:200]}): write the file again with save_weights"
            ) from error

    def with_hash(self, state: Mapping[str, Tensor] | Mapping[str, NDArray[Any]]) -> WeightsMeta:
        """The same metadata with `sha256` of these tensors, the configuration and the sensors."""
        return replace(self, sha256=content_hash(state, self.config, self.sensors))


def content_hash(
    state: Mapping[str, Tensor] | Mapping[str, NDArray[Any]], config: EOVAEConfig, sensors: Mapping[str, SensorMeta]
) -> str:
    """SHA-256 (hex) of tensors as float32 in key order, configuration and sensors; counters do not count.

    Torch's tensors or numpy's arrays: equal values have equal hashes.

    Values count and not the stored precision: an fp16 file and its fp32 copy give equal latents and equal hashes.
    """
    found = hashlib.sha256()
    decisive = {
        "config": config.to_dict(),
        "sensors": {
            name: [s.bands, s.wavelengths, s.mean, s.std, s.unit, s.subsets] for name, s in sorted(sensors.items())
        },
    }
    found.update(json.dumps(decisive, sort_keys=True).encode())
    for key in sorted(key for key in state if not key.endswith("num_batches_tracked")):
        values = _float32(state[key])
        found.update(f"{key}{list(values.shape)}".encode())
        found.update(values.data)
    return found.hexdigest()


def _float32(values: Tensor | NDArray[Any]) -> NDArray[np.float32]:
    """Contiguous, in float32. Without torch where there is none yet: it takes seconds to import."""
    if isinstance(values, np.ndarray):
        return np.ascontiguousarray(values, dtype=np.float32).reshape(values.shape)  # it makes 0-d ones 1-d
    return np.asarray(values.detach().cpu().float().contiguous().numpy())


# As trained: the last three wavelengths of the published S2L2A belong to other bands (B09 learned 1.610, B11 2.190, B12
# 0.945). Part of what the released weights mean, so it stands here and not in the table.
_S2L2A_AS_PUBLISHED = (*S2L2A.wavelengths[:9], 1.610, 2.190, 0.945)


def published_meta(config: EOVAEConfig | None = None) -> WeightsMeta:
    """Metadata of the released EO-VAE, whose checkpoint carries none.

    Statistics are the code's legacy ones. It was trained on whole sensors only, so subsets are not promised.
    Source: the published code and configurations (nilsleh/eo-vae).
    """
    source = "EO-VAE, published code, legacy statistics of TerraMesh"
    trained = (replace(S2L2A, wavelengths=_S2L2A_AS_PUBLISHED), S2L1C, S1RTC, S2RGB)
    return WeightsMeta(
        name="eo-vae",
        config=config or EOVAEConfig(),
        sensors={
            s.name: SensorMeta(s.bands, s.wavelengths, s.mean, s.std, s.unit, subsets=False, source=source)
            for s in trained
        },
        training_data="TerraMesh (S2L2A, S2L1C, S2RGB, S1RTC), started from the FLUX.2 autoencoder",
        licence="as published with the checkpoint",
        created="",
    )
