"""Scores as Markdown tables and CSV files."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from tabulate import tabulate

from dgunet.base.errors import printable
from dgunet.base.files import write_bytes
from dgunet.scoring.protocols import Score, mean_score

_NUMBER = re.compile(r"[-+–±]?(\d.*|inf.*|nan)?", re.DOTALL)


def markdown(rows: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    """Return a Markdown table of cells as they are. The first column, and every column of text,
    is aligned to the left; columns of numbers (cells that begin with a digit or sign) to the right.

    >>> print(markdown([["a", "30.00"], ["b", "–"]], ["set", "PSNR (dB)"]))
    | set   |   PSNR (dB) |
    |:------|------------:|
    | a     |       30.00 |
    | b     |           – |
    """
    rows = [[printable(cell) for cell in row] for row in rows]  # names of files among them
    columns = list(zip(*rows, strict=True))
    numbers = [False, *(all(map(_NUMBER.fullmatch, column)) for column in columns[1:])]
    return tabulate(
        rows,
        headers,
        tablefmt="pipe",
        disable_numparse=True,
        colalign=["right" if number else "left" for number in numbers[: len(headers)]],
    )


def format_table(
    sets: Mapping[str, Sequence[Score]],
    published: Mapping[str, tuple[float, float]],
    published_by: str = "published",
) -> str:
    """Return a Markdown table: each set's number of images and mean, and beside it the published
    (PSNR, SSIM) where `published` has the set. Of several sets the last row is the mean of their
    means, published as `mean`.

    >>> print(format_table({"Set": [Score("a", 30.0, 0.8), Score("b", 32.0, 0.9)]}, {}))
    | set   |   images |   PSNR (dB) |   SSIM |
    |:------|---------:|------------:|-------:|
    | Set   |        2 |       31.00 | 0.8500 |
    """
    rows = [(len(scores), mean_score(scores, name)) for name, scores in sets.items()]
    if len(rows) > 1:
        rows.append((sum(map(len, sets.values())), mean_score([mean for _, mean in rows])))
    headers = ["set", "images", "PSNR (dB)", "SSIM"]
    cells = [[mean.name, str(count), *_figures(mean)] for count, mean in rows]
    if any(mean.name in published for _, mean in rows):
        headers.append(published_by)
        for row in cells:
            row.append(_as_printed(*published[row[0]]) if row[0] in published else "–")
    return markdown(cells, headers)


def format_images(columns: Mapping[str, Sequence[Score]]) -> str:
    """Return a Markdown table of every image and the mean, with "PSNR / SSIM" in a column for each
    list of scores (such as input and restored), which score the same images in the same order.

    >>> print(format_images({"input": [Score("a", 20, 0.5)], "restored": [Score("a", 30, 0.9)]}))
    | image   |          input |       restored |
    |:--------|---------------:|---------------:|
    | a       | 20.00 / 0.5000 | 30.00 / 0.9000 |
    | mean    | 20.00 / 0.5000 | 30.00 / 0.9000 |
    """
    lists = [[*scores, mean_score(scores)] for scores in columns.values()]
    rows = [
        [of_image[0].name, *(" / ".join(_figures(score)) for score in of_image)]
        for of_image in zip(*lists, strict=True)
    ]
    return markdown(rows, ["image", *columns])


def write_csv(
    path: str | Path, sets: Mapping[str, Sequence[Score]], protocol: str, settings: str
) -> None:
    """Write every image's score, in full precision: set, image, psnr, ssim, protocol, settings (a
    text on how the results were made)."""
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(["set", "image", "psnr", "ssim", "protocol", "settings"])
    for name, scores in sets.items():
        for score in scores:
            numbers = [float(score.psnr), float(score.ssim)]
            writer.writerow([name, score.name, *numbers, protocol, settings])
    write_bytes(path, file.getvalue().encode())


def _figures(score: Score) -> list[str]:
    return [f"{score.psnr:.2f}", f"{score.ssim:.4f}"]


def _as_printed(psnr: float, ssim: float) -> str:
    """Return a published score with the decimals the papers print: three or four of SSIM."""
    return f"{psnr:.2f} / {f'{ssim:.4f}'.removesuffix('0')}"
