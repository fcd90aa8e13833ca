"""The learning rate, when to validate, and when a run ends: by epochs or by the clock."""

import math
import time

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler
from warmup_scheduler import GradualWarmupScheduler
from yacs.config import CfgNode


def highest_and_lowest_rate(optim: CfgNode) -> tuple[float, float]:
    """Return LR_INITIAL and LR_MIN, scaled by the square root of the batch if LR_BATCH is given."""
    factor = math.sqrt(optim.BATCH_SIZE / optim.LR_BATCH) if optim.LR_BATCH else 1.0
    return factor * optim.LR_INITIAL, factor * optim.LR_MIN


def build_scheduler(optimizer: Optimizer, config: CfgNode) -> LRScheduler:
    """Return what sets the learning rate of every epoch, to be stepped after each: as published a
    warm-up, then a cosine; or OPTIM.SCHEDULE constant. With TRAINING.MINUTES `Clock.rate` does."""
    optim = config.OPTIM
    warmup = 0 if config.TRAINING.MINUTES else optim.WARMUP_EPOCHS
    if optim.SCHEDULE == "constant" or config.TRAINING.MINUTES:
        half = optim.HALVE_AFTER or math.inf
        scheduler = LambdaLR(optimizer, lambda done: 0.5 if done >= half else 1.0)
    else:
        length = max(1, optim.NUM_EPOCHS - warmup) + optim.COSINE_EXTRA_EPOCHS
        lowest = highest_and_lowest_rate(optim)[1]
        scheduler = CosineAnnealingLR(optimizer, length, eta_min=lowest)
    if warmup:
        scheduler = GradualWarmupScheduler(optimizer, 1, warmup, scheduler)
        scheduler.step()
    return scheduler


def validation_batches(config: CfgNode, epoch: int, batches: int) -> set[int]:
    """Return after how many of its batches to validate in an epoch.

    VAL_TIMES in an epoch is at q, 2q, 3q … batches, q = ⌊batches / VAL_TIMES⌋ − 1, as published."""
    keys = config.TRAINING
    if keys.VAL_EPOCHS:
        due = epoch in keys.VAL_EPOCHS or epoch > keys.VAL_ALWAYS_AFTER
    else:
        due = epoch % keys.VAL_AFTER_EVERY == 0
    every = batches // keys.VAL_TIMES - 1
    if keys.VAL_TIMES == 1 or every < 1:
        return {batches} if due else set()
    return {every * number for number in range(1, keys.VAL_TIMES + 1)} if due else set()


class Clock:
    """How long a run has lasted, in this process and those that it goes on from.

    Attributes:
        minutes: how long it may last, with all that it does; 0 for a run of NUM_EPOCHS.
        elapsed: seconds up to the last step, the same in all processes.
        began: after so many of them training began.
        validation_seconds: what the last validation took.
        validations: how many are done of those in its time; -1: not even that of the start.
    """

    STATE = ("elapsed", "began", "validation_seconds", "validations")

    def __init__(self, minutes: float, validation_times: int):
        self.minutes, self.validation_times = minutes, validation_times
        self.started, self.spent = time.monotonic(), 0.0
        self.elapsed = self.began = self.validation_seconds = 0.0
        self.validations = -1

    @property
    def now(self) -> float:
        """Seconds that the run has taken."""
        return self.spent + time.monotonic() - self.started

    @property
    def share(self) -> float:
        """How much of the time for training is used, up to 1. What the last validation takes, and
        2 % of the minutes for the last step and the end, are set aside."""
        end = 60 * 0.98 * self.minutes - 1.2 * self.validation_seconds
        if end <= self.began:
            return 1.0
        return min(1.0, (self.elapsed - self.began) / (end - self.began))

    @property
    def due(self) -> int:
        """How many validations should be done."""
        return int(self.validation_times * self.share)

    @property
    def over(self) -> bool:
        """Whether a run of minutes is to end."""
        return self.minutes > 0 and self.share == 1

    def rate(self, optim: CfgNode) -> float:
        """Return the learning rate: a cosine that ends with the minutes, after a warm-up."""
        highest, lowest = highest_and_lowest_rate(optim)
        if optim.SCHEDULE == "constant":
            return highest
        warmup = min(1.0, self.share / optim.WARMUP_SHARE) if optim.WARMUP_SHARE else 1.0
        return warmup * (lowest + (highest - lowest) * (1 + math.cos(math.pi * self.share)) / 2)

    def state(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in self.STATE} | {"elapsed": self.now}

    def load(self, state: dict) -> None:
        """Go on from where another process stopped."""
        for name in self.STATE:
            setattr(self, name, state.get(name, getattr(self, name)))
        self.spent = self.elapsed
