"""The course of a run: its length, the learning rate of every step, and when to validate.

All of it is a function of the number of steps done, so there is no state to save.
"""

import math

from yacs.config import CfgNode


class Schedule:
    """The course of a run of so many `epochs`, each of so many `batches`, which are its steps. A
    run by TRAINING.MINUTES may end within an epoch."""

    def __init__(self, config: CfgNode, batches: int, epochs: float):
        self.config, self.batches = config, batches
        self.steps = round(epochs * batches)
        self.by_minutes = config.TRAINING.MINUTES > 0

    def rate(self, done: int) -> float:
        """Return the learning rate of the step after `done` steps.

        As published it is set for each epoch: a linear warm-up, then a cosine, or with
        OPTIM.SCHEDULE constant the highest rate. A run by minutes sets it for each step.
        """
        if not self.steps:
            return 0.0  # the length is not known yet
        optim = self.config.OPTIM
        scale = math.sqrt(optim.BATCH_SIZE / optim.LR_BATCH) if optim.LR_BATCH else 1.0
        highest, lowest = scale * optim.LR_INITIAL, scale * optim.LR_MIN
        constant = optim.SCHEDULE == "constant"
        if self.by_minutes:
            if constant:
                return highest
            warmup = min(1.0, (done + 1) / max(1, optim.WARMUP_SHARE * self.steps))
            return warmup * _cosine(highest, lowest, done / self.steps)
        epoch, warmup = done // self.batches, optim.WARMUP_EPOCHS  # counted from 0
        if epoch < warmup:
            return highest * (epoch + 1) / warmup
        if constant:
            return highest / 2 if optim.HALVE_AFTER and epoch >= optim.HALVE_AFTER else highest
        length = max(1, optim.NUM_EPOCHS - warmup) + optim.COSINE_EXTRA_EPOCHS
        return _cosine(highest, lowest, (epoch - warmup) / length)

    def validates_after(self, done: int) -> bool:
        """Tell whether a validation is due after `done` steps, at least one.

        A run by minutes has VAL_TIMES evenly spaced validations. A run by epochs validates at the
        end of the epochs that the configuration names or, with VAL_TIMES, within them.
        """
        if self.by_minutes:
            times = self.config.TRAINING.VAL_TIMES
            return done in {round(self.steps * number / times) for number in range(1, times + 1)}
        epoch, batch = divmod(done - 1, self.batches)
        return batch + 1 in validation_batches(self.config, epoch + 1, self.batches)


def validation_batches(config: CfgNode, epoch: int, batches: int) -> set[int]:
    """Return after how many of its batches to validate in an epoch, counted from 1.

    VAL_TIMES in an epoch is after q + 1, 2q + 1, 3q + 1 … batches, q = ⌊batches / VAL_TIMES⌋ − 1:
    as published, after the batches number q, 2q, 3q … counted from 0.
    """
    keys = config.TRAINING
    due = epoch % keys.VAL_AFTER_EVERY == 0
    if keys.VAL_EPOCHS:
        due = epoch in keys.VAL_EPOCHS or epoch > keys.VAL_ALWAYS_AFTER
    if not due:
        return set()
    every = batches // keys.VAL_TIMES - 1
    if keys.VAL_TIMES == 1 or every < 1:
        return {batches}
    return {every * number + 1 for number in range(1, keys.VAL_TIMES + 1)}


def _cosine(highest: float, lowest: float, share: float) -> float:
    """Return the cosine schedule's rate after a share of its length (Loshchilov and Hutter 2017,
    equation 5)."""
    return lowest + (highest - lowest) * (1 + math.cos(math.pi * share)) / 2
