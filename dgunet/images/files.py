"""Image files and arrays: reading, writing, conversion to tensors, padding, pairing by name.

Every program reads, writes and pads images through this module, so that a pixel means the same
everywhere. Arrays are H×W (grey), H×W×3 (RGB) or H×W×4 (RGBA); tensors are C×H×W.
"""

from __future__ import annotations

import io
import warnings
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from natsort import natsorted
from PIL import Image, TiffTags

from dgunet.base.errors import InputError, first_few, printable
from dgunet.base.files import regular_file, write_bytes
from dgunet.base.memory import require_memory

if TYPE_CHECKING:
    import torch

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
FORMATS = ("PNG", "JPEG", "MPO", "TIFF", "WEBP", "BMP")  # Pillow's names; MPO is a phone's JPEG
EXPECTED = "PNG, JPEG, TIFF, WebP or BMP (save it as PNG)"
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "I", "I;16", "I;16B")  # Pillow's
_DECODING = 6  # bytes of a sample while it is decoded: 16 bits, and two copies
_JPEG_START_OF_SCAN, _JPEG_END = b"\xff\xda", b"\xff\xd9"

# A broken file is this module's error to report, once; OpenCV and Pillow would tell of it too.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
warnings.filterwarnings("ignore", category=UserWarning, module="PIL")


def list_images(folder: str | Path, recursive: bool = False) -> list[Path]:
    """Return the image files of `folder` (by suffix, hidden files left out) in natural order:
    `2.png` comes before `10.png`. With `recursive` those of its sub-folders too. Raises
    `InputError` if the folder is missing, is not a folder or holds no image."""
    folder = Path(folder)
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise InputError(f"{folder}: {found}; expected a folder of images")
    files = [
        path
        for path in folder.glob("**/*" if recursive else "*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not path.name.startswith(".")
        and path.is_file()
    ]
    if not files:
        raise InputError(f"{folder}: holds no image; expected files {' '.join(IMAGE_SUFFIXES)}")
    return natsorted(files, key=str)


def read_image(path: str | Path) -> np.ndarray:
    """Return the pixels as stored: uint8 or uint16, H×W (grey), H×W×3 (RGB) or H×W×4 (RGBA).

    EXIF orientation is not applied, because the field's datasets are read as stored; a TIFF's is,
    because every decoder applies it. A palette image comes out as RGB, or grey if its colours are
    all grey; an animation as its first frame.

    Raises `FileNotFoundError`, and `InputError` for a file that is no image of `FORMATS`, is cut
    short, needs more memory than is free, or has pixels other than grey or RGB, with or without
    alpha, of 8 or 16 bits.
    """
    return decode_image(regular_file(path, "an image").read_bytes(), path)


def read_rgb(path: str | Path) -> np.ndarray:
    """Return the image as H×W×3 uint8 RGB: a grey one is repeated, alpha is dropped, 16 bits are
    rounded to 8. Raises as `read_image`."""
    array = to_uint8(read_image(path))
    if array.ndim == 2:
        return np.repeat(array[..., None], 3, axis=2)
    return np.ascontiguousarray(array[..., :3])


def read_gray(path: str | Path) -> np.ndarray:
    """Return the image as H×W uint8; of a colour image Y of OpenCV's full-range YCrCb, as in the
    compressive sensing benchmarks. Raises as `read_image`."""
    array = to_uint8(read_image(path))
    return array if array.ndim == 2 else luma(array[..., :3])


def luma(rgb: np.ndarray) -> np.ndarray:
    """Return Y of OpenCV's full-range YCrCb of H×W×3 uint8 pixels, H×W."""
    return cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2YCrCb)[..., 0].copy()


def write_image(path: str | Path, array: np.ndarray) -> None:
    """Write uint8 or uint16 pixels, H×W, H×W×1, H×W×3 (RGB) or H×W×4 (RGBA), in the format of the
    file's suffix. Parent folders are created; the file appears whole or not at all. Raises
    `InputError` for a suffix or pixels that cannot be written."""
    write_bytes(path, encode_image(path, array))


def encode_image(path: str | Path, array: np.ndarray) -> bytes:
    """Return what `write_image` would write."""
    suffix = Path(path).suffix.lower()
    if suffix not in IMAGE_SUFFIXES:
        raise InputError(f"{path}: cannot be written as {suffix or 'no suffix'}; expected .png")
    deep = array.dtype == np.uint16 and suffix in (".png", ".tif", ".tiff")
    if array.dtype != np.uint8 and not deep:
        raise InputError(f"{path}: has {array.dtype} pixels; expected uint8 (uint16 for PNG, TIFF)")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise InputError(f"{path}: has shape {array.shape}; expected H×W, H×W×3 or H×W×4")

    if array.ndim == 3 and array.shape[2] > 1:
        conversion = cv2.COLOR_RGB2BGR if array.shape[2] == 3 else cv2.COLOR_RGBA2BGRA
        array = cv2.cvtColor(np.ascontiguousarray(array), conversion)
    try:
        done, encoded = cv2.imencode(suffix, np.ascontiguousarray(array))
    except cv2.error as error:
        raise InputError(f"{path}: cannot be written ({error})") from error
    if not done:
        raise InputError(f"{path}: {array.shape} pixels cannot be written as {suffix}")
    return encoded.tobytes()


def to_tensor(array: np.ndarray) -> torch.Tensor:
    """Return H×W or H×W×C pixels as a float32 tensor C×H×W that shares no memory with them.

    uint8 is divided by 255, uint16 by 65535; floats are taken as they are, in [0, 1].

    >>> to_tensor(np.array([[0, 255]], np.uint8))
    tensor([[[0., 1.]]])
    """
    import torch

    if array.dtype.kind != "f" and array.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"pixels are {array.dtype}; expected uint8, uint16 or float")
    channels_last = array[..., None] if array.ndim == 2 else array
    tensor = torch.from_numpy(np.array(channels_last.transpose(2, 0, 1), np.float32, order="C"))
    return tensor if array.dtype.kind == "f" else tensor.div_(np.iinfo(array.dtype).max)


def to_uint8(image: torch.Tensor | np.ndarray) -> np.ndarray:
    """Return an image as uint8 pixels: a C×H×W tensor as H×W×C (H×W for C = 1), an array in its own
    shape. Floats are clipped to [0, 1], multiplied by 255 and rounded half to even; uint16 pixels
    are divided by 257 and rounded.

    >>> to_uint8(np.array([-1.0, 0.5, 2.0])), to_uint8(np.array([65535], np.uint16))
    (array([  0, 128, 255], dtype=uint8), array([255], dtype=uint8))
    """
    if isinstance(image, np.ndarray):
        if image.dtype == np.uint8:
            return image
        if image.dtype == np.uint16:
            return ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)
        precise = image.astype(np.float32) if image.dtype == np.float16 else image
        return np.rint(np.clip(precise, 0, 1) * 255).astype(np.uint8)
    if image.ndim != 3:
        raise ValueError(f"tensor has shape {tuple(image.shape)}; expected C×H×W")
    levels = image.detach().float().clamp(0, 1).mul(255).round().byte().cpu().numpy()
    return levels[0] if len(levels) == 1 else np.ascontiguousarray(levels.transpose(1, 2, 0))


def middle(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the central height×width of H×W[×C] pixels, less where the image is smaller; a view.

    >>> middle(np.arange(5)[None], 1, 3)
    array([[1, 2, 3]])
    """
    top, left = max(0, image.shape[0] - height) // 2, max(0, image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


def pad_bottom_right(array: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return H×W[×C] pixels reflect-padded at the bottom and right to at least `height`×`width`, as
    `reflected_places` says; the array itself if it is large enough.

    >>> pad_bottom_right(np.array([[1, 2, 3]]), 2, 8)
    array([[1, 2, 3, 2, 1, 2, 3, 2],
           [1, 2, 3, 2, 1, 2, 3, 2]])
    """
    if array.shape[0] < height:
        array = array[reflected_places(array.shape[0], height)]
    if array.shape[1] < width:
        array = array[:, reflected_places(array.shape[1], width)]
    return array


def pair_by_name(first: str | Path, second: str | Path) -> list[tuple[Path, Path]]:
    """Return the images of two folders paired by file name without suffix, in natural order:
    `input/a.png` goes with `target/a.jpg`. Raises `InputError` if an image has no partner or two of
    one folder share their name."""
    by_stem = []
    for folder in (first, second):
        files = defaultdict(list)
        for path in list_images(folder):
            files[path.stem].append(path)
        doubled = [path.name for paths in files.values() if len(paths) > 1 for path in paths]
        if doubled:
            raise InputError(
                f"{folder}: {len(doubled)} images share their name but for the suffix: "
                f"{first_few(doubled)}; expected one image per name"
            )
        by_stem.append({stem: paths[0] for stem, paths in files.items()})

    firsts, seconds = by_stem
    unpaired = [path for stem, path in firsts.items() if stem not in seconds]
    unpaired += [path for stem, path in seconds.items() if stem not in firsts]
    if unpaired:
        raise InputError(
            f"{first} and {second}: {len(unpaired)} images without a partner of the same name: "
            f"{first_few(unpaired)}"
        )
    return [(path, seconds[stem]) for stem, path in firsts.items()]


def open_picture(data: bytes, name: str | Path) -> Image.Image:
    """Return an image file as Pillow opens it: its header is read. `name` is for messages. Raises
    `InputError` for anything but `FORMATS`."""
    try:
        picture = Image.open(io.BytesIO(data))
    except Image.UnidentifiedImageError as error:
        found = f"{len(data)} bytes of no known image format" if data else "is empty (0 bytes)"
        raise InputError(f"{name}: {found}; expected {EXPECTED}") from error
    if picture.format not in FORMATS:
        raise InputError(f"{name}: is a {picture.format} image; expected {EXPECTED}")
    return picture


def decode_image(data: bytes, name: str | Path) -> np.ndarray:
    """Return the pixels of an image file's bytes as `read_image` does. `name` is for messages.
    Raises `InputError`."""
    try:
        picture = open_picture(data, name)
        width, height = picture.size
        samples = width * height * len(picture.getbands())
        require_memory(_DECODING * samples, f"{name}: {width}×{height} pixels")
        return _decode(picture, data)
    except InputError:
        raise
    except Exception as error:  # what a decoder raises on broken files is not documented
        raise InputError(f"{name}: cannot be read as an image ({printable(error)})") from error


def _decode(picture: Image.Image, data: bytes) -> np.ndarray:
    """Decode with OpenCV, and with Pillow where OpenCV changes colours or alpha."""
    if picture.mode not in _MODES:
        raise ValueError(f"it has {picture.mode} pixels; expected grey or RGB of 8 or 16 bits")
    # OpenCV may fill the missing part of a JPEG with grey without a word.
    jpeg = picture.format in ("JPEG", "MPO")
    cut_jpeg = jpeg and data.rfind(_JPEG_END) < data.rfind(_JPEG_START_OF_SCAN)
    if cut_jpeg or (picture.format == "PNG" and b"IEND" not in data):
        raise ValueError("it is cut short")
    tags = getattr(picture, "tag_v2", {})  # of a TIFF
    tags = {TiffTags.lookup(code).name: value for code, value in tags.items()}
    bits = max(tags.get("BitsPerSample", (8,)))
    samples = tags.get("SamplesPerPixel", 1)
    if samples > 1 and tags.get("PlanarConfiguration") == 2:  # OpenCV and Pillow mistake it
        raise ValueError("its channels lie in separate planes; expected interleaved ones")
    plain_alpha = tags.get("ExtraSamples") == (2,)  # OpenCV would multiply the colours by it
    if picture.mode in ("P", "PA", "LA") or (picture.mode == "RGBA" and plain_alpha and bits == 8):
        return _decode_with_pillow(picture)

    array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None:
        raise ValueError("it is cut short or of a rare kind")
    channels = 1 if array.ndim == 2 else array.shape[2]
    if array.dtype not in (np.uint8, np.uint16) or channels not in (1, 3, 4):
        raise ValueError(f"it has {channels} channels of {array.dtype}; expected 8 or 16 bits")
    if tags and (channels != samples or bits not in (1, 8 * array.itemsize)):
        raise ValueError(f"it has {samples} channels of {bits} bits; expected 8 or 16 bits")
    if channels == 1:
        white_is_zero = tags.get("PhotometricInterpretation") == 0  # OpenCV inverts 8 bits alone
        return 65535 - array if white_is_zero and array.dtype == np.uint16 else array
    return cv2.cvtColor(array, cv2.COLOR_BGR2RGB if channels == 3 else cv2.COLOR_BGRA2RGBA)


def _decode_with_pillow(picture: Image.Image) -> np.ndarray:
    if picture.mode == "L":
        return np.array(picture)
    transparent = picture.mode in ("PA", "LA", "RGBA") or "transparency" in picture.info
    array = np.array(picture.convert("RGBA" if transparent else "RGB"))
    grey = not transparent and (array == array[..., :1]).all()
    return array[..., 0].copy() if grey else array


def reflected_places(size: int, length: int) -> np.ndarray:
    """Return which of `size` pixels stands at each of `length` places: 0 … size-1 … 0 … size-1 …;
    a single one is repeated.

    >>> reflected_places(3, 8)
    array([0, 1, 2, 1, 0, 1, 2, 1])
    """
    return np.pad(np.arange(size), (0, max(0, length - size)), "reflect")
