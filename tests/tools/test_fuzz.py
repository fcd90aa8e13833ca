"""Broken files of every kind, made by hypothesis: they are read, or an error is raised that is
documented. They are broken in their bytes, and in the structures that they hold.

The suite tries the same thousand every time. `make fuzz`, or

    PYTHONPATH=tests python tests/tools/test_fuzz.py --minutes 10

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
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from training_runs import trainer_for, write_pairs

from dgunet.base.errors import InputError
from dgunet.Compressive_Sensing.measure import (
    Measurements,
    read_measurements,
    write_measurements,
)
from dgunet.data.crops import PackedPairs
from dgunet.data.packed import read_index
from dgunet.images.files import read_image, write_image
from dgunet.images.photographs import read_photo, write_photo
from dgunet.model.checkpoint import load_model, read_checkpoint
from dgunet.model.pretrained import read_record, trained_for
from dgunet.model.registry import build_model
from dgunet.scoring.results_folder import ResultsFolder, describe_settings, read_settings
from dgunet.tools.convert import describe, read_network
from dgunet.tools.pack import pack
from dgunet.training.configuration import KEYS, load_config
from dgunet.training.state import load_state

SECONDS_A_ROUND, SECONDS = 900, 60  # of which no input may take more
MEMORY = 2 * 10**9  # bytes that a process may take for an input
COUNTS: Counter = Counter()  # property → inputs tried
FOLDER = Path(tempfile.mkdtemp(prefix="fuzz"))  # where the file in hand lies
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)


# Whole files: functions that return (suffix, bytes), or (suffix, content) and how it is written.


def encoded(array, kind, mode=None, **options):
    buffer, picture = io.BytesIO(), Image.fromarray(array)
    (picture.convert(mode) if mode else picture).save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(array, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, metadata=None, **options)
    return buffer.getvalue()


@cache
def image_files():
    rgb = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)
    grey = rgb[..., 0].copy()
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
def packed_files():
    for part in ("input", "target"):
        write_image(FOLDER / "pairs" / part / "a.png", np.zeros((24, 20, 3), np.uint8))
    pack(FOLDER / "pairs", FOLDER / "seed.h5", overwrite=True)
    return [(".h5", (FOLDER / "seed.h5").read_bytes())]


@cache
def checkpoints():
    torch.manual_seed(0)
    network = build_model("Denoising", "DGUNet", {"width": 4, "width_step": 0, "stages": 2})
    state = {name: value.clone() for name, value in network.state_dict().items()}
    whole = {"state_dict": state, "config": network.config, "epoch": 3, "psnr": 30.0, "made": {}}
    return [(".pth", whole), (".legacy.pth", whole), (".pth", state), (".safetensors", whole)]


def write_checkpoint(path, content):
    if path.suffix == ".pth":
        return torch.save(content, path, _use_new_zipfile_serialization=".legacy" not in path.name)
    state = {name: value.contiguous() for name, value in content.pop("state_dict").items()}
    require_an_end(content)
    save_file(state, path, {str(key): json.dumps(value) for key, value in content.items()})


@cache
def new_run():
    """A run of one epoch that has not begun, and one like it that has ended."""
    folder = Path(tempfile.mkdtemp(dir=FOLDER))
    data, keys = write_pairs(folder / "data"), {"OPTIM__EMA": 0.9, "OPTIM__NUM_EPOCHS": 1}
    with contextlib.redirect_stdout(io.StringIO()):
        ended = trainer_for(data, folder / "ended", **keys)
        ended.run()
        new = trainer_for(data, folder / "new", **keys)
    new.log.line = lambda text: None
    return new, ended


def training_states():
    return [(".pth", read_checkpoint(new_run()[1].latest))]


def configurations():
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
    return [(".yml", published), (".yml", yaml.safe_load(yaml.safe_dump(whole)))]


def write_yaml(path, content):
    path.write_text(yaml.safe_dump(content), encoding="utf-8")


@cache
def measurements():
    y, path = torch.rand(1, 11, 1, 2), FOLDER / "seed.npz"
    found = []
    for bits in (0, 8):
        write_measurements(path, Measurements(y, 1, 20, 40, "0" * 16), bits)
        found.append((".npz", dict(np.load(path))))
    return found


def write_npz(path, content):
    """Odd values as they are, arrays of objects among them; shapes that the data does not have."""
    require_an_end(content)
    if not all(map(str.isalnum, content)):
        raise ValueError("no such archive")
    save = np.savez_compressed if "step" in content else np.savez
    save(path, **content)


def notes():
    made = {"program": "demo.py", "tile": 0, "sizes": {"width": 20}}
    record = {"trained_for": "x", "training": {"degradation": "fog"}, "cs_ratio": 10, "scores": {}}
    return [(".json", made), (".json", record)]


def write_json(path, content):
    require_an_end(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def require_an_end(content, most=10**6):
    """Raise `ValueError` for more values than a file can hold, each counted as often as it is
    referred to."""
    waiting, count = [content], 0
    while waiting:
        value = waiting.pop()
        count += 1
        if count > most:
            raise ValueError("a file that would not end")
        if isinstance(value, dict | list):
            waiting += value.values() if isinstance(value, dict) else value


# Changes of them: strategies of a suffix and a function that writes the file.


@st.composite
def broken(draw, files):
    """Files after a few changes of their bytes, as disks, transfers and people make them."""
    suffix, data = draw(st.sampled_from(files()))
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, min(64, len(data))) | st.integers(0, len(data)))  # header: often
        numbers = st.sampled_from([0, 1, 0x7F, 0xFF, 0x7FFFFFFF, 0xFFFFFFFF, 60_000])
        piece = draw(
            st.binary(max_size=1)
            | st.binary(max_size=64)
            | st.builds(int.to_bytes, numbers, st.just(4), st.sampled_from(["big", "little"]))
            | st.just(bytes(data[at : at + 64] * 20))
        )
        gone = draw(st.sampled_from([len(piece), len(piece), 0, 1, 30, len(data)]))
        data[at : at + gone] = piece
    return suffix, lambda path: path.write_bytes(data)


def bomb(depth):
    value = [1]
    for _ in range(depth):
        value = [value, value]
    return value


TEXTS = ("", "x" * 10**5, "\x1b[2J\x07", "\0", "../..", "/dev/zero", "nan", "9" * 5000, "1e-3")
NUMBERS = (None, True, -1, 0, 3, 10**6, 2**31, 2**64, 10**400, 10**5000, 0.5, math.nan, math.inf)
CONTAINERS = ([], {}, [[]], {"a": [1]}, {"": {}}, bomb(10), bomb(60))
PLAIN = [*TEXTS, "[" * 5000, *NUMBERS, *CONTAINERS]
NAMES = [*TEXTS, 7, None, (1, 2), 0.5]
DTYPES = (torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.uint16)
CASTS = (*DTYPES, torch.float16, torch.float64, torch.int32, torch.float8_e5m2)
TENSORS = [
    lambda: torch.zeros(()),
    lambda: torch.zeros(0),
    lambda: torch.zeros(3, 3).to_sparse(),
    lambda: torch.zeros(3, device="meta"),
    lambda: torch.zeros(1).expand(10**5, 10**5),
    lambda: torch.zeros(8).as_strided((8, 8), (1, 0)),
    lambda: torch.full((3,), math.nan),
    lambda: nn.Parameter(torch.ones(2)),
    lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    *(lambda dtype=dtype: torch.zeros(4, dtype=dtype) for dtype in DTYPES),
]


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


def cast(value, dtype):
    with contextlib.suppress(RuntimeError):  # not every kind of tensor can be
        return value.to(dtype)


@st.composite
def altered(draw, contents, write, tensors=False):
    """Files after a few changes of what they hold."""

    def one_of(values):  # hypothesis would print values that have no end
        return values[draw(st.integers(0, len(values) - 1))]

    odd = PLAIN + TENSORS * tensors
    suffix, content = copy.deepcopy(one_of(contents()))
    for _ in range(draw(st.integers(1, 3))):
        places = slots(content)
        if not places:
            break
        container, key = one_of(places)
        value = container[key]
        action = one_of(["delete", "rename", "replace", "replace", "replace"])
        if action == "delete":
            del container[key]
        elif action == "rename" and isinstance(container, dict):
            container[one_of(NAMES)] = container.pop(key)
        elif isinstance(value, Tensor) and draw(st.booleans()):
            container[key] = cast(value, one_of(CASTS))
        else:
            others = [other[place] for other, place in places]
            others = [other for other in others if not isinstance(other, dict | list)]
            new = one_of(one_of([odd, odd, [[value], {str(key): value}, *others]]))
            container[key] = new() if callable(new) else copy.deepcopy(new)
    return suffix, lambda path: write(path, content)


PARTS = ("names", "sizes", "target", "degraded", "target/000000", "degraded/000000")
LAYOUTS = {  # options of a data set
    "plain": lambda: {},
    "huge": lambda: {},
    "chunks": lambda: {"chunks": True},
    "gzip": lambda: {"compression": 9},
    "external": lambda: {"external": [(str(FOLDER / "seed.h5"), 0, 10**6)]},
}
LINKS = ("virtual", "soft", "link", "none", "attribute")
DTYPES_OF_H5 = ("u1", "i8", "f4", "S20", "O", "u1,f8", "(3,)u1", "?", "c8", "V9")
SHAPES = ((), (0,), (1,), (1, 2), (24, 20, 3), (3, 24, 20), (1, 1, 1), (2,) * 32)
PACKED_CHANGE = st.tuples(
    *map(st.sampled_from, (PARTS, (*LAYOUTS, *LINKS), DTYPES_OF_H5, SHAPES, PARTS))
)


def alter_packed(file, part, layout, dtype, shape, name):
    """Put another data set, link or attribute into a packed file."""
    dtype = h5py.string_dtype() if dtype == "O" else np.dtype(dtype)
    if layout == "attribute":
        value = b"dgunet-pairs" if dtype == "S20" else np.zeros(shape[:3], dtype)
        return file.attrs.create(("format", "version")[len(shape) % 2], value)
    del file[part]
    if layout == "soft":
        file[part] = h5py.SoftLink("/" + name)
    elif layout == "link":
        file[part] = h5py.ExternalLink(str(FOLDER / "seed.h5"), name)
    elif layout == "virtual":
        source = h5py.VirtualLayout(shape, dtype)
        source[...] = h5py.VirtualSource(str(FOLDER / "seed.h5"), name, shape)
        file.create_virtual_dataset(part, source)
    elif layout != "none":
        huge = tuple(10**4 * side for side in shape) if layout == "huge" else shape
        file.create_dataset(part, huge, dtype, **LAYOUTS[layout]())


@st.composite
def altered_packed(draw):
    changes = draw(st.lists(PACKED_CHANGE, min_size=1, max_size=3))

    def write(path):
        path.write_bytes(packed_files()[0][1])
        with h5py.File(path, "r+") as file:
            for change in changes:
                with contextlib.suppress(Exception):  # such a file cannot be made
                    alter_packed(file, *change)

    return ".h5", write


YAML_NODES = """
!!int abc;!!float x;2024-13-45;2024-01-01;!!timestamp x;!!binary x;!!set {a};!!omap [a];!!bool x
!!python/object/apply:os.system [exit];&a [*a];*none;{<<: [1]};? [1];{<<: {a: 1}};!!null 3;1e999
-.inf;'\\ud800';"\\ud800";|;%TAG;~;=;&a {a: &b [*a, *b]};{a: 1, a: 2};!!str {};!!seq x;!!map []
"""
YAML_NODES = YAML_NODES.strip().replace("\n", ";").split(";")
YAML_NODES += ["[" * 3000, "{a: " * 3000, "9" * 5000, "0x" + "f" * 5000, "1:" * 2000 + "1", "\t"]


@st.composite
def odd_yaml(draw):
    """Configurations with any YAML in the place of a value."""
    section, _, last = draw(st.sampled_from([*KEYS, "OPTIM", "UNKNOWN", "MODEL.X"])).rpartition(".")
    node = draw(st.sampled_from(YAML_NODES) | st.text(max_size=40))
    text = f"{section}: {{{last}: {node}}}" if section else f"{last}: {node}"
    text = f"TRAINING: {{TRAIN_DIR: {FOLDER}}}\n{text}\n"
    return ".yml", lambda path: path.write_text(text, "utf-8", "replace")


# What reads them.


def read_any_image(path):
    array = read_image(path)
    assert array.dtype in (np.uint8, np.uint16) and array.ndim in (2, 3) and array.size


def read_any_photo(path):
    photo = read_photo(path, max_pixels=1_000_000)
    assert photo.pixels.shape[2:] in ((), (3,)) and photo.pixels.size
    assert photo.alpha is None or photo.alpha.shape == photo.pixels.shape[:2]
    write_photo(path.with_name("result"), photo, photo.pixels)


def read_any_checkpoint(path):
    network, checkpoint, tasks = read_network(path)
    lines = describe(path, network, checkpoint, tasks).split("\n")
    assert all(map(str.isprintable, lines))
    load_model(path)


def resume(path):
    """Go on from a state, by a step of training."""
    trainer, _ = new_run()
    trainer.latest = path
    load_state(trainer)
    trainer.sampler.set_position(1)
    trainer.step(next(iter(trainer.loader)))


def read_any_packed(path):
    read_index(path)
    data = PackedPairs(path, 16)
    for item in data.items[:3]:
        data.read_crop(item, lambda height, width: (0, 0))
    data._file.close()


def read_any_settings(path):
    beside = path.with_name("settings.json")
    beside.write_bytes(path.read_bytes())
    found = read_settings(path.parent)
    assert all(c.isprintable() for c in describe_settings({"a": found, "b": None}))
    ResultsFolder(path.parent, {"program": "demo.py", "tile": 0}).finished([], overwrite=False)


def read_any_record(path):
    record = read_record(path.with_suffix(".pth"))
    assert record is None or trained_for(record).isprintable()


def reading(read):
    """Return a property of files: `read` makes something of them, or a documented error."""

    def check_file(drawn):
        suffix, write = drawn
        path = FOLDER / f"hand{sum(COUNTS.values())}{suffix}"  # it stays if that fails
        try:
            write(path)
        except Exception:  # no such file can be written
            return path.unlink(missing_ok=True)
        try:
            read(path)
        except (InputError, FileNotFoundError) as error:
            assert str(error)
        path.unlink()

    return check_file


def written(contents, write):
    """Return a function that returns whole files of these contents."""

    @cache
    def files():
        found = []
        for suffix, content in contents():
            path = FOLDER / f"whole{suffix}"
            write(path, copy.deepcopy(content))
            found.append((suffix, path.read_bytes()))
        return found

    return files


PROPERTIES = {  # name → what must hold, of what, and how many of them the suite tries
    "image files": (reading(read_any_image), broken(image_files), 200),
    "photo files": (reading(read_any_photo), broken(image_files), 200),
    "packed files": (reading(read_any_packed), broken(packed_files), 100),
    "altered packed files": (reading(read_any_packed), altered_packed(), 60),
    "YAML nodes": (reading(load_config), odd_yaml(), 100),
}
for name, contents, write, read, bytes_tried, structures_tried in (
    ("checkpoints", checkpoints, write_checkpoint, read_any_checkpoint, 150, 80),
    ("training states", training_states, write_checkpoint, resume, 10, 12),
    ("configurations", configurations, write_yaml, load_config, 100, 60),
    ("measurements", measurements, write_npz, read_measurements, 100, 80),
    ("settings", notes, write_json, read_any_settings, 40, 100),
    ("records", notes, write_json, read_any_record, 40, 100),
):
    structures = altered(contents, write, tensors=write is write_checkpoint)
    PROPERTIES[name] = (reading(read), broken(written(contents, write)), bytes_tried)
    PROPERTIES[f"altered {name}"] = (reading(read), structures, structures_tried)


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
    forked = multiprocessing.get_context("fork")
    while time.monotonic() < end:
        number += 1
        for name in names:
            if time.monotonic() > end:
                break
            results = forked.Queue()
            count = 4 * PROPERTIES[name][2]
            process = forked.Process(target=run_round, args=(name, count, number, results))
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
