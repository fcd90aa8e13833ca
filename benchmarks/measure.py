"""How all is measured: time, peak memory, work, and the most that the machine can do."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import re
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from report import spread
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from dgunet.data.degradations import degrade, pair_generator
from dgunet.images.files import (
    list_images,
    middle,
    pad_bottom_right,
    read_gray,
    read_rgb,
    to_tensor,
)
from dgunet.inference.device import pick_device, tf32
from dgunet.tools.showcase import DEGRADATIONS
from dgunet.tools.synthesize import bundled_photos


@dataclass(frozen=True)
class Options:
    """What is to be measured, and how. `smoke`: tiny, to see that it runs."""

    device: str = "cpu"
    threads: int = 1
    runs: int = 3
    full: bool = False
    smoke: bool = False
    compile: bool = False
    reference: Path | None = None
    data: Path | None = None

    @property
    def cuda(self) -> bool:
        return self.device.startswith("cuda")

    def start(self) -> torch.device:
        """Return the device, with the number of threads set; in every process once."""
        torch.set_num_threads(self.threads)
        return pick_device(self.device)


def interleaved(
    functions: Mapping[str, Callable[[], object]], options: Options, seconds: float = 0.2
) -> dict[str, list[float]]:
    """Time functions in turn, A B C A B C …, so that a machine that slows down does so for all.
    Return the median seconds of a call in each of `options.runs` rounds, by name. A function is
    called for so many `seconds` in a round, once at least, after a call to warm up."""
    timers = {
        name: Timer("function()", globals={"function": function}, num_threads=options.threads)
        for name, function in functions.items()
    }
    found: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(options.runs):
        for name, timer in timers.items():
            run_time = 0.01 if options.smoke else seconds
            found[name].append(timer.blocked_autorange(min_run_time=run_time).median)
    return found


def speed_up(reference: Sequence[float], other: Sequence[float]) -> dict:
    """Return the `spread` of how many times faster another variant is, round by round: neighbours
    in time, so that what slows the machine down counts for both.

    >>> speed_up([4.0, 40.0], [2.0, 10.0])["runs"]
    [2.0, 4.0]
    """
    return spread([slow / fast for slow, fast in zip(reference, other, strict=True)])


def precision_of(variant: str) -> str:
    """Return the precision that the name of a variant says."""
    return next((name for name in ("TF32", "bf16", "fp16") if name in variant), "float32")


@dataclass(frozen=True)
class Work:
    """What a call does: `flop` floating-point operations in convolutions and matrix products (a
    multiplication and an addition are two), and `bytes` that all operators read and write."""

    flop: float
    bytes: float

    def floor(self, ceilings: Mapping[str, Mapping], precision: str) -> dict:
        """Return the columns `floor, s` and `set by`: no implementation of these operators takes
        less than the larger of FLOPs at the GEMM peak and bytes at the bandwidth of copying."""
        arithmetic = self.flop / ceilings[precision]["median"] / 1e9
        memory = self.bytes / ceilings["copy"]["median"] / 1e9
        return {
            "floor, s": max(arithmetic, memory),
            "set by": "arithmetic" if arithmetic > memory else "memory",
        }


class _Bytes(TorchDispatchMode):
    total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        known = {tensor.untyped_storage()._cdata for tensor in read}
        written = [
            leaf
            for leaf in tree_leaves(result)
            if isinstance(leaf, Tensor)
            and (function._schema.is_mutable or leaf.untyped_storage()._cdata not in known)
        ]
        if written and "empty" not in function.__name__:  # neither a view nor only allocated
            self.total += sum(tensor.numel() * tensor.element_size() for tensor in read + written)
        return result


def work(function: Callable[[], object]) -> Work:
    """Call a function and return the `Work` it did. Not for compiled networks."""
    with FlopCounterMode(display=False) as flop, _Bytes() as moved:
        function()
    return Work(flop.get_total_flops(), moved.total)


def ceilings(options: Options) -> dict[str, dict]:
    """Return the most that the machine does: {precision: GFLOP/s of matrix products, the best of
    several sizes; "copy": GB/s read and written}, each a `spread`. Of random numbers: zeros are
    faster, on a GPU and where pages of them are shared."""
    device = options.start()
    sizes = (64,) if options.smoke else (4096, 8192, 16384) if options.cuda else (1024, 2048, 4096)
    precisions = {"float32": torch.float32, "bf16": torch.bfloat16}
    if options.cuda:
        precisions |= {"TF32": torch.float32, "fp16": torch.float16}
    found = {}
    for precision, dtype in precisions.items():
        matrices = {size: torch.randn(size, size, device=device).to(dtype) for size in sizes}
        products = {str(n): lambda m=m: torch.mm(m, m) for n, m in matrices.items()}
        with tf32(precision == "TF32"):
            seconds = interleaved(products, options)
        rates = [spread([2e-9 * int(n) ** 3 / s for s in runs]) for n, runs in seconds.items()]
        found[precision] = max(rates, key=lambda rate: rate["median"])
    memory = torch.randn(2**16 if options.smoke else 2**26, device=device)  # beyond the caches
    target = torch.empty_like(memory)
    seconds = interleaved({"copy": lambda: target.copy_(memory)}, options)["copy"]
    gigabytes = 2e-9 * memory.numel() * memory.element_size()
    return found | {"copy": spread([gigabytes / s for s in seconds])}


def run_alone(function: Callable, *arguments):
    """Return what a function of a module returns when a process of its own calls it."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def peak_memory(function: Callable[[], object], device: torch.device) -> float:
    """Return by how many MB a call raises the highest use of memory of this process (or of the
    GPU, without what is there before). Warm up before, with something small."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    with contextlib.suppress(OSError):  # the highest use begins anew with what is used now
        Path("/proc/self/clear_refs").write_text("5")
    before = _highest_resident()
    function()
    return (_highest_resident() - before) / 1e6


def _highest_resident() -> int:
    # Not ru_maxrss where there is better: a new process inherits it from the one that started it.
    try:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])
    except (OSError, TypeError):
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def photographs(
    task: str, shape: tuple[int, int, int], folder: Path | None = None, clean: bool = False
) -> Tensor:
    """Return N×H×W photographs as a task gets them, N×C×H×W in [0,1]: the test photographs inside
    scikit-image or those of a folder, their middle or, where they are smaller, continued by
    reflection; degraded as in `DEGRADATIONS`, unless `clean`."""
    count, height, width = shape
    files = itertools.cycle(list_images(folder) if folder else bundled_photos("test"))
    read = read_gray if task == "Compressive_Sensing" else read_rgb
    batch = []
    for number, file in zip(range(count), files, strict=False):
        pixels = middle(pad_bottom_right(read(file), height, width), height, width)
        image = pixels / np.float32(255)
        if (preset := DEGRADATIONS.get(task)) and not clean:
            image = degrade(image, preset, pair_generator(0, preset, f"{number} {file.stem}"))
        batch.append(to_tensor(image))
    return torch.stack(batch)
