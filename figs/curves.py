"""Draw the learning curves of the bundled weights, and say what their slopes promise.

    python figs/curves.py

reads NAME.csv and NAME.json beside the weights (`python -m dgunet.tools.bundle` puts them there;
`make results` adds the scores). It writes curves.png beside this file, and the table in RESULTS.md.
Lines: PSNR on photographs held out of BSD400, against the patches seen. Filled circles: the
weights' score on a test set. Stars: in compressive sensing, the published score on the same set, at
the number of patches of the published training.
"""

from __future__ import annotations

import csv
import math
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dgunet.base.errors import command
from dgunet.Compressive_Sensing.evaluate import TEST_SETS
from dgunet.model.pretrained import bundled_weights
from dgunet.tools.figure import save

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
from report import REPORT, fill, read_json, table  # noqa: E402

FIGURE = ROOT / "figs" / "curves.png"
# 400 epochs of crops of one block, then 100 of larger ones, each of 200 crops of 1,200 photographs
PUBLISHED_PATCHES = (400 + 100) * 200 * 1200


class Curve(NamedTuple):
    """What there is to tell about bundled weights; `rows` are patches and held-out PSNR, `scores`
    the PSNR on CBSD68 by condition or, in compressive sensing, on Set11."""

    name: str
    patches: int
    rows: list[tuple[int, float]]
    scores: list[float]
    published: float | None

    @property
    def last_doubling(self) -> float | None:
        """How much the held-out PSNR gained over the last doubling of the patches; None where the
        log does not reach so far back.

        >>> Curve("", 8, [(2, 28.0), (4, 29.0), (8, 29.5)], [], None).last_doubling
        0.5
        """
        if not self.rows or self.rows[0][0] > self.rows[-1][0] / 2:
            return None
        patches, psnr = zip(*self.rows, strict=True)
        return psnr[-1] - float(np.interp(patches[-1] / 2, patches, psnr))


def curves() -> list[Curve]:
    """Return the curves of the bundled weights."""
    found = []
    for name, weights in bundled_weights().items():
        record, log, rows = read_json(weights.with_suffix(".json")), weights.with_suffix(".csv"), []
        if log.is_file():
            with open(log, encoding="utf-8") as file:
                rows = [(int(row["samples"]), float(row["psnr"])) for row in csv.DictReader(file)]
        scores = [
            score["psnr"]
            for condition, score in record.get("scores", {}).items()
            if condition.partition(", ")[0] in ("Set11", "CBSD68")
        ]
        known = TEST_SETS.get(f"Set11_{record['sizes'].get('cs_ratio')}")
        published = known.published.get("DGUNet", (None,))[0] if known else None
        seen = [row for row in rows if row[0]]
        found.append(Curve(name, record["training"]["patches"], seen, scores, published))
    return found


def draw(found: list[Curve]) -> None:
    """Draw compressive sensing on the left, the other tasks on the right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), dpi=130, layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, curve in enumerate(found):
        axes, colour = left if curve.published else right, f"C{number % 10}"
        if curve.rows:
            axes.plot(*zip(*curve.rows, strict=True), "-", color=colour)
        at = [curve.patches] * len(curve.scores)
        axes.plot(at, curve.scores, "o", color=colour, label=curve.name)
        if curve.published:
            axes.plot(PUBLISHED_PATCHES, curve.published, "*", color=colour, markersize=12)
            ends = [*curve.scores, curve.published]
            axes.plot([*at, PUBLISHED_PATCHES], ends, ":", color=colour, linewidth=1)
    left.set_title("Compressive sensing: ● Set11, ★ published", fontsize=10)
    right.set_title("Image restoration: ● CBSD68", fontsize=10)
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xlabel("patches seen")
        axes.set_ylabel("PSNR (dB); lines: photographs held out")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    save(figure, FIGURE)


def rows(found: list[Curve]) -> list[dict]:
    """Return the table's lines."""
    lines = []
    for curve in found:
        gain, missing, doublings = curve.last_doubling, "–", "–"
        if curve.published and curve.scores:
            missing = f"{curve.published - curve.scores[0]:.2f}"
            doublings = f"{math.log2(PUBLISHED_PATCHES / curve.patches):.1f}"
        lines.append(
            {
                "weights": curve.name,
                "patches": curve.patches,
                "held out, last (dB)": f"{curve.rows[-1][1]:.2f}" if curve.rows else "–",
                "gained in the last doubling (dB)": "–" if gain is None else f"{gain:+.2f}",
                "below the published score (dB)": missing,
                "doublings up to the published patches": doublings,
            }
        )
    return lines


@command
def main() -> None:
    found = curves()
    draw(found)
    fill(REPORT, {"curves": table(rows(found))})
    print(f"wrote {FIGURE} and the table in {REPORT}")


if __name__ == "__main__":
    main()
