"""Restore blurred images, and score them where the sharp ones are there.

A test set (GoPro, HIDE, RealBlur_J, RealBlur_R), blurred images in Datasets/<set>/test/input, sharp
ones in Datasets/<set>/test/target, results to results/<set>:
    python test.py --dataset GoPro --weights FILE
Own images, in FOLDER or FOLDER/input (sharp ones, if there are, in FOLDER/target):
    python test.py --input_dir FOLDER --weights FILE
Beside the results lie settings.json and scores.csv. Images may have any size. evaluate.py scores
results again, also those of other programs.
"""

from dgunet.base.errors import command
from dgunet.Deblurring.evaluate import BENCHMARK
from dgunet.scoring.test import run_benchmark


@command
def main() -> None:
    run_benchmark(BENCHMARK, __doc__)


if __name__ == "__main__":
    main()
