"""Image files and arrays: reading, writing, conversion to tensors, padding, pairing by name.

Every program of the project reads, writes and pads images through this module, so that a pixel
means the same everywhere. Arrays are H×W (grey), H×W×3 (RGB) or H×W×4 (RGBA); tensors are C×H×W.
"""

from __future__ import annotations

import io
import re
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from natsort import natsorted
from PIL import Image

from dgunet.base.errors import InputError, first_few
from dgunet.base.files import write_bytes

if TYPE_CHECKING:
    import torch

IMAGE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm",
)  # fmt: skip
_SUFFIXES_OF_16_BIT = (".png", ".tif", ".tiff", ".ppm", ".pgm")

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_COLOUR_TYPE = 25  # byte of the header; 3 means palette
_PNM_GAP = rb"(?:\s|#[^\n\r]*[\n\r])+"
_PNM_HEADER = re.compile(rb"P[2356]" + 2 * (_PNM_GAP + rb"\d+") + _PNM_GAP + rb"(\d+)")
_JPEG_SIGNATURE = b"\xff\xd8\xff"
_JPEG_START_OF_SCAN, _JPEG_END = b"\xff\xda", b"\xff\xd9"
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_EXTRA_SAMPLES = 258, 262, 338  # tags
_WHITE_IS_ZERO, _PLAIN_ALPHA = 0, (2,)  # values of the last two; alpha not multiplied in

# A broken file is this module's error to report, once; OpenCV would log it too.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def list_images(folder: str | Path, recursive: bool = False) -> list[Path]:
    """Return the image files of `folder` (by suffix, hidden files left out) in natural order:
    `2.png` comes before `10.png`. With `recursive` those of its sub-folders too.

    Raises `InputError` if the folder is missing, is not a folder or holds no image.
    """
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

    The orientation noted in EXIF is not applied: the field's datasets are read as stored (but that
    of a TIFF is, by all its decoders). A palette image comes out as RGB, or grey if its colours are
    all grey; an animation as its first frame.

    Raises `FileNotFoundError`, and `InputError` for a file that is no image, is cut short or has
    other pixels than 8 or 16 bits.
    """
    path = Path(path)
    array = decode_image(path.read_bytes(), path)
    if array.dtype not in (np.uint8, np.uint16):
        raise InputError(f"{path}: has {array.dtype} pixels; expected 8 or 16 bits")
    return array


def read_rgb(path: str | Path) -> np.ndarray:
    """Return the image as H×W×3 uint8 RGB: a grey one is repeated, alpha is dropped, 16 bits are
    rounded to 8. Raises as `read_image`."""
    array = _to_8_bit(read_image(path))
    if array.ndim == 2:
        return np.repeat(array[..., None], 3, axis=2)
    return np.ascontiguousarray(array[..., :3])


def read_gray(path: str | Path) -> np.ndarray:
    """Return the image as H×W uint8. Of a colour image it is Y of OpenCV's full-range YCrCb, as the
    compressive-sensing benchmarks take it. Raises as `read_image`."""
    array = _to_8_bit(read_image(path))
    if array.ndim == 2:
        return array
    return cv2.cvtColor(np.ascontiguousarray(array[..., :3]), cv2.COLOR_RGB2YCrCb)[..., 0].copy()


def write_image(path: str | Path, array: np.ndarray) -> None:
    """Write uint8 or uint16 pixels, H×W, H×W×1, H×W×3 (RGB) or H×W×4 (RGBA), in the format of the
    file's suffix. Parent folders are made; the file appears whole or not at all.

    Raises `InputError` for a suffix or pixels that cannot be written.
    """
    write_bytes(path, encode_image(path, array))


def encode_image(path: str | Path, array: np.ndarray) -> bytes:
    """Return what `write_image` would write."""
    path = Path(path)
    array = np.asarray(array)
    suffix = path.suffix.lower()
    if suffix not in IMAGE_SUFFIXES or suffix == ".gif":
        raise InputError(f"{path}: cannot be written as {suffix or 'no suffix'}; expected .png")
    if array.dtype != np.uint8 and not (array.dtype == np.uint16 and suffix in _SUFFIXES_OF_16_BIT):
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


def to_uint8(tensor: torch.Tensor) -> np.ndarray:
    """Return a C×H×W tensor in [0, 1] as uint8 pixels, H×W×C (H×W for C = 1): clamped, times 255,
    rounded half to even.

    >>> import torch
    >>> to_uint8(torch.tensor([[[-1.0, 0.5, 2.0]]]))
    array([[  0, 128, 255]], dtype=uint8)
    """
    if tensor.ndim != 3:
        raise ValueError(f"tensor has shape {tuple(tensor.shape)}; expected C×H×W")
    levels = tensor.detach().float().clamp(0, 1).mul(255).round().byte().cpu().numpy()
    return levels[0] if len(levels) == 1 else np.ascontiguousarray(levels.transpose(1, 2, 0))


def pad_bottom_right(array: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return H×W[×C] pixels reflect-padded at the bottom and right to at least `height`×`width`;
    the array itself if it is large enough.

    Where the padding exceeds the image the reflection goes on, to and fro; one pixel is repeated.

    >>> pad_bottom_right(np.array([[1, 2, 3]]), 2, 8)
    array([[1, 2, 3, 2, 1, 2, 3, 2],
           [1, 2, 3, 2, 1, 2, 3, 2]])
    """
    if array.shape[0] < height:
        array = array[_reflected(array.shape[0], height)]
    if array.shape[1] < width:
        array = array[:, _reflected(array.shape[1], width)]
    return array


def pad_to_multiple(tensor: torch.Tensor, multiple: int, minimum: int = 0) -> torch.Tensor:
    """Return an N×C×H×W tensor padded as by `pad_bottom_right` until each side is a multiple of
    `multiple` and at least `minimum`. The caller crops the result back with `[..., :H, :W]`.

    >>> import torch
    >>> pad_to_multiple(torch.zeros(1, 3, 17, 8), 8, minimum=16).shape
    torch.Size([1, 3, 24, 16])
    """
    import torch

    for axis in (-2, -1):
        size = tensor.shape[axis]
        padded = -(-max(size, minimum) // multiple) * multiple
        if padded > size:
            index = torch.from_numpy(_reflected(size, padded)).to(tensor.device)
            tensor = tensor.index_select(axis, index)
    return tensor


def pair_by_name(first: str | Path, second: str | Path) -> list[tuple[Path, Path]]:
    """Return the images of two folders paired by file name without suffix, in natural order:
    `input/a.png` goes with `target/a.jpg`.

    Raises `InputError` if an image has no partner or two of one folder share their name.
    """
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


def decode_image(data: bytes, name: str | Path) -> np.ndarray:
    """Return the pixels of an image file's bytes as `read_image` does, or float32 ones as
    stored. `name` is for messages. Raises `InputError`."""
    try:
        return _decode(data)
    except Exception as error:  # what a decoder raises on broken files is not documented
        raise InputError(f"{name}: cannot be read as an image ({error})") from error


def _decode(data: bytes) -> np.ndarray:
    """OpenCV decodes; Pillow decodes what OpenCV gives in other colours than the stored ones
    (palettes, CMYK), without its alpha or not at all in some versions (GIF)."""
    inverted = False
    if data.startswith(_JPEG_SIGNATURE):
        # OpenCV may fill the missing part of a JPEG with grey without a word.
        if data.rfind(_JPEG_END) < data.rfind(_JPEG_START_OF_SCAN):
            raise ValueError("it is cut short")
    elif data.startswith(_PNG_SIGNATURE):
        if b"IEND" not in data:
            raise ValueError("it is cut short")
        if data[_PNG_COLOUR_TYPE : _PNG_COLOUR_TYPE + 1] == b"\x03":
            return _decode_with_pillow(Image.open(io.BytesIO(data)))
    elif header := _PNM_HEADER.match(data):
        if int(header[1]) not in (255, 65535):  # OpenCV takes no notice of it
            raise ValueError(f"its largest value is {int(header[1])}; expected 255 or 65535")
    elif data:
        if data.startswith(TIFF_STARTS) and _is_planar(data):
            return _decode_with_tifffile(data)
        try:
            picture = Image.open(io.BytesIO(data))
        except Image.UnidentifiedImageError:
            picture = None
        if picture and (picture.mode in ("P", "PA", "LA", "CMYK") or picture.format == "GIF"):
            return _decode_with_pillow(picture)
        if picture and picture.mode == "LAB":
            raise ValueError("it has LAB pixels; expected grey or RGB")
        if picture and picture.format == "TIFF":
            tags = picture.tag_v2
            bits, extra = tags.get(_TIFF_BITS), tags.get(_TIFF_EXTRA_SAMPLES)
            if picture.mode == "RGBA" and bits == (8, 8, 8, 8) and extra == _PLAIN_ALPHA:
                return np.array(picture)  # OpenCV would multiply the colours by alpha
            inverted = picture.mode == "I;16" and tags.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO

    array = None
    if data:
        array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None and data.startswith(TIFF_STARTS):
        return _decode_with_tifffile(data)
    if array is None:
        raise ValueError(f"{len(data)} bytes of no known format, or cut short")
    if array.dtype not in (np.uint8, np.uint16, np.float32):
        raise ValueError(f"it has {array.dtype} pixels; expected 8 or 16 bits, or float32")
    if array.ndim == 2:
        return 65535 - array if inverted else array
    if array.shape[2] not in (3, 4):
        raise ValueError(f"it has {array.shape[2]} channels; expected 1, 3 or 4")
    return cv2.cvtColor(array, cv2.COLOR_BGR2RGB if array.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)


def _is_planar(data: bytes) -> bool:
    """Tell whether the channels of a TIFF lie apart, which OpenCV and Pillow mistake."""
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        return page.planarconfig == 2 and page.samplesperpixel > 1


def _decode_with_tifffile(data: bytes) -> np.ndarray:
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        turned = "Orientation" in page.tags and page.tags["Orientation"].value != 1
        kind = page.photometric.name
        if turned or kind not in ("RGB", "MINISBLACK"):
            raise ValueError(f"it is a {kind} TIFF{' turned' * turned}, of a layout that is rare")
        array = page.asarray()
        if page.planarconfig == 2 and page.samplesperpixel > 1:
            array = np.moveaxis(array, 0, -1)
    channels = 1 if array.ndim == 2 else array.shape[2]
    if array.dtype not in (np.uint8, np.uint16, np.float32) or channels > 4:
        raise ValueError(f"it has {channels} channels of {array.dtype}")
    return np.ascontiguousarray(array if channels != 2 else array[..., [0, 0, 0, 1]])


def _decode_with_pillow(picture: Image.Image) -> np.ndarray:
    if picture.mode == "L":
        return np.array(picture)
    transparent = picture.mode in ("PA", "LA") or "transparency" in picture.info
    array = np.array(picture.convert("RGBA" if transparent else "RGB"))
    grey = not transparent and (array == array[..., :1]).all()
    return array[..., 0].copy() if grey else array


def _to_8_bit(array: np.ndarray) -> np.ndarray:
    """Return uint16 pixels rounded to uint8 (65535 becomes 255); uint8 ones as they are."""
    if array.dtype == np.uint8:
        return array
    return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _reflected(size: int, length: int) -> np.ndarray:
    """Return which of `size` pixels stands at each of `length` places: 0 … size-1 … 0 … size-1 …

    >>> _reflected(3, 8)
    array([0, 1, 2, 1, 0, 1, 2, 1])
    """
    period = max(2 * (size - 1), 1)
    place = np.arange(length) % period
    return np.minimum(place, period - place)
