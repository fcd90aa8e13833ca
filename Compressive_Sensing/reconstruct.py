"""Reconstruct an image from a file of measurements and the weights alone.

    python reconstruct.py FILE.npz --weights WEIGHTS
    python reconstruct.py FILE.npz -o IMAGE.png --stages FOLDER

measure.py makes the file, with the Φ of the same weights: those of another Φ are refused. Without
-o the image is FILE_reconstructed.png beside the file. --stages also writes Φᵀy, from which the
stages start, and every stage's image: FOLDER/0.png, FOLDER/1.png, …
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from dgunet.base.errors import InputError, command
from dgunet.Compressive_Sensing.DGUNet import BLOCK, DGUNet
from dgunet.Compressive_Sensing.measure import (
    Measurements,
    add_network_options,
    load_network,
    phi_identifier,
    read_measurements,
    zero_pad,
)
from dgunet.images.files import to_uint8, write_image

TILE_PIXELS = 2**18  # that a batch of tiles has at most, unless a single tile has more


@torch.inference_mode()
def reconstruct(network: DGUNet, measurements: Measurements) -> list[Tensor]:
    """Return the stage images, C×H×W, not clamped, last stage first, and after them Φᵀy.

    Raises:
        InputError: the measurements were made with another Φ, are too many for the memory, or the
            images are not finite.
    """
    own = phi_identifier(network)
    if (measurements.phi, measurements.ratio) != (own, network.sizes["cs_ratio"]):
        raise InputError(
            f"measured with Φ {measurements.phi} (ratio {measurements.ratio}), expected the Φ of "
            f"these weights, {own} (ratio {network.sizes['cs_ratio']})"
        )
    y = measurements.y.to(network.A.Phi.device)
    try:
        images = [*network.reconstruct(y), network.A.adjoint(y)]
    except torch.OutOfMemoryError as error:
        size = f"{measurements.height}×{measurements.width}"
        raise InputError(f"{size} pixels do not fit the memory; try --device cpu") from error
    if not images[0].isfinite().all():
        raise InputError("the network makes of these measurements values that are not finite")
    return [image[:, 0, : measurements.height, : measurements.width].cpu() for image in images]


def measure_and_reconstruct(network: DGUNet, image: Tensor, tile: int = 0) -> Tensor:
    """Return what the network makes of an image that it measures itself: N×1×H×W, not clamped.

    Args:
        image: N×1×H×W in [0,1], of any size.
        tile: the side of the square tiles, a multiple of 32, that are reconstructed each on its
            own, as the published scripts do; the last ones are filled up with zeros. 0: the whole
            image at once, with zeros up to whole blocks. (Where a side already is a multiple the
            published test adds a tile of zeros, and cuts it off again: it changes nothing.)
    """
    height, width = image.shape[-2:]
    padded = zero_pad(image, tile or BLOCK)
    if not tile:
        return network(padded)[0][..., :height, :width]
    rows, columns = (side // tile for side in padded.shape[-2:])
    tiles = padded.reshape(-1, rows, tile, columns, tile).transpose(2, 3).reshape(-1, 1, tile, tile)
    batches = tiles.split(max(1, TILE_PIXELS // tile**2))
    restored = torch.cat([network(batch)[0] for batch in batches])
    restored = restored.reshape(-1, rows, columns, tile, tile).transpose(2, 3)
    return restored.reshape(padded.shape)[..., :height, :width]


@command
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("file", type=Path, metavar="FILE", help="the measurements, .npz")
    add("-o", "--output", type=Path, metavar="IMAGE", help="the image to write")
    add("--stages", type=Path, metavar="FOLDER", help="write every stage's image there")
    add_network_options(parser, ratio=False)
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
