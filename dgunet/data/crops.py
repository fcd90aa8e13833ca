"""What training sees: crops of image pairs, augmented, the same for the same seed.

A sampler (`EpochBatchSampler`) decides which image stands at which place of an epoch; a data
source (`PairedImages`, `CleanImages` or `PackedPairs`) makes the sample of that place. Every random
choice of a sample comes from `numpy.random.default_rng([seed, epoch, position])`, so samples depend
neither on the number of workers or processes nor on where a run was interrupted.
"""

from __future__ import annotations

import math
import os
import re
import struct
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler
from yacs.config import CfgNode

from dgunet.base.errors import InputError, first_few
from dgunet.data.degradations import PRESETS, Noise, add_noise, degrade, pair_generator
from dgunet.data.packed import PACKED_SUFFIXES, dataset_name, open_packed, read_index
from dgunet.images.files import (
    list_images,
    pad_bottom_right,
    pair_by_name,
    read_gray,
    read_rgb,
    to_tensor,
)

# (crop H×W×C float32 in [0, 1], generator) -> degraded crop, float, neither clipped nor rounded
Degradation = Callable[[np.ndarray, np.random.Generator], np.ndarray]
# (height, width) of an image -> (top, left) of the crop
Placement = Callable[[int, int], tuple[int, int]]

_THREADS = 16  # reading many headers is waiting, above all on a network disk


class UnreadableImage(InputError):
    """An image cannot be read in the middle of training. The message names the file.

    Raised in a worker of a `DataLoader` it arrives in the main process with the worker's traceback
    for a message; the last line of that, which is the original message, is kept.
    """

    def __init__(self, message: str):
        last_line = str(message).strip().splitlines()[-1]
        super().__init__(last_line.removeprefix(f"{__name__}.{type(self).__name__}: "))


class SampleKey(NamedTuple):
    """Which sample: the `position` in the epoch makes its random choices, the `index` its image.

    A negative position marks a filler (see `EpochBatchSampler`).
    """

    epoch: int
    position: int
    index: int


class EpochBatchSampler(Sampler[list[SampleKey]]):
    """Yields the keys of one rank's share of every batch, for `DataLoader(batch_sampler=...)`.

    `batch_size` is the joint batch over all ranks. A rank takes a contiguous share of every joint
    batch, so that the ranks together see exactly the batches of a single process; shares differ by
    one sample at most where the batch cannot be divided evenly. The last batch of an epoch may be
    smaller. Where it has fewer samples than there are ranks, a rank without a share gets one filler
    key, whose sample has `weight` 0: the rank then takes part in the step without counting.

    Args:
        length: number of images.
        batch_size: joint batch, at least `world_size`.
        seed: decides the order, together with the epoch.
        shuffle: new order every epoch; otherwise the images in order.
        rank, world_size: this process, and how many there are.
        repeats: how often an epoch uses each image.

    >>> sampler = EpochBatchSampler(5, batch_size=2, seed=0, shuffle=False)
    >>> [[key.index for key in batch] for batch in sampler]
    [[0, 1], [2, 3], [4]]
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        *,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
        repeats: int = 1,
    ):
        if length < 1 or repeats < 1:
            raise ValueError(f"{length} images used {repeats} times; expected at least one sample")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} of {world_size} processes")
        if batch_size < world_size:
            raise InputError(
                f"OPTIM.BATCH_SIZE: {batch_size} samples for {world_size} processes; "
                "expected at least one for each (it is the joint batch)"
            )
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.shuffle, self.rank, self.world_size, self.repeats = shuffle, rank, world_size, repeats
        self.epoch, self.first_batch = 1, 0

    @property
    def samples(self) -> int:
        """Number of samples of an epoch, over all ranks."""
        return self.length * self.repeats

    @property
    def batches(self) -> int:
        """Number of batches of a whole epoch."""
        return math.ceil(self.samples / self.batch_size)

    def joint_size(self, batch: int) -> int:
        """Return how many samples the joint batch number `batch` (from 0) of an epoch has."""
        return min(self.batch_size, self.samples - batch * self.batch_size)

    def set_position(self, epoch: int, first_batch: int = 0) -> None:
        """Go to an epoch, and within it to a batch: where a resumed run goes on."""
        if not 0 <= first_batch <= self.batches:
            raise ValueError(f"batch {first_batch} of an epoch of {self.batches}")
        self.epoch, self.first_batch = epoch, first_batch

    def __len__(self) -> int:
        """Number of batches left in this epoch."""
        return self.batches - self.first_batch

    def __iter__(self) -> Iterator[list[SampleKey]]:
        epoch, first_batch = self.epoch, self.first_batch
        order = np.arange(self.samples)
        if self.shuffle:
            # The 1 keeps this stream apart from the samples' [seed, epoch, position].
            order = np.random.default_rng([self.seed, epoch, 0, 1]).permutation(self.samples)
        for batch in range(first_batch, self.batches):
            start, size = batch * self.batch_size, self.joint_size(batch)
            first = start + size * self.rank // self.world_size
            last = start + size * (self.rank + 1) // self.world_size
            share = [
                SampleKey(epoch, at, int(order[at]) % self.length) for at in range(first, last)
            ]
            yield share or [SampleKey(epoch, -1, int(order[start]) % self.length)]


class CropSource(Dataset):
    """What the data sources share: from a `SampleKey` to an augmented sample.

    A subclass has a length and `read_crop`. A sample is a dict:

    - `degraded`, `target`: float32 tensors C×patch×patch, in [0, 1] but for degradations made on
      the fly, which are neither clipped nor rounded; without degraded images or a degradation the
      two are equal;
    - `name`: the image's file name without suffix;
    - `skipped`: 1 if the image meant could not be read and the next readable one stands in for it
      (only with `skip_corrupt`; without, `UnreadableImage` is raised), else 0;
    - `weight`: 1, but 0 for a filler.

    Args:
        patch_size: side of the square crop in pixels; smaller images are reflect-padded.
        seed: see the module.
        moves: apply one of nine equally likely moves, `move`.
        saturation: scale the colour saturation of one sample in three by U(0.8, 1.2), the same for
            both images.
        degrade: makes the degraded crop out of the target's, after the move.
        grey: one channel, Y of full-range YCrCb, instead of RGB.
        skip_corrupt: go on with the next image where one cannot be read.
    """

    def __init__(
        self,
        patch_size: int,
        seed: int = 0,
        *,
        moves: bool = True,
        saturation: bool = False,
        degrade: Degradation | None = None,
        grey: bool = False,
        skip_corrupt: bool = False,
    ):
        self.patch_size, self.seed = patch_size, seed
        self.moves, self.saturation = moves, saturation
        self.degrade, self.grey, self.skip_corrupt = degrade, grey, skip_corrupt

    def __len__(self) -> int:
        raise NotImplementedError

    def read_crop(self, index: int, place: Placement) -> tuple[str, np.ndarray | None, np.ndarray]:
        """Return name, degraded crop (None where there is none) and target crop of an image: uint8,
        patch×patch×C. `place` is told the (padded) image's size and says where the crop lies.

        Raises `UnreadableImage`."""
        raise NotImplementedError

    def __getitem__(self, key: SampleKey) -> dict:
        rng = np.random.default_rng([self.seed, key.epoch, max(key.position, 0)])

        def anywhere(height: int, width: int) -> tuple[int, int]:
            top = rng.integers(height - self.patch_size + 1)
            left = rng.integers(width - self.patch_size + 1)
            return int(top), int(left)

        (name, degraded, target), skipped = self._read_readable(key.index, anywhere)
        if self.moves:
            number = int(rng.integers(9))
            target = move(target, number)
            degraded = None if degraded is None else move(degraded, number)
        degraded, target = self.to_sample(degraded, target, rng)
        if self.saturation and rng.integers(3) == 0:
            degraded, target = _saturate(degraded, target, rng.uniform(0.8, 1.2))
        weight = int(key.position >= 0)
        sample = {"degraded": degraded, "target": target, "name": name}
        return sample | {"skipped": int(skipped and weight), "weight": weight}

    def to_sample(
        self, degraded: np.ndarray | None, target: np.ndarray, rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return uint8 crops as tensors, the degraded one made here where that is to be done."""
        clean = to_tensor(target)
        if self.degrade is not None:
            crop = clean.permute(1, 2, 0).contiguous().numpy()
            return to_tensor(np.asarray(self.degrade(crop, rng), np.float32)), clean
        return (clean.clone() if degraded is None else to_tensor(degraded)), clean

    def _read_readable(self, index: int, place: Placement):
        """Return `read_crop` of the first readable image from `index` on, and if it is another."""
        for offset in range(len(self)):
            try:
                return self.read_crop((index + offset) % len(self), place), offset > 0
            except UnreadableImage as error:
                if not self.skip_corrupt:
                    raise
                warnings.warn(f"left out: {error}", RuntimeWarning, stacklevel=3)
        raise UnreadableImage(f"none of the {len(self)} images can be read")

    def _read(self, path: Path) -> np.ndarray:
        """Return an image as uint8, H×W×C."""
        try:
            return read_gray(path)[..., None] if self.grey else read_rgb(path)
        except (InputError, OSError) as error:
            found = "" if str(path) in str(error) else f"{path}: "
            raise UnreadableImage(found + " ".join(str(error).split())) from error

    def _crop(self, image: np.ndarray, top: int, left: int) -> np.ndarray:
        return image[top : top + self.patch_size, left : left + self.patch_size]

    def _pad(self, image: np.ndarray) -> np.ndarray:
        return pad_bottom_right(image, self.patch_size, self.patch_size)


class PairedImages(CropSource):
    """Pairs of the same name in `input/` and `target/` of a folder.

    The pairs are checked before anything is decoded: names, and sizes as the files' headers say
    (unreadable headers too, unless `skip_corrupt`). Further arguments: `CropSource`.

    Raises `InputError` for images without a partner or pairs of different size, with how many they
    are and the first few.
    """

    def __init__(self, folder: str | Path, patch_size: int, seed: int = 0, **options):
        super().__init__(patch_size, seed, **options)
        self.pairs = pair_by_name(Path(folder) / "input", Path(folder) / "target")
        check_sizes(self.pairs, ignore_unreadable=self.skip_corrupt)

    def __len__(self) -> int:
        return len(self.pairs)

    def read_crop(self, index: int, place: Placement) -> tuple[str, np.ndarray, np.ndarray]:
        input_path, target_path = self.pairs[index]
        degraded, target = self._read(input_path), self._read(target_path)
        if degraded.shape != target.shape:
            raise UnreadableImage(
                f"{input_path}: {_by(*degraded.shape)} pixels, its target {_by(*target.shape)}"
            )
        degraded, target = self._pad(degraded), self._pad(target)
        top, left = place(*target.shape[:2])
        return input_path.stem, self._crop(degraded, top, left), self._crop(target, top, left)


class CleanImages(CropSource):
    """Photographs alone: the degraded crop is made by `degrade`, anew each time. Without `degrade`
    it is the target itself. Further arguments: `CropSource`."""

    def __init__(self, folder: str | Path, patch_size: int, seed: int = 0, **options):
        super().__init__(patch_size, seed, **options)
        self.paths = list_images(folder)

    def __len__(self) -> int:
        return len(self.paths)

    def read_crop(self, index: int, place: Placement) -> tuple[str, None, np.ndarray]:
        target = self._pad(self._read(self.paths[index]))
        return self.paths[index].stem, None, self._crop(target, *place(*target.shape[:2]))


class PackedPairs(CropSource):
    """The images of a file made by `python -m dgunet.data.packed`, of which only the part that a crop
    needs is read, and nothing decoded. Samples are those of `PairedImages` (or `CleanImages`) on
    the folder that was packed. Each process opens the file for itself. Arguments: `CropSource`.

    Raises `InputError` for a file that is cut short or was not made by `dgunet.data.packed`.
    """

    def __init__(self, path: str | Path, patch_size: int, seed: int = 0, **options):
        super().__init__(patch_size, seed, **options)
        self.path = Path(path)
        self.names, self.sizes, self.paired = read_index(self.path)
        self._file, self._opened_by = None, None

    def __len__(self) -> int:
        return len(self.names)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_file": None, "_opened_by": None}

    def read_crop(self, index: int, place: Placement) -> tuple[str, np.ndarray | None, np.ndarray]:
        height, width = self.sizes[index]
        top, left = place(max(height, self.patch_size), max(width, self.patch_size))
        use_pairs = self.paired and self.degrade is None
        target = self._read_part("target", index, top, left)
        degraded = self._read_part("degraded", index, top, left) if use_pairs else None
        return self.names[index], degraded, target

    def _read_part(self, kind: str, index: int, top: int, left: int) -> np.ndarray:
        # A handle inherited by fork is not used: a worker opens the file anew.
        if self._file is None or self._opened_by != os.getpid():
            self._file, self._opened_by = open_packed(self.path), os.getpid()
        try:
            stored = self._file[dataset_name(kind, index)]
            if min(self.sizes[index]) < self.patch_size:
                stored = self._pad(stored[...])
            crop = self._crop(stored, top, left)
        except (OSError, KeyError) as error:
            raise UnreadableImage(f"{self.path}: {self.names[index]}: {error}") from error
        return _gray(crop) if self.grey else crop


class ValidationImages(Dataset):
    """Centre crops of every image, the same each time; the key is an int.

    `directory`, `degrade`, `grey`: as for `open_training_data`. A degradation made on the fly is
    seeded by the image's name, so that every run is validated on the same images. With
    `skip_corrupt` all images are read once at the start, and those that cannot be are in `left_out`
    (messages). A sample has `degraded`, `target` (float32 C×patch×patch) and `name`.
    """

    def __init__(
        self,
        directory: str | Path,
        patch_size: int,
        *,
        degrade: Degradation | None = None,
        grey: bool = False,
        skip_corrupt: bool = False,
    ):
        self.source = open_training_data(
            directory, patch_size, 0, degrade=degrade, grey=grey, skip_corrupt=skip_corrupt
        )
        self.indices = list(range(len(self.source)))
        self.left_out: list[str] = []
        if skip_corrupt:
            with ThreadPoolExecutor(_THREADS) as pool:
                problems = list(pool.map(self._problem, self.indices))
            self.left_out = [problem for problem in problems if problem]
            self.indices = [at for at, problem in enumerate(problems) if not problem]
            if not self.indices:
                raise InputError(f"{directory}: none of the {len(problems)} images can be read")

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: int) -> dict:
        name, degraded, target = self.source.read_crop(self.indices[key], self._centre)
        rng = pair_generator(0, "validation", name)
        degraded, target = self.source.to_sample(degraded, target, rng)
        return {"degraded": degraded, "target": target, "name": name}

    def _centre(self, height: int, width: int) -> tuple[int, int]:
        # As torchvision's center_crop rounds.
        size = self.source.patch_size
        return round((height - size) / 2), round((width - size) / 2)

    def _problem(self, index: int) -> str | None:
        try:
            self.source.read_crop(index, self._centre)
        except UnreadableImage as error:
            return str(error)
        return None


def open_training_data(
    directory: str | Path,
    patch_size: int,
    seed: int,
    *,
    moves: bool = True,
    saturation: bool = False,
    degrade: Degradation | None = None,
    grey: bool = False,
    skip_corrupt: bool = False,
) -> CropSource:
    """Return the data source for what lies at `directory`.

    - a packed file (`.h5`): `PackedPairs`;
    - a folder with `input/` and `target/`: `PairedImages`;
    - with `degrade`, a folder of photographs, or the `target/` of a paired one: `CleanImages`.

    The options are those of `CropSource`. Raises `InputError` for anything else, and as they do.
    """
    path = Path(directory)
    options = {"moves": moves, "saturation": saturation, "degrade": degrade, "grey": grey}
    options["skip_corrupt"] = skip_corrupt
    if not str(directory):
        raise InputError("no data folder given; expected a folder or a packed file (.h5)")
    if path.suffix.lower() in PACKED_SUFFIXES and not path.is_dir():
        packed = PackedPairs(path, patch_size, seed, **options)
        if degrade is None and not packed.paired:
            raise InputError(f"{path}: holds photographs alone; expected pairs, or a degradation")
        return packed
    if not path.is_dir():
        found = "is a file" if path.exists() else "does not exist"
        raise InputError(f"{path}: {found}; expected a data folder or a packed file (.h5)")
    if degrade is not None:
        photographs = path / "target" if (path / "target").is_dir() else path
        return CleanImages(photographs, patch_size, seed, **options)
    missing = [part for part in ("input", "target") if not (path / part).is_dir()]
    if missing:
        raise InputError(
            f"{path}: has no {' and no '.join(missing)} folder; expected input/ and target/ "
            "(or, for photographs alone, DATA.DEGRADATION)"
        )
    return PairedImages(path, patch_size, seed, **options)


def training_set(cfg: CfgNode, **special) -> CropSource:
    """Return what image restoration trains on by a configuration: random crops of
    `TRAINING.TRAIN_DIR`, moved one of nine ways, degraded on the fly if `DATA.DEGRADATION` says so.
    `special`: further options of `open_training_data`.

    Raises `InputError` for data that cannot be trained on."""
    return open_training_data(
        cfg.TRAINING.TRAIN_DIR, cfg.TRAINING.TRAIN_PS, cfg.SEED, **_options(cfg), **special
    )


def validation_set(cfg: CfgNode) -> ValidationImages | None:
    """Return the centre crops of `TRAINING.VAL_DIR`; None where there is no such folder given."""
    if not cfg.TRAINING.VAL_DIR:
        return None
    return ValidationImages(cfg.TRAINING.VAL_DIR, cfg.TRAINING.VAL_PS, **_options(cfg))


def _options(cfg: CfgNode) -> dict:
    return {
        "degrade": degradation(cfg.DATA.DEGRADATION),
        "grey": cfg.DATA.GREY,
        "skip_corrupt": cfg.TRAINING.SKIP_CORRUPT,
    }


def move(image: np.ndarray, number: int) -> np.ndarray:
    """Return H×W[×C] pixels after move `number` of nine: 0-3 quarter turns, 4-7 the same of the
    image flipped upside down, 8 the identity once more (as published: it is drawn twice as often).

    >>> move(np.array([[1, 2], [3, 4]]), 5)
    array([[4, 2],
           [3, 1]])
    """
    if number == 8:
        return image
    return np.rot90(image[::-1] if number >= 4 else image, number % 4)


def mixup(
    degraded: torch.Tensor, target: torch.Tensor, rng: np.random.Generator, alpha: float = 0.6
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return N×C×H×W batches in which each pair is blended with another of the batch: with the pair
    a permutation puts at its place, by a share λ ~ Beta(alpha, alpha) of its own."""
    partner = torch.from_numpy(rng.permutation(len(target))).to(target.device)
    share = torch.from_numpy(rng.beta(alpha, alpha, len(target))).to(target)[:, None, None, None]
    return (
        share * degraded + (1 - share) * degraded[partner],
        share * target + (1 - share) * target[partner],
    )


DEGRADATIONS = (
    "gaussian25 (any σ), gaussian0-50 (any range), clean, one of "
    f"{', '.join(PRESETS)}, or several joined by +"
)


def degradation(name: str) -> Degradation | None:
    """Return the degradation that `DATA.DEGRADATION` names; None for the empty name.

    `gaussian25` adds Gaussian noise of σ = 25 (of 255), neither clipped nor rounded (the protocol
    of DnCNN and Restormer); `gaussian0-50` draws σ uniformly for each sample; `clean` changes
    nothing; any other name is a preset of `dgunet.data.degradations`. Of several names, joined by +,
    each sample draws one.

    Raises `InputError` for an unknown name.

    >>> degradation("gaussian0-50")(np.zeros((2, 2, 1)), np.random.default_rng(0)).shape
    (2, 2, 1)
    """
    if not name:
        return None
    if "+" in name:
        parts = name.split("+")
        if not all(parts):
            raise InputError(f"DATA.DEGRADATION: {name}; expected {DEGRADATIONS}")
        return partial(_one_of, choices=[degradation(part) for part in parts])
    if name == "clean":
        return _unchanged
    noise = re.fullmatch(r"gaussian(\d+(?:\.\d+)?)(?:-(\d+(?:\.\d+)?))?", name)
    if noise:
        low, high = float(noise[1]), float(noise[2] or noise[1])
        if low <= high:
            return partial(_gaussian, low=low, high=high)
    if name not in PRESETS:
        raise InputError(f"DATA.DEGRADATION: {name}; expected {DEGRADATIONS}")
    return partial(_preset, name=name)


def is_degradation(name: str) -> bool:
    """Tell whether `degradation` knows the name."""
    try:
        degradation(name)
    except InputError:
        return False
    return True


def check_sizes(pairs: list[tuple[Path, Path]], *, ignore_unreadable: bool = False) -> None:
    """Compare the sizes of the images of every pair, by their headers, many at a time.

    Raises `InputError` for pairs of different size and, unless ignored, for unreadable headers:
    how many, and the first few."""

    def size(path: Path) -> tuple[int, int] | None:
        try:
            return image_size(path)
        except InputError:
            return None

    def sizes_of(share: int) -> list[tuple[int, int] | None]:
        return [size(path) for path in flat[share::_THREADS]]

    flat = [path for pair in pairs for path in pair]
    sizes: list = [None] * len(flat)
    with ThreadPoolExecutor(_THREADS) as pool:
        for share, found in enumerate(pool.map(sizes_of, range(_THREADS))):
            sizes[share::_THREADS] = found
    unreadable = [path for path, found in zip(flat, sizes, strict=True) if found is None]
    if unreadable and not ignore_unreadable:
        raise InputError(f"{len(unreadable)} files are no readable images: {first_few(unreadable)}")
    different = [
        f"{pair[0]} ({_by(*first)}, its target {_by(*second)})"
        for pair, first, second in zip(pairs, sizes[::2], sizes[1::2], strict=True)
        if first and second and first != second
    ]
    if different:
        raise InputError(
            f"{len(different)} of {len(pairs)} pairs differ in size: {first_few(different)}"
        )


def image_size(path: str | Path) -> tuple[int, int]:
    """Return height and width of an image from its header. Raises `InputError`."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            header = file.read(24)
        if header.startswith(b"\x89PNG") and header[12:16] == b"IHDR" and len(header) == 24:
            width, height = struct.unpack(">II", header[16:])
            return height, width
        from PIL import Image

        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as an image ({error})") from error


def _unchanged(crop: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return crop


def _one_of(
    crop: np.ndarray, rng: np.random.Generator, choices: list[Degradation | None]
) -> np.ndarray:
    return choices[rng.integers(len(choices))](crop, rng)


def _gaussian(crop: np.ndarray, rng: np.random.Generator, low: float, high: float) -> np.ndarray:
    return add_noise(crop, Noise(low if low == high else rng.uniform(low, high)), rng)


def _preset(crop: np.ndarray, rng: np.random.Generator, name: str) -> np.ndarray:
    return degrade(crop, name, rng)


def _saturate(
    degraded: torch.Tensor, target: torch.Tensor, factor: float
) -> tuple[torch.Tensor, torch.Tensor]:
    from torchvision.transforms.functional import adjust_saturation  # slow to import

    return adjust_saturation(degraded, factor), adjust_saturation(target, factor)


def _gray(rgb: np.ndarray) -> np.ndarray:
    """Return H×W×3 uint8 as H×W×1, as `read_gray` does."""
    import cv2

    return cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2YCrCb)[..., :1]


def _by(height: int, width: int, *_) -> str:
    return f"{width}×{height}"
