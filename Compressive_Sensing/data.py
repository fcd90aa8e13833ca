"""Compressive sensing trains on grey photographs alone: the network measures them itself.

They are decoded once and held in memory, on the GPU if there is one. Crops are cut there, a whole
batch at a time, so that no loader's workers are needed. Which image, where and how turned follows
from (seed, epoch, position) alone: neither from the number of processes nor from interruptions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from yacs.config import CfgNode

from dgunet.base.errors import InputError, first_few
from dgunet.base.threads import in_parallel
from dgunet.data.crops import hold_out
from dgunet.data.sampler import EpochBatchSampler, SampleKey
from dgunet.images.files import (
    list_images,
    middle,
    pad_bottom_right,
    read_gray,
    read_image,
    to_tensor,
    to_uint8,
)

BLOCK = 32
HELD_OUT_CROP = 256  # pixels: the size of most of Set11's images


def training_data(cfg: CfgNode) -> Photographs:
    """Return the crops of `TRAINING.TRAIN_DIR`, its sub-folders included, but for the
    `TRAINING.HOLD_OUT` photographs to validate on. Raises `InputError` for a folder that cannot be
    trained on."""
    images, names, unreadable = _read_all(_photographs(cfg)[0], read_luma, cfg)
    flip = cfg.DATA.HORIZONTAL_FLIP
    return Photographs(images, names, cfg.TRAINING.TRAIN_PS, cfg.SEED, unreadable, flip)


def validation_data(cfg: CfgNode) -> ValidationPhotographs | None:
    """Return the images of `TRAINING.VAL_DIR` (of colour ones Y as in testing); or, with
    `TRAINING.HOLD_OUT`, the centres of the photographs held out; None where there are neither.
    Raises `InputError` for a folder without readable images."""
    keys = cfg.TRAINING
    if keys.HOLD_OUT:
        images, names, unreadable = _read_all(_photographs(cfg)[1], read_luma, cfg)
        images = [middle(image, HELD_OUT_CROP, HELD_OUT_CROP) for image in images]
    elif keys.VAL_DIR:
        images, names, unreadable = _read_all(list_images(keys.VAL_DIR), read_gray, cfg)
    else:
        return None
    return ValidationPhotographs(images, names, keys.VAL_PS, unreadable)


class Photographs(Dataset):
    """Crops of grey photographs, cut on the device they lie on.

    A crop stands at a random place; it is flipped upside down, flipped left to right and
    transposed, each with probability ½.

    Args:
        images: H×W in 0 … 255, uint8 or float32 (then all are held as float32).
        patch_size: side of the square crop in pixels; smaller images are reflect-padded.
        unreadable: messages on images left out, to be reported.
    """

    def __init__(
        self,
        images: Sequence[np.ndarray],
        names: Sequence[str],
        patch_size: int,
        seed: int = 0,
        unreadable: Sequence[str] = (),
        horizontal_flip: bool = True,
    ):
        self.names, self.patch_size, self.seed = list(names), patch_size, seed
        self.moves = 0b111 if horizontal_flip else 0b101  # as the bits of `turns` in `crops`
        self.notes = [f"left out: {message}" for message in unreadable]
        small = [n for n, i in zip(names, images, strict=True) if min(i.shape) < patch_size]
        if small:
            self.notes.append(
                f"{len(small)} of {len(images)} images are smaller than the patch of {patch_size} "
                f"pixels and reflect-padded: {first_few(small)}"
            )
        images = [pad_bottom_right(image, patch_size, patch_size) for image in images]
        self.pixels = torch.from_numpy(np.concatenate([image.ravel() for image in images]))
        self.sizes = np.array([image.shape for image in images])
        self.starts = np.cumsum([0, *(image.size for image in images[:-1])])

    def __len__(self) -> int:
        return len(self.names)

    def loader(self, sampler: EpochBatchSampler, device: torch.device) -> CropLoader:
        """Return what training iterates over. The images move to the device for good."""
        self.pixels = self.pixels.to(device)
        return CropLoader(self, sampler)

    def batch(self, keys: Sequence[SampleKey], samples: int) -> dict:
        """Return the samples of the keys, all of one epoch, which has so many `samples`: a dict as
        `dgunet.data.crops.CropSource` describes it, the images on the device."""
        places, turns = draws(self.seed, keys[0].epoch, samples)
        positions = [max(key.position, 0) for key in keys]
        indices = np.array([key.index for key in keys])
        turns = turns[positions] & self.moves
        crops = self.crops(indices, places[positions], turns, self.patch_size)
        return {
            "degraded": crops,
            "target": crops,
            "name": [self.names[index] for index in indices],
            "skipped": torch.zeros(len(keys), dtype=torch.int64),
            "weight": torch.tensor([int(key.position >= 0) for key in keys]),
        }

    def crops(
        self, indices: np.ndarray, places: np.ndarray, turns: np.ndarray, size: int
    ) -> Tensor:
        """Return square crops as float32 in [0,1], N×1×size×size, on the images' device; `size` is
        at most the patch's. `indices` (N) says of which image, `places` and `turns` are as `draws`
        returns them."""
        device = self.pixels.device
        top, left = (places * (self.sizes[indices] - size + 1)).astype(np.int64).T
        width = self.sizes[indices, 1]
        first = self.starts[indices] + top * width + left
        numbers = np.stack([first, width, *(turns >> bit & 1 for bit in range(3))])
        numbers = torch.from_numpy(numbers).to(device)[..., None, None]
        first, width, down, right, transposed = numbers
        line = torch.arange(size, device=device)
        row = torch.where(transposed == 1, line[None], line[:, None])
        column = torch.where(transposed == 1, line[:, None], line[None])
        row = torch.where(down == 1, size - 1 - row, row)
        column = torch.where(right == 1, size - 1 - column, column)
        return (self.pixels[first + row * width + column].float() / 255)[:, None]


@lru_cache(maxsize=1)
def draws(seed: int, epoch: int, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Return where each crop of an epoch lies, and how it is turned.

    Returns:
        rows and columns above and left of it, as a share in [0,1) of those that there can be, N×2;
        0 … 7, where bit 0 flips upside down, bit 1 left to right, bit 2 transposes, N.
    """
    place, turn = (np.random.default_rng([seed, epoch, 0, n]) for n in (3, 4))
    return place.random((samples, 2)), turn.integers(8, size=samples)


@dataclass
class CropLoader:
    """The batches of a sampler, from where it stands to the end of its epoch."""

    photographs: Photographs
    sampler: EpochBatchSampler

    def __iter__(self) -> Iterator[dict]:
        for keys in self.sampler:
            yield self.photographs.batch(keys, self.sampler.samples)


@dataclass
class ValidationPhotographs(Dataset):
    """Whole grey images, as `Photographs` takes them; the key is an int.

    They are reconstructed by tiles of side `tile` (0: whole), one image at a time, since they
    differ in size. `left_out`: messages on unreadable ones."""

    images: Sequence[np.ndarray]
    names: Sequence[str]
    tile: int
    left_out: Sequence[str]

    batch_size = 1

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: int) -> dict:
        image = to_tensor(self.images[key].astype(np.float32) / 255)
        return {"degraded": image, "target": image, "name": self.names[key]}


def read_luma(path: str | Path) -> np.ndarray:
    """Return an image H×W in 0 … 255 as the published training does: of a colour one Y of BT.601 in
    limited range (16 … 235), float32, not rounded; a grey one as it is, uint8. (Testing takes Y in
    full range, `read_gray`.)"""
    image = to_uint8(read_image(path))
    if image.ndim == 2:
        return image
    return (16 + image[..., :3] @ np.array([65.481, 128.553, 24.966]) / 255).astype(np.float32)


def principal_components(photographs: Photographs, count: int, blocks: int = 80_000) -> Tensor:
    """Return the principal components of the photographs' blocks as Φ, count×1024, float32: the
    leading eigenvectors of the second moment of random 32×32 crops in [0,1].

    Of all Φ it is the one whose ΦᵀΦ x lies nearest to those x in the mean. The same photographs
    give the same Φ; of an eigenvector's two directions, the one whose largest entry is positive.
    """
    rng = np.random.default_rng(0)
    moment = np.zeros((BLOCK**2, BLOCK**2))
    chunk = 4_000
    for start in range(0, blocks, chunk):
        number = min(chunk, blocks - start)
        indices, places = rng.integers(len(photographs), size=number), rng.random((number, 2))
        crops = photographs.crops(indices, places, rng.integers(8, size=number), BLOCK)
        crops = crops.flatten(1).cpu().numpy()
        moment += crops.T @ crops  # of which NumPy computes one half
    vectors = np.linalg.eigh(moment / blocks)[1][:, : -count - 1 : -1].T
    largest = np.take_along_axis(vectors, abs(vectors).argmax(1)[:, None], axis=1)
    return torch.from_numpy((vectors * np.sign(largest)).astype(np.float32))


def _photographs(cfg: CfgNode) -> tuple[list[Path], list[Path]]:
    """Return the files to train on, and those held out."""
    keys = cfg.TRAINING
    return hold_out(list_images(keys.TRAIN_DIR, recursive=True), keys.HOLD_OUT, keys.TRAIN_DIR)


def _read_all(paths, read, cfg: CfgNode) -> tuple[list[np.ndarray], list[str], list[str]]:
    """Return images, their names, and the messages on those that could not be read."""

    def attempt(path: Path) -> np.ndarray | str:
        try:
            return read(path)
        except (InputError, OSError) as error:
            return str(error) if isinstance(error, InputError) else f"{path}: {error}"

    images, names, problems = [], [], []
    for path, outcome in zip(paths, in_parallel(attempt, paths, jobs=-1), strict=True):
        if isinstance(outcome, str):
            problems.append(outcome)
        else:
            images.append(outcome)
            names.append(path.name)
    if problems and (not cfg.TRAINING.SKIP_CORRUPT or not images):
        raise InputError(first_few(problems, 1))
    return images, names, problems
