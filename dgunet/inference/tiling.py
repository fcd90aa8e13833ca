"""Large images tile by tile: tiles that overlap and are blended, and how large they may be.

A tile's border is where it knows least of its surroundings. Of the pixels that two neighbours
share, the outer quarter on either side is therefore thrown away, and over the half in between they
are blended. A network that looks no farther than a quarter of the overlap gives the same as on the
whole image. (DGUNet looks at everything: its attention, normalisation and projection take
statistics of what they are given, so that a tile is restored a little differently from the whole.)
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dgunet.inference.memory import return_freed_memory
from dgunet.model.network import Network

# Peak memory of a forward pass in floats, per pixel and channel of the U-Net's second level.
# Measured on a CPU: 4 to 7 for widths of 20 and 40, three and seven stages. Local statistics add to
# it.
_FLOATS = 10
_GPU_SHARE, _SHARE, _MOST = 0.8, 0.5, 2 * 2**30  # of free memory; bytes, where programs share it
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


class Span(NamedTuple):
    """Where a tile lies along one axis, and how much each of its pixels counts there."""

    start: int
    stop: int
    weights: Tensor


def spans(size: int, tile: int, overlap: int, multiple: int = 1) -> list[Span]:
    """Cut an axis into tiles of about equal size that overlap.

    Args:
        size: of the image along the axis.
        tile: the largest size of a tile; where it is less than the axis, a multiple of `multiple`
            and at least three times the overlap.
        overlap: pixels that neighbours share, a multiple of twice `multiple`.
        multiple: tiles start at multiples of it.

    Returns:
        The tiles in order. The weights of all at one pixel add up to 1.

    >>> [(span.start, span.stop) for span in spans(100, 48, 16, 8)]
    [(0, 32), (16, 56), (40, 80), (64, 100)]
    """
    if size <= tile:
        return [Span(0, size, torch.ones(size))]
    if tile % multiple or overlap % (2 * multiple) or not 3 * overlap <= tile > 0:
        raise ValueError(f"tiles of {tile} with overlap {overlap} at multiples of {multiple}")
    count = -(-size // (tile - overlap))
    whole = -(-size // multiple) * multiple
    borders = [i * whole // count // multiple * multiple for i in range(count)] + [size]
    half = overlap // 2
    starts = [max(0, border - half) for border in borders[:-1]]
    stops = [min(size, border + half) for border in borders[1:]]

    weights = [torch.ones(stop - start) for start, stop in zip(starts, stops, strict=True)]
    rise = _rise(overlap)
    for before, after in pairwise(weights):
        before[len(before) - overlap :] *= rise.flip(0)
        after[:overlap] *= rise
    total = torch.zeros(size)
    for start, stop, weight in zip(starts, stops, weights, strict=True):
        total[start:stop] += weight
    return [
        Span(start, stop, weight / total[start:stop])
        for start, stop, weight in zip(starts, stops, weights, strict=True)
    ]


def _rise(overlap: int) -> Tensor:
    """Return weights over the overlap: 0 in the first quarter, 1 in the last, sin² in between."""
    place = (torch.arange(overlap, dtype=torch.float64) + 0.5) / max(overlap, 1)
    return torch.sin(math.pi / 2 * (2 * place - 0.5).clamp(0, 1)).square().float()


def strips(
    restore: Callable[[Tensor], Tensor],
    read: Callable[[slice, slice], Tensor],
    rows: Sequence[Span],
    columns: Sequence[Span],
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[slice, Tensor]]:
    """Restore an image tile by tile and yield it strip by strip from the top, so that no more than
    one row of tiles is held in floats.

    Args:
        restore: N×C×h×w → N×D×h×w, on any device.
        read: the part of the degraded image in these rows and columns, N×C×h×w.
        rows, columns: the tiles.
        progress: called with the number of tiles done, and of all.

    Yields:
        The rows, and what is in them: N×D×h×W, float32 on the CPU.
    """
    carried, done = None, 0
    for index, row in enumerate(rows):
        strip = None
        for column in columns:
            part = read(slice(row.start, row.stop), slice(column.start, column.stop))
            return_freed_memory(tuple(part.shape))
            restored = restore(part).float().cpu()
            done += 1
            if progress:
                progress(done, len(rows) * len(columns))
            if len(rows) == len(columns) == 1:  # the whole image, whose weights are 1
                yield slice(row.start, row.stop), restored
                return
            if strip is None:
                width = columns[-1].stop
                strip = torch.zeros(*restored.shape[:2], row.stop - row.start, width)
            weights = row.weights[:, None] * column.weights
            strip[..., column.start : column.stop] += weights * restored
        if carried is not None:
            strip[..., : carried.shape[-2], :] += carried
        ready = rows[index + 1].start if index + 1 < len(rows) else row.stop
        yield slice(row.start, ready), strip[..., : ready - row.start, :]
        carried = strip[..., ready - row.start :, :].clone()


def largest_tile(network: Network, device: torch.device, images: int = 1) -> int:
    """Return the side of the largest square tile, a multiple of the network's, for which the memory
    suffices that is free: 80 % of a GPU's; of the CPU's (and where the GPU shares it) half, 2 GB at
    most.

    Args:
        images: restored together.
    """
    floats = _FLOATS * (network.sizes["width"] + network.sizes["width_step"])
    free = free_memory(device)
    budget = _GPU_SHARE * free if device.type == "cuda" else min(_SHARE * free, _MOST)
    side = math.isqrt(int(budget / (4 * floats * images)))
    return max(side // network.multiple * network.multiple, network.multiple)


def free_memory(device: torch.device) -> int:
    """Return how many bytes a device, or the CPU, has free: for this container, if it is one."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    free = [_MOST]
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = [int(lines["MemAvailable"].split()[0]) * 1024]
    with contextlib.suppress(OSError, ValueError, KeyError):
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        lines = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used = int((group / "memory.current").read_text()) - int(lines["inactive_file"])  # a cache
        free.append(limit - used)
    return max(0, min(free))


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether the device or the CPU had not enough memory."""
    text = str(error)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(words in text for words in _OUT_OF_MEMORY)
    )
