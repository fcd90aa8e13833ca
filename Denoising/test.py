"""Restore noisy images, and score them where the clean ones are there.

The SIDD benchmark, Datasets/SIDD/test/Validation{Noisy,Gt}BlocksSrgb.mat, result to
results/SIDD/mat/Idenoised.mat; and DND, Datasets/DND/test/info.mat and images_srgb/, results to
results/DND/mat/ as its server takes them. Both with the self-ensemble, as published:
    python test.py --dataset SIDD --weights FILE
    python test.py --dataset DND --weights FILE
Gaussian noise on clean photographs, those in Datasets/CBSD68 (or its target/), results to
results/CBSD68_sigma25. The noise is added in float, neither clipped nor rounded (the protocol of
DnCNN and Restormer), and for the same file name always the same. A grey photograph gets one noise
for all three channels and a grey result; --grey makes photographs grey first:
    python test.py --dataset CBSD68 --sigma 15 25 50 --weights FILE
Own images, in FOLDER or FOLDER/input (clean ones, if there are, in FOLDER/target):
    python test.py --input_dir FOLDER --weights FILE
Beside the results lie settings.json and scores.csv. Images may have any size. evaluate.py scores
results again, also those of other programs.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dgunet.base.errors import InputError, command, first_few
from dgunet.base.files import write_atomically
from dgunet.data.degradations import Noise, add_noise, pair_generator
from dgunet.Denoising.evaluate import SIDD_PROTOCOL, read_blocks
from dgunet.images.files import list_images, read_gray, read_image, to_tensor, to_uint8, write_image
from dgunet.scoring.protocols import Score, get_protocol, score_blocks
from dgunet.scoring.test import (
    ImageSet,
    TrainedNetwork,
    claim_results,
    find_sets,
    folder_set,
    load_trained,
    make_parser,
    noting_settings,
    report_scores,
    result_folder,
    run_sets,
)

PROTOCOL = "gaussian_rgb"  # of all sets but SIDD
SIDD_NOISY, SIDD_TARGET = "ValidationNoisyBlocksSrgb", "ValidationGtBlocksSrgb"
BENCHMARKS = {"SIDD": f"{SIDD_NOISY}.mat", "DND": "info.mat"}  # and the file they are known by


@dataclass(frozen=True)
class NoisyPhotos(ImageSet):
    """Clean photographs, to which noise of standard deviation `sigma` (of 255) is added."""

    sigma: float = 25

    def read(self, path: Path) -> np.ndarray:
        """Return the noisy photograph, float32 H×W (grey) or H×W×3, neither clipped nor rounded."""
        pixels = self.make_target(path) if self.makes_targets else read_image(path)
        clean = to_tensor(pixels)[:3].permute(1, 2, 0).numpy()
        noise = Noise(self.sigma)
        noisy = add_noise(clean, noise, pair_generator(0, f"gaussian{self.sigma:g}", path.stem))
        return noisy[..., 0] if clean.shape[2] == 1 else noisy

    def make_target(self, path: Path) -> np.ndarray:
        return read_gray(path)

    def score_inputs(self, targets: Path, jobs: int) -> list[Score]:
        protocol = get_protocol(self.protocol)
        files = {path.stem: path for path in list_images(targets)}
        scores = []
        for path in self.inputs:
            clean = read_image(files[path.stem])
            clean = clean[..., :3] if clean.ndim == 3 else clean
            scores.append(Score(path.stem, *protocol(np.clip(self.read(path), 0, 1), clean)))
        return scores


def noisy_sets(folder: Path, sigmas: Sequence[float], grey: bool) -> list[ImageSet]:
    """Return a set for each noise level of the clean photographs in `folder`, or its `target/`."""
    name = folder.resolve().name + ("_grey" if grey else "")
    if (folder / "target").is_dir():
        folder = folder / "target"
    photos = list_images(folder)
    return [
        NoisyPhotos(
            name=f"{name}_sigma{sigma:g}",
            inputs=photos,
            targets=None if grey else folder,
            protocol=PROTOCOL,
            makes_targets=grey,
            settings={"sigma": sigma, "grey": grey},
            sigma=sigma,
        )
        for sigma in dict.fromkeys(sigmas)
    ]


def run_sidd(trained: TrainedNetwork, folder: Path, options: argparse.Namespace) -> None:
    """Restore the SIDD benchmark's blocks and score them, if the targets are in `folder` too.

    `mat/Idenoised.mat` (MAT v5) holds `Idenoised`: float32 in [0,1], of the shape of the noisy
    blocks (40×32×256×256×3).
    """
    noisy = read_blocks(folder / f"{SIDD_NOISY}.mat", SIDD_NOISY)
    if noisy.ndim != 5 or noisy.shape[-1] != 3 or noisy.dtype != np.uint8:
        raise InputError(
            f"{folder / SIDD_NOISY}.mat: {SIDD_NOISY} is {noisy.dtype} {noisy.shape}; expected "
            "uint8 images×blocks×height×width×3"
        )
    target = None
    if (folder / f"{SIDD_TARGET}.mat").is_file():
        target = read_blocks(folder / f"{SIDD_TARGET}.mat", SIDD_TARGET)
        if target.shape != noisy.shape:
            raise InputError(
                f"{folder / SIDD_TARGET}.mat: is {target.shape}, the noisy blocks {noisy.shape}; "
                "expected the same"
            )
    results = result_folder(options.result_dir, "SIDD")
    result = results / "mat" / "Idenoised.mat"
    indices = list(np.ndindex(noisy.shape[:2]))
    pictures = {
        (i, k): results / "png" / f"{i + 1:04d}_{k + 1:02d}.png"
        for i, k in (indices if options.save_images else [])
    }
    claim_results(results, [result, *pictures.values()], trained, options.overwrite, [folder])
    self_ensemble = options.self_ensemble is not False
    settings = {**trained.settings, "self_ensemble": self_ensemble}
    with noting_settings(results, settings):
        restored = np.empty(noisy.shape, np.float32)
        for index in tqdm(indices, "SIDD", unit="block", disable=None):
            block = trained.restore(noisy[index], self_ensemble)
            restored[index] = block.permute(1, 2, 0)
            if pictures:
                write_image(pictures[index], to_uint8(block))
        write_mat(result, {"Idenoised": restored})
    print(f"SIDD: {len(indices)} blocks restored in {result}")
    if target is None:
        print(f"SIDD: no {SIDD_TARGET}.mat in {folder}, no scores")
        return
    report_scores(
        trained,
        SIDD_PROTOCOL,
        {"SIDD": score_blocks(restored, target, SIDD_PROTOCOL, options.jobs)},
        {"SIDD": score_blocks(noisy, target, SIDD_PROTOCOL, options.jobs)},
        {"SIDD": settings},
        {"SIDD": results},
        published=["SIDD"],
    )


def run_dnd(trained: TrainedNetwork, folder: Path, options: argparse.Namespace) -> None:
    """Restore the boxes of the DND benchmark (Plötz and Roth, "Benchmarking Denoising Algorithms
    with Real Photographs", CVPR 2017), whose targets only its server has.

    Of image N the server takes `mat/000N.mat` (MAT v5) with `Idenoised`, a 1×20 cell of float32
    H×W×3 in [0,1], `israw` false and `eval_version` "1.0". A row, because the benchmark's own
    Python code saves a one-dimensional object array, which SciPy writes as one; MATLAB indexes a
    cell `Idenoised{k}` of either orientation.
    """
    boxes = read_boxes(folder / "info.mat")
    sources = [folder / "images_srgb" / f"{n:04d}.mat" for n in range(1, len(boxes) + 1)]
    missing = [path for path in sources if not path.is_file()]
    if missing:
        raise InputError(
            f"{len(missing)} of the {len(sources)} images of {folder / 'info.mat'} are missing: "
            f"{first_few(missing)}"
        )
    results = result_folder(options.result_dir, "DND")
    files = [results / "mat" / path.name for path in sources]
    pictures = [
        [results / "png" / f"{path.stem}_{k:02d}.png" for k in range(1, len(of_image) + 1)]
        for path, of_image in zip(sources, boxes, strict=True)
    ]
    written = files + [path for row in pictures for path in row] * options.save_images
    claim_results(results, written, trained, options.overwrite, [folder])
    self_ensemble = options.self_ensemble is not False
    with (
        noting_settings(results, {**trained.settings, "self_ensemble": self_ensemble}),
        tqdm(None, "DND", sum(map(len, boxes)), unit="box", disable=None) as progress,
    ):
        for source, of_image, file, row in zip(sources, boxes, files, pictures, strict=True):
            cell = np.empty((1, len(of_image)), object)
            for k, crop in enumerate(read_crops(source, of_image)):
                restored = trained.restore(crop, self_ensemble)
                cell[0, k] = restored.permute(1, 2, 0).numpy()
                if options.save_images:
                    write_image(row[k], to_uint8(restored))
                progress.update()
            write_mat(file, {"Idenoised": cell, "israw": False, "eval_version": "1.0"})
    print(
        f"DND: {len(files)} files for the benchmark's server in {results / 'mat'}; only the server "
        "has the targets, no scores"
    )


def read_boxes(path: Path) -> list[np.ndarray]:
    """Return, for each image of DND, its boxes from `info.mat` (HDF5): int, boxes×4, the first and
    last row and column as row0, column0, row1, column1, counted from 1.

    `info/boundingboxes` refers to a 4×20 array for each image (a 20×4 one to MATLAB).
    """
    with open_mat73(path) as file:
        try:
            info = file["info"]
            boxes = [np.asarray(info[ref]).T for ref in info["boundingboxes"][()].ravel()]
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: holds no info.boundingboxes ({error})") from error
    for n, of_image in enumerate(boxes, 1):
        if of_image.ndim != 2 or of_image.shape[1] != 4:
            raise InputError(f"{path}: boxes of image {n} are {of_image.shape}; expected boxes×4")
    return [of_image.astype(int) for of_image in boxes]


def read_crops(path: Path, boxes: np.ndarray) -> list[np.ndarray]:
    """Return the parts of an image of DND that `boxes` (`read_boxes`) name: float32 H×W×3 in [0,1].

    Only they are read. MATLAB's `InoisySRGB`, H×W×3, is 3×W×H in HDF5.
    """
    with open_mat73(path) as file:
        image = file.get("InoisySRGB")
        if image is None or image.ndim != 3 or image.shape[0] != 3:
            found = "no" if image is None else f"{image.shape} as"
            raise InputError(f"{path}: holds {found} InoisySRGB; expected one of 3×W×H")
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

    if not path.is_file():
        raise InputError(f"{path}: does not exist; expected a MAT file of the DND benchmark")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise InputError(f"{path}: is no MAT v7.3 (HDF5) file ({error})") from error


def write_mat(path: Path, variables: dict) -> None:
    """Write a MAT v5 file, whole or not at all."""
    from scipy.io import savemat

    write_atomically(path, lambda file: savemat(file, variables))


def benchmark_folder(input_dir: Path, name: str) -> Path:
    """Return where a benchmark lies: `input_dir` itself, as in the published commands, or
    `<input_dir>/<name>/test`."""
    return input_dir if (input_dir / BENCHMARKS[name]).is_file() else input_dir / name / "test"


def parse_arguments() -> argparse.Namespace:
    parser = make_parser(__doc__, Path(__file__).resolve().parent)
    add = parser.add_argument
    add(
        "--dataset",
        nargs="+",
        metavar="SET",
        help="SIDD, DND or folders in --input_dir (default: SIDD, unless --input_dir holds images)",
    )
    add("--sigma", nargs="+", type=float, metavar="S", help="add Gaussian noise, σ of 255")
    add("--grey", action="store_true", help="with --sigma: turn the photographs grey first")
    add(
        "--no_self_ensemble",
        dest="self_ensemble",
        action="store_false",
        default=None,
        help="SIDD and DND, which have it otherwise, without",
    )
    add("--save_images", action="store_true", help="SIDD, DND: write PNGs as well")
    options = parser.parse_args()
    if options.grey and not options.sigma:
        raise InputError("--grey is given without --sigma; expected both")
    if any(not 0 < sigma < np.inf for sigma in options.sigma or []):
        raise InputError(f"--sigma is {options.sigma}; expected values above 0")
    return options


@command
def main() -> None:
    options = parse_arguments()
    trained = load_trained("Denoising", options)
    input_dir, names = options.input_dir, options.dataset
    if options.sigma:
        folders = [input_dir / name for name in dict.fromkeys(names)] if names else [input_dir]
        sets = [s for f in folders for s in noisy_sets(f, options.sigma, options.grey)]
        run_sets(trained, sets, options, bool(options.self_ensemble))
        return

    if not names:
        there = [name for name, file in BENCHMARKS.items() if (input_dir / file).is_file()]
        names = there or ([] if folder_set(input_dir, PROTOCOL) else ["SIDD"])
    sets = []
    for name in dict.fromkeys(names):
        if name not in BENCHMARKS:
            sets += find_sets(input_dir / name, None, {}, [], PROTOCOL)
    if not names:
        sets = find_sets(input_dir, None, {}, [], PROTOCOL)
    if sets:
        run_sets(trained, sets, options, bool(options.self_ensemble))
    for name, test in (("SIDD", run_sidd), ("DND", run_dnd)):
        if name in names:
            test(trained, benchmark_folder(input_dir, name), options)


if __name__ == "__main__":
    main()
