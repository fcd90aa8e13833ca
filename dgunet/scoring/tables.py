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
    published: Mapping[str, tuple[float, float]] | None = None,
    published_by: str = "published",
) -> str:
    """Return a Markdown table: each set's number of images and mean, and beside it the published
    (PSNR, SSIM) where `published` has the set. Of several sets the last row is the mean of their
    means, published as `mean`.

    >>> print(format_table({"Set": [Score("a", 30.0, 0.8), Score("b", 32.0, 0.9)]}))
    | set   |   images |   PSNR (dB) |   SSIM |
    |:------|---------:|------------:|-------:|
    | Set   |        2 |       31.00 | 0.8500 |
    """
    means = {name: mean_score(scores, name) for name, scores in sets.items()}
    rows = [(name, len(sets[name]), mean) for name, mean in means.items()]
    if len(rows) > 1:
        total = sum(len(scores) for scores in sets.values())
        rows.append(("mean", total, mean_score(list(means.values()))))
    published = published or {}
    shown = any(name in published for name, _, _ in rows)
    table = [["set", "images", "PSNR (dB)", "SSIM"] + [published_by] * shown]
    for name, count, mean in rows:
        table.append(
            [name, str(count), *_figures(mean)] + [_as_printed(published.get(name))] * shown
        )
    return markdown(table[1:], table[0])


def format_images(columns: Mapping[str, Sequence[Score]]) -> str:
    """Return a Markdown table of every image and the mean, with "PSNR / SSIM" in a column for each
    list of scores (such as input and restored), which score the same images in the same order.

    >>> print(format_images({"input": [Score("a", 20, 0.5)], "restored": [Score("a", 30, 0.9)]}))
    | image   |          input |       restored |
    |:--------|---------------:|---------------:|
    | a       | 20.00 / 0.5000 | 30.00 / 0.9000 |
    | mean    | 20.00 / 0.5000 | 30.00 / 0.9000 |
    """
    names = [[score.name for score in scores] for scores in columns.values()]
    if any(others != names[0] for others in names):
        raise ValueError("the columns score different images; expected the same in each")
    rows = [[*scores, mean_score(scores)] for scores in columns.values()]
    table = [["image", *columns]]
    for scores in zip(*rows, strict=True):
        table.append([scores[0].name, *(" / ".join(_figures(score)) for score in scores)])
    return markdown(table[1:], table[0])


def write_csv(
    path: str | Path,
    sets: Mapping[str, Sequence[Score]],
    protocol: str,
    settings: str = "",
) -> None:
    """Write every image's score, in full precision: set, image, psnr, ssim, protocol, settings (a
    text on how the results were made). Its folder is made; the file appears whole or not at all.
    """
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(["set", "image", "psnr", "ssim", "protocol", "settings"])
    for set_name, scores in sets.items():
        for score in scores:
            numbers = [repr(float(score.psnr)), repr(float(score.ssim))]
            writer.writerow([set_name, score.name, *numbers, protocol, settings])
    write_bytes(path, file.getvalue().encode("utf-8"))


def _figures(score: Score) -> list[str]:
    return [f"{score.psnr:.2f}", f"{score.ssim:.4f}"]


def _as_printed(published: tuple[float, float] | None) -> str:
    """Return a published score with the decimals the papers print: three or four of SSIM."""
    if published is None:
        return "–"
    ssim = f"{published[1]:.4f}".removesuffix("0")
    return f"{published[0]:.2f} / {ssim}"
