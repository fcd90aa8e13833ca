"""`Restorer`: one network, run on images of any kind and size, on the device at hand."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dgunet.base.errors import InputError
from dgunet.images.files import reflected_places, to_tensor
from dgunet.inference.device import pick_device, slow_precision, tf32
from dgunet.inference.local_statistics import use_local_statistics
from dgunet.inference.memory import (
    is_out_of_memory,
    largest_indexable_tile,
    largest_tile,
    return_freed_memory,
)
from dgunet.inference.optimize import COMPILED_SIZES, optimize_for_inference
from dgunet.inference.tiling import Span, spans, strips
from dgunet.model.checkpoint import load_model
from dgunet.model.network import Network

TILE_OVERLAP = 64
_BATCH_PIXELS = 2**16  # of small tiles that go through the network together

log = logging.getLogger(__name__)


class Restorer:
    """Restores images of any kind and size with one network.

    A degraded image in, a restored one of the same type and shape out:

    * NumPy arrays H×W (grey), H×W×3 (RGB), H×W×4 (RGBA) and batches N×H×W×C;
    * tensors C×H×W and N×C×H×W (C = 1, 3, 4), on any device;
    * uint8, uint16, or floats in [0,1].

    Results are clamped to [0,1]; integers are rounded half to even. Alpha is returned as it was. A
    three-channel network restores a grey image as the mean of three equal channels; a compressive
    sensing network measures and reconstructs each channel on its own.

    The network sees an image padded at the bottom and right to the sizes it takes, by reflection or
    with zeros as it says itself (`Network.padding`); the result is cropped back.

    >>> restorer = Restorer.from_checkpoint("blind", device="cpu")
    >>> restored = restorer(np.zeros((30, 50, 3), np.uint8))
    >>> restored.shape, restored.dtype
    ((30, 50, 3), dtype('uint8'))

    Args:
        network: any task's; left as it is, for a copy of it is used.
        device: as `pick_device` takes it.
        tile: the largest side of the tiles that a larger image is cut into; "auto": the largest
            that the free memory suffices for; 0: none. Where the memory turns out not to suffice,
            the tile is halved, with a warning through `logging`.
        tile_overlap: pixels that neighbouring tiles share at least, over which they are blended. 0,
            where `tile` is a number: tiles of exactly that size side by side, as the published
            test of compressive sensing takes them; what lies beyond the image is padding.
        self_ensemble: take the mean over the eight flips and quarter turns of the image, each
            restored and turned back (Timofte et al., "Seven ways to improve example-based single
            image super resolution", 2016). Padded after the turn, so restoring a turned image is
            turning the restored one.
        precision, compile: as `optimize_for_inference` takes them.
        local_statistics: side of the window that `use_local_statistics` takes; 0: it is not used.
        optimize: False: use the network itself, as validation during training does, neither copied
            nor optimised. `compile` is without effect, and `precision` but for tf32.

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
        optimize: bool = True,
    ):
        step = 2 * network.multiple_of
        if tile_overlap < 0 or local_statistics < 0:
            raise InputError(
                f"tile overlap is {tile_overlap}, the window of local statistics "
                f"{local_statistics}; expected 0 or more"
            )
        self.tile_overlap = -(-tile_overlap // step) * step
        self.smallest_tile = max(3 * self.tile_overlap, network.multiple_of, network.min_long_side)
        if tile != "auto" and tile != 0:
            if not isinstance(tile, int) or tile < self.smallest_tile:
                raise InputError(
                    f"tile is {tile}; expected auto, 0 or at least {self.smallest_tile} (three "
                    f"times the overlap, {self.tile_overlap})"
                )
            tile = tile // network.multiple_of * network.multiple_of
        if self_ensemble and network.channels == 1:
            raise InputError(
                "the self-ensemble would measure every image eight times; expected it to be off "
                "for compressive sensing"
            )
        self.device = pick_device(str(device))
        if optimize:
            network = optimize_for_inference(network, precision, compile)
        self.network = network.to(self.device)
        self.compiled: set[torch.Size] | None = set() if compile and optimize else None  # sizes
        self.tile, self.largest_tile = tile, math.inf
        self.self_ensemble, self.precision = self_ensemble, precision
        self.progress: Callable[[int, int], None] | None = None  # tiles done, and of all
        if optimize and (warning := slow_precision(self.device, precision)):
            log.warning(warning)
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
        """Load a checkpoint, or bundled weights by their name, as
        `dgunet.model.checkpoint.load_model` does. `options` are the constructor's."""
        return cls(load_model(path, task, model)[0], **options)

    @classmethod
    def from_pretrained(
        cls, name: str | os.PathLike, *, revision: str | None = None, **options
    ) -> Restorer:
        """Load a folder that `python -m dgunet.tools.publish` wrote, or a model of the Hugging Face
        hub ("user/name") that was made so; the hub needs the library huggingface_hub.

        `revision` is the hub's branch, tag or commit; `options` are the constructor's. Raises
        `InputError` where there is no such folder, model or library, and as `from_checkpoint`.
        """
        folder = Path(name)
        if not folder.is_dir():
            try:
                from huggingface_hub import snapshot_download
            except ImportError as error:
                raise InputError(
                    f"{name}: is no folder; models of the hub need: pip install huggingface_hub"
                ) from error
            files = ["config.json", "model.safetensors"]
            try:
                found = snapshot_download(str(name), revision=revision, allow_patterns=files)
            except (OSError, ValueError) as error:
                reason = " ".join(str(error).split())
                raise InputError(f"{name}: neither a folder nor on the hub ({reason})") from error
            folder = Path(found)
        return cls.from_checkpoint(folder / "model.safetensors", **options)

    def __call__(self, image: np.ndarray | Tensor) -> np.ndarray | Tensor:
        """Return the restored image, of the same type and shape, in [0,1]. Raises `InputError` for
        what is no image, is empty or not finite; if the memory does not suffice even for the
        smallest tile; if the result is not finite."""
        return self._restore_image(image, 1)[0]

    def stages(self, image: np.ndarray | Tensor) -> list[np.ndarray | Tensor]:
        """Return the images of all stages, first stage first; the last is the restored image."""
        return self._restore_image(image, self.network.sizes["stages"])[::-1]

    @torch.inference_mode()
    def restore(self, degraded: Tensor) -> Tensor:
        """Return the image of the last stage as the network made it, neither clamped nor checked,
        on `self.device`: N×C×H×W as `degraded`, which is in [0,1] and on any device."""
        restored = torch.empty_like(degraded, device=self.device)

        def write(rows: slice, values: Tensor) -> None:
            restored[..., rows, :] = values[0]

        images, _, *size = degraded.shape
        self._run((images, *size), lambda r, c: degraded[..., r, c], write, 1)
        return restored

    @torch.inference_mode()
    def reconstruct(self, y: Tensor) -> list[Tensor]:
        """Return a compressive sensing network's stage images, N×1×H×W, of measurements
        N×m×H/32×W/32: last stage first, not clamped, on `self.device`. Raises `InputError` where
        they do not fit the memory, or the images are not finite."""
        try:
            with tf32(self.precision == "tf32"):
                images = self.network.reconstruct(y.to(self.device))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise InputError(
                f"the measurements do not fit the memory of {self.device}; try a lower precision "
                "or another device"
            ) from error
        self._check_finite(images[0])
        return images

    def _restore_image(self, image: np.ndarray | Tensor, count: int) -> list:
        """Return the images of the last `count` stages, last stage first."""
        if isinstance(image, Tensor):
            if image.ndim not in (3, 4):
                raise InputError(f"a tensor of shape {tuple(image.shape)}; expected C×H×W, N×C×H×W")
            pixels = image.detach().cpu()
            pixels = (pixels.float() if pixels.dtype == torch.bfloat16 else pixels).numpy()
            pixels = np.moveaxis(pixels, -3, -1)
            restored = np.moveaxis(self._restore_pixels(pixels, count), -1, -3)
            return [torch.from_numpy(r.copy()).to(image.device, image.dtype) for r in restored]
        if not isinstance(image, np.ndarray) or image.ndim not in (2, 3, 4):
            found = getattr(image, "shape", type(image).__name__)
            raise InputError(f"{found}: expected an array H×W, H×W×3 or N×H×W×3, or a tensor")
        pixels = image[..., None] if image.ndim == 2 else image
        return list(self._restore_pixels(pixels, count).reshape(count, *image.shape))

    def _restore_pixels(self, pixels: np.ndarray, count: int) -> np.ndarray:
        """H×W×C or N×H×W×C → count × the same."""
        known = pixels.dtype.kind == "f" or pixels.dtype in (np.uint8, np.uint16)
        if pixels.shape[-1] not in (1, 3, 4) or not pixels.size or not known:
            raise InputError(
                f"{pixels.dtype} of shape {pixels.shape}; expected pixels of 1, 3 or 4 channels, "
                "uint8, uint16 or float in [0,1]"
            )
        if pixels.dtype.kind == "f" and (broken := np.count_nonzero(~np.isfinite(pixels))):
            raise InputError(f"{broken} of the image's values are not finite; expected 0 … 1")
        batch = pixels if pixels.ndim == 4 else pixels[None]
        restored = np.empty((count, *batch.shape), pixels.dtype)
        restored[..., 3:] = batch[..., 3:]  # alpha
        colours = batch[..., :3]
        images, height, width, channels = colours.shape
        separate = self.network.channels == 1

        def read(rows: slice, columns: slice) -> Tensor:
            part = torch.stack([to_tensor(image[rows, columns]) for image in colours])
            return part.flatten(0, 1)[:, None] if separate else part.expand(-1, 3, -1, -1)

        def write(rows: slice, values: Tensor) -> None:
            self._check_finite(values[0])
            if separate:
                values = values.reshape(count, images, channels, *values.shape[-2:])
            elif channels == 1:
                values = values.mean(2, keepdim=True)
            values = values.movedim(2, -1).float().cpu()
            restored[:, :, rows, :, :3] = _quantised(values, restored.dtype)

        self._run((images * channels if separate else images, height, width), read, write, count)
        return restored.reshape(count, *pixels.shape)

    def _check_finite(self, image: Tensor) -> None:
        if not image.isfinite().all():
            hint = f" in {self.precision}; try float32" if self.precision != "float32" else ""
            raise InputError(f"the network made values of it that are not finite{hint}")

    def _run(
        self,
        shape: tuple[int, int, int],
        read: Callable[[slice, slice], Tensor],
        write: Callable[[slice, Tensor], None],
        count: int,
    ) -> None:
        """Restore what `read` gives (N×C×h×w, of an image N×H×W as `shape` says) tile by tile, and
        `write` the images of the last `count` stages, K×N×C×h×W, strip by strip. Where the memory
        does not suffice, begin again with smaller tiles."""
        images, height, width = shape
        while True:
            tile = self._tile_for(height, width, images)
            rows, columns = (
                spans(side, tile, self.tile_overlap, self.network.multiple_of)
                for side in (height, width)
            )
            padded = self._padded_size(rows[0], columns[0])
            batch = max(1, _BATCH_PIXELS // (images * math.prod(padded)))
            restore = partial(self._restore_parts, size=padded, count=count)
            try:
                for strip, values in strips(restore, read, rows, columns, batch, self.progress):
                    write(strip, values)
                return
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if tile <= self.smallest_tile:
                    raise InputError(
                        f"{tile}×{tile} pixels do not fit the memory of {self.device}; try a "
                        "smaller tile overlap, a lower precision or another device"
                    ) from error
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            half = tile // 2 // self.network.multiple_of * self.network.multiple_of
            self.largest_tile = max(half, self.smallest_tile)
            message = "tiles of %d do not fit the memory of %s, going on with %d"
            log.warning(message, tile, self.device, self.largest_tile)

    def _tile_for(self, height: int, width: int, images: int) -> int:
        """Return the side of the tiles for an image; one that holds it whole, if that fits."""
        step = self.network.multiple_of
        whole, short = (-(-side // step) * step for side in sorted((height, width))[::-1])
        if self.tile == "auto":
            most = largest_tile(self.network, self.device, images)
        else:
            most = largest_indexable_tile(self.network, images)
        if self.tile in ("auto", 0):
            tile = whole if whole * short <= most**2 else most  # as many pixels, if not a square
        else:
            tile = min(self.tile, most)
        return max(min(tile, whole, self.largest_tile), min(whole, self.smallest_tile))

    def _padded_size(self, row: Span, column: Span) -> tuple[int, int]:
        """Return the height and width that tiles are padded to."""
        least = self.network.min_long_side
        if self.tile not in ("auto", 0) and not self.tile_overlap:
            least = int(min(int(self.tile), self.largest_tile))
            return max(row.padded, least), max(column.padded, least)
        padded = row.padded, column.padded
        return padded if max(padded) >= least else (least, least)

    @torch.inference_mode()
    def _restore_parts(
        self, parts: list[Tensor], size: tuple[int, int], count: int
    ) -> list[Tensor]:
        """Parts N×C×h×w → of each the images of the last `count` stages, K×N×C×h×w."""
        if not self.self_ensemble:
            return self._forward(parts, size, count)
        totals: list = [0] * len(parts)
        for turns in range(4):
            for flip in (False, True):
                turned = [part.flip(-1) if flip else part for part in parts]
                turned = [torch.rot90(part, turns, (-2, -1)) for part in turned]
                restored = self._forward(turned, size[::-1] if turns % 2 else size, count)
                restored = [torch.rot90(stages, -turns, (-2, -1)) for stages in restored]
                restored = [stages.flip(-1) if flip else stages for stages in restored]
                totals = [total + stages for total, stages in zip(totals, restored, strict=True)]
        return [total / 8 for total in totals]

    def _forward(self, parts: list[Tensor], size: tuple[int, int], count: int) -> list[Tensor]:
        """The same without self-ensemble: pad the parts to one size, run the network, crop."""
        mode = self.network.padding
        batch = torch.cat([pad(part.to(self.device), *size, mode) for part in parts])
        return_freed_memory(tuple(batch.shape))
        if self.compiled is not None and batch.shape not in self.compiled:
            self.compiled.add(batch.shape)
            if len(self.compiled) == COMPILED_SIZES + 1:
                log.warning("images of more than %d sizes: not compiled from here", COMPILED_SIZES)
        with tf32(self.precision == "tf32"):
            stages = torch.stack(self.network(batch)[:count])
        split = zip(stages.split(len(parts[0]), dim=1), parts, strict=True)
        return [restored[..., : part.shape[-2], : part.shape[-1]] for restored, part in split]


def pad(image: Tensor, height: int, width: int, mode: str) -> Tensor:
    """Return an image …×H×W padded at the bottom and right to a size, with zeros (`mode` "zeros")
    or by its reflection ("reflect"), which goes on to and fro where the padding exceeds the image.

    >>> pad(torch.tensor([[1.0, 2.0, 3.0]]), 1, 7, "reflect")
    tensor([[1., 2., 3., 2., 1., 2., 3.]])
    """
    if mode == "zeros":
        return F.pad(image, (0, width - image.shape[-1], 0, height - image.shape[-2]))
    for axis, length in ((-2, height), (-1, width)):
        if length > image.shape[axis]:
            places = torch.from_numpy(reflected_places(image.shape[axis], length))
            image = image.index_select(axis, places.to(image.device))
    return image.contiguous()


def _quantised(values: Tensor, dtype: np.dtype) -> np.ndarray:
    """Return values as pixels of a type: clamped to [0,1]; for integers scaled and rounded."""
    values = values.clamp(0, 1).numpy()
    if dtype.kind == "f":
        return values.astype(dtype)
    return np.rint(values * np.float32(np.iinfo(dtype).max)).astype(dtype)
