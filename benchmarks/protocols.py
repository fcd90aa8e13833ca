"""What the protocol alone does to a score: one network, one set of images, every way of testing.

    python benchmarks/protocols.py --data DIR    DIR/BSD68 and DIR/CBSD68, the same 68 photographs
    … --every 8                                  only every eighth of them, in less time

Published scores of one network on "BSD68" differ by more than the gains that papers report. Here
the bundled weights of compressive sensing at two ratios are scored in the published way, and then
with one thing changed at a time. `benchmarks/results/protocols.json` keeps what was measured, for
as long as the weights stay the same; the table goes into RESULTS.md.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import report
from skimage.metrics import structural_similarity

from dgunet.base.errors import command
from dgunet.base.files import sha256
from dgunet.base.options import new_parser
from dgunet.images.files import list_images, read_gray, read_rgb
from dgunet.images.psnr import decibels
from dgunet.inference.memory import keep_freed_memory
from dgunet.inference.restorer import Restorer
from dgunet.model.pretrained import find_weights
from dgunet.scoring.protocols import compressive_sensing_y, limited_range_luma

MEASURED = report.RESULTS / "protocols.json"
WEIGHTS = ("DGUNet_10", "DGUNet_25")
READINGS = {  # how an image becomes grey: folder, and file → uint8 H×W
    "the grey files": ("BSD68", read_gray),
    "luma of the colour files": ("CBSD68", read_gray),
    "limited-range luma (16 … 235)": ("CBSD68", lambda path: limited_range_luma(read_rgb(path))),
    "mean of R, G and B": ("CBSD68", lambda path: np.uint8(np.rint(read_rgb(path).mean(axis=2)))),
}
PASSES = [(reading, 0) for reading in READINGS] + [("the grey files", side) for side in (128, 32)]
FIRST = "published: the grey files, whole, float, mean over the images"


def run(weights: Path, reading: str, files: list[Path], tile: int) -> dict:
    """Measure and reconstruct all images; return their scores, in every way of scoring. `tile`:
    side of the parts that images are cut into, each reconstructed alone; 0: whole images."""
    _, read = READINGS[reading]
    restorer = Restorer.from_checkpoint(
        weights, device="cpu", precision="bf16", tile=tile, tile_overlap=0
    )
    errors, found = [], {"float": [], "rounded": [], "gaussian": [], "matlab": []}
    start = time.process_time()
    for path in files:
        target = read(path)
        restored = restorer(target / np.float32(255)) * np.float32(255)
        rounded = np.rint(restored).astype(np.uint8)
        found["float"].append(compressive_sensing_y(restored / 255, target))
        found["rounded"].append(compressive_sensing_y(rounded, target))
        errors.append(np.mean((restored - target.astype(np.float64)) ** 2))
        gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        _, ssim = structural_similarity(
            rounded.astype(float), target.astype(float), data_range=255, full=True, **gaussian
        )
        found["gaussian"].append((0, ssim.mean()))  # the borders, reflected, count
        found["matlab"].append((0, ssim[5:-5, 5:-5].mean()))
    return {
        "images": len(errors),
        **{way: np.mean(scores, axis=0).tolist() for way, scores in found.items()},
        "over the set": decibels(float(np.mean(errors)), 255),
        "sha256": sha256(weights),
        "precision": restorer.precision,
        "cpu_seconds": round(time.process_time() - start, 1),
        "hardware": report.processor(),
        "commit": report.commit(),
    }


def rows(measured: dict, weights: str) -> dict[str, Sequence[float | None]]:
    """Return PSNR and SSIM by what differs from the published protocol; None where that leaves
    them as they are."""
    parts = {place: measured.get(f"{weights}/{place[0]}/{place[1]}") for place in PASSES}
    whole = parts.pop(PASSES[0])
    if not whole:
        return {}
    return {
        FIRST: whole["float"],
        "rounded to 8 bits": whole["rounded"],
        "PSNR of the mean squared error over all images": (whole["over the set"], None),
        "SSIM with a Gaussian window, as Wang et al.": (None, whole["matlab"][1]),
        "the same, up to the borders": (None, whole["gaussian"][1]),
        **{f"tiles of {n}" if n else r: part["float"] for (r, n), part in parts.items() if part},
    }


def write_down(measured: dict) -> None:
    """Write the table into RESULTS.md."""
    lines: dict[str, dict] = {}
    for weights in WEIGHTS:
        scores = rows(measured, weights)
        for label, values in scores.items():
            line = lines.setdefault(label, {"protocol": label})
            for kind, value, first, digits in zip(
                ("PSNR", "SSIM"), values, scores[FIRST], (2, 4), strict=True
            ):
                change = ""
                if value and label != FIRST:
                    change = f" ({round(value - first, digits) + 0:+.{digits}f})"  # + 0: no -0.00
                line[f"{weights}: {kind}"] = f"{value:.{digits}f}{change}" if value else "the same"
    report.fill(report.REPORT, {"protocols": report.table(list(lines.values()))})


@command
def main(arguments: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="holds BSD68 and CBSD68")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take every Nth image")
    options = parser.parse_args(arguments)
    keep_freed_memory()
    measured = report.read_json(MEASURED)
    for name in WEIGHTS:
        for reading, tile in PASSES:
            key, weights = f"{name}/{reading}/{tile}", find_weights(name)
            files = sorted(list_images(options.data / READINGS[reading][0]))[:: options.every]
            before, current = measured.get(key, {}), (sha256(weights), len(files))
            if (before.get("sha256"), before.get("images")) == current:
                continue
            measured[key] = run(weights, reading, files, tile)
            print(f"{key}: {measured[key]}", flush=True)
            report.write_json(MEASURED, measured)
    write_down(measured)


if __name__ == "__main__":
    main()
