"""The figures of what networks do inside: what is measured for them, and that they are drawn."""

import doctest
import functools
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage.metrics import peak_signal_noise_ratio

from dgunet.Compressive_Sensing import data
from dgunet.images.files import read_rgb, write_image
from dgunet.model.checkpoint import save_checkpoint
from dgunet.model.registry import build_model

sys.path.insert(0, str(Path(__file__).parents[2] / "figs"))
import inside

SIZES = {"width": 8, "width_step": 4}


def small_network(task: str, model: str = "DGUNet", **sizes: int):
    """A network whose step sizes are 0.1, 0.2, … in the order of its modules."""
    torch.manual_seed(0)
    network = build_model(task, model, {**SIZES, **sizes}).eval()
    for number, fgdm in enumerate(network.fgdm, 1):
        fgdm.step_size.data.fill_(number / 10)
    return network


def test_examples():
    result = doctest.testmod(inside)
    assert result.attempted and not result.failed


def test_adjoint_pairs_have_no_error():
    torch.manual_seed(0)
    kernel = torch.randn(5, 3, 3, 3, dtype=torch.float64)
    u, w = (torch.randn(1, c, 20, 30, dtype=torch.float64) for c in (3, 5))

    def forward(x):
        return F.conv2d(x, kernel, padding=1)

    def backward(r):
        return F.conv_transpose2d(r, kernel, padding=1)

    assert inside.adjoint_error(forward, backward, u, w) < 1e-14
    assert inside.gradient_cosine(forward, backward, u, w) == pytest.approx(1, abs=1e-12)


def test_a_rotation_is_not_its_own_adjoint():
    angle = 0.3
    turn = torch.tensor(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]],
        dtype=torch.float64,
    )
    u, w = torch.eye(2, dtype=torch.float64)

    def error(adjoint):
        return inside.adjoint_error(turn.mv, adjoint, u, 7 * w)

    assert error(turn.mv) == pytest.approx(2 * math.sin(angle))
    assert error(turn.T.mv) == pytest.approx(0, abs=1e-15)
    # ½‖Rx − y‖² has the gradient Rᵀ(Rx − y), which R instead of Rᵀ misses by twice the angle.
    assert inside.gradient_cosine(turn.mv, turn.mv, u, w) == pytest.approx(math.cos(2 * angle))


def test_the_gradient_of_an_operator_that_is_not_linear():
    x, y = np.random.default_rng(0).random((2, 50)) + 0.5
    residual = x**2 - y
    gradient = 2 * x * residual
    expected = residual @ gradient / np.linalg.norm(residual) / np.linalg.norm(gradient)
    tensors = map(torch.from_numpy, (x, y))
    assert inside.gradient_cosine(torch.square, torch.clone, *tensors) == pytest.approx(expected)


def test_noise_hardly_tells_unrelated_operators_from_adjoint_ones():
    generator = torch.Generator().manual_seed(0)
    u = torch.rand(3, 32, 32, generator=generator)
    noise = [torch.randn(u.shape, generator=generator) for _ in range(1000)]
    errors = [inside.adjoint_error(torch.clone, torch.zeros_like, u, w) for w in noise]
    assert np.mean(errors) == pytest.approx(math.sqrt(2 / math.pi / u.numel()), rel=0.1)


def test_nothing_to_compare_is_nan():
    zero, one = torch.zeros(4), torch.ones(4)
    assert math.isnan(inside.adjoint_error(torch.clone, torch.clone, one, zero))
    assert math.isnan(inside.gradient_cosine(torch.clone, torch.clone, one, one))


@pytest.mark.parametrize(
    "model, stages, expected",
    [
        ("DGUNet", 2, [0.1, 0.2]),
        ("DGUNet", 5, [0.1, 0.2, 0.2, 0.2, 0.3]),
        ("DGUNet_plus", 4, [0.1, 0.2, 0.3, 0.4]),
    ],
)
def test_steps_are_those_that_the_network_takes(model, stages, expected):
    network = small_network("Denoising", model, stages=stages)
    y = torch.rand(1, 3, 24, 32)
    taken = []
    for fgdm in network.fgdm:
        fgdm.register_forward_hook(lambda module, inputs, v: taken.append((module, *inputs, v)))
    images = inside.stage_images(network, y)
    assert torch.equal(images[0], y[0]) and torch.equal(images[-1][None], network(y)[0])
    steps = inside.gradient_steps(network, y, images)
    assert [step.size for step in steps] == pytest.approx(expected)
    for step, image, (module, x, _, v) in zip(steps, images, taken[:stages], strict=False):
        assert torch.equal(image, x[0])
        with torch.no_grad():
            by_hand = x - step.size * module.A_adjoint(step.residual[None])
        torch.testing.assert_close(by_hand, v)
        assert step.error > 1e-3 and -1 <= step.cosine < 0.999


def test_operators_that_are_the_identity():
    network = small_network("Deraining", stages=3)
    network.zero_image_convolutions()
    y = torch.rand(1, 3, 24, 32)
    images = inside.stage_images(network, y)
    for step in inside.gradient_steps(network, y, images):
        assert not step.residual.any() and step.error < 1e-8 and math.isnan(step.cosine)


@pytest.mark.parametrize("model", ["DGUNet", "DGUNet_plus"])
def test_compressive_sensing_is_exact(model):
    network = small_network("Compressive_Sensing", model, stages=4, last_extra=4, cs_ratio=10)
    phi = network.A.Phi.detach().double().numpy()
    target = torch.rand(1, 1, 32, 64)
    blocks = target.double().numpy()[0, 0].reshape(32, 2, 32).transpose(1, 0, 2).reshape(2, -1)
    y = network.measure(target).detach()
    images = inside.stage_images(network, y)
    steps = inside.gradient_steps(network, y, images)
    assert len(steps) == len(images) - 1 == 4
    for step, image in zip(steps, images, strict=False):
        x = image.double().numpy()[0].reshape(32, 2, 32).transpose(1, 0, 2).reshape(2, -1)
        expected = ((x - blocks) @ phi.T @ phi).reshape(2, 32, 32).transpose(1, 0, 2)
        np.testing.assert_allclose(step.residual[0], expected.reshape(32, 64), atol=1e-5)
        assert step.error < 1e-7 and step.error_on_residual < 1e-6
        assert step.cosine == pytest.approx(1, abs=1e-6)


def test_scores_are_of_8_bit_pixels():
    images = torch.rand(3, 3, 16, 16) * 1.2 - 0.1
    target = torch.rand(3, 16, 16)

    def pixels(image):
        return (image.clamp(0, 1) * 255).round().byte().numpy()

    example = inside.Example("noise", images[:1], list(images), target)
    expected = [peak_signal_noise_ratio(pixels(target), pixels(image)) for image in images]
    assert example.scores() == pytest.approx(expected, abs=1e-9)


def test_mosaic_goes_line_by_line():
    rows = np.arange(3 * 16.0).reshape(3, 16)
    picture, gap = inside.mosaic(rows, grid=2), inside.GAP
    far = slice(4 + gap, None)
    assert picture.shape == (8 + gap, 8 + gap)
    places = (slice(4), slice(4)), (slice(4), far), (far, slice(4))
    for place, row in zip(places, rows, strict=True):
        np.testing.assert_array_equal(picture[place], row.reshape(4, 4))
    assert np.isnan(picture[far, far]).all() and np.isnan(picture[4 : far.start]).all()
    assert inside.mosaic(np.ones((9, 16)), grid=2).shape == picture.shape


def test_draws_what_there_are_weights_for(tmp_path, monkeypatch, capsys):
    denoiser = small_network("Denoising", stages=2)
    sensing = small_network("Compressive_Sensing", stages=5, last_extra=4, cs_ratio=25)
    save_checkpoint(tmp_path / "denoiser.pth", denoiser)
    save_checkpoint(tmp_path / "DGUNet_25.safetensors", sensing)
    record = {"cs_ratio": 25, "config": {"TRAINING": {"HOLD_OUT": 1, "TRAIN_PS": 32}}}
    (tmp_path / "DGUNet_25.json").write_text(json.dumps(record))
    for number, image in enumerate(np.random.default_rng(0).integers(0, 256, (3, 40, 50), "u1")):
        write_image(tmp_path / "photos" / f"{number}.png", image)

    def missing(task):
        raise FileNotFoundError(f"{task}'s default weights are not there")

    def find(name):
        if name == "DGUNet_25":
            return tmp_path / f"{name}.safetensors"
        raise inside.InputError("not shipped")

    monkeypatch.setattr(inside, "default_weights", missing)
    monkeypatch.setattr(inside, "find_weights", find)
    monkeypatch.setattr(inside, "PHOTOS", ("coffee", "motorcycle_left"))
    monkeypatch.setattr(inside, "SIDE", 128)
    monkeypatch.setattr(inside, "DPI", 50)
    quick = functools.partial(data.principal_components, blocks=2000)
    monkeypatch.setattr(data, "principal_components", quick)
    output = tmp_path / "out"
    weights = {"Denoising": "denoiser.pth", "Compressive_Sensing": "DGUNet_25.safetensors"}
    given = [f"{task}={tmp_path / file}" for task, file in weights.items()]
    arguments = ["--output", str(output), "--photos", str(tmp_path / "photos"), "--weights", *given]
    inside.main(arguments)
    printed = capsys.readouterr().out
    for line in (
        "left out: Deblurring's default weights are not there",
        "left out: Deraining's default weights are not there",
        "left out: Φ of ratio 10 (not shipped)",
    ):
        assert line in printed
    steps = [line.split() for line in printed.splitlines() if line[24:25].isdigit()]
    assert [line[:3:2] for line in steps] == [["1", "0.100"], ["2", "0.200"]] + [
        [str(k), f"{size:.3f}"] for k, size in enumerate([0.1, 0.2, 0.2, 0.2, 0.3], 1)
    ]
    names = ["compressive_sensing.jpg", "denoising.jpg", "phi.png", "psnr.png"]
    assert sorted(path.name for path in output.iterdir()) == [f"inside_{name}" for name in names]
    for path in output.iterdir():
        assert read_rgb(path).std() > 10 and path.stat().st_size < inside.MOST_BYTES
    few, many = (read_rgb(output / f"inside_{name}").shape for name in (names[1], names[0]))
    assert many[0] > few[0] and many[1] == few[1]


def test_refuses_what_it_cannot_draw(tmp_path, monkeypatch, capsys):
    def missing(task):
        raise FileNotFoundError(task)

    monkeypatch.setattr(inside, "default_weights", missing)
    for arguments, message in (
        (["--weights", "Colouring=x.pth"], "--weights Colouring: expected TASK=FILE"),
        (["--weights", "Denoising"], "--weights Denoising: expected TASK=FILE"),
        (["--weights", f"Denoising={tmp_path / 'none.pth'}"], "none.pth"),
        ([], "no weights are there"),
    ):
        with pytest.raises(SystemExit) as exit_code:
            inside.main([*arguments, "--output", str(tmp_path / "out")])
        assert exit_code.value.code == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_jpeg_is_made_small(tmp_path, monkeypatch):
    noise = np.random.default_rng(0).random((64, 1024))
    figure = inside.phi_figure({"noise": noise})
    monkeypatch.setattr(inside, "DPI", 60)
    inside.save(figure, tmp_path / "large.jpg")
    size = (tmp_path / "large.jpg").stat().st_size
    monkeypatch.setattr(inside, "MOST_BYTES", size * 3 // 4)
    inside.save(figure, tmp_path / "small.jpg")
    assert size // 2 < (tmp_path / "small.jpg").stat().st_size <= size * 3 // 4
