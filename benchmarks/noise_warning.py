"""How often `demo.py` warns of an image's noise: rightly, and on images like those of training.

    python benchmarks/noise_warning.py --data DIR    DIR/CBSD68, and scikit-image's photographs

For every degradation, saved with 8 bits, the table in docs/inference.md gives the range of the
estimated noise and the share of images that are warned of with each bundled file of weights; in
brackets where the weights were trained for that degradation, so that each warning is a false alarm.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from report import ROOT, fill, table

from dgunet.base.errors import command
from dgunet.base.options import new_parser
from dgunet.data.degradations import degradation, pair_generator
from dgunet.images.files import list_images, read_rgb, to_uint8
from dgunet.images.noise import noise_level
from dgunet.model.pretrained import (
    bundled_weights,
    degradation_of,
    fits,
    read_record,
    trained_noise,
)
from dgunet.tools.synthesize import bundled_photos

PAGE = ROOT / "docs" / "inference.md"
NOISE = [f"gaussian{sigma}" for sigma in (5, 10, 15, 25, 35, 50, 75)]
DEGRADATIONS = ("clean", "blur_mild", "rain_medium", *NOISE)


def estimates(photographs: list[Path], name: str) -> list[float]:
    """Return the noise estimates of the degraded photographs, σ of 255."""
    degrade, found = degradation(name), []
    for path in photographs:
        image = read_rgb(path) / np.float32(255)
        found.append(noise_level(to_uint8(degrade(image, pair_generator(0, name, path.stem)))))
    return found


def trained_on(record: dict, name: str) -> bool:
    """Tell whether images of that degradation are what weights were trained for."""
    low, high = trained_noise(record) or (0.0, 0.0)
    if name in NOISE:
        return high > 0 and low <= float(name.removeprefix("gaussian")) <= high
    return name in (degradation_of(record) or "").split("+")


@command
def main(arguments: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="holds CBSD68")
    options = parser.parse_args(arguments)
    photographs = [*list_images(options.data / "CBSD68"), *bundled_photos()]
    found = {name: read_record(file) for name, file in bundled_weights().items()}
    records = {name: record for name, record in found.items() if record and trained_noise(record)}
    rows = []
    for name in DEGRADATIONS:
        noise = estimates(photographs, name)
        low, middle, high = np.quantile(noise, (0, 0.5, 1))
        row = {"input": name, "estimated σ: median (range)": f"{middle:.1f} ({low:.1f}–{high:.1f})"}
        for weights, record in records.items():
            share = f"{np.mean([not fits(record, value) for value in noise]):.0%}"
            row[weights] = f"({share})" if trained_on(record, name) else share
        rows.append(row)
        print(row, flush=True)
    fill(PAGE, {"noise": table(rows)})


if __name__ == "__main__":
    main()
