"""Draw what the stages of the networks do, and the rows of Φ.

    python figs/inside.py [--photos BSD400]

takes the bundled pretrained weights and photographs inside scikit-image, degraded with a fixed
seed, and writes beside this file

    inside_<task>.jpg  a row for each stage k: its image xₖ, its gradient step vₖ − xₖ₋₁ and its
                       proximal step xₖ − vₖ, with the step size ρₖ
    inside_phi.jpg     the first rows of Φ; with --photos, the photographs that trained it, beside
                       their blocks' principal components, where training started
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dgunet.base.errors import command
from dgunet.base.options import new_parser
from dgunet.Compressive_Sensing.data import Photographs, principal_components, read_luma
from dgunet.data.crops import hold_out
from dgunet.data.degradations import degrade, pair_generator
from dgunet.images.files import list_images, middle, read_gray, read_rgb, to_tensor, to_uint8
from dgunet.images.psnr import psnr
from dgunet.model.checkpoint import load_model
from dgunet.model.network import Network
from dgunet.model.pretrained import default_weights, find_weights, read_record
from dgunet.tools.figure import Row, picture_rows, signed_colours
from dgunet.tools.showcase import DEGRADATIONS, purpose
from dgunet.tools.synthesize import bundled_photos

FOLDER = Path(__file__).resolve().parent
SHOWN = {  # task → the photograph in its figure, and the top left corner of the detail shown
    "Deblurring": ("astronaut", 64, 30),
    "Deraining": ("chelsea", 50, 20),
    "Denoising": ("coffee", 70, 32),
    "Compressive_Sensing": ("motorcycle_left", 80, 64),
}
SIDE = 256  # pixels of a photograph's middle: whole blocks of every network
DETAIL_HEIGHT, DETAIL_WIDTH = 88, 192
RATIOS = (25, 10)  # of the Φ shown
GRID, GAP = 8, 2  # rows and columns of a mosaic, pixels between its tiles


@torch.no_grad()
def stages(network: Network, image: Tensor) -> tuple[list[Tensor], list[Tensor], list[float]]:
    """Return the images x₀, x₁, …, xₖ, the results v₁, …, vₖ of the gradient steps (C×H×W, not
    clamped), and the step sizes ρ₁, …, ρₖ, of an image as the network takes it."""
    images, results, sizes = [], [], []

    def note(fgdm, inputs, v):
        images.append(inputs[0][0].clone())
        results.append(v[0].clone())
        sizes.append(float(fgdm.step_size))

    hooks = [fgdm.register_forward_hook(note) for fgdm in network.fgdm]
    images.append(network(image)[0][0])
    for hook in hooks:
        hook.remove()
    return images, results, sizes


def stage_rows(
    network: Network, image: Tensor, target: Tensor, corner: tuple[int, int]
) -> list[Row]:
    """Return a row for x₀ and a row for every stage. Shown is a detail, whose top left corner is
    given. Steps are the mean of the channels, each with a scale of its own, the 99.5th percentile
    of what is shown. The PSNR is of the whole image."""
    images, results, sizes = stages(network, image)
    top, left = corner
    box = (..., slice(top, top + DETAIL_HEIGHT), slice(left, left + DETAIL_WIDTH))

    def shown(k: int) -> tuple[str, np.ndarray]:
        score = psnr(to_uint8(images[k]), to_uint8(target), 255)
        return f"$x_{k}$: {score:.2f} dB", to_uint8(images[k][box])

    def difference(caption: str, values: Tensor) -> tuple[str, np.ndarray]:
        mean = values[box].mean(0).numpy()
        scale = float(f"{np.percentile(abs(mean), 99.5):.2g}") or 1.0
        return f"{caption}, scale ±{scale:g}", signed_colours(mean, scale)

    first = difference("target $- x_0$", target - images[0])
    pictures = [shown(0), first, ("target", to_uint8(target[box]))]
    rows = [Row(network.task.replace("_", " "), purpose(network.task), pictures)]
    for k, (v, size) in enumerate(zip(results, sizes, strict=True), 1):
        gradient = difference(f"gradient step $v_{k} - x_{k - 1}$", v - images[k - 1])
        proximal = difference(f"proximal step $x_{k} - v_{k}$", images[k] - v)
        rows.append(Row(f"stage {k}", f"ρ = {size:.2f}", [shown(k), gradient, proximal]))
    return rows


def example(network: Network, photo: Path) -> tuple[Tensor, Tensor]:
    """Return what the network takes, 1×C×H×W, of a photograph's middle, and the target, C×H×W: for
    compressive sensing the target itself, else the target degraded."""
    pixels = middle(read_gray(photo) if network.channels == 1 else read_rgb(photo), SIDE, SIDE)
    image = pixels / np.float32(255)
    if preset := DEGRADATIONS.get(network.task):
        image = to_uint8(degrade(image, preset, pair_generator(0, preset, photo.stem)))
    return to_tensor(image)[None], to_tensor(pixels)


def mosaic(rows: np.ndarray, grid: int = GRID) -> np.ndarray:
    """Return the first rows of Φ (m×side²) as one uint8 picture of at most grid×grid tiles, line by
    line: 0 is grey, three times the root mean square of a row of length 1 is white.

    >>> mosaic(np.arange(8.0).reshape(2, 4), grid=2).shape
    (6, 6)
    """
    side = round(rows.shape[1] ** 0.5)
    pitch = side + GAP
    picture = np.ones((grid * pitch - GAP, grid * pitch - GAP))
    for index, row in enumerate(rows[: grid**2]):
        top, left = (pitch * place for place in divmod(index, grid))
        tile = 0.5 + row.reshape(side, side) * side / 6
        picture[top : top + side, left : left + side] = tile
    return to_uint8(picture)


def phi_pictures(photos: Path | None) -> list[tuple[str, np.ndarray]]:
    """Return mosaics of Φ; with the photographs that trained it, after where training began."""
    pictures = [("principal components", mosaic(starting_phi(photos)))] if photos else []
    for ratio in RATIOS:
        rows = load_model(find_weights(f"DGUNet_{ratio}"))[0].A.Phi.detach().numpy()
        pictures.append((f"ratio {ratio} %: the first of {len(rows)} rows", mosaic(rows)))
    return pictures


def starting_phi(photos: Path) -> np.ndarray:
    """Return the first rows of the Φ that a training of compressive sensing on the photographs of a
    folder began with; the weights' record says which were held out."""
    record = read_record(find_weights(f"DGUNet_{RATIOS[0]}")) or {}
    training = record["config"]["TRAINING"]
    paths, _ = hold_out(list_images(photos, recursive=True), training["HOLD_OUT"], str(photos))
    images, names = [read_luma(path) for path in paths], [path.name for path in paths]
    return principal_components(Photographs(images, names, training["TRAIN_PS"]), GRID**2).numpy()


@command
def main(arguments: Sequence[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--photos", type=Path, metavar="DIR", help="BSD400: shows where Φ started")
    text = "(default: beside this file)"
    parser.add_argument("--output", type=Path, default=FOLDER, metavar="DIR", help=text)
    options = parser.parse_args(arguments)
    photos = {photo.stem: photo for photo in bundled_photos()}
    figures = {"phi": [Row("Φ", "rows as blocks", phi_pictures(options.photos))]}
    for task, (name, *corner) in SHOWN.items():
        network, _ = load_model(default_weights(task), task)
        figures[task.lower()] = stage_rows(network, *example(network, photos[name]), tuple(corner))
    for name, rows in figures.items():
        picture_rows(rows, [options.output / f"inside_{name}.jpg"])
        print(f"wrote {options.output}/inside_{name}.jpg", flush=True)


if __name__ == "__main__":
    main()
