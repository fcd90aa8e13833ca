"""Gradual learning rate warm-up for PyTorch, followed by any other scheduler."""

from warmup_scheduler.scheduler import GradualWarmupScheduler

__all__ = ["GradualWarmupScheduler"]
