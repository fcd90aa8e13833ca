"""The noise estimate, and which images weights are warned of."""

import numpy as np
import pytest
from pictures import noise

from dgunet.images.files import read_rgb, to_uint8
from dgunet.images.noise import noise_level
from dgunet.model import pretrained
from dgunet.model.pretrained import fits
from dgunet.tools.restore import Report
from dgunet.tools.synthesize import bundled_photos

BLIND, SIGMA25, RAIN = (
    {"training": {"degradation": name}}
    for name in ("gaussian0-50", "gaussian25", "rain_light+rain_heavy+clean")
)


@pytest.mark.parametrize("sigma", [2, 15, 50])
@pytest.mark.parametrize("shape", [(300, 200), (200, 300, 3), (1400, 900)])
def test_noise_on_a_slope_is_found(sigma, shape):
    slope = np.linspace(0.3, 0.7, shape[1], dtype=np.float32).reshape(-1, *[1] * (len(shape) - 2))
    image = slope + sigma / 255 * np.random.default_rng(0).standard_normal(shape, np.float32)
    assert noise_level(image) == pytest.approx(sigma, rel=0.03)
    if sigma == 15:  # little is clipped
        assert noise_level(to_uint8(image)) == pytest.approx(sigma, rel=0.05)
        assert noise_level((image * 65535).astype(np.uint16)) == pytest.approx(sigma, rel=0.05)


def test_tiny_and_constant_images_have_none():
    assert noise_level(np.zeros((2, 9, 3), np.uint8)) == 0
    assert noise_level(np.full((9, 9), 200, np.uint8)) == 0


def test_photographs_like_those_of_training_are_not_warned_of_and_others_are():
    rng = np.random.default_rng(0)
    for photo in bundled_photos():
        clean = read_rgb(photo)[:512, :512]
        seen = {s: to_uint8(clean / 255 + s / 255 * rng.normal(size=clean.shape)) for s in (25, 50)}
        found = {0: noise_level(clean), **{s: noise_level(image) for s, image in seen.items()}}
        assert fits(RAIN, found[0]) and not fits(RAIN, found[25]) and not fits(RAIN, found[50])
        assert all(fits(BLIND, level) for level in found.values())
        assert fits(SIGMA25, found[25]) and not fits(SIGMA25, found[0])


def test_weights_of_unknown_noise_fit_everything():
    for degradation in (None, "poisson_gaussian", "rain_light+poisson_gaussian", "mist", 7):
        assert fits({"training": {"degradation": degradation}}, 80.0)


def test_advice_names_weights_that_fit(monkeypatch, tmp_path):
    monkeypatch.setattr(pretrained, "bundled_weights", lambda: {"blind": tmp_path / "blind"})
    record = {"task": "Denoising", **BLIND}
    monkeypatch.setattr(pretrained, "read_record", lambda file: record)
    rainy, denoiser = {"task": "Deraining", **RAIN}, {"task": "Denoising", **SIGMA25}
    assert pretrained.advice(rainy, 30) == "denoise it first, --weights blind"
    assert pretrained.advice(denoiser, 3) == "use --weights blind"
    assert pretrained.advice(denoiser, 90) == "no bundled weights are for such noise"
    monkeypatch.setattr(pretrained, "read_record", lambda file: None)
    assert pretrained.advice(denoiser, 3) == "it may need no denoising"


def test_the_first_image_is_warned_of_in_full_and_all_are_counted(capsys):
    noisy = noise(64, 64)
    record, report = {**RAIN, "task": "Deraining", "trained_for": "rain"}, Report()
    for name in ("a.png", "b.png"):
        report.note_noise(name, noisy, record)
        report.note_noise("fine.png", np.zeros_like(noisy), record)
        report.note_noise("unknown.png", noisy, None)
    assert report.unlike == ["a.png", "b.png"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: a.png: its noise is about σ = 7") and "for rain;" in line
