import io

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, ImageOps

from dgunet.base.errors import InputError
from dgunet.images.photographs import read_photo, write_photo

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GREY = SRGB[:16] + b"GRAY" + SRGB[20:]  # by its colour space


def pixels(*shape, dtype=np.uint8):
    """Smooth, so that lossy formats keep them nearly."""
    height, width = shape[:2]
    ramp = np.linspace(0, 200, height)[:, None] + np.linspace(0, 55, width)
    image = np.stack([ramp, ramp[::-1], ramp[:, ::-1], ramp[::-1, ::-1]], axis=2)
    image = image[..., 0] if len(shape) == 2 else image[..., : shape[2]]
    return np.rint(image * (np.iinfo(dtype).max / 255)).astype(dtype)


def written(path, photo, made):
    """The result as its own photo, and as Pillow opens it."""
    result = path.with_name(f"result{path.suffix}")
    write_photo(result, photo, made)
    return read_photo(result), Image.open(result)


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


KINDS = [
    *((suffix, shape, np.uint8) for suffix in (".png", ".tif") for shape in (2, 3, 4)),
    *((suffix, shape, np.uint16) for suffix in (".png", ".tif") for shape in (2, 3, 4)),
    *((suffix, shape, np.uint8) for suffix in (".jpg", ".bmp") for shape in (2, 3)),
    (".webp", 3, np.uint8),
    (".webp", 4, np.uint8),
]


@pytest.mark.parametrize("suffix, shape, dtype", KINDS)
def test_depth_and_channels_stay(tmp_path, suffix, shape, dtype):
    shape = (12, 17) if shape == 2 else (12, 17, shape)
    stored = pixels(*shape, dtype=dtype)
    path = tmp_path / f"photo{suffix}"
    save(path, stored)
    photo = read_photo(path)
    colours = stored if stored.ndim == 2 else stored[..., :3]
    alpha = stored[..., 3] if stored.ndim == 3 and stored.shape[2] == 4 else None
    lossy = suffix in (".jpg", ".webp")
    assert photo.pixels.dtype == dtype and photo.pixels.shape == colours.shape
    np.testing.assert_allclose(photo.pixels, colours, atol=24 if lossy else 0)
    assert (photo.alpha is None) == (alpha is None)

    made = photo.pixels[::-1, ::-1]
    write_photo(tmp_path / "result", photo, made)
    again = read_photo(tmp_path / "result")
    assert again.pixels.dtype == dtype and again.pixels.shape == made.shape
    np.testing.assert_allclose(
        again.pixels.astype(float), made.astype(float), atol=24 if lossy else 0
    )
    if alpha is not None:
        assert np.array_equal(photo.alpha, alpha) and np.array_equal(again.alpha, alpha)
    assert again.format == photo.format


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_grey_with_alpha(tmp_path, suffix):
    stored = np.dstack([pixels(5, 7), 255 - pixels(5, 7)])
    Image.fromarray(stored, "LA").save(tmp_path / f"photo{suffix}")
    photo = read_photo(tmp_path / f"photo{suffix}")
    assert np.array_equal(photo.pixels, stored[..., 0])
    again, picture = written(tmp_path / f"photo{suffix}", photo, photo.pixels)
    assert picture.mode == "LA" and np.array_equal(np.asarray(picture), stored)
    assert np.array_equal(again.alpha, stored[..., 1])


def test_colours_under_transparency_stay(tmp_path):
    stored = np.dstack([pixels(9, 9, 3), np.zeros((9, 9), np.uint8)])
    for name, options in [
        ("a.png", {}),
        ("a.webp", {"lossless": True, "exact": True}),
        ("a.tif", {}),
    ]:
        save(tmp_path / name, stored, **options)
        photo = read_photo(tmp_path / name)
        assert np.array_equal(photo.pixels, stored[..., :3])
        again, _ = written(tmp_path / name, photo, photo.pixels)
        assert np.array_equal(again.pixels, stored[..., :3]) and not again.alpha.any()


def test_lossless_webp_stays_lossless(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.webp", lossless=True)
    Image.fromarray(noise).save(tmp_path / "b.webp", quality=50)
    for name, equal in (("a.webp", True), ("b.webp", False)):
        photo = read_photo(tmp_path / name)
        again, _ = written(tmp_path / name, photo, photo.pixels)
        assert np.array_equal(again.pixels, photo.pixels) == equal


def test_jpeg_keeps_its_quality(tmp_path):
    texture = cv2.GaussianBlur(
        np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), (0, 0), 1
    )
    save(tmp_path / "a.jpg", texture, quality=90)
    photo = read_photo(tmp_path / "a.jpg")
    again, picture = written(tmp_path / "a.jpg", photo, photo.pixels)
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
    photo = read_photo(path)
    again, picture = written(path, photo, photo.pixels)
    assert picture.info["icc_profile"] == profile and again.pixels.dtype == dtype
    # A profile for other colours than the pixels' is none of the result's.
    wrong = tmp_path / "wrong.png"
    save(wrong, pixels(8, 9, 3), icc_profile=GREY)
    _, picture = written(wrong, read_photo(wrong), pixels(8, 9, 3))
    assert "icc_profile" not in picture.info


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
    photo = read_photo(path)
    np.testing.assert_allclose(photo.pixels, upright, atol=16 if suffix == ".jpg" else 0)
    again, picture = written(path, photo, photo.pixels)
    np.testing.assert_allclose(again.pixels, upright, atol=16 if suffix == ".jpg" else 0)
    if suffix != ".tif":  # which decoders turn themselves
        assert picture.size == (24, 16)
        assert dict(picture.getexif()) == dict(exif)


def test_resolution_and_text_stay(tmp_path):
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text("Author", "somebody")
    Image.fromarray(pixels(8, 9, 3)).save(tmp_path / "a.png", pnginfo=text, dpi=(300, 300))
    save(tmp_path / "a.jpg", pixels(8, 9, 3), dpi=(300, 300))
    save(tmp_path / "a.tif", pixels(8, 9, 3), resolution=(300, 300), resolutionunit="INCH")
    for name in ("a.png", "a.jpg", "a.tif"):
        photo = read_photo(tmp_path / name)
        _, picture = written(tmp_path / name, photo, photo.pixels)
        assert np.allclose(picture.info["dpi"], 300, atol=0.1)
        if name == "a.png":
            assert picture.info["Author"] == "somebody"


def test_metadata_that_no_encoder_takes_is_left_out(tmp_path):
    save(tmp_path / "a.tif", pixels(8, 9, 4))
    photo = read_photo(tmp_path / "a.tif")
    photo.metadata["resolution"], photo.metadata["resolution_unit"] = (1, 0), 77
    again, _ = written(tmp_path / "a.tif", photo, photo.pixels)
    assert np.array_equal(again.pixels, photo.pixels) and again.metadata["alpha_kind"] == 2
    save(tmp_path / "a.jpg", pixels(8, 9, 3))
    photo = read_photo(tmp_path / "a.jpg")
    photo.metadata["exif"] = bytes(70_000)
    written(tmp_path / "a.jpg", photo, photo.pixels)


def test_palette_and_one_bit_become_colour_and_grey(tmp_path):
    Image.fromarray(pixels(8, 9, 3)).quantize(16).save(tmp_path / "a.png")
    Image.fromarray(pixels(8, 9) > 100).save(tmp_path / "b.png")
    for name, mode in (("a.png", "RGB"), ("b.png", "L")):
        photo = read_photo(tmp_path / name)
        _, picture = written(tmp_path / name, photo, photo.pixels)
        assert picture.format == "PNG" and picture.mode == mode
        assert np.array_equal(photo.pixels, Image.open(tmp_path / name).convert(mode))


def test_transparent_palette(tmp_path):
    picture = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.save(tmp_path / "a.png", transparency=1)
    photo = read_photo(tmp_path / "a.png")
    assert photo.pixels.tolist() == [[[10, 20, 30], [40, 50, 60]]]
    assert photo.alpha.tolist() == [[255, 0]]


def test_white_is_zero(tmp_path):
    for dtype in (np.uint8, np.uint16):
        tifffile.imwrite(
            tmp_path / "a.tif", pixels(5, 6, dtype=dtype), photometric="miniswhite", metadata=None
        )
        expected = np.iinfo(dtype).max - pixels(5, 6, dtype=dtype)
        assert np.array_equal(read_photo(tmp_path / "a.tif").pixels, expected)


def test_a_phone_photo_of_several_pictures_is_its_first(tmp_path):
    first, second = (Image.fromarray(pixels(16, 16, 3)[::step]) for step in (1, -1))
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second])
    photo = read_photo(tmp_path / "a.jpg")
    np.testing.assert_allclose(photo.pixels, pixels(16, 16, 3), atol=16)
    _, picture = written(tmp_path / "a.jpg", photo, photo.pixels)
    assert picture.format == "JPEG"


def test_the_content_tells_the_format(tmp_path):
    save(tmp_path / "a.png", pixels(8, 9, 4))
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    photo = read_photo(tmp_path / "a.jpg")
    again, picture = written(tmp_path / "a.jpg", photo, photo.pixels)
    assert picture.format == "PNG" and np.array_equal(again.alpha, pixels(8, 9, 4)[..., 3])


def animation(path, **options):
    frames = [Image.fromarray(pixels(8, 9, 3)[::step]) for step in (1, -1)]
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)


def bad_tiff(path, dtype, value):
    tifffile.imwrite(path, np.full((4, 5), value, dtype), metadata=None)


def transparent_grey(path):
    Image.fromarray(pixels(8, 9)).save(path, transparency=7)


def grey_with_alpha(path):
    save(path, np.dstack([pixels(5, 7, dtype=np.uint16)] * 2))


REFUSED = [
    ("a.webp", animation, "is an animation of 2 images; expected one"),
    ("a.png", animation, "is an animation of 2 images"),
    ("a.tif", animation, "has 2 pages; expected one"),
    ("a.tif", lambda p: bad_tiff(p, np.int16, 5), "int16; expected 8 or 16 bits"),
    ("a.tif", lambda p: bad_tiff(p, np.uint32, 5), "expected 8 or 16 bits"),
    ("a.tif", grey_with_alpha, "expected PNG, JPEG, TIFF"),  # it would be read with 8 bits
    ("a.tif", lambda p: p.write_bytes(b"II*\0\0\0\0\0"), ""),
    ("a.png", transparent_grey, "one of its grey values is transparent; expected alpha"),
    ("a.png", lambda p: p.write_bytes(b""), r"is empty \(0 bytes\); expected PNG"),
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


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, suffix):
    path = tmp_path / f"bomb{suffix}"
    if suffix == ".tif":
        tifffile.imwrite(path, np.zeros((40, 50), np.uint8), metadata=None)
    else:
        Image.new("L", (50, 40)).save(path)
    with pytest.raises(
        InputError, match=r"50×40 pixels; expected at most 0\.001 megapixels"
    ) as error:
        read_photo(path, max_pixels=1000)
    assert "--max_megapixels" in str(error.value)
    assert read_photo(path, max_pixels=None).pixels.shape == (40, 50)


def test_pillows_own_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("L", (50, 40)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="--max_megapixels lifts"):
        read_photo(tmp_path / "a.png")


@pytest.mark.parametrize("shape", [(1, 1), (1, 1, 3), (3, 5000, 3), (5000, 3)])
def test_odd_sizes(tmp_path, shape):
    for suffix in (".png", ".tif", ".jpg", ".bmp"):
        save(tmp_path / f"a{suffix}", pixels(*shape))
        photo = read_photo(tmp_path / f"a{suffix}")
        again, _ = written(tmp_path / f"a{suffix}", photo, photo.pixels)
        assert again.pixels.shape == shape


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_in_tiles(tmp_path, dtype, channels):
    array = pixels(40, 50, 4, dtype=dtype)[..., :channels]
    array = array[..., 0] if channels == 1 else array
    save(tmp_path / "a.tif", array, tile=(16, 16), compression="zlib")
    photo = read_photo(tmp_path / "a.tif")
    if channels == 4:
        assert np.array_equal(photo.alpha, array[..., -1])
        array = array[..., :3]
    assert np.array_equal(photo.pixels, array)
