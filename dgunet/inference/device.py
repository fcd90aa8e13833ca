"""Which device to run on."""

import torch

from dgunet.base.errors import InputError


def pick_device(name: str = "auto") -> torch.device:
    """Return the device of that name: cpu, cuda, cuda:N or mps. `auto` is the best available, in
    the order CUDA, Apple's mps, CPU.

    Raises:
        InputError: this machine, or this installation of torch, has no such device.

    >>> pick_device("cpu")
    device(type='cpu')
    """
    available = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        available.append("mps")
    available.append("cpu")
    if name == "auto":
        return torch.device(available[0].partition(":")[0])
    if name not in available and not (name == "cuda" and "cuda:0" in available):
        raise InputError(f"device {name!r} is not available; expected auto, {', '.join(available)}")
    return torch.device(name)
