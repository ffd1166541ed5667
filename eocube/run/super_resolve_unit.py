"""Carries out one unit of a super-resolved cube: reads the parent's latents, samples finer ones, writes one shard.

A unit is a shard of the finer cube at one time. Its canvas is the shard's ground and a ring of the parent's ground
around it, of which nothing is kept: tiles there share every step with the shard's own, so that the shard beyond, whose
canvas has the same tiles and the same noise (`model.tiled_sampling.ground_noise`), comes to the same at the border.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eocube.cube.decode import mirror_fill
from eocube.cube.parent import ParentCube
from eocube.errors import SourceError, StoreError
from eocube.ground.grid import Window
from eocube.ground.lattice import StatusPlace
from eocube.net.network import counting
from eocube.plan.derive import coarse_cores, parents_time
from eocube.plan.plan import Plan, WorkUnit
from eocube.products.super_resolved import MEAN, Derivation
from eocube.read.coverage import CLEAR, fine, from_cells, pack_clouds, pack_missing, unpack_clouds, unpack_missing
from eocube.read.source_shares import percent
from eocube.run.agreement import Agreement
from eocube.run.canvas_codec import CanvasCodec
from eocube.run.prometheus import BusyClock
from eocube.run.upsampled_condition import UpsampledCondition
from eocube.store.moments import Moments
from eocube.store.receipts import Receipt, State, WindowResult, now, pack_mask, unpack_mask
from eocube.store.seams import Seams, Squares
from eocube.store.store import CubeStore
from model.diffusion import even_times, sample
from model.super_resolution import SuperResolver, load_sr
from model.tiled_sampling import Canvas, Tile, ground_noise, tiles_over
from model.weights_meta import WeightsError

Latents = NDArray[np.float32]
Core = tuple[int, int]
"""Row and column of one of the parent's cores on the zone's lattice."""


@dataclass(frozen=True, slots=True)
class Field:
    """The parent's latents over a canvas: (C, h, w), NaN where there are none, and its first row and column."""

    latents: Latents
    top: int
    left: int


class Sampler:
    """Makes finer latents of a field, tile by tile, blended at every step. Safe to call from several threads at once.

    Args:
        network: the super-resolver, on its device.
        how: of the plan.
        core: cells along the parent's cores, which the tiles' cores are.
        epsg: of the zone; sets its noise apart.
        threads: tiles at once; each is computed by one thread on a CPU, so that bits do not depend on how many.
        device: torch device of the network.
        codec: of the parent's product, for the two below.
        upsampled: makes the condition of weights that read upsampled pixels; None for those that read latents.
        agreement: pulls every step towards what averages back to the parent's pixels; None leaves it.
    """

    def __init__(
        self, network: SuperResolver, how: Derivation, core: int, epsg: int, *, threads: int = 1, device: str = "cpu",
        codec: CanvasCodec | None = None, upsampled: UpsampledCondition | None = None,
        agreement: Agreement | None = None,
    ) -> None:  # fmt: skip
        self.network, self._how, self._core, self._epsg, self._device = network, how, core, epsg, device
        self._codec, self._upsampled, self._agreement = codec, upsampled, agreement
        self._threads = ThreadPoolExecutor(
            threads if device == "cpu" else 1, "sample", lambda: torch.set_num_threads(1) if device == "cpu" else None
        )

    def close(self) -> None:
        """Stop the threads."""
        self._threads.shutdown(cancel_futures=True)

    @torch.inference_mode()
    def __call__(self, field: Field, cores: frozenset[Core]) -> Latents:
        """(C, scale * h, scale * w) raw latents: those of the cores named are to be kept.

        Tiles lie over those cores and over neighbours that have latents; elsewhere the result is 0.
        """
        how, scale = self._how, self._how.scale
        _, height, width = field.latents.shape
        near = {(r + i, c + j) for r, c in cores for i in (-1, 0, 1) for j in (-1, 0, 1)}
        there = np.asarray(np.isfinite(field.latents).all(axis=0))

        def wanted(row: int, col: int) -> bool:
            y, x = row * self._core - field.top, col * self._core - field.left
            part = there[max(0, y) : max(0, y + self._core), max(0, x) : max(0, x + self._core)]
            return (row, col) in near and bool(part.any())

        coarse = tiles_over(
            field.top, field.left, height, width, core=how.tile[0], halo=how.tile[1], there=wanted
        )  # fmt: skip
        tiles = [tile.scaled(scale) for _, tile in coarse]
        canvas = Canvas(height * scale, width * scale, tiles, run=self._threads.map, device=self._device)
        given, bare = [self._condition(field, tile) for _, tile in coarse], [tile for _, tile in coarse]
        correct = None
        if self._codec is not None:
            over = bare, (height, width), self._threads.map
            latents = given
            pixels = self._codec.pixels(lambda i: latents[i], *over)
            if self._agreement is not None:
                correct = self._agreement.over(pixels, *over)
            if self._upsampled is not None:
                whole = torch.from_numpy(self._upsampled(pixels, *over))[None]
                given = [whole[:, :, *tile.box].to(self._device) for tile in tiles]
        if how.method == MEAN:
            mean = canvas.blend(_inferring(lambda i: self.network.mean(given[i])))
            return self._numpy(mean if correct is None else mean.cpu() + correct(mean.cpu()))
        made = list(self._threads.map(_inferring(lambda i: self.network.denoiser(given[i])), range(len(tiles))))
        noise = ground_noise(
            how.seed, how.sample, self._epsg, field.top * scale, field.left * scale, height * scale, width * scale,
            self.network.config.channels,
        ).to(self._device)  # fmt: skip
        denoisers = [_inferring(denoise) for denoise, _ in made]

        def raw(white: Tensor) -> Tensor:
            return canvas.blend(_inferring(lambda i: made[i][1](white[:, :, *tiles[i].box])))

        def agreeing(white: Tensor, _t: Tensor) -> Tensor:
            assert correct is not None
            change = correct(raw(white).cpu()).to(self._device)
            whitened = _inferring(lambda i: self.network.whitened(change[:, :, *tiles[i].box], given[i]))
            return white + canvas.blend(whitened)

        white = sample(
            canvas.denoiser(denoisers), noise, self.network.schedule, steps=how.steps, method=how.method,
            times=even_times(self.network.schedule, how.steps) if self.network.config.times == "even" else None,
            project=None if correct is None else agreeing,
        )  # fmt: skip
        return self._numpy(raw(white))

    def _condition(self, field: Field, tile: Tile) -> Tensor:
        """(1, C, h, w): the tile's latents, mirrored where there are none as the parent's decoder has it."""
        window = np.ascontiguousarray(field.latents[:, *tile.box])
        filled = mirror_fill(window, np.asarray(np.isfinite(window).all(axis=0)))
        return torch.from_numpy(filled)[None].to(self._device)

    @staticmethod
    def _numpy(canvas: Tensor) -> Latents:
        found: Latents = canvas[0].float().cpu().numpy()
        return found


def _inferring(call: Callable[..., Any]) -> Callable[..., Any]:
    """The same in inference mode, which threads do not inherit."""

    def inferred(*args: Any) -> Any:
        with torch.inference_mode():
            return call(*args)

    return inferred


class SuperResolveRunner:
    """Runs units of a plan that derives from another cube. Safe to call from several threads at once.

    Args:
        plan: with `derived`.
        store: the store the shards go to.
        threads: tiles at once.
        device: "cpu" or "cuda".
        storage_options: fsspec options of the parent.
        run_id: goes into every receipt.
        busy: measures when something is computed.
        network: the super-resolver, where it is loaded already.

    Raises:
        StoreError: the parent or the weights are not there, or not those of the plan.
    """

    def __init__(
        self, plan: Plan, store: CubeStore, *, threads: int = 1, device: str = "cpu",
        storage_options: Mapping[str, Any] | None = None, run_id: str = "", busy: BusyClock | None = None,
        network: SuperResolver | None = None,
    ) -> None:  # fmt: skip
        assert plan.derived is not None
        self.plan, self.store, self.run_id, self.how = plan, store, run_id, plan.derived
        self.busy = busy or BusyClock()
        self.parent = ParentCube(self.how.parent, storage_options)
        if self.parent.plan.space_id != plan.space_id:
            raise StoreError(f"{self.how.parent} is not the cube this one was made from: its space id is another")
        lattice = self.parent.plan.grid.lattice
        self._core = lattice.core
        found = network or super_resolver(self.how, device)
        codec, upsampled, agreement, conditioning = None, None, None, found.config.conditioning
        if conditioning != "native" or self.how.consistent:
            codec = CanvasCodec(self.parent.plan.product, device)
            mtf = found.transfer(codec.product.sensor.band_names)
            if conditioning != "native":
                upsampled = UpsampledCondition(codec, self.how.scale, mtf=mtf if conditioning == "sharpened" else None)
            if self.how.consistent:
                agreement = Agreement(codec, self.how.scale, mtf)
        self.sampler = Sampler(
            found, self.how, self._core, lattice.epsg, threads=threads, device=device, codec=codec,
            upsampled=upsampled, agreement=agreement,
        )  # fmt: skip

    def close(self) -> None:
        """Stop the threads."""
        self.sampler.close()

    def run(self, unit: WorkUnit) -> Receipt:
        """Do a unit. A parent that cannot be read fails its windows; what else is raised concerns the target store."""
        with counting() as network:
            receipt = self._run(unit)
        return replace(receipt, retries=network.retries)

    def _run(self, unit: WorkUnit) -> Receipt:
        started, before = time.perf_counter(), self.parent.bytes_read
        plan, grid, storage = self.plan, self.plan.grid, self.store.storage
        at = parents_time(self.parent.plan, plan.times[unit.time])
        windows = [w for w in grid.windows_of_shard(*unit.shard) if grid.requested(w)]
        states = {core: self.parent.state(at, *core) for core in sorted({self._coarse(w) for w in windows})}
        good = frozenset(core for core, state in states.items() if state is State.OK)
        kept = Receipt.from_json(unit.keep) if unit.keep is not None else None
        if kept is not None and all(states[self._coarse(w)] is not State.OK for w in self._left(windows, kept)):
            # What is left has nothing to be made of: the parent's states are all there is to say.
            same = {(w.row, w.col): w for w in kept.windows}
            told = tuple(same.get(grid.place_in_status(w)) or self._result(at, w, states) for w in windows)
            return replace(kept, windows=told, created=now(), run=self.run_id, term=self.store.term)
        shape = plan.product.channels, grid.lattice.shard, grid.lattice.shard
        stored = np.full(shape, storage.fill, dtype=storage.dtype)
        made: Latents | None = None
        failed: str | None = None
        if good:
            try:
                made = self._sampled(at, unit, good)
            except SourceError as error:
                failed = str(error)
        results: list[WindowResult] = []
        parts: list[Moments] = []
        for window in windows:
            result = self._result(at, window, states)
            if result.state is State.OK and made is None:
                result = replace(result, state=State.READ_FAILED, reason=failed, item=self.how.parent)
            elif result.state is State.OK and made is not None:
                row, col = grid.place_in_shard(window)
                box = slice(row, row + grid.lattice.core), slice(col, col + grid.lattice.core)
                if storage.sound(torch.from_numpy(made[None, :, *box]))[0]:
                    stored[:, *box] = storage.pack(made[:, *box])
                    parts.append(Moments.of(storage.unpack(stored[:, *box])))
                else:
                    what = f"{plan.product.array} not sound"
                    result = replace(result, state=State.ENCODE_FAILED, reason=what)
            results.append(result)
        bytes_out, sha256 = self.store.write_shard(unit.time, unit.row, unit.col, stored, fresh=unit.keep is None)
        return Receipt(
            unit=unit.key, time=unit.time, shard=unit.shard, windows=tuple(results),
            bytes_in=self.parent.bytes_read - before, bytes_out=bytes_out, seconds=time.perf_counter() - started,
            sha256=sha256, moments=Moments.merged(parts), created=now(), run=self.run_id,
            seams=None if made is None else self._seams(unit, made, good), term=self.store.term,
        )  # fmt: skip

    def _sampled(self, at: int, unit: WorkUnit, good: frozenset[Core]) -> Latents:
        """(C, shard, shard) raw latents; ground without a core to keep holds what is left of its neighbours."""
        scale, ring = self.how.scale, self.how.tile[2]
        cores = coarse_cores(self.plan.grid, scale, *unit.shard)
        top, left = (int(v) * self._core - ring for v in cores[0, 0])
        side = self.plan.grid.lattice.shard // scale + 2 * ring
        field = Field(self.parent.latents(at, top, left, side, side), top, left)
        with self.busy.inside():
            found = self.sampler(field, good)
        inner = slice(ring * scale, (side - ring) * scale)
        return found[:, inner, inner]

    def _coarse(self, window: Window) -> Core:
        return window.row // self.how.scale, window.col // self.how.scale

    def _left(self, windows: list[Window], kept: Receipt) -> Iterator[Window]:
        """The windows that a kept receipt does not speak of."""
        known = {(w.row, w.col) for w in kept.windows}
        return (w for w in windows if tuple(self.plan.grid.place_in_status(w)) not in known)

    def _result(self, at: int, window: Window, states: Mapping[Core, State]) -> WindowResult:
        """What the parent's log says of a window's ground: the state, and for an ok one which pixels have a source."""
        place = self.plan.grid.place_in_status(window)
        core = self._coarse(window)
        found, state = self.parent.result(at, *core), states[core]
        if found is None or state is not State.OK:
            unknown = WindowResult(place.row, place.col, state, valid_percent=0)
            if found is None:
                return unknown
            return replace(
                unknown, reason=found.reason, cloud_percent=found.cloud_percent, valid_percent=found.valid_percent,
                item=found.item, asset=found.asset,
            )  # fmt: skip
        return self._covered(place, window, found)

    def _covered(self, place: StatusPlace, window: Window, found: WindowResult) -> WindowResult:
        """An ok window: a parent's source pixel is `scale` x `scale` of its pixels, there or missing as one."""
        scale, lattice = self.how.scale, self.plan.grid.lattice
        core, px = self._core // scale, lattice.stride // scale
        row, col = (v % scale * core for v in (window.row, window.col))
        part = slice(row, row + core), slice(col, col + core)
        coarse_valid = unpack_mask(found.valid_mask, self._core)[part]
        missing = None
        valid = fine(coarse_valid, scale)
        if found.missing is not None:
            bits = unpack_missing(found.missing, self._core, -(-(lattice.stride**2) // 8))[part]
            source = from_cells(bits, lattice.stride)
            missing = fine(source, scale)
            there = ~source.reshape(lattice.core, px, lattice.core, px)
            # What has no pixel by its percent alone, of a version that kept no more, stays so.
            valid = np.where(fine(coarse_valid, scale) == 0, 0, percent(there.mean(axis=(1, 3)))).astype(np.uint8)
        clouds = found.clouds
        if clouds is not None and clouds != CLEAR:
            both = unpack_clouds(clouds, self._core)[:, *part]
            clouds = pack_clouds(np.stack([fine(layer, scale) for layer in both]))
        return WindowResult(
            place.row, place.col, State.OK, valid_percent=int(valid.mean()), cloud_percent=found.cloud_percent,
            valid_mask=pack_mask(valid), missing=pack_missing(missing, lattice.stride), clouds=clouds,
        )  # fmt: skip

    def _seams(self, unit: WorkUnit, made: Latents, good: frozenset[Core]) -> Seams | None:
        """Steps of the latents where two tiles' cores meet, over steps at the same phase inside of them.

        The phase counts: a step between two of the parent's cells is another than one within a cell.
        """
        scale, first = self.how.scale, coarse_cores(self.plan.grid, self.how.scale, *unit.shard)[0, 0]
        side, borders = self._core * scale, 0
        across, inside = Squares(), Squares()
        for row, col in sorted(good):
            y, x = ((int(v) - int(f)) * side for v, f in zip((row, col), first, strict=True))
            own = made[:, y : y + side, x : x + side]
            reach = self.how.tile[1] * scale
            for axis, ahead in ((2, (row, col + 1)), (1, (row + 1, col))):
                turned = np.moveaxis(own, axis, -1)
                at = np.arange(reach + scale, side - reach, scale)
                inside += Squares.of(turned[..., at] - turned[..., at - 1])
                if ahead in good:
                    then = made[:, y : y + side, x + side] if axis == 2 else made[:, y + side, x : x + side]
                    across += Squares.of(then - turned[..., -1])
                    borders += 1
        return Seams(borders, {"latent across": across, "latent inside": inside}) if borders else None


def super_resolver(how: Derivation, device: str = "cpu") -> SuperResolver:
    """The plan's super-resolver. StoreError where its weights are not to be had, or are others."""
    try:
        network = load_sr(how.weights, device=device)
    except WeightsError as error:
        raise StoreError(f"the weights that super-resolve cannot be loaded: {error}") from error
    found = "" if network.meta is None else network.meta.sha256
    if found != how.weights_sha256:
        raise StoreError(
            f"weights {how.weights!r} are not those the cube was begun with: sha256 {found[:12]} here, "
            f"{how.weights_sha256[:12]} in its plan; put the right ones there, or write to another --out"
        )
    return network
