"""Protocols against the published scripts' numbers, closed forms and scikit-image."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import noise, noisy_pair
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity

from dgunet.base.errors import InputError
from dgunet.images.files import read_image
from dgunet.images.psnr import psnr as psnr_of
from dgunet.scoring import protocols
from dgunet.scoring.protocols import PROTOCOLS, Score

FIXTURES = Path(__file__).parents[1] / "fixtures" / "metrics"
EXPECTED = json.loads((FIXTURES / "expected.json").read_text())
TOLERANCES = {  # dB, SSIM
    "deraining_y": (1e-4, 1e-6),
    "matlab_rgb": (1e-4, 1e-4),
    "compressive_sensing_y": (1e-6, 1e-6),
    "realblur": (0.02, 1e-3),
}


def fixture_pair(name: str) -> tuple[np.ndarray, np.ndarray]:
    return tuple(read_image(FIXTURES / f"{name}_{kind}.png") for kind in ("restored", "target"))


@pytest.mark.parametrize(
    ("name", "protocol"), [(name, protocol) for name in EXPECTED for protocol in EXPECTED[name]]
)
def test_scores_equal_those_of_the_published_scripts(name, protocol):
    psnr, ssim = PROTOCOLS[protocol](*fixture_pair(name))
    expected = EXPECTED[name][protocol]
    assert psnr == pytest.approx(expected["psnr"], abs=TOLERANCES[protocol][0])
    assert ssim == pytest.approx(expected["ssim"], abs=TOLERANCES[protocol][1])


def test_gaussian_rgb_equals_skimage():
    restored, target = noisy_pair(150, 97, 3)
    options = {"gaussian_weights": True, "use_sample_covariance": False, "data_range": 255}
    expected = structural_similarity(restored, target, channel_axis=2, **options)
    assert protocols.gaussian_rgb(restored, target)[1] == pytest.approx(expected, abs=1e-12)


def test_compressive_sensing_y_is_neither_rounded_nor_left_unclipped():
    restored, target = noisy_pair(90, 75)
    restored = restored / 255 * 1.2 - 0.1
    levels = np.clip(restored, 0, 1) * 255
    psnr, ssim = protocols.compressive_sensing_y(restored, target)
    assert psnr == pytest.approx(10 * np.log10(255**2 / np.mean((levels - target) ** 2)), abs=1e-9)
    expected = structural_similarity(levels, target.astype(float), data_range=255)
    assert ssim == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("shape", "as_float"), [((70, 45, 3), False), ((45, 70), True)])
def test_matlab_ssim_is_gaussian_over_all_axes(shape, as_float):
    def blur(image):
        return gaussian_filter(image, 1.5, radius=5, mode="nearest")

    restored, target = noisy_pair(*shape)
    x, y = restored / 255, target / 255
    mean_x, mean_y = blur(x), blur(y)
    variance_x, variance_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + 1e-4) / (mean_x**2 + mean_y**2 + 1e-4)
    structure = (2 * covariance + 9e-4) / (variance_x + variance_y + 9e-4)
    pair = (x.astype(np.float32), target) if as_float else (restored, target)
    psnr, ssim = protocols.matlab_rgb(*pair)
    assert ssim == pytest.approx(np.mean(luminance * structure), abs=1e-6 if as_float else 1e-12)
    assert psnr == pytest.approx(10 * np.log10(1 / np.mean((x - y) ** 2)), abs=1e-5)


def test_limited_range_luma_rounds_the_exact_value_half_up():
    colours = noise(2000, 3)
    exact = 2 * 255000 * 16 + 2 * colours.astype(int) @ [65481, 128553, 24966]  # of 510000
    rounded = protocols.limited_range_luma(colours[None])[0]
    assert rounded.tolist() == ((exact + 255000) // 510000).tolist()


def test_psnr_is_that_of_an_offset():
    tensor = torch.full((1, 3, 8, 8), 0.25)
    assert psnr_of(tensor, tensor + 0.5) == pytest.approx(20 * math.log10(2))
    assert psnr_of(tensor.bfloat16(), tensor) == math.inf
    levels = np.full((4, 4), 250, np.uint8)
    assert psnr_of(levels - 10, levels, 255) == pytest.approx(20 * math.log10(25.5))
    with pytest.raises(ValueError, match=r"\(4, 4\) and \(4, 1\)"):
        psnr_of(levels, levels[:, :1])


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("as_float", [False, True])
@pytest.mark.filterwarnings("error")
def test_identical_images_score_inf_and_1(name, as_float):
    image = fixture_pair("astronaut")[1]
    image = image.astype(np.float32) / 255 if as_float else image
    psnr, ssim = PROTOCOLS[name](image, image)
    assert psnr == math.inf or (name == "realblur" and psnr > 80)
    assert ssim == pytest.approx(1, abs=1e-6)
    mean = protocols.mean_score([Score("a", psnr, 1.0), Score("b", 30.0, 0.5)])
    assert mean.psnr == pytest.approx((psnr + 30) / 2)


@pytest.mark.parametrize("name", ["deraining_y", "gaussian_rgb", "realblur"])
def test_protocols_of_8_bit_files_round_floats(name):
    restored, target = fixture_pair("astronaut")
    nearly = (restored + np.random.default_rng(0).uniform(-0.4, 0.4, restored.shape)) / 255
    assert PROTOCOLS[name](nearly.astype(np.float32), target) == PROTOCOLS[name](restored, target)
    in_16_bits = restored.astype(np.uint16) * 257
    assert PROTOCOLS[name](in_16_bits, target) == PROTOCOLS[name](restored, target)


def test_matlab_rgb_does_not_round():
    target = np.full((16, 16, 3), 128, np.uint8)
    assert protocols.matlab_rgb(target / 255 + 0.001, target)[0] == pytest.approx(60)


def test_realblur_undoes_shift_and_brightness():
    _, picture = fixture_pair("realblur")
    target, shifted = picture[1:, 2:], picture[:-1, :-2]
    dimmed = np.rint(shifted * 0.8).astype(np.uint8)
    aligned, unaligned = protocols.realblur(dimmed, target), protocols.matlab_rgb(dimmed, target)
    assert unaligned[0] < 22
    # The brightness is matched before the alignment, so a little of the difference stays.
    assert aligned[0] > 36
    assert aligned[1] > 0.99
    grey = [np.ascontiguousarray(image[..., 1]) for image in (dimmed, target)]
    assert protocols.realblur(*grey)[0] > 36


@pytest.mark.parametrize("level", [0, 90])
def test_realblur_without_alignment_has_no_score(level):
    target = fixture_pair("astronaut")[1]
    with pytest.raises(InputError, match="aligned"):
        protocols.realblur(np.full_like(target, level), target)


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize(
    ("restored", "target", "message"),
    [
        (np.zeros((16, 20, 3)), np.zeros((16, 24, 3)), "is 16×20×3, target 16×24×3"),
        (np.zeros((16, 16)), np.zeros((16, 16, 3)), "is 16×16, target 16×16×3"),
        (np.zeros((16, 16, 4)), np.zeros((16, 16, 4)), "16×16×4; expected H×W×3 or H×W"),
        (np.zeros((6, 30, 3)), np.zeros((6, 30, 3)), "is 6×30×3; expected at least"),
        (np.full((16, 16), 200.0), np.zeros((16, 16)), "0 … 200; expected 0 … 1"),
        (np.full((16, 16), np.nan), np.zeros((16, 16)), "nan"),
        (np.zeros((16, 16), int), np.zeros((16, 16)), "is int64; expected uint8"),
    ],
)
def test_unfit_images_are_refused(name, restored, target, message):
    with pytest.raises(InputError, match=message):
        PROTOCOLS[name](restored, target)
