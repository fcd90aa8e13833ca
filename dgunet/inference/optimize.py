"""Make a network faster at inference, whatever its modules are."""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from dgunet.base.errors import InputError
from dgunet.model.network import Network

PRECISIONS = {  # name → of the convolutions' weights; tf32 is float32 computed with less
    "float32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune")
COMPILED_SIZES = 64  # of images, for which a process keeps code


def optimize_for_inference(
    network: Network, precision: str = "float32", compile: bool | str = False
) -> Network:
    """Return a copy of a network for inference only: the same modules in memory format
    channels_last, their convolutions in the precision given.

    It takes and returns what the network does. In float32 the images differ by rounding, below
    1e-5. bf16 and fp16 compute the convolutions, and what lies between them, in half precision; the
    images, DGUNet's subspace projection and compressive sensing's Φ stay in float32.

    Args:
        network: of any task, in float32, on any device; left as it is.
        precision: float32, tf32 (as float32 here; see `dgunet.inference.device.tf32`), bf16, fp16.
        compile: False, True or a mode of torch.compile ("reduce-overhead" replays CUDA graphs: for
            tiles of one size). Each new size of image is compiled anew, the first time for minutes;
            later processes find it in the cache, $TORCHINDUCTOR_CACHE_DIR or ~/.cache/dgunet.

    Raises `InputError` for an unknown precision or mode, or where there is no C++ compiler."""
    if precision not in PRECISIONS:
        raise InputError(f"precision is {precision!r}; expected one of {', '.join(PRECISIONS)}")
    if compile not in (False, True, *COMPILE_MODES):
        raise InputError(f"compile is {compile!r}; expected one of {', '.join(COMPILE_MODES)}")
    if network.optimized:
        raise ValueError("the network is optimised already; expected the one it was made of")
    optimized = copy.deepcopy(network).eval().requires_grad_(False)
    optimized.optimized = True
    optimized.to(memory_format=torch.channels_last)
    for parent in list(optimized.modules()):
        for name, module in parent.named_children():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                setattr(parent, name, _Convolution(module.to(PRECISIONS[precision])))
    if compile:
        if not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++", "cl"))):
            raise InputError("torch.compile needs a C++ compiler, such as g++; found none")
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(_cache_folder()))
        limits = torch._dynamo.config  # of sizes, after which all others are computed uncompiled
        limits.cache_size_limit = max(limits.cache_size_limit, COMPILED_SIZES)
        optimized.compile(mode="default" if compile is True else compile, dynamic=False)
    return optimized


class _Convolution(nn.Module):
    """A convolution that takes its input in any precision and memory format."""

    def __init__(self, convolution: nn.Module):
        super().__init__()
        self.convolution = convolution

    def forward(self, z: Tensor) -> Tensor:
        # Of one channel, `contiguous` takes every memory format for the other; `to` does not.
        z = z.to(self.convolution.weight.dtype, memory_format=torch.channels_last)
        return self.convolution(z)


def _cache_folder() -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dgunet"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    except OSError:
        return Path(tempfile.gettempdir()) / "dgunet"
