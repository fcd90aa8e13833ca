"""Restore blurred images, and score them where the sharp ones are there.

A test set (GoPro, HIDE, RealBlur_J, RealBlur_R), blurred images in Datasets/<set>/test/input, sharp
ones in Datasets/<set>/test/target, results to results/<set>:
    python test.py --dataset GoPro --weights FILE
Own images, in FOLDER or FOLDER/input (sharp ones, if there are, in FOLDER/target):
    python test.py --input_dir FOLDER --weights FILE
Beside the results lie settings.json and scores.csv. Images may have any size. evaluate.py scores
results again, also those of other programs.
"""

from pathlib import Path

from dgunet.base.errors import command
from dgunet.Deblurring.evaluate import TEST_SETS
from dgunet.scoring.test import find_sets, load_trained, make_parser, run_sets


@command
def main() -> None:
    parser = make_parser(__doc__, Path(__file__).resolve().parent)
    parser.add_argument(
        "--dataset",
        nargs="+",
        choices=list(TEST_SETS),
        metavar="SET",
        help=f"which of {', '.join(TEST_SETS)} (default: GoPro, unless --input_dir holds images)",
    )
    options = parser.parse_args()
    trained = load_trained("Deblurring", options)
    sets = find_sets(options.input_dir, options.dataset, TEST_SETS, ["GoPro"], "matlab_rgb")
    run_sets(trained, sets, options, bool(options.self_ensemble))


if __name__ == "__main__":
    main()
