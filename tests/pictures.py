"""Pictures for tests, uint8 unless said otherwise."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from dgunet.images.files import write_image


def noise(*shape: int, seed: int = 0, dtype: type = np.uint8) -> np.ndarray:
    """Return pixels of which all values are equally likely."""
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape, dtype)


def smooth(height: int, width: int, *channels: int, seed: int = 0) -> np.ndarray:
    """Return waves with a little noise, H×W or H×W×C."""
    rng = np.random.default_rng(seed)
    down, right = rng.uniform(0.05, 0.3, (2, *channels))
    rows = np.multiply.outer(np.arange(height), down)[:, None]
    waves = np.sin(rows + np.multiply.outer(np.arange(width), right))
    return (127 + 90 * waves + rng.normal(0, 6, waves.shape)).clip(0, 255).astype(np.uint8)


def noisy_pair(*shape: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return a noisy copy of a smooth picture, and the picture."""
    target = smooth(*shape, seed=seed)
    degraded = target + np.random.default_rng(9).normal(0, 12, shape)
    return degraded.clip(0, 255).astype(np.uint8), target


def write_pairs(inputs: Path, targets: Path, names: Iterable[str] = "ab", size=(21, 30)) -> None:
    for seed, name in enumerate(names):
        for folder, image in zip((inputs, targets), noisy_pair(*size, 3, seed=seed), strict=True):
            write_image(folder / f"{name}.png", image)
