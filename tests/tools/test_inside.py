"""The figures of what networks do inside: what is drawn is what the networks compute."""

import doctest
import functools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dgunet.Compressive_Sensing import data
from dgunet.images.files import read_rgb, write_image
from dgunet.model.checkpoint import save_checkpoint
from dgunet.model.registry import build_model

sys.path.insert(0, str(Path(__file__).parents[2] / "figs"))
import inside


def small_network(task: str, model: str = "DGUNet", **sizes: int):
    """A network whose step sizes are 0.1, 0.2, … in the order of its modules."""
    torch.manual_seed(0)
    network = build_model(task, model, {"width": 8, "width_step": 4, **sizes}).eval()
    for number, fgdm in enumerate(network.fgdm, 1):
        fgdm.step_size.data.fill_(number / 10)
    return network


def test_examples_in_docstrings_hold():
    result = doctest.testmod(inside)
    assert result.attempted and not result.failed


@pytest.mark.parametrize(
    "model, stages, expected",
    [
        ("DGUNet", 2, [0.1, 0.2]),
        ("DGUNet", 5, [0.1, 0.2, 0.2, 0.2, 0.3]),
        ("DGUNet_plus", 4, [0.1, 0.2, 0.3, 0.4]),
    ],
)
@torch.no_grad()
def test_stages_are_those_of_the_forward_pass(model, stages, expected):
    network, y = small_network("Denoising", model, stages=stages), torch.rand(1, 3, 24, 32)
    images, results, sizes = inside.stages(network, y)
    assert sizes == pytest.approx(expected)
    for image, other in zip(images, [y, *network(y)[::-1]], strict=True):
        assert torch.equal(image[None], other)
    order = [0, *[1] * (stages - 2), -1] if model == "DGUNet" else range(stages)
    for x, v, index in zip(images, results, order, strict=False):
        torch.testing.assert_close(v[None], network.fgdm[index](x[None], y))


@pytest.mark.parametrize("model", ["DGUNet", "DGUNet_plus"])
def test_gradient_steps_of_compressive_sensing_are_those_of_the_equation(model):
    network = small_network("Compressive_Sensing", model, stages=4, last_extra=4, cs_ratio=10)
    phi = network.A.Phi.detach().double().numpy()

    def blocks(image):
        halves = image.double().numpy().reshape(32, 2, 32).transpose(1, 0, 2)
        return halves.reshape(2, -1)

    target = torch.rand(1, 1, 32, 64)
    images, results, sizes = inside.stages(network, target)
    assert len(images) == 5 and len(results) == len(sizes) == 4
    for x, v, size in zip(images, results, sizes, strict=False):
        expected = -size * (blocks(x) - blocks(target)) @ phi.T @ phi
        np.testing.assert_allclose(blocks(v - x), expected, atol=1e-5)


def test_mosaic_goes_line_by_line():
    rows = np.linspace(-0.5, 0.5, 3 * 16).reshape(3, 16)
    picture, gap = inside.mosaic(rows, grid=2), inside.GAP
    far = slice(4 + gap, None)
    assert picture.shape == (8 + gap, 8 + gap)
    places = (slice(4), slice(4)), (slice(4), far), (far, slice(4))
    for place, row in zip(places, rows, strict=True):
        expected = np.rint((0.5 + row.reshape(4, 4) * 4 / 6) * 255)
        np.testing.assert_array_equal(picture[place], expected)
    assert (picture[far, far] == 255).all() and (picture[4 : far.start] == 255).all()
    assert inside.mosaic(np.ones((9, 16)), grid=2).shape == picture.shape


def test_draws_what_there_are_weights_for(tmp_path, monkeypatch, capsys):
    networks = {
        "small_gaussian25": small_network("Denoising", stages=2),
        "DGUNet_25": small_network("Compressive_Sensing", stages=5, last_extra=4, cs_ratio=25),
    }
    training = {"HOLD_OUT": 1, "TRAIN_PS": 32}
    records = {
        "small_gaussian25": {"training": {"degradation": "gaussian25"}},
        "DGUNet_25": {"cs_ratio": 25, "config": {"TRAINING": training}},
    }
    for name, network in networks.items():
        save_checkpoint(tmp_path / f"{name}.safetensors", network)
        (tmp_path / f"{name}.json").write_text(json.dumps(records[name]))
    for number, image in enumerate(np.random.default_rng(0).integers(0, 256, (3, 40, 50), "u1")):
        write_image(tmp_path / "photos" / f"{number}.png", image)

    def default(task):
        names = {"Denoising": "small_gaussian25", "Compressive_Sensing": "DGUNet_25"}
        if task not in names:
            raise FileNotFoundError(f"{task}'s default weights are not there")
        return tmp_path / f"{names[task]}.safetensors"

    def find(name):
        if name not in networks:
            raise inside.InputError("not bundled")
        return tmp_path / f"{name}.safetensors"

    monkeypatch.setattr(inside, "default_weights", default)
    monkeypatch.setattr(inside, "find_weights", find)
    quick = functools.partial(data.principal_components, blocks=2000)
    monkeypatch.setattr(data, "principal_components", quick)
    output = tmp_path / "out"
    inside.main(["--output", str(output), "--photos", str(tmp_path / "photos")])
    printed = capsys.readouterr().out
    for line in (
        "left out: Deblurring's default weights are not there",
        "left out: Deraining's default weights are not there",
        "left out: Φ of ratio 10 (not bundled)",
    ):
        assert line in printed
    names = [f"inside_{name}.jpg" for name in ("compressive_sensing", "denoising", "phi")]
    assert sorted(path.name for path in output.iterdir()) == names
    assert all(read_rgb(output / name).std() > 10 for name in names)
    many, few = (read_rgb(output / name).shape for name in names[:2])
    assert many[0] > few[0] and many[1] == few[1]
