"""Packed files: image pairs in one HDF5 file, from which a random crop is read without decoding.

`python -m dgunet.tools.pack` writes them; here they are read. The images lie in the file as 8-bit
RGB, uncompressed: a 1280×720 pair takes 5.5 MB.

The file: attributes `format` and `version`; `names` (file names without suffix) and `sizes` (N×2:
height, width); groups `target` and, for pairs, `degraded`, with a dataset H×W×3 for each image.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from dgunet.base.errors import InputError, printable
from dgunet.base.files import regular_file

if TYPE_CHECKING:
    import h5py

PACKED_SUFFIXES = (".h5", ".hdf5")
FORMAT, VERSION = "dgunet-pairs", 1
LONGEST_NAME, LONGEST_SIDE = 1000, 10**6  # bytes, pixels


def open_packed(path: str | Path) -> h5py.File:
    """Return a packed file, open for reading.

    Raises `InputError` if it is missing, cut short, or not made by `dgunet.tools.pack`."""
    import h5py

    try:
        regular_file(path, "a file made by dgunet.tools.pack")
    except OSError as error:
        raise InputError(str(error)) from error
    file = None
    try:
        # Nothing writes to a packed file, and some network disks know no locks.
        file = h5py.File(path, "r", locking=False)
        found = (file.attrs.get("format"), file.attrs.get("version"))
        if isinstance(found[0], bytes):
            found = (found[0].decode(), found[1])
        known = found == (FORMAT, VERSION)
    except Exception as error:  # a damaged file can raise nearly anything
        if file:
            file.close()
        raise InputError(f"{path}: not HDF5, or cut short ({printable(error)})") from error
    if not known:
        file.close()
        raise InputError(
            f"{path}: HDF5 of format {printable(found[0])}, version {printable(found[1])}; "
            f"expected {FORMAT}, version {VERSION}, as dgunet.tools.pack writes it"
        )
    return file


def read_index(path: str | Path) -> tuple[list[str], list[tuple[int, int]], bool]:
    """Return the names and sizes (height, width) of the images of a packed file, and whether they
    are pairs. Raises `InputError`."""
    with open_packed(path) as file:
        try:
            names = [name.decode() for name in _dataset(file, "names", "S", (None,))[...]]
            sizes = _dataset(file, "sizes", "iu", (len(names), 2))[...].tolist()
            if any(not 0 < side < LONGEST_SIDE for size in sizes for side in size):
                raise ValueError("sizes that no image has")
            return names, [(height, width) for height, width in sizes], "degraded" in file
        except Exception as error:  # as above
            raise InputError(f"{path}: damaged ({printable(error)}); pack it again") from error


def image(file: h5py.File, kind: str, index: int, size: tuple[int, int]) -> h5py.Dataset:
    """Return the pixels of an image of the index, height×width×3, unread; `kind` is "degraded" or
    "target". Raises `InputError`."""
    name = dataset_name(kind, index)
    try:
        return _dataset(file, name, "u", (*size, 3), itemsize=1)
    except Exception as error:  # as above
        text = f"{file.filename}: {name}: damaged ({printable(error)}); pack it again"
        raise InputError(text) from error


def _dataset(
    file: h5py.File, name: str, kinds: str, shape: tuple, itemsize: int = LONGEST_NAME
) -> h5py.Dataset:
    """Return an `own_dataset`, uncompressed and whole, of a type in `kinds` (NumPy's) of at most
    `itemsize` bytes, and of that shape, None for any length. Datasets that are not whole take any
    amount of memory."""
    found = own_dataset(file, name)
    if found.dtype.kind not in kinds or found.dtype.itemsize > itemsize:
        raise ValueError(f"values of type {found.dtype}")
    if len(found.shape) != len(shape) or any(
        expected not in (None, length) for length, expected in zip(found.shape, shape, strict=True)
    ):
        raise ValueError(f"shape {found.shape}")
    whole = found.nbytes <= min(found.id.get_storage_size(), os.path.getsize(file.filename))
    if not whole or found.id.get_create_plist().get_nfilters():
        raise ValueError("compressed, or not whole")
    return found


def own_dataset(file: h5py.File, name: str | h5py.Reference) -> h5py.Dataset:
    """Return a dataset that lies in the file itself. Raises `ValueError` for links and datasets of
    other kinds, which could lead to other files."""
    import h5py

    parts = name.split("/") if isinstance(name, str) else []
    for end in range(len(parts)):
        if not isinstance(file.get("/".join(parts[: end + 1]), getlink=True), h5py.HardLink):
            raise ValueError("a link")
    found = file[name]
    if not isinstance(found, h5py.Dataset) or found.is_virtual or found.external:
        raise ValueError("no dataset of this file")
    return found


def dataset_name(kind: str, index: int) -> str:
    """Return where image `index` lies in the file; `kind` is "degraded" or "target".

    >>> dataset_name("target", 12)
    'target/000012'
    """
    return f"{kind}/{index:06d}"
