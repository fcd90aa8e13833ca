"""Pack a data folder into one HDF5 file, from which training reads crops without decoding.

    python -m dgunet.tools.pack Datasets/train train.h5

packs the pairs of `input/` and `target/` (or, of a folder without these, its photographs alone).
`TRAINING.TRAIN_DIR train.h5` trains on the same samples as from the folder. `dgunet.data.packed`
describes the file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from dgunet.base.errors import InputError, command
from dgunet.base.files import replacing
from dgunet.base.options import new_parser
from dgunet.base.threads import thread_count
from dgunet.data.packed import FORMAT, PACKED_SUFFIXES, VERSION, dataset_name, read_index
from dgunet.images.files import list_images, pair_by_name, read_rgb
from dgunet.images.sizes import by

# A crop of 256×256 out of 1280×720 reads 25 chunks of 64×64 at most, 0.3 MB; without chunks the
# rows it touches are read whole, 1 MB. In small images there is little to save, and chunks at the
# border waste room.
CHUNK = 64
CHUNKED_FROM = 512 * 512


def pack(folder: str | Path, path: str | Path, *, jobs: int = -1, overwrite: bool = False) -> int:
    """Pack the images of `folder` into the HDF5 file `path` and return how many pairs (or
    photographs) it holds. The file appears whole or not at all. `jobs` pairs are decoded at once
    (-1: as many as there are cores).

    Raises `InputError` for images without a partner, of different size or unreadable, and
    `FileExistsError` if the file exists, unless `overwrite`.
    """
    import h5py
    from tqdm import tqdm

    folder, path = Path(folder), Path(path)
    jobs = thread_count(jobs)
    if path.suffix.lower() not in PACKED_SUFFIXES:
        raise InputError(f"{path}: expected a name that ends in {' or '.join(PACKED_SUFFIXES)}")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path}: exists already; nothing written (--overwrite replaces it)")
    if (folder / "input").is_dir() or (folder / "target").is_dir():
        kinds, files = ("degraded", "target"), pair_by_name(folder / "input", folder / "target")
    else:
        kinds, files = ("target",), [(photograph,) for photograph in list_images(folder)]

    sizes = np.empty((len(files), 2), np.int32)
    # v110 is read by every HDF5 since 2016 and finds a chunk faster than the oldest format.
    with replacing(path) as partial:
        with h5py.File(partial, "x", libver=("v110", "v110")) as packed:
            # Strings of fixed length: in the heap of others, HDF5 loops forever if it is damaged.
            packed.attrs["format"], packed.attrs["version"] = np.bytes_(FORMAT), VERSION
            bar = tqdm(_decoded(files, jobs), "packing", len(files), disable=None)
            for index, images in enumerate(bar):
                sizes[index] = images[0].shape[:2]
                for kind, image in zip(kinds, images, strict=True):
                    large = image.size >= 3 * CHUNKED_FROM and min(image.shape[:2]) >= CHUNK
                    chunks = (CHUNK, CHUNK, 3) if large else None
                    packed.create_dataset(dataset_name(kind, index), data=image, chunks=chunks)
            packed["names"] = np.array([paths[0].stem.encode() for paths in files])
            packed["sizes"] = sizes
        with partial.open("rb") as written:
            os.fsync(written.fileno())
    return len(files)


def _decoded(files: Sequence[tuple[Path, ...]], jobs: int) -> Iterator[list[np.ndarray]]:
    """Yield the images of every tuple of files, in order, decoded a few tuples ahead."""
    with ThreadPoolExecutor(jobs) as pool:
        for start in range(0, len(files), 2 * jobs):
            yield from pool.map(_read_equal, files[start : start + 2 * jobs])


def _read_equal(paths: tuple[Path, ...]) -> list[np.ndarray]:
    images = [read_rgb(path) for path in paths]
    for path, image in zip(paths, images, strict=True):
        if image.shape != images[0].shape:
            raise InputError(
                f"{paths[0]}: {by(images[0].shape)} pixels, its target {path} {by(image.shape)}; "
                "expected equal sizes"
            )
    return images


@command
def main(arguments: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("folder", help="folder with input/ and target/, or of photographs")
    parser.add_argument("file", help="the HDF5 file to write (.h5)")
    text = "pairs decoded at once (default: one per core)"
    parser.add_argument("--jobs", type=int, default=-1, help=text)
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
    args = parser.parse_args(arguments)
    count = pack(args.folder, args.file, jobs=args.jobs, overwrite=args.overwrite)
    size = Path(args.file).stat().st_size / 2**20
    what = "pairs" if read_index(args.file)[2] else "photographs"
    print(f"{args.file}: {count} {what}, {size:,.0f} MiB")


if __name__ == "__main__":
    main()
