"""Packed files: image pairs in one HDF5 file, from which a random crop is read without decoding.

`python -m dgunet.tools.pack` writes them; here they are read. The images lie in the file as 8-bit
RGB, uncompressed: a 1280×720 pair takes 5.5 MB.

The file: attributes `format` and `version`; `names` (file names without suffix) and `sizes` (N×2:
height, width); groups `target` and, for pairs, `degraded`, with a dataset H×W×3 for each image.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dgunet.base.errors import InputError

if TYPE_CHECKING:
    import h5py

PACKED_SUFFIXES = (".h5", ".hdf5")
FORMAT, VERSION = "dgunet-pairs", 1


def open_packed(path: str | Path) -> h5py.File:
    """Return a packed file, open for reading.

    Raises `InputError` if it is missing, cut short, or not made by `dgunet.tools.pack`."""
    import h5py

    if not Path(path).is_file():
        raise InputError(f"{path}: does not exist; expected a file made by dgunet.tools.pack")
    file = None
    try:
        # Nothing writes to a packed file, and some network disks know no locks.
        file = h5py.File(path, "r", locking=False)
        found = (file.attrs.get("format"), file.attrs.get("version"))
        if isinstance(found[0], bytes):
            found = (found[0].decode(), found[1])
    except Exception as error:  # a damaged file can raise nearly anything
        if file:
            file.close()
        raise InputError(f"{path}: not HDF5, or cut short ({error})") from error
    if found != (FORMAT, VERSION):
        file.close()
        raise InputError(
            f"{path}: HDF5 of format {found[0]}, version {found[1]}; expected {FORMAT}, version "
            f"{VERSION}, as dgunet.tools.pack writes it"
        )
    return file


def read_index(path: str | Path) -> tuple[list[str], list[tuple[int, int]], bool]:
    """Return the names and sizes (height, width) of the images of a packed file, and whether they
    are pairs. Raises `InputError`."""
    with open_packed(path) as file:
        try:
            names = list(file["names"].asstr("utf-8")[...])
            sizes = [(int(height), int(width)) for height, width in file["sizes"][...]]
            return names, sizes, "degraded" in file
        except Exception as error:  # as above
            raise InputError(f"{path}: damaged ({error}); pack it again") from error


def dataset_name(kind: str, index: int) -> str:
    """Return where image `index` lies in the file; `kind` is "degraded" or "target".

    >>> dataset_name("target", 12)
    'target/000012'
    """
    return f"{kind}/{index:06d}"
