"""Figures: rows of pictures with captions.

    python -m dgunet.tools.figure OUT.png degraded=DIR restored=DIR target=DIR [--images NAME …]

A row per image, a column per folder, images matched by name; the last column is the target, to
which the PSNR above the others is taken (RGB, 8 bits).
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dgunet.base.errors import InputError, command
from dgunet.base.files import write_bytes
from dgunet.base.options import new_parser
from dgunet.images.files import list_images, read_rgb, to_uint8
from dgunet.images.psnr import psnr
from dgunet.images.sizes import by

WIDTH, HEADING, CAPTION, GAP = 10.0, 0.26, 0.22, 0.06  # inches
JPEG_BYTES = 400_000  # at most, if one of JPEG_QUALITIES can make it so
JPEG_QUALITIES = (92, 80, 65, 50)


@dataclass(frozen=True)
class Row:
    """Pictures of one size, uint8 H×W×3 or H×W, each with its caption; above them the title in
    bold type and a subtitle."""

    title: str
    subtitle: str
    pictures: Sequence[tuple[str, np.ndarray]]


def signed_colours(values: np.ndarray, scale: float) -> np.ndarray:
    """Return H×W values as uint8 H×W×3: `-scale` blue, 0 white, `scale` red."""
    from matplotlib import colormaps

    return to_uint8(colormaps["RdBu_r"](values / (2 * scale) + 0.5)[..., :3])


def picture_rows(rows: Sequence[Row], outputs: Sequence[str | Path]) -> None:
    """Write the rows as one figure, each as wide as the figure, however many pictures it has, into
    files of any type that matplotlib writes."""
    from matplotlib.figure import Figure

    widths = [(WIDTH + GAP) / len(row.pictures) - GAP for row in rows]
    shapes = [row.pictures[0][1].shape for row in rows]
    heights = [width * shape[0] / shape[1] for width, shape in zip(widths, shapes, strict=True)]
    above = HEADING + CAPTION
    total = sum(heights) + len(rows) * (above + GAP)
    figure, top = Figure(figsize=(WIDTH, total), dpi=150), total
    for row, width, height in zip(rows, widths, heights, strict=True):
        y = (top - HEADING / 2) / total
        title = figure.text(0.02 / WIDTH, y, row.title, fontsize=12, weight="bold", va="center")
        right = title.get_window_extent().x1 / figure.dpi + 0.15
        figure.text(right / WIDTH, y, row.subtitle, fontsize=11, va="center")
        bottom = top - above - height
        for index, (caption, pixels) in enumerate(row.pictures):
            box = (index * (width + GAP) / WIDTH, bottom / total, width / WIDTH, height / total)
            axes = figure.add_axes(box)
            colours = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
            axes.imshow(colours, aspect="auto", interpolation="bicubic")
            axes.set_axis_off()
            axes.set_title(caption, fontsize=10, pad=3)
        top = bottom - GAP
    for output in outputs:
        save(figure, output)


def save(figure, output: str | Path) -> None:
    """Write a matplotlib figure; a JPEG in the best of a few qualities that is small enough."""
    kind = Path(output).suffix.lower().removeprefix(".")
    for quality in JPEG_QUALITIES:
        file = io.BytesIO()
        jpeg = {"pil_kwargs": {"quality": quality}} if kind in ("jpg", "jpeg") else {}
        figure.savefig(file, format=kind, **jpeg)
        if file.tell() <= JPEG_BYTES or not jpeg:
            break
    write_bytes(output, file.getvalue())


def before_after(
    columns: Mapping[str, str | Path], output: str | Path, images: Sequence[str] = ()
) -> None:
    """Write the figure of images in several folders (title → folder, the target's last) side by
    side: those of these stems, or all of the last column's. Raises `InputError` if an image is
    missing in a folder, or its size differs from the target's."""
    folders = {t: {p.stem: p for p in list_images(folder)} for t, folder in columns.items()}
    *others, last = columns
    rows = []
    for name in images or folders[last]:
        for title, files in folders.items():
            if name not in files:
                raise InputError(f"{columns[title]}: has no image named {name}")
        target, pictures = read_rgb(folders[last][name]), []
        for title in others:
            shown, file = read_rgb(folders[title][name]), folders[title][name]
            if shown.shape != target.shape:
                sizes = f"{by(shown.shape)}, expected the target's {by(target.shape)}"
                raise InputError(f"{file}: is {sizes}")
            pictures.append((f"{title}: {psnr(shown, target, 255):.2f} dB", shown))
        rows.append(Row(name, "", [*pictures, (last, target)]))
    picture_rows(rows, [output])


@command
def main(arguments: Sequence[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("output", help="the figure's file")
    parser.add_argument("columns", nargs="+", metavar="TITLE=DIR")
    parser.add_argument("--images", nargs="*", default=[], help="names without suffix")
    options = parser.parse_args(arguments)
    columns = dict(column.partition("=")[::2] for column in options.columns)
    if not all(columns) or not all(columns.values()):
        raise InputError(f"{' '.join(options.columns)}: expected TITLE=DIR of each")
    before_after(columns, options.output, options.images)
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
