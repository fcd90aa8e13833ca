"""Running a network on images of any size, on the device at hand.

`Restorer` takes images as they are, NumPy arrays or tensors, tile by tile where they are large;
`restore` is the network's forward pass with padding, for tensors that fit the memory; `prepare`
makes a network faster at it.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from dgunet.base.errors import InputError
from dgunet.images.files import pad_to_multiple, to_tensor
from dgunet.inference.local_statistics import use_local_statistics
from dgunet.inference.prepared import COMPILE_MODES, PRECISIONS, prepare
from dgunet.inference.tiling import is_out_of_memory, largest_tile, spans, strips
from dgunet.model.checkpoint import load_model
from dgunet.model.network import Network

__all__ = [
    "COMPILE_MODES",
    "PRECISIONS",
    "TILE_OVERLAP",
    "Restorer",
    "pick_device",
    "prepare",
    "restore",
]

TILE_OVERLAP = 64
_INTEGERS = (np.uint8, np.uint16)

log = logging.getLogger(__name__)


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

    >>> from dgunet.model.registry import build_model
    >>> network = build_model("Denoising", "DGUNet", {"width": 8, "width_step": 4, "stages": 2})
    >>> restore(network, torch.rand(1, 3, 17, 5)).shape
    torch.Size([1, 3, 17, 5])
    """
    return _restore_stages(network, degraded, self_ensemble, count=1)[0]


def _restore_stages(
    network: Network, degraded: Tensor, self_ensemble: bool, count: int | None
) -> Tensor:
    """Return the images of the last `count` stages (None: of all), last stage first, ×N×C×H×W."""
    if not self_ensemble:
        return _restore_padded(network, degraded, count)
    total = 0
    for turns in range(4):
        for flip in (False, True):
            moved = degraded.flip(-1) if flip else degraded
            moved = torch.rot90(moved, turns, (-2, -1)).contiguous()
            restored = torch.rot90(_restore_padded(network, moved, count), -turns, (-2, -1))
            total = total + (restored.flip(-1) if flip else restored)
    return total / 8


def _restore_padded(network: Network, degraded: Tensor, count: int | None) -> Tensor:
    height, width = degraded.shape[-2:]
    padded = pad_to_multiple(degraded, network.multiple)
    if max(padded.shape[-2:]) < network.least:
        padded = pad_to_multiple(degraded, network.multiple, network.least)
    return torch.stack(network(padded)[:count])[..., :height, :width]


class Restorer:
    """Restores images of any kind and size with one network.

    A degraded image in, a restored one of the same type and shape out:

    * NumPy arrays H×W (grey), H×W×3 (RGB), H×W×4 (RGBA) and batches N×H×W×C;
    * tensors C×H×W and N×C×H×W (C = 1, 3, 4), on any device;
    * uint8, uint16, or floats in [0,1].

    Results are clamped to [0,1]; integers are rounded half to even. Alpha is returned as it was. A
    three-channel network restores a grey image as the mean of three equal channels; a compressive
    sensing network measures and reconstructs each channel on its own.

    >>> import tempfile
    >>> from dgunet.model.checkpoint import save_checkpoint
    >>> from dgunet.model.registry import build_model
    >>> network = build_model("Denoising", "DGUNet", {"width": 8, "width_step": 4, "stages": 2})
    >>> with tempfile.NamedTemporaryFile(suffix=".pth") as file:
    ...     save_checkpoint(file.name, network)
    ...     restorer = Restorer.from_checkpoint(file.name, device="cpu")
    >>> restorer.network.config["task"]
    'Denoising'
    >>> restored = restorer(np.zeros((30, 50, 3), np.uint8))
    >>> restored.shape, restored.dtype
    ((30, 50, 3), dtype('uint8'))
    >>> restorer(torch.rand(2, 3, 17, 5)).shape
    torch.Size([2, 3, 17, 5])

    Args:
        network: any task's; left as it is, used is what `prepare` makes of it. One that is prepared
            already is used itself, whatever `precision` and `compile` say.
        device: as `pick_device` takes it.
        tile: the largest side of the tiles that a larger image is cut into; "auto": the largest
            for which the free memory suffices; 0: none. Where it turns out not to suffice, the tile
            is halved, with a warning through `logging`.
        tile_overlap: pixels that neighbouring tiles share, over which they are blended.
        self_ensemble: the mean over eight moves, as `restore` describes it.
        precision, compile: as `prepare` takes them.
        local_statistics: side of the window that `use_local_statistics` takes; 0: it is not used.

    Raises:
        InputError: a setting that makes no sense or that this network cannot have.
    """

    def __init__(
        self,
        network: Network,
        *,
        device: str | torch.device = "auto",
        tile: int | str = "auto",
        tile_overlap: int = TILE_OVERLAP,
        self_ensemble: bool = False,
        precision: str = "float32",
        compile: bool | str = False,
        local_statistics: int = 0,
    ):
        step = 2 * network.multiple
        if tile_overlap < 0 or local_statistics < 0:
            raise InputError(
                f"tile overlap is {tile_overlap}, the window of local statistics "
                f"{local_statistics}; expected 0 or more"
            )
        self.tile_overlap = -(-tile_overlap // step) * step
        self.smallest_tile = max(3 * self.tile_overlap, network.least, step)
        if tile != "auto" and tile != 0:
            if not isinstance(tile, int) or tile < self.smallest_tile:
                raise InputError(
                    f"tile is {tile}; expected auto, 0 or at least {self.smallest_tile} (three "
                    f"times the overlap, {self.tile_overlap})"
                )
            tile = tile // network.multiple * network.multiple
        if self_ensemble and network.channels == 1:
            raise InputError(
                "the self-ensemble would measure every image eight times; expected it to be off "
                "for compressive sensing"
            )
        self.device = pick_device(str(device))
        if not network.prepared:
            network = prepare(network, precision=precision, compile=compile)
        self.network = network.to(self.device)
        self.tile, self.largest_tile = tile, math.inf
        self.self_ensemble, self.precision = self_ensemble, precision
        self.progress: Callable[[int, int], None] | None = None  # tiles done, and of all
        if local_statistics:
            use_local_statistics(self.network, local_statistics)

    @classmethod
    def from_checkpoint(
        cls,
        path: str | os.PathLike,
        *,
        task: str | None = None,
        model: str | None = None,
        **options,
    ) -> Restorer:
        """Load a checkpoint, whose task, model and sizes are read from the file; `task` decides
        where a published file fits several. `options` are the constructor's.

        Raises:
            InputError: as `dgunet.model.checkpoint.load_model` does, and the constructor.
        """
        return cls(load_model(path, task, model)[0], **options)

    def __call__(self, image: np.ndarray | Tensor) -> np.ndarray | Tensor:
        """Return the restored image.

        Raises:
            InputError: what is no image, is empty or not finite; the memory does not suffice even
                for the smallest tile; the result is not finite.
        """
        return self._restore(image, 1)[0]

    def stages(self, image: np.ndarray | Tensor) -> list[np.ndarray | Tensor]:
        """Return the images of all stages, first stage first; the last is the restored image."""
        return self._restore(image, self.network.sizes["stages"])[::-1]

    def _restore(self, image: np.ndarray | Tensor, count: int) -> list:
        """Return the images of the last `count` stages, last stage first."""
        if isinstance(image, Tensor):
            if image.ndim not in (3, 4):
                raise InputError(f"a tensor of shape {tuple(image.shape)}; expected C×H×W, N×C×H×W")
            pixels = image.detach().cpu()
            pixels = (pixels.float() if pixels.dtype == torch.bfloat16 else pixels).numpy()
            pixels = np.moveaxis(pixels, -3, -1)
            restored = np.moveaxis(self._restore_array(pixels, count), -1, -3)
            return [torch.from_numpy(r.copy()).to(image.device, image.dtype) for r in restored]
        if not isinstance(image, np.ndarray) or image.ndim not in (2, 3, 4):
            found = (
                f"shape {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
            )
            raise InputError(f"{found}; expected an array H×W, H×W×3 or N×H×W×3, or a tensor")
        pixels = image[..., None] if image.ndim == 2 else image
        return list(self._restore_array(pixels, count).reshape(count, *image.shape))

    def _restore_array(self, pixels: np.ndarray, count: int) -> np.ndarray:
        """H×W×C or N×H×W×C → count × the same."""
        if pixels.shape[-1] not in (1, 3, 4) or not pixels.size:
            raise InputError(
                f"an image of shape {pixels.shape}; expected pixels of 1, 3 or 4 channels"
            )
        if pixels.dtype.kind != "f" and pixels.dtype not in _INTEGERS:
            raise InputError(
                f"an image of {pixels.dtype}; expected uint8, uint16 or float in [0,1]"
            )
        if pixels.dtype.kind == "f" and (broken := np.count_nonzero(~np.isfinite(pixels))):
            raise InputError(f"{broken} of the image's values are not finite; expected 0 … 1")
        batch = pixels if pixels.ndim == 4 else pixels[None]
        restored = np.empty((count, *batch.shape), pixels.dtype)
        colours = slice(0, 3)
        restored[..., 3:] = batch[..., 3:]
        while not self._fill(restored[..., colours], batch[..., colours]):
            pass
        return restored.reshape(count, *pixels.shape)

    def _fill(self, restored: np.ndarray, degraded: np.ndarray) -> bool:
        """Restore N×H×W×C pixels into K×N×H×W×C. Return whether the memory was enough; if not, the
        next attempt takes smaller tiles."""
        count, (images, height, width, channels) = len(restored), degraded.shape
        separate = self.network.channels == 1
        tile = self._tile_for(height, width, images * channels if separate else images)
        rows, columns = (
            spans(side, tile, self.tile_overlap, self.network.multiple) for side in (height, width)
        )

        def read(row: slice, column: slice) -> Tensor:
            part = torch.stack([to_tensor(image[row, column]) for image in degraded])
            if separate:
                return part.flatten(0, 1)[:, None]
            return part.expand(-1, self.network.channels, -1, -1)

        def run(part: Tensor) -> Tensor:
            stages = self._forward(part, count)
            if channels == 1:
                stages = stages.mean(2, keepdim=True)
            # `strips` takes N×(K·C)×h×w
            stages = stages.reshape(count, images, channels, *part.shape[-2:])
            return stages.transpose(0, 1).flatten(1, 2)

        try:
            for strip, values in strips(run, read, rows, columns, self.progress):
                values = values.unflatten(1, (count, channels)).permute(1, 0, 3, 4, 2)
                restored[:, :, strip] = _quantised(values, restored.dtype)
            return True
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if tile <= self.smallest_tile:
                raise InputError(
                    f"{tile}×{tile} pixels do not fit the memory of {self.device}; try a smaller "
                    "tile overlap, a lower precision or another device"
                ) from error
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        half = tile // 2 // self.network.multiple * self.network.multiple
        self.largest_tile = max(half, self.smallest_tile)
        log.warning(
            "tiles of %d do not fit the memory of %s, going on with %d",
            tile,
            self.device,
            self.largest_tile,
        )
        return False

    @torch.inference_mode()
    def _forward(self, part: Tensor, count: int) -> Tensor:
        """N×C×h×w → the images of the last `count` stages, ×N×C×h×w, float32."""
        part = part.to(self.device).contiguous()
        stages = _restore_stages(self.network, part, self.self_ensemble, count)
        if not stages[0].isfinite().all():
            hint = f" in {self.precision}; try float32" if self.precision != "float32" else ""
            raise InputError(f"the network made values of it that are not finite{hint}")
        return stages

    def _tile_for(self, height: int, width: int, images: int) -> int:
        """Return the side of the tiles for an image; one that holds it whole, if that fits."""
        multiple = self.network.multiple
        whole = -(-max(height, width) // multiple) * multiple
        tile = self.tile or whole
        if tile == "auto":
            tile = largest_tile(self.network, self.device, images)
            if whole * (-(-min(height, width) // multiple) * multiple) <= tile**2:
                tile = whole  # as many pixels, though not a square
        return max(min(tile, whole, self.largest_tile), min(whole, self.smallest_tile))


def _quantised(values: Tensor, dtype: np.dtype) -> np.ndarray:
    """Return values as pixels of a type: clamped to [0,1]; for integers scaled and rounded."""
    values = values.clamp(0, 1).numpy()
    if dtype.kind == "f":
        return values.astype(dtype)
    return np.rint(values * np.float32(np.iinfo(dtype).max)).astype(dtype)
