"""The scheduler. Its only state is the epoch, the learning rates and the scheduler that follows."""

import math
import numbers
import warnings
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, ReduceLROnPlateau

Lr = float | Tensor


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

    A `CosineAnnealingLR` is evaluated in closed form, after k steps `eta_min +
    (base * multiplier - eta_min) * (1 + cos(pi * k / T_max)) / 2`, also beyond `T_max`. A
    `ReduceLROnPlateau` needs `step(metrics=...)` from the end of epoch `total_epoch` on.

    To resume, build optimizer and schedulers as for a new run, then load both states. Without a
    stored state, `step(epoch)` brings a new scheduler to any epoch.

    Args:
        optimizer: whose parameter groups' `lr` is set.
        multiplier: target learning rate over `base`, at least 1. 1 stands for a rise from 0 to
            `base`, anything above for one from `base` to `base * multiplier`.
        total_epoch: length of the warm-up in epochs (in steps, if stepped more often), at least 1.
        after_scheduler: a scheduler of the same optimizer, constructed before this one. Do not step
            it yourself.

    Raises:
        ValueError: a `multiplier` or `total_epoch` below 1, an `after_scheduler` of another
            optimizer, or one that cannot start from another learning rate than `base`
            (`SequentialLR`, `ChainedScheduler`) where `multiplier` is above 1.

    >>> import torch
    >>> optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=0.3)
    >>> cosine = CosineAnnealingLR(optimizer, T_max=4, eta_min=0.1)
    >>> scheduler = GradualWarmupScheduler(optimizer, 1, total_epoch=3, after_scheduler=cosine)
    >>> scheduler.step()
    >>> for epoch in range(1, 9):
    ...     optimizer.step()  # for every batch
    ...     print(epoch, round(optimizer.param_groups[0]["lr"], 4))
    ...     scheduler.step()
    1 0.1
    2 0.2
    3 0.3
    4 0.3
    5 0.2707
    6 0.2
    7 0.1293
    8 0.1
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
        self.multiplier = multiplier
        self.total_epoch = total_epoch
        self.after_scheduler = after_scheduler
        self._after_is_plateau = isinstance(after_scheduler, ReduceLROnPlateau)
        super().__init__(optimizer)  # sets base_lrs and makes the first step, to epoch 0
        if multiplier > 1 and after_scheduler is not None and not self._after_is_plateau:
            if not hasattr(after_scheduler, "base_lrs"):
                name = type(after_scheduler).__name__
                raise ValueError(f"multiplier must be 1 before a {name}, not {multiplier}")
            after_scheduler.base_lrs = [base * multiplier for base in self.base_lrs]

    @property
    def finished(self) -> bool:
        """Whether the warm-up is over and `after_scheduler` decides."""
        return self.last_epoch > self.total_epoch

    def step(self, epoch: int | None = None, metrics: Any = None) -> None:
        """Go on to the next epoch, or forward to `epoch`, and set the learning rates.

        Args:
            epoch: the epoch to go to, from 1. The current one changes nothing; an earlier one
                cannot be reached.
            metrics: for a `ReduceLROnPlateau`, the validation result of the epoch that ended (of
                every epoch passed, if `epoch` is further ahead). Ignored before the last epoch of
                the warm-up ended and by other schedulers.

        Raises:
            TypeError: `epoch` is not an integer.
            ValueError: `epoch` is in the past, or `metrics` is missing.
        """
        if epoch is None:
            epoch = self.last_epoch + 1
        elif not isinstance(epoch, numbers.Integral):
            found = type(epoch).__name__
            raise TypeError(
                f"epoch must be an int, not {found}; give a result as step(metrics=...)"
            )
        if epoch < self.last_epoch:
            raise ValueError(f"cannot go back from epoch {self.last_epoch} to {epoch}")
        if self._after_is_plateau and epoch > self.total_epoch and metrics is None:
            raise ValueError(f"ReduceLROnPlateau needs step(metrics=...) for epoch {epoch}")
        while self.last_epoch < epoch:
            self._next_epoch(metrics)

    def _next_epoch(self, metrics: Any) -> None:
        self.last_epoch += 1
        if self._after_is_plateau and self.finished:
            self.after_scheduler.step(metrics)
        elif self.after_scheduler is not None and self.last_epoch > self.total_epoch + 1:
            with warnings.catch_warnings():
                # That would skip the first learning rate of a schedule, which here was the
                # warm-up's; it is also what going forward to a later epoch looks like.
                warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
                self.after_scheduler.step()
        self._set_lr(self.get_lr())

    def get_lr(self) -> list[Lr]:
        """Return the learning rate of every parameter group in the current epoch."""
        after = self.after_scheduler
        if not self.finished:
            progress = self.last_epoch / self.total_epoch
            factor = progress if self.multiplier == 1 else 1 + (self.multiplier - 1) * progress
            return [base * factor for base in self.base_lrs]
        if after is None:
            return [base * self.multiplier for base in self.base_lrs]
        if type(after) is CosineAnnealingLR:
            return _cosine_annealing(after)
        if self.last_epoch == self.total_epoch + 1 and not self._after_is_plateau:
            return [lr * self.multiplier for lr in after.get_last_lr()]
        return after.get_last_lr()

    def get_last_lr(self) -> list[Lr]:
        """Return the learning rate of every parameter group as last set by this scheduler."""
        return self._last_lr

    def _set_lr(self, lrs: list[Lr]) -> None:
        self._last_lr = [lr.clone() if isinstance(lr, Tensor) else lr for lr in lrs]
        for group, lr in zip(self.optimizer.param_groups, lrs, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)  # captured in a CUDA graph, it must stay the same tensor
            else:
                group["lr"] = lr

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state, that of `after_scheduler` included, as plain values that
        `torch.load(..., weights_only=True)` reads."""
        return {
            "multiplier": self.multiplier,
            "total_epoch": self.total_epoch,
            "last_epoch": self.last_epoch,
            "base_lrs": list(self.base_lrs),
            "last_lr": list(self._last_lr),
            "after_scheduler": self.after_scheduler and self.after_scheduler.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, and set the learning rates. As in every PyTorch
        scheduler, the stored `multiplier` and `total_epoch` replace this one's.

        Raises:
            ValueError: the state is not this class's, or is with an `after_scheduler` where this
                scheduler is without, or the other way round.
        """
        missing = self.state_dict().keys() - state_dict.keys()
        if missing:
            raise ValueError(f"not a GradualWarmupScheduler's state: no {sorted(missing)[0]!r}")
        after_state = state_dict["after_scheduler"]
        if (after_state is None) != (self.after_scheduler is None):
            found, expected = ("without", "with") if after_state is None else ("with", "without")
            raise ValueError(f"the state is {found} an after_scheduler, this one {expected}")
        if after_state is not None:
            self.after_scheduler.load_state_dict(after_state)
        self.multiplier = state_dict["multiplier"]
        self.total_epoch = state_dict["total_epoch"]
        self.last_epoch = state_dict["last_epoch"]
        self.base_lrs = list(state_dict["base_lrs"])
        self._set_lr(state_dict["last_lr"])


def _cosine_annealing(scheduler: CosineAnnealingLR) -> list[Lr]:
    """Return the closed form of SGDR's equation 5 (Loshchilov and Hutter 2017) at the scheduler's
    epoch. PyTorch's own rates come from the previous one, whatever that was, by a recursion that
    has changed between versions."""
    steps = scheduler.last_epoch
    phase = math.pi * steps / scheduler.T_max if steps else 0.0  # T_max is 0 in a run of 3 epochs
    height = (1 + math.cos(phase)) / 2
    floor = scheduler.eta_min
    return [floor + (base - floor) * height for base in scheduler.base_lrs]
