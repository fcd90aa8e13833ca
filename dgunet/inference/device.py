"""Which device to run on, whether PyTorch has code for it, and how it computes in float32."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from dgunet.base.errors import InputError


def pick_device(name: str = "auto") -> torch.device:
    """Return the device of that name: cpu, cuda, cuda:N or mps. `auto` is the best available, in
    the order CUDA, Apple's mps, CPU. Raises `InputError` for one that is not there or that
    `check_card` refuses."""
    available = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        available.append("mps")
    available.append("cpu")
    if name == "auto":
        name = available[0].partition(":")[0]
    elif name not in available and not (name == "cuda" and "cuda:0" in available):
        raise InputError(f"device {name!r} is not available; expected auto, {', '.join(available)}")
    device = torch.device(name)
    check_card(device)
    return device


def check_card(device: torch.device) -> None:
    """Raise an `InputError` for a GPU that this build of PyTorch has no code for, on which the
    first operation would fail with "no kernel image is available"."""
    built = torch.cuda.get_arch_list() if device.type == "cuda" else []
    if not built or has_code(built, capability := torch.cuda.get_device_capability(device)):
        return
    remedy = "a newer PyTorch"
    if capability < (7, 5):
        oldest = "2.11" if capability >= (7, 0) else "2.8"
        remedy = f'pip install "torch<{oldest}" torchvision'
    raise InputError(
        f"{torch.cuda.get_device_name(device)} ({device}) has compute capability "
        f"{'.'.join(map(str, capability))}, but PyTorch {torch.__version__} is built for "
        f"{' '.join(built)}; expected {remedy}, or the CPU"
    )


def has_code(built: Sequence[str], capability: tuple[int, int]) -> bool:
    """Tell whether a build for these architectures runs on a GPU: `sm_XY` on X.Y and later minor
    versions (`sm_XYa`: on X.Y alone), `compute_XY` on X.Y and all later ones. What AMD's GPUs are
    called is not checked."""
    for name in built:
        parts = re.fullmatch(r"(sm|compute)_(\d+)(\d)(a?)", name)
        if not parts:
            return True
        version = int(parts[2]), int(parts[3])
        on_later = parts[1] == "compute" or (version[0] == capability[0] and not parts[4])
        if version == capability or (on_later and version < capability):
            return True
    return False


def slow_precision(device: torch.device, precision: str) -> str:
    """Return a warning where a GPU has no units for a precision, nothing where it has."""
    on_gpu = precision == "bf16" and device.type == "cuda"
    if not on_gpu or torch.cuda.get_device_capability(device) >= (8, 0):
        return ""
    return f"{torch.cuda.get_device_name(device)} has no units for bf16; fp16 is faster there"


@contextmanager
def tf32(enabled: bool) -> Iterator[None]:
    """Let CUDA compute convolutions of float32 in TF32, which keeps 10 of 23 bits, as PyTorch of
    itself does, or not. Products (the projection, Φ) never are. The settings are those of the
    whole process: threads that want different ones disturb each other."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32, cudnn.allow_tf32 = False, enabled
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
