import io

import cv2
import numpy as np
import pytest
import tifffile
from pictures import noise
from PIL import Image, ImageCms, ImageOps
from PIL.PngImagePlugin import PngInfo

from dgunet.base.errors import InputError
from dgunet.images.photographs import read_photo, write_photo

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GREY = SRGB[:16] + b"GRAY" + SRGB[20:]  # by its colour space


def pixels(*shape, dtype=np.uint8):
    """Smooth, so that lossy formats keep them nearly."""
    height, width, *channels = shape
    ramp = np.linspace(0, 200, height)[:, None] + np.linspace(0, 55, width)
    turned = [ramp, ramp[::-1], ramp[:, ::-1], ramp[::-1, ::-1]]
    image = np.dstack(turned[: channels[0]]) if channels else ramp
    return np.rint(image * (np.iinfo(dtype).max / 255)).astype(dtype)


def round_trip(path):
    """Return a photo, the photo written again, and that as Pillow opens it."""
    photo, result = read_photo(path), path.with_name(f"result{path.suffix}")
    write_photo(result, photo, photo.pixels)
    return photo, read_photo(result), Image.open(result)


def save(path, array, **options):
    """Write a file by another library than the one under test would."""
    if path.suffix == ".tif":
        extra = ["unassalpha"] if array.ndim == 3 and array.shape[2] in (2, 4) else None
        rgb = array.ndim == 3 and array.shape[2] > 2
        tifffile.imwrite(
            path, array, photometric="rgb" if rgb else "minisblack", extrasamples=extra,
            planarconfig="contig" if array.ndim == 3 else None, metadata=None, **options,
        )  # fmt: skip
    elif array.dtype == np.uint16:
        order = [2, 1, 0, 3][: array.shape[2]] if array.ndim == 3 else Ellipsis
        cv2.imwrite(str(path), array[..., order] if array.ndim == 3 else array)
    else:
        Image.fromarray(array).save(path, **{"quality": 95, **options})


TILES = {"tile": (16, 16), "compression": "zlib"}
DEPTHS = (np.uint8, np.uint16)
KINDS = [
    *((kind, n, depth, {}) for kind in (".png", ".tif") for n in (1, 3, 4) for depth in DEPTHS),
    *((".tif", channels, depth, TILES) for channels in (1, 3, 4) for depth in DEPTHS),
    *((suffix, channels, np.uint8, {}) for suffix in (".jpg", ".bmp") for channels in (1, 3)),
    *((".webp", channels, np.uint8, {}) for channels in (3, 4)),
]


@pytest.mark.parametrize("suffix, channels, dtype, options", KINDS)
def test_depth_and_channels_stay(tmp_path, suffix, channels, dtype, options):
    stored = pixels(40, 50, *[channels] * (channels > 1), dtype=dtype)
    path = tmp_path / f"photo{suffix}"
    save(path, stored, **options)
    photo, again, _ = round_trip(path)
    colours = (stored[..., :3] if channels > 1 else stored).astype(float)
    for image in (photo, again):
        assert image.pixels.dtype == dtype and image.format == photo.format
        lossy = suffix in (".jpg", ".webp")
        np.testing.assert_allclose(image.pixels, colours, atol=24 if lossy else 0)
        assert (image.alpha is None) == (channels != 4)
        assert channels != 4 or np.array_equal(image.alpha, stored[..., 3])


@pytest.mark.parametrize(
    ("name", "channels", "options"),
    [
        *((name, channels, {}) for name in ("a.png", "a.tif") for channels in (2, 4)),
        ("a.webp", 3, {"lossless": True}),
        ("a.webp", 4, {"lossless": True, "exact": True}),
    ],
)
def test_colours_stay_to_the_bit_under_transparency_too(tmp_path, name, channels, options):
    stored = noise(9, 9, channels)
    if channels != 3:
        stored[:5, :, -1] = 0
    save(tmp_path / name, stored, **options)
    photo, again, picture = round_trip(tmp_path / name)
    assert np.array_equal(photo.pixels, stored[..., 0] if channels == 2 else stored[..., :3])
    assert np.array_equal(np.asarray(picture), stored)
    assert channels == 3 or np.array_equal(again.alpha, stored[..., -1])


def test_jpeg_keeps_its_quality(tmp_path):
    save(tmp_path / "a.jpg", cv2.GaussianBlur(noise(64, 64, 3), (0, 0), 1), quality=90)
    photo, again, picture = round_trip(tmp_path / "a.jpg")
    error = again.pixels.astype(float) - photo.pixels
    assert 10 * np.log10(255**2 / np.mean(error**2)) > 40
    assert picture.layer[0][1:3] == picture.layer[1][1:3]  # no colour subsampling


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif", "a16.png", "a16.tif"])
@pytest.mark.parametrize("grey", [False, True])
def test_colour_profile_stays(tmp_path, name, grey):
    if name == "a.webp" and grey:
        pytest.skip("WebP knows no grey")
    path, profile = tmp_path / name, GREY if grey else SRGB
    dtype = np.uint16 if "16" in name else np.uint8
    image = pixels(*((8, 9) if grey else (8, 9, 3)), dtype=dtype)
    if name == "a16.png":
        chunk = io.BytesIO()
        Image.new("L" if grey else "RGB", (9, 8)).save(chunk, "PNG", icc_profile=profile)
        start = chunk.getvalue().index(b"iCCP") - 4
        length = int.from_bytes(chunk.getvalue()[start : start + 4], "big") + 12
        save(path, image)
        data = path.read_bytes()
        path.write_bytes(data[:33] + chunk.getvalue()[start : start + length] + data[33:])
    else:
        save(path, image, **{"iccprofile" if path.suffix == ".tif" else "icc_profile": profile})
    _, again, picture = round_trip(path)
    assert picture.info["icc_profile"] == profile and again.pixels.dtype == dtype
    # A profile for other colours than the pixels' is none of the result's.
    save(tmp_path / "wrong.png", pixels(8, 9, 3), icc_profile=GREY)
    assert "icc_profile" not in round_trip(tmp_path / "wrong.png")[2].info


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_photos_are_upright_and_stored_as_they_were(tmp_path, suffix, orientation):
    path, image = tmp_path / f"a{suffix}", Image.fromarray(pixels(16, 24, 3))
    exif = image.getexif()
    exif[0x0112] = orientation
    exif[0x010F] = "camera"
    image.save(path, exif=exif, **({"lossless": True} if suffix == ".webp" else {}))
    stored = Image.open(path)
    upright = np.asarray(ImageOps.exif_transpose(stored))
    photo, again, picture = round_trip(path)
    for image in (photo, again):
        np.testing.assert_allclose(image.pixels, upright, atol=16 if suffix == ".jpg" else 0)
    if suffix != ".tif":  # which decoders turn themselves
        assert picture.size == (24, 16)
        assert dict(picture.getexif()) == dict(exif)


def test_resolution_and_text_stay(tmp_path):
    text = PngInfo()
    text.add_text("Author", "somebody")
    save(tmp_path / "a.png", pixels(8, 9, 3), pnginfo=text, dpi=(300, 300))
    save(tmp_path / "a.jpg", pixels(8, 9, 3), dpi=(300, 300))
    save(tmp_path / "a.tif", pixels(8, 9, 3), resolution=(300, 300), resolutionunit="INCH")
    for name in ("a.png", "a.jpg", "a.tif"):
        _, _, picture = round_trip(tmp_path / name)
        assert np.allclose(picture.info["dpi"], 300, atol=0.1)
        if name == "a.png":
            assert picture.info["Author"] == "somebody"


@pytest.mark.parametrize(
    ("name", "metadata"),
    [("a.tif", {"resolution": (1, 0), "resolution_unit": 77}), ("a.jpg", {"exif": bytes(70_000)})],
)
def test_metadata_that_no_encoder_takes_is_left_out(tmp_path, name, metadata):
    save(tmp_path / name, pixels(8, 9, 3))
    photo = read_photo(tmp_path / name)
    photo.metadata.update(metadata)
    write_photo(tmp_path / "result", photo, photo.pixels)
    assert read_photo(tmp_path / "result").format == photo.format


def test_transparent_palette(tmp_path):
    picture = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.save(tmp_path / "a.png", transparency=1)
    photo = read_photo(tmp_path / "a.png")
    assert photo.pixels.tolist() == [[[10, 20, 30], [40, 50, 60]]]
    assert photo.alpha.tolist() == [[255, 0]]


def test_white_is_zero(tmp_path):
    for dtype in DEPTHS:
        stored = pixels(5, 6, dtype=dtype)
        tifffile.imwrite(tmp_path / "a.tif", stored, photometric="miniswhite", metadata=None)
        expected = np.iinfo(dtype).max - stored
        assert np.array_equal(read_photo(tmp_path / "a.tif").pixels, expected)


def test_a_phone_photo_of_several_pictures_is_its_first(tmp_path):
    first, second = (Image.fromarray(pixels(16, 16, 3)[::step]) for step in (1, -1))
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second])
    photo, _, picture = round_trip(tmp_path / "a.jpg")
    np.testing.assert_allclose(photo.pixels, pixels(16, 16, 3), atol=16)
    assert picture.format == "JPEG"


def test_the_content_tells_the_format(tmp_path):
    save(tmp_path / "a.png", pixels(8, 9, 4))
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    _, again, picture = round_trip(tmp_path / "a.jpg")
    assert picture.format == "PNG" and np.array_equal(again.alpha, pixels(8, 9, 4)[..., 3])


def animation(path, **options):
    frames = [Image.fromarray(pixels(8, 9, 3)[::step]) for step in (1, -1)]
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)


def wide_tiff(path):
    tifffile.imwrite(path, np.full((4, 5), 5, np.int16), metadata=None)


def transparent_grey(path):
    Image.fromarray(pixels(8, 9)).save(path, transparency=7)


def grey_with_alpha(path):
    save(path, np.dstack([pixels(5, 7, dtype=np.uint16)] * 2))


REFUSED = [
    ("a.webp", animation, "is an animation of 2 images; expected one"),
    ("a.tif", animation, "has 2 pages; expected one"),
    ("a.tif", wide_tiff, "int16; expected 8 or 16 bits"),
    ("a.tif", grey_with_alpha, "expected PNG, JPEG, TIFF"),  # it would be read with 8 bits
    ("a.tif", lambda p: p.write_bytes(b"II*\0\0\0\0\0"), "no known image format|cannot be read"),
    ("a.png", transparent_grey, "one of its grey values is transparent; expected alpha"),
]


@pytest.mark.parametrize("name, make, message", REFUSED)
def test_refused(tmp_path, name, make, message):
    make(tmp_path / name)
    with pytest.raises(InputError, match=message) as error:
        read_photo(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


def test_a_thumbnail_is_no_page(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(pixels(8, 9), metadata=None)
        file.write(pixels(4, 4), metadata=None, subfiletype=1)
    assert np.array_equal(read_photo(tmp_path / "a.tif").pixels, pixels(8, 9))


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    path = tmp_path / "bomb.png"
    save(path, noise(40, 50))
    message = r"50×40 pixels; expected at most 0\.001 megapixels \(--max_megapixels"
    with pytest.raises(InputError, match=message):
        read_photo(path, max_pixels=1000)
    assert read_photo(path, max_pixels=None).pixels.shape == (40, 50)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(InputError, match="--max_megapixels lifts"):
        read_photo(path)
