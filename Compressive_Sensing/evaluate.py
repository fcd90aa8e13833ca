"""Score reconstructions that are image files.

Those that test.py wrote, results/Set11_25 (at ratio 25 %) against Datasets/Set11, all or some:
    python evaluate.py
    python evaluate.py --dataset Set11_25 BSD68_25
Any two folders, images matched by name:
    python evaluate.py --result_dir A --target_dir B

The published scores, and those of test.py, are of results before rounding. Files are rounded to 8
bits, which costs 0.07 dB at 41 dB and nothing at 31 dB.
"""

from dataclasses import replace

from dgunet.base.errors import command
from dgunet.Compressive_Sensing.DGUNet import TASK
from dgunet.model.registry import MODELS
from dgunet.scoring.evaluate import Benchmark, EvaluationSet, evaluate_folders, make_parser

PROTOCOL = "compressive_sensing_y"
SETS = {"Set11": 11, "BSD68": 68}  # name, also of the folder → number of images
PUBLISHED = {  # set → ratio → PSNR (dB) and SSIM in the paper, of DGUNet and DGUNet_plus
    "Set11": {
        1: ((22.09, 0.6096), (22.15, 0.6114)),
        4: ((26.84, 0.8249), (26.83, 0.8230)),
        10: ((31.07, 0.9123), (30.93, 0.9088)),
        25: ((36.11, 0.9611), (36.18, 0.9616)),
        50: ((41.22, 0.9836), (41.24, 0.9837)),
    },
    "BSD68": {
        1: ((22.65, 0.5396), (22.70, 0.5406)),
        4: ((25.55, 0.7008), (25.45, 0.6987)),
        10: ((28.26, 0.8193), (28.14, 0.8165)),
        25: ((31.90, 0.9155), (31.98, 0.9158)),
        50: ((37.01, 0.9714), (37.04, 0.9718)),
    },
}
TEST_SETS = {
    f"{name}_{ratio}": EvaluationSet(
        name, PROTOCOL, images, dict(zip(MODELS, PUBLISHED[name].get(ratio, ()), strict=False))
    )
    for name, images in SETS.items()
    for ratio in range(1, 101)
}
BENCHMARK = Benchmark(TASK, TEST_SETS, default_sets=(), protocol=PROTOCOL)


@command
def main() -> None:
    options = make_parser(__doc__, BENCHMARK).parse_args()
    results = options.result_dir or BENCHMARK.home / "results"
    there = [name for name in TEST_SETS if (results / name).is_dir()]
    evaluate_folders(replace(BENCHMARK, default_sets=there), options)


if __name__ == "__main__":
    main()
