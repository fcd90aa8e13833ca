"""Memory: how much is free, how large a tile fits it, freed memory kept for the next tensors."""

import contextlib
import ctypes
import math
import sys

import torch

from dgunet.base.memory import free_memory
from dgunet.model.network import Network

# Peak memory of a forward pass in floats, per pixel and channel of the U-Net's second level.
# Measured on a CPU: 4 to 7 for widths of 20 and 40, three and seven stages. Local statistics add to
# it.
_FLOATS = 10
_GPU_SHARE, _SHARE, _MOST = 0.8, 0.5, 2 * 2**30  # of free memory; bytes, where programs share it
_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "ALLOC_FAILED",  # cuDNN, cuBLAS and cuSOLVER
    "ALLOCATION_FAILED",
    "STATUS_NOT_INITIALIZED",  # their handles need memory, too
    "unable to find an engine",  # cuDNN, of which every algorithm needs more
)
_OPERATOR_WIDTH = 64  # channels inside the learned A and Aᵀ
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_… of glibc's malloc.h

_kept = False
_shape: tuple[int, ...] = ()


def keep_freed_memory() -> bool:
    """Make this process keep, from now on, the memory that it frees, and return whether it does:
    where the C library is glibc.

    glibc of itself gives memory of 32 MiB and more back to the system as soon as it is freed. For
    features of a large tile the next page faults then cost as much as the arithmetic does. It is a
    setting of the whole process; so programs make it, not the library."""
    global _kept
    if sys.platform == "linux" and not _kept:
        with contextlib.suppress(AttributeError, OSError):  # other C libraries
            mallopt = ctypes.CDLL(None).mallopt
            _kept = bool(mallopt(_MMAP_THRESHOLD, 2**30) and mallopt(_TRIM_THRESHOLD, 2**31 - 1))
    return _kept


def return_freed_memory(shape: tuple[int, ...]) -> None:
    """Give back to the system what `keep_freed_memory` has kept, if tensors of another shape than
    the last time come next: they would not fit the gaps that those have left."""
    global _shape
    if _kept and shape != _shape:
        ctypes.CDLL(None).malloc_trim(0)
    _shape = shape


def largest_tile(network: Network, device: torch.device, images: int = 1) -> int:
    """Return the side of the largest square tile, a multiple of the network's `multiple_of`, that
    the free memory suffices for, of so many `images` together: 80 % of a GPU's; of the CPU's (and
    where the GPU shares it) half, 2 GB at most."""
    floats = _FLOATS * (network.sizes["width"] + network.sizes["width_step"])
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        budget = _GPU_SHARE * (torch.cuda.mem_get_info(device)[0] + cached)
    else:
        budget = min(_SHARE * free_memory(), _MOST)
    side = math.isqrt(int(budget / (4 * floats * images)))
    side = side // network.multiple_of * network.multiple_of
    return max(min(side, largest_indexable_tile(network, images)), network.multiple_of)


def largest_indexable_tile(network: Network, images: int = 1) -> int:
    """Return the side of the largest square tile whose widest features have fewer than 2³¹
    elements: beyond that, not every kernel of PyTorch counts right."""
    width, step = network.sizes["width"], network.sizes["width_step"]
    channels = max(2 * width, width + step, _OPERATOR_WIDTH)
    side = math.isqrt((2**31 - 1) // (channels * images))
    return max(side // network.multiple_of, 1) * network.multiple_of


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether the device or the CPU had not enough memory."""
    text = str(error)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(words in text for words in _OUT_OF_MEMORY)
    )
