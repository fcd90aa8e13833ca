"""Score denoising results.

The SIDD benchmark, block by block: results/SIDD/mat/Idenoised.mat against
Datasets/SIDD/test/ValidationGtBlocksSrgb.mat, or other MAT files:
    python evaluate.py
    python evaluate.py --result Idenoised.mat --target ValidationGtBlocksSrgb.mat
Two folders, images matched by name, as for synthetic Gaussian noise:
    python evaluate.py --result_dir A --target_dir B
"""

from pathlib import Path

import numpy as np

from dgunet.base.errors import InputError, command
from dgunet.data.sidd import CLEAN_BLOCKS, block_name, read_blocks
from dgunet.scoring.evaluate import (
    Benchmark,
    EvaluationSet,
    evaluate_folders,
    make_parser,
    report,
    score_all,
)
from dgunet.scoring.results_folder import read_settings

SIDD_PROTOCOL = "matlab_rgb"
TEST_SETS = {  # with the PSNR (dB) and SSIM of the paper
    "SIDD": EvaluationSet(
        f"SIDD/test/{CLEAN_BLOCKS}.mat",
        SIDD_PROTOCOL,
        images=1280,
        published={"DGUNet": (39.88, 0.959), "DGUNet_plus": (39.91, 0.960)},
    )
}
DND_IMAGES = 50
DND_PUBLISHED = {"DGUNet": (40.04, 0.956), "DGUNet_plus": (40.12, 0.957)}  # by its server
BENCHMARK = Benchmark("Denoising", TEST_SETS, default_sets=(), protocol="gaussian_rgb")


@command
def main() -> None:
    parser = make_parser(__doc__, BENCHMARK)
    parser.add_argument("--result", type=Path, metavar="FILE", help="MAT file with Idenoised")
    parser.add_argument("--target", type=Path, metavar="FILE", help=f"… with {CLEAN_BLOCKS}")
    options = parser.parse_args()
    if options.result_dir or options.target_dir:
        if not (options.result_dir and options.target_dir):
            parser.error("--result_dir and --target_dir are given together")
        if options.result or options.target:
            parser.error("give two folders or two MAT files, not both")
        evaluate_folders(BENCHMARK, options)
        return

    result = options.result or BENCHMARK.home / "results/SIDD/mat/Idenoised.mat"
    target = options.target or BENCHMARK.home / "Datasets" / TEST_SETS["SIDD"].target
    protocol = options.protocol or SIDD_PROTOCOL
    restored = read_blocks(result, "Idenoised", floats=True)
    clean = read_blocks(target, CLEAN_BLOCKS, floats=True)
    if restored.shape != clean.shape:
        raise InputError(
            f"restored blocks are {restored.shape}, target blocks {clean.shape}; expected the same"
        )
    loads = {
        block_name(index): lambda index=index: (restored[index], clean[index])
        for index in np.ndindex(restored.shape[:2])
    }
    scores = score_all(loads, "SIDD", protocol, options.jobs)
    settings = {"SIDD": read_settings(result.parent, result.parent.parent)}
    report(BENCHMARK, {"SIDD": scores}, protocol, settings, options.model, options.csv)


if __name__ == "__main__":
    main()
