"""Photographs with their metadata.

`write_photo` writes other pixels into a file of the same kind: format, bit depth, grey or colour,
alpha, orientation and colour profile stay. Exceptions:

* Palette and 1-bit images become grey or colour images of 8 bits.
* JPEG and WebP are compressed again with quality 95, JPEG without colour subsampling; a lossless
  WebP stays lossless.
* EXIF is kept in JPEG, PNG and WebP; of a TIFF only resolution and colour profile are kept.
* A 16-bit grey PNG with alpha becomes RGBA.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence

from dgunet.base.errors import InputError, printable
from dgunet.base.files import regular_file, write_bytes
from dgunet.images.files import decode_image, encode_image, open_picture

MAX_PIXELS = 250_000_000
QUALITY = 95  # of JPEG and lossy WebP, of 100

_GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B")  # Pillow's
_ANIMATED = ("PNG", "WEBP")
_KEPT_PNG_CHUNKS = (
    b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"cICP", b"pHYs", b"eXIf", b"tEXt", b"zTXt", b"iTXt",
)  # fmt: skip
_ESSENTIAL = ("lossless", "alpha_kind")  # of the metadata: what makes other pixels
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_WEBP_START = 64  # within which the kind of its image data is named
_REDUCED = 1  # bit of TIFF's NewSubfileType: a thumbnail of another page
_NEW_SUBFILE_TYPE, _X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT, _EXTRA_SAMPLES = (
    254, 282, 283, 296, 338,
)  # fmt: skip


@dataclass(frozen=True)
class Photo:
    """A photograph, upright.

    Attributes:
        pixels: H×W (grey) or H×W×3 (RGB), uint8 or uint16.
        alpha: H×W of the same type, or None.
        format: of the file that `write_photo` writes: JPEG, PNG, WEBP, TIFF or BMP.
        orientation: EXIF's, 1 … 8: how the stored pixels have to be turned.
        metadata: what else the encoder of the format writes.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None
    format: str
    orientation: int = 1
    metadata: dict = field(default_factory=dict)


def read_photo(path: str | Path, max_pixels: int | None = MAX_PIXELS) -> Photo:
    """Read a photograph of a format in `dgunet.images.files.FORMATS`, told by its content. One of
    more than `max_pixels` is refused before it is decoded; None: any size. (Pillow has a limit of
    its own, `PIL.Image.MAX_IMAGE_PIXELS`.)

    Raises an `OSError` for no file that can be read; `InputError` for no image of these formats,
    one that is cut short, too large, animated or of several pages, or of a kind that cannot be
    kept."""
    path = Path(path)
    data = regular_file(path, "an image").read_bytes()
    try:
        picture = open_picture(data, path)
        width, height = picture.size
        if max_pixels is not None and width * height > max_pixels:
            found = f"{width}×{height} pixels"
            raise _too_large(path, found, f"at most {max_pixels / 1e6:g} megapixels")
        if picture.format == "TIFF":
            _refuse_several_pages(path, picture)
        elif picture.format in _ANIMATED and picture.n_frames > 1:
            raise InputError(
                f"{path}: is an animation of {picture.n_frames} images; expected one image"
            )
        array = decode_image(data, path)
        if picture.mode in _GREY_MODES:
            if "transparency" in picture.info:
                raise InputError(f"{path}: one of its grey values is transparent; expected alpha")
            array = array[..., [0, 3]] if array.ndim == 3 else array
        metadata = _metadata(picture, data, array)
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(path, str(error).partition(",")[0], "a smaller image") from error
    except Exception as error:  # what parsers raise on broken files is not documented
        raise InputError(f"{path}: cannot be read as an image ({printable(error)})") from error

    # Decoders turn TIFFs upright.
    orientation = 1 if picture.format == "TIFF" else _orientation(picture)
    array, alpha = _turned(array, orientation), None
    if array.ndim == 3 and array.shape[2] in (2, 4):
        array, alpha = array[..., :-1], array[..., -1]
        array = array[..., 0] if array.shape[2] == 1 else array
    kind = "JPEG" if picture.format == "MPO" else picture.format
    return Photo(array, alpha, kind, orientation, metadata)


def write_photo(path: str | Path, photo: Photo, pixels: np.ndarray) -> None:
    """Write pixels, upright, H×W or H×W×3, of the type of the photo's, into a file of the kind that
    it was read from, whole or not at all. The suffix plays no part. Raises `InputError` for pixels
    that the format cannot hold."""
    if photo.alpha is not None:
        pixels = np.dstack([pixels, photo.alpha])
    pixels = np.ascontiguousarray(_turned(pixels, photo.orientation, back=True))
    encode, metadata = _ENCODERS[photo.format], photo.metadata
    try:
        data = encode(pixels, **metadata)
    except Exception:  # the metadata of a damaged file; where it is not that, it is raised now
        data = encode(pixels, **{key: metadata[key] for key in _ESSENTIAL if key in metadata})
    write_bytes(path, data)


def _refuse_several_pages(path: Path, picture: Image.Image) -> None:
    pages = sum(
        not frame.tag_v2.get(_NEW_SUBFILE_TYPE, 0) & _REDUCED
        for frame in ImageSequence.Iterator(picture)
    )
    picture.seek(0)
    if pages > 1:
        raise InputError(f"{path}: has {pages} pages; expected one")


def _too_large(path: Path, found: str, expected: str) -> InputError:
    return InputError(f"{path}: {found}; expected {expected} (--max_megapixels lifts the limit)")


def _metadata(picture: Image.Image, data: bytes, array: np.ndarray) -> dict:
    """Return what the format's encoder writes beside the pixels. A colour profile is kept if it is
    for colour and the pixels are, or for grey and they are."""
    icc, exif = picture.info.get("icc_profile"), picture.info.get("exif")
    grey = array.ndim == 2 or array.shape[2] == 2
    if icc and icc[16:20] != (b"GRAY" if grey else b"RGB "):
        icc = None
    match picture.format:
        case "PNG":
            kept = [name for name in _KEPT_PNG_CHUNKS if icc or name != b"iCCP"]
            return {"chunks": [chunk for chunk in _png_chunks(data) if chunk[4:8] in kept]}
        case "WEBP":
            return {"icc_profile": icc, "exif": exif, "lossless": b"VP8L" in data[:_WEBP_START]}
        case "JPEG" | "MPO":
            return {"icc_profile": icc, "exif": exif, "dpi": picture.info.get("dpi")}
        case "TIFF":
            tags, metadata = picture.tag_v2, {"iccprofile": icc}
            if _X_RESOLUTION in tags and _Y_RESOLUTION in tags:
                metadata["resolution"] = (float(tags[_X_RESOLUTION]), float(tags[_Y_RESOLUTION]))
                metadata["resolutionunit"] = tags.get(_RESOLUTION_UNIT, 1)
            if tags.get(_EXTRA_SAMPLES):
                metadata["alpha_kind"] = tags[_EXTRA_SAMPLES][0]
            return metadata
    return {}


def _orientation(picture: Image.Image) -> int:
    try:
        orientation = picture.getexif().get(0x0112, 1)
    except Exception:  # broken EXIF, of which nothing but this is used
        return 1
    return orientation if orientation in range(1, 9) else 1


def _turned(array: np.ndarray, orientation: int, back: bool = False) -> np.ndarray:
    """Return H×W[×C] pixels turned upright, or `back` to how they are stored; a view. The stored
    ones are to be transposed, then flipped."""
    up_down, left_right = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    steps = tuple(slice(None, None, -1 if flip else 1) for flip in (up_down, left_right))
    if back:
        array = array[steps]
    if orientation > 4:
        array = array.swapaxes(0, 1)
    return array if back else array[steps]


def _png_chunks(data: bytes) -> list[bytes]:
    """Return a PNG's chunks, each with its length, name and checksum."""
    chunks, place = [], len(_PNG_SIGNATURE)
    while place + 8 <= len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        chunks.append(data[place:end])
        place = end
    return chunks


def _encode_png(pixels: np.ndarray, chunks: Sequence[bytes] = ()) -> bytes:
    if pixels.ndim == 3 and pixels.shape[2] == 2 and pixels.dtype == np.uint8:
        encoded = _encode_with_pillow(pixels, "PNG")
    elif pixels.ndim == 3 and pixels.shape[2] == 2:
        encoded = encode_image("image.png", pixels[..., [0, 0, 0, 1]])
    else:
        encoded = encode_image("image.png", pixels)
    header, *others = _png_chunks(encoded)
    return b"".join([_PNG_SIGNATURE, header, *chunks, *others])


def _encode_tiff(pixels: np.ndarray, alpha_kind: int = 2, **options) -> bytes:
    import tifffile

    buffer = io.BytesIO()
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    tifffile.imwrite(
        buffer,
        pixels,
        photometric="rgb" if channels > 2 else "minisblack",
        planarconfig="contig" if channels > 1 else None,
        extrasamples=[alpha_kind] if channels in (2, 4) else None,
        compression="zlib",
        predictor=True,
        metadata=None,
        **options,
    )
    return buffer.getvalue()


def _encode_with_pillow(pixels: np.ndarray, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    given = {name: value for name, value in options.items() if value is not None}
    Image.fromarray(pixels).save(buffer, kind, **given)
    return buffer.getvalue()


_ENCODERS: dict[str, Callable[..., bytes]] = {
    "PNG": _encode_png,
    "JPEG": partial(_encode_with_pillow, kind="JPEG", quality=QUALITY, subsampling=0),
    # exact: colours below full transparency stay, too
    "WEBP": partial(_encode_with_pillow, kind="WEBP", quality=QUALITY, exact=True),
    "TIFF": _encode_tiff,
    "BMP": partial(encode_image, "image.bmp"),
}
