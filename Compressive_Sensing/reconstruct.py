"""Reconstruct an image from a file of measurements and the weights alone.

    python reconstruct.py FILE.npz --weights WEIGHTS
    python reconstruct.py FILE.npz -o IMAGE.png --stages FOLDER

measure.py writes the file, with the Φ of the same weights; measurements by another Φ are refused.
Without -o the image is FILE_reconstructed.png beside the file. --stages also writes Φᵀy, from which
the stages start, and every stage's image: FOLDER/0.png, FOLDER/1.png, …
"""

from pathlib import Path

from dgunet.base.errors import InputError, command  # first: Ctrl-C then ends in a line
from dgunet.base.options import new_parser

# isort: split
import torch
from torch import Tensor

from dgunet.Compressive_Sensing.DGUNet import DGUNet
from dgunet.Compressive_Sensing.measure import (
    Measurements,
    add_network_options,
    load_network,
    phi_identifier,
    read_measurements,
)
from dgunet.images.files import to_uint8, write_image
from dgunet.inference.restorer import Restorer


@torch.inference_mode()
def reconstruct(network: DGUNet, measurements: Measurements) -> list[Tensor]:
    """Return the stage images, C×H×W, not clamped, last stage first, and after them Φᵀy. Raises
    `InputError` for measurements by another Φ, and as `Restorer.reconstruct`."""
    own = phi_identifier(network)
    if (measurements.phi, measurements.ratio) != (own, network.sizes["cs_ratio"]):
        raise InputError(
            f"measured with Φ {measurements.phi} (ratio {measurements.ratio}), expected the Φ of "
            f"these weights, {own} (ratio {network.sizes['cs_ratio']})"
        )
    restorer = Restorer(network, device=network.A.Phi.device, optimize=False)
    images = restorer.reconstruct(measurements.y)
    images.append(network.A.adjoint(measurements.y.to(restorer.device)))
    return [image[:, 0, : measurements.height, : measurements.width].cpu() for image in images]


@command
def main() -> None:
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("file", type=Path, metavar="FILE", help="the measurements, .npz")
    add("-o", "--output", type=Path, metavar="IMAGE", help="the image to write")
    add("--stages", type=Path, metavar="FOLDER", help="write every stage's image there")
    add_network_options(parser)
    options = parser.parse_args()
    measurements = read_measurements(options.file)
    network = load_network(options, measurements.ratio)
    try:
        images = reconstruct(network, measurements)
    except InputError as error:
        raise InputError(f"{options.file}: {error}") from error
    output = options.output or options.file.with_name(f"{options.file.stem}_reconstructed.png")
    write_image(output, to_uint8(images[0]))
    if options.stages:
        for number, image in enumerate(images[::-1]):
            write_image(options.stages / f"{number}.png", to_uint8(image))
    print(
        f"{output}: {measurements.width}×{measurements.height} pixels, ratio {measurements.ratio} %"
    )


if __name__ == "__main__":
    main()
