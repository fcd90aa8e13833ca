"""Restore noisy images, and score the results where there are clean images.

The SIDD benchmark, Datasets/SIDD/test/Validation{Noisy,Gt}BlocksSrgb.mat, result in
results/SIDD/mat/Idenoised.mat; and DND, Datasets/DND/test/info.mat and images_srgb/, results in
results/DND/mat/ as its server takes them. Both with the self-ensemble, as published:
    python test.py --dataset SIDD --weights FILE
    python test.py --dataset DND --weights FILE
Gaussian noise on clean photographs, those in Datasets/CBSD68 (or its target/), results in
results/CBSD68_sigma25:
    python test.py --dataset CBSD68 --sigma 15 25 50 --weights FILE
The noise is added in float, neither clipped nor rounded (the protocol of DnCNN and Restormer), and
is always the same for the same file name. A grey photograph gets one noise for all three channels
and a grey result; --grey makes photographs grey first.
Your own images, in FOLDER or FOLDER/input (clean ones, if you have them, in FOLDER/target):
    python test.py --input_dir FOLDER --weights FILE
settings.json and scores.csv are written beside the results. Images may have any size, and are
restored whole unless --tile is given. evaluate.py scores results again, also of other programs.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dgunet.base.errors import InputError, command, first_few, printable
from dgunet.base.files import regular_file, write_atomically
from dgunet.base.memory import require_memory
from dgunet.data.degradations import Noise, add_noise, pair_generator
from dgunet.data.packed import own_dataset
from dgunet.data.sidd import CLEAN_BLOCKS, NOISY_BLOCKS, block_name, read_blocks
from dgunet.Denoising.evaluate import BENCHMARK, DND_IMAGES, DND_PUBLISHED, SIDD_PROTOCOL
from dgunet.images.files import list_images, read_gray, read_image, to_uint8, write_image
from dgunet.inference.restorer import Restorer
from dgunet.scoring.test import (
    ImageSet,
    as_floats,
    find_sets,
    folder_set,
    load_restorer,
    make_parser,
    run_sets,
)

BENCHMARK_FILES = {"SIDD": f"{NOISY_BLOCKS}.mat", "DND": "info.mat"}  # that they are known by


@dataclass
class NoisyPhotos(ImageSet):
    """Clean photographs, to which noise of standard deviation `sigma` (of 255) is added; `grey`:
    of their luma, which is written to `target/` beside the results."""

    sigma: float = 25
    grey: bool = False

    def read(self, item: Path) -> np.ndarray:
        """Return the noisy photograph, float32 H×W (grey) or H×W×3, neither clipped nor rounded."""
        clean = as_floats(self.target(item))
        generator = pair_generator(0, f"gaussian{self.sigma:g}", item.stem)
        noisy = add_noise(np.atleast_3d(clean), Noise(self.sigma), generator)
        return noisy[..., 0] if clean.ndim == 2 else noisy

    def target(self, item: Path) -> np.ndarray:
        return read_gray(item) if self.grey else read_image(item)

    def files(self, folder: Path) -> list[Path]:
        targets = super().files(folder / "target") if self.grey else []
        return super().files(folder) + targets

    def write(self, folder: Path, item: Path, restored: np.ndarray) -> None:
        super().write(folder, item, restored)
        if self.grey:
            write_image(folder / "target" / f"{item.stem}.png", self.target(item))


def noisy_sets(folder: Path, sigmas: Sequence[float], grey: bool) -> list[NoisyPhotos]:
    """Return a set for each noise level of the clean photographs in `folder`, or its `target/`."""
    name = folder.resolve().name + ("_grey" if grey else "")
    if (folder / "target").is_dir():
        folder = folder / "target"
    photos = list_images(folder)
    return [
        NoisyPhotos(
            name=f"{name}_sigma{sigma:g}",
            inputs=photos,
            protocol=BENCHMARK.protocol,
            settings={"sigma": sigma, "grey": grey},
            sigma=sigma,
            grey=grey,
        )
        for sigma in dict.fromkeys(sigmas)
    ]


class SIDD(ImageSet):
    """The blocks of the SIDD benchmark in `folder`, scored if the targets are there too.

    `mat/Idenoised.mat` (MAT v5) holds `Idenoised`: float32 in [0,1], of the shape of the noisy
    blocks (40×32×256×256×3). Raises `InputError` as `read_blocks`.
    """

    inputs_are_files = in_8_bits = False

    def __init__(self, folder: Path, self_ensemble: bool, pictures: bool):
        self.noisy, self.clean = read_blocks(folder / BENCHMARK_FILES["SIDD"], NOISY_BLOCKS), None
        clean = folder / f"{CLEAN_BLOCKS}.mat"
        if clean.is_file():
            self.clean = read_blocks(clean, CLEAN_BLOCKS)
            if self.clean.shape != self.noisy.shape:
                raise InputError(
                    f"{clean}: is {self.clean.shape}, the noisy blocks {self.noisy.shape}; "
                    "expected the same"
                )
        blocks = list(np.ndindex(self.noisy.shape[:2]))
        super().__init__("SIDD", blocks, SIDD_PROTOCOL, settings={"self_ensemble": self_ensemble})
        self.folder, self.pictures = folder, pictures
        self.restored = np.empty(self.noisy.shape, np.float32)

    @property
    def sources(self) -> list[Path]:
        return [self.folder]

    def label(self, item: tuple[int, ...]) -> str:
        return block_name(item)

    def read(self, item: tuple[int, ...]) -> np.ndarray:
        return self.noisy[item]

    def target(self, item: tuple[int, ...]) -> np.ndarray | None:
        return None if self.clean is None else self.clean[item]

    def files(self, folder: Path) -> list[Path]:
        pictures = super().files(folder / "png") if self.pictures else []
        return [folder / "mat" / "Idenoised.mat", *pictures]

    def write(self, folder: Path, item: tuple[int, ...], restored: np.ndarray) -> None:
        self.restored[item] = restored
        if self.pictures:
            super().write(folder / "png", item, restored)

    def finish(self, folder: Path) -> None:
        write_mat(folder / "mat" / "Idenoised.mat", {"Idenoised": self.restored})


class DND(ImageSet):
    """The images of the DND benchmark (Plötz and Roth, "Benchmarking Denoising Algorithms with Real
    Photographs", CVPR 2017), of which the boxes are restored. Only its server has the targets.

    Of image N the server takes `mat/000N.mat` (MAT v5) with `Idenoised`, a 1×20 cell of float32
    H×W×3 in [0,1] (a row, as the benchmark's own Python code saves it), `israw` false and
    `eval_version` "1.0".
    """

    inputs_are_files = False  # but MAT files, which `__init__` has found

    def __init__(self, folder: Path, self_ensemble: bool, pictures: bool):
        boxes = read_boxes(folder / BENCHMARK_FILES["DND"])
        files = [folder / "images_srgb" / f"{n:04d}.mat" for n in range(1, len(boxes) + 1)]
        if missing := [path for path in files if not path.is_file()]:
            raise InputError(
                f"{len(missing)} of the {len(files)} images of {folder / 'info.mat'} are missing: "
                f"{first_few(missing)}"
            )
        super().__init__("DND", files, SIDD_PROTOCOL, settings={"self_ensemble": self_ensemble})
        self.boxes, self.pictures = dict(zip(files, boxes, strict=True)), pictures

    def read(self, item: Path) -> list[np.ndarray]:
        return read_crops(item, self.boxes[item])

    def restore(self, restorer: Restorer, degraded: list[np.ndarray]) -> list[np.ndarray]:
        return [restorer(crop) for crop in degraded]

    def files(self, folder: Path) -> list[Path]:
        pictures = [p for item in self.inputs for p in self._pictures(folder, item)]
        return [folder / "mat" / item.name for item in self.inputs] + pictures

    def _pictures(self, folder: Path, item: Path) -> list[Path]:
        count = len(self.boxes[item]) if self.pictures else 0
        return [folder / "png" / f"{item.stem}_{k:02d}.png" for k in range(1, count + 1)]

    def write(self, folder: Path, item: Path, restored: list[np.ndarray]) -> None:
        cell = np.empty((1, len(restored)), object)
        for k, crop in enumerate(restored):
            cell[0, k] = crop
        variables = {"Idenoised": cell, "israw": False, "eval_version": "1.0"}
        write_mat(folder / "mat" / item.name, variables)
        for path, crop in zip(self._pictures(folder, item), restored, strict=False):
            write_image(path, to_uint8(crop))

    def finish(self, folder: Path) -> None:
        scores = ", ".join(f"{m} {p} dB / {s}" for m, (p, s) in DND_PUBLISHED.items())
        published = f" (published: {scores})" if len(self.inputs) == DND_IMAGES else ""
        place = printable(folder / "mat")
        print(f"DND: {len(self.inputs)} files for the benchmark's server in {place}{published}")


def read_boxes(path: Path) -> list[np.ndarray]:
    """Return, for each image of DND, its boxes from `info.mat` (HDF5): int, boxes×4, as first row,
    first column, last row, last column, counted from 1. `info/boundingboxes` refers to a 4×20 array
    for each image (a 20×4 one to MATLAB)."""
    with open_mat73(path) as file:
        try:
            references = own_dataset(file, "info/boundingboxes")[()].ravel()
            boxes = [np.asarray(own_dataset(file, ref)).T for ref in references]
        except Exception as error:  # a damaged file can raise nearly anything
            raise InputError(f"{path}: no info.boundingboxes ({printable(error)})") from error
    for n, of_image in enumerate(boxes, 1):
        if of_image.ndim != 2 or of_image.shape[1] != 4:
            raise InputError(f"{path}: boxes of image {n} are {of_image.shape}; expected boxes×4")
    return [of_image.astype(int) for of_image in boxes]


def read_crops(path: Path, boxes: np.ndarray) -> list[np.ndarray]:
    """Return the parts of an image of DND that `boxes` (`read_boxes`) name: float32 H×W×3 in [0,1].
    MATLAB's `InoisySRGB`, H×W×3, is 3×W×H in HDF5."""
    with open_mat73(path) as file:
        try:
            image = own_dataset(file, "InoisySRGB")
        except (LookupError, ValueError) as error:
            raise InputError(f"{path}: holds no InoisySRGB ({printable(error)})") from error
        if image.ndim != 3 or image.shape[0] != 3 or image.dtype.kind != "f":
            found = f"{image.dtype} {image.shape}"
            raise InputError(f"{path}: InoisySRGB is {found}; expected floats of 3×W×H")
        require_memory(2 * image.nbytes, f"{path}: its image")
        crops = []
        for top, left, bottom, right in boxes:
            if not (1 <= top <= bottom <= image.shape[2] and 1 <= left <= right <= image.shape[1]):
                raise InputError(
                    f"{path}: box {top}, {left}, {bottom}, {right} does not lie in the image of "
                    f"{image.shape[2]} rows and {image.shape[1]} columns"
                )
            crop = image[:, left - 1 : right, top - 1 : bottom].T
            crops.append(np.ascontiguousarray(crop, np.float32))
    return crops


def open_mat73(path: Path):
    """Return an open MAT v7.3 file, which is HDF5. Raises `InputError` for another file."""
    import h5py

    regular_file(path, "a MAT file of the DND benchmark")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise InputError(f"{path}: is no MAT v7.3 (HDF5) file ({error})") from error


def write_mat(path: Path, variables: dict) -> None:
    """Write a MAT v5 file, whole or not at all."""
    from scipy.io import savemat

    write_atomically(path, lambda file: savemat(file, variables))


def find_all_sets(options: argparse.Namespace) -> list[ImageSet]:
    """Return the sets that the options ask for. A benchmark lies in `--input_dir` itself, as in the
    published commands, or in `<input_dir>/<name>/test`."""
    input_dir, names = options.input_dir, list(dict.fromkeys(options.dataset or ()))
    if options.sigma:
        folders = [input_dir / name for name in names] or [input_dir]
        return [s for folder in folders for s in noisy_sets(folder, options.sigma, options.grey)]
    if not names:
        names = [name for name, file in BENCHMARK_FILES.items() if (input_dir / file).is_file()]
    if not names and (alone := folder_set(input_dir, BENCHMARK.protocol)):
        return [alone]
    sets: list[ImageSet] = []
    for name in names or ["SIDD"]:
        if name not in BENCHMARK_FILES:
            sets += find_sets(BENCHMARK, input_dir / name)
            continue
        lies_here = (input_dir / BENCHMARK_FILES[name]).is_file()
        folder = input_dir if lies_here else input_dir / name / "test"
        kind = {"SIDD": SIDD, "DND": DND}[name]
        sets.append(kind(folder, not options.no_self_ensemble, options.save_images))
    return sets


@command
def main() -> None:
    parser = make_parser(__doc__, BENCHMARK)
    add = parser.add_argument
    text = "SIDD, DND or folders in --input_dir (default: SIDD, unless --input_dir holds images)"
    add("--dataset", nargs="+", metavar="SET", help=text)
    add("--sigma", nargs="+", type=float, metavar="S", help="add Gaussian noise, σ of 255")
    add("--grey", action="store_true", help="with --sigma: turn the photographs grey first")
    add("--no_self_ensemble", action="store_true", help="SIDD and DND, which have it, without")
    add("--save_images", action="store_true", help="SIDD, DND: write PNGs as well")
    options = parser.parse_args()
    if options.grey and not options.sigma:
        raise InputError("--grey is given without --sigma; expected both")
    if any(not 0 < sigma < np.inf for sigma in options.sigma or []):
        raise InputError(f"--sigma is {options.sigma}; expected values above 0")
    restorer = load_restorer(BENCHMARK, options)
    run_sets(BENCHMARK, restorer, find_all_sets(options), options)


if __name__ == "__main__":
    main()
