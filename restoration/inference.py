"""Running a network on images of any size, on the device at hand."""

import torch
from torch import Tensor

from restoration.errors import InputError
from restoration.images import pad_to_multiple
from restoration.network import Network


def pick_device(name: str = "auto") -> torch.device:
    """Return the device of that name: cpu, cuda, cuda:N or mps; `auto` is the best there is, in the
    order CUDA, Apple's mps, CPU.

    Raises:
        InputError: this machine, or this installation of torch, has no such device.

    >>> pick_device("cpu")
    device(type='cpu')
    """
    there = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        there.append("mps")
    there.append("cpu")
    if name == "auto":
        return torch.device(there[0].partition(":")[0])
    if name not in there and not (name == "cuda" and "cuda:0" in there):
        raise InputError(f"device {name!r} is not available; expected auto, {', '.join(there)}")
    return torch.device(name)


@torch.inference_mode()
def restore(network: Network, degraded: Tensor, *, self_ensemble: bool = False) -> Tensor:
    """Return the restored images, N×C×H×W, not clamped: the image of the network's last stage.

    Height and width may be any: the network sees the image reflect-padded at the bottom and right
    to its multiple, and its result is cropped back. A size that it takes is not padded.

    Args:
        network: in evaluation mode; on the device of `degraded`.
        degraded: N×C×H×W in [0,1].
        self_ensemble: take the mean over the eight flips and quarter turns of the image, each
            restored and moved back (Timofte et al., "Seven ways to improve example-based single
            image super resolution", 2016). Padded after the move, so restoring a moved image is
            moving the restored one.

    >>> from restoration.tasks import build_model
    >>> network = build_model("Denoising", "DGUNet", {"width": 8, "width_step": 4, "stages": 2})
    >>> restore(network, torch.rand(1, 3, 17, 5)).shape
    torch.Size([1, 3, 17, 5])
    """
    if not self_ensemble:
        return _restore_padded(network, degraded)
    total = torch.zeros_like(degraded)
    for turns in range(4):
        for flip in (False, True):
            moved = degraded.flip(-1) if flip else degraded
            moved = torch.rot90(moved, turns, (-2, -1)).contiguous()
            restored = torch.rot90(_restore_padded(network, moved), -turns, (-2, -1))
            total += restored.flip(-1) if flip else restored
    return total / 8


def _restore_padded(network: Network, degraded: Tensor) -> Tensor:
    height, width = degraded.shape[-2:]
    padded = pad_to_multiple(degraded, network.multiple)
    if max(padded.shape[-2:]) < network.least:
        padded = pad_to_multiple(degraded, network.multiple, network.least)
    return network(padded)[0][..., :height, :width]
