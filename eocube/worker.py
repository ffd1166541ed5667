"""One work unit, start to end, in one process: read windows, encode them, write one shard, give one receipt."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

import numpy as np
import torch

from eocube.catalog import Scene
from eocube.commits import Receipt, State, WindowResult, pack_mask
from eocube.errors import SourceError
from eocube.grid import Window
from eocube.moments import Moments
from eocube.plan import Plan, WorkUnit, digest
from eocube.quality import DATA_RANGE, psnr, sam
from eocube.reader import WindowPixels, WindowReader
from eocube.store import LatentStore

Pixels = Mapping[int, torch.Tensor]


class Encoder(Protocol):
    """What turns pixels into latents; token and embedding models come through the same door."""

    channels: int
    stride: int

    def __call__(self, pixels: Pixels) -> torch.Tensor:
        """{sampling: (B, C_g, H_g, W_g)} in travelling form -> latents (B, channels, H/stride, W/stride), float32."""
        ...


class Decoder(Protocol):
    """What turns stored latents back into physical units."""

    def __call__(self, z: torch.Tensor) -> torch.Tensor:
        """(B, channels, h, w) -> (B, C, h*stride, w*stride), float32 in the sensor's physical unit."""
        ...


class Truth(Protocol):
    """What brings travelling pixels to one sampling in physical units."""

    def __call__(self, pixels: Pixels) -> torch.Tensor:
        """{sampling: (B, C_g, H_g, W_g)} -> (B, C, H, W), float32 in the sensor's physical unit."""
        ...


@dataclass(frozen=True, slots=True)
class Models:
    """The encoder at its precisions, best first, and what verification needs."""

    encoders: Mapping[str, Callable[[], Encoder]]
    """Precision name -> maker; the first is the run's own, the others are tried where its latents are not finite."""
    decoder: Decoder
    truth: Truth
    batch: int = 1
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds a unit's memory and choices."""

    read_threads: int = 8
    encode_threads: int = 1
    ahead: int = 16
    """Windows read and not yet encoded, at most: bounds the memory of an actor whatever the size of a shard."""
    max_cloud: float | None = None
    """Windows whose core is cloudier, in percent of its valid pixels, end `cloudy`."""
    verify_fraction: float = 0.0
    """Share of the windows that are decoded again as they are made, for `psnr` and `sam`."""


@dataclass(frozen=True, slots=True)
class _Read:
    """What reading a window came to: pixels, or the state it ends in."""

    window: Window
    pixels: WindowPixels | None
    state: State
    reason: str | None
    valid_percent: int
    cloud_percent: int
    bytes_read: int
    item: str | None = None
    asset: str | None = None


class UnitRunner:
    """Runs work units of one plan. Safe to call from several threads at once.

    Args:
        plan: the frozen plan.
        store: the store the shards go to.
        models: the encoder at its precisions, the decoder and the truth for verification.
        limits: threads, read-ahead, cloud limit, share to verify.
        storage_options: fsspec options of the sources.
        run_id: goes into every receipt.
    """

    def __init__(
        self,
        plan: Plan,
        store: LatentStore,
        models: Models,
        limits: Limits,
        *,
        storage_options: Mapping[str, object] | None = None,
        run_id: str = "",
    ) -> None:
        self.plan, self.store, self.models, self.limits, self.run_id = plan, store, models, limits, run_id
        self.reader = WindowReader(plan.sensor, plan.grid.lattice, storage_options=storage_options)
        self._readers = ThreadPoolExecutor(limits.read_threads, thread_name_prefix="read")
        # On the CPU a window is computed by one thread, windows in parallel: the fastest, and the same bits every time.
        self._encoders = ThreadPoolExecutor(
            limits.encode_threads, "encode", lambda: torch.set_num_threads(1) if models.device == "cpu" else None
        )
        self._made: dict[str, Encoder] = {}

    def close(self) -> None:
        """Stop the threads and close the sources."""
        self._readers.shutdown(cancel_futures=True)
        self._encoders.shutdown(cancel_futures=True)
        self.reader.close()

    def run(self, unit: WorkUnit) -> Receipt:
        """Do a unit. Raises only what is a defect or concerns the target store: sources fail window by window."""
        started = time.perf_counter()
        plan, grid = self.plan, self.plan.grid
        lattice = grid.lattice
        windows = grid.windows_of_shard(unit.row, unit.col)
        shard = np.full((plan.channels, lattice.shard, lattice.shard), np.nan, dtype=np.float32)
        results: dict[Window, WindowResult] = {}
        bytes_in, precisions = 0, Counter[str]()
        moments: list[Moments] = []

        def keep(read: _Read, latents: np.ndarray | None, state: State, reason: str | None, scores: _Scores) -> None:
            wy, wx = grid.place_in_status(read.window)
            mask = None
            if latents is not None:
                row, col = grid.place_in_shard(read.window)
                shard[:, row : row + lattice.core, col : col + lattice.core] = latents
                mask = None if read.pixels is None else pack_mask(read.pixels.valid)
            results[read.window] = WindowResult(
                row=wy, col=wx, state=state, reason=reason, valid_percent=read.valid_percent,
                cloud_percent=read.cloud_percent, psnr=scores.psnr, sam=scores.sam, valid_mask=mask,
                item=read.item, asset=read.asset,
            )  # fmt: skip

        for batch in self._batches(self._read_all(unit, windows)):
            for read, latents, precision, scores in batch:
                bytes_in += read.bytes_read
                if read.state is not State.OK:
                    keep(read, None, read.state, read.reason, _Scores())
                elif latents is None:
                    keep(read, None, State.ENCODE_FAILED, "latents not finite in any precision", _Scores())
                else:
                    precisions[precision] += 1
                    keep(read, latents, State.OK, None, scores)
                    moments.append(Moments.of(self.store.round_trip(latents)))
        stored = self.store.to_storage(shard)
        bytes_out, sha256 = self.store.write_shard(unit.time, unit.row, unit.col, stored)
        return Receipt(
            unit=unit.key, time=unit.time, shard=(unit.row, unit.col),
            windows=tuple(results[w] for w in windows if w in results),
            bytes_in=bytes_in, bytes_out=bytes_out, seconds=time.perf_counter() - started, sha256=sha256,
            moments=Moments.merged(moments), precision=dict(sorted(precisions.items())),
            created=now(), run=self.run_id,
        )  # fmt: skip

    # -- reading

    def _read_all(self, unit: WorkUnit, windows: Sequence[Window]) -> Iterator[tuple[int, _Read]]:
        """Requested windows in shard order with their place, at most `ahead` of them read and not yet taken."""
        scenes = self.plan.scenes_at(unit.time)
        wanted = deque((k, w) for k, w in enumerate(windows) if self.plan.grid.requested(w))
        pending: deque[tuple[int, Future[_Read]]] = deque()
        try:
            while wanted or pending:
                while wanted and len(pending) < self.limits.ahead:
                    place, window = wanted.popleft()
                    here = self.plan.scenes_of(unit.time, window) if scenes else ()
                    pending.append((place, self._readers.submit(self._read, here, window)))
                place, future = pending.popleft()
                yield place, future.result()
        finally:
            for _, future in pending:
                future.cancel()

    def _read(self, scenes: Sequence[Scene], window: Window) -> _Read:
        valid, cloud, read_so_far = 0, 255, 0
        try:
            if scenes and self.limits.max_cloud is not None:
                valid, cloud, read_so_far = self.reader.mask(scenes, window)
                if cloud != 255 and cloud > self.limits.max_cloud:
                    return _Read(window, None, State.CLOUDY, None, valid, cloud, read_so_far)
            pixels = self.reader.read(scenes, window) if scenes else None
        except SourceError as error:
            return _Read(
                window, None, State.READ_FAILED, str(error), valid, cloud, read_so_far, error.item, error.asset
            )
        if pixels is None or (pixels.valid_percent == 0 and not pixels.valid.any()):
            return _Read(window, None, State.NODATA, None, 0, 255, pixels.bytes_read if pixels else 0)
        return _Read(
            window, pixels, State.OK, None, pixels.valid_percent, pixels.cloud_percent,
            pixels.bytes_read + read_so_far,
        )  # fmt: skip

    # -- encoding

    def _batches(self, reads: Iterator[tuple[int, _Read]]) -> Iterator[list[_Encoded]]:
        """Encode windows as they come; on one window a thread (CPU) or in batches of one fixed size (GPU).

        A window's place in its batch follows from its place in the shard, and absent windows leave their place
        blank, so that its bits never depend on which others were there.
        """
        size = self.models.batch
        pending: deque[Future[list[_Encoded]]] = deque()
        group: list[tuple[int, _Read]] = []
        for place, read in reads:
            if group and place // size != group[0][0] // size:
                pending.append(self._encoders.submit(self._encode, group))
                group = []
            group.append((place, read))
            while len(pending) > self.limits.encode_threads + 1:
                yield pending.popleft().result()
        if group:
            pending.append(self._encoders.submit(self._encode, group))
        while pending:
            yield pending.popleft().result()

    def _encode(self, group: Sequence[tuple[int, _Read]]) -> list[_Encoded]:
        there = [(place % self.models.batch, read) for place, read in group if read.pixels is not None]
        lattice = self.plan.grid.lattice
        core = slice(lattice.halo, lattice.halo + lattice.core)
        found: dict[Window, tuple[np.ndarray, str]] = {}
        left = there
        for precision in self.models.encoders if there else ():
            latents = self._encoder(precision)(self._stack(left)).float().cpu().numpy()
            for place, read in left:
                if np.isfinite(self.store.round_trip(latents[place, :, core, core])).all():
                    found[read.window] = (latents[place], precision)
            left = [(place, read) for place, read in left if read.window not in found]
            if not left:
                break
        done: list[_Encoded] = []
        for _, read in group:
            whole, precision = found.get(read.window, (None, ""))
            scores = _Scores()
            if whole is not None and read.pixels is not None and self._is_sampled(read.window):
                scores = self._score(read.pixels, whole)
            done.append((read, None if whole is None else whole[:, core, core], precision, scores))
        return done

    def _encoder(self, precision: str) -> Encoder:
        if precision not in self._made:
            self._made[precision] = self.models.encoders[precision]()
        return self._made[precision]

    def _stack(self, there: Sequence[tuple[int, _Read]]) -> Pixels:
        first = there[0][1].pixels
        assert first is not None
        stacked: dict[int, torch.Tensor] = {}
        for sampling, array in first.groups.items():
            batch = np.zeros((self.models.batch, *array.shape), dtype=array.dtype)
            for place, read in there:
                assert read.pixels is not None
                batch[place] = read.pixels.groups[sampling]
            stacked[sampling] = torch.from_numpy(batch).to(self.models.device)
        return stacked

    # -- verifying

    def _is_sampled(self, window: Window) -> bool:
        share = int(digest([window.row, window.col], 8), 16) / 16**8
        return share < self.limits.verify_fraction

    def _score(self, pixels: WindowPixels, latents: np.ndarray) -> _Scores:
        """PSNR (range 1 for reflectance, 40 dB for backscatter) and SAM of a window's core.

        Decoded from the window's own latents, halo included, at the precision they are stored in.
        """
        lattice = self.plan.grid.lattice
        stored = torch.from_numpy(self.store.round_trip(latents))[None].to(self.models.device)
        groups = {s: torch.from_numpy(a)[None].to(self.models.device) for s, a in pixels.groups.items()}
        inner = slice(lattice.halo_px, lattice.halo_px + lattice.core_px)
        decoded = self.models.decoder(stored)[0, :, inner, inner].float().cpu().numpy()
        source = self.models.truth(groups)[0, :, inner, inner].float().cpu().numpy()
        seen = np.repeat(np.repeat(pixels.valid == 100, lattice.stride, 0), lattice.stride, 1)
        if not seen.any():
            return _Scores()
        source, decoded = source[:, seen], decoded[:, seen]
        angle = sam(source, decoded) if self.plan.sensor.unit == "reflectance" else None
        return _Scores(psnr(source, decoded, data_range=DATA_RANGE[self.plan.sensor.unit]), angle)


@dataclass(frozen=True, slots=True)
class _Scores:
    psnr: float | None = None
    sam: float | None = None


_Encoded = tuple[_Read, np.ndarray | None, str, _Scores]


def now() -> str:
    """This moment as ISO 8601 UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
