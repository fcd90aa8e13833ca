"""Restore rainy images, and score them where the clean ones are there.

Those of the five test sets (Rain100L, Rain100H, Test100, Test1200, Test2800) that are there, rainy
images in Datasets/<set>/input, clean ones in Datasets/<set>/target, results to results/<set>:
    python test.py --weights FILE
Some of them:
    python test.py --dataset Rain100L Rain100H --weights FILE
Own images, in FOLDER or FOLDER/input (clean ones, if there are, in FOLDER/target):
    python test.py --input_dir FOLDER --weights FILE
Beside the results lie settings.json and scores.csv. Images may have any size. evaluate.py scores
results again, also those of other programs.
"""

from pathlib import Path

from dgunet.base.errors import command
from dgunet.Deraining.evaluate import TEST_SETS
from dgunet.scoring.test import find_sets, load_trained, make_parser, run_sets


@command
def main() -> None:
    parser = make_parser(__doc__, Path(__file__).resolve().parent)
    parser.add_argument(
        "--dataset",
        nargs="+",
        choices=list(TEST_SETS),
        metavar="SET",
        help=f"which of {', '.join(TEST_SETS)} (default: those that are there)",
    )
    options = parser.parse_args()
    trained = load_trained("Deraining", options)
    sets = find_sets(options.input_dir, options.dataset, TEST_SETS, list(TEST_SETS), "deraining_y")
    run_sets(trained, sets, options, bool(options.self_ensemble))


if __name__ == "__main__":
    main()
