"""Augmentation: the same for both images of a pair, but for MixUp, which blends whole pairs."""

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

ORIENTATIONS = 9  # of `turn`


def turn(image: np.ndarray, number: int) -> np.ndarray:
    """Return H×W[×C] pixels in orientation `number` of nine: 0-3 quarter turns, 4-7 the same of the
    image flipped upside down, 8 the identity once more (as published: drawn twice as often).

    >>> turn(np.array([[1, 2], [3, 4]]), 5)
    array([[4, 2],
           [3, 1]])
    """
    if number == 8:
        return image
    return np.rot90(image[::-1] if number >= 4 else image, number % 4)


def change_saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Return uint8 pixels H×W×3 with their colour saturation scaled by `factor`, rounded as Pillow
    does (as published); grey ones, H×W×1, as they are."""
    if image.shape[2] == 1:
        return image
    return np.asarray(ImageEnhance.Color(Image.fromarray(image)).enhance(factor))


def mixup(
    degraded: Tensor, target: Tensor, rng: np.random.Generator, alpha: float = 0.6
) -> tuple[Tensor, Tensor]:
    """Return N×C×H×W batches in which each pair is blended with the one that a permutation puts at
    its place, by its own share λ ~ Beta(alpha, alpha) (Zhang et al. 2018)."""
    partner = torch.from_numpy(rng.permutation(len(target))).to(target.device, non_blocking=True)
    share = torch.from_numpy(rng.beta(alpha, alpha, len(target))).to(target, non_blocking=True)
    share = share[:, None, None, None]
    first, second = (
        share * images + (1 - share) * images[partner] for images in (degraded, target)
    )
    return first, second
