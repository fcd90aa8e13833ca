"""Statistics of the surroundings in place of the whole image's, at test time.

A network trained on patches takes the statistics of its channel attention and instance
normalisation from patches; a whole photograph has others. Chu et al., "Improving Image Restoration
by Revisiting Global Information Aggregation" (ECCV 2022, "TLC"), take them, without training anew,
at every pixel from a window around it, 1.5 times as large as the patches.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgunet.model.network import Network


def use_local_statistics(network: Network, window: int) -> None:
    """Make a network take, from now on, what `nn.AdaptiveAvgPool2d` averages for its channel
    attention, and the mean and variance of its instance normalisation, from windows. The subspace
    projection of DGUNet stays the whole image's.

    Args:
        window: side in pixels of the image; at scale ½ of the U-Net half as many. Where an image is
            smaller its whole extent counts, which is the network as it was.
    """
    height = 0

    def note_height(_: nn.Module, arguments: tuple[Tensor]) -> None:
        nonlocal height
        height = arguments[0].shape[-2]

    def local_mean(features: Tensor) -> Tensor:
        return box_mean(features, max(1, round(window * features.shape[-2] / height)))

    def average(_: nn.Module, arguments: tuple[Tensor], _whole: Tensor) -> Tensor:
        return local_mean(arguments[0])

    def normalise(norm: nn.InstanceNorm2d, arguments: tuple[Tensor], _whole: Tensor) -> Tensor:
        features = arguments[0].float()
        features = features - features.mean((2, 3), keepdim=True)  # squares lose less to rounding
        mean = local_mean(features)
        variance = (local_mean(features.square()) - mean.square()).clamp(min=0)
        scale = norm.weight[:, None, None] * (variance + norm.eps).rsqrt()
        return ((features - mean) * scale + norm.bias[:, None, None]).to(arguments[0].dtype)

    network.register_forward_pre_hook(note_height)
    for module in network.modules():
        if isinstance(module, nn.InstanceNorm2d):
            module.register_forward_hook(normalise)
        elif isinstance(module, nn.AdaptiveAvgPool2d):
            module.register_forward_hook(average)


def box_mean(features: Tensor, window: int) -> Tensor:
    """Return the mean over a window around each pixel of features N×C×H×W, of the same shape, but
    1 along an axis that is no longer than the window. At the border the window is moved inward: it
    always holds as many pixels.

    >>> box_mean(torch.tensor([[[[0.0, 3.0, 6.0, 9.0]]]]), 3)
    tensor([[[[3., 3., 6., 6.]]]])
    """
    for axis, padding in ((-2, (0, 0, 1, 0)), (-1, (1, 0))):
        size = features.shape[axis]
        if window >= size:
            features = features.mean(axis, keepdim=True)
            continue
        sums = F.pad(features.cumsum(axis, dtype=torch.float32), padding)
        places = size - window + 1
        means = (sums.narrow(axis, window, places) - sums.narrow(axis, 0, places)) / window
        middle = torch.arange(size, device=features.device)
        nearest = (middle - window // 2).clamp(0, places - 1)
        features = means.to(features.dtype).index_select(axis, nearest)
    return features
