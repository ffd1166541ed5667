"""Batches made in processes of their own, by torch's DataLoader, where one thread's unpacking is too slow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from model.training.batch import Batch
from model.training.sources.patch import BatchSource
from model.training.sources.stream import Worker


class BatchDataset(IterableDataset[Batch]):
    """Endless batches of one size; each loader process opens its own share of the data.

    `open_source` gets the reader it stands for: of the worker alone, or of one loader process of it. Loader processes
    hand on no state, so a run that must resume to the batch draws through `Prefetch` instead.
    """

    def __init__(
        self, open_source: Callable[[Worker], BatchSource], batch_size: int, patch: int, worker: Worker | None = None
    ) -> None:
        self._open, self._size, self._patch, self._worker = open_source, batch_size, patch, worker or Worker()

    def __iter__(self) -> Iterator[Batch]:
        process = get_worker_info()
        reader = self._worker if process is None else self._worker.within(process.id, process.num_workers)
        source = self._open(reader)
        while True:
            yield source.draw(self._size, self._patch)


def load(dataset: BatchDataset, processes: int, *, pin: bool = False) -> Iterator[Batch]:
    """Batches from `processes` loader processes, in turn; `open_source` must pickle."""
    return cast(Iterator[Batch], iter(DataLoader(dataset, batch_size=None, num_workers=processes, pin_memory=pin)))
