"""Restore rainy images, and score the results where there are clean images.

The test sets Rain100L, Rain100H, Test100, Test1200 and Test2800, as far as they are there: rainy
images in Datasets/<set>/input, clean ones in Datasets/<set>/target, results in results/<set>:
    python test.py --weights FILE
Some of them:
    python test.py --dataset Rain100L Rain100H --weights FILE
Your own images, in FOLDER or FOLDER/input (clean ones, if you have them, in FOLDER/target):
    python test.py --input_dir FOLDER --weights FILE
settings.json and scores.csv are written beside the results. Images may have any size, and are
restored whole unless --tile is given. evaluate.py scores results again, also of other programs.
"""

from dgunet.base.errors import command
from dgunet.Deraining.evaluate import BENCHMARK
from dgunet.scoring.test import run_benchmark


@command
def main() -> None:
    run_benchmark(BENCHMARK, __doc__)


if __name__ == "__main__":
    main()
