"""Before and after: one figure of degraded, restored and target pictures side by side.

    python -m restoration.figure OUT.png degraded=DIR restored=DIR target=DIR [--images NAME …]

A row per image, a column per folder, images matched by name; the last column is the target, to
which the PSNR above the others is taken (RGB, 8 bit).
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from restoration.errors import InputError, command
from restoration.images import list_images, read_rgb
from restoration.metrics import psnr


def before_after(
    columns: Mapping[str, str | Path], output: str | Path, images: Sequence[str] = ()
) -> None:
    """Write the figure.

    Args:
        columns: title → folder, the target's last.
        output: a file of any type that matplotlib writes.
        images: stems of the images shown; none: all of the last column's.

    Raises:
        InputError: an image is missing in a folder, or its size differs from the target's.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    folders = {t: {p.stem: p for p in list_images(f)} for t, f in columns.items()}
    names = list(images) or list(list(folders.values())[-1])
    rows = [[_read(folders[title], name, columns[title]) for title in columns] for name in names]
    heights = [row[-1].shape[0] / row[-1].shape[1] for row in rows]
    width = 10 / len(columns)
    figure, axes = pyplot.subplots(
        len(rows),
        len(columns),
        figsize=(10, width * sum(heights) + 0.3 * len(rows)),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for name, row, line in zip(names, rows, axes, strict=True):
        for title, image, axis in zip(columns, row, line, strict=True):
            if image.shape != row[-1].shape:
                raise InputError(
                    f"{folders[title][name]}: is {image.shape[1]}×{image.shape[0]}, expected the "
                    f"target's {row[-1].shape[1]}×{row[-1].shape[0]}"
                )
            score = "" if image is row[-1] else f", {psnr(image, row[-1], 255):.2f} dB"
            axis.set_title(title + score, fontsize=9)
            axis.imshow(image, interpolation="none")
            axis.set_axis_off()
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=150)
    pyplot.close(figure)


def _read(files: Mapping[str, Path], name: str, folder: str | Path) -> np.ndarray:
    if name not in files:
        raise InputError(f"{folder}: has no image named {name}")
    return read_rgb(files[name])


@command
def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", help="the figure's file")
    parser.add_argument("columns", nargs="+", metavar="TITLE=DIR")
    parser.add_argument("--images", nargs="*", default=[], help="names without suffix")
    options = parser.parse_args(arguments)
    pairs = [column.partition("=") for column in options.columns]
    for title, equals, folder in pairs:
        if not equals or not title or not folder:
            raise InputError(f"{title}{equals}{folder}: expected TITLE=DIR")
    before_after({title: folder for title, _, folder in pairs}, options.output, options.images)
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
