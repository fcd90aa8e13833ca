"""Inputs of every kind, good and broken, made by hypothesis: what is documented comes out, or an
error that is documented. Files are broken in their bytes, and in the structures that they hold.

The suite tries the same few thousand every time. `make fuzz`, or

    python tests/tools/test_fuzz.py --minutes 10

tries others for as long, in processes of their own whose memory is limited, so that a crash of a
decoder is told with the file that caused it. No input may take longer than `SECONDS`.
"""

import argparse
import atexit
import contextlib
import copy
import faulthandler
import io
import json
import math
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from functools import cache
from pathlib import Path

import h5py
import hypothesis.strategies as st
import numpy as np
import pytest
import tifffile
import torch
import yaml
from hypothesis import HealthCheck, given, seed, settings
from hypothesis.extra import numpy as arrays
from PIL import Image
from safetensors.torch import save_file
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
from dgunet.images.photographs import read_photo, write_photo
from dgunet.inference.restorer import Restorer
from dgunet.inference.tiling import spans
from dgunet.model.checkpoint import load_model, save_checkpoint
from dgunet.model.pretrained import read_record, trained_for
from dgunet.model.registry import build_model
from dgunet.scoring.results_folder import ResultsFolder, describe_settings, read_settings
from dgunet.tools.convert import describe, read_network
from dgunet.tools.pack import pack
from dgunet.training.configuration import KEYS, load_config

SECONDS_A_ROUND, SECONDS = 900, 60  # of which no input may take more
MEMORY = 2 * 10**9  # bytes that a process may take for an input
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
    """Return a property and what it is of: of a file, however its bytes were changed, `read` makes
    something, or one of the documented errors."""

    def check(drawn):
        number, changes = drawn
        suffix, data = files()[number % len(files())]
        with in_hand(suffix) as path:
            path.write_bytes(changed(data, changes))
            read_or_refuse(read, path)

    return check, st.tuples(st.integers(0, 17), CHANGES)


@contextlib.contextmanager
def in_hand(suffix):
    """Yield the name of a file to be tried. It stays if that fails."""
    path = FOLDER / f"hand{sum(COUNTS.values())}{suffix}"
    yield path
    path.unlink()


def read_or_refuse(read, path):
    try:
        read(path)
    except (InputError, FileNotFoundError) as error:
        assert str(error)


def bomb(depth=60):
    value = [1]
    for _ in range(depth):
        value = [value, value]
    return value


TEXTS = [
    "",
    "x" * 10**5,
    "\x1b[2J\x07",
    "\0",
    "../..",
    "/dev/zero",
    "nan",
    "9" * 5000,
    "[" * 5000,
    "1e-3",
]
NUMBERS = [None, True, -1, 0, 3, 10**6, 2**31, 2**64, 10**400, 10**5000, 0.5, math.nan, math.inf]
PLAIN = [*TEXTS, *NUMBERS, [], {}, [[]], {"a": [1]}, {"": {}}, bomb(10), bomb()]
TENSORS = [
    lambda: torch.zeros(()),
    lambda: torch.zeros(0),
    lambda: torch.zeros(3, 3).to_sparse(),
    lambda: torch.zeros(3, device="meta"),
    lambda: torch.zeros(1).expand(10**5, 10**5),
    lambda: torch.zeros(8).as_strided((8, 8), (1, 0)),
    lambda: torch.full((3,), math.nan),
    lambda: torch.nn.Parameter(torch.ones(2)),
    lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    *(
        lambda dtype=dtype: torch.zeros(4, dtype=dtype)
        for dtype in (torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.uint16)
    ),
]
ALTERATIONS = st.lists(
    st.tuples(
        st.integers(0, 10**4),
        st.sampled_from(["replace", "delete", "rename", "wrap", "share", "tensor", "cast"]),
        st.integers(0, 10**4),
    ),
    min_size=1,
    max_size=3,
)


def slots(content):
    """Return (container, key) of the first places in nested dicts and lists."""
    found, waiting = [], [content]
    while waiting and len(found) < 5000:
        container = waiting.pop(0)
        pairs = container.items() if isinstance(container, dict) else enumerate(container)
        for key, value in list(pairs):
            found.append((container, key))
            if isinstance(value, dict | list):
                waiting.append(value)
    return found


def altered(content, alterations, tensors=False):
    """Return nested dicts and lists after a few changes of what they hold."""
    content = copy.deepcopy(content)
    for place, action, number in alterations:
        places = slots(content)
        if not places:
            break
        container, key = places[place % len(places)]
        value = container[key]
        if action == "delete" or (action == "rename" and isinstance(container, dict)):
            del container[key]
        if action == "rename" and isinstance(container, dict):
            names = [*TEXTS, 7, None, (1, 2), 0.5] if tensors else TEXTS
            container[names[number % len(names)]] = value
        elif action == "wrap":
            container[key] = [value] if number % 2 else {str(key): value}
        elif action == "share":
            other, source = places[number % len(places)]
            if not isinstance(other[source], dict | list):  # which might hold the place itself
                container[key] = other[source]
        elif action == "tensor" and tensors:
            container[key] = TENSORS[number % len(TENSORS)]()
        elif action == "cast" and isinstance(value, torch.Tensor):
            kinds = [torch.float16, torch.float64, torch.int32, torch.float8_e5m2, torch.complex64]
            container[key] = value.to(kinds[number % len(kinds)])
        elif action != "delete":
            container[key] = copy.deepcopy(PLAIN[number % len(PLAIN)])
    return content


def altered_files(contents, write, read, tensors=False):
    """Return a property and what it is of: of a file of altered content, `read` makes something, or
    one of the documented errors."""

    def check(drawn):
        number, alterations = drawn
        name, content = contents()[number % len(contents())]
        with in_hand(name) as path:
            try:
                write(path, altered(content, alterations, tensors))
            except Exception:  # no such file can be written
                return path.write_bytes(b"")
            read_or_refuse(read, path)

    return check, st.tuples(st.integers(0, 17), ALTERATIONS)


def small_network():
    torch.manual_seed(0)
    return build_model("Denoising", "DGUNet", {"width": 4, "width_step": 0, "stages": 2})


@cache
def checkpoint_contents():
    network = small_network()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    whole = {"state_dict": state, "config": network.config, "epoch": 3, "psnr": 30.0, "made": {}}
    return [(".pth", whole), (".legacy.pth", whole), (".pth", state), (".safetensors", whole)]


def write_checkpoint(path, content):
    if path.suffix == ".pth":
        return torch.save(content, path, _use_new_zipfile_serialization=".legacy" not in path.name)
    if weigh(content) > 10**6:
        raise ValueError("JSON that would not end")
    state = {name: value.contiguous() for name, value in content.pop("state_dict").items()}
    metadata = {str(key): json.dumps(value) for key, value in content.items()}
    save_file(state, path, metadata)


def weigh(content, most=10**6):
    """Return how many values there are, each counted as often as it is referred to."""
    waiting, count = [content], 0
    while waiting and count <= most:
        value = waiting.pop()
        count += 1
        if isinstance(value, dict | list):
            waiting += value.values() if isinstance(value, dict) else value
    return count


def read_any_checkpoint(path):
    network, checkpoint, tasks = read_network(path)
    assert all(
        line.isprintable() for line in describe(path, network, checkpoint, tasks).split("\n")
    )


@cache
def config_contents():
    return [(".yml", yaml.safe_load(data)) for _, data in config_files()]


def write_yaml(path, content):
    path.write_text(yaml.safe_dump(content), encoding="utf-8")


YAML_NODES = (
    """
!!int abc;!!float x;2024-13-45;2024-01-01;!!timestamp x;!!binary x;!!set {a};!!omap [a]
!!python/object/apply:os.system [exit];&a [*a];*none;{<<: [1]};? [1];{<<: {a: 1}};!!null 3;!!bool x
1e999;-.inf;'\\ud800';"\\ud800";|;%TAG;~;=;&a {a: &b [*a, *b]};{a: 1, a: 2}
!!str {};!!seq x;!!map []
""".replace("\n", ";")
    .strip(";")
    .split(";")
)
YAML_NODES += ["[" * 3000, "{a: " * 3000, "9" * 5000, "0x" + "f" * 5000, "1:" * 2000 + "1", "\t"]


def check_yaml_node(drawn):
    """Of a configuration file, with any YAML in the place of a value."""
    place, node, more = drawn
    keys = [*KEYS, "OPTIM", "UNKNOWN", "MODEL.X"]
    section, _, last = keys[place % len(keys)].rpartition(".")
    node = YAML_NODES[node % len(YAML_NODES)] if more is None else more
    with in_hand(".yml") as path:
        text = f"{section}: {{{last}: {node}}}" if section else f"{last}: {node}"
        path.write_text(f"TRAINING: {{TRAIN_DIR: {FOLDER}}}\n{text}\n", "utf-8", "replace")
        read_or_refuse(load_config, path)


def settings_contents():
    made = {"program": "demo.py", "tile": 0, "sizes": {"width": 20}, "overwritten_since": 1.5}
    record = {"trained_for": "x", "training": {"degradation": "fog"}, "cs_ratio": 10, "scores": {}}
    return [(".json", made), (".json", record)]


def write_json(path, content):
    if weigh(content) > 10**6:
        raise ValueError("JSON that would not end")
    path.write_text(json.dumps(content), encoding="utf-8")


def measurement_contents():
    y = np.zeros((1, 11, 1, 2), np.float32)
    fields = {"version": 1, "y": y, "ratio": 1, "height": 20, "width": 40, "phi": "0" * 16}
    coded = {**fields, "y": y.astype(np.uint8)} | dict.fromkeys(("offset", "step"), y[0, :, 0, 0])
    return [(".npz", fields), (".npz", coded)]


def write_npz(path, content):
    """Odd values as they are, arrays of objects among them; shapes that the data does not have."""
    if weigh(content) > 10**6 or not all(map(str.isalnum, content)):
        raise ValueError("no such archive")
    np.savez(path, **content)


PARTS = ("names", "sizes", "target", "degraded", "target/000000", "degraded/000000")
LAYOUTS = (
    "plain",
    "chunks",
    "gzip",
    "external",
    "virtual",
    "soft",
    "link",
    "huge",
    "none",
    "attribute",
)
DTYPES = ("u1", "i8", "f4", "S20", "O", "u1,f8", "(3,)u1", "?", "c8", "V9")
SHAPES = ((), (0,), (1,), (1, 2), (24, 20, 3), (3, 24, 20), (1, 1, 1), (2,) * 32)


def check_packed(drawn):
    """Of a packed file with other data sets, links and attributes in the place of its own."""
    data = packed_files()[0][1]
    with in_hand(".h5") as path:
        path.write_bytes(data)
        with h5py.File(path, "r+") as file:
            for change in drawn:
                with contextlib.suppress(Exception):  # such a file cannot be made
                    alter_packed(file, *change)
        read_or_refuse(read_any_packed, path)


def alter_packed(file, part, layout, dtype, shape, name):
    dtype = h5py.string_dtype() if dtype == "O" else np.dtype(dtype)
    if layout == "attribute":
        value = b"dgunet-pairs" if dtype == "S20" else np.zeros(shape, dtype)
        return file.attrs.create(("format", "version")[len(shape) % 2], value)
    if layout == "soft":
        link = h5py.SoftLink("/" + name)
    elif layout == "link":
        link = h5py.ExternalLink(str(FOLDER / "seed.h5"), name)
    else:
        link = None
    del file[part]
    if link is not None:
        file[part] = link
    elif layout == "virtual":
        source = h5py.VirtualLayout(shape, dtype)
        source[...] = h5py.VirtualSource(str(FOLDER / "seed.h5"), name, shape)
        file.create_virtual_dataset(part, source)
    elif layout != "none":
        huge = tuple(10**4 * side for side in shape) if layout == "huge" else shape
        options = {
            "chunks": {"chunks": True},
            "gzip": {"compression": 9},
            "external": {"external": [(str(FOLDER / "seed.h5"), 0, 10**6)]},
        }.get(layout, {})
        file.create_dataset(part, huge, dtype, **options)


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
    beside = path.with_name("settings.json")
    beside.write_bytes(path.read_bytes())
    settings = read_settings(path.parent)
    assert all(c.isprintable() for c in describe_settings({"a": settings, "b": None}))
    ResultsFolder(path.parent, {"program": "demo.py", "tile": 0}).finished([], overwrite=False)


def read_any_record(path):
    record = read_record(path.with_suffix(".pth"))
    assert record is None or trained_for(record).isprintable()


PROPERTIES = {  # name → what must hold, of what, and how many of them the suite tries
    "tiles": (check_spans, tilings(), 200),
    "tiled images": (check_tiled_is_whole, tiled_images(), 60),
    "images": (check_identity, st.tuples(IMAGES, st.booleans()), 150),
    "anything": (check_anything, ANYTHING, 200),
    "image files": (*broken_files(image_files, read_any_image), 700),
    "photo files": (*broken_files(image_files, read_any_photo), 700),
    "checkpoints": (*broken_files(checkpoint_files, load_model), 300),
    "configurations": (*broken_files(config_files, load_config), 200),
    "packed files": (*broken_files(packed_files, read_any_packed), 200),
    "measurements": (*broken_files(measurement_files, read_measurements), 200),
    "altered checkpoints": (
        *altered_files(checkpoint_contents, write_checkpoint, read_any_checkpoint, tensors=True),
        80,
    ),
    "altered configurations": (*altered_files(config_contents, write_yaml, load_config), 100),
    "YAML nodes": (
        check_yaml_node,
        st.tuples(st.integers(0, 99), st.integers(0, 99), st.none() | st.text(max_size=40)),
        200,
    ),
    "altered packed files": (
        check_packed,
        st.lists(
            st.tuples(*map(st.sampled_from, (PARTS, LAYOUTS, DTYPES, SHAPES, PARTS))),
            min_size=1,
            max_size=3,
        ),
        80,
    ),
    "altered measurements": (
        *altered_files(measurement_contents, write_npz, read_measurements),
        80,
    ),
    "altered settings": (*altered_files(settings_contents, write_json, read_any_settings), 100),
    "altered records": (*altered_files(settings_contents, write_json, read_any_record), 100),
}


def check(name, count, number=None):
    """Try `count` inputs of a property: always the same, or those of a seed."""
    holds, strategy, _ = PROPERTIES[name]

    def counted(drawn):
        COUNTS[name] += 1
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        holds(drawn)
        faulthandler.cancel_dump_traceback_later()

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
    build_model("Denoising")  # what torch maps at first is no part of the limit
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
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
