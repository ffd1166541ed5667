"""Shows what a run does: a history of every step, TensorBoard, Weights & Biases where installed, pictures."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import fsspec
import numpy as np
from numpy.typing import NDArray

from model.sensors import Floats, TrainedSensor

log = logging.getLogger(__name__)
HISTORY = "history.jsonl"
_RGB = ("B04", "B03", "B02")


def _local(url: str) -> Path | None:
    """The path of a local URL, None for another."""
    fs, root = fsspec.url_to_fs(url)
    protocols = fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,)
    return Path(root) if "file" in protocols else None


class Tracker:
    """Scalars and pictures of one run under an fsspec URL; only the leading worker has one.

    TensorBoard's files and the history are local; for another kind of URL they are copied up by `sync`, which the loop
    calls with every checkpoint.
    """

    def __init__(self, url: str, name: str, about: Mapping[str, Any] | None = None) -> None:
        self.url, self.name, self.about = url, name, dict(about or {})
        self._history: IO[str] | None = None
        self._board: Any = None
        self._wandb: Any = None

    def open(self, total: int) -> None:
        """Begin, or go on after optimiser step `total`: what was written of later steps is dropped, because those steps
        are done again."""
        from tensorboardX import SummaryWriter

        local = _local(self.url)
        self.remote = local is None
        self.folder = Path(tempfile.mkdtemp(prefix="eocube-run-")) if local is None else local
        self.folder.mkdir(parents=True, exist_ok=True)
        self._resume(total)
        self._history = (self.folder / HISTORY).open("a", encoding="utf-8")
        self._board = SummaryWriter(str(self.folder), purge_step=total or None)
        self._wandb = _wandb(self.name, self.url, self.about)

    def _resume(self, total: int) -> None:
        path = self.folder / HISTORY
        if self.remote:
            fs, root = fsspec.url_to_fs(self.url)
            if fs.exists(f"{root}/{HISTORY}"):
                fs.get_file(f"{root}/{HISTORY}", str(path))
        if path.is_file():
            # a line cut short by a kill belongs to a step after the checkpoint
            lines = [
                line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("}\n")
            ]
            path.write_text("".join(line for line in lines if json.loads(line)["step"] <= total), encoding="utf-8")

    def scalars(self, step: int, stage: str, values: Mapping[str, float]) -> None:
        """The figures of optimiser step `step`, counted from 1 over all stages."""
        if self._history is None:
            raise RuntimeError("the tracker is not open")
        self._history.write(json.dumps({"step": step, "stage": stage, **values}) + "\n")
        for key, value in values.items():
            self._board.add_scalar(key, value, step)
        if self._wandb is not None:
            self._wandb.log(dict(values), step=step)

    def picture(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        """A picture (H, W, 3)."""
        self._board.add_image(name, pixels, step, dataformats="HWC")
        if self._wandb is not None:
            import wandb

            self._wandb.log({name: wandb.Image(pixels)}, step=step)

    def sync(self) -> None:
        """Bring everything to its place, so that a kill loses nothing up to here."""
        if self._history is None:
            return
        self._history.flush()
        os.fsync(self._history.fileno())
        self._board.flush()
        if not self.remote:
            return
        fs, root = fsspec.url_to_fs(self.url)
        for file in sorted(self.folder.iterdir()):
            fs.put_file(str(file), f"{root}/{file.name}")

    def close(self) -> None:
        """Sync and end."""
        if self._history is None:
            return
        self.sync()
        self._history.close()
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def _wandb(name: str, url: str, about: Mapping[str, Any]) -> Any:
    """A Weights & Biases run where the package is installed and signed in, else None; training never waits for it."""
    if importlib.util.find_spec("wandb") is None:
        return None
    import wandb

    try:
        identity = hashlib.blake2b(url.encode(), digest_size=8).hexdigest()  # the same run after a resumption
        return wandb.init(project="eocube", name=name, id=identity, config={"storage": url, **about}, resume="allow")
    except Exception as error:  # whatever its service says, the run goes on without
        log.warning("Weights & Biases is installed but does not start (%s): going on without", str(error)[:160])
        return None


def read_history(url: str) -> list[dict[str, Any]]:
    """The history under a run's URL: one mapping a step."""
    fs, root = fsspec.url_to_fs(url)
    text = fs.cat_file(f"{root}/{HISTORY}").decode()
    return [json.loads(line) for line in text.splitlines()]


def panel(target: Floats, prediction: Floats, sensor: TrainedSensor) -> NDArray[np.uint8]:
    """Source, reconstruction and error times four, side by side: (H, 3 * W, 3) from z-scores (C, H, W).

    Red, green and blue where the sensor has Sentinel-2's, else its first, middle and last band; 2 to 98 percent of the
    source, the same stretch for both.
    """
    bands = sensor.bands
    shown: Sequence[int] = (
        [bands.index(b) for b in _RGB] if set(_RGB) <= set(bands) else [0, len(bands) // 2, len(bands) - 1]
    )
    source, result = target[list(shown)], prediction[list(shown)]
    low, high = (np.percentile(source, q, axis=(1, 2), keepdims=True) for q in (2, 98))
    span = np.maximum(high - low, 1e-6)
    panels = [(source - low) / span, (result - low) / span, 4 * np.abs(result - source) / span]
    whole = np.concatenate([np.clip(p, 0, 1) for p in panels], axis=2)
    picture: NDArray[np.uint8] = np.round(255 * whole.transpose(1, 2, 0)).astype(np.uint8)
    return picture
