"""Declares what makes a product and gives it back: `Kind`, `Codec`, `Encoder`, `Decoder`; and what a unit reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from eocube.products.spec import Product
from eocube.sensors.sensor import Sensor

if TYPE_CHECKING:
    import torch

    from eocube.ground.grid import Window
    from eocube.read.shard import Asked, Submit
    from eocube.read.window_pixels import WindowPixels
    from eocube.scenes.scene import Scene

Pixels: TypeAlias = "Mapping[int, torch.Tensor]"
"""{sampling in metres: (B, C_g, H_g, W_g)} in travelling form, as `eocube.read` reads them."""


class Encoder(Protocol):
    """What turns pixels into a product's values."""

    def __call__(self, pixels: Pixels, /) -> torch.Tensor:
        """Pixels -> values of whole windows (B, channels, h, w): float32, float16 where that is all they have, or
        integers where they are codes.

        Pixels of a run lie on the encoder's device, others on the host. They may be parts of what other windows are cut
        from too, not contiguous: to be left as they are.
        h = w = the window's cells, halo included where the halo is whole cells; else the core's cells alone.
        """
        ...


class Decoder(Protocol):
    """What turns values back into physical units."""

    def __call__(self, values: torch.Tensor, /) -> torch.Tensor:
        """(B, channels, h, w) as `Storage.unpack` gives them -> (B, bands, h * cell_px, w * cell_px), float32."""
        ...


class Truth(Protocol):
    """What brings travelling pixels to one sampling in physical units, for a decoder to be compared with."""

    def __call__(self, pixels: Pixels, /) -> torch.Tensor:
        """Pixels -> (B, C, H, W), float32 in the sensor's physical unit."""
        ...


class Codec(Protocol):
    """A product's network, ready to be put on a device."""

    @property
    def product(self) -> Product:
        """What it makes."""
        ...

    @property
    def ladder(self) -> tuple[str, ...]:
        """Precisions tried in turn for a window whose values are not sound, the run's own first."""
        ...

    @property
    def floor(self) -> float | None:
        """PSNR in dB that is the least to expect of a decoded window; None where nobody said."""
        ...

    def encoder(self, device: str, precision: str, numerics: Mapping[str, Any]) -> Encoder:
        """The encoder in one of the ladder's precisions, computing as the plan's numerics say."""
        ...

    def batch(self, device: str, numerics: Mapping[str, Any]) -> int:
        """Windows that are encoded at once: one fixed size, as bits depend on it."""
        ...

    def decoder(
        self, device: str, dtype: str = "float32", bands: Sequence[str] | None = None,
        numerics: Mapping[str, Any] | None = None,
    ) -> Decoder:  # fmt: skip
        """The decoder of some bands, all by default, in a torch dtype or "mixed". Not asked of products without one.

        `numerics` are a plan's where a run decodes what it makes, whole windows that is.
        """
        ...

    def truth(self, device: str) -> Truth:
        """What a decoder's pixels are compared with. Not asked of products without one."""
        ...


@dataclass(frozen=True, slots=True)
class Ask:
    """What a user asks of a product."""

    sensor: Sensor
    resolution: int
    """Metres a pixel."""
    weights: str
    """As the user names them; kinds without weights of their own take no notice."""
    precision: str
    """fp16, bf16 or fp32."""
    storage: str | None
    """The storage's name; None for the kind's own."""
    device: str
    """cpu or cuda."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further choices that a kind knows (`--product-options name=value`)."""
    quality: str | None = None
    """How fine codes are: near-lossless, default or small; for kinds that leave the choice."""
    only_plans: bool = False
    """Nothing will be encoded: what weights say of themselves is enough, the network need not be loaded."""


class Kind(Protocol):
    """A kind of product, as the entry point group `eocube.products` names them: an object of this form."""

    @property
    def name(self) -> str:
        """The registry's key, `Product.kind`."""
        ...

    def plan(self, ask: Ask) -> Product:
        """The product that is asked for. InputError, in one line, where it cannot be had."""
        ...

    def open(self, product: Product, device: str = "cpu") -> Codec:
        """The codec of a product. StoreError where what made it cannot be had any more."""
        ...

    def numerics(self, product: Product, device: str, like: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What decides the last bits beside the meaning: device, batch, kernels, versions (DESIGN 3.12).

        `like` are those of a stored plan, whose batch is to be kept.
        """
        ...


class Inputs(Protocol):
    """What a work unit reads: scenes by `eocube.read.reader.WindowReader`; another source by the same door.

    Called from several threads at once.
    """

    def read(self, scenes: Sequence[Scene], window: Window, /) -> WindowPixels:
        """The pixels of a window with its halo. SourceError where a source cannot be read."""
        ...

    def read_shard(
        self, wanted: Mapping[Window, Sequence[Scene]], max_cloud: float | None, submit: Submit, /
    ) -> Mapping[Window, Asked]:
        """Windows of one shard in one go, the same values as one by one; those that are not given are read alone."""
        ...

    def mask(self, scenes: Sequence[Scene], window: Window, /) -> tuple[int, int, int]:
        """Percent of a core that is valid, percent of that under cloud (255: unknown), and bytes read."""
        ...

    def close(self) -> None:
        """Let go of what is open."""
        ...


@dataclass(frozen=True, slots=True)
class Models:
    """A product's networks on a device: the encoder at its precisions, best first, and what scoring needs."""

    encoders: Mapping[str, Callable[[], Encoder]]
    """Precision name -> maker; the first is the run's own, the others are tried where its values are not sound."""
    decoder: Decoder | None
    """None where values are not decoded; then there is no truth either."""
    truth: Truth | None
    batch: int = 1
    device: str = "cpu"
    psnr_floor: float | None = None
    """PSNR in dB that the weights record as the least to expect of a decoded window; None when they do not."""


def models_of(codec: Codec, device: str, numerics: Mapping[str, Any]) -> Models:
    """A codec's networks on a device, computing as a plan's numerics say: a resumed store goes on as it was begun."""
    return Models(
        {precision: partial(codec.encoder, device, precision, numerics) for precision in codec.ladder},
        codec.decoder(device, numerics=numerics) if codec.product.decodes else None,
        codec.truth(device) if codec.product.decodes else None,
        codec.batch(device, numerics), device, codec.floor,
    )  # fmt: skip
