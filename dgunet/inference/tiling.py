"""Large images tile by tile: where the tiles lie, and how overlapping ones are blended.

All tiles of an image have one size. A tile's border is where it knows least of its surroundings: of
the overlap of two neighbours the outer quarter on either side is thrown away, and over the half in
between they are blended. A network that looks no farther than a quarter of the overlap gives the
same as on the whole image. (DGUNet looks at everything: its attention, normalisation and projection
take statistics of what they are given, so that a tile is restored a little differently from the
whole image.)
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Span(NamedTuple):
    """Where a tile lies along one axis, how long it is once padded, and how much each of its pixels
    counts."""

    start: int
    stop: int
    padded: int
    weights: Tensor


def spans(size: int, tile: int, overlap: int, multiple_of: int = 1) -> list[Span]:
    """Cut an axis into evenly spaced tiles of one size, of which the last may have to be padded.
    The weights of all at one pixel add up to 1.

    Args:
        size: of the image along the axis.
        tile: the largest size of a tile; where it is less than the axis, a multiple of
            `multiple_of` and at least three times the overlap.
        overlap: pixels that neighbours share at least, a multiple of twice `multiple_of`. 0: tiles
            of exactly `tile` side by side.
        multiple_of: tiles start at multiples of it and are padded to multiples of it.

    >>> [(span.start, span.stop, span.padded) for span in spans(100, 48, 16, 8)]
    [(0, 48, 48), (24, 72, 48), (56, 100, 48)]
    >>> [(span.start, span.stop, span.padded) for span in spans(100, 48, 0, 8)]
    [(0, 48, 48), (48, 96, 48), (96, 100, 48)]
    """
    whole = -(-size // multiple_of) * multiple_of
    if size <= tile:
        return [Span(0, size, whole, torch.ones(size))]
    if not overlap:
        edges = [*range(0, size, tile), size]
        return [Span(i, j, tile, torch.ones(j - i)) for i, j in pairwise(edges)]
    count = -(-(whole - overlap) // (tile - overlap))
    tile = -(-(whole + (count - 1) * overlap) // (count * multiple_of)) * multiple_of
    starts = [i * (whole - tile) // (count - 1) // multiple_of * multiple_of for i in range(count)]
    stops = [min(start + tile, size) for start in starts]
    weights = [torch.ones(stop - start) for start, stop in zip(starts, stops, strict=True)]
    # Over the overlap, weights are 0 in the first quarter, 1 in the last, sin² in between.
    place = (torch.arange(overlap, dtype=torch.float64) + 0.5) / overlap
    rise = torch.sin(math.pi / 2 * (2 * place - 0.5).clamp(0, 1)).square().float()
    for i, (start, stop) in enumerate(zip(starts[1:], stops[:-1], strict=True)):
        begin = (start + stop - overlap) // 2  # blended in the middle of what the two share
        weights[i + 1][: begin - start] = 0
        weights[i + 1][begin - start : begin - start + overlap] *= rise
        weights[i][begin - starts[i] : begin - starts[i] + overlap] *= 1 - rise
        weights[i][begin - starts[i] + overlap :] = 0
    return [Span(*span) for span in zip(starts, stops, [tile] * count, weights, strict=True)]


def strips(
    restore: Callable[[list[Tensor]], list[Tensor]],
    read: Callable[[slice, slice], Tensor],
    rows: Sequence[Span],
    columns: Sequence[Span],
    batch: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[slice, Tensor]]:
    """Restore an image tile by tile and yield it strip by strip from the top, so that no more than
    one row of tiles is held in floats: the rows, and what is in them, …×h×W.

    Args:
        restore: parts of the degraded image, each …×h×w → these restored, each …×h×w.
        read: the part of the degraded image in these rows and columns.
        rows, columns: the tiles.
        batch: how many tiles of a row `restore` is given at a time.
        progress: called with the number of tiles done, and of all.
    """
    carried: Tensor | None = None  # the rows of a strip that the next one overlaps
    done = 0
    for index, row in enumerate(rows):
        strip: Tensor | Any = None
        for first in range(0, len(columns), batch):
            group = columns[first : first + batch]
            parts = [read(slice(*row[:2]), slice(*column[:2])) for column in group]
            for column, restored in zip(group, restore(parts), strict=True):
                done += 1
                if progress:
                    progress(done, len(rows) * len(columns))
                if len(rows) == len(columns) == 1:  # the whole image, whose weights are 1
                    yield slice(*row[:2]), restored
                    return
                if strip is None:
                    shape = (*restored.shape[:-1], columns[-1].stop)
                    strip = torch.zeros(shape, dtype=restored.dtype, device=restored.device)
                weights = (row.weights[:, None] * column.weights).to(strip)
                strip[..., column.start : column.stop] += weights * restored
        if carried is not None:
            strip[..., : carried.shape[-2], :] += carried
        ready = rows[index + 1].start if index + 1 < len(rows) else row.stop
        yield slice(row.start, ready), strip[..., : ready - row.start, :]
        carried = strip[..., ready - row.start :, :].clone()
