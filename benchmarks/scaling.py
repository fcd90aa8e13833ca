"""Measure how time and memory grow with the image, the stages, the width and the batch.

    python benchmarks/scaling.py            some ten minutes on two cores
    python benchmarks/scaling.py --quick    to one megapixel, two minutes

writes benchmarks/results/scaling.json, .md and .png, and prints the tables. Images are photographs
continued by reflection. Every point is a process of its own: the median of its runs' seconds, and
by how much they raise the peak of memory. Large images go through the small Denoising model that
comes along, tile by tile; beside it whole, as far as that is reasonable.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from bench_inference import TINY, Options
from cost import SMALL, gflop
from measure import (
    RESULTS,
    machine,
    machine_line,
    markdown,
    peak_memory,
    photographs,
    run_alone,
    seconds_cell,
    summary,
    timed,
    write_text,
)

from dgunet.base.errors import command
from dgunet.base.files import write_atomically
from dgunet.images.files import to_uint8
from dgunet.inference.memory import keep_freed_memory
from dgunet.inference.restorer import Restorer, prepare
from dgunet.model.checkpoint import load_model
from dgunet.model.pretrained import default_weights
from dgunet.model.registry import build_model

MEGAPIXELS = (0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 24)
WHOLE_TO = 4  # megapixels that are also restored without tiles
LABELS = {
    "tiled": "megapixels, tiled",
    "whole": "megapixels, whole",
    "stages": "stages",
    "width": "width",
    "batch": "batch",
}


@dataclass(frozen=True)
class Point:
    """One measurement: `value` of what `axis` says, for images of height×width."""

    axis: str
    value: float
    height: int
    width: int
    batch: int = 1
    sizes: dict = field(default_factory=lambda: dict(SMALL))

    @property
    def megapixels(self) -> float:
        return self.batch * self.height * self.width / 1e6


def image_size(megapixels: float) -> tuple[int, int]:
    """Return height and width in the proportion 2:3, multiples of 8.

    >>> image_size(24)
    (4000, 6000)
    """
    height = round((megapixels * 1e6 * 2 / 3) ** 0.5 / 8) * 8
    return height, round(megapixels * 1e6 / height / 8) * 8


def points(quick: bool, smoke: bool) -> list[Point]:
    if smoke:
        tiny = {**TINY, "stages": 3}
        return [
            *(Point(axis, v, *image_size(v), sizes=tiny) for axis in ("tiled", "whole")
              for v in (0.002, 0.004)),
            Point("stages", 3, 16, 24, sizes=tiny),
            Point("width", 8, 16, 24, sizes=tiny),
            Point("batch", 2, 16, 24, 2, tiny),
        ]  # fmt: skip
    most = 1 if quick else MEGAPIXELS[-1]
    found = [Point("tiled", v, *image_size(v)) for v in MEGAPIXELS if v <= most]
    found += [Point("whole", v, *image_size(v)) for v in MEGAPIXELS if v <= min(most, WHOLE_TO)]
    base = Point("", 0, 256, 256)
    for stages in (2, 3, 5, 7, 9):
        found.append(replace(base, axis="stages", value=stages, sizes={**SMALL, "stages": stages}))
    for width in (8, 12, 20, 40) if quick else (8, 12, 20, 40, 80):
        sizes = {**SMALL, "width": width, "width_step": width // 2}
        found.append(replace(base, axis="width", value=width, sizes=sizes))
    for batch in (1, 2, 4) if quick else (1, 2, 4, 8, 16):
        found.append(replace(base, axis="batch", value=batch, batch=batch))
    return found


def measure(point: Point, options: Options) -> dict:
    """Return seconds (a `summary`) and megabytes of one point, in this process, which keeps freed
    memory as demo.py and test.py do."""
    device = options.start()
    keep_freed_memory()
    torch.manual_seed(0)
    network = build_model("Denoising", "DGUNet", point.sizes).eval()
    if point.axis in ("tiled", "whole"):
        if network.sizes == SMALL:
            network = load_model(default_weights("Denoising"))[0]
        tile = "auto" if point.axis == "tiled" else 0
        restorer = Restorer(network, device=device, tile=tile)
        image = to_uint8(photographs("Denoising", point.height, point.width)[0])
        function = lambda: restorer(image)  # noqa: E731
        restorer(np.ascontiguousarray(image[:32, :32]))
    else:
        fast = prepare(network.to(device))
        batch = photographs("Denoising", point.height, point.width, point.batch).to(device)

        @torch.inference_mode()
        def function() -> None:
            fast(batch)

        with torch.inference_mode():
            fast(batch[:1, :, :16, :16])
    seconds: list[float] = []

    def first() -> None:
        seconds.append(timed(function, device))

    megabytes = peak_memory(first, device)
    start = time.perf_counter()
    # The first one pays for memory that the others reuse; of what takes long it is the only one.
    while len(seconds) <= options.runs and time.perf_counter() - start + seconds[0] < 12:
        first()
    return {
        "axis": point.axis,
        "value": point.value,
        "height": point.height,
        "width": point.width,
        "batch": point.batch,
        "sizes": point.sizes,
        "megapixels": point.megapixels,
        "gflop": gflop(
            "Denoising", "DGUNet", point.sizes,
            (point.batch, -(-point.height // 8) * 8, -(-point.width // 8) * 8),
        ),
        "seconds": summary(seconds[1:] or seconds),
        "megabytes": megabytes,
    }  # fmt: skip


def report(where: dict, results: Sequence[dict]) -> str:
    lines = ["# Scaling", "", machine_line(where), ""]
    for axis, label in LABELS.items():
        rows = []
        for row in (row for row in results if row["axis"] == axis):
            per = row["seconds"]["median"] / row["megapixels"]
            rate = row["gflop"] / row["seconds"]["median"]
            size = f"{row['batch']} of " * (row["batch"] > 1) + f"{row['height']}×{row['width']}"
            rows.append(
                [f"{row['value']:g}", size, f"{row['gflop']:,.0f}", seconds_cell(row["seconds"]),
                 f"{per:.2f}", f"{rate:,.0f}", f"{row['megabytes']:,.0f}",
                 f"{row['megabytes'] / row['megapixels']:,.0f}"]
            )  # fmt: skip
        if rows:
            header = [label, "image", "GFLOP", "seconds", "s/MP", "GFLOP/s", "MB", "MB/MP"]
            lines += [markdown(header, rows), ""]
    return "\n".join(lines)


def plot(results: Sequence[dict], file: Path, smoke: bool = False) -> None:
    """Draw seconds above memory, for each axis; dashed: proportional to the first point."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import NullFormatter

    groups = [("tiled", "whole"), ("stages",), ("width",), ("batch",)]
    names = ["megapixels", "stages", "width", "batch"]
    figure, axes = pyplot.subplots(2, 4, figsize=(14, 6), layout="constrained")
    for column, (group, name) in enumerate(zip(groups, names, strict=True)):
        for row, key in enumerate(("seconds", "megabytes")):
            panel = axes[row][column]
            for axis in group:
                of_axis = [r for r in results if r["axis"] == axis]
                if not of_axis:
                    continue
                x = [r["value"] for r in of_axis]
                y = [r[key]["median"] if key == "seconds" else r[key] for r in of_axis]
                panel.plot(x, y, "o-", label=axis if len(group) > 1 else None)
                if axis != "whole" and name != "width" and key == "seconds":
                    work = [r["gflop"] for r in of_axis]
                    line = [y[-1] * w / work[-1] for w in work]
                    panel.plot(x, line, "k--", lw=0.8, label="as the work grows")
            if name != "stages" and not smoke:
                panel.set_xscale("log", base=2 if name == "batch" else 10)
                panel.set_yscale("log")
                panel.xaxis.set_minor_formatter(NullFormatter())
                panel.yaxis.set_minor_formatter(NullFormatter())
                if name != "megapixels":
                    panel.set_xticks(x, [f"{value:g}" for value in x])
            else:
                panel.set_ylim(0)
            panel.set_xlabel(name)
            panel.set_ylabel("seconds" if key == "seconds" else "peak memory, MB")
            panel.grid(alpha=0.3)
            if panel.get_legend_handles_labels()[1]:
                panel.legend()
    write_atomically(file, lambda out: figure.savefig(out, format="png", dpi=110))
    pyplot.close(figure)


@command
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="images to one megapixel")
    add(
        "--smoke", action="store_true", help="tiny, to see whether it runs: the figures say nothing"
    )
    add("--device", default="cpu", help="cpu, cuda, cuda:N or auto (default: cpu)")
    add("--runs", type=int, default=5, metavar="N", help="at most, of each point (default: 5)")
    add("--threads", type=int, metavar="N", help="of the CPU (default: as torch chooses)")
    add("--output", type=Path, default=RESULTS, metavar="DIR", help="default: %(default)s")
    given = parser.parse_args(arguments)
    options = Options(given.device, given.threads or torch.get_num_threads(), given.runs)
    device = options.start()
    options = replace(options, device=str(device))
    where = machine(device)
    results = []
    for point in points(given.quick, given.smoke):
        print(f"{point.axis} {point.value:g} …", file=sys.stderr, flush=True)
        results.append(run_alone(measure, point, options))
    name = "scaling" + ("-cuda" if device.type == "cuda" else "") + "-smoke" * given.smoke
    content = {"machine": where, "points": results}
    write_text(given.output / f"{name}.json", json.dumps(content, indent=1) + "\n")
    text = report(where, results)
    write_text(given.output / f"{name}.md", text)
    plot(results, given.output / f"{name}.png", given.smoke)
    print(text)


if __name__ == "__main__":
    main()
