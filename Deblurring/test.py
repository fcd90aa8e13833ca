"""Restore blurred images, and score the results where there are sharp images.

A test set (GoPro, HIDE, RealBlur_J, RealBlur_R): blurred images in Datasets/<set>/test/input, sharp
ones in Datasets/<set>/test/target, results in results/<set>:
    python test.py --dataset GoPro --weights FILE
Your own images, in FOLDER or FOLDER/input (sharp ones, if you have them, in FOLDER/target):
    python test.py --input_dir FOLDER --weights FILE
settings.json and scores.csv are written beside the results. Images may have any size, and are
restored whole unless --tile is given. evaluate.py scores results again, also of other programs.
"""

from dgunet.base.errors import command
from dgunet.Deblurring.evaluate import BENCHMARK
from dgunet.scoring.test import run_benchmark


@command
def main() -> None:
    run_benchmark(BENCHMARK, __doc__)


if __name__ == "__main__":
    main()
