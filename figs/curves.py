"""Draw the learning curves of the bundled weights, and say what their slopes promise.

    python figs/curves.py

reads NAME.csv and NAME.json beside the weights (`python -m dgunet.tools.bundle` puts them there)
and the scores in benchmarks/results/scores.json. It writes curves.png beside this file, and the
table in RESULTS.md. Lines: PSNR on photographs held out of BSD400, against the patches seen. Filled
circles: the weights' score on a test set. Stars: in compressive sensing, the published score on the
same set, at the number of patches of the published training.
"""

from __future__ import annotations

import csv
import json
import math
import sys
from pathlib import Path
from typing import NamedTuple

from dgunet.base.errors import command
from dgunet.Compressive_Sensing.evaluate import TEST_SETS
from dgunet.model.pretrained import bundled_weights, read_record
from dgunet.tools.figure import save

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
from report import fill, table  # noqa: E402

FIGURE, REPORT = ROOT / "figs" / "curves.png", ROOT / "RESULTS.md"
SCORES = ROOT / "benchmarks" / "results" / "scores.json"
SENSING = "Compressive_Sensing"
# 400 epochs of crops of one block, then 100 of larger ones, each of 200 crops of 1,200 photographs
PUBLISHED_PATCHES = (400 + 100) * 200 * 1200


class Curve(NamedTuple):
    """What there is to tell about bundled weights; `rows` are patches and held-out PSNR, `scores`
    the test sets' PSNR by condition (or the set, in compressive sensing)."""

    name: str
    task: str
    patches: int
    rows: list[tuple[int, float]]
    scores: dict[str, float]
    published: float | None

    @property
    def last_doubling(self) -> float | None:
        """How much the held-out PSNR gained over the last doubling of the patches; None where the
        log does not reach so far back.

        >>> Curve("", "", 8, [(0, 20.0), (2, 28.0), (4, 29.0), (8, 29.5)], {}, None).last_doubling
        0.5
        """
        seen = [row for row in self.rows if row[0]]
        if not seen or seen[0][0] > seen[-1][0] / 2:
            return None
        patches, psnr = zip(*seen, strict=True)
        half = patches[-1] / 2
        after = next(i for i, n in enumerate(patches) if n >= half)
        before = max(after - 1, 0)
        share = (half - patches[before]) / ((patches[after] - patches[before]) or 1)
        return psnr[-1] - (psnr[before] + share * (psnr[after] - psnr[before]))


def curves() -> list[Curve]:
    """Return the bundled weights that a record tells the patches of."""
    found, scores = [], json.loads(SCORES.read_text(encoding="utf-8"))
    for name, weights in bundled_weights().items():
        record = read_record(weights)
        if not record or not record.get("training", {}).get("patches"):
            continue
        task, rows, log = record["task"], [], weights.with_suffix(".csv")
        if log.is_file():
            with open(log, encoding="utf-8") as file:
                rows = [(int(row["samples"]), float(row["psnr"])) for row in csv.DictReader(file)]
        of_weights = {}
        for key, score in scores.items():
            of_task, data, condition, method = key.split("/")
            if (of_task, method) == (task, name) and data in ("Set11", "CBSD68"):
                of_weights[data if task == SENSING else condition] = score["psnr"]
        known = TEST_SETS.get(f"Set11_{record.get('cs_ratio')}")
        published = known.published["DGUNet"][0] if known and "DGUNet" in known.published else None
        patches = record["training"]["patches"]
        found.append(Curve(name, task, patches, rows, of_weights, published))
    return found


def draw(found: list[Curve]) -> None:
    """Draw compressive sensing on the left, the other tasks on the right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), dpi=130, layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, curve in enumerate(found):
        axes, colour = left if curve.task == SENSING else right, f"C{number % 10}"
        seen = [row for row in curve.rows if row[0]]
        if seen:
            axes.plot(*zip(*seen, strict=True), "-", color=colour)
        tests = list(curve.scores.values())
        axes.plot([curve.patches] * len(tests), tests, "o", color=colour, label=curve.name)
        if curve.published:
            axes.plot(PUBLISHED_PATCHES, curve.published, "*", color=colour, markersize=12)
            ends = [(curve.patches, tests[0])] if tests else []
            ends.append((PUBLISHED_PATCHES, curve.published))
            axes.plot(*zip(*ends, strict=True), ":", color=colour, linewidth=1)
    left.set_title("Compressive sensing: ● Set11, ★ published", fontsize=10)
    right.set_title("Image restoration: ● CBSD68", fontsize=10)
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xlabel("patches seen")
        axes.set_ylabel("PSNR (dB); lines: photographs held out")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=8)
    save(figure, FIGURE)


def rows(found: list[Curve]) -> list[dict]:
    """Return the table's lines."""
    lines = []
    for curve in found:
        gain, missing = curve.last_doubling, None
        if curve.published and curve.scores:
            missing = curve.published - curve.scores["Set11"]
        lines.append(
            {
                "weights": curve.name,
                "patches": curve.patches,
                "held out, last (dB)": f"{curve.rows[-1][1]:.2f}" if curve.rows else "–",
                "gained in the last doubling (dB)": "–" if gain is None else f"{gain:+.2f}",
                "below the published score (dB)": "–" if missing is None else f"{missing:.2f}",
                "doublings up to the published patches": "–"
                if missing is None
                else f"{math.log2(PUBLISHED_PATCHES / curve.patches):.1f}",
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
