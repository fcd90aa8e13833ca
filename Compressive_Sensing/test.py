"""Measure and reconstruct images, and score the results.

Set11 and BSD68, in Datasets/Set11 and Datasets/BSD68; results in results/Set11_25 (at ratio 25 %).
As published, each image is a grid of tiles of 128×128, measured and reconstructed on their own:
    python test.py --weights FILE
Whole images, whose blocks see all their neighbours:
    python test.py --dataset Set11 --weights FILE --tile 0
Your own images, of any size and number:
    python test.py --input_dir FOLDER --weights FILE

Of a colour image Y is measured (OpenCV's YCrCb, full range); with --color R, G and B, each on its
own. Reconstructing Y and keeping the other two channels would look better, but two thirds of such a
picture were never measured. The score is of Y either way.

Scores are of the results before they are rounded to 8 bits, as published; evaluate.py scores the
PNGs. settings.json and scores.csv are written beside the results.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dgunet.base.errors import InputError, command
from dgunet.Compressive_Sensing.evaluate import BENCHMARK, PROTOCOL, SETS
from dgunet.Compressive_Sensing.measure import RATIO, bundled_weights
from dgunet.images.files import list_images, read_gray, read_image, read_rgb
from dgunet.scoring.evaluate import holds_images
from dgunet.scoring.test import ImageSet, load_restorer, make_parser, run_sets


@dataclass
class PhotoSet(ImageSet):
    """Photographs, which the network itself measures: Y, or with `color` R, G and B. Results are
    scored before they are rounded to files, or with `truncate` rounded down."""

    color: bool = False
    truncate: bool = False

    in_8_bits = False
    scores_inputs = False

    def read(self, item: Path) -> np.ndarray:
        return read_rgb(item) if self.color and read_image(item).ndim == 3 else read_gray(item)

    def target(self, item: Path) -> np.ndarray:
        return self.read(item)

    def write(self, folder: Path, item: Path, restored: np.ndarray) -> None:
        super().write(folder, item, np.floor(restored * 255) / 255 if self.truncate else restored)


def find_sets(
    input_dir: Path, names: Sequence[str] | None, ratio: int, **options: bool
) -> list[PhotoSet]:
    """Return the sets named, folders in `input_dir`; else those of `SETS` that exist, unless
    `input_dir` itself holds images. The options are those of `PhotoSet`.

    Raises `InputError` where there are none."""
    if not names and not holds_images(input_dir):
        names = [name for name in SETS if (input_dir / name).is_dir()]
    folders = [input_dir / name for name in dict.fromkeys(names or ())] or [input_dir]
    return [
        PhotoSet(
            name=f"{folder.resolve().name}_{ratio}",
            inputs=list_images(folder),
            protocol=PROTOCOL,
            settings={"cs_ratio": ratio, **options},
            **options,
        )
        for folder in folders
    ]


@command
def main() -> None:
    parser = make_parser(__doc__, BENCHMARK, tile=128, tile_overlap=0)
    add = parser.add_argument
    text = f"folders in --input_dir (default: {', '.join(SETS)}, unless --input_dir holds images)"
    add("--dataset", "--test_name", nargs="+", metavar="SET", help=text)
    add("--im_size", dest="tile", type=int, default=argparse.SUPPRESS, help="--tile, as published")
    add("--patch_size", help="without effect: it only names a file of Φ in the published code")
    text = "without --weights: the ratio, in percent, of those in pretrained_models/"
    add("--cs_ratio", type=int, metavar="N", help=f"{text} (default: {RATIO})")
    text = "measure and reconstruct R, G and B of colour images, each on its own"
    add("--color", action="store_true", help=text)
    add("--truncate", action="store_true", help="write PNGs rounded down, as published")
    options = parser.parse_args()
    if options.weights and options.cs_ratio:
        raise InputError("--cs_ratio: the weights have theirs; leave it out, or --weights")
    options.weights = options.weights or bundled_weights(options.cs_ratio or RATIO)
    restorer = load_restorer(BENCHMARK, options)
    ratio = restorer.network.sizes["cs_ratio"]
    more = {"color": options.color, "truncate": options.truncate}
    sets = find_sets(options.input_dir, options.dataset, ratio, **more)
    run_sets(BENCHMARK, restorer, sets, options)


if __name__ == "__main__":
    main()
