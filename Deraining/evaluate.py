"""Score deraining results.

The five test sets, results in results/<set>, targets in Datasets/<set>/target:
    python evaluate.py
Some of them, and every image's score in a file:
    python evaluate.py --dataset Rain100L Rain100H --csv scores.csv
Any two folders, images matched by name:
    python evaluate.py --result_dir A --target_dir B
"""

from pathlib import Path

from dgunet.base.errors import command
from dgunet.scoring.evaluate import EvaluationSet, evaluate_folders, make_parser

TEST_SETS = {
    name: EvaluationSet(f"{name}/target", "deraining_y")
    for name in ("Rain100L", "Rain100H", "Test100", "Test1200", "Test2800")
}


@command
def main() -> None:
    options = make_parser(__doc__, Path(__file__).resolve().parent, TEST_SETS, list(TEST_SETS))
    evaluate_folders(
        "Deraining",
        options.parse_args(),
        TEST_SETS,
        list(TEST_SETS),
        default_protocol="deraining_y",
    )


if __name__ == "__main__":
    main()
