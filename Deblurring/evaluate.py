"""Score deblurring results.

A test set (GoPro, HIDE, RealBlur_J, RealBlur_R), results in results/<set>, targets in
Datasets/<set>/test/target:
    python evaluate.py --dataset GoPro
Any two folders, images matched by name:
    python evaluate.py --result_dir A --target_dir B
RealBlur has a protocol of its own, which aligns results to targets, and no published score.
"""

from pathlib import Path

from dgunet.base.errors import command
from dgunet.scoring.evaluate import EvaluationSet, evaluate_folders, make_parser

TEST_SETS = {
    "GoPro": EvaluationSet("GoPro/test/target", "matlab_rgb"),
    "HIDE": EvaluationSet("HIDE/test/target", "matlab_rgb"),
    "RealBlur_J": EvaluationSet("RealBlur_J/test/target", "realblur"),
    "RealBlur_R": EvaluationSet("RealBlur_R/test/target", "realblur"),
}


@command
def main() -> None:
    options = make_parser(__doc__, Path(__file__).resolve().parent, TEST_SETS, ["GoPro"])
    evaluate_folders(
        "Deblurring", options.parse_args(), TEST_SETS, ["GoPro"], default_protocol="matlab_rgb"
    )


if __name__ == "__main__":
    main()
