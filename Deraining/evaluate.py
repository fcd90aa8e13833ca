"""Score deraining results.

The five test sets, results in results/<set>, targets in Datasets/<set>/target:
    python evaluate.py
Some of them, and every image's score in a file:
    python evaluate.py --dataset Rain100L Rain100H --csv scores.csv
Any two folders, images matched by name:
    python evaluate.py --result_dir A --target_dir B
"""

from dgunet.base.errors import command
from dgunet.scoring.evaluate import Benchmark, EvaluationSet, evaluate_folders, make_parser

TEST_SETS = {
    name: EvaluationSet(
        f"{name}/target", "deraining_y", images, {"DGUNet": ours, "DGUNet_plus": plus}
    )
    for name, images, ours, plus in (  # the last two: PSNR (dB) and SSIM of the paper
        ("Rain100L", 100, (37.42, 0.969), (38.25, 0.974)),
        ("Rain100H", 100, (30.66, 0.891), (31.06, 0.897)),
        ("Test100", 100, (30.32, 0.899), (30.86, 0.907)),
        ("Test1200", 1200, (33.23, 0.920), (33.08, 0.916)),
        ("Test2800", 2800, (33.68, 0.938), (34.01, 0.942)),
    )
}
BENCHMARK = Benchmark(
    "Deraining",
    TEST_SETS,
    default_sets=list(TEST_SETS),
    protocol="deraining_y",
    published_mean={"DGUNet": (33.06, 0.923), "DGUNet_plus": (33.46, 0.927)},
)


@command
def main() -> None:
    evaluate_folders(BENCHMARK, make_parser(__doc__, BENCHMARK).parse_args())


if __name__ == "__main__":
    main()
