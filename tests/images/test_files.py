import os

import numpy as np
import pytest
import tifffile
import torch
from pictures import noise
from PIL import Image

import dgunet.base.memory
from dgunet.base.errors import InputError
from dgunet.images.files import (
    list_images,
    pair_by_name,
    read_gray,
    read_image,
    read_rgb,
    to_tensor,
    to_uint8,
    write_image,
)


def touch(*paths):
    for path in paths:
        write_image(path, noise(4, 5, 3))


def test_list_images_in_natural_order(tmp_path):
    touch(tmp_path / "10.png", tmp_path / "2.PNG", tmp_path / "sub/1.jpg")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "._2.png").write_text("left by another system")
    assert [path.name for path in list_images(tmp_path)] == ["2.PNG", "10.png"]
    found = [path.name for path in list_images(tmp_path, recursive=True)]
    assert found == ["2.PNG", "10.png", "1.jpg"]


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
@pytest.mark.parametrize("shape", [(7, 9), (7, 9, 3), (7, 9, 4)])
def test_written_pixels_are_what_pillow_reads(tmp_path, suffix, shape):
    path = tmp_path / "new" / f"image{suffix}"
    write_image(path, noise(*shape))
    np.testing.assert_array_equal(np.asarray(Image.open(path)), noise(*shape))
    np.testing.assert_array_equal(read_image(path), noise(*shape))
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("shape", [(7, 9), (7, 9, 3)])
def test_16_bit(tmp_path, shape):
    stored = noise(*shape, dtype=np.uint16)
    write_image(tmp_path / "image.png", stored)
    np.testing.assert_array_equal(read_image(tmp_path / "image.png"), stored)
    rounded = np.rint(stored / 65535 * 255).astype(np.uint8)
    expected = rounded if stored.ndim == 3 else np.stack([rounded] * 3, axis=2)
    np.testing.assert_array_equal(read_rgb(tmp_path / "image.png"), expected)


def test_palette_becomes_colour_or_grey(tmp_path):
    indices = np.arange(12, dtype=np.uint8).reshape(3, 4)
    grey = np.repeat(np.arange(255, 243, -1, dtype=np.uint8)[:, None], 3, axis=1)
    colours = noise(12, 3)
    for palette, expected in [(grey, grey[indices][..., 0]), (colours, colours[indices])]:
        picture = Image.fromarray(indices).convert("P")
        picture.putpalette(palette.tobytes())
        for suffix in (".png", ".tif", ".bmp"):
            path = tmp_path / f"palette{suffix}"
            picture.save(path)
            np.testing.assert_array_equal(read_image(path), expected, err_msg=suffix)


def test_orientation_is_not_applied(tmp_path):
    picture = Image.fromarray(noise(8, 16, 3))
    exif = picture.getexif()
    exif[0x0112] = 6  # rotated by 90 degrees
    for name in ("image.jpg", "image.png"):
        picture.save(tmp_path / name, exif=exif)
        assert read_image(tmp_path / name).shape == (8, 16, 3)


@pytest.mark.parametrize("channels", [3, 4])
def test_read_gray_is_full_range_luma(tmp_path, channels):
    stored = noise(16, 16, channels)
    write_image(tmp_path / "image.png", stored)
    luma = stored[..., :3] @ np.array([0.299, 0.587, 0.114])
    assert np.abs(read_gray(tmp_path / "image.png") - luma).max() <= 0.51
    write_image(tmp_path / "grey.png", stored[..., 0])
    np.testing.assert_array_equal(read_gray(tmp_path / "grey.png"), stored[..., 0])


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".webp"])
def test_broken_files_are_named(tmp_path, suffix, capfd):
    Image.fromarray(noise(64, 64, 3)).save(tmp_path / f"whole{suffix}")
    data = (tmp_path / f"whole{suffix}").read_bytes()
    broken = {"half": data[: len(data) // 2], "end": data[:-20], "empty": b"", "text": b"hello"}
    for name, content in broken.items():
        path = tmp_path / f"{name}{suffix}"
        path.write_bytes(content)
        with pytest.raises(InputError, match=path.name):
            read_image(path)
    assert capfd.readouterr().err == ""


def test_jpeg_cut_short_after_a_thumbnail(tmp_path):
    whole, cut = tmp_path / "whole.jpg", tmp_path / "cut.jpg"
    for path, side in ((cut, 8), (whole, 64)):
        Image.fromarray(noise(side, side, 3)).save(path)
    thumbnail, data = cut.read_bytes(), whole.read_bytes()
    note = b"\xff\xfe" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    whole.write_bytes(data[:2] + note + data[2:])
    assert read_image(whole).shape == (64, 64, 3)
    cut.write_bytes(whole.read_bytes()[:-300])
    with pytest.raises(InputError, match="cut short"):
        read_image(cut)


def test_other_formats_and_pixels_are_refused(tmp_path):
    for mode, name, message in [
        ("RGB", "a.gif", "is a GIF image; expected PNG, JPEG, TIFF, WebP or BMP"),
        ("RGB", "a.ppm", "is a PPM image; expected PNG"),
        ("CMYK", "a.jpg", "it has CMYK pixels; expected grey or RGB"),
        ("LAB", "a.tif", "it has LAB pixels; expected grey or RGB"),
        ("F", "b.tif", "it has F pixels; expected grey or RGB of 8 or 16 bits"),
        ("I", "c.tif", "1 channels of int32; expected 8 or 16 bits"),
    ]:
        Image.new(mode, (4, 4)).save(tmp_path / name)
        with pytest.raises(InputError, match=rf"{name}: .*{message}"):
            read_image(tmp_path / name)
    planes = noise(3, 16, 16)
    tifffile.imwrite(tmp_path / "a.tif", planes, photometric="rgb", planarconfig="separate")
    with pytest.raises(InputError, match="separate planes; expected interleaved"):
        read_image(tmp_path / "a.tif")
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "missing.png")


def test_more_pixels_than_the_memory_holds_are_not_decoded(tmp_path, monkeypatch):
    write_image(tmp_path / "a.png", noise(40, 50, 3))
    monkeypatch.setattr(dgunet.base.memory, "free_memory", lambda: 30_000)
    with pytest.raises(InputError, match=r"a\.png: 50×40 pixels would take about .* GB of memory"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("image.xyz", np.zeros((4, 4), np.uint8)),
        ("image.jpg", np.zeros((4, 4), np.uint16)),
        ("image.png", np.zeros((4, 4), np.float32)),
        ("image.png", np.zeros((4, 4, 2), np.uint8)),
        ("image.png", np.zeros(4, np.uint8)),
    ],
)
def test_unwritable_pixels_leave_no_file(tmp_path, name, array):
    with pytest.raises(InputError, match=name):
        write_image(tmp_path / name, array)
    assert not os.listdir(tmp_path)


def test_to_tensor_of_every_type():
    array = noise(5, 6, 3)
    expected = torch.from_numpy(array.transpose(2, 0, 1) / np.float32(255))
    assert torch.equal(to_tensor(array), expected)
    assert torch.equal(to_tensor(array[..., 0]), expected[:1])
    assert torch.equal(to_tensor(array[::-1, ::-1]), expected.flip(1, 2))
    deep = noise(5, 6, 3, dtype=np.uint16)
    assert torch.equal(to_tensor(deep)[0], torch.from_numpy(deep[..., 0] / np.float32(65535)))
    unclipped = np.array([[-0.25, 1.5]], np.float32)
    tensor = to_tensor(unclipped)
    assert tensor.tolist() == [[[-0.25, 1.5]]] and tensor.dtype == torch.float32
    tensor.fill_(0)
    assert unclipped.max() == 1.5  # no memory is shared
    assert to_tensor(np.zeros((2, 2), np.float64)).dtype == torch.float32
    with pytest.raises(ValueError, match="int64"):
        to_tensor(np.zeros((2, 2), np.int64))


def test_to_uint8_inverts_to_tensor_and_rounds_half_to_even():
    for shape in [(5, 6, 3), (5, 6)]:
        np.testing.assert_array_equal(to_uint8(to_tensor(noise(*shape))), noise(*shape))
    halves = torch.tensor([[[0.5, 1.5, 2.5, 300.0, -3.0]]], dtype=torch.float64) / 255
    assert to_uint8(halves).tolist() == [[0, 2, 2, 255, 0]]
    with pytest.raises(ValueError, match="C×H×W"):
        to_uint8(torch.zeros(1, 3, 4, 4))


def test_pair_by_name(tmp_path):
    names = ("input/10.png", "input/2.png", "target/2.jpg", "target/10.bmp")
    touch(*(tmp_path / name for name in names))
    pairs = pair_by_name(tmp_path / "input", tmp_path / "target")
    assert [(a.name, b.name) for a, b in pairs] == [("2.png", "2.jpg"), ("10.png", "10.bmp")]
    touch(tmp_path / "input/1.png", tmp_path / "target/4.png")
    with pytest.raises(InputError, match=r"2 images without a partner.*1\.png.*4\.png"):
        pair_by_name(tmp_path / "input", tmp_path / "target")
    touch(tmp_path / "target/4.jpg")
    with pytest.raises(InputError, match="2 images share their name"):
        pair_by_name(tmp_path / "input", tmp_path / "target")
