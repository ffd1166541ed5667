"""Streams shards as endless, shuffled samples: shared out over the workers, exactly once an epoch, resumable."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from model.training.sources.ledger import Ledger
from model.training.sources.shards import Sample, Shard, ShardError, read_shard

# Streams of random numbers that must not be the same.
_ORDER, _BUFFER = 0, 1


@dataclass(frozen=True, slots=True)
class Worker:
    """One of `count` readers that share the data: the workers of a training run."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValueError(f"worker {self.index} of {self.count}: workers count from 0")


@dataclass(frozen=True, slots=True)
class Part:
    """What one worker reads of one shard: the samples whose ordinal leaves `remainder` when divided by `modulus`."""

    shard: int
    modulus: int = 1
    remainder: int = 0

    def wants(self, ordinal: int) -> bool:
        """Whether the sample of that ordinal is this worker's."""
        return ordinal % self.modulus == self.remainder


def share_out(order: Sequence[int], worker: Worker) -> list[Part]:
    """One worker's parts of the shards, which come in the order of this epoch.

    Whole shards as far as they go round evenly; the rest is read by all, each taking every n-th sample. So every sample
    is exactly one worker's, and the workers' numbers of samples differ as little as the shards' own sizes do.
    """
    even = len(order) - len(order) % worker.count
    whole = [Part(shard) for shard in order[worker.index : even : worker.count]]
    return whole + [Part(shard, worker.count, worker.index) for shard in order[even:]]


@dataclass(slots=True)
class ShardStream:
    """Samples of `shards` without end, epoch after epoch; within an epoch each sample of this worker comes once.

    Every epoch has another order of shards, and a buffer of `buffer` packed samples mixes neighbours (1 keeps the
    shard's order). All chance comes from `seed`. A shard that is damaged gives what lies before the fault; it is
    counted and named in `ledger`, as are keys that some modality lacks. The state holds places, no pixels: to resume,
    the samples that lay in the buffer are read again.

    Raises (while iterating):
        ValueError: a whole epoch gave no sample.
    """

    shards: Sequence[Shard]
    seed: int = 0
    worker: Worker = field(default_factory=Worker)
    buffer: int = 512
    shuffle: bool = True
    storage_options: Mapping[str, Any] | None = None
    ledger: Ledger = field(default_factory=Ledger)
    epoch: int = field(init=False, default=0)
    _part: int = field(init=False, default=0)
    _ordinal: int = field(init=False, default=0)
    _given: int = field(init=False, default=0)
    _held: list[tuple[int, Sample]] = field(init=False, default_factory=list)
    _running: Iterator[tuple[int, Sample]] | None = field(init=False, default=None)
    _rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        if not self.shards:
            raise ValueError("no shards: check the URL of the data set")
        if self.buffer < 1:
            raise ValueError(f"shuffle buffer of {self.buffer} samples: it holds 1 or more")
        self._rng = self._random(_BUFFER, self.worker.index, self.worker.count)

    def __iter__(self) -> ShardStream:
        return self

    def __next__(self) -> Sample:
        while True:
            if self._running is None:
                self._running = self._incoming()
            size = self.buffer if self.shuffle else 1
            while len(self._held) < size:
                one = next(self._running, None)
                if one is None:
                    break
                self._held.append(one)
            if self._held:
                place = int(self._rng.integers(len(self._held))) if self.shuffle else 0
                self._held[place], self._held[-1] = self._held[-1], self._held[place]
                self._given += 1
                return self._held.pop()[1]
            if not self._given:
                raise ValueError(
                    f"worker {self.worker.index} found no sample in {len(self._parts())} shards: {self.ledger.excuse()}"
                )
            self.epoch, self._part, self._ordinal, self._given, self._running = self.epoch + 1, 0, 0, 0, None

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is: epoch, place in the shards, what the buffer holds (by place), random state, ledger."""
        return {
            "data": self.fingerprint,
            "epoch": self.epoch,
            "part": self._part,
            "ordinal": self._ordinal,
            "given": self._given,
            "held": [[part, sample.ordinal] for part, sample in self._held],
            "rng": deepcopy(self._rng.bit_generator.state),
            "ledger": self.ledger.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken; reads the buffer's samples again.

        ValueError where the state is of other shards, another seed, buffer or number of workers, or where a sample of
        the buffer is no longer there.
        """
        if state.get("data") != self.fingerprint:
            raise ValueError(
                "the saved place is of other shards, another seed, shuffle buffer or number of workers: resume with "
                "the same data arguments, or start a new run"
            )
        self.epoch, self._part, self._ordinal, self._given = (
            int(state[key]) for key in ("epoch", "part", "ordinal", "given")
        )
        self._running = None
        self._rng.bit_generator.state = deepcopy(state["rng"])
        parts = self._parts()
        again: dict[tuple[int, int], Sample] = {}
        for number in sorted({int(part) for part, _ in state["held"]}):
            ordinals = {int(o) for part, o in state["held"] if part == number}
            again |= {(number, s.ordinal): s for s in self._again(parts[number], ordinals)}
        missing = [f"{self.shards[parts[p].shard].name} {o}" for p, o in state["held"] if (p, o) not in again]
        if missing:
            raise ValueError(f"cannot resume: {len(missing)} samples are no longer there, such as {missing[0]}")
        self._held = [(int(part), again[int(part), int(ordinal)]) for part, ordinal in state["held"]]
        self.ledger.load_state_dict(state["ledger"])

    @property
    def fingerprint(self) -> str:
        """Hash of all that the order of samples depends on. URLs count by their file's name: data may move."""
        names = [(shard.name, [modality for modality, _ in shard.urls]) for shard in self.shards]
        said = repr((names, self.seed, self.worker, self.buffer, self.shuffle))
        return hashlib.blake2b(said.encode(), digest_size=12).hexdigest()

    def share(self, sizes: Mapping[str, int]) -> int | None:
        """This worker's samples in the first epoch, given each shard's number; None where one is not known.

        Other epochs deal the shards out otherwise, and may differ by as much as the shards do: a run's schedule must
        not depend on when this is asked.
        """
        parts = self._parts(0)
        known = [sizes.get(self.shards[part.shard].name) for part in parts]
        if any(n is None for n in known):
            return None
        return sum(len(range(p.remainder, n, p.modulus)) for p, n in zip(parts, known, strict=True) if n is not None)

    def _random(self, *what: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *what])

    def _parts(self, epoch: int | None = None) -> list[Part]:
        order = list(range(len(self.shards)))
        if self.shuffle:
            at = self.epoch if epoch is None else epoch
            order = [int(i) for i in self._random(_ORDER, at).permutation(len(order))]
        return share_out(order, self.worker)

    def _incoming(self) -> Iterator[tuple[int, Sample]]:
        """The rest of the epoch in the shards' order, from (`_part`, `_ordinal`) on."""
        for number, part in enumerate(self._parts()):
            if number < self._part:
                continue
            start = self._ordinal if number == self._part else 0

            def wanted(ordinal: int, part: Part = part, start: int = start) -> bool:
                return ordinal >= start and part.wants(ordinal)

            shard = self.shards[part.shard]
            try:
                for sample in read_shard(
                    shard, wanted, self.storage_options, incomplete=lambda key, why: self.ledger.add("sample", key, why)
                ):
                    self._part, self._ordinal = number, sample.ordinal + 1
                    yield number, sample
            except ShardError as error:
                self.ledger.add("shard", shard.name, str(error))
            self._part, self._ordinal = number + 1, 0

    def _again(self, part: Part, ordinals: set[int]) -> Iterator[Sample]:
        left = set(ordinals)
        try:
            for sample in read_shard(self.shards[part.shard], lambda o: o in ordinals, self.storage_options):
                yield sample
                left.discard(sample.ordinal)
                if not left:
                    return
        except ShardError:
            return
