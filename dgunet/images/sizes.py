"""Sizes of image files: read from the header, and compared within pairs."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from dgunet.base.errors import InputError, first_few
from dgunet.base.files import regular_file
from dgunet.base.threads import in_parallel
from dgunet.images.files import read_rgb

_THREADS = 16  # reading headers is mostly waiting, above all on a network disk


def image_size(path: str | Path) -> tuple[int, int]:
    """Return height and width of an image from its header, without decoding it where Pillow can
    tell. Raises `InputError`."""
    regular_file(path, "an image")
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return read_rgb(path).shape[:2]


def check_sizes(pairs: Sequence[tuple[Path, Path]], *, ignore_unreadable: bool = False) -> None:
    """Check that the two images of every pair are of one size, without decoding them. Raises
    `InputError` if pairs differ in size or, unless ignored, files are unreadable; it says how many,
    and names the first few."""

    def size(path: Path) -> tuple[int, int] | None:
        try:
            return image_size(path)
        except (InputError, OSError):
            return None

    files = [path for pair in pairs for path in pair]
    sizes = list(in_parallel(size, files, _THREADS))
    unreadable = [path for path, found in zip(files, sizes, strict=True) if found is None]
    if unreadable and not ignore_unreadable:
        raise InputError(f"{len(unreadable)} files are no readable images: {first_few(unreadable)}")
    different = [
        f"{pair[0]} ({by(first)}, its target {by(second)})"
        for pair, first, second in zip(pairs, sizes[::2], sizes[1::2], strict=True)
        if first and second and first != second
    ]
    if different:
        raise InputError(
            f"{len(different)} of {len(pairs)} pairs differ in size: {first_few(different)}"
        )


def by(size: Sequence[int]) -> str:
    """Return a size (height, width, …) as it is written, width first.

    >>> by((720, 1280, 3))
    '1280×720'
    """
    return f"{size[1]}×{size[0]}"
