"""All four tasks: degrade photographs, restore them, print scores, draw the stages.

    python -m dgunet.tools.showcase --output DIR

takes photographs inside scikit-image, on which none of the weights was trained, and the bundled
pretrained weights. `DIR/<task>` holds the images (input, restored, target), `DIR/stages.png` the
figure: a detail for each task, from the input through the network's stages to the target.

A compressive sensing network measures grey photographs itself; its input is Φᵀy, the image that the
measurements y give without a network. All scores are of pixels rounded to 8 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dgunet.base.errors import InputError, command
from dgunet.base.options import new_parser
from dgunet.data.degradations import describe
from dgunet.images.files import (
    middle,
    pair_by_name,
    read_gray,
    read_rgb,
    to_tensor,
    to_uint8,
    write_image,
)
from dgunet.images.psnr import psnr
from dgunet.inference.restorer import Restorer
from dgunet.model.pretrained import default_weights, read_record, trained_for
from dgunet.model.registry import TASKS
from dgunet.scoring.protocols import gaussian_rgb
from dgunet.scoring.tables import markdown
from dgunet.tools.figure import Row, picture_rows
from dgunet.tools.synthesize import bundled_photos, synthesize

PHOTOS = ("astronaut", "chelsea", "coffee", "motorcycle_left", "rocket")
DEGRADATIONS = {"Deblurring": "blur_mild", "Deraining": "rain_medium", "Denoising": "gaussian25"}
DETAILS = {  # task → a photograph, and the middle of its detail: of height, width
    "Deblurring": ("astronaut", 0.75, 0.40),
    "Deraining": ("chelsea", 0.45, 0.45),
    "Denoising": ("motorcycle_left", 0.25, 0.75),
    "Compressive_Sensing": ("motorcycle_left", 0.68, 0.50),
}
MAX_SIDE, DETAIL_HEIGHT = 320, 160  # pixels
STAGES_SHOWN = 4
BLOCK = 32  # pixels: photographs measured have sides of whole blocks
COLUMNS = ("task", "degradation", "photographs", "input", "restored", "gain (dB)")
Example = list[np.ndarray]  # a photograph: input, all stages, target, uint8


def restore_task(
    task: str, photos: Sequence[Path], folder: Path, max_side: int
) -> dict[str, Example]:
    """Degrade the photographs' middles, no side longer than `max_side`, restore them by the task's
    default weights, write the images into `folder` and return them by name. Raises
    `FileNotFoundError` if the weights are not there."""
    restorer = Restorer.from_checkpoint(default_weights(task), task=task, device="cpu")
    examples = {}
    if task in DEGRADATIONS:
        synthesize(DEGRADATIONS[task], folder, photos, max_side=max_side, jobs=1, overwrite=True)
        for files in pair_by_name(folder / "input", folder / "target"):
            degraded, target = map(read_rgb, files)
            examples[files[0].stem] = [degraded, *restorer.stages(degraded), target]
    else:
        for photo in photos:
            pixels = read_gray(photo)
            sides = [min(max_side, side) // BLOCK * BLOCK for side in pixels.shape]
            target = middle(pixels, *sides)
            measured = restorer.network.measure(to_tensor(target)[None])
            start = to_uint8(restorer.network.A.adjoint(measured)[0])
            examples[photo.stem] = [start, *restorer.stages(target), target]
    for name, (degraded, *_, restored, target) in examples.items():
        for kind, image in {"input": degraded, "restored": restored, "target": target}.items():
            write_image(folder / kind / f"{name}.png", image)
    return examples


def table_row(task: str, examples: Sequence[Example]) -> list[str]:
    """Return the cells: task, degradation, photographs, input and restored score, gain."""
    scores = [[gaussian_rgb(images[at], images[-1]) for at in (0, -2)] for images in examples]
    before, after = np.mean(scores, axis=0)
    cells = [f"{psnr:.2f} / {ssim:.4f}" for psnr, ssim in (before, after)]
    gain = f"{after[0] - before[0]:+.2f}".replace("-0.00", "+0.00")
    return [task, purpose(task), str(len(examples)), *cells, gain]


def purpose(task: str) -> str:
    """Return in words what is shown of a task: the degradation, or what is measured."""
    if task in DEGRADATIONS:
        return describe(DEGRADATIONS[task])
    return trained_for(read_record(default_weights(task)) or {})


def figure_row(task: str, example: Example, middle: tuple[float, float]) -> Row:
    """Return a detail of the input, of up to four stages evenly spaced, and of the target, each
    with its PSNR, of the detail."""
    count = len(example) - 2
    shown = np.linspace(1, count, min(count, STAGES_SHOWN)).round().astype(int)
    details = [detail(image, middle, len(shown) + 2) for image in example]
    captions = {0: "Φᵀy" if task == "Compressive_Sensing" else "degraded"}
    captions |= {int(stage): f"stage {stage}" for stage in shown}
    pictures = [
        (f"{caption}: {psnr(details[index], details[-1], 255):.2f} dB", details[index])
        for index, caption in captions.items()
    ]
    return Row(task.replace("_", " "), purpose(task), [*pictures, ("target", details[-1])])


def detail(image: np.ndarray, middle: tuple[float, float], columns: int) -> np.ndarray:
    """Return the part of an image around `middle` (of height and width, 0 … 1), as wide as fills
    the row of a figure: the fewer columns, the wider."""
    sides = (DETAIL_HEIGHT, DETAIL_HEIGHT * (STAGES_SHOWN + 2) // columns)
    parts = []
    for length, side, place in zip(image.shape, sides, middle, strict=False):
        start = min(max(0, round(place * length) - side // 2), max(0, length - side))
        parts.append(slice(start, start + side))
    return image[tuple(parts)]


def showcase(
    output: Path, photos: Sequence[Path], max_side: int, figures: Sequence[Path] = ()
) -> None:
    """Do all tasks whose weights are there; print which weights are missing, and the table. Write
    the images and `stages.png` into `output`, and the same figure into the files `figures`."""
    table: list[list[str]] = []
    rows: list[Row] = []
    for task in TASKS:
        try:
            examples = restore_task(task, photos, output / task, max_side)
        except FileNotFoundError as error:
            print(f"left out: {error}", flush=True)
            continue
        print(f"{task}: {TASKS[task]}", flush=True)
        table.append(table_row(task, list(examples.values())))
        name, row, column = DETAILS[task]
        shown = examples.get(name) or next(iter(examples.values()))
        rows.append(figure_row(task, shown, (row, column)))
    if not rows:
        raise InputError("none of the default weights is there; expected them in pretrained_models")
    files = [output / "stages.png", *figures]
    picture_rows(rows, files)
    print(f"\n{markdown(table, COLUMNS)}\n")
    print("PSNR (dB) / SSIM of all channels, rounded to 8 bits; means over the photographs.")
    print("Compressive sensing: grey photographs; the input is Φᵀy, with measurements y.")
    print(f"images: {output}/<task>; figure: {', '.join(map(str, files))}")


@command
def main(arguments: Sequence[str] | None = None) -> None:
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="DIR", help="folder for images and figure")
    text = "write the figure here, too, by its suffix; a JPEG has at most 400 kB"
    add("--figure", type=Path, nargs="+", default=[], metavar="FILE", help=text)
    options = parser.parse_args(arguments)
    photos = [photo for photo in bundled_photos() if photo.stem in PHOTOS]
    showcase(options.output, photos, MAX_SIDE, options.figure)


if __name__ == "__main__":
    main()
