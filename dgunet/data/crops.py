"""Crops of image pairs: the samples of image restoration, the same for the same seed.

A data source (`PairedImages`, `CleanImages` or `PackedPairs`) makes the sample that a key of the
sampler (`dgunet.data.sampler`) asks for. Every random choice of a sample comes from
`numpy.random.default_rng([seed, epoch, position])`, so samples depend neither on the number of
workers or processes nor on where a run was interrupted.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from yacs.config import CfgNode

from dgunet.base.errors import InputError, printable
from dgunet.base.threads import in_parallel
from dgunet.data.augmentation import ORIENTATIONS, change_saturation, turn
from dgunet.data.degradations import Degradation, degradation, pair_generator
from dgunet.data.packed import PACKED_SUFFIXES, image, open_packed, read_index
from dgunet.data.sampler import SampleKey
from dgunet.images.files import (
    list_images,
    luma,
    pad_bottom_right,
    pair_by_name,
    read_gray,
    read_rgb,
    to_tensor,
)
from dgunet.images.sizes import by, check_sizes

# (height, width) of an image -> (top, left) of the crop
Placement = Callable[[int, int], tuple[int, int]]


@dataclass(eq=False)
class CropSource(Dataset):
    """What the data sources share: from a `SampleKey` to an augmented sample.

    A subclass sets `items`, one for each image, and has `read_crop`. A sample is a dict:

    - `degraded`, `target`: float32 tensors C×patch×patch, in [0, 1] except for degradations made on
      the fly, which are neither clipped nor rounded;
    - `name`: the image's file name without suffix;
    - `skipped`: 1 if the next readable image stands in for one that cannot be read, else 0;
    - `weight`: 1, but 0 for a filler.

    Args:
        patch_size: side of the square crop in pixels; smaller images are reflect-padded.
        seed: see the module.
        augment: turn and flip the crop, one of nine equally likely ways (see `turn`).
        saturation: scale the colour saturation of one sample in three by U(0.8, 1.2), the same for
            both images.
        degrade: makes the degraded crop out of the target's, after the augmentation.
        grey: one channel, Y of full-range YCrCb, instead of RGB.
        skip_corrupt: go on with the next image where one cannot be read; else `InputError`.
    """

    items: Sequence = field(init=False)
    patch_size: int
    seed: int = 0
    _: KW_ONLY
    augment: bool = True
    saturation: bool = False
    degrade: Degradation | None = None
    grey: bool = False
    skip_corrupt: bool = False

    def __len__(self) -> int:
        return len(self.items)

    def read_crop(self, item, place: Placement) -> tuple:
        """Return the name of an item, then its degraded crop, where there is one, and its target
        crop: uint8, patch×patch×C. `place` is told the (padded) image's size and says where the
        crop lies. Raises `InputError` for an unreadable image."""
        raise NotImplementedError

    def __getitem__(self, key: SampleKey) -> dict:
        rng = np.random.default_rng([self.seed, key.epoch, max(key.position, 0)])

        def anywhere(height: int, width: int) -> tuple[int, int]:
            top = rng.integers(height - self.patch_size + 1)
            left = rng.integers(width - self.patch_size + 1)
            return int(top), int(left)

        (name, *crops), skipped = self._read_readable(key.index, anywhere)
        if self.augment:
            number = int(rng.integers(ORIENTATIONS))
            crops = [turn(crop, number) for crop in crops]
        if self.saturation and rng.integers(3) == 0:
            factor = rng.uniform(0.8, 1.2)
            crops = [change_saturation(crop, factor) for crop in crops]
        degraded, target = self.to_sample(crops, rng)
        weight = int(key.position >= 0)
        sample = {"degraded": degraded, "target": target, "name": name}
        return sample | {"skipped": int(skipped and weight), "weight": weight}

    def to_sample(
        self, crops: Sequence[np.ndarray], rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the degraded and the target crop as tensors. Where `degrade` is given it makes the
        degraded one."""
        target = to_tensor(crops[-1])
        if self.degrade is None:
            return to_tensor(crops[0]), target
        crop = target.permute(1, 2, 0).contiguous().numpy()
        return to_tensor(np.asarray(self.degrade(crop, rng), np.float32)), target

    def _read_readable(self, index: int, place: Placement):
        """Return `read_crop` of the first readable image from `index` on, and if it is another."""
        for offset in range(len(self)):
            try:
                return self.read_crop(self.items[(index + offset) % len(self)], place), offset > 0
            except InputError as error:
                if not self.skip_corrupt:
                    raise
                warnings.warn(f"left out: {printable(error)}", RuntimeWarning, stacklevel=3)
        raise InputError(f"none of the {len(self)} images can be read")

    def _read(self, path: Path) -> np.ndarray:
        """Return an image as uint8, H×W×C."""
        try:
            return read_gray(path)[..., None] if self.grey else read_rgb(path)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror or error}") from error

    def _crop(self, image: np.ndarray, top: int, left: int) -> np.ndarray:
        return image[top : top + self.patch_size, left : left + self.patch_size]

    def _pad(self, image: np.ndarray) -> np.ndarray:
        return pad_bottom_right(image, self.patch_size, self.patch_size)


class PairedImages(CropSource):
    """Pairs of the same name in `input/` and `target/` of a folder. Options: `CropSource`'s. Raises
    `InputError` for images without a partner, pairs of different size and, unless `skip_corrupt`,
    unreadable headers, before anything is decoded."""

    def __init__(self, folder: str | Path, patch_size: int, seed: int = 0, **options):
        super().__init__(patch_size, seed, **options)
        self.items = pair_by_name(Path(folder) / "input", Path(folder) / "target")
        check_sizes(self.items, ignore_unreadable=self.skip_corrupt)

    def read_crop(self, item: tuple[Path, Path], place: Placement) -> tuple:
        degraded, target = (self._read(path) for path in item)
        if degraded.shape != target.shape:
            raise InputError(
                f"{item[0]}: {by(degraded.shape)} pixels, its target {by(target.shape)}"
            )
        degraded, target = self._pad(degraded), self._pad(target)
        top, left = place(*target.shape[:2])
        return item[0].stem, self._crop(degraded, top, left), self._crop(target, top, left)


class CleanImages(CropSource):
    """Photographs alone: `degrade` makes a new degraded crop each time. Options: `CropSource`'s."""

    def __init__(self, folder: str | Path, patch_size: int, seed: int = 0, **options):
        super().__init__(patch_size, seed, **options)
        self.items = list_images(folder)

    def read_crop(self, item: Path, place: Placement) -> tuple:
        target = self._pad(self._read(item))
        return item.stem, self._crop(target, *place(*target.shape[:2]))


class PackedPairs(CropSource):
    """The images of a file made by `python -m dgunet.tools.pack`. Only the part that a crop needs
    is read, and nothing is decoded. Samples are those of `PairedImages` (or `CleanImages`) on the
    folder that was packed. Each process opens the file for itself. Options: `CropSource`'s. Raises
    `InputError` for a file that is cut short or was not made so."""

    def __init__(self, path: str | Path, patch_size: int, seed: int = 0, **options):
        super().__init__(patch_size, seed, **options)
        self.path = Path(path)
        names, sizes, self.paired = read_index(self.path)
        self.items = list(zip(range(len(names)), names, sizes, strict=True))
        self._file: Any = None  # an open h5py.File
        self._opened_by: int | None = None  # the process

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_file": None, "_opened_by": None}

    def read_crop(self, item: tuple[int, str, tuple[int, int]], place: Placement) -> tuple:
        number, name, size = item
        top, left = place(*(max(side, self.patch_size) for side in size))
        kinds = ["degraded", "target"] if self.paired and self.degrade is None else ["target"]
        # A handle inherited by fork is not used: a worker opens the file anew.
        if self._file is None or self._opened_by != os.getpid():
            self._file, self._opened_by = open_packed(self.path), os.getpid()
        crops = []
        for kind in kinds:
            stored = image(self._file, kind, number, size)
            try:
                whole = self._pad(stored[...]) if min(size) < self.patch_size else stored
                crop = self._crop(whole, top, left)
            except OSError as error:
                raise InputError(f"{self.path}: {name}: {error}") from error
            crops.append(luma(crop)[..., None] if self.grey else crop)
        return name, *crops


class ValidationImages(Dataset):
    """Centre crops of every image of a source; the key is an int. A sample has `degraded`, `target`
    (float32 C×patch×patch) and `name`.

    A degradation made on the fly is seeded by the image's name, so that every run is validated on
    the same images. If the source skips corrupt images, all are read once at the start, and
    `left_out` holds the messages on those that cannot be; `InputError` if that is all."""

    def __init__(self, source: CropSource):
        self.source, self.items = source, list(source.items)
        self.left_out: list[str] = []
        if source.skip_corrupt:
            problems = list(in_parallel(self._problem, self.items, jobs=16))
            self.left_out = [problem for problem in problems if problem]
            self.items = [i for i, bad in zip(self.items, problems, strict=True) if not bad]
            if not self.items:
                raise InputError(f"none of the images can be read, the first: {self.left_out[0]}")

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: int) -> dict:
        name, *crops = self.source.read_crop(self.items[key], self._centre)
        rng = pair_generator(0, "validation", name)
        degraded, target = self.source.to_sample(crops, rng)
        return {"degraded": degraded, "target": target, "name": name}

    def _centre(self, height: int, width: int) -> tuple[int, int]:
        # As torchvision's center_crop rounds.
        size = self.source.patch_size
        return round((height - size) / 2), round((width - size) / 2)

    def _problem(self, item) -> str | None:
        try:
            self.source.read_crop(item, self._centre)
        except InputError as error:
            return str(error)
        return None


def open_training_data(
    directory: str | Path, patch_size: int, seed: int = 0, **options
) -> CropSource:
    """Return the data source for what lies at `directory`: `PackedPairs` for a packed file (`.h5`),
    `PairedImages` for a folder with `input/` and `target/`; with `degrade`, `CleanImages` for a
    folder of photographs or the `target/` of a paired one. Options: `CropSource`'s. Raises
    `InputError` for anything else, and as they do."""
    path, degrade = Path(directory), options.get("degrade")
    if path.suffix.lower() in PACKED_SUFFIXES and not path.is_dir():
        packed = PackedPairs(path, patch_size, seed, **options)
        if degrade is None and not packed.paired:
            raise InputError(f"{path}: holds photographs alone; expected pairs, or a degradation")
        return packed
    if degrade is not None:
        photographs = path / "target" if (path / "target").is_dir() else path
        return CleanImages(photographs, patch_size, seed, **options)
    if not (path / "input").is_dir() or not (path / "target").is_dir():
        raise InputError(
            f"{path}: has no input/ and target/; expected them, a packed file (.h5) or, for "
            "photographs alone, DATA.DEGRADATION"
        )
    return PairedImages(path, patch_size, seed, **options)


def training_set(cfg: CfgNode, **special) -> CropSource:
    """Return what image restoration trains on: random, augmented crops of `TRAINING.TRAIN_DIR` but
    for the images held out. `special`: further options of `CropSource`. Raises `InputError`."""
    keys = cfg.TRAINING
    source = open_training_data(keys.TRAIN_DIR, keys.TRAIN_PS, cfg.SEED, **_options(cfg), **special)
    source.items, _ = hold_out(source.items, keys.HOLD_OUT, keys.TRAIN_DIR)
    return source


def validation_set(cfg: CfgNode) -> ValidationImages | None:
    """Return the centre crops of `TRAINING.VAL_DIR`, or of the `TRAINING.HOLD_OUT` images that are
    not trained on; None where neither is given."""
    keys = cfg.TRAINING
    if not keys.HOLD_OUT and not keys.VAL_DIR:
        return None
    source = open_training_data(keys.VAL_DIR or keys.TRAIN_DIR, keys.VAL_PS, **_options(cfg))
    if keys.HOLD_OUT:
        _, source.items = hold_out(source.items, keys.HOLD_OUT, keys.TRAIN_DIR)
    return ValidationImages(source)


def hold_out(items: Sequence, count: int, folder: str) -> tuple[list, list]:
    """Return the items to train on and the `count` others, evenly spaced among all.

    Raises `InputError` if nothing would be left to train on.

    >>> [len(part) for part in hold_out(range(400), 20, "photos")]
    [380, 20]
    """
    if count >= len(items):
        raise InputError(
            f"TRAINING.HOLD_OUT is {count}, expected fewer than the {len(items)} images in {folder}"
        )
    chosen = {number * len(items) // count for number in range(count)}
    kept = [item for number, item in enumerate(items) if number not in chosen]
    return kept, [items[number] for number in sorted(chosen)]


def _options(cfg: CfgNode) -> dict:
    return {
        "degrade": degradation(cfg.DATA.DEGRADATION),
        "grey": cfg.DATA.GREY,
        "skip_corrupt": cfg.TRAINING.SKIP_CORRUPT,
    }
