"""What tiles and local statistics do to results: PSNR, distance from the whole image's, seams.

    python benchmarks/tiling.py demo_output/test --weights demo_output/…/model_latest.pth

of a folder with `input/` and `target/`. The columns, in grey levels of 255 but for the PSNRs:

    gain      PSNR to the target, less that of the image restored whole
    to whole  PSNR between the two results
    seams     how much the difference of the two changes from pixel to pixel, on average where tiles
              overlap (and for tiles without overlap at their borders), and
    elsewhere everywhere else: where seams is not above it, there are none to be seen
    largest   the largest such change where tiles overlap
"""

import argparse
from pathlib import Path

import numpy as np

from dgunet.base.errors import command
from dgunet.images.files import pair_by_name, read_rgb
from dgunet.images.psnr import psnr
from dgunet.inference.restorer import Restorer
from dgunet.inference.tiling import spans

TILES = ((192, 0), (192, 16), (192, 64), (256, 64), (384, 64), (384, 128))
WINDOWS = (96, 192, 384)


def steps(difference: np.ndarray, tile: int, overlap: int) -> tuple[float, float, float]:
    """Return the mean change of the difference (H×W×3) along rows where tiles overlap and
    elsewhere, and its largest where they do."""
    change = np.abs(np.diff(difference, axis=1)).max(2)
    cut = spans(difference.shape[1], tile, overlap, 8)
    seams = np.zeros(change.shape[1], bool)
    for span in cut[1:]:
        seams[max(span.start - 1, 0) : span.start + max(overlap, 1)] = True
    if not seams.any():
        return np.nan, float(change.mean()), np.nan
    return float(change[:, seams].mean()), float(change[:, ~seams].mean()), change[:, seams].max()


@command
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()

    def restorer(**settings) -> Restorer:
        return Restorer.from_checkpoint(options.weights, device=options.device, **settings)

    rows: dict[str, list] = {}
    for source, goal in pair_by_name(options.folder / "input", options.folder / "target"):
        degraded, target = read_rgb(source) / np.float32(255), read_rgb(goal) / np.float32(255)
        whole = restorer(tile=0)(degraded)
        base = psnr(whole, target, 1)
        print(f"{source.name}: input {psnr(degraded, target, 1):.2f} dB, whole {base:.2f} dB")
        for tile, overlap in TILES:
            result = restorer(tile=tile, tile_overlap=overlap)(degraded)
            near, far, most = steps(255 * (result - whole), tile, overlap)
            row = (psnr(result, target, 1) - base, psnr(result, whole, 1), near, far, most)
            rows.setdefault(f"tiles of {tile}, overlap {overlap}", []).append(row)
        for window in WINDOWS:
            result = restorer(tile=0, local_statistics=window)(degraded)
            row = (psnr(result, target, 1) - base, psnr(result, whole, 1), *[np.nan] * 3)
            rows.setdefault(f"local statistics, window {window}", []).append(row)
    print(f"\n| {'mean of the images':32} |   gain | to whole | seams | elsewhere | largest |")
    print("|---|---|---|---|---|---|")
    for name, values in rows.items():
        gain, distance, near, far, most = np.asarray(values, float).T
        line = f"| {name:32} | {gain.mean():+.3f} | {distance.mean():8.1f} |"
        if np.isfinite(near).any():
            line += f" {np.nanmean(near):5.2f} | {np.nanmean(far):9.2f} | {np.nanmax(most):7.1f} |"
        print(line)


if __name__ == "__main__":
    main()
