"""The files of SIDD (Abdelhamed, Lin and Brown, "A High-Quality Denoising Dataset for Smartphone
Cameras", CVPR 2018): pairs of photographs, and the blocks of its benchmark in MAT files."""

from pathlib import Path

import numpy as np
from natsort import natsorted

from dgunet.base.errors import InputError, first_few
from dgunet.base.files import regular_file
from dgunet.images.files import IMAGE_SUFFIXES

NOISY_BLOCKS, CLEAN_BLOCKS = "ValidationNoisyBlocksSrgb", "ValidationGtBlocksSrgb"


def sidd_pairs(folder: str | Path) -> list[tuple[Path, Path, str]]:
    """Return noisy image, ground truth and a name unique in `folder` for each of SIDD's pairs in or
    below it: `SCENE/0001_NOISY_SRGB_010.PNG`, `SCENE/0001_GT_SRGB_010.PNG`, "SCENE-0001_010".

    Raises `InputError` if one lacks its ground truth.
    """
    found = [
        path
        for path in Path(folder).rglob("*NOISY*")
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    ]
    pairs = [
        (
            path,
            path.with_name(path.name.replace("NOISY", "GT")),
            f"{path.parent.name}-{path.stem.replace('NOISY_SRGB_', '')}",
        )
        for path in natsorted(found, key=str)
    ]
    if missing := [truth for _, truth, _ in pairs if not truth.is_file()]:
        raise InputError(f"{len(missing)} files missing, each ground truth: {first_few(missing)}")
    return pairs


def read_blocks(path: str | Path, variable: str, floats: bool = False) -> np.ndarray:
    """Return blocks in a MAT file (v5), images×blocks×height×width×3 (40×32×256×256×3 in the SIDD
    benchmark): uint8 or, with `floats`, perhaps float in [0, 1].

    Raises `InputError` for a file that is no such one, `FileNotFoundError` where there is none.
    """
    from scipy.io import loadmat

    regular_file(path, f"a MAT file with {variable}")
    try:
        contents = loadmat(path, variable_names=[variable])
    except NotImplementedError as error:
        raise InputError(f"{path}: is MAT v7.3 (HDF5); expected v5, as save -v7 writes") from error
    except Exception as error:  # a damaged file makes loadmat raise anything
        raise InputError(f"{path}: cannot be read as a MAT file ({error})") from error
    if variable not in contents:
        raise InputError(f"{path}: has no variable {variable}")
    blocks = contents[variable]
    right_type = blocks.dtype == np.uint8 or (floats and blocks.dtype.kind == "f")
    if not right_type or blocks.ndim != 5 or blocks.shape[-1] != 3 or not blocks.size:
        raise InputError(
            f"{path}: {variable} is {blocks.dtype} {blocks.shape}; expected uint8 "
            f"{'or float ' if floats else ''}images×blocks×height×width×3"
        )
    return blocks


def block_name(index: tuple[int, ...]) -> str:
    """Return the name of a block's picture.

    >>> block_name((0, 31))
    '0001_32'
    """
    return f"{index[0] + 1:04d}_{index[1] + 1:02d}"
