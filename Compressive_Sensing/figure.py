"""Draw how an image is reconstructed: measurements, Φᵀy, stage 1 … 7, original.

python figure.py IMAGE -o FIGURE.png --weights FILE
"""

import argparse
from pathlib import Path

import numpy as np
from torch import Tensor

from dgunet.base.errors import command
from dgunet.base.files import write_atomically
from dgunet.Compressive_Sensing.DGUNet import DGUNet
from dgunet.Compressive_Sensing.measure import add_network_options, load_network, measure
from dgunet.Compressive_Sensing.reconstruct import reconstruct
from dgunet.images.files import read_gray, to_tensor
from dgunet.images.psnr import psnr

COLUMNS = 5


def stages_figure(network: DGUNet, image: Tensor):
    """Return a matplotlib figure of a grey image, 1×H×W in [0,1]; above each picture its PSNR.

    The measurements stand as a picture of m rows, a column for each block: grey is 0, and the
    contrast of small values is raised."""
    from matplotlib.figure import Figure

    measurements = measure(network, image)
    y = measurements.y[0].flatten(1).numpy()
    pictures = [(f"measurements, {measurements.ratio} %", np.arcsinh(5 * y))]
    *stages, start = reconstruct(network, measurements)
    for number, stage in enumerate([start, *stages[::-1]]):
        stage = stage.clamp(0, 1)
        title = f"stage {number}" if number else "Φᵀy"
        pictures.append((f"{title}: {psnr(stage, image):.2f} dB", stage[0].numpy()))
    pictures.append(("original", image[0].numpy()))

    rows = -(-len(pictures) // COLUMNS)
    shape = image.shape[-2] / image.shape[-1]
    figure = Figure(figsize=(12, rows * (12 / COLUMNS * shape + 0.3)), layout="constrained")
    axes = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, (title, pixels) in zip(axes, pictures, strict=False):
        scaled = title.startswith("measurements")
        low, high = (-abs(pixels).max(), abs(pixels).max()) if scaled else (0, 1)
        aspect = "auto" if scaled else "equal"
        axis.imshow(pixels, "gray", vmin=low, vmax=high, aspect=aspect, interpolation="none")
        axis.set_title(title, fontsize=10)
    return figure


@command
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image", type=Path, metavar="IMAGE", help="of a colour one, Y")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FIGURE.png")
    add_network_options(parser)
    options = parser.parse_args()
    network = load_network(options)
    figure = stages_figure(network, to_tensor(read_gray(options.image)))
    write_atomically(options.output, lambda file: figure.savefig(file, dpi=100))
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
