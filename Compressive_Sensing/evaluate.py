"""Score reconstructions that lie as image files.

Those of test.py, results/Set11_25 (of ratio 25) against Datasets/Set11, all there are or some:
    python evaluate.py
    python evaluate.py --dataset Set11_25 BSD68_25
Two folders, images matched by name, made by any program:
    python evaluate.py --result_dir A --target_dir B

The published scores, and test.py's, are of results before rounding. Files are rounded to 8 bits:
at 41 dB that costs 0.07 dB, at 31 dB nothing.
"""

from pathlib import Path

from dgunet.base.errors import command
from dgunet.Compressive_Sensing.DGUNet import RATIOS, TASK
from dgunet.Compressive_Sensing.test import PROTOCOL, SETS
from dgunet.scoring.evaluate import EvaluationSet, evaluate_folders, make_parser

TEST_SETS = {f"{name}_{ratio}": EvaluationSet(name, PROTOCOL) for name in SETS for ratio in RATIOS}


@command
def main() -> None:
    options = make_parser(__doc__, Path(__file__).resolve().parent, TEST_SETS).parse_args()
    there = [name for name in TEST_SETS if (options.result_dir / name).is_dir()]
    evaluate_folders(TASK, options, TEST_SETS, there, PROTOCOL)


if __name__ == "__main__":
    main()
