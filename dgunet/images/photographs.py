"""Photographs as people have them: pixels, and what their files keep beside them.

`write_photo` writes other pixels into a file of the same kind: format, bit depth, grey or colour,
alpha, orientation and colour profile stay. What a format cannot keep:

* Palette and 1-bit images come out with 8 bits of grey or colour, a GIF as a PNG.
* CMYK comes out as RGB (sRGB where the file has a profile).
* JPEG and WebP are compressed anew with quality 95, JPEG without colour subsampling (a WebP that
  was lossless stays so).
* EXIF is kept in JPEG, PNG and WebP; of a TIFF resolution and colour profile alone.
* A 16-bit grey PNG with alpha comes out as RGBA.
"""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from dgunet.base.errors import InputError
from dgunet.base.files import write_bytes
from dgunet.images.files import (
    IMAGE_SUFFIXES,
    TIFF_STARTS,
    decode_image,
    encode_image,
)

PHOTO_SUFFIXES = (*IMAGE_SUFFIXES, ".npy")
MAX_PIXELS = 250_000_000
QUALITY = 95  # of JPEG and lossy WebP, of 100

_NUMPY_START = b"\x93NUMPY"
_GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B")  # Pillow's
_PAGED = ("GIF", "PNG", "WEBP")  # several images are an animation; in a JPEG they are by-products
_FORMATS = (*_PAGED, "JPEG", "MPO", "BMP", "PPM")
_KEPT_PNG_CHUNKS = (
    b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"cICP", b"pHYs", b"eXIf", b"tEXt", b"zTXt", b"iTXt",
)  # fmt: skip
_ESSENTIAL = ("lossless", "alpha_kind")  # of the metadata: what makes other pixels
_PNG_START = 33  # signature and header
_PNG_BITS = 24  # where the header has the bits of a value
_WEBP_START = 64  # within which the kind of its image data is named
_KEPT_TIFF_TAGS = (
    "InterColorProfile", "XResolution", "YResolution", "ResolutionUnit", "ExtraSamples",
)  # fmt: skip
_MOST_PAGES_COUNTED = 100


@dataclass(frozen=True)
class Photo:
    """A photograph, upright.

    Attributes:
        pixels: H×W (grey) or H×W×3 (RGB); uint8, uint16, or float in [0,1].
        alpha: H×W of the same type, or None.
        format: of the file that `write_photo` writes: JPEG, PNG, WEBP, TIFF, BMP, PPM, NPY.
        orientation: how EXIF says that the stored pixels are to be turned, 1 … 8.
        metadata: what else the encoder of the format writes.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None
    format: str
    orientation: int = 1
    metadata: dict = field(default_factory=dict)


def read_photo(path: str | Path, max_pixels: int | None = MAX_PIXELS) -> Photo:
    """Read a photograph: any of `PHOTO_SUFFIXES`, told by its content.

    Args:
        max_pixels: a larger one is refused before it is decoded; None: any size. (Pillow has a
            limit of its own, `PIL.Image.MAX_IMAGE_PIXELS`.)

    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError: there is no such file to be read.
        InputError: it is no image, is cut short, too large, animated or of several pages, of a kind
            that cannot be kept, or holds floats that are not in [0,1].
    """
    path = Path(path)
    data = path.read_bytes()
    if not data:
        raise InputError(f"{path}: is empty (0 bytes); expected an image")
    if data.startswith(_NUMPY_START):
        return _read_numpy(path, data)
    read = _read_tiff if data.startswith(TIFF_STARTS) else _read_with_pillow
    try:
        return read(path, data, max_pixels)
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(path, str(error).partition(",")[0]) from error
    except Exception as error:  # what parsers raise on broken files is not documented
        raise InputError(f"{path}: cannot be read as an image ({error})") from error


def write_photo(path: str | Path, photo: Photo, pixels: np.ndarray) -> None:
    """Write pixels into a file of the kind that `photo` was read from, whole or not at all.

    Args:
        path: its suffix plays no part.
        photo: gives alpha, format, orientation and metadata.
        pixels: upright, H×W or H×W×3, of the type of the photo's.

    Raises `InputError` for pixels that the format cannot hold.
    """
    if photo.alpha is not None:
        pixels = np.dstack([pixels, photo.alpha])
    pixels = np.ascontiguousarray(_turned(pixels, photo.orientation, back=True))
    encode, metadata = _ENCODERS[photo.format], photo.metadata
    try:
        data = encode(pixels, **metadata)
    except Exception:  # the metadata of a damaged file; where it is not that, it is raised now
        data = encode(pixels, **{key: metadata[key] for key in _ESSENTIAL if key in metadata})
    write_bytes(path, data)


def result_suffix(suffix: str) -> str:
    """Return the suffix for the result of an image of that suffix.

    >>> result_suffix(".JPG"), result_suffix(".gif")
    ('.JPG', '.png')
    """
    return ".png" if suffix.lower() == ".gif" else suffix


def _read_with_pillow(path: Path, data: bytes, max_pixels: int | None) -> Photo:
    try:
        picture = Image.open(io.BytesIO(data))
    except Image.UnidentifiedImageError as error:
        raise InputError(
            f"{path}: {len(data)} bytes of no known image format; expected "
            f"{' '.join(PHOTO_SUFFIXES)}"
        ) from error
    kind = picture.format
    if kind not in _FORMATS:
        raise InputError(f"{path}: is {kind}; expected JPEG, PNG, TIFF, WebP, BMP, PPM, GIF or NPY")
    _check_size(path, *picture.size, max_pixels)
    if kind in _PAGED and picture.n_frames > 1:
        raise InputError(f"{path}: is an animation of {picture.n_frames} images; expected one")

    icc = picture.info.get("icc_profile")
    if picture.mode == "CMYK":
        array, icc = _from_cmyk(picture, icc)
    else:
        array = decode_image(data, path)
    if picture.mode in _GREY_MODES and array.ndim == 3:
        array = array[..., [0, 3]] if array.shape[2] == 4 else array[..., 0]
    if kind == "PNG" and array.ndim == 2:
        for chunk in _png_chunks(data):
            if chunk[4:8] == b"tRNS":
                value = int.from_bytes(chunk[8:10], "big")
                array = _with_transparent_value(array, value, data[_PNG_BITS])
    icc = _fitting_profile(icc, array)

    metadata: dict = {}
    if kind == "PNG":
        kept = [name for name in _KEPT_PNG_CHUNKS if icc or name != b"iCCP"]
        metadata["chunks"] = [chunk for chunk in _png_chunks(data) if chunk[4:8] in kept]
    elif kind in ("JPEG", "MPO", "WEBP"):
        metadata = {"icc_profile": icc, "exif": picture.info.get("exif")}
    if kind == "WEBP":
        metadata["lossless"] = b"VP8L" in data[:_WEBP_START]
    elif kind in ("JPEG", "MPO"):
        metadata["dpi"] = picture.info.get("dpi")
    kind = {"MPO": "JPEG", "GIF": "PNG"}.get(kind, kind)
    return _photo(path, array, kind, _orientation(picture), metadata)


def _read_tiff(path: Path, data: bytes, max_pixels: int | None) -> Photo:
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # a broken file is told of once, here
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        if not file.pages:
            raise InputError(f"{path}: holds no image; expected one")
        page, *others = islice(file.pages, _MOST_PAGES_COUNTED)
        pages = 1 + sum(not other.is_reduced for other in others)  # the others are thumbnails
        if pages > 1:
            more = " or more" if pages == _MOST_PAGES_COUNTED else ""
            raise InputError(f"{path}: has {pages}{more} pages; expected one")
        _check_size(path, page.imagewidth, page.imagelength, max_pixels)
        tags = {code: page.tags[code].value for code in _KEPT_TIFF_TAGS if code in page.tags}
        photometric, bits, samples = page.photometric.name, page.bitspersample, page.samplesperpixel

    icc = tags.get("InterColorProfile")
    if photometric == "SEPARATED":
        array, icc = _from_cmyk(Image.open(io.BytesIO(data)), icc)
    else:
        array = decode_image(data, path)
        found = 1 if array.ndim == 2 else array.shape[2]
        grey_with_alpha = samples == 2 and found == 4
        as_stored = samples == found and bits in (1, 8, 8 * array.itemsize)
        if not (as_stored or grey_with_alpha or photometric == "PALETTE"):
            raise InputError(
                f"{path}: has {samples} channels of {bits} bits ({photometric}), of which only "
                f"{found} of {8 * array.itemsize} bits can be read"
            )
        if grey_with_alpha:
            array = array[..., [0, 3]]
    metadata = {"icc_profile": _fitting_profile(icc, array)}
    if {"XResolution", "YResolution"} <= tags.keys():
        metadata["resolution"] = (tags["XResolution"], tags["YResolution"])
        metadata["resolution_unit"] = int(tags.get("ResolutionUnit", 1))
    if tags.get("ExtraSamples"):
        metadata["alpha_kind"] = int(np.ravel(tags["ExtraSamples"])[0])
    return _photo(path, array, "TIFF", metadata=metadata)  # its decoders turn it upright


def _read_numpy(path: Path, data: bytes) -> Photo:
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # a damaged file can raise nearly anything
        raise InputError(f"{path}: cannot be read as a NumPy array ({error})") from error
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if not (
        fits and array.size and (array.dtype.kind == "f" or array.dtype in (np.uint8, np.uint16))
    ):
        raise InputError(
            f"{path}: holds {array.dtype} of shape {array.shape}; expected H×W, H×W×3 or H×W×4 of "
            "uint8, uint16 or float"
        )
    return _photo(path, array, "NPY")


def _photo(
    path: Path, array: np.ndarray, kind: str, orientation: int = 1, metadata: dict | None = None
) -> Photo:
    """Return the photo of pixels as stored, H×W or H×W×2…4 (the even ones with alpha)."""
    if array.dtype.kind == "f":
        if broken := np.count_nonzero(~np.isfinite(array)):
            raise InputError(f"{path}: {broken} of its values are not finite; expected 0 … 1")
        if array.min() < 0 or array.max() > 1:
            raise InputError(
                f"{path}: has values {array.min():g} … {array.max():g}; expected 0 … 1"
            )
    array, alpha = _turned(array, orientation), None
    if array.ndim == 3 and array.shape[2] in (2, 4):
        array, alpha = array[..., :-1], array[..., -1]
        array = array[..., 0] if array.shape[2] == 1 else array
    return Photo(array, alpha, kind, orientation, metadata or {})


def _check_size(path: Path, width: int, height: int, max_pixels: int | None) -> None:
    if max_pixels is not None and width * height > max_pixels:
        raise _too_large(path, f"{width}×{height} pixels", max_pixels)


def _too_large(path: Path, found: str, max_pixels: int | None = None) -> InputError:
    limit = f"at most {max_pixels / 1e6:g} megapixels" if max_pixels else "a smaller image"
    return InputError(f"{path}: {found}; expected {limit} (--max_megapixels lifts the limit)")


def _with_transparent_value(grey: np.ndarray, value: int, bits: int) -> np.ndarray:
    """Return H×W pixels as H×W×2, with an alpha of zero where they have that value of `bits`."""
    most = np.iinfo(grey.dtype).max
    stored = value * most // (2**bits - 1)  # fewer than 8 bits are decoded to 8
    return np.dstack([grey, np.where(grey == stored, 0, most).astype(grey.dtype)])


def _from_cmyk(picture: Image.Image, icc: bytes | None) -> tuple[np.ndarray, bytes | None]:
    """Return RGB pixels of a CMYK picture, and their colour profile."""
    from PIL import ImageCms

    if icc:
        try:
            srgb = ImageCms.createProfile("sRGB")
            source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            converted = ImageCms.profileToProfile(picture, source, srgb, outputMode="RGB")
            return np.array(converted), ImageCms.ImageCmsProfile(srgb).tobytes()
        except (ImageCms.PyCMSError, OSError):
            pass  # a broken profile
    return np.array(picture.convert("RGB")), None


def _fitting_profile(icc: bytes | None, array: np.ndarray) -> bytes | None:
    """Return the profile if it is for colour and the pixels are, or for grey and they are."""
    grey = array.ndim == 2 or array.shape[2] == 2
    return icc if icc and icc[16:20] == (b"GRAY" if grey else b"RGB ") else None


def _orientation(picture: Image.Image) -> int:
    try:
        orientation = picture.getexif().get(0x0112, 1)
    except Exception:  # broken EXIF, of which nothing but this is used
        return 1
    return orientation if orientation in _TURNS else 1


# Orientation → whether the stored pixels are to be transposed, then flipped up-down, left-right.
_TURNS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


def _turned(array: np.ndarray, orientation: int, back: bool = False) -> np.ndarray:
    """Return H×W[×C] pixels turned upright, or `back` to how they are stored; a view."""
    transposed, *flips = _TURNS[orientation]
    steps = tuple(slice(None, None, -1 if flip else 1) for flip in flips)
    if back:
        array = array[steps]
    if transposed:
        array = array.swapaxes(0, 1)
    return array if back else array[steps]


def _png_chunks(data: bytes) -> list[bytes]:
    """Return a PNG's chunks, each with its length, name and checksum."""
    chunks, place = [], 8
    while place + 8 <= len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        chunks.append(data[place:end])
        place = end
    return chunks


def _encode_png(pixels: np.ndarray, chunks: list[bytes] = ()) -> bytes:
    if pixels.ndim == 3 and pixels.shape[2] == 2:
        if pixels.dtype == np.uint8:
            encoded = _encode_with_pillow(pixels, "PNG")
        else:
            encoded = encode_image("image.png", pixels[..., [0, 0, 0, 1]])
    else:
        encoded = encode_image("image.png", pixels)
    return b"".join([encoded[:_PNG_START], *chunks, encoded[_PNG_START:]])


def _encode_jpeg(pixels: np.ndarray, **options) -> bytes:
    return _encode_with_pillow(pixels, "JPEG", quality=QUALITY, subsampling=0, **options)


def _encode_webp(pixels: np.ndarray, **options) -> bytes:
    # exact: colours below full transparency stay too
    return _encode_with_pillow(pixels, "WEBP", quality=QUALITY, exact=True, **options)


def _encode_tiff(
    pixels: np.ndarray,
    icc_profile: bytes | None = None,
    resolution: tuple | None = None,
    resolution_unit: int | None = None,
    alpha_kind: int = 2,
) -> bytes:
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
        predictor=pixels.dtype.kind == "u",
        iccprofile=icc_profile,
        resolution=resolution,
        resolutionunit=resolution_unit,
        metadata=None,
    )
    return buffer.getvalue()


def _encode_numpy(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, pixels)
    return buffer.getvalue()


def _encode_with_pillow(pixels: np.ndarray, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    given = {name: value for name, value in options.items() if value is not None}
    Image.fromarray(pixels).save(buffer, kind, **given)
    return buffer.getvalue()


_ENCODERS = {
    "PNG": _encode_png,
    "JPEG": _encode_jpeg,
    "WEBP": _encode_webp,
    "TIFF": _encode_tiff,
    "BMP": lambda pixels: encode_image("image.bmp", pixels),
    "PPM": lambda pixels: encode_image("image.pgm" if pixels.ndim == 2 else "image.ppm", pixels),
    "NPY": _encode_numpy,
}
