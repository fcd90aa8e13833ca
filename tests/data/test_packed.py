"""Packed files that someone has changed: nothing outside them is read, and nothing that they do not
hold takes memory."""

import resource
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from pictures import noise

from dgunet.base.errors import InputError
from dgunet.data.crops import PackedPairs
from dgunet.images.files import write_image
from dgunet.tools.pack import pack

IMAGE = "target/000000"


def put(file, name, value):
    del file[name]
    file[name] = value


def create(file, name, *arguments, **options):
    del file[name]
    file.create_dataset(name, *arguments, **options)


def virtual(file, other):
    layout = h5py.VirtualLayout((40, 20, 3), "u1")
    layout[:] = h5py.VirtualSource(other, IMAGE, (40, 20, 3))
    del file[IMAGE]
    file.create_virtual_dataset(IMAGE, layout)


def huge(file, other):
    put(file, "sizes", [[200_000, 200_000]])
    create(file, IMAGE, (200_000, 200_000, 3), "u1")


CHANGES = {  # of an open file; `other` is a file with the same image, beside other.raw, its pixels
    "external storage": lambda file, other: create(
        file, IMAGE, (40, 20, 3), "u1", external=[(f"{other}.raw", 0, 2400)]
    ),
    "external link": lambda file, other: put(file, IMAGE, h5py.ExternalLink(other, IMAGE)),
    "external group": lambda file, other: put(file, "target", h5py.ExternalLink(other, "target")),
    "soft link": lambda file, other: put(file, IMAGE, h5py.SoftLink("/degraded/000000")),
    "virtual data set": virtual,
    "references": lambda file, other: put(
        file, IMAGE, np.full((40, 20, 3), file["degraded"].ref, h5py.ref_dtype)
    ),
    "objects": lambda file, other: put(file, "names", ["a" * 10**6]),
    "112 GiB": huge,
    "112 GiB of names": lambda file, other: create(file, "names", (10**9,), "S120"),
    "compressed": lambda file, other: create(
        file, IMAGE, data=np.zeros((40, 20, 3), "u1"), compression=9
    ),
    "a number": lambda file, other: put(file, IMAGE, 7),
    "negative sizes": lambda file, other: put(file, "sizes", [[-5, -5]]),
    "no sizes": lambda file, other: put(file, "sizes", np.zeros((0, 2), int)),
    "sizes of floats": lambda file, other: put(file, "sizes", [[np.nan, 20]]),
    "version": lambda file, other: file.attrs.create("version", np.ones(3)),
    "format": lambda file, other: file.attrs.create("format", [b"dgunet-pairs", b"\x1b"]),
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    for part in ("input", "target"):
        write_image(folder / part / "a.png", noise(40, 20, 3))
    pack(folder, folder / "whole.h5")
    (folder / "other.h5.raw").write_bytes(bytes(2400))
    shutil.copy(folder / "whole.h5", folder / "other.h5")
    return folder


def read(path) -> None:
    data = PackedPairs(path, 16)
    data.read_crop(data.items[0], lambda height, width: (0, 0))


@pytest.mark.parametrize("name", CHANGES)
def test_what_lies_elsewhere_or_nowhere_is_not_read(pairs, tmp_path, name):
    path = tmp_path / "a.h5"
    shutil.copy(pairs / "whole.h5", path)
    read(path)
    with h5py.File(path, "r+") as file:
        CHANGES[name](file, str(pairs / "other.h5"))
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 10**9, before[1]))
    try:
        with pytest.raises(InputError, match=str(path)) as caught:
            read(path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500
