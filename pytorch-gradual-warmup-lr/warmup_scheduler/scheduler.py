"""The scheduler. Its only state is the epoch, the learning rates and the scheduler that follows."""

import math
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler


class GradualWarmupScheduler(LRScheduler):
    """Raise the learning rate linearly over the first epochs, then hand over to another scheduler.

    The idea is gradual warm-up, section 2.2 of Goyal et al. 2017, "Accurate, Large Minibatch SGD".
    With `base` a parameter group's `initial_lr` (set by the first scheduler it got) or else its
    `lr`, and epochs counted from 1, epoch e has the learning rate

    - `base * e / total_epoch` up to `total_epoch`, if `multiplier` is 1; otherwise
      `base * (1 + (multiplier - 1) * e / total_epoch)`, so that it ends at `base * multiplier`;
    - after it, what `after_scheduler` gives `e - total_epoch - 1` steps after its start, which is
      `base * multiplier`; without an `after_scheduler`, `base * multiplier`.

    Call `step()` once before the first epoch and once after each: right after construction the
    scheduler stands at epoch 0, with a learning rate of 0 (if `multiplier` is 1).

    A `CosineAnnealingLR` is evaluated in closed form, also beyond its `T_max`.

    To resume, build optimizer and schedulers as for a new run, then load both states.

    Raises ValueError for a `multiplier` or `total_epoch` below 1, or an `after_scheduler` of
    another optimizer or without `base_lrs` (`ReduceLROnPlateau`, `SequentialLR`). It is constructed
    before this scheduler, and stepped by it alone.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        multiplier: float,
        total_epoch: int,
        after_scheduler: LRScheduler | None = None,
    ) -> None:
        if not multiplier >= 1:
            raise ValueError(f"multiplier must be at least 1, not {multiplier}")
        if not total_epoch >= 1:
            raise ValueError(f"total_epoch must be at least 1, not {total_epoch}")
        if after_scheduler is not None and after_scheduler.optimizer is not optimizer:
            raise ValueError("after_scheduler belongs to another optimizer")
        if after_scheduler is not None and not hasattr(after_scheduler, "base_lrs"):
            raise ValueError(f"after_scheduler must not be a {type(after_scheduler).__name__}")
        self.multiplier, self.total_epoch = multiplier, total_epoch
        self.after_scheduler = after_scheduler
        super().__init__(optimizer)  # sets base_lrs and makes the first step, to epoch 0
        if multiplier > 1 and after_scheduler is not None:
            after_scheduler.base_lrs = [base * multiplier for base in self.base_lrs]

    @property
    def finished(self) -> bool:
        """Whether the warm-up is over and `after_scheduler` decides."""
        return self.last_epoch > self.total_epoch

    def step(self) -> None:
        self.last_epoch += 1
        if self.after_scheduler is not None and self.last_epoch > self.total_epoch + 1:
            self.after_scheduler.step()
        self._set(self.get_lr())

    def get_lr(self) -> list[float]:
        after = self.after_scheduler
        if not self.finished:
            progress = self.last_epoch / self.total_epoch
            factor = progress if self.multiplier == 1 else 1 + (self.multiplier - 1) * progress
            return [base * factor for base in self.base_lrs]
        if after is None:
            return [base * self.multiplier for base in self.base_lrs]
        if type(after) is CosineAnnealingLR:
            return _cosine_annealing(after)
        if self.last_epoch == self.total_epoch + 1:
            return [lr * self.multiplier for lr in after.get_last_lr()]
        return after.get_last_lr()

    def _set(self, lrs: list[float]) -> None:
        self._last_lr = list(lrs)
        for group, lr in zip(self.optimizer.param_groups, lrs, strict=True):
            group["lr"] = lr

    def state_dict(self) -> dict[str, Any]:
        """Return plain values, which `torch.load(..., weights_only=True)` reads."""
        return {
            "last_epoch": self.last_epoch,
            "base_lrs": list(self.base_lrs),
            "last_lr": list(self._last_lr),
            "after_scheduler": self.after_scheduler and self.after_scheduler.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.after_scheduler is not None:
            self.after_scheduler.load_state_dict(state_dict["after_scheduler"])
        self.last_epoch = state_dict["last_epoch"]
        self.base_lrs = list(state_dict["base_lrs"])
        self._set(state_dict["last_lr"])


def _cosine_annealing(scheduler: CosineAnnealingLR) -> list[float]:
    """Return the closed form (Loshchilov and Hutter 2017, equation 5). PyTorch's own rates come
    from the previous one by a recursion that has changed between versions."""
    steps, floor = scheduler.last_epoch, scheduler.eta_min
    phase = math.pi * steps / scheduler.T_max if steps else 0.0  # T_max is 0 in a run of 3 epochs
    height = (1 + math.cos(phase)) / 2
    return [floor + (base - floor) * height for base in scheduler.base_lrs]
