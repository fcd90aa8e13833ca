"""Measure and reconstruct images, and score the results.

Set11 and BSD68, in Datasets/Set11 and Datasets/BSD68; results to results/Set11_25 (of ratio 25):
    python test.py --weights FILE
    python test.py --dataset Set11 --weights FILE --tile 128     as the published script does
Own images, of any format, size and number:
    python test.py --input_dir FOLDER --weights FILE

Of a colour image Y is taken (OpenCV's YCrCb, full range). With --color each of R, G and B is
measured and reconstructed on its own. Keeping the chroma and reconstructing Y alone would look
better, but two thirds of such a picture were never measured. The score is of Y either way.

Scores are of the results before they are rounded to 8 bits for the PNGs, as published; evaluate.py
scores the PNGs. Beside the results lie settings.json and scores.csv.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from dgunet.base.errors import InputError, command
from dgunet.Compressive_Sensing.DGUNet import BLOCK, RATIOS, TASK
from dgunet.Compressive_Sensing.measure import RATIO, shipped_weights
from dgunet.Compressive_Sensing.reconstruct import measure_and_reconstruct
from dgunet.images.files import (
    IMAGE_SUFFIXES,
    list_images,
    read_gray,
    read_image,
    read_rgb,
    to_tensor,
    to_uint8,
    write_image,
)
from dgunet.scoring.protocols import Score, TooSmall, get_protocol
from dgunet.scoring.tables import format_images
from dgunet.scoring.test import (
    TrainedNetwork,
    claim_results,
    load_trained,
    make_parser,
    noting_settings,
    report_scores,
    result_folder,
)

PROTOCOL = "compressive_sensing_y"
SETS = ("Set11", "BSD68")


@dataclass(frozen=True)
class PhotoSet:
    """Images to measure. `name` is their folder's; `published`: the paper reports the set."""

    name: str
    paths: Sequence[Path]
    published: bool


def find_sets(input_dir: Path, names: Sequence[str] | None) -> list[PhotoSet]:
    """Return the sets named, folders in `input_dir`; else `input_dir` itself if it holds images;
    else those of `SETS` that exist. Raises `InputError` where there are none."""
    if not input_dir.is_dir():
        raise InputError(f"{input_dir}: does not exist; expected the data (--input_dir DIR)")
    if not names and any(p.suffix.lower() in IMAGE_SUFFIXES for p in input_dir.iterdir()):
        name = input_dir.resolve().name
        return [PhotoSet(name, list_images(input_dir), published=name in SETS)]
    if not names:
        names = [name for name in SETS if (input_dir / name).is_dir()]
    if not names:
        raise InputError(
            f"{input_dir}: found no images; expected them in it, or in {' or '.join(SETS)} "
            "(--input_dir DIR)"
        )
    return [
        PhotoSet(name, list_images(input_dir / name), published=name in SETS)
        for name in dict.fromkeys(names)
    ]


@torch.inference_mode()
def restore(trained: TrainedNetwork, pixels: np.ndarray, tile: int = 0) -> np.ndarray:
    """Return the reconstruction of an image (uint8, H×W or H×W×3, each channel on its own) that
    the network measures: float32 in [0,1], of the same shape.

    Raises:
        InputError: the GPU has not the memory for it, or the result is not finite.
    """
    planes = to_tensor(pixels)[:, None].to(trained.device)
    size = "×".join(map(str, pixels.shape[:2]))
    try:
        images = [measure_and_reconstruct(trained.network, p[None], tile).cpu() for p in planes]
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"{size} pixels do not fit the memory of {trained.device}; try --tile 128"
        ) from error
    restored = torch.cat(images)[:, 0].clamp(0, 1).numpy()
    if not np.isfinite(restored).all():
        raise InputError(f"the network made values of {size} pixels that are not finite")
    return restored[0] if len(restored) == 1 else restored.transpose(1, 2, 0)


def score_set(
    trained: TrainedNetwork, photos: PhotoSet, folder: Path, tile: int = 0, color: bool = False
) -> list[Score]:
    """Reconstruct a set into PNGs in `folder`, and return the scores of the unrounded results."""
    protocol, scores = get_protocol(PROTOCOL), []
    for path in tqdm(photos.paths, photos.name, unit="image", disable=None):
        pixels = read_rgb(path) if color and read_image(path).ndim == 3 else read_gray(path)
        try:
            restored = restore(trained, pixels, tile)
            scores.append(Score(path.stem, *protocol(restored, pixels)))
        except TooSmall as error:
            tqdm.write(f"{path}: no score: {error}", sys.stderr)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        channels_first = restored[None] if restored.ndim == 2 else restored.transpose(2, 0, 1)
        write_image(folder / f"{path.stem}.png", to_uint8(torch.from_numpy(channels_first)))
    if not scores:
        raise InputError(f"{photos.name}: no image is large enough to be scored")
    return scores


def run(trained: TrainedNetwork, sets: Sequence[PhotoSet], options: argparse.Namespace) -> dict:
    """Reconstruct, score and report the sets; return the scores by the sets' name and ratio, such
    as "Set11_25"."""
    ratio = trained.network.sizes["cs_ratio"]
    by_name = {f"{photos.name}_{ratio}": photos for photos in sets}
    folders = {n: result_folder(options.result_dir, n, len(sets) == 1) for n in by_name}
    settings = {
        **trained.settings,
        "cs_ratio": ratio,
        "image": f"in tiles of {options.tile}" if options.tile else "whole",
        "color": options.color,
    }
    for name, photos in by_name.items():
        files = [folders[name] / f"{path.stem}.png" for path in photos.paths]
        if len(set(files)) < len(files):
            raise InputError(f"{photos.name}: images share their name but for the suffix")
        sources = [photos.paths[0].parent]
        claim_results(folders[name], files, trained, options.overwrite, sources)
    scores = {}
    for name, photos in by_name.items():
        with noting_settings(folders[name], settings):
            scores[name] = score_set(trained, photos, folders[name], options.tile, options.color)
        print(f"{name}: PSNR (dB) / SSIM of every image, before rounding:")
        print(format_images({"reconstructed": scores[name]}) + "\n")
    published = [name for name, photos in by_name.items() if photos.published]
    settings = dict.fromkeys(by_name, settings)
    report_scores(trained, PROTOCOL, scores, {}, settings, folders, published)
    return scores


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__, Path(__file__).resolve().parent)
    add = parser.add_argument
    text = f"folders in --input_dir (default: {', '.join(SETS)}, unless --input_dir holds images)"
    add("--dataset", nargs="+", metavar="SET", help=text)
    text = "without --weights: the ratio, in percent, of those in pretrained_models/"
    add("--cs_ratio", type=int, choices=RATIOS, help=f"{text} (default: {RATIO})")
    add("--tile", type=int, default=0, metavar="N", help="reconstruct N×N tiles on their own")
    add("--color", action="store_true", help="each channel of a colour image, not Y alone")
    options = parser.parse_args(arguments)
    if options.tile < 0 or options.tile % BLOCK:
        raise InputError(f"--tile is {options.tile}; expected a multiple of {BLOCK}")
    if options.self_ensemble:
        raise InputError("--self_ensemble would measure every image eight times; leave it out")
    if options.weights and options.cs_ratio:
        raise InputError("--cs_ratio: the weights have theirs; leave it out, or --weights")
    options.weights = options.weights or shipped_weights(options.model, options.cs_ratio or RATIO)
    return options


@command
def main() -> None:
    options = parse_arguments()
    sets = find_sets(options.input_dir, options.dataset)
    run(load_trained(TASK, options), sets, options)


if __name__ == "__main__":
    main()
