"""Score deblurring results.

A test set (GoPro, HIDE, RealBlur_J, RealBlur_R), results in results/<set>, targets in
Datasets/<set>/test/target:
    python evaluate.py --dataset GoPro
Any two folders, images matched by name:
    python evaluate.py --result_dir A --target_dir B
RealBlur has a protocol of its own, which aligns results to targets, and no published score.
"""

from dgunet.base.errors import command
from dgunet.scoring.evaluate import Benchmark, EvaluationSet, evaluate_folders, make_parser

TEST_SETS = {  # with the PSNR (dB) and SSIM of the paper
    name: EvaluationSet(
        f"{name}/test/target", "matlab_rgb", images, {"DGUNet": ours, "DGUNet_plus": plus}
    )
    for name, images, ours, plus in (
        ("GoPro", 1111, (32.71, 0.960), (33.17, 0.963)),
        ("HIDE", 2025, (30.96, 0.940), (31.40, 0.944)),
    )
} | {
    "RealBlur_J": EvaluationSet("RealBlur_J/test/target", "realblur"),
    "RealBlur_R": EvaluationSet("RealBlur_R/test/target", "realblur"),
}
BENCHMARK = Benchmark("Deblurring", TEST_SETS, default_sets=["GoPro"], protocol="matlab_rgb")


@command
def main() -> None:
    evaluate_folders(BENCHMARK, make_parser(__doc__, BENCHMARK).parse_args())


if __name__ == "__main__":
    main()
