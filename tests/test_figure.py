"""The before/after figure: what is in it, and what it refuses."""

import numpy as np
import pytest

from restoration.errors import InputError
from restoration.figure import before_after, main
from restoration.images import read_rgb, write_image


@pytest.fixture
def folders(tmp_path):
    target = np.full((40, 60, 3), 100, np.uint8)
    for folder, image in (("degraded", target + 10), ("restored", target + 1), ("target", target)):
        for name in ("one", "two"):
            write_image(tmp_path / folder / f"{name}.png", image)
    return {name: tmp_path / name for name in ("degraded", "restored", "target")}


def test_shows_every_picture(folders, tmp_path):
    main(
        [str(tmp_path / "out/figure.png"), *(f"{title}={path}" for title, path in folders.items())]
    )
    figure = read_rgb(tmp_path / "out/figure.png").reshape(-1, 3)
    for value in (110, 101, 100):  # a third of the width each, two rows
        assert (figure == value).all(axis=1).mean() > 0.2


def test_refuses_other_sizes_and_missing_images(folders, tmp_path):
    with pytest.raises(InputError, match="no image named three"):
        before_after(folders, tmp_path / "figure.png", ["three"])
    write_image(folders["restored"] / "two.png", np.zeros((40, 61, 3), np.uint8))
    with pytest.raises(InputError, match=r"two\.png: is 61×40, expected the target's 60×40"):
        before_after(folders, tmp_path / "figure.png")
    assert not (tmp_path / "figure.png").exists()
    with pytest.raises(SystemExit) as exit_code:
        main([str(tmp_path / "figure.png"), "target"])
    assert exit_code.value.code == 2
