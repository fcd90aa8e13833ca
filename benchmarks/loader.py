"""How many training crops a second one process reads: from PNG folders, and from the packed file.

    python benchmarks/loader.py

makes pairs of 1280×720 photographs (those inside scikit-image, continued by reflection; the inputs
blurred) in a temporary folder, packs them, and takes samples of 256×256 from either in turn: whole
samples, read, cropped, moved and turned into tensors. Both lie in the disk cache. The rates, their
median and their spread go to benchmarks/results/loader.json and loader.md.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import cv2
import h5py
import numpy as np
import torch

from dgunet.data.crops import PackedPairs, PairedImages
from dgunet.data.degradations import degrade
from dgunet.data.sampler import SampleKey
from dgunet.images.files import pad_bottom_right, read_rgb, write_image
from dgunet.tools.pack import pack
from dgunet.tools.synthesize import bundled_photos

HEIGHT, WIDTH, PATCH = 720, 1280, 256
RESULTS = Path(__file__).parent / "results"


def make_pairs(folder: Path, count: int) -> None:
    """Write pairs of a photograph, shifted anew each time it is used, and its blurred self."""
    photographs = [read_rgb(path) for path in bundled_photos()]
    rng = np.random.default_rng(0)
    for number in range(count):
        photograph = np.roll(photographs[number % len(photographs)], 61 * number, (0, 1))
        target = pad_bottom_right(photograph, HEIGHT, WIDTH)[:HEIGHT, :WIDTH]
        blurred = degrade(target.astype(np.float32) / 255, "blur_mild", rng)
        write_image(folder / "target" / f"{number}.png", target)
        write_image(folder / "input" / f"{number}.png", np.uint8(np.rint(blurred.clip(0, 1) * 255)))


def rate(data: PairedImages | PackedPairs, epoch: int, samples: int) -> float:
    """Return samples per second."""
    start = time.perf_counter()
    for position in range(samples):
        data[SampleKey(epoch, position, position % len(data))]
    return samples / (time.perf_counter() - start)


def summary(rates: list[float]) -> dict:
    return {
        "median": statistics.median(rates),
        "lowest": min(rates),
        "highest": max(rates),
        "runs": rates,
    }


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "")


def commit() -> str:
    """Return the commit, with -dirty after it if a file other than results differs."""
    git = ["git", "-C", str(RESULTS.parents[1])]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    others = [".", ":!RESULTS.md", ":!benchmarks/results"]
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", *others]).returncode
    return head.stdout.strip() + "-dirty" * bool(changed)


def table(result: dict) -> str:
    rows = [
        f"| {name} | {row['median']:.1f} | {row['lowest']:.1f}–{row['highest']:.1f} | "
        f"{row['mb']:.0f} |"
        for name, row in result["crops_per_second"].items()
    ]
    return "\n".join(
        [
            "# Training crops per second, one process",
            "",
            f"{PATCH}×{PATCH} crops of {result['pairs']} pairs of {WIDTH}×{HEIGHT} pixels, as "
            "whole samples (read, cropped, moved, as tensors), from the disk cache. "
            f"{result['processor']}, {result['cores']} cores; Python {result['python']}, "
            f"OpenCV {result['opencv']}, HDF5 {result['hdf5']}; commit {result['commit']}.",
            "",
            f"| data | crops/s, median of {result['runs']} runs | lowest–highest | MB |",
            "|---|---|---|---|",
            *rows,
            "",
            f"The packed file is {result['packed_is_faster']:.1f} times faster "
            f"(from run to run {result['lowest_ratio']:.1f} to {result['highest_ratio']:.1f}).",
            "",
            "`python benchmarks/loader.py` makes this table.",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--runs", type=int, default=9)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        folder, file = Path(folder) / "pairs", Path(folder) / "pairs.h5"
        make_pairs(folder, args.pairs)
        pack(folder, file)
        sources = {
            "PNG folders": PairedImages(folder, PATCH),
            "packed file": PackedPairs(file, PATCH),
        }
        rates = {name: [] for name in sources}
        for run in range(args.runs + 1):  # the first one warms up
            for name, data in sources.items():
                samples = args.pairs if name == "PNG folders" else 20 * args.pairs
                rates[name].append(rate(data, run, samples))
        megabytes = {
            "PNG folders": sum(path.stat().st_size for path in folder.rglob("*.png")) / 1e6,
            "packed file": file.stat().st_size / 1e6,
        }
    rates = {name: of_source[1:] for name, of_source in rates.items()}
    ratios = [fast / slow for slow, fast in zip(*rates.values(), strict=True)]
    result = {
        "pairs": args.pairs,
        "runs": args.runs,
        "crops_per_second": {
            name: summary(of_source) | {"mb": megabytes[name]} for name, of_source in rates.items()
        },
        "packed_is_faster": statistics.median(ratios),
        "lowest_ratio": min(ratios),
        "highest_ratio": max(ratios),
        "processor": processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "opencv": cv2.__version__,
        "hdf5": h5py.version.hdf5_version,
        "commit": commit(),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "loader.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "loader.md").write_text(table(result), encoding="utf-8")
    print(table(result))


if __name__ == "__main__":
    main()
