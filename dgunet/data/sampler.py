"""Which image stands at which place of an epoch, and the share of each process."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from dgunet.base.errors import InputError


class SampleKey(NamedTuple):
    """Which sample: the `position` in the epoch makes its random choices, the `index` its image.

    A negative position marks a filler (see `EpochBatchSampler`).
    """

    epoch: int
    position: int
    index: int  # type: ignore[assignment]  # hides tuple.index


class EpochBatchSampler(Sampler[list[SampleKey]]):
    """Yields the keys of one rank's share of every batch, for `DataLoader(batch_sampler=...)`.

    `length` images, each `repeats` times in an epoch, are put into an order that `seed` and the
    epoch decide. `batch_size` is the joint batch over all `world_size` ranks, of which each takes a
    contiguous share, so that they together see exactly the batches of a single process; shares
    differ by one sample at most. The last batch of an epoch may be smaller. A rank without a share
    of it gets one filler key, whose sample has `weight` 0: it takes part in the step without
    counting.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        repeats: int = 1,
    ):
        if batch_size < world_size:
            raise InputError(
                f"OPTIM.BATCH_SIZE: {batch_size} samples for {world_size} processes; "
                "expected at least one for each (it is the joint batch)"
            )
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.rank, self.world_size, self.repeats = rank, world_size, repeats
        self.epoch, self.first_batch = 1, 0

    @property
    def samples(self) -> int:
        """Samples of an epoch, over all ranks."""
        return self.length * self.repeats

    @property
    def batches(self) -> int:
        """Number of batches of a whole epoch."""
        return math.ceil(self.samples / self.batch_size)

    def joint_size(self, batch: int) -> int:
        """Return how many samples the joint batch number `batch` (from 0) of an epoch has."""
        return min(self.batch_size, self.samples - batch * self.batch_size)

    def cuts(self, batch: int) -> list[int]:
        """Return where that joint batch is cut into the ranks' shares, both its ends included."""
        size = self.joint_size(batch)
        return [size * rank // self.world_size for rank in range(self.world_size + 1)]

    def set_position(self, epoch: int, first_batch: int = 0) -> None:
        """Go to an epoch, and within it to a batch: where a resumed run goes on."""
        if not 0 <= first_batch <= self.batches:
            raise ValueError(f"batch {first_batch} of an epoch of {self.batches}")
        self.epoch, self.first_batch = epoch, first_batch

    def __len__(self) -> int:
        """Number of batches left in this epoch."""
        return self.batches - self.first_batch

    def __iter__(self) -> Iterator[list[SampleKey]]:
        epoch, first_batch = self.epoch, self.first_batch
        # The 1 keeps this stream apart from the samples' [seed, epoch, position].
        order = np.random.default_rng([self.seed, epoch, 0, 1]).permutation(self.samples)
        for batch in range(first_batch, self.batches):
            start, cuts = batch * self.batch_size, self.cuts(batch)
            share = [
                SampleKey(epoch, at, int(order[at]) % self.length)
                for at in range(start + cuts[self.rank], start + cuts[self.rank + 1])
            ]
            yield share or [SampleKey(epoch, -1, int(order[start]) % self.length)]
