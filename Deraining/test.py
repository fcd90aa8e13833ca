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

from dgunet.base.errors import command
from dgunet.Deraining.evaluate import BENCHMARK
from dgunet.scoring.test import run_benchmark


@command
def main() -> None:
    run_benchmark(BENCHMARK, __doc__)


if __name__ == "__main__":
    main()
