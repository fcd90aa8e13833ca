"""Training losses: Charbonnier, edge, and the sums over the stages that the tasks train with.

All compute in float32 or better, also under autocast. They raise a ValueError where shapes differ
or a tensor is not of floating point.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dgunet.model.layers import float32_or_better

EDGE_WEIGHT = 0.05
BLUR = (0.05, 0.25, 0.4, 0.25, 0.05)


def charbonnier(restored: Tensor, target: Tensor, eps: float = 1e-3) -> Tensor:
    """Return the mean of √(d² + eps²), d the difference of two images of one shape: a smooth L1
    distance, quadratic below `eps` (Charbonnier et al. 1994).

    >>> charbonnier(torch.full((1, 3, 4, 4), 0.5), torch.full((1, 3, 4, 4), 0.2)).item()
    0.300001...
    """
    return _charbonnier_mean(_difference(restored, target), eps)


def laplacian(image: Tensor) -> Tensor:
    """Return the finest level of an image's Laplacian pyramid (Burt and Adelson 1983),
    L(z) = z − G(4·U(D(G(z)))).  N×C×H×W → N×C×H×W, linear in the image.

    G blurs with `BLUR` along rows and columns, border pixels repeated outwards; D keeps the even
    rows and columns, and U puts them back among zeros. The Charbonnier distance of two Laplacians
    is the edge loss of MPRNet (Zamir et al. 2021).
    """
    image = _at_least_float32(image)
    expanded = torch.zeros_like(image)
    expanded[..., ::2, ::2] = 4 * _blur(image)[..., ::2, ::2]
    return image - _blur(expanded)


def charbonnier_and_edge(stages: Sequence[Tensor], target: Tensor) -> Tensor:
    """Return the sum over the stages of Charbonnier + 0.05·edge: the loss of the published
    deblurring and deraining scripts. `stages` are the stage images, `target` is in [0, 1], each
    N×C×H×W."""
    difference = _stage_differences(stages, target)
    edge = _charbonnier_mean(laplacian(difference))
    return len(stages) * (_charbonnier_mean(difference) + EDGE_WEIGHT * edge)


def clamped_charbonnier(stages: Sequence[Tensor], target: Tensor) -> Tensor:
    """Return the sum over the stages of the Charbonnier loss of the image clamped to [0, 1]: the
    loss of the published denoising script. Arguments are `charbonnier_and_edge`'s."""
    return len(stages) * _charbonnier_mean(_stage_differences(stages, target, clamp=True))


def clamped_squared_error(stages: Sequence[Tensor], target: Tensor) -> Tensor:
    """Return the sum over the stages of the mean squared error of the image clamped to [0, 1]: the
    loss of the published compressive sensing scripts. Arguments are `charbonnier_and_edge`'s."""
    return len(stages) * _stage_differences(stages, target, clamp=True).square().mean()


def _charbonnier_mean(difference: Tensor, eps: float = 1e-3) -> Tensor:
    return (difference.square() + eps**2).sqrt().mean()


def _blur(image: Tensor) -> Tensor:
    """Blur by sums of shifted images: autocast and TF32 would compute convolutions in lower
    precision."""
    for dim in (-2, -1):
        size = image.shape[dim]
        first, last = image.narrow(dim, 0, 1), image.narrow(dim, size - 1, 1)
        padded = torch.cat([first, first, image, last, last], dim)
        image = sum(weight * padded.narrow(dim, i, size) for i, weight in enumerate(BLUR))
    return image


def _stage_differences(stages: Sequence[Tensor], target: Tensor, clamp: bool = False) -> Tensor:
    """Return stage − target for all stages as one batch: their mean is the mean over stages."""
    if clamp:
        stages = [stage.clamp(0, 1) for stage in stages]
    return torch.cat([_difference(stage, target) for stage in stages])


def _difference(restored: Tensor, target: Tensor) -> Tensor:
    if restored.shape != target.shape:
        raise ValueError(f"restored is {restored.shape}, but target is {target.shape}")
    return _at_least_float32(restored) - _at_least_float32(target)


def _at_least_float32(image: Tensor) -> Tensor:
    if not image.is_floating_point():
        raise ValueError(f"images must be of floating point, not {image.dtype}")
    return image.to(float32_or_better(image))
