"""Inputs of every kind, good and broken, made by hypothesis: what is documented comes out, or an
error that is documented.

The suite tries the same few thousand every time. `make fuzz`, or

    python tests/tools/test_fuzz.py --minutes 10

tries others for as long, in processes of their own, so that a crash of a decoder is told with the
file that caused it.
"""

import argparse
import atexit
import io
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from functools import cache
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import tifffile
import torch
import yaml
from hypothesis import HealthCheck, given, seed, settings
from hypothesis.extra import numpy as arrays
from PIL import Image
from torch import nn

from dgunet.base.errors import InputError
from dgunet.Compressive_Sensing.measure import (
    Measurements,
    measurement_rows,
    read_measurements,
    write_measurements,
)
from dgunet.data.crops import PackedPairs
from dgunet.data.packed import read_index
from dgunet.images.files import read_image, write_image
from dgunet.images.photographs import Photo, read_photo, write_photo
from dgunet.inference.restorer import Restorer
from dgunet.inference.tiling import spans
from dgunet.model.checkpoint import load_model, save_checkpoint
from dgunet.model.registry import build_model
from dgunet.scoring.evaluate import read_settings
from dgunet.tools.pack import pack
from dgunet.training.configuration import KEYS, load_config

SECONDS_A_ROUND = 900
COUNTS: Counter = Counter()  # property → inputs tried
FOLDER = Path(tempfile.mkdtemp(prefix="fuzz"))  # where the file in hand lies
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)


class Blur(nn.Module):
    """A stand-in for a network, that looks `radius` pixels far; of radius 0 the identity."""

    channels, sizes = 3, {"width": 4, "width_step": 4, "stages": 1}
    multiple_of, min_long_side, padding = 8, 16, "reflect"
    optimized = False

    def __init__(self, radius):
        super().__init__()
        self.radius = radius

    def forward(self, image):
        size = 2 * self.radius + 1
        return [nn.functional.avg_pool2d(image, size, 1, self.radius) if self.radius else image]


@st.composite
def tilings(draw):
    """Tile, overlap and multiple that fit together, and sizes around them."""
    multiple = draw(st.sampled_from([1, 2, 8, 32]))
    overlap = 2 * multiple * draw(st.integers(0, 4))
    tile = multiple * draw(st.integers(max(1, 3 * overlap // multiple), 40))
    return draw(st.integers(1, 6 * tile)), tile, overlap, multiple


def check_spans(drawn):
    size, tile, overlap, multiple = drawn
    cut = spans(size, tile, overlap, multiple)
    total = np.zeros(size)
    for span in cut:
        assert span.start % multiple == 0 and 0 < span.stop - span.start <= tile
        assert (span.weights >= 0).all() and (span.weights <= 1).all()
        total[span.start : span.stop] += span.weights.numpy()
        inner = slice(
            overlap // 4 if span.start else 0,
            span.stop - span.start - (overlap // 4 if span.stop < size else 0),
        )
        outside = span.weights.clone()
        outside[inner] = 0
        assert not outside.any()  # the outer quarter of the overlap
    np.testing.assert_allclose(total, 1, atol=1e-5)


@st.composite
def tiled_images(draw):
    overlap = 16 * draw(st.integers(0, 3))
    tile = 8 * draw(st.integers(max(2, 3 * overlap // 8), 20))
    sides = st.integers(1, 2 * tile + 40)
    return (draw(sides), draw(sides)), tile, overlap, draw(st.integers(0, overlap // 4))


def check_tiled_is_whole(drawn):
    size, tile, overlap, radius = drawn
    image = np.random.default_rng(0).random((*size, 3), np.float32)
    whole = Restorer(Blur(radius), device="cpu", tile=0)(image)
    tiled = Restorer(Blur(radius), device="cpu", tile=tile, tile_overlap=overlap)(image)
    np.testing.assert_allclose(tiled, whole, atol=1e-5)


IMAGES = arrays.arrays(
    st.sampled_from([np.uint8, np.uint16, np.float16, np.float32, np.float64]),
    st.one_of(
        st.tuples(st.integers(1, 40), st.integers(1, 40)),
        st.tuples(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3, 4])),
        st.tuples(*[st.integers(1, 20)] * 3, st.sampled_from([1, 3, 4])),
    ),
    elements={"min_value": 0, "max_value": 1},
)


def check_identity(drawn):
    image, as_tensor = drawn
    restorer = Restorer(Blur(0), device="cpu", tile=16, tile_overlap=0)
    if as_tensor and image.ndim > 2:
        tensor = torch.from_numpy(np.moveaxis(image, -1, -3).copy())
        restored = restorer(tensor)
        assert restored.dtype == tensor.dtype and restored.shape == tensor.shape
        restored = np.moveaxis(restored.numpy(), -3, -1)
    else:
        restored = restorer(image)
    assert restored.dtype == image.dtype and restored.shape == image.shape
    np.testing.assert_allclose(restored, image, atol=1e-3 if image.dtype == np.float16 else 1e-6)


ANYTHING = st.one_of(
    arrays.arrays(
        st.one_of(arrays.scalar_dtypes(), st.just(np.dtype(object))),
        arrays.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=5),
    ),
    st.lists(st.integers()),
    st.none(),
    st.text(),
)


def check_anything(image):
    try:
        restored = Restorer(Blur(0), device="cpu")(image)
    except InputError:
        return
    assert restored.dtype == image.dtype and restored.shape == image.shape


PHOTOS = st.tuples(
    st.sampled_from(["PNG", "TIFF", "BMP", "JPEG", "WEBP"]),
    st.sampled_from([np.uint8, np.uint16]),
    st.integers(1, 40),
    st.integers(1, 40),
    st.booleans(),
    st.booleans(),
    st.integers(1, 8),
)


def check_photo(drawn):
    kind, dtype, height, width, colour, transparent, orientation = drawn
    if dtype == np.uint16 and (kind not in ("PNG", "TIFF") or (transparent and not colour)):
        return
    if (transparent and kind in ("JPEG", "BMP")) or (not colour and kind == "WEBP"):
        return
    rng, top = np.random.default_rng(0), np.iinfo(dtype).max
    pixels = (rng.random((height, width, 3) if colour else (height, width)) * top).astype(dtype)
    alpha = (rng.random((height, width)) * top).astype(dtype) if transparent else None
    metadata = {"lossless": True} if kind == "WEBP" else {}
    path = FOLDER / "photo"
    write_photo(path, Photo(pixels, alpha, kind, orientation, metadata), pixels)
    again = read_photo(path)
    stored = again.pixels
    if orientation > 4:  # nothing in the file says how it was turned: it comes back as stored
        stored = stored.swapaxes(0, 1)
    assert again.format == kind and stored.shape == pixels.shape and stored.dtype == dtype
    assert (again.alpha is None) == (alpha is None)
    if kind != "JPEG":
        assert np.array_equal(np.sort(stored, axis=None), np.sort(pixels, axis=None))


def encoded(array, kind, mode=None, **options):
    buffer = io.BytesIO()
    picture = Image.fromarray(array)
    (picture.convert(mode) if mode else picture).save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(array, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, metadata=None, **options)
    return buffer.getvalue()


@cache
def image_files():
    rng = np.random.default_rng(0)
    rgb, grey = (
        rng.integers(0, 256, (20, 24, 3), np.uint8),
        rng.integers(0, 256, (20, 24), np.uint8),
    )
    return [
        (".png", encoded(rgb, "PNG", icc_profile=b"x" * 200, dpi=(72, 72))),
        (".png", encoded(rgb, "PNG", "P")),
        (".png", encoded(grey, "PNG", "LA")),
        (".png", encoded(grey.astype(np.uint16) * 257, "PNG")),
        (".jpg", encoded(rgb, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0")),
        (".jpg", encoded(rgb, "JPEG", "CMYK")),
        (".jpg", encoded(rgb, "JPEG", progressive=True)),
        (".tif", tiff(rgb, photometric="rgb", compression="zlib")),
        (".tif", tiff(grey.astype(np.uint16), byteorder=">")),
        (".tif", encoded(rgb, "TIFF", compression="tiff_lzw")),
        (".tif", encoded(rgb, "TIFF", "CMYK")),
        (".webp", encoded(rgb, "WEBP")),
        (".webp", encoded(rgb, "WEBP", lossless=True)),
        (".bmp", encoded(rgb, "BMP")),
    ]


@cache
def checkpoint_files():
    network = build_model("Denoising", "DGUNet", {"width": 4, "width_step": 0, "stages": 2})
    path = FOLDER / "seed.pth"
    save_checkpoint(path, network)
    legacy = io.BytesIO()
    content = {"state_dict": network.state_dict(), "config": network.config, "epoch": 3}
    torch.save(content, legacy, _use_new_zipfile_serialization=False)
    save_checkpoint(path.with_suffix(".safetensors"), network)
    return [
        (".pth", path.read_bytes()),
        (".pth", legacy.getvalue()),
        (".safetensors", path.with_suffix(".safetensors").read_bytes()),
    ]


@cache
def config_files():
    published = {
        "GPU": [0, 1],
        "MODEL": {"MODE": "Denoising", "SESSION": "DGUNet"},
        "OPTIM": {"BATCH_SIZE": 16, "LR_INITIAL": "1e-4", "NUM_EPOCHS": 80},
        "TRAINING": {"TRAIN_PS": 128, "TRAIN_DIR": str(FOLDER), "VAL_DIR": ""},
    }
    whole: dict = {}
    for name, key in KEYS.items():
        section, _, last = name.rpartition(".")
        (whole.setdefault(section, {}) if section else whole)[last] = key.default
    whole["TRAINING"]["TRAIN_DIR"] = str(FOLDER)
    return [(".yml", yaml.safe_dump(content).encode()) for content in (published, whole)]


@cache
def packed_files():
    for part in ("input", "target"):
        write_image(FOLDER / "pairs" / part / "a.png", np.zeros((24, 20, 3), np.uint8))
    pack(FOLDER / "pairs", FOLDER / "seed.h5", overwrite=True)
    return [(".h5", (FOLDER / "seed.h5").read_bytes())]


@cache
def measurement_files():
    y = torch.rand(1, measurement_rows(1), 1, 2)
    for name, bits in (("plain", 0), ("bits", 8)):
        write_measurements(FOLDER / f"{name}.npz", Measurements(y, 1, 20, 40, "0" * 16), bits)
    return [(".npz", (FOLDER / f"{name}.npz").read_bytes()) for name in ("plain", "bits")]


def settings_files():
    return [(".json", b'{"program": "demo.py", "tile": 0, "sizes": {"width": 20}}')]


CHANGES = st.lists(
    st.tuples(
        st.integers(0, 7),
        st.integers(0, 2**20) | st.integers(0, 64),  # where: often in the header
        st.integers(1, 64),
        st.sampled_from([0, 1, 0x7F, 0xFF, 0x7FFFFFFF, 0xFFFFFFFF, 60_000]),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=4,
)


def changed(data, changes):
    """Return a file's bytes after a few changes, as disks, transfers and people make them."""
    data = bytearray(data)
    for kind, place, length, number, byte in changes:
        at = place % (len(data) + 1)
        if kind == 0:
            del data[at:]
        elif kind == 1:
            del data[at : at + length]
        elif kind == 2:
            data[at:at] = data[at : at + length] * (byte % 40)
        elif kind == 3:
            data[at:at] = bytes([byte]) * length
        elif kind == 4:
            data[at : at + 4] = number.to_bytes(4, "big" if byte % 2 else "little")
        elif at < len(data):
            data[at] = byte if kind < 7 else data[at] ^ 1 << byte % 8
    return bytes(data)


def broken_files(files, read):
    """Return a property and what it is of: of a file, however it was changed, `read` makes
    something, or one of the documented errors."""

    def check(drawn):
        number, changes = drawn
        suffix, data = files()[number % len(files())]
        path = FOLDER / f"hand{sum(COUNTS.values())}{suffix}"
        path.write_bytes(changed(data, changes))
        try:
            read(path)
        except (InputError, FileNotFoundError) as error:
            assert str(error)
        path.unlink()

    return check, st.tuples(st.integers(0, 17), CHANGES)


def read_any_image(path):
    array = read_image(path)
    assert array.dtype in (np.uint8, np.uint16) and array.ndim in (2, 3) and array.size


def read_any_photo(path):
    photo = read_photo(path, max_pixels=1_000_000)
    assert photo.pixels.shape[2:] in ((), (3,)) and photo.pixels.size
    assert photo.alpha is None or photo.alpha.shape == photo.pixels.shape[:2]
    write_photo(path.with_name("result"), photo, photo.pixels)


def read_any_packed(path):
    read_index(path)
    data = PackedPairs(path, 16)
    for item in data.items[:3]:
        data.read_crop(item, lambda height, width: (0, 0))
    data._file.close()


def read_any_settings(path):
    path.with_name("settings.json").write_bytes(path.read_bytes())
    read_settings(path.parent)


PROPERTIES = {  # name → what must hold, of what, and how many of them the suite tries
    "tiles": (check_spans, tilings(), 200),
    "tiled images": (check_tiled_is_whole, tiled_images(), 60),
    "images": (check_identity, st.tuples(IMAGES, st.booleans()), 150),
    "anything": (check_anything, ANYTHING, 200),
    "photos": (check_photo, PHOTOS, 300),
    "image files": (*broken_files(image_files, read_any_image), 700),
    "photo files": (*broken_files(image_files, read_any_photo), 700),
    "checkpoints": (*broken_files(checkpoint_files, load_model), 300),
    "configurations": (*broken_files(config_files, load_config), 200),
    "packed files": (*broken_files(packed_files, read_any_packed), 200),
    "measurements": (*broken_files(measurement_files, read_measurements), 200),
    "settings": (*broken_files(settings_files, read_any_settings), 100),
}


def check(name, count, number=None):
    """Try `count` inputs of a property: always the same, or those of a seed."""
    holds, strategy, _ = PROPERTIES[name]

    def counted(drawn):
        COUNTS[name] += 1
        holds(drawn)

    counted.__qualname__ = name
    test = settings(
        max_examples=count,
        derandomize=number is None,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )(given(strategy)(counted))
    (test if number is None else seed(number)(test))()


@pytest.mark.parametrize("name", PROPERTIES)
def test_property(name):
    check(name, PROPERTIES[name][2])
    assert COUNTS[name] >= PROPERTIES[name][2] / 2


def run_round(name, count, number, results):
    messages = (FOLDER / "messages").open("w")  # decoders write to it too, past Python
    os.dup2(messages.fileno(), sys.stderr.fileno())
    try:
        check(name, count, number)
    finally:
        results.put(COUNTS[name])


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--only", choices=PROPERTIES, help="one property")
    options = parser.parse_args()
    end, total, number = time.monotonic() + 60 * options.minutes, Counter(), int(time.time())
    names = [options.only] if options.only else list(PROPERTIES)
    while time.monotonic() < end:
        number += 1
        for name in names:
            if time.monotonic() > end:
                break
            results = multiprocessing.Queue()
            count = 2 * PROPERTIES[name][2]
            process = multiprocessing.Process(target=run_round, args=(name, count, number, results))
            process.start()
            process.join(SECONDS_A_ROUND)
            if process.is_alive():
                process.kill()  # what it waits for in C, nothing else ends
                process.join()
            if process.exitcode:
                atexit.unregister(shutil.rmtree)
                print((FOLDER / "messages").read_text(errors="replace")[-5000:])
                print(f"{name}, seed {number}: exit code {process.exitcode}; last file in {FOLDER}")
                sys.exit(1)
            total[name] += results.get()
    print(f"{sum(total.values()):,} inputs in {options.minutes:g} minutes, no failure:")
    print(", ".join(f"{name} {count:,}" for name, count in total.items()))


if __name__ == "__main__":
    main()
