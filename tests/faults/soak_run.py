"""Thousands of small units through the real engine against an S3 server, memory watched: FOLDER/result.json.

    python -m tests.faults.soak_run FOLDER CATALOG BUCKET STORAGE_OPTIONS_AS_JSON UNITS

Scenes, shards and log all travel over S3; the encoder is a tiny one. A unit is one window.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import s3fs

from eocube.demo.catalogue import DEMO_BBOX, DEMO_DATETIME
from eocube.ground.grid import grids_for
from eocube.plan.plan import Plan, build_plan
from eocube.products.eo_vae_document import Encoding, latents
from eocube.run import driver as engine
from eocube.run.actor import EncodeActor
from eocube.run.options import Cube, EngineOptions, Limits
from eocube.run.ray_session import ray_session
from eocube.scenes import search as catalog
from eocube.scenes.scene import Scene
from eocube.store.store import CubeStore
from model.weights import load_weights
from tests.eocube.cubes import make_weights, sensor_of


def soak_plan(folder: Path, catalog_json: str, upload: s3fs.S3FileSystem, bucket: str, units: int) -> Plan:
    """A plan of at least so many units: one demo date, its files in the bucket, at as many times as it takes."""
    weights = make_weights(folder / "w.safetensors")
    meta = load_weights(weights).meta
    assert meta is not None
    sensor = sensor_of("S2L2A").with_weights(meta)
    grid = grids_for(DEMO_BBOX, 10, core_px=48, halo_px=16, shard_px=48)[0]
    found = catalog.search(catalog_json, sensor, DEMO_BBOX, catalog.parse_interval(DEMO_DATETIME)).scenes
    first = min(found, key=lambda s: s.time)
    moved: dict[str, str] = {}
    for source in (*first.sources, *([first.mask] if first.mask else [])):
        moved[source.href] = f"s3://{bucket}/scene/{Path(source.href).name}"
        upload.put_file(source.href, moved[source.href])
    there = replace(
        first,
        sources=tuple(replace(s, href=moved[s.href]) for s in first.sources),
        mask=None if first.mask is None else replace(first.mask, href=moved[first.mask.href]),
    )
    per_time = len(list(grid.shards()))
    scenes: list[Scene] = []
    for k in range(-(-units // per_time)):
        day = f"2024-{5 + k // 28:02d}-{1 + k % 28:02d}T10:00:00Z"
        scenes.append(replace(there, id=f"{first.id}-{k}", group=f"g{k:03d}", time=day, datetime=day))
    encoding = Encoding(str(weights), "tiny", meta.sha256, 4, 8, "fp32", "fp16")
    return build_plan(latents(sensor, encoding, grid.lattice), grid, scenes, {"bbox": list(DEMO_BBOX)})


class Watch:
    """Resident megabytes of this process and of the encoding actors, twice a second."""

    def __init__(self) -> None:
        self.curve: list[tuple[float, float, float]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        me, started = psutil.Process(), time.monotonic()
        actors: list[psutil.Process] = []
        while not self._stop.wait(0.5):
            if not actors:
                actors = [p for p in me.children(recursive=True) if "EncodeActor" in " ".join(p.cmdline())]
            with_actors = sum(p.memory_info().rss for p in actors if p.is_running())
            self.curve.append((time.monotonic() - started, me.memory_info().rss / 1e6, with_actors / 1e6))

    def stop(self) -> list[tuple[float, float, float]]:
        """The curve: seconds, driver, actors; from the moment there was an actor."""
        self._stop.set()
        self._thread.join()
        return [(round(t, 1), round(d, 1), round(a, 1)) for t, d, a in self.curve if a]


def main(folder: Path, catalog_json: str, bucket: str, options: dict[str, Any], units: int) -> dict[str, Any]:
    """Run, and say what it came to."""
    logging.getLogger("eocube").setLevel(logging.WARNING)
    url = f"s3://{bucket}/cube.zarr"
    plan = soak_plan(folder, catalog_json, s3fs.S3FileSystem(**options), bucket, units)
    CubeStore.create(url, plan, storage_options=options)
    todo = [(0, unit) for unit in plan.units()]
    given = EngineOptions(
        actors=1, limits=Limits(read_threads=4), storage_options=options, source_options=options, quiet=True,
        log_dir=str(folder),
    )  # fmt: skip
    started = time.monotonic()
    with ray_session(gpus=False):
        watch = Watch()
        tally = engine.run([Cube(plan, url)], given, iter(todo), "soak", actor_class=EncodeActor)
        curve = watch.stop()
    store = CubeStore.open(url, storage_options=options)
    logged = [r.unit for r in store.log.receipts()]
    return {
        "units": len(todo),
        "logged": len(logged),
        "different": len(set(logged)),
        "windows": {s.label: n for s, n in tally.windows.items()},
        "requeued": tally.requeued,
        "lost": tally.lost,
        "seconds": round(time.monotonic() - started, 1),
        "curve": curve,
    }


if __name__ == "__main__":
    os.environ["RAY_AUTH_MODE"] = "disabled"
    found = main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], json.loads(sys.argv[4]), int(sys.argv[5]))
    (Path(sys.argv[1]) / "result.json").write_text(json.dumps(found))
