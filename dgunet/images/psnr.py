"""Peak signal-to-noise ratio of two images."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def psnr(
    first: np.ndarray | torch.Tensor, second: np.ndarray | torch.Tensor, data_range: float = 1.0
) -> float:
    """Return 10·log10(data_range² / mean squared error) in dB, over all elements together; inf for
    equal ones. Arrays or tensors of any type and device, of one shape (else `ValueError`).

    >>> psnr(np.zeros((8, 8)), np.full((8, 8), 0.1))
    20.0
    """
    first, second = _as_array(first), _as_array(second)
    if first.shape != second.shape:
        raise ValueError(f"shapes are {first.shape} and {second.shape}; expected the same")
    if first.size == 0:
        raise ValueError(f"shape is {first.shape}; expected at least one element")
    mean_squared_error = float(np.mean(np.subtract(first, second, dtype=np.float64) ** 2))
    return decibels(mean_squared_error, data_range)


def _as_array(values: np.ndarray | torch.Tensor) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).numpy()
    return np.asarray(values)


def decibels(mean_squared_error: float, data_range: float) -> float:
    """Return the PSNR of a mean squared error; inf for 0."""
    if mean_squared_error == 0:
        return math.inf
    return 10 * math.log10(data_range**2 / mean_squared_error)
