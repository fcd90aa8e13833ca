"""Figures: what is in them, and what is refused."""

import numpy as np
import pytest
from pictures import noise

from dgunet.base.errors import InputError
from dgunet.images.files import read_rgb, write_image
from dgunet.tools import figure
from dgunet.tools.figure import Row, before_after, picture_rows


@pytest.fixture(autouse=True)
def small_figures(monkeypatch):
    monkeypatch.setattr(figure, "WIDTH", 4.0)


@pytest.fixture
def folders(tmp_path):
    target = np.full((40, 60, 3), 100, np.uint8)
    for folder, image in (("degraded", target + 10), ("restored", target + 1), ("target", target)):
        for name in ("one", "two"):
            write_image(tmp_path / folder / f"{name}.png", image)
    return {name: tmp_path / name for name in ("degraded", "restored", "target")}


def test_before_and_after_shows_every_picture(folders, tmp_path, run):
    run(figure, tmp_path / "out/figure.png", *(f"{name}={path}" for name, path in folders.items()))
    pixels = read_rgb(tmp_path / "out/figure.png").reshape(-1, 3)
    for value in (110, 101, 100):  # a third of the width each, two rows
        assert (pixels == value).all(axis=1).mean() > 0.18


def test_other_sizes_and_missing_images_are_refused(folders, tmp_path, run):
    with pytest.raises(InputError, match="no image named three"):
        before_after(folders, tmp_path / "figure.png", ["three"])
    write_image(folders["restored"] / "two.png", np.zeros((40, 61, 3), np.uint8))
    with pytest.raises(InputError, match=r"two\.png: is 61×40, expected the target's 60×40"):
        before_after(folders, tmp_path / "figure.png")
    assert not (tmp_path / "figure.png").exists()
    assert "error: " in run(figure, tmp_path / "figure.png", "target")


def test_rows_are_filled_by_their_pictures(tmp_path):
    grey, red = np.full((40, 50), 90, np.uint8), np.full((40, 40, 3), (200, 10, 20), np.uint8)
    rows = [Row("Wide", "of two", [("a", grey)] * 2), Row("Narrow", "", [("b", red)] * 4)]
    picture_rows(rows, [tmp_path / "new/figure.png", tmp_path / "figure.jpg"])
    pixels = read_rgb(tmp_path / "new/figure.png")
    grey_there, red_there = ((pixels == colour).all(axis=2) for colour in (90, (200, 10, 20)))
    for there, count in ((grey_there, 2), (red_there, 4)):
        columns = there.any(axis=0)
        assert columns.sum() > pixels.shape[1] - 12 * count
        assert np.count_nonzero(np.diff(columns.astype(int))) in (2 * count - 2, 2 * count - 1)
    assert np.argmax(grey_there.any(axis=1)) < np.argmax(red_there.any(axis=1))
    assert read_rgb(tmp_path / "figure.jpg").shape == pixels.shape


def test_a_jpeg_is_made_small_enough(tmp_path, monkeypatch):
    rows, path = [Row("Noise", "", [("a", noise(200, 300, 3))])], tmp_path / "figure.jpg"
    sizes = []
    for limit in (10**9, 100_000):
        monkeypatch.setattr(figure, "JPEG_BYTES", limit)
        picture_rows(rows, [path])
        sizes.append(path.stat().st_size)
    assert sizes[0] > 100_000 >= sizes[1]


def test_signed_colours_are_blue_white_and_red():
    blue, white, red = figure.signed_colours(np.array([[-2.0, 0.0, 1.0]]), 1.0)[0].astype(int)
    assert blue[2] > blue[0] + 50 and red[0] > red[2] + 50 and white.min() > 240
