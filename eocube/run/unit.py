"""Carries out one work unit, start to end: reads windows, encodes them, writes one shard, gives one receipt."""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from threading import Lock

import numpy as np
import torch

from eocube.errors import SourceError
from eocube.ground.grid import Window
from eocube.net.network import counting
from eocube.net.trust import here
from eocube.plan.plan import Plan, WorkUnit
from eocube.plan.rules import read_by
from eocube.products.base import Encoder, Inputs, Models
from eocube.read.coverage import pack_clouds, pack_missing
from eocube.read.plausible import is_dark
from eocube.read.reader import WindowReader
from eocube.read.window_pixels import Mask, WindowPixels
from eocube.run.kept import read_kept
from eocube.run.lanes import Lanes
from eocube.run.memory import windows_at_once
from eocube.run.options import Limits
from eocube.run.prometheus import BusyClock
from eocube.run.selfcheck import BorderBook, Checked, Scores, SelfCheck
from eocube.run.shard_batches import ShardBatches
from eocube.run.shard_values import ShardValues, as_packed
from eocube.scenes.search import Scene
from eocube.store.receipts import Receipt, State, WindowResult, now, pack_mask
from eocube.store.seams import Seams
from eocube.store.store import CubeStore
from model.crossing import Crossing, Returned
from model.host import narrowed, to_host


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A window to read: its place in the shard and the scenes that touch it."""

    place: int
    window: Window
    scenes: tuple[Scene, ...]


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


def all_local(plan: Plan) -> bool:
    """Whether every scene is a file of this machine: then reading computes, where it otherwise waits."""
    return all(here(source.href) for scene in plan.scenes for source in scene.sources)


class UnitRunner:
    """Runs work units of one plan. Safe to call from several threads at once.

    Each unit is read whole and then encoded, one unit at a time: while one is encoded, the next is read.

    Args:
        plan: the frozen plan.
        store: the store the shards go to.
        models: the encoder at its precisions, the decoder and the truth for verification.
        limits: threads, rows that are held, cloud limit, share to verify.
        storage_options: fsspec options of the sources.
        run_id: goes into every receipt.
        busy: measures when something is encoded; runners of one device share theirs.
        inputs: what windows are read by, closed with the runner. By default the plan's scenes.
        crossing: how pixels get to where they are encoded; by default to the models' device.
    """

    def __init__(
        self,
        plan: Plan,
        store: CubeStore,
        models: Models,
        limits: Limits,
        *,
        storage_options: Mapping[str, object] | None = None,
        run_id: str = "",
        busy: BusyClock | None = None,
        inputs: Inputs | None = None,
        crossing: Crossing | None = None,
    ) -> None:
        self.plan, self.store, self.models, self.limits, self.run_id = plan, store, models, limits, run_id
        self.busy = busy or BusyClock()
        self._inputs: Inputs = inputs or WindowReader(plan.sensor, plan.grid.lattice, storage_options=storage_options)
        self._crossing = crossing or Crossing(models.device)
        # On the CPU a window is computed by one thread, windows in parallel: the fastest, and the same bits every time.
        # On a GPU two threads: while one batch is computed, the next one is asked for.
        threads = limits.encode_threads if models.device == "cpu" else max(2, limits.encode_threads)
        self._encoders = ThreadPoolExecutor(
            threads, "encode", lambda: torch.set_num_threads(1) if models.device == "cpu" else None
        )
        # Remote reads wait, many together; local ones compute: on no more threads than cores, and by the threads that
        # encode where these compute on the same cores.
        local = all_local(plan)
        readers = min(limits.read_threads, os.cpu_count() or 1) if local else limits.read_threads
        self._lanes = Lanes(readers, self._encoders if local and models.device == "cpu" else None)
        self._turn = Lock()
        self._check = (
            None
            if models.decoder is None or models.truth is None
            else SelfCheck(
                plan.grid, plan.sensor, limits.verify_fraction, decoder=models.decoder, truth=models.truth,
                device=models.device, floor=models.psnr_floor,
            )
        )  # fmt: skip
        self._made: dict[str, Encoder] = {}
        self._making = Lock()

    def close(self) -> None:
        """Stop the threads and close the sources."""
        self._lanes.close()
        self._encoders.shutdown(cancel_futures=True)
        self._inputs.close()

    def run(self, unit: WorkUnit) -> Receipt:
        """Do a unit. Raises only what is a defect or concerns the target store: sources fail window by window."""
        with counting() as network:
            receipt = self._run(unit)
        return replace(receipt, retries=network.retries)

    def _run(self, unit: WorkUnit) -> Receipt:
        started = time.perf_counter()
        plan, grid = self.plan, self.plan.grid
        lattice = grid.lattice
        windows = grid.windows_of_shard(*unit.shard)
        kept = read_kept(plan, self.store, unit)
        values = ShardValues(plan.product, grid, self.store.storage)
        results: dict[Window, WindowResult] = dict(kept.results)
        bytes_in, precisions, dark = 0, Counter(kept.precision), Counter(kept.dark)
        borders = BorderBook()

        def keep(read: _Read, latents: np.ndarray | None, state: State, reason: str | None, scores: Scores) -> None:
            wy, wx = grid.place_in_status(read.window)
            mask = missing = clouds = None
            if latents is not None:
                values.add(read.window, latents)
                if read.pixels is not None:
                    # Whole windows, as nearly all are, need no look at their mask.
                    mask = None if read.pixels.valid_percent == 100 else pack_mask(read.pixels.valid)
                    clouds = pack_clouds(read.pixels.clouds)
                    missing = pack_missing(read.pixels.missing, lattice.stride)
            results[read.window] = WindowResult(
                row=wy, col=wx, state=state, reason=reason, valid_percent=read.valid_percent,
                cloud_percent=read.cloud_percent, psnr=scores.psnr, sam=scores.sam, valid_mask=mask,
                item=read.item, asset=read.asset, missing=missing, clouds=clouds,
            )  # fmt: skip

        asked = [(k, w) for k, w in enumerate(windows) if grid.requested(w) and w not in results]
        scenes = plan.scenes_of_each(unit.time, [w for _, w in asked])
        left = [_Wanted(k, w, touching) for (k, w), touching in zip(asked, scenes, strict=True)]
        with closing(self._encoded(left)) as encoded:  # whatever happens, the next unit gets its turn
            for read, latents, precision, checked in encoded:
                bytes_in += read.bytes_read
                if read.state is not State.OK:
                    keep(read, None, read.state, read.reason, Scores())
                elif latents is None:
                    keep(read, None, State.ENCODE_FAILED, f"{plan.product.array} not sound in any precision", Scores())
                else:
                    precisions[precision] += 1
                    keep(read, latents, State.OK, checked.scores.breach, checked.scores)
                    borders.add(read.window, checked)
                    if read.pixels is not None and is_dark(read.pixels.groups, plan.sensor):
                        dark.update(read.pixels.scene_ids)
        for window, stored in kept.latents.items():
            values.keep(window, stored)
        bytes_out, sha256 = self.store.write_shard(
            unit.time, unit.row, unit.col, values.whole(), fresh=unit.keep is None
        )
        return Receipt(
            unit=unit.key, time=unit.time, shard=unit.shard,
            windows=tuple(results[w] for w in windows if w in results),
            bytes_in=bytes_in, bytes_out=bytes_out, seconds=time.perf_counter() - started, sha256=sha256,
            **values.summary(windows),
            precision=dict(sorted(precisions.items())), created=now(), run=self.run_id,
            seams=_together(kept.seams, borders.total()), term=self.store.term,
            rules={**kept.rules, **read_by({s.id: s for w in left for s in w.scenes}.values())},
            dark=dict(sorted(dark.items())),
        )  # fmt: skip

    def _round_trip(self, values: np.ndarray) -> np.ndarray:
        """Values as a reader of the store will see them."""
        storage = self.store.storage
        return storage.unpack(storage.pack(values))

    # -- reading

    def _parts(self, windows: Sequence[_Wanted]) -> Iterator[list[_Wanted]]:
        """Windows that are held at once: as many whole batches as the rows of the shard hold that the limits allow."""
        most = windows_at_once(self.plan.grid.lattice, self.limits, self.models.batch)
        for _, part in groupby(windows, lambda wanted: wanted.place // most):
            yield list(part)

    def _read_part(self, part: Sequence[_Wanted]) -> list[tuple[int, _Read]]:
        """Windows with their place in the shard, in its order: read as one, those alone of which that cannot be had."""
        scenes = {wanted.window: wanted.scenes for wanted in part if wanted.scenes}
        given = self._inputs.read_shard(scenes, self.limits.max_cloud, self._lanes.submit) if scenes else {}
        reads: list[tuple[int, Future[_Read] | _Read]] = []
        for wanted in part:
            if wanted.window in given:
                reads.append((wanted.place, _given(wanted.window, *given[wanted.window])))
            else:
                alone = partial(self._read, wanted.scenes, wanted.window)
                reads.append((wanted.place, self._lanes.any(alone) if wanted.scenes else alone()))
        return [(place, read.result() if isinstance(read, Future) else read) for place, read in reads]

    def _read(self, scenes: Sequence[Scene], window: Window) -> _Read:
        valid, cloud, read_so_far = 0, 255, 0
        try:
            if scenes and self.limits.max_cloud is not None:
                valid, cloud, read_so_far = self._inputs.mask(scenes, window)
                if cloud != 255 and cloud > self.limits.max_cloud:
                    return _Read(window, None, State.CLOUDY, None, valid, cloud, read_so_far)
            pixels = self._inputs.read(scenes, window) if scenes else None
        except SourceError as error:
            return _Read(
                window, None, State.READ_FAILED, str(error), valid, cloud, read_so_far, error.item, error.asset
            )
        if pixels is None:
            return _Read(window, None, State.NODATA, None, 0, 255, 0)
        return _whole(window, pixels, read_so_far)

    # -- encoding

    def _encoded(self, windows: Sequence[_Wanted]) -> Generator[_Encoded, None, None]:
        """Read and encode windows; on one window a thread (CPU) or in batches of one fixed size (GPU).

        A window's place in its batch follows from its place in the shard, and absent windows leave their place
        blank, so that its bits never depend on which others were there. Units take turns in having theirs encoded:
        without, all would be read at once, and then none while all are encoded. What a unit has read crosses to the
        device before its turn comes.
        """
        size = self.models.batch
        for part in self._parts(windows):
            reads = self._read_part(part)
            there = {place: read.pixels for place, read in reads if read.pixels is not None}
            batches = ShardBatches(there, size, self._crossing)
            returned = Returned(batches.places)
            pending: deque[Future[list[_Encoded]]] = deque()
            with self._turn:
                for number, group in groupby(reads, lambda read: read[0] // size):
                    work = partial(self._timed, batches, number, list(group), returned)
                    pending.append(self._encoders.submit(work))
                    while len(pending) > self.limits.encode_threads + 1:
                        yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
            del reads, there, batches, returned, work  # before the next part is read

    def _timed(
        self, batches: ShardBatches, number: int, group: Sequence[tuple[int, _Read]], returned: Returned
    ) -> list[_Encoded]:
        with self.busy.inside(), self._crossing.lane():
            return self._encode(batches, number, group, returned)

    def _encode(
        self, batches: ShardBatches, number: int, group: Sequence[tuple[int, _Read]], returned: Returned
    ) -> list[_Encoded]:
        size = self.models.batch
        there = [(place, read) for place, read in group if read.pixels is not None]
        lattice = self.plan.grid.lattice
        # Where the halo is not whole cells, nothing is made of it.
        halo = lattice.halo if lattice.halo_is_cells else 0
        core = slice(halo, halo + lattice.core)
        found: dict[int, tuple[np.ndarray, str]] = {}
        left = [place for place, _ in there]
        for turn, precision in enumerate(self.models.encoders if there else ()):
            encoder, again = self._encoder(precision), turn > 0
            encoded = narrowed(encoder(batches.batch(number, left if again else None)))
            # What the first precision made stays where it is.
            host = to_host(encoded) if again else returned.bring(encoded, number * size - batches.first)
            sound = self.store.storage.sound(encoded[:, :, core, core])
            name = f"{precision} in half batches" if getattr(encoder, "halved", False) else precision
            for place in left:
                if sound[place % size]:
                    found[place] = (as_packed(host[place % size], self.store.storage), name)
            left = [place for place in left if place not in found]
            if not left:
                break
        done: list[_Encoded] = []
        for place, read in group:
            whole, precision = found.get(place, (None, ""))
            checked = Checked()
            if (
                self._check is not None
                and whole is not None
                and read.pixels is not None
                and self._check.samples(read.window)
            ):
                pixels = batches.window(place)
                checked = self._check.check(read.window, read.pixels, self._round_trip(whole), pixels)
            done.append((read, None if whole is None else whole[:, core, core], precision, checked))
        return done

    def _encoder(self, precision: str) -> Encoder:
        with self._making:  # threads that start together share one encoder
            if precision not in self._made:
                self._made[precision] = self.models.encoders[precision]()
            return self._made[precision]


def _whole(window: Window, pixels: WindowPixels, read_before: int = 0) -> _Read:
    """What reading came to by the pixels there are."""
    if pixels.valid_percent == 0 and not pixels.valid.any():
        return _Read(window, None, State.NODATA, None, 0, 255, pixels.bytes_read + read_before)
    return _Read(
        window, pixels, State.OK, None, pixels.valid_percent, pixels.cloud_percent, pixels.bytes_read + read_before
    )


def _given(window: Window, mask: Mask, pixels: WindowPixels | None) -> _Read:
    """What reading a window with its shard came to."""
    if pixels is None:
        return _Read(window, None, State.CLOUDY, None, mask.valid_percent, mask.cloud_percent, mask.bytes_read)
    return _whole(window, pixels)


_Encoded = tuple[_Read, np.ndarray | None, str, Checked]


def _together(*parts: Seams | None) -> Seams | None:
    given = [part for part in parts if part is not None]
    return Seams.merged(given) if given else None
